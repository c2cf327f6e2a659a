"""spandrel's own loader finds, loads, moves and runs ResShift models."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from golden_data import fill_
from other_projects import needs
from pipelines import photo, tensor_of

from resshift_fast import Pipeline
from resshift_fast.models import catalog
from resshift_fast.weights.checkpoints import CheckpointError, save_safetensors
from resshift_fast.weights.download import local_path

needs("spandrel")

import spandrel  # noqa: E402

from resshift_fast.apps import spandrel as bridge  # noqa: E402

NANO = local_path(catalog.get("nano-x4").weights)


def loader(**options):
    registry = spandrel.MAIN_REGISTRY.copy()
    bridge.install(registry=registry, **options)
    return spandrel.ModelLoader(registry=registry)


def test_the_embedded_model_restores_as_the_pipeline_does():
    found = loader().load_from_file(NANO)
    assert isinstance(found, spandrel.ImageModelDescriptor)
    assert (found.scale, found.purpose, found.tags) == (4, "SR", ["nano-x4", "4 steps"])
    image = tensor_of(photo(20, 17))
    expected = Pipeline.from_pretrained("nano-x4", device="cpu")(image, progress=False)
    torch.testing.assert_close(found(image), expected, rtol=0, atol=1e-6)
    half = found.bfloat16()(image.bfloat16())
    assert half.dtype == torch.bfloat16
    assert 0 < (half.float() - expected).abs().max() < 0.1


def test_spandrels_own_models_are_still_found():
    from spandrel.architectures.ESRGAN.__arch.RRDB import RRDBNet

    state = RRDBNet(num_filters=8, num_blocks=1).state_dict()
    assert loader().load_from_state_dict(state).architecture.id == "ESRGAN"
    assert not bridge.fitting(state)


@pytest.mark.parametrize(
    "name, preferred, steps",
    [("bicsr-x4", "realsr-x4-v3", 4), ("realsr-x2", "realsr-x2", 4), ("faceir", "faceir", 4)]
    + [("inpaint-face", "inpaint-imagenet", 4), ("nano-x4-1step", "nano-x4-1step", 1)],
)
def test_weights_are_recognized_by_their_names_and_shapes(name, preferred, steps):
    """Of the project's own networks, into which the published files are loaded."""
    with torch.device("meta"):
        state = catalog.build_denoiser(catalog.get(name)).state_dict()
    specs = bridge.fitting(state)
    assert name in [spec.name for spec in specs]
    chosen = bridge.chosen(specs)
    assert (chosen.name, chosen.schedule.num_steps) == (preferred, steps)
    del state["out.2.bias"]
    assert not bridge.fitting(state)


def test_a_students_own_number_of_blocks_is_recognized():
    sizes = replace(catalog.get("realsr-x4-v3-1step").denoiser, num_res_blocks=(1, 2, 2, 1))
    with torch.device("meta"):
        state = catalog.build_denoiser(replace(catalog.get("realsr-x4-v3-1step"), denoiser=sizes)).state_dict()
    found = bridge.chosen(bridge.fitting(state))
    assert found.denoiser == sizes and found.schedule.num_steps == 1


def test_an_autoencoder_and_a_model_can_be_named(tmp_path, monkeypatch):
    """A tiny model in place of an official one: its denoiser is one file, its autoencoder another."""
    from pipelines import SPECS

    monkeypatch.setattr(catalog, "MODELS", {"realsr-x4-v1": SPECS["x4-vq"], "x2": SPECS["x2-vq"]})
    parts = fill_(catalog.build_denoiser(SPECS["x4-vq"])), fill_(catalog.build_first_stage(SPECS["x4-vq"]))
    for name, part in zip(("denoiser", "autoencoder"), parts, strict=True):
        save_safetensors(part, tmp_path / f"{name}.safetensors", {})
    files = tmp_path / "denoiser.safetensors", tmp_path / "autoencoder.safetensors"
    found = loader(autoencoder=files[1]).load_from_file(files[0])
    image = tensor_of(photo(16, 16))
    expected = Pipeline(SPECS["x4-vq"], *parts, torch.device("cpu"), torch.float32)(image, progress=False)
    np.testing.assert_allclose(found(image), expected, rtol=0, atol=1e-6)
    with pytest.raises(CheckpointError, match="does not fit VQAutoencoder"):
        loader(autoencoder=files[0]).load_from_file(files[0])
    with pytest.raises(ValueError, match=r"these weights are not those of x2; they fit realsr-x4-v3"):
        loader(model="x2").load_from_file(files[0])


def test_installing_twice_and_unknown_models():
    registry = spandrel.ArchRegistry()
    assert len(bridge.install(registry=registry)) == 1 and not bridge.install(registry=registry)
    with pytest.raises(ValueError, match="unknown model 'nano-x5'; did you mean 'nano-x4'"):
        bridge.install("nano-x5", registry=registry)
