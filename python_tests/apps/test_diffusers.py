"""diffusers' own saving and loading of a pipeline, and its conventions of calling."""

import json

import numpy as np
import pytest
import torch
from other_projects import needs
from PIL import Image
from pipelines import SPECS, photo, tensor_of
from sample_photos import camera_exif, stored_for

from resshift_fast import Pipeline
from resshift_fast.models import catalog

needs("diffusers")

IMAGE = Image.fromarray(photo(20, 17))


@pytest.fixture(scope="module")
def bridge():
    """The module, imported here because diffusers takes seconds."""
    from resshift_fast.apps import diffusers

    return diffusers


@pytest.fixture(scope="module")
def saved(bridge, tmp_path_factory):
    pipe = bridge.ResShiftPipeline.from_model("nano-x4")
    folder = tmp_path_factory.mktemp("saved")
    pipe.save_pretrained(folder)
    return pipe, folder


def test_a_saved_pipeline_is_loaded_and_restores_the_same(saved, bridge):
    from diffusers import DiffusionPipeline, ImagePipelineOutput

    pipe, folder = saved
    assert json.loads((folder / "model_index.json").read_text())["_class_name"] == "ResShiftPipeline"
    assert (folder / "model" / "diffusion_pytorch_model.safetensors").is_file()
    loaded = bridge.ResShiftPipeline.from_pretrained(folder)
    assert isinstance(loaded, DiffusionPipeline)
    expected = Pipeline.from_pretrained("nano-x4", device="cpu")(IMAGE, seed=5, progress=False)
    for one in (pipe, loaded):
        result = one(IMAGE, seed=5)
        assert isinstance(result, ImagePipelineOutput)
        np.testing.assert_array_equal(np.asarray(result.images[0]), np.asarray(expected))


def test_a_photo_on_its_side_is_restored_upright(saved):
    pipe, _ = saved
    stored = stored_for(6, np.asarray(IMAGE))
    stored.info["exif"] = camera_exif(6).tobytes()
    (expected,) = pipe(IMAGE, output_type="np").images
    np.testing.assert_array_equal(pipe(stored, output_type="np").images[0], expected)
    (result,) = pipe(stored).images
    assert result.size == (68, 80) and result.getexif().get(0x0112, 1) == 1


def test_it_moves_and_casts_as_a_pipeline_of_diffusers(saved, bridge):
    loaded = bridge.ResShiftPipeline.from_pretrained(saved[1], dtype=torch.bfloat16)
    assert loaded.dtype == torch.bfloat16 and loaded.model.restorer.pipeline().dtype == torch.bfloat16
    loaded.to(torch.float32)
    (images,) = loaded(IMAGE, seed=5, return_dict=False)
    np.testing.assert_allclose(np.asarray(images[0], int), np.asarray(saved[0](IMAGE, seed=5).images[0], int), atol=6)


def test_output_types_and_generators(saved):
    pipe, _ = saved
    images = [IMAGE, photo(20, 17, seed=1)]
    first = pipe(images, output_type="np", generator=torch.Generator().manual_seed(3)).images
    assert first.shape == (2, 80, 68, 3) and first.dtype == np.float32 and first.min() >= 0 and first.max() <= 1
    again = pipe(images, output_type="pt", generator=torch.Generator().manual_seed(3)).images
    np.testing.assert_array_equal(again.permute(0, 2, 3, 1), first)
    assert (pipe(images, output_type="np").images != first).any()
    listed = pipe(tensor_of(photo(20, 17))).images
    assert [image.size for image in listed] == [(68, 80)] and listed[0].mode == "RGB"
    with pytest.raises(ValueError, match="output_type is 'latent', expected one of pil, np, pt"):
        pipe(IMAGE, output_type="latent")
    with pytest.raises(ValueError, match="a seed or a generator, not both"):
        pipe(IMAGE, seed=1, generator=torch.Generator())
    with pytest.raises(ValueError, match="several sizes, which output_type='pt' cannot hold"):
        pipe([IMAGE, photo(8, 8)], output_type="pt")


@pytest.mark.parametrize("spec", [*catalog.MODELS.values(), catalog.one_step(SPECS["x4-vq"])], ids=lambda x: x.name)
def test_every_model_survives_json(spec, bridge):
    assert bridge.from_data(json.loads(json.dumps(bridge.to_data(spec)))) == spec


def test_a_latent_model_with_masks(monkeypatch, tmp_path, bridge):
    monkeypatch.setitem(catalog.MODELS, "tiny", SPECS["inpaint-vq"])
    bridge.ResShiftPipeline.from_model("tiny", random_weights=True).save_pretrained(tmp_path)
    pipe = bridge.ResShiftPipeline.from_pretrained(tmp_path)
    mask = np.zeros((64, 64), np.uint8)
    mask[8:30, 8:40] = 255
    image = Image.fromarray(photo(64, 64))
    result = np.asarray(pipe(image, Image.fromarray(mask)).images[0])
    np.testing.assert_array_equal(result[mask == 0], np.asarray(image)[mask == 0])
    assert (result[mask > 0] != np.asarray(image)[mask > 0]).any()
