"""The benchmarks of the models that do not enlarge, with networks that predict nothing."""

import json
from dataclasses import replace

import numpy as np
import pytest
import tiny_models
from PIL import Image
from pipelines import photo

from resshift_fast.models import catalog
from resshift_fast.models.autoencoder import SpaceToDepthConfig


@pytest.fixture
def photos(monkeypatch, tmp_path):
    """A folder with a photo of 64 pixels; the models are tiny, and their random weights predict a residual of 0."""
    models = dict(catalog.MODELS)
    tiny_models.install(models)
    tiny = models[tiny_models.INPAINT].denoiser
    plain = replace(tiny, cond_mask=False)
    for name, denoiser in (("photo-x1", plain), ("photo-inpaint", tiny)):
        small = {"first_stage": SpaceToDepthConfig(), "pad_multiple": 32, "tile": 64, "overlap": 0}
        monkeypatch.setitem(catalog.MODELS, name, replace(catalog.MODELS[name], denoiser=denoiser, **small))
    (tmp_path / "photos").mkdir()
    Image.fromarray(photo(64, 64)).save(tmp_path / "photos" / "a.png")
    return tmp_path / "photos"


def summary(module, tmp_path, *argv):
    file = tmp_path / "found.json"
    assert module.main([*map(str, argv), "--random-weights", "--json", str(file)]) == 0
    return json.loads(file.read_text())["summary"]


def test_a_model_that_predicts_nothing_repairs_nothing_and_takes_nothing(script, photos, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("settings: {mixture: {clean: 0.9, blur: 0.0, noise: 1.0, noise_sigma: [30.0, 30.0], jpeg: 0.0}}")
    found = summary(script("repair"), tmp_path, photos, "--config", recipe, "--times", 2)
    assert found["clean"]["PSNR"] == "inf" and "gain dB" not in found["clean"]
    degraded = {name: row for name, row in found.items() if name != "clean"}
    assert all(
        row["gain dB"] == row["gain-Y dB"] == 0 and row["PSNR"] == row["of the input"] for row in degraded.values()
    )
    assert found["noise 5"]["PSNR"] == pytest.approx(20 * np.log10(255 / 5), abs=0.6)
    # The recipe's own noise, without its clean share.
    assert found["mixture"]["PSNR"] == pytest.approx(20 * np.log10(255 / 30), abs=1.5)
    assert found["JPEG 30"]["PSNR"] < found["JPEG 90"]["PSNR"]


def test_a_model_that_predicts_nothing_fills_in_as_it_is_given(script, photos, tmp_path):
    found = summary(script("inpainting"), tmp_path, photos, "--no-features", "--times", 1)
    kinds = ("strokes", "boxes", "blobs", "grid", "all")
    methods = ("model", "Telea", "Navier-Stokes", "diffusion", "given")
    assert list(found) == [f"{kind}, {method}" for kind in kinds for method in methods]
    for kind in kinds:
        own, given = (found[f"{kind}, {method}"]["PSNR-Y"] for method in ("model", "given"))
        assert own == pytest.approx(given, abs=0.05) and 5 < own < 60
        assert found[f"{kind}, Telea"]["model's gain dB"] == pytest.approx(own - found[f"{kind}, Telea"]["PSNR-Y"])


def test_masks_are_of_their_kind_and_cover_at_most_half(script):
    module = script("inpainting")
    for kind in range(4):
        shares = [module.mask_of(kind, number, 0, 64, 64).mean() for number in range(6)]
        assert min(shares) > 0 and max(shares) <= 0.5
        assert np.array_equal(module.mask_of(kind, 1, 0, 64, 64), module.mask_of(kind, 1, 0, 64, 64))


def test_diffusion_solves_laplaces_equation(script):
    """A plane is its own continuation, and known pixels stay."""
    rows, columns = np.mgrid[:24, :30]
    plane = np.stack([5 * rows + 3 * columns, 7 * columns, 200 - 6 * rows], -1).astype(np.uint8)
    mask = np.zeros((24, 30), bool)
    mask[6:17, 8:20] = True
    found = script("inpainting").diffusion(np.where(mask[..., None], np.uint8(0), plane), mask)
    assert np.array_equal(found[~mask], plane[~mask])
    assert np.abs(found.astype(int) - plane).max() <= 1


@pytest.mark.parametrize(("name", "model", "message"), [
    ("repair", "photo-inpaint", "photo-inpaint is no model that restores without enlarging"),
    ("inpainting", "photo-x1", "photo-x1 is no inpainting model"),
])  # fmt: skip
def test_another_kind_of_model_is_refused(name, model, message, script, photos, capsys):
    assert script(name).main([str(photos), "--model", model, "--random-weights"]) == 1
    assert message in capsys.readouterr().err
