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
from resshift_fast.apps import extras
from resshift_fast.apps.faces import FaceRestorer
from resshift_fast.apps.video import clips, restoring
from resshift_fast.cli import console, faces, video
from resshift_fast.cli.plan import Job, Tally
from resshift_fast.cli.reporting import Report
from resshift_fast.core.claims import claimed
from resshift_fast.core.files import check_target, open_regular, write_atomically
from resshift_fast.core.text import visible
from resshift_fast.images import ImageError, Photo, animation, headers, results, slider
from resshift_fast.images.fitting import Fitting

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy as np

    from resshift_fast.apps.faces import Found
    from resshift_fast.pipeline import Pipeline

BAR_SECONDS = 1.0  # no bar for a photo that takes less
LARGE_PIXELS = 50_000_000  # of a result, from which its size is said before
ANNOUNCED_SECONDS = 20.0  # from which the time is said before


class Batch:
    """Restores every job's photo, prints a line about each on stderr, and counts them in `tally`.

    A photo that cannot be read, restored or written is reported and skipped. So is one that another run on the same
    outputs restores, or has restored since this one began: the two share the work.

    Args:
        pipe: the loaded model.
        jobs: what to do.
        options: keyword arguments of the pipeline's call.
        tally: updated after every photo, so that it is correct after Ctrl-C.
        fitting: how results are made to fit their formats.
        report: says how each photo ended.
        restorer: restores faces too, over `pipe`; None if they are not sought.
        sharing: how many such batches restore the jobs together, for the estimate of the time left.
        began: when the first of them began, in seconds of `time.time`; None for now.
        is_numbered: begin lines with the number of the photo and that of all.
    """

    def __init__(
        self,
        pipe: Pipeline,
        jobs: Sequence[Job],
        options: dict[str, Any],
        tally: Tally,
        fitting: Fitting,
        report: Report,
        restorer: FaceRestorer | None = None,
        *,
        sharing: int = 1,
        began: float | None = None,
        is_numbered: bool = True,
    ):
        self._pipe, self._jobs, self._options, self._fitting = pipe, jobs, options, fitting
        self._tally, self._report, self._restorer = tally, report, restorer
        self._clock = _Clock([_pixels(job) for job in jobs], sharing)
        self._began = time.time() if began is None else began
        self._is_numbered = is_numbered

    def run(self, prepared: Prepared | None = None) -> None:
        """Restore all in their order; a full disk ends the batch, since no further result could be written.

        Args:
            prepared: the first photo, if it has been read already.
        """
        for i in range(len(self._jobs)):
            self.restore(i, prepared if i == 0 else None)
            if self._tally.stopped:
                self._tally.stopped = f"stopped with {len(self._jobs) - i - 1} of {len(self._jobs)} not started"
                return

    def restore(self, i: int, prepared: Prepared | None = None) -> None:
        """Restore the photo of the job at `i`; on a full disk, `tally.stopped` says so."""
        job, tally, pipe, fitting = self._jobs[i], self._tally, self._pipe, self._fitting
        label = f"[{i + 1}/{len(self._jobs)}] " * self._is_numbered + visible(job.source.name)
        start = time.monotonic()
        try:
            with claimed(job.place) as is_mine:
                if not is_mine or _is_written_since(self._began, job):
                    reason = f"left to another run, which {'has restored' if is_mine else 'restores'} it"
                    self._report.skipped(job, f"{label} {reason}", reason)
                    tally.skipped += 1
                    self._clock.skip(i)
                    return
                ready = prepare(job, fitting) if prepared is None else prepared
                if ready.video is not None:
                    after = _restore_video(pipe, job, ready, fitting, self._options, label)
                else:
                    share = self._clock.share_of(i)
                    announcer = _Announcer(label, ready, fitting, pipe.spec.schedule.num_steps, share)
                    after = _restore(self._restorer or pipe, job, ready, fitting, self._options, announcer)
        except Exception as error:
            self._report.failed(job, error, self._options["tile"] or pipe.spec.tile)
            tally.failed += 1
            self._clock.skip(i)
            if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
                tally.stopped = "the disk is full"
            return
        tally.restored += 1
        self._say(i, label, ready, after, time.monotonic() - start)

    def _say(self, i: int, label: str, ready: Prepared, after: _Restored, seconds: float) -> None:
        left = self._clock.left_after(i, seconds)
        remaining = "" if left is None else f"{console.duration(left)} left"
        notes = "".join(f", {note}" for note in (remaining, *after.notes) if note)
        self._report.restored(
            self._jobs[i],
            f"{label} {_sizes(ready, after)} {console.duration(seconds)}{notes}",
            output=str(ready.output),
            width=ready.before.width,
            height=ready.before.height,
            output_width=after.width,
            output_height=after.height,
            frames=after.frames,
            seconds=round(seconds, 3),
            notes=list(after.notes),
            **({} if after.faces is None else {"faces": after.faces}),
        )


