"""Encoding restored frames: which encoder a container takes, at which quality, and segments that fit together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from resshift_fast.apps.video import colours
from resshift_fast.apps.video.work import Stored
from resshift_fast.core.files import replacing
from resshift_fast.images.errors import ImageError, one_line

if TYPE_CHECKING:
    from av.container import OutputContainer

_LATER = 1 << 40  # added to times in segments, since some formats have no negative ones
_DURATION = "resshift_duration"  # of a segment's last frame, which its packets do not tell


@dataclass(frozen=True)
class Encoder:
    """How a video is encoded.

    Attributes:
        codec: FFmpeg's name of the encoder. options: of it.
        width, height: of its frames. rate: frames a second. time_base: seconds of the unit of times.
        coding: of the colours. aspect: width of a pixel over its height. threads: that it may use.
    """

    codec: str
    options: tuple[tuple[str, str], ...]
    width: int
    height: int
    rate: Fraction
    time_base: Fraction
    coding: colours.Coding
    aspect: Fraction
    threads: int

    def add_to(self, container: Any) -> Any:
        """A stream for this encoder in an output container."""
        stream = container.add_stream(self.codec, rate=self.rate, options=dict(self.options))
        context = stream.codec_context
        context.width, context.height = self.width, self.height
        context.pix_fmt = "yuv420p" if self.coding.bits == 8 else "yuv420p10le"
        context.time_base = stream.time_base = self.time_base
        context.sample_aspect_ratio = self.aspect
        context.colorspace, context.color_primaries = self.coding.matrix, self.coding.primaries
        context.color_trc = self.coding.transfer
        context.color_range = colours.FULL if self.coding.is_full else colours.LIMITED
        context.thread_count = self.threads
        return stream


def codec_for(suffix: str, bits: int) -> str:
    """The encoder for a container: VP9 in WebM, else H.264, or H.265 for more than 8 bits, which players decode."""
    if suffix == ".webm":
        return "libvpx-vp9"
    return "libx264" if bits == 8 else "libx265"


def bits_of(codec: str) -> int:
    """Bits per channel that an encoder is used with."""
    return 10 if codec == "libx265" else 8


def options_for(codec: str, quality: int) -> tuple[tuple[str, str], ...]:
    """The options of an encoder for a quality of 1 to 100: a constant rate factor of 51 − 0.37 · quality.

    That is 16 at the default of 95, 18 at 90 and 23, the encoders' own default, at 75. VP9's go to 63 instead of 51.
    There are no B-frames: without them packets have the times of their frames, however these vary, so that segments
    which were encoded for themselves fit together in every container.
    """
    factor = 51 - 0.37 * quality
    if codec == "libvpx-vp9":
        return ("crf", str(round(factor * 63 / 51))), ("b", "0"), ("row-mt", "1")
    if codec == "libx265":
        return ("crf", f"{factor:.2f}"), ("x265-params", "log-level=none:bframes=0")
    return ("crf", f"{factor:.2f}"), ("bf", "0")


def check(encoder: Encoder) -> None:
    """Find out whether the encoder works with these frames, before they are restored.

    Raises:
        ImageError: if it does not, with its reason.
    """
    import av

    try:
        with av.open(_Nowhere(), "w", format="nut") as container:
            stream = encoder.add_to(container)
            stream.codec_context.open()
    except (av.FFmpegError, ValueError) as error:
        raise ImageError(
            f"a video of {encoder.width}×{encoder.height} cannot be encoded by {encoder.codec} ({one_line(error)}); "
            "give a smaller --scale, or another format"
        ) from error


class _Nowhere:
    """A file whose content is dropped."""

    def write(self, data: bytes) -> int:
        return len(data)


@contextmanager
def written(path: Path, form: str, options: dict[str, str]) -> Iterator[OutputContainer]:
    """An output container, whose file appears when it is whole.

    Args:
        path: of the file. form: FFmpeg's name of its format. options: of the container.

    Raises:
        OSError: of the file, as `replacing`. FFmpegError: of the container.
    """
    import av

    with replacing(path) as file:
        target = _Target(file)
        try:
            with av.open(target, "w", format=form, container_options=options) as container:
                yield container
        except av.FFmpegError:
            if target.error is not None:
                raise target.error from None  # which PyAV reports as an error of a callback
            raise


class _Target:
    """A file that remembers why it could not be written.

    Args:
        file: open for writing.

    Attributes:
        error: the first one.
    """

    def __init__(self, file: BinaryIO):
        self.error: OSError | None = None
        self.seek, self.tell = file.seek, file.tell
        self._file = file

    def write(self, data: bytes) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = self.error or error
            raise


def write_segment(path: Path, frames: Iterable[Stored], last_duration: int, encoder: Encoder) -> None:
    """Encode frames as a file that begins with a key frame, and appears when it is whole.

    Raises:
        OSError: if there is no space left.
    """
    with written(path, "nut", {"avoid_negative_ts": "disabled"}) as container:
        container.metadata[_DURATION] = str(last_duration)
        stream = encoder.add_to(container)
        for stored in frames:
            frame = colours.frame_of(stored.planes, encoder.coding)
            frame.pts, frame.time_base = stored.time + _LATER, encoder.time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def packets_of(path: Path, time_base: Fraction) -> tuple[list[Any], int]:
    """The packets of a segment, with the times that its frames had, and the duration of the last one."""
    import av

    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        packets = [packet for packet in container.demux(stream) if packet.size]
        for packet in packets:
            packet.pts = packet.dts = round(packet.pts * packet.time_base / time_base) - _LATER
            packet.time_base = time_base
        return packets, int(container.metadata[_DURATION])
