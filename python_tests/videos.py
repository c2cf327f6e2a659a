"""Small videos for tests, and what is in one."""

from fractions import Fraction

import numpy as np
import pytest

av = pytest.importorskip("av", reason="the extra `video` is not installed: pip install 'resshift-fast[video]'")

from resshift_fast.apps.video import restoring  # noqa: E402
from resshift_fast.images.fitting import Fitting  # noqa: E402

FITTING = Fitting(4)
RATE = 10  # frames a second
SOUND_RATE = 48000


def pictures(count, size=(16, 12)):
    """Smooth pictures that move, uint8 [H, W, 3] each."""
    rows, columns = np.mgrid[: size[1], : size[0]]
    for i in range(count):
        waves = (np.sin((columns + i) / 3), np.cos((rows - i) / 4), np.sin((rows + columns) / 5 + i / 3))
        yield np.stack([127.5 + 100 * wave for wave in waves], axis=2).astype(np.uint8)


def make_video(
    path,
    frames=5,
    size=(16, 12),
    *,
    codec="libx264",
    pixels="yuv420p",
    sound=None,
    times=None,
    time_base=Fraction(1, RATE),
    form=None,
    metadata=(),
    **settings,
):
    """A video file.

    Args:
        frames: their number, or arrays, uint8 [H, W, 3] each. pixels: the pixel format.
        sound: the codec of a tone as long as the frames. times: of the frames, in units of `time_base`.
        form: FFmpeg's name of the format, else by the suffix. settings: attributes of the video's encoder.
    """
    shown = list(pictures(frames, size)) if isinstance(frames, int) else list(frames)
    with av.open(str(path), "w", format=form) as container:
        container.metadata.update(metadata)
        quality = {"libx264": {"crf": "4"}, "libx265": {"crf": "4", "x265-params": "log-level=none"}}
        stream = container.add_stream(codec, rate=RATE, options=quality.get(codec, {}))
        stream.width, stream.height, stream.pix_fmt = shown[0].shape[1], shown[0].shape[0], pixels
        stream.codec_context.time_base = time_base
        for name, value in settings.items():
            setattr(stream.codec_context, name, value)
        tone = container.add_stream(sound, rate=SOUND_RATE) if sound else None
        for i, picture in enumerate(shown):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=pixels)
            frame.pts, frame.time_base = times[i] if times else i, time_base
            container.mux(stream.encode(frame))
            if tone is not None:
                container.mux(tone.encode(_tone(i)))
        container.mux(stream.encode(None))
        if tone is not None:
            container.mux(tone.encode(None))
    return path


def _tone(number):
    """A tenth of a second."""
    count = SOUND_RATE // RATE
    at = np.arange(number * count, (number + 1) * count)
    frame = av.AudioFrame.from_ndarray((8000 * np.sin(at / 17)).astype(np.int16)[None], format="s16", layout="mono")
    frame.sample_rate, frame.pts, frame.time_base = SOUND_RATE, number * count, Fraction(1, SOUND_RATE)
    return frame


def frames_in(path):
    """All frames of a video, as RGB [frames, H, W, 3], and the times at which they are shown, in seconds."""
    with av.open(str(path)) as container:
        found = list(container.decode(video=0))
        return np.stack([frame.to_ndarray(format="rgb24") for frame in found]), [float(frame.time) for frame in found]


def sound_of(path):
    """The packets of the first soundtrack, as bytes."""
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(audio=0) if packet.size]


def restore(pipe, source, output, fitting=FITTING, mask=None, progress=None, **options):
    """Restore a video as `resshift-fast restore` does."""
    return restoring.restore(
        pipe, restoring.plan(source, output, fitting), fitting, mask=mask, options=options, progress=progress
    )
