"""Videos: frames, times, colours, sound and metadata of results, and what is refused."""

import os
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pipelines
import pytest
from videos import FITTING, av, frames_in, make_video, pictures, restore, sound_of

from resshift_fast import images
from resshift_fast.apps.video import clips, colours, encoding, restoring, work
from resshift_fast.images.errors import ImageError
from resshift_fast.images.fitting import Fitting


def levels(first, second):
    """Mean difference, of 255."""
    return np.abs(first.astype(float) - second.astype(float)).mean()


@pytest.mark.parametrize(
    "name, output, video, sound, kept, notes",
    [
        ("a.mp4", "b.mp4", "libx264", "aac", True, ()),
        ("a.mov", "b.mkv", "libx264", "aac", True, ()),
        ("a.webm", "b.webm", "libvpx-vp9", "libopus", True, ()),
        ("a.avi", "b.mp4", "mpeg4", "pcm_s16le", False, ("sound encoded again from pcm_s16le to aac",)),
        ("a.mp4", "b.webm", "libx264", "aac", False, ("sound encoded again from aac to opus",)),
        ("a.wmv", "b.mov", "wmv2", None, True, ()),
    ],
)
def test_frames_and_sound(bicubic, tmp_path, name, output, video, sound, kept, notes):
    source = make_video(tmp_path / name, codec=video, sound=sound)
    result = restore(bicubic, source, tmp_path / output)
    assert (result.width, result.height, result.frames, result.notes) == (64, 48, 5, notes)
    (before, times), (after, later) = frames_in(source), frames_in(tmp_path / output)
    np.testing.assert_allclose(np.diff(later), np.diff(times), atol=1e-3)
    assert levels(after[:, 2::4, 2::4], before) < 9  # by which bicubic enlargement differs from nearest pixels
    if sound:
        assert not kept or sound_of(source) == sound_of(tmp_path / output)
        with av.open(str(tmp_path / output)) as container:
            assert abs(container.duration / 1e6 - 0.5) < 0.06
    assert sorted(os.listdir(tmp_path)) == sorted([name, output])


def test_a_transport_stream_begins_at_0(bicubic, tmp_path):
    source = make_video(tmp_path / "a.m2ts", 5, form="mpegts", times=range(60, 65))
    assert frames_in(source)[1][0] > 5
    restore(bicubic, source, tmp_path / "b.mp4")
    np.testing.assert_allclose(frames_in(tmp_path / "b.mp4")[1], np.arange(5) / 10, atol=1e-3)


@pytest.mark.parametrize("output", ["b.mp4", "b.mkv"])
def test_times_that_vary(bicubic, tmp_path, output):
    times = [0, 40, 100, 300, 310, 900, 1500]
    source = make_video(tmp_path / "a.mkv", 7, times=times, time_base=Fraction(1, 1000))
    restore(bicubic, source, tmp_path / output)
    np.testing.assert_allclose(frames_in(tmp_path / output)[1], np.array(times) / 1000, atol=5e-4)


def test_times_that_are_repeated_or_begin_again_go_on(bicubic, tmp_path, monkeypatch):
    source = make_video(tmp_path / "a.mkv", 6, times=range(0, 300, 50), time_base=Fraction(1, 1000))
    clip = clips.read_clip(source)
    frames = list(clips.frames_of(clip, clips.Damage()))
    for timed, time in zip(frames, (5000, 5050, 5050, None, 20, 70), strict=True):
        timed.frame.pts = time
    monkeypatch.setattr(clips, "_decoded", lambda *arguments: iter([timed.frame for timed in frames]))
    assert [timed.time for timed in clips.frames_of(clip, clips.Damage())] == [5000, 5050, 5051, 5151, 5251, 5301]