def _is_written_since(began: float, job: Job) -> bool:
    """Whether another run has written a job's result since this one began."""
    if job.is_video:
        with suppress(OSError):
            return job.output.stat().st_mtime > began and clips.is_whole(job.output)
        return False
    for output in {job.output} if job.exact else {job.output, job.fallback, job.output.with_suffix(animation.SUFFIX)}:
        with suppress(OSError):
            if output.stat().st_mtime > began and headers.is_whole(output):
                return True
    return False


@dataclass(frozen=True)
class Prepared:
    """A photo that has been read, and the file that its result will go to.

    Args:
        before: the photo, as it goes into the network. mask: its mask, if the model needs one.
        output: where the result goes. notes: what differs from what was asked for, for the photo's line.
        moving, video: the animation, or what is planned for the video, that the photo is the first frame of.
    """

    before: Photo
    mask: np.ndarray | None
    output: Path
    notes: tuple[str, ...]
    moving: animation.Animation | None = None
    video: restoring.Plan | None = None

    @property
    def frames(self) -> int:
        """Number of frames of an animation, 1 for a photo."""
        return 1 if self.moving is None else len(self.moving.durations)


@dataclass(frozen=True)
class _Restored:
    """What was written.

    Args:
        width, height: in pixels. frames: their number. notes: what differs from what was asked for, and the faces.
        faces: how many were restored; None if they were not sought.
    """

    width: int
    height: int
    frames: int
    notes: tuple[str, ...]
    faces: int | None = None


def prepare(job: Job, fitting: Fitting) -> Prepared:
    """Read a photo and find out where its result goes, so that nothing is restored that cannot be written.

    Raises:
        ImageError, OSError: if the photo or its mask cannot be read, or the output's format or its folder cannot hold
            the result. ValueError: if the result would replace an original.
    """
    check_targets(job)
    if job.is_video:
        return _prepare_video(job, fitting)
    moving = animation.open_animation(job.source) if animation.is_animated(job.source) else None
    photo = images.read(job.source) if moving is None else next(moving.photos())
    before, notes = fitting.fit(photo)
    output = _output_of(job, before, fitting) if moving is None else _output_of_frames(job, before, fitting)
    mask = images.read_mask(job.mask) if job.mask else None
    if output != job.output:
        if output in job.originals:
            cure = "use --format png" if moving is None else "choose another output folder"
            raise ValueError(f"{job.output.suffix} cannot hold the result and {output} is an input; {cure}")
        check_target(output)
        notes = (*notes, f"written as {output.name}")
    return Prepared(before, mask, output, notes, moving)


def _prepare_video(job: Job, fitting: Fitting) -> Prepared:
    planned = restoring.plan(job.source, job.output, fitting)
    mask = images.read_mask(job.mask) if job.mask else None
    first = planned.clip.first
    if mask is not None and mask.shape != (first.height, first.width):
        raise ImageError(
            f"the mask {job.mask} is {mask.shape[1]}×{mask.shape[0]}, but {job.source} is "
            f"{first.width}×{first.height}; make them the same size"
        )
    return Prepared(first, mask, job.output, planned.notes, video=planned)


def check_targets(job: Job) -> None:
    """Raise OSError if a file that a job will write cannot be written, and MissingExtraError if a package lacks."""
    if job.is_video:
        extras.require("video", clips.MODULES)
    for target in filter(None, (job.output, job.compare)):
        check_target(target)


