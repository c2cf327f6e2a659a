"""What `restore` finds out before it begins: formats that can't hold a result, outputs that can't be written."""

import os
import stat

import numpy as np
import pytest
from sample_photos import make_photo, names

from resshift_fast import images
from resshift_fast.images import Photo
from resshift_fast.pipeline import Pipeline


@pytest.fixture
def no_model(monkeypatch):
    """Fails if a model is loaded."""
    monkeypatch.setattr(Pipeline, "from_pretrained", lambda *a, **k: pytest.fail("loaded a model"))


def deep(path, alpha=False):
    """A 16-bit PNG, transparent or not."""
    pixels = np.random.default_rng(0).integers(0, 65536, (6, 8, 4), dtype=np.uint16)
    images.write(path, Photo(pixels[..., :3].copy(), pixels[..., 3].copy() if alpha else None))
    return path


@pytest.mark.parametrize(
    ("kind", "suffix", "message"),
    [
        ("clear", ".jpg", "JPEG has no transparency; write it as out.png, or lay it over a colour with --background"),
        ("clear", ".bmp", "BMP has no transparency"),
        ("deep", ".jpg", "JPEG has no 16-bit pixels; write it as out.png, or round it to 8 bits with --8-bit"),
        ("deep", ".webp", "WEBP has no 16-bit pixels"),
        ("deep", ".bmp", "BMP has no 16-bit pixels"),
        ("wide", ".webp", "WEBP holds at most 16383 pixels a side and this is 16400×8"),
    ],
)
def test_a_named_format_that_cannot_hold_the_result(restore, tmp_path, no_model, kind, suffix, message):
    path = tmp_path / "photo.png"
    if kind == "deep":
        deep(path)
    else:
        make_photo(path, (10, 8) if kind == "clear" else (4100, 2), "RGBA" if kind == "clear" else "RGB")
    out = tmp_path / f"out{suffix}"
    outcome = restore(path, "-o", out)
    assert outcome.code == 1 and message in outcome.errors[0] and len(outcome.errors) == 1
    assert outcome.err.splitlines()[-1] == "0 restored, 1 failed, 0 skipped"
    assert not out.exists()


@pytest.mark.parametrize("out", ["out.jpg", "folder"])
def test_a_transparent_photo_of_16_bits_becomes_a_jpeg_with_a_word(restore, tmp_path, out):
    path = deep(tmp_path / "photo.png", alpha=True)
    outcome = restore(path, "-o", tmp_path / out, "--format", "jpg", "--background", "white", "--8-bit")
    assert outcome.code == 0
    assert outcome.err.splitlines()[0].endswith(", laid over the background, rounded to 8 bits")
    written = tmp_path / out if out.endswith(".jpg") else tmp_path / out / "photo.jpg"
    result = images.read(written)
    assert (result.width, result.height, result.bits, result.alpha) == (32, 24, 8, None)


def test_one_of_the_two_is_not_enough(restore, tmp_path, no_model):
    path = deep(tmp_path / "photo.png", alpha=True)
    for option, left in ((["--background", "white"], "--8-bit"), (["--8-bit"], "--background white")):
        outcome = restore(path, "-o", tmp_path / "out.jpg", *option)
        assert outcome.code == 1 and left in outcome.errors[0]


def test_a_background_is_invisible_under_an_opaque_photo(restore, photos, tmp_path):
    restore(photos / "a.png", "-o", tmp_path / "one.png")
    restore(photos / "a.png", "-o", tmp_path / "two.png", "--background", "red", "--8-bit")
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


def test_what_is_no_colour(restore, photos, tmp_path, no_model):
    outcome = restore(photos, "-o", tmp_path / "out", "--background", "whit")
    assert outcome.code == 2 and "--background: 'whit' is not a colour" in outcome.errors[0]
    assert not (tmp_path / "out").exists()


OUTPUTS = ["read-only", "folder", "pipe"]


def occupy(path, how):
    """Put something at an output's name that is not to be replaced."""
    if how == "folder":
        path.mkdir()
    elif how == "pipe":
        os.mkfifo(path)
    else:
        path.write_bytes(b"mine")
        path.chmod(0o444)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
@pytest.mark.parametrize("how", OUTPUTS)
@pytest.mark.parametrize("name", ["b.png", "b_compare.png"])
def test_an_output_that_is_not_replaced_fails_alone_and_first(restore, photos, tmp_path, how, name):
    out = tmp_path / "out"
    out.mkdir()
    occupy(out / name, how)
    before = os.lstat(out / name)
    outcome = restore(photos, "-o", out, "--compare")
    assert outcome.code == 1
    assert outcome.err.splitlines()[0].startswith("error: ") and name in outcome.errors[0]
    assert outcome.err.splitlines()[-1] == "2 restored, 1 failed, 0 skipped"
    after = os.lstat(out / name)
    assert (before.st_ino, before.st_mode) == (after.st_ino, after.st_mode)
    assert how != "read-only" or (out / name).read_bytes() == b"mine"