@pytest.mark.parametrize("matrix, is_full, bits", [(1, False, 8), (6, True, 8), (9, False, 10), (1, True, 10)])
def test_colours_are_those_of_the_formula(matrix, is_full, bits):
    """ITU-T H.273, equations 38 to 43 and 50 to 52, in float64, of pictures of one colour."""
    coding, most = colours.Coding(matrix, 2, 2, is_full, bits), 255 if bits == 8 else 65535
    red, blue = {1: (0.2126, 0.0722), 6: (0.299, 0.114), 9: (0.2627, 0.0593)}[matrix]
    for rgb in np.random.default_rng(0).random((20, 3)):
        stored = np.rint(rgb * most)
        r, g, b = stored / most
        luma = red * r + (1 - red - blue) * g + blue * b
        cb, cr = (b - luma) / 2 / (1 - blue), (r - luma) / 2 / (1 - red)
        unit, top = 2 ** (bits - 8), 2**bits - 1
        scale = (0, top, top) if is_full else (16 * unit, 219 * unit, 224 * unit)
        expected = scale[0] + scale[1] * luma, scale[2] * cb + top // 2 + 1, scale[2] * cr + top // 2 + 1
        picture = np.broadcast_to(stored, (4, 6, 3)).astype(np.uint8 if bits == 8 else np.uint16)
        planes = colours.planes_of(picture, coding)
        found = planes[1, 2], planes.ravel()[4 * 6 + 3], planes.ravel()[4 * 6 * 5 // 4 + 3]
        assert np.abs(np.array(found, float) - np.clip(expected, 0, top)).max() <= 0.51
        back = colours.pixels_of(colours.frame_of(planes, coding), coding)
        assert np.abs(back.astype(float) - picture).max() <= (2.2 if bits == 8 else 2.2 * 64)


def test_chroma_is_sited_left():
    """Of a ramp, chroma is that at the left of two columns, and between two rows."""
    coding = colours.Coding(1, 2, 2, True, 10)
    ramp = np.zeros((16, 16, 3), np.uint16)
    ramp[..., 2] = np.arange(16) * 3000 + np.arange(16)[:, None] * 500
    planes = colours.planes_of(ramp, coding)
    blue = planes[16:].reshape(2, 8, 8)[0].astype(float)
    expected = np.arange(0, 16, 2) * 3000 + (np.arange(0, 16, 2)[:, None] + 0.5) * 500
    np.testing.assert_allclose(blue[:, 1:], (expected / 65535 / 2 * 1023 + 512)[:, 1:], atol=0.6)


@pytest.mark.parametrize(
    "settings, coding, codec",
    [
        (dict(colorspace=1, color_primaries=1, color_trc=1, color_range=1), (1, 1, 1, False, 8), "h264"),
        (dict(pixels="yuvj420p", colorspace=6, color_range=2), (6, 2, 2, True, 8), "h264"),
        (dict(codec="libx265", pixels="yuv420p10le", colorspace=9, color_trc=16), (9, 2, 16, False, 10), "hevc"),
    ],
    ids=["709-limited", "601-full", "2020-10bit"],
)
def test_colours_are_kept_and_tagged(bicubic, tmp_path, settings, coding, codec):
    settings = {"codec": "libx264"} | settings
    source = make_video(tmp_path / "a.mp4", 3, (64, 48), **settings)
    result = restore(bicubic, source, tmp_path / "b.mp4")
    assert ("HDR" in str(result.notes)) == (coding[2] == 16)
    with av.open(str(tmp_path / "b.mp4")) as container:
        stream = container.streams.video[0]
        frame = next(container.decode(stream))
        assert stream.codec_context.name == codec
    assert colours.coding_of(frame) == colours.Coding(*coding)
    before, after = clips.read_clip(source).first, clips.read_clip(tmp_path / "b.mp4").first
    assert before.bits == after.bits == (8 if coding[4] == 8 else 16)
    # Averages of 4 × 4 pixels; a wrong matrix or range moves them by 5 and more.
    means = after.pixels.reshape(48, 4, 64, 4, 3).mean(axis=(1, 3))
    assert np.abs((means - before.pixels).mean(axis=(0, 1))).max() < (1 if before.bits == 8 else 257)


@pytest.mark.parametrize("name, bits", [("b.mp4", 8), ("b.webm", 8)])
def test_ten_bits_are_rounded_where_wanted_or_needed(bicubic, tmp_path, name, bits):
    source = make_video(tmp_path / "a.mp4", 2, (64, 48), codec="libx265", pixels="yuv420p10le")
    result = restore(bicubic, source, tmp_path / name, replace(FITTING, eight_bits=name == "b.mp4"))
    assert "rounded to 8 bits" in result.notes and clips.read_clip(tmp_path / name).coding.bits == bits


@pytest.mark.parametrize(
    "codec, pixels", [("ffv1", "gray"), ("ffv1", "bgr0"), ("ffv1", "yuva420p"), ("ffv1", "yuv411p")]
)
def test_other_pixel_formats(bicubic, tmp_path, codec, pixels):
    source = make_video(tmp_path / "a.mkv", 2, codec=codec, pixels=pixels)
    result = restore(bicubic, source, tmp_path / "b.mp4")
    assert ("transparency was left out" in result.notes) == (pixels == "yuva420p")
    before = clips.read_clip(source).first.pixels
    assert levels(frames_in(tmp_path / "b.mp4")[0][0, 2::4, 2::4], before) < 9


@pytest.mark.parametrize(
    "matrix, expected",
    [
        ((0, 1, 0, -1, 0, 0), lambda pixels: np.rot90(pixels, -1)),
        ((0, -1, 0, 1, 0, 0), lambda pixels: np.rot90(pixels)),
        ((-1, 0, 0, 0, -1, 0), lambda pixels: np.rot90(pixels, 2)),
        ((-1, 0, 0, 0, 1, 0), lambda pixels: pixels[:, ::-1]),
    ],
    ids=["clockwise", "counterclockwise", "upside-down", "mirrored"],
)
def test_turned_videos_become_upright(bicubic, tmp_path, matrix, expected):
    source = make_video(tmp_path / "a.mp4", 2, sample_aspect_ratio=Fraction(4, 3))
    plain = clips.read_clip(source)
    data = bytearray(source.read_bytes())
    place = data.index(b"tkhd") + 4 + 40  # ISO/IEC 14496-12, 8.3.2: nine fixed-point numbers, big-endian
    stored = np.array([*(65536 * value for value in matrix), 0, 0, 1 << 30], ">i4").tobytes()
    data[place : place + 36] = stored
    source.write_bytes(data)
    clip = clips.read_clip(source)
    np.testing.assert_array_equal(clip.first.pixels, expected(plain.first.pixels))
    assert clip.aspect == (Fraction(3, 4) if matrix[0] == 0 else Fraction(4, 3))
    restore(bicubic, source, tmp_path / "b.mp4")
    after = clips.read_clip(tmp_path / "b.mp4")
    assert after.turn == colours.Turn() and after.aspect == clip.aspect
    assert levels(after.first.pixels[2::4, 2::4], clip.first.pixels) < 9


@pytest.mark.parametrize("scale, size", [(None, (60, 44)), (1.5, (22, 16)), (1, (14, 10))])
def test_sides_are_even(bicubic, tmp_path, scale, size):
    source = make_video(tmp_path / "a.mkv", 2, (15, 11), codec="ffv1", pixels="yuv444p")
    result = restore(bicubic, source, tmp_path / "b.mp4", replace(FITTING, wanted_scale=scale))
    assert (result.width, result.height) == size and frames_in(tmp_path / "b.mp4")[0].shape == (2, *size[::-1], 3)
    assert bool(result.notes) == (scale == 1)


def test_quality_decides_the_size(bicubic, tmp_path):
    source = make_video(tmp_path / "a.mp4", 3, (32, 24))
    sizes, errors = [], []
    exact = pipelines.oracle(pipelines.zero)(clips.read_clip(source).first).pixels
    for quality in (1, 75, 100):
        restore(bicubic, source, tmp_path / f"{quality}.mp4", replace(FITTING, quality=quality))
        sizes.append((tmp_path / f"{quality}.mp4").stat().st_size)
        errors.append(levels(clips.read_clip(tmp_path / f"{quality}.mp4").first.pixels, exact))
    assert sizes == sorted(sizes) and errors == sorted(errors, reverse=True) and errors[-1] < 2 < errors[0]
    assert [round(51 - 0.37 * quality) for quality in (75, 90, 95)] == [23, 18, 16]


def test_what_does_not_move_does_not_flicker(tmp_path):
    """Frames before they are encoded are equal; encoding alone makes them differ a little."""
    pipe = pipelines.oracle(pipelines.tile_statistics)
    source = make_video(tmp_path / "a.mkv", [next(pictures(1))] * 4, codec="ffv1", pixels="yuv444p")
    stored = []
    planned = restoring.plan(source, tmp_path / "b.mp4", FITTING)

    class Watched(work.Work):
        def add(self, frame):
            stored.append(frame.planes.copy())
            super().add(frame)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(restoring, "Work", Watched)
        restoring.restore(pipe, planned, FITTING, options={"seed": 3, "tile": 16, "batch_size": 4})
    assert np.var(np.stack(stored).astype(float), axis=0).max() == 0 and np.var(stored[0]) > 100
    assert np.var(frames_in(tmp_path / "b.mp4")[0].astype(float), axis=0).mean() < 1


def test_a_mask_is_for_all_frames(tmp_path):
    pipe = pipelines.oracle(pipelines.pointwise, 1, mask=True)
    source = make_video(tmp_path / "a.mkv", 3, (64, 48), codec="ffv1", pixels="yuv444p")
    mask = np.zeros((48, 64), bool)
    mask[16:32, 16:48] = True
    restore(pipe, source, tmp_path / "b.mp4", Fitting(1), mask, batch_size=2)
    before, after = frames_in(source)[0], frames_in(tmp_path / "b.mp4")[0]
    changed = np.abs(after.astype(float) - before).mean(axis=(0, 3))
    assert changed[20:28, 20:44].mean() > 50 and changed[:12].mean() < 20


def test_metadata_chapters_and_languages(bicubic, tmp_path):
    chapter = {"id": 1, "start": 0, "end": 300, "time_base": Fraction(1, 1000), "metadata": {"title": "one"}}
    source = tmp_path / "a.mkv"
    with av.open(str(make_video(tmp_path / "b.mkv", sound="aac"))) as plain, av.open(str(source), "w") as container:
        container.metadata.update(title="A walk", location="+48.1000+011.5000/", PLACE="Munich")
        streams = [container.add_stream_from_template(stream) for stream in plain.streams]
        text = container.add_mux_stream("subrip")
        streams[1].metadata["language"] = text.metadata["language"] = "deu"
        container.add_attachment("a.ttf", "font/ttf", b"font")
        container.set_chapters([chapter])
        for packet in plain.demux():
            if packet.size:
                packet.stream = streams[packet.stream.index]
                container.mux(packet)
        line = av.Packet(b"Hello")
        line.pts = line.dts = 100
        line.duration, line.time_base, line.stream = 200, Fraction(1, 1000), text
        container.mux(line)
    kinds, found = {}, {}
    for name in ("c.mkv", "c.mp4", "d.mkv"):
        fitting = replace(FITTING, strip_metadata=name == "d.mkv")
        notes = restore(bicubic, source, tmp_path / name, fitting).notes
        with av.open(str(tmp_path / name)) as container:
            found[name] = {key.lower(): value for key, value in container.metadata.items()}
            kinds[name] = [stream.type for stream in container.streams if stream.type != "data"]
            assert [one["metadata"] for one in container.chapters()] == ([] if name == "d.mkv" else [{"title": "one"}])
            assert container.streams.audio[0].language == "deu"
        if name == "c.mp4":
            assert notes == (
                "subtitles left out, since mp4 does not hold srt",
                "attachments left out, since mp4 does not hold it",
                "metadata without a place in .mp4 left out: PLACE",
            )
        else:
            assert not notes
    assert kinds["c.mkv"] == kinds["d.mkv"] == ["video", "audio", "subtitle", "attachment"]
    assert found["c.mkv"]["place"] == "Munich" and found["c.mp4"]["title"] == found["c.mkv"]["title"] == "A walk"
    assert found["c.mp4"]["location"].startswith("+48.1") and not found["d.mkv"].keys() & {"title", "place", "location"}


def test_memory_holds_few_frames(bicubic, tmp_path, monkeypatch):
    """As many as are restored at once are decoded before they are restored."""
    source = make_video(tmp_path / "a.mp4", 20)
    ahead, restored = [], []
    decoded = clips.frames_of

    def watched(*arguments):
        for number, timed in enumerate(decoded(*arguments)):
            ahead.append(number + 1 - len(restored))
            yield timed

    class Counting:
        spec, device, dtype, plan_tiles = bicubic.spec, bicubic.device, bicubic.dtype, bicubic.plan_tiles
        denoiser, first_stage = bicubic.denoiser, bicubic.first_stage

        def __call__(self, photos, masks, **options):
            restored.extend(photos)
            return bicubic(photos, masks, **options)

    monkeypatch.setattr(clips, "frames_of", watched)
    restore(Counting(), source, tmp_path / "b.mp4", batch_size=3)
    assert max(ahead) == 3 and len(restored) == 20
    assert work.frames_per_segment(1 << 30, 1) == 1 and work.frames_per_segment(100, 5) == 45


@pytest.mark.parametrize(
    "damage, frames, note",
    [
        ("cut", range(8, 20), "it ends after frame"),
        ("bytes", range(15, 21), ""),
        ("cut-mkv", range(8, 20), "its picture ends after "),
    ],
)
def test_damaged_videos_are_restored_up_to_the_damage(bicubic, tmp_path, damage, frames, note):
    source = make_video(tmp_path / ("a.mkv" if damage == "cut-mkv" else "a.mp4"), 30 if note else 20, gop_size=5)
    data = bytearray(source.read_bytes())
    if damage == "bytes":
        place = data.index(b"mdat") + len(data) // 2
        data[place : place + 200] = bytes(200)
    else:
        start = data.index(b"mdat") if damage == "cut" else 0
        end = start + (len(data) - start) // 2
        data[end:] = bytes(len(data) - end) if damage == "cut" else b""
    if damage == "cut":  # the index is at the end, as if the middle had not been fetched
        whole = source.read_bytes()
        index = whole.rindex(b"moov") - 4
        data = whole[:end] + bytes(index - end) + whole[index:]
    source.write_bytes(data)
    result = restore(bicubic, source, tmp_path / "b.mp4")
    assert result.frames == len(frames_in(tmp_path / "b.mp4")[0]) and result.frames <= frames[-1]
    assert any("damaged" in one or (note and note in one) for one in result.notes), result


@pytest.mark.parametrize(
    "content, message", [(b"", "is not a video"), (b"#EXTM3U\nfile:///etc/passwd\n", "is not a video")]
)
def test_what_is_no_video(tmp_path, content, message):
    (tmp_path / "a.mp4").write_bytes(content)
    with pytest.raises(ImageError, match=message):
        restoring.plan(tmp_path / "a.mp4", tmp_path / "b.mp4", FITTING)


def test_sound_alone_is_refused(tmp_path):
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=48000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4800), np.int16), format="s16", layout="mono")
        frame.sample_rate = 48000
        container.mux([*stream.encode(frame), *stream.encode(None)])
    with pytest.raises(ImageError, match="has no moving picture"):
        restoring.plan(tmp_path / "a.mp4", tmp_path / "b.mp4", FITTING)