def is_done(job: Job, fitting: Fitting) -> bool:
    """Whether everything that a job would write is there: whole images, of the format that it would write."""
    if job.compare and not _is_whole_comparison(job.compare):
        return False
    if job.is_video:
        return clips.is_whole(job.output)
    if headers.is_whole(job.output):
        return True
    if job.exact:
        return False
    if animation.is_animated(job.source):
        return headers.is_whole(job.output.with_suffix(animation.SUFFIX))
    if not headers.is_whole(job.fallback):
        return False
    try:  # a PNG beside it may be the result of a run with another --format
        return _output_of(job, fitting.fit(images.read(job.source))[0], fitting) == job.fallback
    except (OSError, ValueError):
        return False


def _is_whole_comparison(path: Path) -> bool:
    if path.suffix != slider.SUFFIX:
        return headers.is_whole(path)
    try:
        with open_regular(path) as file:
            return slider.is_whole_page(file)
    except OSError:
        return False


def _write_comparison(path: Path, before: Photo, after: Photo) -> None:
    """Write what --compare asks for: a picture, or a page."""
    if path.suffix == slider.SUFFIX:
        write_atomically(path, slider.slider_page(before, after, path.stem.removesuffix("_compare")))
    else:
        images.write(path, images.side_by_side(before, after))


def _output_of(job: Job, before: Photo, fitting: Fitting) -> Path:
    """The output whose format can hold the result of `before`; raises ImageError if that is not the one named."""
    result = results.expected(before, fitting.sides(before), 8 if fitting.eight_bits else before.bits)
    if images.suffix_for(result, job.output.suffix) == job.output.suffix:
        return job.output
    if job.exact:
        _refuse(result, job.output)
    return job.fallback


def _output_of_frames(job: Job, before: Photo, fitting: Fitting) -> Path:
    """The output of an animation, which is always a WebP; raises ImageError if another one was named."""
    output = job.output if job.output.suffix.lower() == animation.SUFFIX else job.output.with_suffix(animation.SUFFIX)
    if job.exact and output != job.output:
        raise ImageError(
            f"{job.source} is an animation, and {job.output.suffix} is written with one picture; write it as {output}"
        )
    height, width = fitting.sides(before)
    if max(height, width) > animation.LONGEST_SIDE:
        raise ImageError(
            f"{job.source} is an animation, whose result would have {width}×{height} pixels; a WebP has at most "
            f"{animation.LONGEST_SIDE} a side, so give a smaller --scale"
        )
    return output


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
    pipe: Pipeline | FaceRestorer,
    job: Job,
    prepared: Prepared,
    fitting: Fitting,
    options: dict[str, Any],
    announcer: _Announcer,
) -> _Restored:
    """Restore one photo, or the frames of an animation, and write the result."""
    found: list[Found] = []  # of each frame

    def on_found(one: Found) -> None:
        found.append(one)
        announcer.faces = len(one.restored)

    def restored(before: Photo) -> Photo:
        if isinstance(pipe, FaceRestorer):
            result: Photo = pipe(before, progress=progress, on_found=on_found, **options)
        else:
            result = pipe(before, prepared.mask, progress=progress, **options)
        return fitting.fit_result(before, result)

    before = prepared.before
    with _bar(announcer.label) as bar:
        progress = announcer.watching(bar)
        if prepared.moving is not None:
            after = _restore_frames(job, prepared, prepared.moving, fitting, restored)
        else:
            after = restored(before)
    if prepared.moving is None:
        # Before the result, so that --skip-existing finds either both files or no result.
        if job.compare:
            _write_comparison(job.compare, before, after)
        images.write(prepared.output, after, fitting.quality)
    done = _Restored(after.width, after.height, prepared.frames, prepared.notes)
    if not found:
        return done
    count, note = faces.summary(found)
    return replace(done, notes=(*done.notes, note), faces=count)


def _restore_frames(
    job: Job, prepared: Prepared, moving: animation.Animation, fitting: Fitting, restored: Callable[[Photo], Photo]
) -> Photo:
    """Restore an animation frame by frame: none is kept, and all get the same noise, so that still parts stay still."""
    first: list[Photo] = []

    def frames() -> Iterator[Photo]:
        for photo in moving.photos():
            before = fitting.fit(photo)[0]
            after = restored(before)
            if not first:
                first.append(after)
                if job.compare:
                    _write_comparison(job.compare, before, after)
            yield after

    # As exact as the format that was asked for.
    is_exact = job.output.suffix.lower() in (".png", ".tif", ".tiff", ".bmp")
    animation.write_animation(prepared.output, moving, frames(), 100 if is_exact else fitting.quality)
    return first[0]


