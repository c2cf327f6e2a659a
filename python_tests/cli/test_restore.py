"""`restore` on valid input: which files it writes, and what it prints."""

import os
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import tiny_models
from PIL import Image
from sample_photos import make_mask, make_photo, names

from resshift_fast.backends import dispatch
from resshift_fast.cli.restore import OFFICIAL_SEED
from resshift_fast.models import catalog
from resshift_fast.pipeline import Pipeline


def size_of(path):
    with Image.open(path) as image:
        return image.size


def pixels_of(path):
    return np.asarray(Image.open(path))


def test_a_folder_keeps_the_stems(restore, photos, tmp_path):
    out = tmp_path / "out" / "deep"
    outcome = restore(photos, "-o", out)
    assert outcome.code == 0
    assert names(out) == ["a.png", "b.png", "c.png"]
    assert [size_of(path) for path in sorted(out.iterdir())] == [(96, 80), (48, 64), (36, 28)]


def test_each_photo_has_a_line_and_the_end_a_summary(restore, photos, tmp_path):
    lines = restore(photos, "-o", tmp_path / "out").err.splitlines()
    assert re.fullmatch(r"\[1/3\] a\.png 24×20 → 96×80 [\d.]+ s, [\d.]+ s left", lines[0])
    assert re.fullmatch(r"\[3/3\] c\.webp 9×7 → 36×28 [\d.]+ s", lines[2])
    assert lines[3:] == ["3 restored, 0 failed, 0 skipped"]


def test_nothing_is_printed_on_stdout(restore, photos, tmp_path):
    assert restore(photos, "-o", tmp_path / "out").out == ""


@pytest.mark.parametrize("suffix", [".png", ".JPG", ".webp", ".tif"])
def test_one_photo_goes_to_the_file_that_is_named(restore, photos, tmp_path, suffix):
    out = tmp_path / "new" / f"result{suffix}"
    assert restore(photos / "a.png", "-o", out).code == 0
    assert names(out.parent) == [out.name]
    assert size_of(out) == (96, 80)


def test_a_name_without_image_suffix_is_a_folder(restore, photos, tmp_path):
    assert restore(photos / "a.png", "-o", tmp_path / "v1.5").code == 0
    assert names(tmp_path / "v1.5") == ["a.png"]


def test_an_existing_folder_is_a_folder_whatever_its_name(restore, photos, tmp_path):
    out = tmp_path / "out.png"
    out.mkdir()
    assert restore(photos / "a.png", "-o", out).code == 0
    assert names(out) == ["a.png"]


def test_a_trailing_slash_makes_a_folder(restore, photos, tmp_path):
    assert restore(photos / "a.png", "-o", f"{tmp_path}/out.png/").code == 0
    assert names(tmp_path / "out.png") == ["a.png"]


def test_globs_arguments_and_dash_i_are_combined_and_each_photo_is_restored_once(restore, photos, tmp_path):
    out = tmp_path / "out"
    outcome = restore(photos / "*.png", "-i", photos / "b.jpg", "-i", photos / "a.png", "-o", out)
    assert names(out) == ["a.png", "b.png"]
    assert "2 restored" in outcome.err


def test_equal_stems_do_not_overwrite_one_another(restore, photos, tmp_path):
    make_photo(photos / "a.jpg", (8, 8))
    out = tmp_path / "out"
    assert restore(photos, "-o", out).code == 0
    assert names(out) == ["a_jpg.png", "a_png.png", "b.png", "c.png"]
    assert size_of(out / "a_jpg.png") == (32, 32)


@pytest.mark.parametrize(
    ("format", "expected"),
    [
        ("png", ["a.png", "b.png", "c.png"]),
        ("jpg", ["a.jpg", "b.jpg", "c.jpg"]),
        ("webp", ["a.webp", "b.webp", "c.webp"]),
        ("tiff", ["a.tiff", "b.tiff", "c.tiff"]),
        ("same", ["a.png", "b.jpg", "c.webp"]),
    ],
)
def test_format(restore, photos, tmp_path, format, expected):
    assert restore(photos, "-o", tmp_path / "out", "--format", format).code == 0
    assert names(tmp_path / "out") == expected


def test_a_picture_that_a_format_cannot_hold_becomes_png_with_a_message(restore, tmp_path):
    photo = make_photo(tmp_path / "clear.png", (10, 8), "RGBA")
    outcome = restore(photo, "-o", tmp_path / "out", "--format", "jpg")
    assert outcome.code == 0
    assert names(tmp_path / "out") == ["clear.png"]
    assert outcome.err.splitlines()[0].endswith("written as clear.png")


def test_skip_existing_finds_a_result_that_became_png(restore, tmp_path):
    photo = make_photo(tmp_path / "clear.png", (10, 8), "RGBA")
    restore(photo, "-o", tmp_path / "out", "--format", "jpg")
    outcome = restore(photo, "-o", tmp_path / "out", "--format", "jpg", "--skip-existing")
    assert outcome.err == "0 restored, 0 failed, 1 skipped\n"


