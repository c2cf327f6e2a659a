"""Signals that end a training after the current step."""

from __future__ import annotations

import signal
from types import TracebackType


class StopSignals:
    """Context manager: within the block the first SIGINT or SIGTERM is noted, and a second SIGINT ends at once.

    Attributes:
        received: whether one has come.
    """

    def __init__(self) -> None:
        self.received = False
        self._previous: dict[int, object] = {}

    def _handle(self, number: int, _frame: object) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = True

    def __enter__(self) -> StopSignals:
        self.received = False
        try:
            self._previous = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not the main thread, which alone can handle signals
            self._previous = {}
        return self

    def __exit__(self, _kind: type | None, _error: BaseException | None, _trace: TracebackType | None) -> None:
        for number, old in self._previous.items():
            signal.signal(number, old)  # type: ignore[arg-type]
