"""Restoring many photos: one that fails is reported and skipped, and results written before are kept."""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NoReturn

from tqdm import tqdm

from resshift_fast import images
from resshift_fast.cli import console
from resshift_fast.cli.plan import Job, Tally
from resshift_fast.cli.reporting import Report
from resshift_fast.core.claims import claimed
from resshift_fast.core.files import check_target
from resshift_fast.core.text import visible
from resshift_fast.images import ImageError, Photo, headers, resizing, results
from resshift_fast.images.notes import Notes
from resshift_fast.images.photo import in_8_bits

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy as np

    from resshift_fast.pipeline import Pipeline

BAR_SECONDS = 1.0  # no bar for a photo that takes less


def run_jobs(
    pipe: Pipeline,
    jobs: Sequence[Job],
    options: dict[str, Any],
    tally: Tally,
    fitting: Fitting,
    report: Report,
    prepared: Prepared | None = None,
) -> None:
    """Restore every job's photo, print a line about each on stderr, and count them in `tally`.

    A photo that cannot be read, restored or written is reported and skipped. So is one that another run on the same
    outputs restores, or has restored since this one began: the two share the work. A full disk ends the batch, since no
    further result could be written.

    Args:
        pipe: the loaded model.
        jobs: what to do, in this order.
        options: keyword arguments of the pipeline's call.
        tally: updated after every photo, so that it is correct after Ctrl-C.
        fitting: how results are made to fit their formats.
        report: says how each photo ended.
        prepared: the first photo, if it has been read already.
    """
    clock = _Clock([_pixels(job.source) for job in jobs])
    began = time.time()
    for i, job in enumerate(jobs):
        label = f"[{i + 1}/{len(jobs)}] {visible(job.source.name)}"
        start = time.monotonic()
        try:
            with claimed(job.output) as is_mine:
                if not is_mine or _is_written_since(began, job):
                    reason = f"left to another run, which {'has restored' if is_mine else 'restores'} it"
                    report.skipped(job, f"{label} {reason}", reason)
                    tally.skipped += 1
                    clock.skip(i)
                    continue
                ready = prepare(job, fitting) if prepared is None else prepared
                prepared = None
                after = _restore(pipe, job, ready, fitting, options, label)
        except Exception as error:
            report.failed(job, error, options["tile"] or pipe.spec.tile)
            tally.failed += 1
            clock.skip(i)
            if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
                tally.stopped = f"stopped with {len(jobs) - i - 1} of {len(jobs)} not started"
                return
            continue
        tally.restored += 1
        seconds = time.monotonic() - start
        left = clock.left_after(i, seconds)
        sizes = f"{ready.before.width}×{ready.before.height} → {after.width}×{after.height}"
        remaining = "" if left is None else f"{console.duration(left)} left"
        notes = "".join(f", {note}" for note in (remaining, *ready.notes) if note)
        report.restored(
            job,
            f"{label} {sizes} {console.duration(seconds)}{notes}",
            output=str(ready.output),
            width=ready.before.width,
            height=ready.before.height,
            output_width=after.width,
            output_height=after.height,
            seconds=round(seconds, 3),
            notes=list(ready.notes),
        )


def _is_written_since(began: float, job: Job) -> bool:
    """Whether another run has written a job's result since this one began."""
    for output in {job.output, job.output if job.exact else job.fallback}:
        with suppress(OSError):
            if output.stat().st_mtime > began and headers.is_whole(output):
                return True
    return False


@dataclass(frozen=True)
class Fitting:
    """How photos and results are made to fit the formats of the outputs.

    Args:
        scale: of the model.
        wanted_scale: to which results are reduced; None for the model's.
        background: the colour that transparent photos are laid over; None keeps the transparency.
        eight_bits: round results to 8 bits.
        quality: of JPEG and WebP. strip_metadata: leave out all but the colour profile.
    """

    scale: int
    wanted_scale: float | None = None
    background: tuple[int, int, int] | None = None
    eight_bits: bool = False
    quality: int = 95
    strip_metadata: bool = False

    def sides(self, photo: Photo) -> tuple[int, int]:
        """(height, width) of a photo's result."""
        return resizing.sides_at(photo, self.wanted_scale or self.scale)

    def fit(self, photo: Photo) -> tuple[Photo, tuple[str, ...]]:
        """A photo as it goes into the network, and what its line says about that."""
        flattened = photo.alpha is not None and self.background is not None
        rounded = photo.bits == 16 and self.eight_bits
        if self.background is not None:
            photo = results.laid_over(photo, self.background)
        return photo, ("laid over the background",) * flattened + ("rounded to 8 bits",) * rounded

    def fit_result(self, before: Photo, result: Photo) -> Photo:
        """The result of a photo as it is written."""
        result = resizing.reduced(result, self.sides(before))
        if self.strip_metadata:
            result = replace(result, exif=None, notes=Notes())
        return in_8_bits(result) if self.eight_bits and result.bits == 16 else result


