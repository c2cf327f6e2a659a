"""Restoring a video: frame by frame with a pipeline, so that an interrupted run goes on where it stopped."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from resshift_fast.apps.video import clips, colours, encoding, joining
from resshift_fast.apps.video.work import Stored, Work, folder_for, frames_per_segment
from resshift_fast.core.files import check_target
from resshift_fast.images import Photo, resizing
from resshift_fast.images.errors import ImageError, one_line
from resshift_fast.images.files import VIDEO_FORMATS
from resshift_fast.images.fitting import Fitting
from resshift_fast.restoration import cores

if TYPE_CHECKING:
    from resshift_fast.apps.video.clips import Clip, Timed
    from resshift_fast.pipeline import Pipeline

LEAST_MISSING = 1.0  # seconds without a frame, within a video or while there is sound, that are told


@dataclass(frozen=True)
class Plan:
    """What a video will become.

    Args:
        clip: the video. output: where the result goes. encoder: how it is encoded.
        companions: the streams beside the picture. notes: what differs from the original.
    """

    clip: Clip
    output: Path
    encoder: encoding.Encoder
    companions: tuple[joining.Companion, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Result:
    """A video that was restored.

    Attributes:
        width, height: of its frames, in pixels. frames: how many it has. notes: what differs from the original.
    """

    width: int
    height: int
    frames: int
    notes: tuple[str, ...]


def plan(path: Path, output: Path, fitting: Fitting) -> Plan:
    """Read a video's beginning and find out whether and how its result can be written, before it is restored.

    Args:
        path: of the video. output: its suffix is one of `images.files.VIDEO_FORMATS`.
        fitting: the scale and the quality.

    Raises:
        MissingExtraError: without PyAV. ImageError: if the video cannot be read or its result not be encoded.
        OSError: if the file cannot be read or the output not be written.
    """
    import torch

    if output.suffix.lower() not in VIDEO_FORMATS:
        raise ImageError(
            f"{path} is a video, which is written as {', '.join(VIDEO_FORMATS)}; write it as "
            f"{output.with_suffix('.mp4').name}"
        )
    check_target(output)
    clip = clips.read_clip(path)
    form = VIDEO_FORMATS[output.suffix.lower()]
    height, width = _even_sides(clip.first, fitting)
    codec = encoding.codec_for(output.suffix.lower(), 8 if fitting.eight_bits else clip.coding.bits)
    coding = replace(clip.coding, bits=encoding.bits_of(codec))
    options = encoding.options_for(codec, fitting.quality)
    threads = torch.get_num_threads()
    encoder = encoding.Encoder(codec, options, width, height, clip.rate, clip.time_base, coding, clip.aspect, threads)
    encoding.check(encoder)
    companions, notes = joining.companions(path, form)
    exact = fitting.sides(clip.first)
    if (height, width) != exact:
        notes = (f"{exact[1]}×{exact[0]} made even, as its encoder needs it", *notes)
    if coding.bits < clip.coding.bits:
        notes = ("rounded to 8 bits", *notes)
    return Plan(clip, output, encoder, tuple(companions), (*clip.notes, *notes))


def _even_sides(photo: Photo, fitting: Fitting) -> tuple[int, int]:
    """(height, width) of a frame's result: the encoded chroma has half of both."""
    height, width = fitting.sides(photo)
    return max(2, height - height % 2), max(2, width - width % 2)


def restore(
    pipe: Pipeline,
    planned: Plan,
    fitting: Fitting,
    *,
    mask: np.ndarray | None = None,
    options: Mapping[str, Any] | None = None,
    on_first: Callable[[Photo, Photo], None] | None = None,
    on_resume: Callable[[int, list[str]], None] | None = None,
    progress: Callable[[float], None] | None = None,
) -> Result:
    """Restore a video, and write the result atomically when it is complete.

    All frames get the same noise, so that what does not move does not flicker. What is restored is kept in a folder
    beside the output (`work.folder_for`); the same call goes on from there, whatever ended the first one.

    Args:
        pipe: the model. planned: see `plan`. fitting: as for `plan`.
        mask: bool [H, W], for inpainting models: what to fill in of every upright frame.
        options: keyword arguments of the pipeline's call: seed, tile, overlap, batch_size, noise.
        on_first: called with the first frame and its result.
        on_resume: called where there was an earlier run, with the number of frames that it has restored, or with 0 and
            the names of the settings for which they are of no use.
        progress: called with the number of frames that are restored, and a part of the next one.

    Raises:
        ImageError, ValueError: for frames that cannot be restored or encoded. OSError: if there is no space left, or
            the output cannot be written.
    """
    import av

    run = _Run(pipe, planned, fitting, mask, dict(options or {}), on_first, progress or (lambda done: None))
    work = run.work()
    try:
        if (work.done or work.changed) and on_resume is not None:
            on_resume(work.done if work.total is None else work.total, work.changed)
        if work.total is None:
            run.frames(work)
        lost = joining.join(
            planned.clip,
            work.segments,
            planned.output,
            planned.encoder,
            planned.companions,
            strip_metadata=fitting.strip_metadata,
        )
    except av.FFmpegError as error:
        raise ImageError(f"{planned.output} cannot be written ({one_line(error)}); choose another format") from error
    finally:
        work.close()
    work.remove()
    encoder = planned.encoder
    notes = (f"metadata without a place in {planned.output.suffix} left out: {', '.join(lost)}",) if lost else ()
    return Result(encoder.width, encoder.height, work.total or 0, (*planned.notes, *work.notes, *notes))


