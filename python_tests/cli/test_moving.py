"""`restore` of animations and of large photos: all frames, still parts stay still, size and time are said before."""

import re

import numpy as np
import pytest
from PIL import Image
from sample_photos import make_photo, names

from resshift_fast import images
from resshift_fast.cli import batch
from resshift_fast.images import animation


def make_animation(path, count=3, size=(16, 12)):
    """An animation whose upper half does not change."""
    rng = np.random.default_rng(0)
    still = rng.integers(0, 256, (size[1], size[0], 3)).astype(np.uint8)
    frames = []
    for _ in range(count):
        still[size[1] // 2 :] = rng.integers(0, 256, (size[1] - size[1] // 2, size[0], 3))
        frames.append(Image.fromarray(still))
    options = {"lossless": True} if path.suffix == ".webp" else {}
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=[40, 90, 60][:count], loop=0, **options)
    return path


@pytest.mark.parametrize("suffix", [".webp", ".gif", ".png"])
def test_all_frames_are_restored(restore, tmp_path, suffix):
    outcome = restore(make_animation(tmp_path / f"a{suffix}"), "-o", tmp_path / "out")
    assert outcome.code == 0 and "16×12 → 64×48, 3 frames " in outcome.err and "written as a.webp" in outcome.err
    assert names(tmp_path / "out") == ["a.webp"]
    found = animation.open_animation(tmp_path / "out" / "a.webp")
    assert (found.durations, found.loop) == ([40, 90, 60], 0)
    assert [(photo.width, photo.height) for photo in found.photos()] == [(64, 48)] * 3


def test_a_frame_is_restored_as_a_photo(restore, tmp_path):
    source = make_animation(tmp_path / "a.webp")
    assert restore(source, "-o", tmp_path / "out.webp", "--quality", 100, "--scale", 3, "--compare").code == 0
    with Image.open(source) as image:
        image.seek(1)
        image.convert("RGB").save(tmp_path / "one.png")
    assert restore(tmp_path / "one.png", "-o", tmp_path / "one-out.png", "--scale", 3).code == 0
    _, second, _ = animation.open_animation(tmp_path / "out.webp").photos()
    np.testing.assert_array_equal(second.pixels, images.read(tmp_path / "one-out.png").pixels)
    assert images.read(tmp_path / "out_compare.png").height == 36


@pytest.mark.parametrize("noise", ["field", "torch"])
def test_what_does_not_move_does_not_flicker(restore, tmp_path, monkeypatch, noise):
    """Of equal frames, which a WebP would merge."""
    photo, written = images.read(make_photo(tmp_path / "a.png", (16, 12))), []
    source = animation.Animation("a", [10, 10, 10], 0, lambda: iter([photo] * 3))
    monkeypatch.setattr(animation, "is_animated", lambda path: True)
    monkeypatch.setattr(animation, "open_animation", lambda path: source)
    monkeypatch.setattr(animation, "write_animation", lambda path, source, photos, quality: written.extend(photos))
    assert restore(tmp_path / "a.png", "-o", tmp_path / "out", "--noise", noise).code == 0
    frames = np.stack([frame.pixels for frame in written]).astype(float)
    assert frames.shape == (3, 48, 64, 3) and np.var(frames, axis=0).max() == 0 and np.var(frames[0]) > 0


def test_an_animation_is_not_written_as_one_picture(restore, tmp_path):
    outcome = restore(make_animation(tmp_path / "a.gif"), "-o", tmp_path / "out.png")
    assert outcome.code == 1 and ".png is written with one picture" in outcome.errors[0]
    assert "write it as " in outcome.errors[0] and not (tmp_path / "out.png").exists()


def test_an_animation_that_is_done_is_skipped(restore, tmp_path):
    source = make_animation(tmp_path / "a.gif")
    for expected in ("1 restored, 0 failed, 0 skipped", "0 restored, 0 failed, 1 skipped"):
        assert expected in restore(source, "-o", tmp_path / "out", "--skip-existing").err


def test_the_first_frame_of_a_damaged_animation_is_not_passed_off_as_all(restore, tmp_path):
    source = make_animation(tmp_path / "a.webp")
    data = source.read_bytes()
    cut = data[: len(data) * 2 // 3]
    source.write_bytes(cut[:4] + (len(cut) - 8).to_bytes(4, "little") + cut[8:])
    assert restore(source, "-o", tmp_path / "out").code == 1
    assert names(tmp_path / "out") == []


def test_size_and_time_are_said_first(restore, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(batch, "LARGE_PIXELS", 96 * 80)
    monkeypatch.setattr(batch, "ANNOUNCED_SECONDS", 0)
    lines = restore(photos, "-o", tmp_path / "out", "--batch-size", 1, "--tile", 16).err.splitlines()
    assert lines[0] == "[1/3] a.png 24×20 → 96×80 pixels, 0 megapixels"
    assert re.fullmatch(r"\[1/3\] a\.png will take about [\d.]+ s, [\d.]+ s for all", lines[1])
    assert lines[2].startswith("[1/3] a.png 24×20 → 96×80 ")
    assert not any("megapixels" in line for line in lines[3:])


def test_small_photos_are_not_announced(restore, photos, tmp_path):
    err = restore(photos, "-o", tmp_path / "out").err
    assert "megapixels" not in err and "will take" not in err
