"""Restoring many photos: one that fails is reported and skipped, and results written before are kept."""

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


BAR_SECONDS = 1.0  # no bar for a photo that takes less


def run_jobs(pipe: Pipeline, jobs: Sequence[Job], options: dict[str, Any], tally: Tally) -> None:
    """Restore every job's photo, print a line about each on stderr, and count them in `tally`.

    A photo that cannot be read, restored or written is reported and skipped. A full disk ends the batch, since no
    further result could be written.

    Args:
        pipe: the loaded model.
        jobs: what to do, in this order.
        options: keyword arguments of the pipeline's call.
        tally: updated after every photo, so that it is correct after Ctrl-C.
    """
    clock = _Clock([_pixels(job.source) for job in jobs])
    for i, job in enumerate(jobs):
        label = f"[{i + 1}/{len(jobs)}] {job.source.name}"
        start = time.monotonic()
        try:
            before, after, written = _restore(pipe, job, options, label)
        except Exception as error:
            console.report(error, str(job.source), options["tile"] or pipe.spec.tile)
            tally.failed += 1
            clock.skip(i)
            if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
                tally.stopped = f"stopped with {len(jobs) - i - 1} of {len(jobs)} not started"
                return
            continue
        tally.restored += 1
        seconds = time.monotonic() - start
        left = clock.left_after(i, seconds)
        sizes = f"{before.width}×{before.height} → {after.width}×{after.height}"
        renamed = "" if written == job.output else f", written as {written.name}"
        remaining = "" if left is None else f", {console.duration(left)} left"
        console.say(f"{label} {sizes} {console.duration(seconds)}{remaining}{renamed}")


def _restore(pipe: Pipeline, job: Job, options: dict[str, Any], label: str) -> tuple[Photo, Photo, Path]:
    """Restore one photo; returns (before, after, path of the result)."""
    before = images.read(job.source)
    mask = images.read_mask(job.mask) if job.mask else None
    with _bar(label) as progress:
        after = pipe(before, mask, progress=progress, **options)
    output = job.output
    if not job.exact and images.suffix_for(after, output.suffix) != output.suffix:
        output = job.fallback
        if output in job.originals:
            raise ValueError(f"{job.output.suffix} cannot hold the result and {output} is an input; use --format png")
    # Before the result, so that --skip-existing finds either both files or no result.
    if job.compare:
        images.write(job.compare, images.side_by_side(before, after))
    images.write(output, after)
    return before, after, output


@contextmanager
def _bar(label: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on a terminal, for photos that take long; the value is called with (done, total)."""
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

    def skip(self, index: int) -> None:
        """Leave out a photo that failed, whose time says nothing about the others."""
        self._pixels[index] = 0

    def left_after(self, index: int, seconds: float) -> float | None:
        """Seconds left after the photo at `index`, which took `seconds`; None if it was the last."""
        self._done_pixels += self._pixels[index]
        self._seconds += seconds
        if index == len(self._pixels) - 1:
            return None
        return self._seconds / max(1, self._done_pixels) * sum(self._pixels[index + 1 :])


def _pixels(path: Path) -> int:
    """Number of pixels by the file's header; 0 if it cannot be read, since the photo will then fail at once."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(path) as image:
                return image.width * image.height
        except Exception:  # Pillow's parsers raise whatever a damaged file leads them to
            return 0
