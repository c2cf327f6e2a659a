"""Videos that are restored: what they are, and their frames one after the other, up to where the file is damaged."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resshift_fast.apps import extras
from resshift_fast.apps.video import colours
from resshift_fast.core.files import open_regular
from resshift_fast.images import boxes
from resshift_fast.images.errors import DamagedError, ImageError, one_line
from resshift_fast.images.files import READABLE, VIDEOS
from resshift_fast.images.limits import check_pixels, limit

if TYPE_CHECKING:
    from av import VideoFrame
    from av.container import InputContainer

    from resshift_fast.images import Photo

MODULES = {"av": "av"}
# Demuxers that read nothing but the file itself. Playlists, which name others, are not among them.
_FORMATS = "matroska,webm,mov,mp4,avi,mpegts,mpeg,mpegvideo,asf,flv,ogg,nut"
_PROBED_RATE = Fraction(25)  # of frames a second, for a video that does not say its own
_JUMP_SECONDS = 1  # by which times may go back before they are taken for those of another recording


@dataclass
class Damage:
    """What could not be decoded of a video.

    Attributes:
        decoded: number of frames. packets: that were left out. frames: that the decoder has repaired.
        resized: frames of another size than the first. end: why the rest could not be read.
        seconds: when the last frame ends, from the beginning of the file.
        gap: longest time without a frame, in seconds, and gap_after: the number of the frame before it.
    """

    decoded: int = 0
    packets: int = 0
    frames: int = 0
    resized: int = 0
    end: str = ""
    seconds: float = 0.0
    gap: float = 0.0
    gap_after: int = 0


@dataclass(frozen=True)
class Clip:
    """A video that can be restored.

    Attributes:
        path: of the file. first: its first frame, upright.
        frames: number of frames, as the file says or by its duration; 0 if it does not say.
        is_counted: the file has an index with all frames.
        length: of the file, in seconds; 0 if it does not say.
        rate: frames a second, on average. time_base: seconds of the unit of times.
        start: time of the beginning of the file, in seconds.
        coding, turn: how frames are coded, and turned.
        aspect: width of an upright pixel over its height.
        notes: what is lost.
    """

    path: Path
    first: Photo
    frames: int
    is_counted: bool
    length: float
    rate: Fraction
    time_base: Fraction
    start: Fraction
    coding: colours.Coding
    turn: colours.Turn
    aspect: Fraction
    notes: tuple[str, ...]

    @property
    def seconds(self) -> float:
        """How long it is."""
        return float(self.frames / self.rate)

    @property
    def stored_size(self) -> tuple[int, int]:
        """(width, height) of a frame before it is turned."""
        size = self.first.width, self.first.height
        return size[::-1] if self.turn.is_transposed else size

    def photo(self, frame: VideoFrame) -> Photo:
        """A frame as an upright photo."""
        return colours.photo_of(frame, self.coding, self.turn, str(self.path))


@dataclass
class Timed:
    """A decoded frame.

    Attributes:
        frame: as decoded. time: when it is shown, and duration: for how long, in the units of its clip.
    """

    frame: VideoFrame = field(repr=False)
    time: int
    duration: int


def is_video(path: Path) -> bool:
    """Whether a file is a video, by its suffix, or by its first bytes if the suffix says nothing."""
    suffix = path.suffix.lower()
    if suffix in VIDEOS or suffix in READABLE:
        return suffix in VIDEOS
    with suppress(OSError), open_regular(path) as file:
        head = file.read(189)
        if head[4:8] == b"ftyp":
            return boxes.kind_of(head) is None and head[8:12] != b"crx "  # which is camera raw
        # Matroska and WebM, AVI, and two packets of an MPEG transport stream.
        is_avi = head.startswith(b"RIFF") and head[8:12] == b"AVI "
        return is_avi or head.startswith(b"\x1a\x45\xdf\xa3") or head[:1] == head[188:] == b"G"
    return False


@contextmanager
def opened(path: Path) -> Iterator[InputContainer]:
    """The container of a video, open for reading.

    Raises:
        MissingExtraError: without PyAV. DamagedError: if it is no video, or its beginning is missing. OSError: if the
            file cannot be read.
    """
    extras.require("video", MODULES)
    import av

    with open_regular(path) as file:
        options = {"format_whitelist": _FORMATS, "protocol_whitelist": ""}
        try:
            # A file object: a name would be taken for an address where it looks like one.
            container = av.open(file, "r", container_options=options, metadata_errors="replace")
        except av.FFmpegError as error:
            raise DamagedError(
                f"{path} is not a video, or its index is missing ({_reason(error)}); fetch or export it again"
            ) from error
        with container:
            yield container


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or one_line(error)


def picture_stream(container: InputContainer) -> Any:
    """The stream of the moving picture; None if there is none but a cover."""
    from av.stream import Disposition

    streams = [one for one in container.streams.video if not one.disposition & Disposition.attached_pic]
    return next((one for one in streams if one.codec_context is not None), None)


def read_clip(path: Path) -> Clip:
    """Open a video, and decode its first frame.

    Raises:
        ImageError: if it has no picture, or one with more pixels than the limit. MissingExtraError, DamagedError,
            OSError: as of `opened`.
    """
    with opened(path) as container:
        stream = picture_stream(container)
        if stream is None:
            raise ImageError(f"{path} has no moving picture; give a video with one")
        damage = Damage()
        frame = next(_decoded(container, stream, damage, path), None)
        if frame is None:
            raise DamagedError(f"{path} has no frame that can be decoded{_because(damage)}; fetch or export it again")
        coding, turn = colours.coding_of(frame), colours.turn_of(frame)
        first = colours.photo_of(frame, coding, turn or colours.Turn(), str(path))
        rate = stream.average_rate or stream.guessed_rate or _PROBED_RATE
        aspect = stream.sample_aspect_ratio or Fraction(1)
        return Clip(
            path,
            first,
            stream.frames or _frames_by_duration(container, stream, rate),
            container.format.name.startswith("mov") and bool(stream.frames),
            (container.duration or 0) / 1_000_000,
            rate,
            stream.time_base,
            max(Fraction(0), Fraction(container.start_time or 0, 1_000_000)),
            coding,
            turn or colours.Turn(),
            1 / aspect if turn is not None and turn.is_transposed else aspect,
            _notes(container, frame, turn),
        )


def _because(damage: Damage) -> str:
    return f" ({damage.end})" if damage.end else ""


def _frames_by_duration(container: InputContainer, stream: Any, rate: Fraction) -> int:
    if stream.duration:
        return round(stream.duration * stream.time_base * rate)
    return round(Fraction(container.duration, 1_000_000) * rate) if container.duration else 0


def _notes(container: InputContainer, frame: VideoFrame, turn: colours.Turn | None) -> tuple[str, ...]:
    transfer = int(frame.color_trc)
    others = len(container.streams.video) - 1
    found = {
        "its rotation, which is no quarter turn, was left out": turn is None,
        "transparency was left out": colours.has_alpha(frame),
        "it is interlaced, which is restored as combs: deinterlace it first": frame.interlaced_frame,
        "its HDR is restored as it is coded, without the metadata of its display": transfer in colours.HDR,
        f"{others} more pictures were left out": others > 0,
    }
    return tuple(text for text, holds in found.items() if holds)


def frames_of(clip: Clip, damage: Damage, after: int = 0) -> Iterator[Timed]:
    """The frames of a clip in the order in which they are shown, decoded one by one.

    Times grow from frame to frame: where the file repeats one, it is the next unit, and where they begin again, as in
    joined recordings, they go on.

    Args:
        clip: the video. damage: counts what could not be decoded.
        after: frames to leave out, which are decoded all the same, since not every file can be entered anywhere.
    """
    with opened(clip.path) as container:
        stream = picture_stream(container)
        stream.thread_type = "AUTO"
        step = max(1, round(1 / (clip.rate * clip.time_base)))
        jump = round(_JUMP_SECONDS / clip.time_base)
        shift, last, lasts = 0, None, step
        for index, frame in enumerate(_decoded(container, stream, damage, clip.path)):
            time = frame.pts if frame.pts is not None else (0 if last is None else last + step) - shift
            time += shift
            if last is not None and time <= last:
                moved = last + (step if time < last - jump else 1) - time
                shift += moved if time < last - jump else 0
                time += moved
            gap = 0.0 if last is None else float((time - last - max(step, lasts)) * clip.time_base)
            if gap > damage.gap:
                damage.gap, damage.gap_after = gap, index
            last, lasts = time, int(frame.duration or step)
            damage.seconds = float((time + step) * clip.time_base - clip.start)
            if (frame.width, frame.height) != clip.stored_size:
                damage.resized += 1
                frame = frame.reformat(*clip.stored_size)
            if index >= after:
                yield Timed(frame, time, lasts)


def _decoded(container: InputContainer, stream: Any, damage: Damage, path: Path) -> Iterator[VideoFrame]:
    """The frames of a stream; a packet that is damaged is left out, and a file that ends early ends here.

    Raises:
        ImageError: for frames with more pixels than the limit, before they take memory.
    """
    import av

    context = stream.codec_context
    check_pixels(str(path), context.width, context.height, 0)
    if limit():
        context.options = {"max_pixels": str(2 * limit())}
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
            if packet is None:
                return
        except av.FFmpegError as error:
            damage.end = _reason(error)
            packet = None
        try:
            frames = context.decode(packet)
        except av.FFmpegError:
            damage.packets += 1
            frames = []
        for frame in frames:
            damage.decoded += 1
            damage.frames += bool(frame.is_corrupt)
            yield frame
        if packet is None:
            return


def size_of(path: Path) -> int:
    """Pixels of all frames, by the header; 0 if it cannot be read."""
    with suppress(Exception), opened(path) as container:
        stream = picture_stream(container)
        rate = stream.average_rate or _PROBED_RATE
        frames = stream.frames or _frames_by_duration(container, stream, rate)
        return int(stream.codec_context.width * stream.codec_context.height * frames)
    return 0


def is_whole(path: Path) -> bool:
    """Whether a video is there to its end: its last packet can be read, and is where its duration says."""
    with suppress(Exception):
        if not os.path.getsize(path):
            return False
        with opened(path) as container:
            stream = picture_stream(container)
            duration = container.duration or 0
            container.seek(max(0, duration - 1), backward=True)
            last = Fraction(-1)
            for packet in container.demux():
                if packet.pts is not None and packet.size:
                    if packet.is_corrupt:
                        return False
                    last = max(last, (packet.pts + (packet.duration or 0)) * packet.time_base)
            return bool(stream and duration and last * 1_000_000 >= duration - 1_000_000)
    return False