def test_compare_shows_both_in_one_picture(restore, photos, tmp_path):
    out = tmp_path / "out"
    assert restore(photos / "a.png", "-o", out, "--compare").code == 0
    assert names(out) == ["a.png", "a_compare.png"]
    result, both = pixels_of(out / "a.png"), pixels_of(out / "a_compare.png")
    assert both.shape[0] == 80 and both.shape[1] > 2 * 96
    assert np.array_equal(both[:, -96:], result)
    assert not np.array_equal(both[:, :96], result)


def test_compare_does_not_overwrite_another_result(restore, photos, tmp_path):
    make_photo(photos / "a_compare.png", (8, 8))
    out = tmp_path / "out"
    assert restore(photos, "-o", out, "--compare").code == 0
    assert size_of(out / "a_compare.png") == (32, 32)
    assert size_of(out / "a_compare-2.png")[1] == 80
    assert len(names(out)) == 8


def test_skip_existing_leaves_results_alone(restore, photos, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    mine = make_photo(out / "b.png", (5, 6)).read_bytes()
    outcome = restore(photos, "-o", out, "--skip-existing")
    assert outcome.code == 0
    assert (out / "b.png").read_bytes() == mine
    assert outcome.err.splitlines()[-1] == "2 restored, 0 failed, 1 skipped"


def test_skip_existing_makes_a_before_after_picture_that_is_missing(restore, photos, tmp_path):
    out = tmp_path / "out"
    restore(photos / "a.png", "-o", out)
    assert restore(photos / "a.png", "-o", out, "--skip-existing", "--compare").code == 0
    assert names(out) == ["a.png", "a_compare.png"]


def test_no_model_is_loaded_when_all_results_exist(restore, photos, tmp_path, monkeypatch):
    restore(photos, "-o", tmp_path / "out")
    monkeypatch.setattr(Pipeline, "from_pretrained", lambda *a, **k: pytest.fail("loaded a model"))
    assert restore(photos, "-o", tmp_path / "out", "--skip-existing").err == "0 restored, 0 failed, 3 skipped\n"


def test_results_are_replaced_without_skip_existing(restore, photos, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "a.png").write_bytes(b"old")
    assert restore(photos / "a.png", "-o", out).code == 0
    assert size_of(out / "a.png") == (96, 80)


def test_a_seed_gives_the_same_result_again_and_another_seed_another(restore, photos, tmp_path):
    for name, seed in (("one", 7), ("two", 7), ("three", 8)):
        restore(photos / "a.png", "-o", tmp_path / f"{name}.png", "--seed", seed)
    one, two, three = (pixels_of(tmp_path / f"{name}.png") for name in ("one", "two", "three"))
    assert np.array_equal(one, two)
    assert not np.array_equal(one, three)


@pytest.mark.parametrize(
    ("arguments", "seed"),
    [([], 0), (["--noise", "torch"], OFFICIAL_SEED), (["--noise", "torch", "--seed", "3"], 3)],
    ids=["field", "torch", "torch-with-seed"],
)
def test_default_seed(restore, photos, tmp_path, arguments, seed):
    noise = arguments[1] if arguments else "field"
    restore(photos / "a.png", "-o", tmp_path / "ours.png", *arguments)
    restore(photos / "a.png", "-o", tmp_path / "same.png", "--seed", seed, "--noise", noise)
    restore(photos / "a.png", "-o", tmp_path / "other.png", "--seed", seed + 1, "--noise", noise)
    ours = pixels_of(tmp_path / "ours.png")
    assert np.array_equal(ours, pixels_of(tmp_path / "same.png"))
    assert not np.array_equal(ours, pixels_of(tmp_path / "other.png"))


def test_options_reach_the_pipeline(restore, photos, tmp_path, monkeypatch):
    seen = {}
    call, load = Pipeline.__call__, Pipeline.from_pretrained.__func__

    def spy_call(self, image, mask=None, **options):
        seen.update(options)
        return call(self, image, mask, **options)

    def spy_load(cls, name, **settings):
        seen.update(settings)
        return load(cls, name, **settings)

    monkeypatch.setattr(Pipeline, "__call__", spy_call)
    monkeypatch.setattr(Pipeline, "from_pretrained", classmethod(spy_load))
    arguments = ["--tile", 24, "--overlap", 6, "--batch-size", 2, "--seed", 5, "--dtype", "bfloat16", "--device", "cpu"]
    assert restore(photos / "a.png", "-o", tmp_path / "out", *arguments).code == 0
    expected = {"tile": 24, "overlap": 6, "batch_size": 2, "seed": 5, "noise": "field"}
    expected |= {"dtype": "bfloat16", "device": "cpu", "autoencoder": None}
    assert {key: seen[key] for key in expected} == expected


def test_backend_is_used(restore, photos, tmp_path, monkeypatch):
    from resshift_fast import backends

    seen = []
    call = Pipeline.__call__
    monkeypatch.setattr(
        Pipeline, "__call__", lambda self, *a, **k: seen.append(backends.preferred()) or call(self, *a, **k)
    )
    assert restore(photos / "a.png", "-o", tmp_path / "out", "--backend", "reference").code == 0
    assert seen == ["reference"]


@pytest.mark.slow
@pytest.mark.parametrize("option, used", [([], "reference"), (["--backend", "auto"], "auto")], ids=["none", "option"])
def test_the_environment_chooses_the_backend_unless_the_option_does(option, used, photos, tmp_path):
    """In a process of its own, because the variable is read at the import."""
    code = (
        "from resshift_fast import Pipeline, backends, cli; call = Pipeline.__call__\n"
        "Pipeline.__call__ = lambda self, *a, **k: print('used:', backends.preferred()) or call(self, *a, **k)\n"
        "cli.main()"
    )
    arguments = ["restore", photos / "a.png", "-o", tmp_path / "out", *option]
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, "RESSHIFT_FAST_BACKEND": "reference"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert f"used: {used}" in done.stdout


def test_a_wrong_backend_in_the_environment_is_an_error(restore, photos, tmp_path, monkeypatch):
    monkeypatch.setenv("RESSHIFT_FAST_BACKEND", "nonsense")
    monkeypatch.setattr(dispatch, "_preferred", "nonsense")
    outcome = restore(photos / "a.png", "-o", tmp_path / "out")
    assert outcome.code == 2 and not (tmp_path / "out").exists()
    assert "RESSHIFT_FAST_BACKEND: unknown backend 'nonsense', expected one of auto, reference" in outcome.err
    assert restore(photos / "a.png", "-o", tmp_path / "out", "--backend", "reference").code == 0


def test_inpainting_keeps_known_pixels(restore, tmp_path):
    photo, mask = make_photo(tmp_path / "photo.png", (40, 36)), make_mask(tmp_path / "mask.png", (40, 36))
    out = tmp_path / "out.png"
    assert restore(photo, "-o", out, "--mask", mask, model=tiny_models.INPAINT).code == 0
    before, after, masked = pixels_of(photo), pixels_of(out), pixels_of(mask) > 0
    assert np.array_equal(before[~masked], after[~masked])
    assert not np.array_equal(before[masked], after[masked])


def test_with_a_mask_the_embedded_inpainting_model_is_the_default(program, tmp_path):
    photo, mask = make_photo(tmp_path / "photo.png", (40, 36)), make_mask(tmp_path / "mask.png", (40, 36))
    out = tmp_path / "out.png"
    assert program("restore", photo, "-o", out, "--mask", mask).code == 0
    before, after, masked = pixels_of(photo), pixels_of(out), pixels_of(mask) > 0
    assert before.shape == after.shape and np.array_equal(before[~masked], after[~masked])
    refused = program("restore", photo, "-o", out, "--mask", mask, "--model", "nano-x4")
    assert refused.code != 0 and "nano-x4 takes no mask" in refused.err


def test_masks_of_a_folder_are_found_by_stem(restore, tmp_path):
    photos, masks, out = tmp_path / "photos", tmp_path / "masks", tmp_path / "out"
    photos.mkdir()
    masks.mkdir()
    for name, size in (("one", (34, 33)), ("two", (20, 21))):
        make_photo(photos / f"{name}.png", size)
        make_mask(masks / f"{name}.bmp", size)
    assert restore(photos, "-o", out, "--mask", masks, model=tiny_models.INPAINT).code == 0
    for name in ("one", "two"):
        before, after = pixels_of(photos / f"{name}.png"), pixels_of(out / f"{name}.png")
        masked = pixels_of(masks / f"{name}.bmp") > 0
        assert np.array_equal(before[~masked], after[~masked])


def test_models_own_tile_is_the_default(restore, photos, tmp_path):
    spec = catalog.MODELS[tiny_models.ENLARGE]
    restore(photos / "a.png", "-o", tmp_path / "default.png")
    restore(photos / "a.png", "-o", tmp_path / "same.png", "--tile", spec.tile, "--overlap", spec.overlap)
    restore(photos / "a.png", "-o", tmp_path / "other.png", "--tile", spec.pad_multiple)
    default = pixels_of(tmp_path / "default.png")
    assert np.array_equal(default, pixels_of(tmp_path / "same.png"))
    assert not np.array_equal(default, pixels_of(tmp_path / "other.png"))


def test_embedded_model_is_the_default(program, weights, photos, tmp_path, monkeypatch):
    from resshift_fast.weights import download

    embedded = weights[tiny_models.ENLARGE]
    monkeypatch.setattr(download, "local_path", lambda file: embedded if file.url is None else pytest.fail(file.url))
    spec = catalog.MODELS[tiny_models.ENLARGE]
    catalog.MODELS[catalog.DEFAULT_MODEL] = replace(spec, weights=catalog.WeightFile(embedded.name, None))
    assert program("restore", photos / "a.png", "-o", tmp_path / "out.png").code == 0
    assert size_of(tmp_path / "out.png") == (96, 80)
