"""`restore` as people use it every day: enlargement, quality, metadata, folders below folders, JSON, quiet and loud."""

import json
import logging
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from sample_photos import camera_exif, make_photo, names

from resshift_fast import images
from resshift_fast.images import resizing
from resshift_fast.pipeline import Pipeline


def size_of(path):
    with Image.open(path) as image:
        return image.size


@pytest.mark.parametrize("scale, size", [("2", (48, 40)), ("1.5", (36, 30)), ("x3", (72, 60)), ("4", (96, 80))])
def test_scale(restore, photos, tmp_path, scale, size):
    outcome = restore(photos / "a.png", "-o", tmp_path / "out.png", "--scale", scale)
    assert outcome.code == 0 and f"24×20 → {size[0]}×{size[1]} " in outcome.err
    assert size_of(tmp_path / "out.png") == size


def test_a_scaled_result_is_the_models_reduced(restore, photos, tmp_path):
    restore(photos / "a.png", "-o", tmp_path / "whole.png")
    restore(photos / "a.png", "-o", tmp_path / "half.png", "--scale", "2")
    expected = resizing.reduced(images.read(tmp_path / "whole.png"), (40, 48)).pixels
    np.testing.assert_array_equal(images.read(tmp_path / "half.png").pixels, expected)


@pytest.mark.parametrize("scale", ["0", "-1", "nan", "inf", "twice", "4.1"])
def test_a_scale_that_cannot_be(restore, photos, tmp_path, scale):
    outcome = restore(photos / "a.png", "-o", tmp_path / "out.png", f"--scale={scale}")
    assert outcome.code == 2 and "--scale" in outcome.err
    assert not (tmp_path / "out.png").exists()


def test_quality(restore, photos, tmp_path):
    for quality in (30, 95):
        assert restore(photos / "a.png", "-o", tmp_path / f"{quality}.jpg", "--quality", quality).code == 0
    assert restore(photos / "a.png", "--output", tmp_path / "default.jpg").code == 0
    sizes = {path.stem: path.stat().st_size for path in tmp_path.glob("*.jpg")}
    assert sizes["30"] < sizes["95"] == sizes["default"]
    assert restore(photos / "a.png", "-o", tmp_path / "out.jpg", "--quality", 101).code == 2


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif"])
@pytest.mark.parametrize("strip", [False, True])
def test_metadata_are_kept_unless_they_are_stripped(restore, tmp_path, suffix, strip):
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    notes = images.Photo(np.zeros((8, 8, 3), np.uint8)).notes
    notes = replace(notes, dpi=(300.0, 300.0), xmp=b"<x:xmpmeta/>")
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    exif = camera_exif().tobytes()
    images.write(tmp_path / f"a{suffix}", images.Photo(pixels, exif=exif, icc_profile=profile, notes=notes))
    options = ["--strip-metadata"] if strip else []
    assert restore(tmp_path / f"a{suffix}", "-o", tmp_path / f"out{suffix}", *options).code == 0
    after = images.read(tmp_path / f"out{suffix}")
    assert after.icc_profile == profile
    if strip:
        assert after.notes == replace(notes, dpi=None, xmp=None)
        assert suffix == ".tif" or after.exif is None  # a TIFF's tags are read as EXIF
        assert b"Maker" not in (tmp_path / f"out{suffix}").read_bytes()
    else:
        assert after.notes.xmp == b"<x:xmpmeta/>" and b"Maker" in after.exif
        assert after.notes.dpi == pytest.approx((300, 300), rel=1e-3)


@pytest.fixture
def tree(tmp_path):
    """A folder with photos in folders below it, also of equal names, and a link that leads back."""
    root = tmp_path / "tree"
    for place in ("a.png", "x/a.png", "x/deep/b.png", "y/a.png", "y/a.jpg", ".hidden/c.png"):
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        make_photo(root / place, (8, 8))
    (root / "x" / "back").symlink_to(root)
    (root / "y" / "photo.cr3").touch()
    return root


