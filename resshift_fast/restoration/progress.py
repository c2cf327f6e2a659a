"""The progress of a restoration: a bar on a terminal, or the caller's function."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from resshift_fast.restoration import inputs


class Progress:
    """Context manager around a progress bar; its value is a function to call once per denoiser evaluation.

    Args:
        progress: True shows a bar on a terminal; a function is called with (done, total); False reports nothing.
        total: number of denoiser evaluations.
    """

    def __init__(self, progress: inputs.Progress, total: int):
        self._report, self._total, self._done = progress, total, 0
        self._bar: Any = None

    def __enter__(self) -> Callable[[], None]:
        if self._report is True and self._total > self._done:
            from tqdm import tqdm

            self._bar = tqdm(total=self._total, desc="restoring", unit="step", leave=False, disable=None)
            advance: Callable[[], None] = self._bar.update
            return advance
        return self._advance

    def _advance(self) -> None:
        self._done += 1
        if callable(self._report):
            self._report(self._done, self._total)

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
