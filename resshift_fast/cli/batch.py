"""Restoring many photos in a row: one that fails is reported and left out, and what is written stays."""

from __future__ import annotations

import errno
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from PIL import Image
from tqdm import tqdm

from resshift_fast import images
from resshift_fast.cli import console
from resshift_fast.cli.plan import Job, Tally
from resshift_fast.images import Photo

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from resshift_fast.pipeline import Pipeline


BAR_SECONDS = 1.0  # a photo that is faster is done before a bar can be read


def run_jobs(pipe: Pipeline, jobs: Sequence[Job], options: dict[str, Any], tally: Tally) -> None:
    """Restore every job's photo, say a line about each on stderr, and count them in `tally`.

    A photo that cannot be read, restored or written is reported and left out. A full disk ends the batch, since every
    further photo would be computed in vain.

    Args:
        pipe: the loaded model.
        jobs: what to do, in this order.
        options: keyword arguments of the pipeline's call.
        tally: updated after every photo, so that it is right whenever Ctrl-C comes.
    """
    clock = _Clock([_pixels(job.source) for job in jobs])
    inputs = {job.source.resolve() for job in jobs}
    for i, job in enumerate(jobs):
        label = f"[{i + 1}/{len(jobs)}] {job.source.name}"
        start = time.monotonic()
        try:
            before, after, written = _restore(pipe, job, options, label, inputs)
        except Exception as error:
            console.report(error, str(job.source), options["tile"] or pipe.spec.tile)
            tally.failed += 1
            clock.leave_out(i)
            if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
                tally.stopped = f"stopped with {len(jobs) - i - 1} of {len(jobs)} not begun"
                return
            continue
        tally.restored += 1
        seconds = time.monotonic() - start
        left = clock.left_after(i, seconds)
        sizes = f"{before.width}×{before.height} → {after.width}×{after.height}"
        renamed = "" if written == job.output else f", written as {written.name}"
        remaining = "" if left is None else f", {console.duration(left)} left"
        console.say(f"{label} {sizes} {console.duration(seconds)}{remaining}{renamed}")


def _restore(
    pipe: Pipeline, job: Job, options: dict[str, Any], label: str, inputs: set[Path]
) -> tuple[Photo, Photo, Path]:
    """Restore one photo: (before, after, where the result is)."""
    before = images.read(job.source)
    mask = images.read_mask(job.mask) if job.mask else None
    with _bar(label) as progress:
        after = pipe(before, mask, progress=progress, **options)
    output = job.output
    if not job.exact and images.suffix_for(after, output.suffix) != output.suffix:
        output = job.fallback
        if output.resolve() in inputs:
            raise ValueError(f"{job.output.suffix} cannot hold the result and {output} is an input; use --format png")
    # First, so that wherever the result is, everything of this photo is there.
    if job.compare:
        images.write(job.compare, images.side_by_side(before, after))
    images.write(output, after)
    return before, after, output


@contextmanager
def _bar(label: str) -> Iterator[Callable[[int, int], None]]:
    """A function that the pipeline calls with (done, total): a bar on a terminal, for photos that take their time."""
    with tqdm(desc=label, unit="step", leave=False, disable=None, delay=BAR_SECONDS) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield progress


class _Clock:
    """Estimates the time left from the pixels done and to do."""

    def __init__(self, pixels: list[int]):
        self._pixels = pixels
        self._done_pixels, self._seconds = 0, 0.0

    def leave_out(self, index: int) -> None:
        """A photo failed: it says nothing about the others."""
        self._pixels[index] = 0

    def left_after(self, index: int, seconds: float) -> float | None:
        """Seconds left after the photo at `index`, which took `seconds`; None if it was the last."""
        self._done_pixels += self._pixels[index]
        self._seconds += seconds
        if index == len(self._pixels) - 1:
            return None
        return self._seconds / max(1, self._done_pixels) * sum(self._pixels[index + 1 :])


def _pixels(path: Path) -> int:
    """A photo's pixels by its header; 0 where it cannot be read, for then it fails soon."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(path) as image:
                return image.width * image.height
        except Exception:  # Pillow's parsers raise whatever a damaged file leads them to
            return 0