def found_below(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.png"))


def test_recursive(restore, tree, tmp_path):
    outcome = restore(tree, "-r", "-o", tmp_path / "out")
    assert outcome.code == 0 and "5 restored, 0 failed, 0 skipped" in outcome.err
    assert found_below(tmp_path / "out") == ["a.png", "x/a.png", "x/deep/b.png", "y/a_jpg.png", "y/a_png.png"]
    assert f"left out 1: {tree}/y/photo.cr3: camera raw" in outcome.err
    assert "5 skipped" in restore(tree, "--recursive", "-o", tmp_path / "out", "--skip-existing").err


def test_results_below_the_photos_are_not_photos(restore, tree):
    for _ in range(2):
        outcome = restore(tree, "-r", "-o", tree / "x" / "results")
        assert "5 restored, 0 failed, 0 skipped" in outcome.err
    assert found_below(tree / "x" / "results") == ["a.png", "x/a.png", "x/deep/b.png", "y/a_jpg.png", "y/a_png.png"]


def test_without_recursive_folders_are_named(restore, tree, tmp_path):
    outcome = restore(tree, "-o", tmp_path / "out")
    assert names(tmp_path / "out") == ["a.png"]
    assert f"left out 2: {tree}/x, {tree}/y: folders below a folder are not searched without --rec" in outcome.err


def test_a_line_of_json_a_photo(restore, photos, tmp_path):
    (photos / "broken.png").write_bytes(b"no picture")
    (photos / "photo.cr3").touch()
    make_photo(tmp_path / "out.png", (8, 8))
    (tmp_path / "out").mkdir()
    make_photo(tmp_path / "out" / "c.png", (8, 8))
    options = ["-o", tmp_path / "out", "--json", "--skip-existing", "--scale", 2]
    outcome = restore(photos, tmp_path / "none.png", *options)
    lines = [json.loads(line) for line in outcome.out.splitlines()]
    by_status = {line["status"]: line for line in lines}
    assert sorted(line["status"] for line in lines) == sorted(
        ["restored", "restored", "failed", "failed", "skipped", "left out"]
    )
    assert (
        by_status["left out"]["input"] == str(photos / "photo.cr3") and "camera raw" in by_status["left out"]["reason"]
    )
    assert by_status["skipped"]["input"] == str(photos / "c.webp")
    assert {line["error"].split(":")[0] for line in lines if line["status"] == "failed"} == {
        f"{tmp_path}/none.png does not exist; did you mean {tmp_path}/out.png?",
        f"{photos}/broken.png is a text file; give a PNG, JPEG, WebP, AVIF, HEIC, GIF, TIFF or BMP",
    }
    (first,) = [line for line in lines if line.get("input") == str(photos / "a.png")]
    assert first["output"] == str(tmp_path / "out" / "a.png") and first["seconds"] > 0 and first["notes"] == []
    assert [first[key] for key in ("width", "height", "output_width", "output_height")] == [24, 20, 48, 40]
    assert outcome.err.endswith("2 restored, 2 failed, 1 skipped\n")


def test_quiet(restore, photos, tmp_path):
    assert restore(photos, "-o", tmp_path / "out", "-q") == type(restore("-h"))(0, "", "")
    outcome = restore(photos / "a.png", tmp_path / "none.png", "-q", "-o", tmp_path / "out")
    assert outcome.code == 1 and outcome.err.splitlines() == outcome.errors and len(outcome.errors) == 1


def test_verbose(restore, photos, tmp_path):
    quiet, loud = (restore(photos / "a.png", "-o", tmp_path / "out", *more).err for more in ((), ("-v",)))
    assert "debug: " not in quiet and "debug: " in loud and "1 restored" in loud
    assert restore(photos, "-o", tmp_path / "out", "-q", "-v").code == 2
    assert not logging.getLogger("resshift_fast").handlers and not logging.getLogger("resshift_fast").level


def test_threads(restore, photos, tmp_path, monkeypatch):
    before, seen, call = torch.get_num_threads(), [], Pipeline.__call__

    def record(self, *arguments, **options):
        seen.append(torch.get_num_threads())
        return call(self, *arguments, **options)

    monkeypatch.setattr(Pipeline, "__call__", record)
    assert restore(photos, "-o", tmp_path / "out", "--threads", before + 1).code == 0
    assert set(seen) == {before + 1} and torch.get_num_threads() == before
    assert restore(photos, "-o", tmp_path / "out", "--threads", 0).code == 2


@pytest.mark.parametrize("form", ["JPEG", ".jpg", "tif"])
@pytest.mark.parametrize("dtype", ["bf16", "FP32"])
def test_names_that_people_type(restore, photos, tmp_path, form, dtype):
    assert restore(photos / "a.png", "-o", tmp_path / "out", "--format", form, "--dtype", dtype).code == 0
    assert names(tmp_path / "out") == ["a.tiff" if form == "tif" else "a.jpg"]


def test_short_help(program):
    assert program("-h").out == program("--help").out
    assert program("restore", "-h").out == program("restore", "--help").out


@pytest.mark.parametrize(
    "typed, expected",
    [
        ("resshift-fast re", {"restore"}),
        ("resshift-fast restore --model in", {"inpaint-imagenet", "inpaint-face"}),
        ("resshift-fast restore --dtype b", {"bfloat16"}),
        ("resshift-fast restore --skip", {"--skip-existing"}),
    ],
)
def test_shell_completion(typed, expected):
    environment = {
        **os.environ,
        "_RESSHIFT_FAST_COMPLETE": "complete_bash",
        "COMP_WORDS": typed,
        "COMP_CWORD": str(typed.count(" ")),
    }
    code = "import sys; sys.argv = ['resshift-fast']; from resshift_fast import cli; cli.main()"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert set(done.stdout.split()) == expected, done.stderr