def _restore_video(
    pipe: Pipeline, job: Job, ready: Prepared, fitting: Fitting, options: dict[str, Any], label: str
) -> _Restored:
    assert ready.video is not None

    def on_first(before: Photo, after: Photo) -> None:
        if job.compare:
            _write_comparison(job.compare, before, after)

    done = video.restore(pipe, ready.video, ready.mask, fitting, options, label, on_first)
    return _Restored(done.width, done.height, done.frames, done.notes)


def _sizes(ready: Prepared, after: _Restored) -> str:
    frames = f", {after.frames} frames" if after.frames > 1 else ""
    return f"{ready.before.width}×{ready.before.height} → {after.width}×{after.height}{frames}"


class _Announcer:
    """Says the size of a large result before the work for it begins, and how long it will take when that is known.

    Args:
        label: of the photo. ready, fitting: the photo and what its result will be.
        steps: evaluations of the denoiser for one batch of tiles.
        share: the part that the photo has in the work that is left.
    """

    def __init__(self, label: str, ready: Prepared, fitting: Fitting, steps: int, share: float):
        self.label = label
        self._steps, self._share, self._frames = steps, share, ready.frames
        self._past = 0  # evaluations for the frames before
        self._begun: float | None = None
        self._is_said = False
        self.faces = 0  # that are restored besides, whose time is not known before
        height, width = fitting.sides(ready.before)
        if width * height * ready.frames >= LARGE_PIXELS:
            size = f"{ready.before.width}×{ready.before.height} → {width}×{height} pixels"
            frames = f", {ready.frames} frames" if ready.frames > 1 else ""
            console.say(f"{label} {size}, {width * height / 1e6:.0f} megapixels{frames}")

    def watching(self, report: Callable[[int, int], None]) -> Callable[[int, int], None]:
        """A function for (done, total) that passes them on, and estimates from the second batch of tiles."""

        def progress(done_of_frame: int, total_of_frame: int) -> None:
            done, total = self._past + done_of_frame, self._frames * total_of_frame
            if done_of_frame == total_of_frame:
                self._past = done
            report(done, total)
            if self._is_said:
                return
            if self._begun is None and done >= self._steps:  # the first batch also warms up
                self._begun, self._first = time.monotonic(), done
            elif self._begun is not None and done >= self._first + self._steps:
                self._is_said = True
                seconds = (time.monotonic() - self._begun) / (done - self._first) * total
                if seconds >= ANNOUNCED_SECONDS:
                    everything = seconds / self._share if self._share else seconds
                    others = f", {console.duration(everything)} for all" if everything > 1.05 * seconds else ""
                    besides = ", besides its faces" if self.faces else ""
                    console.say(f"{self.label} will take about {console.duration(seconds)}{others}{besides}")

        return progress


@contextmanager
def _bar(label: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on a terminal, for photos that take long; the value is called with (done, total)."""
    hidden = True if console.bars_are_hidden() else None  # None: only on a terminal
    with tqdm(desc=label, unit="step", leave=False, disable=hidden, delay=BAR_SECONDS) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield progress


class _Clock:
    """Estimates the time left from the pixels done and to do.

    Args:
        pixels: of each photo. sharing: how many processes restore them together.
    """

    def __init__(self, pixels: list[int], sharing: int):
        self._pixels, self._sharing = pixels, sharing
        self._done_pixels, self._seconds = 0, 0.0

    def skip(self, index: int) -> None:
        """Leave out a photo that failed, whose time says nothing about the others."""
        self._pixels[index] = 0

    def share_of(self, index: int) -> float:
        """The part that the photo at `index` has in the pixels from it on."""
        return self._pixels[index] / max(1, sum(self._pixels[index:]))

    def left_after(self, index: int, seconds: float) -> float | None:
        """Seconds left after the photo at `index`, which took `seconds`; None if it was the last."""
        self._done_pixels += self._pixels[index]
        self._seconds += seconds
        if index == len(self._pixels) - 1:
            return None
        return self._seconds / max(1, self._done_pixels) * sum(self._pixels[index + 1 :]) / self._sharing


def _pixels(job: Job) -> int:
    """Number of pixels by the file's header; 0 if it cannot be read, since the photo will then fail at once."""
    if job.is_video:
        return clips.size_of(job.source)
    header = headers.read_header(job.source)
    return header.width * header.height if header else 0
