"""The finished video: restored segments, with the sound, subtitles, chapters and metadata of the original."""

from __future__ import annotations

import heapq
import io
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resshift_fast.apps.video import clips, encoding
from resshift_fast.images.files import VIDEO_FORMATS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from av.container import InputContainer

    from resshift_fast.apps.video.clips import Clip

_SOUND = {"webm": "libopus"}  # codec that sound is encoded with where it cannot be copied; AAC elsewhere
# Channels that AAC and Opus know, and those of sound that tells nothing but their number; stereo for any other.
_LAYOUTS = ("mono", "stereo", "5.1", "7.1")
_CHANNELS = {1: "mono", 2: "stereo", 6: "5.1", 8: "7.1"}
_KINDS = {"audio": "sound", "subtitle": "subtitles", "attachment": "attachments", "data": "data"}
# What a container writes about itself.
_OWN = {"major_brand", "minor_version", "compatible_brands", "encoder", "handler_name", "vendor_id", "duration"}
_OWN |= {"number_of_frames", "number_of_bytes", "bps", "_statistics_tags", "_statistics_writing_app"}
_OWN |= {"_statistics_writing_date_utc", "software"}


@dataclass(frozen=True)
class Companion:
    """A stream beside the picture, and what is done with it.

    Attributes:
        index: of the stream. copied: its packets are. codec: FFmpeg's name of that which it is encoded with instead.
    """

    index: int
    copied: bool
    codec: str = ""


def companions(path: Path, form: str) -> tuple[list[Companion], tuple[str, ...]]:
    """What becomes of the sound and the subtitles of a video, and notes about what is not kept as it is.

    Args:
        path: of the video. form: the format of the result, one of `images.files.VIDEO_FORMATS`.
    """
    found, notes = [], []
    with clips.opened(path) as container:
        for stream in container.streams:
            if stream.type == "video":
                continue
            name = stream.codec_context.name if stream.codec_context is not None else "it"
            if _fits(path, stream.index, form):
                found.append(Companion(stream.index, True))
            elif stream.type == "audio" and stream.codec_context is not None:
                codec = _SOUND.get(form, "aac")
                found.append(Companion(stream.index, False, codec))
                notes.append(f"sound encoded again from {name} to {codec.removeprefix('lib')}")
            elif stream.type != "data" or not container.chapters():  # MP4 has chapters as a stream too
                notes.append(f"{_KINDS.get(stream.type, stream.type)} left out, since {form} does not hold {name}")
    return found, tuple(dict.fromkeys(notes))


def _fits(path: Path, index: int, form: str) -> bool:
    """Whether a container takes the packets of a stream as they are: whether a file with the first one is written."""
    import av

    with clips.opened(path) as source:
        stream = source.streams[index]
        if stream.type == "data":
            return False
        try:
            with av.open(io.BytesIO(), "w", format=form) as container:
                copy = container.add_stream_from_template(stream)
                container.start_encoding()
                if stream.type == "audio":  # whose packets are never far
                    packet = next(packet for packet in source.demux(stream) if packet.size)
                    packet.stream = copy
                    container.mux(packet)
            return True
        except (av.FFmpegError, ValueError, NotImplementedError, StopIteration):
            return False


def join(
    clip: Clip,
    segments: Sequence[Path],
    output: Path,
    encoder: encoding.Encoder,
    streams: Sequence[Companion],
    *,
    strip_metadata: bool = False,
) -> list[str]:
    """Write the finished video, atomically.

    Args:
        clip: the original. segments: the restored ones, in order.
        output: its suffix is one of `images.files.VIDEO_FORMATS`.
        encoder: of the segments. streams: see `companions`.
        strip_metadata: leave out all but languages.

    Returns:
        Names of metadata that the output has no place for.

    Raises:
        OSError: if there is no space left, or the output cannot be written.
    """
    import av

    form = VIDEO_FORMATS[output.suffix.lower()]
    with ExitStack() as stack:
        source = stack.enter_context(clips.opened(clip.path))
        kept = {} if strip_metadata else _metadata_of(source)
        # Those that some cameras write in MP4 and MOV, which are else left out there.
        tags = any(key.startswith("com.") for key in kept) and form in ("mp4", "mov")
        options = {"movflags": "use_metadata_tags"} if tags else {}
        target = stack.enter_context(encoding.written(output, form, options))
        first = stack.enter_context(av.open(str(segments[0])))
        picture = target.add_stream_from_template(first.streams.video[0], opaque=True)
        picture.time_base, picture.framerate = encoder.time_base, encoder.rate
        if encoder.codec == "libx265" and form in ("mp4", "mov"):
            picture.codec_context.codec_tag = "hvc1"  # without which some players show nothing
        tracks = [_Track(source.streams[one.index], one, target) for one in streams]
        target.metadata.update(kept)
        if not strip_metadata:
            _copy_notes(source, target, picture)
        for track in tracks:
            track.copy_metadata(strip_metadata)
        packets = heapq.merge(
            _pictures(segments, encoder, clip.start, picture), _others(source, tracks, clip.start), key=_time
        )
        for packet in packets:
            target.mux(packet)
    with clips.opened(output) as container:
        written = {key.lower() for key in container.metadata}
    return sorted(key for key in kept if key.lower() not in written)