def test_large_frames_are_refused(tmp_path):
    source = make_video(tmp_path / "a.mp4", 1, (64, 48))
    with images.limits.limited(3000), pytest.raises(ImageError, match="limit against decompression bombs"):
        restoring.plan(source, tmp_path / "b.mp4", FITTING)
    with pytest.raises(ImageError, match="cannot be encoded by libx264"):
        restoring.plan(source, tmp_path / "b.mp4", Fitting(400))


def test_other_suffixes_are_refused(tmp_path):
    source = make_video(tmp_path / "a.mp4", 1)
    with pytest.raises(ImageError, match="write it as b.mp4"):
        restoring.plan(source, tmp_path / "b.avi", FITTING)


def test_whole_videos_are_known(tmp_path):
    for name in ("a.mp4", "a.mkv"):
        source = make_video(tmp_path / name, 30, sound="aac")
        assert clips.is_whole(source)
        source.write_bytes(source.read_bytes()[: source.stat().st_size // 2])
        assert not clips.is_whole(source)
    assert not clips.is_whole(tmp_path / "none.mp4")


@pytest.mark.parametrize("name, form, expected", [("a", "mp4", True), ("b", "matroska", True), ("c", "mpegts", True)])
def test_videos_without_a_suffix(tmp_path, name, form, expected):
    assert clips.is_video(make_video(tmp_path / name, 2, form=form)) == expected
    assert not clips.is_video(tmp_path / "none") and encoding.bits_of("libx265") == 10