@pytest.mark.parametrize("name", ["out.png", "new/out.png"])
def test_no_model_is_loaded_if_nothing_can_be_written(restore, photos, tmp_path, no_model, name):
    (tmp_path / "out.png").write_bytes(b"mine")
    (tmp_path / "out.png").chmod(0o400)
    (tmp_path / "new").symlink_to(tmp_path, target_is_directory=True)
    outcome = restore(photos / "a.png", "-o", tmp_path / name)
    assert outcome.code == 1 and "is read-only and is not replaced" in outcome.errors[0]


def test_a_result_keeps_the_permissions_of_the_one_it_replaces(restore, photos, tmp_path):
    out = tmp_path / "out.png"
    out.write_bytes(b"old")
    out.chmod(0o640)
    assert restore(photos / "a.png", "-o", out).code == 0
    assert stat.S_IMODE(out.stat().st_mode) == 0o640 and out.read_bytes() != b"old"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
@pytest.mark.parametrize("what", ["pipe", "device", "link-to-pipe"])
def test_photos_that_are_no_files_are_not_waited_for(restore, photos, tmp_path, what):
    name = photos / "z.png"
    if what == "device":
        name.symlink_to("/dev/zero")
    else:
        os.mkfifo(name if what == "pipe" else tmp_path / "pipe")
        if what != "pipe":
            name.symlink_to(tmp_path / "pipe")
    outcome = restore(name, photos / "a.png", "-o", tmp_path / "out")
    assert "z.png is not a regular file" in outcome.errors[0]
    assert outcome.err.splitlines()[-1] == "1 restored, 1 failed, 0 skipped"


def test_a_large_file_that_is_no_image_is_not_read(tmp_path, monkeypatch):
    path = tmp_path / "sparse.png"
    with open(path, "wb") as file:
        file.truncate(1_500_000_000)
    import tracemalloc

    tracemalloc.start()
    with pytest.raises(images.ImageError, match="is not an image"):
        images.read(path)
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()


SKIPPED = {"whole": True, "empty": False, "cut": False, "text": False, "other-format": False}


@pytest.mark.parametrize("what", SKIPPED)
def test_skip_existing_skips_whole_images_only(restore, photos, tmp_path, what):
    out = tmp_path / "out"
    restore(photos / "a.png", "-o", out)
    result = out / "a.png"
    data = result.read_bytes()
    if what == "other-format":
        make_photo(tmp_path / "a.jpg", (9, 9)).rename(result)
    else:
        result.write_bytes({"whole": data, "empty": b"", "cut": data[:-30], "text": b"a note"}[what])
    outcome = restore(photos / "a.png", "-o", out, "--skip-existing")
    assert outcome.err.splitlines()[-1] == f"{1 - SKIPPED[what]} restored, 0 failed, {int(SKIPPED[what])} skipped"
    assert result.read_bytes() == data


def test_skip_existing_does_not_take_a_folder_for_a_result(restore, photos, tmp_path):
    (tmp_path / "out" / "a.png").mkdir(parents=True)
    outcome = restore(photos / "a.png", "-o", tmp_path / "out", "--skip-existing")
    assert outcome.code == 1 and "a.png is a folder" in outcome.errors[0]


def test_skip_existing_does_not_take_the_png_of_another_run_for_a_jpeg(restore, photos, tmp_path):
    out = tmp_path / "out"
    restore(photos / "a.png", "-o", out)
    outcome = restore(photos / "a.png", "-o", out, "--skip-existing", "--format", "jpg")
    assert outcome.err.splitlines()[-1] == "1 restored, 0 failed, 0 skipped"
    assert (out / "a.jpg").exists()


def test_skip_existing_compares_what_the_options_would_write(restore, tmp_path):
    photo, out = make_photo(tmp_path / "clear.png", (10, 8), "RGBA"), tmp_path / "out"
    restore(photo, "-o", out, "--format", "jpg")
    arguments = ["-o", out, "--format", "jpg", "--skip-existing"]
    assert restore(photo, *arguments).err == "0 restored, 0 failed, 1 skipped\n"
    assert restore(photo, *arguments, "--background", "white").err.endswith("1 restored, 0 failed, 0 skipped\n")
    assert names(out) == ["clear.jpg", "clear.png"]