def _time(packet: Any) -> Fraction:
    """When a packet is decoded, in seconds, by which those of all streams are written."""
    moment = packet.dts if packet.dts is not None else packet.pts
    return Fraction(0) if moment is None else moment * packet.time_base


def _pictures(segments: Sequence[Path], encoder: encoding.Encoder, start: Fraction, stream: Any) -> Iterator[Any]:
    """The packets of all segments, as those of one stream that begins at 0."""
    shift = round(start / encoder.time_base)
    for path in segments:
        packets, duration = encoding.packets_of(path, encoder.time_base)
        for packet, following in zip_longest(packets, packets[1:]):
            packet.duration = duration if following is None else following.pts - packet.pts
        for packet in packets:
            packet.pts = packet.dts = packet.pts - shift
            packet.stream = stream
            yield packet


def _others(source: InputContainer, tracks: Sequence[_Track], start: Fraction) -> Iterator[Any]:
    """The packets of the other streams, copied or encoded again; those that are damaged are left out."""
    import av

    by_index = {track.index: track for track in tracks}
    if not tracks:
        return
    packets = source.demux(*(track.source for track in tracks))
    while True:
        try:
            packet = next(packets, None)
        except av.FFmpegError:  # the file ends here
            packet = None
        if packet is None:
            break
        yield from by_index[packet.stream.index].packets(packet, start)
    for track in tracks:
        yield from track.rest(start)


class _Track:
    """A stream beside the picture on its way into the result.

    Args:
        source: the stream. companion: what is done with it. target: the container of the result.
    """

    def __init__(self, source: Any, companion: Companion, target: Any):
        self.source, self.index = source, companion.index
        self._copied, self._ended = companion.copied, False
        if companion.copied:
            self._stream = target.add_stream_from_template(source)
            return
        context = source.codec_context
        rate = 48000 if companion.codec == "libopus" else _rate(context.sample_rate)
        self._stream = target.add_stream(companion.codec, rate=rate)
        layout = context.layout
        known = layout.name if layout.name in _LAYOUTS else _CHANNELS.get(layout.nb_channels, "stereo")
        self._stream.codec_context.layout = known
        self._stream.codec_context.bit_rate = 96_000 * layout.nb_channels

    def copy_metadata(self, strip: bool) -> None:
        """Copy the title and the language, and whether a stream is the default one."""
        kept = {key: value for key, value in self.source.metadata.items() if not strip or key == "language"}
        self._stream.metadata.update({key: value for key, value in kept.items() if key.lower() not in _OWN})
        self._stream.disposition = self.source.disposition

    def packets(self, packet: Any, start: Fraction) -> Iterator[Any]:
        """What a packet of the source becomes."""
        import av

        if self._copied:
            if packet.size and (packet.dts is not None or packet.pts is not None):
                shift = round(start / packet.time_base)
                packet.pts = None if packet.pts is None else packet.pts - shift
                packet.dts = None if packet.dts is None else packet.dts - shift
                packet.stream = self._stream
                yield packet
            return
        try:
            frames = self.source.codec_context.decode(packet if packet.size else None)
        except av.FFmpegError:
            return
        for frame in frames:
            if frame.pts is not None:
                frame.pts -= round(start / frame.time_base)
            yield from self._stream.encode(frame)

    def rest(self, start: Fraction) -> Iterator[Any]:
        """What the encoder still holds at the end."""
        if not self._copied:
            yield from self._stream.encode(None)


def _rate(wanted: int) -> int:
    """The sampling rate of AAC that is nearest to the wanted one, and not below it."""
    rates = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000)
    return next((rate for rate in rates if rate >= wanted), 96000)


def _metadata_of(source: InputContainer) -> dict[str, str]:
    return {key: value for key, value in source.metadata.items() if key.lower() not in _OWN}


def _copy_notes(source: InputContainer, target: Any, picture: Any) -> None:
    """Copy what is said about the picture, and the chapters."""
    own = clips.picture_stream(source).metadata.items()
    picture.metadata.update({key: value for key, value in own if key.lower() not in _OWN | {"rotate"}})
    if source.chapters():
        target.set_chapters(source.chapters())