class _Run:
    """One call of `restore`; arguments as there."""

    def __init__(
        self,
        pipe: Pipeline,
        planned: Plan,
        fitting: Fitting,
        mask: np.ndarray | None,
        options: dict[str, Any],
        on_first: Callable[[Photo, Photo], None] | None,
        progress: Callable[[float], None],
    ):
        self._pipe, self._plan, self._fitting, self._mask = pipe, planned, fitting, mask
        self._options, self._on_first, self._progress = options, on_first, progress
        first = planned.clip.first
        rows, columns = pipe.plan_tiles(first.height, first.width, options.get("tile"), options.get("overlap"))
        tiles = len(rows.starts) * len(columns.starts)
        shape, many = (rows.tile, columns.tile), cores.BATCHES[-1] * tiles
        batch = options.get("batch_size") or cores.default_batch_size(pipe.spec, shape, many, pipe.device, pipe.dtype)
        # torch's generator would draw other noise for the second frame of a call.
        self._at_once = 1 if options.get("noise") == "torch" else max(1, batch // tiles)

    def work(self) -> Work:
        encoder = self._plan.encoder
        dtype = np.dtype(np.uint8 if encoder.coding.bits == 8 else np.uint16)
        shape = encoder.height * 3 // 2, encoder.width
        per_segment = frames_per_segment(shape[0] * shape[1] * dtype.itemsize, self._at_once)
        return Work(folder_for(self._plan.output), self._settings(), shape, dtype, per_segment)

    def _settings(self) -> dict[str, str]:
        """All that restored frames depend on."""
        source, encoder = self._plan.clip.path.stat(), self._plan.encoder
        found = {name: self._options.get(name) for name in ("seed", "tile", "overlap", "noise")}
        found |= {"source": f"{source.st_size} bytes of {source.st_mtime_ns}", "at once": self._at_once}
        found |= {"model": self._pipe.spec.name, "weights": _fingerprint(self._pipe), "dtype": self._pipe.dtype}
        found |= {"mask": None if self._mask is None else hashlib.sha256(self._mask.tobytes()).hexdigest()}
        found |= {"encoding": replace(encoder, threads=0), "format of the work": 1}
        return {name: str(value) for name, value in found.items()}

    def frames(self, work: Work) -> None:
        """Restore the frames that are not yet in the work, and encode them in segments."""
        work.forget(work.stored % self._at_once)
        if work.stored >= work.per_segment:
            self._encode(work)
        damage, done, clip = clips.Damage(), work.done, self._plan.clip
        frames = clips.frames_of(clip, damage, done)
        while batch := list(islice(frames, self._at_once)):
            for stored in self._restored(batch, done):
                work.add(stored)
            done += len(batch)
            self._progress(done)
            if work.stored >= work.per_segment:
                self._encode(work)
        if work.stored:
            self._encode(work)
        total = max(damage.decoded, 1)
        work.end(total, _notes_of(damage, clip, total))

    def _encode(self, work: Work) -> None:
        encoding.write_segment(work.next_segment(), work.frames(), work.last_duration, self._plan.encoder)
        work.finish_segment()

    def _restored(self, batch: list[Timed], done: int) -> Iterator[Stored]:
        clip, coding = self._plan.clip, self._plan.encoder.coding

        def progress(evaluations: int, total: int) -> None:
            self._progress(done + len(batch) * evaluations / total)

        photos = [clip.photo(timed.frame) for timed in batch]
        masks = None if self._mask is None else [self._mask] * len(photos)
        results = self._pipe(photos, masks, progress=progress, **self._options)
        for number, (timed, photo, result) in enumerate(zip(batch, photos, results, strict=True)):
            result = self._fit(result)
            if done + number == 0 and self._on_first is not None:
                self._on_first(photo, result)
            yield Stored(colours.planes_of(result.pixels, coding), timed.time, timed.duration)

    def _fit(self, result: Photo) -> Photo:
        """A frame at the size of the encoder: reduced for --scale, and without the last row and column if odd."""
        height, width = self._plan.encoder.height, self._plan.encoder.width
        if max(result.height - height, result.width - width) > 1:
            return resizing.reduced(result, (height, width))
        return replace(result, pixels=np.ascontiguousarray(result.pixels[:height, :width]))


def _fingerprint(pipe: Pipeline) -> str:
    """A hash of the weights."""
    import torch

    found = hashlib.sha256()
    for network in (pipe.denoiser, pipe.first_stage):
        for name, value in sorted(network.state_dict().items()):
            found.update(name.encode())
            found.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _notes_of(damage: clips.Damage, clip: Clip, total: int) -> tuple[str, ...]:
    """What a video's damage has cost."""
    found = []
    if damage.packets or damage.frames:
        found.append(f"it is damaged: frames lost: {damage.packets}, repaired by the decoder: {damage.frames}")
    if damage.end:
        found.append(f"it is damaged after frame {total} ({damage.end}), and was restored up to there")
    elif clip.is_counted and total + damage.packets < clip.frames:
        found.append(f"it ends after frame {total} of {clip.frames}, and was restored up to there")
    elif not clip.is_counted and damage.seconds < clip.length - LEAST_MISSING:
        found.append(f"its picture ends after {damage.seconds:.1f} s of {clip.length:.1f} s")
    if damage.gap > LEAST_MISSING:
        found.append(f"no frame for {damage.gap:.1f} s after frame {damage.gap_after}")
    if damage.resized:
        found.append(f"{damage.resized} frames of another size were fitted to the first one's")
    return tuple(found)
