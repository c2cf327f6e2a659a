"""`restore` of one video: what is said before, meanwhile and when it is stopped."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from resshift_fast.apps.video import restoring
from resshift_fast.cli import console

if TYPE_CHECKING:
    import numpy as np

    from resshift_fast.apps.video.restoring import Plan, Result
    from resshift_fast.images import Photo
    from resshift_fast.images.fitting import Fitting
    from resshift_fast.pipeline import Pipeline

BAR_SECONDS = 1.0  # no bar for a video that takes less
ANNOUNCED_SECONDS = 20.0  # from which the time is said before
LEAST_SECONDS = 3.0  # that are measured for it


def restore(
    pipe: Pipeline,
    planned: Plan,
    mask: np.ndarray | None,
    fitting: Fitting,
    options: dict[str, Any],
    label: str,
    on_first: Callable[[Photo, Photo], None],
) -> Result:
    """Restore a video, and say its size, the time that it will take, and how far an interrupted run came.

    Args:
        pipe, mask, fitting, options, on_first: as of `restoring.restore`. planned: what the video will become.
        label: of its lines.
    """
    clip, encoder = planned.clip, planned.encoder
    frames = f"{clip.frames} frames, {console.duration(clip.seconds)}" if clip.frames else "of unknown length"
    size = f"{clip.first.width}×{clip.first.height} → {encoder.width}×{encoder.height} pixels"
    console.say(f"{label} {size}, {frames}")
    clock = _Clock(label, clip.frames)

    def on_resume(done: int, changed: list[str]) -> None:
        clock.begin(done)
        if changed:
            console.say(f"{label} begins anew: an earlier run had other settings ({', '.join(changed)})")
        else:
            console.say(f"{label} goes on after frame {done}, up to which an earlier run has restored it")

    with _bar(label, clip.frames) as show:

        def progress(done: float) -> None:
            show(done)
            clock.tick(done)

        try:
            return restoring.restore(
                pipe,
                planned,
                fitting,
                mask=mask,
                options=options,
                on_first=on_first,
                on_resume=on_resume,
                progress=progress,
            )
        except KeyboardInterrupt:
            console.say(f"{label} stopped; the same command goes on from the frames that are restored")
            raise


class _Clock:
    """Says how long a video will take, as soon as its second frame is restored: the first also warms up.

    Args:
        label: of its line. total: number of frames, or 0 if it is not known.

    """

    def __init__(self, label: str, total: int):
        self._label, self._total, self._start = label, total, 0
        self._begun: tuple[float, float] | None = None
        self._is_said = not total

    def begin(self, done: int) -> None:
        """Go on after frames that an earlier run has restored."""
        self._start = done

    def tick(self, done: float) -> None:
        """Note that frames, and a part of the next one, are restored."""
        if self._is_said or done < self._start + 1:
            return
        now = time.monotonic()
        if self._begun is None:
            self._begun = now, done
        elif done >= self._begun[1] + 1 and now >= self._begun[0] + LEAST_SECONDS:
            self._is_said = True
            each = (now - self._begun[0]) / (done - self._begun[1])
            seconds = each * (self._total - self._begun[1])
            if seconds >= ANNOUNCED_SECONDS:
                console.say(f"{self._label} will take about {console.duration(seconds)}")


@contextmanager
def _bar(label: str, total: int) -> Iterator[Callable[[float], None]]:
    """A progress bar of frames on a terminal; the value is called with how many are restored."""
    hidden = True if console.bars_are_hidden() else None  # None: only on a terminal
    with tqdm(desc=label, unit="frame", total=total or None, leave=False, disable=hidden, delay=BAR_SECONDS) as bar:

        def show(done: float) -> None:
            # Parts of frames by tenths; a file may hold more frames than it says.
            bar.total = None if bar.total is None else max(bar.total, int(done))
            bar.update(round(done, 1) - bar.n)

        yield show