@dataclass(frozen=True)
class Prepared:
    """A photo that has been read, and the file that its result will go to.

    Args:
        before: the photo, as it goes into the network. mask: its mask, if the model needs one.
        output: where the result goes. notes: what differs from what was asked for, for the photo's line.
    """

    before: Photo
    mask: np.ndarray | None
    output: Path
    notes: tuple[str, ...]


def prepare(job: Job, fitting: Fitting) -> Prepared:
    """Read a photo and find out where its result goes, so that nothing is restored that cannot be written.

    Raises:
        ImageError, OSError: if the photo or its mask cannot be read, or the output's format or its folder cannot hold
            the result. ValueError: if the result would replace an original.
    """
    check_targets(job)
    photo = images.read(job.source)
    before, notes = fitting.fit(photo)
    output = _output_of(job, before, fitting)
    mask = images.read_mask(job.mask) if job.mask else None
    if output != job.output:
        if output in job.originals:
            raise ValueError(f"{job.output.suffix} cannot hold the result and {output} is an input; use --format png")
        check_target(output)
        notes = (*notes, f"written as {output.name}")
    return Prepared(before, mask, output, notes)


def check_targets(job: Job) -> None:
    """Raise OSError if a file that a job will write cannot be written."""
    for target in filter(None, (job.output, job.compare)):
        check_target(target)


def is_done(job: Job, fitting: Fitting) -> bool:
    """Whether everything that a job would write is there: whole images, of the format that it would write."""
    if job.compare and not headers.is_whole(job.compare):
        return False
    if headers.is_whole(job.output):
        return True
    if job.exact or not headers.is_whole(job.fallback):
        return False
    try:  # a PNG beside it may be the result of a run with another --format
        return _output_of(job, fitting.fit(images.read(job.source))[0], fitting) == job.fallback
    except (OSError, ValueError):
        return False


def _output_of(job: Job, before: Photo, fitting: Fitting) -> Path:
    """The output whose format can hold the result of `before`; raises ImageError if that is not the one named."""
    result = results.expected(before, fitting.sides(before), 8 if fitting.eight_bits else before.bits)
    if images.suffix_for(result, job.output.suffix) == job.output.suffix:
        return job.output
    if job.exact:
        _refuse(result, job.output)
    return job.fallback


def _refuse(result: Photo, output: Path) -> NoReturn:
    """Raise the error of a named format that cannot hold a result, with the options that make it fit."""
    try:
        images.check_format(output, result)
    except ImageError as error:
        cures = ["lay it over a colour with --background white"] * (result.alpha is not None)
        cures += ["round it to 8 bits with --8-bit"] * (result.bits == 16)
        raise ImageError(", or ".join([str(error), *cures])) from error
    raise AssertionError(f"{output} can hold the result")


def _restore(
    pipe: Pipeline, job: Job, prepared: Prepared, fitting: Fitting, options: dict[str, Any], label: str
) -> Photo:
    """Restore one photo and write the result, which is returned."""
    before = prepared.before
    with _bar(label) as progress:
        after = fitting.fit_result(before, pipe(before, prepared.mask, progress=progress, **options))
    # Before the result, so that --skip-existing finds either both files or no result.
    if job.compare:
        images.write(job.compare, images.side_by_side(before, after))
    images.write(prepared.output, after, fitting.quality)
    return after


@contextmanager
def _bar(label: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on a terminal, for photos that take long; the value is called with (done, total)."""
    quiet = True if console.is_quiet() else None  # None: only on a terminal
    with tqdm(desc=label, unit="step", leave=False, disable=quiet, delay=BAR_SECONDS) as bar:

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
    header = headers.read_header(path)
    return header.width * header.height if header else 0
