"""The catalogue: names, and settings that are consistent with each other."""

import dataclasses
import math

import pytest
import torch

from resshift_fast.diffusion.coefficients import PREDICTION_TYPES
from resshift_fast.models import catalog
from resshift_fast.models.autoencoder import SpaceToDepth, VQAutoencoder
from resshift_fast.models.catalog import MODELS, get
from resshift_fast.models.sizes import RRDBConfig, SwinUNetConfig

NAMES = (
    "photo-x4",
    "nano-x4",
    "photo-x1",
    "photo-inpaint",
    "realsr-x4-v1",
    "realsr-x4-v2",
    "realsr-x4-v3",
    "realsr-x2",
    "bicsr-x4",
    "distilled-x4",
    "distilled-x2",
    "inpaint-imagenet",
    "inpaint-face",
    "faceir",
)
OWN = ("nano-x4", "photo-x4", "photo-x1", "photo-inpaint")
RELEASED = {
    "realsr-x4-v1": ("resshift_realsrx4_s15_v1.pth", "autoencoder_vq_f4.pth"),
    "realsr-x4-v2": ("resshift_realsrx4_s15_v2.pth", "autoencoder_vq_f4.pth"),
    "realsr-x4-v3": ("resshift_realsrx4_s4_v3.pth", "autoencoder_vq_f4.pth"),
    "bicsr-x4": ("resshift_bicsrx4_s4.pth", "autoencoder_vq_f4.pth"),
    "inpaint-imagenet": ("resshift_inpainting_imagenet_s4.pth", "autoencoder_vq_f4.pth"),
    "inpaint-face": ("resshift_inpainting_face_s4.pth", "celeba256_vq_f4_dim3_face.pth"),
    "faceir": ("resshift_faceir_s4.pth", "ffhq512_vq_f8_dim8_face.pth"),
}
specs = pytest.mark.parametrize("spec", MODELS.values(), ids=MODELS)
UNETS = {name: spec for name, spec in MODELS.items() if isinstance(spec.denoiser, SwinUNetConfig)}
unets = pytest.mark.parametrize("spec", UNETS.values(), ids=UNETS)


def test_names():
    assert tuple(MODELS) == NAMES and NAMES[0] == catalog.DEFAULT_MODEL
    assert all(get(name) is MODELS[name] and MODELS[name].name == name for name in NAMES)


@pytest.mark.parametrize(
    "name, nearest",
    [
        ("nano", "nano-x4"),
        ("NANO-X4", "nano-x4"),
        ("realsr-x4-v4", "realsr-x4-v3"),
        ("realsr", "realsr-x4-v3"),
        ("RealSR ", "realsr-x4-v3"),
        ("v3", "realsr-x4-v3"),
        ("bicubic", "bicsr-x4"),
        ("inpaint", "inpaint-imagenet"),
        ("inpaint-faces", "inpaint-face"),
        ("face", "faceir"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(name, nearest):
    with pytest.raises(ValueError, match="unknown model") as failure:
        get(name)
    message = str(failure.value)
    assert message.startswith(f"unknown model {name!r}; ") and "\n" not in message
    hint = message.split("did you mean ")[1].split("?")[0]
    assert hint == repr(nearest)
    assert all(known in message for known in NAMES)


@pytest.mark.parametrize("name", ["realsr_x2", "x2", "realsr-x2 "])
def test_a_model_without_weights_is_not_proposed(name):
    with pytest.raises(ValueError, match="unknown model") as failure:
        get(name)
    assert "did you mean 'realsr-x2'" not in str(failure.value)
    assert "restore --scale 2 enlarges twice; models: " in str(failure.value)


@pytest.mark.parametrize("name", ["", "zzzzzz", 4], ids=repr)
def test_a_name_similar_to_none_is_refused_with_all_names(name):
    with pytest.raises(ValueError, match=r"unknown model .*; models: photo-x4, nano-x4, photo-x1, photo-inpaint"):
        get(name)


@specs
def test_parts_are_consistent(spec):
    denoiser, stage = spec.denoiser, spec.first_stage
    assert denoiser.in_channels == denoiser.out_channels == stage.latent_channels
    assert spec.latent_per_input * stage.factor == spec.scale
    # The low-quality image has the input's size, unless another one is given, and the latent has the denoiser's.
    ratio = spec.latent_per_input if spec.condition == "image" else 1
    assert denoiser.cond_lq
    if isinstance(denoiser, SwinUNetConfig):
        assert len(denoiser.num_res_blocks) == len(denoiser.channel_mult)
        assert denoiser.lq_size * ratio == denoiser.image_size
    else:
        assert stage.factor == (4 if isinstance(denoiser, RRDBConfig) else 2) and spec.schedule.num_steps == 1
    assert denoiser.cond_mask == spec.needs_mask and (spec.needs_mask or not spec.filled)
    assert spec.prediction_type in PREDICTION_TYPES
    assert spec.summary and "\n" not in spec.summary and spec.licence


@specs
def test_padded_sizes_divide_into_windows(spec):
    denoiser = spec.denoiser
    window = 1
    if isinstance(denoiser, SwinUNetConfig):
        window = min(denoiser.window_size, denoiser.image_size // denoiser.downsampling)
    latent = spec.pad_multiple * spec.latent_per_input
    assert latent == int(latent) and latent % (window * denoiser.downsampling) == 0
    assert spec.tile % spec.pad_multiple == 0
    assert 0 <= spec.overlap < spec.tile


@unets
def test_widths_divide_into_groups_and_heads(spec):
    denoiser = spec.denoiser
    widths = [mult * denoiser.model_channels for mult in denoiser.channel_mult]
    assert all(width == int(width) and width % 32 == 0 for width in [*widths, denoiser.swin_embed_dim])
    assert denoiser.swin_embed_dim % denoiser.num_head_channels == 0
    assert math.log2(denoiser.lq_size // denoiser.image_size).is_integer()


@specs
def test_builds_its_parts(spec):
    with torch.device("meta"):
        denoiser, stage = catalog.build_denoiser(spec), catalog.build_first_stage(spec)
    assert denoiser.config == spec.denoiser and stage.config == spec.first_stage
    for network in (denoiser, stage):
        assert catalog.parameters(network.config) == sum(parameter.numel() for parameter in network.parameters())
    assert isinstance(stage, SpaceToDepth if spec.name in OWN else VQAutoencoder)
    # Only a latent that consists of image values may be clamped to their range.
    assert spec.clamp_x0 == isinstance(stage, SpaceToDepth)


@pytest.mark.parametrize("name", NAMES)
def test_weight_files(name):
    spec = get(name)
    files = [file for file in (spec.weights, spec.autoencoder_weights) if file is not None]
    if name in RELEASED:
        assert tuple(file.filename for file in files) == RELEASED[name]
    for file in files:
        assert file.licence
        if file.url is not None:
            assert file.url == catalog.RELEASE + file.filename and "non-commercial" in file.licence


def test_realsr_x2_has_no_published_weights():
    assert get("realsr-x2").weights is None and get("realsr-x2").licence == "no weights published"


@pytest.mark.parametrize(
    "name, steps, first", [("realsr-x4-v1", 15, 0.02), ("realsr-x4-v3", 4, 0.1), ("faceir", 4, 0.1)]
)
def test_official_schedules(name, steps, first):
    schedule = get(name).schedule
    assert (schedule.steps, schedule.kappa, schedule.power, schedule.etas_end) == (steps, 2.0, 0.3, 0.99)
    assert schedule.sqrt_etas_all[0] == pytest.approx(first)


@pytest.mark.parametrize("name, steps", [("nano-x4", 4), ("photo-x1", 1), ("photo-inpaint", 1)])
def test_the_embedded_models_are_small(name, steps):
    spec = get(name)
    assert 100_000 < catalog.parameters(spec.denoiser) <= 6_000_000
    assert spec.weights.url is None and spec.autoencoder_weights is None and f"weights/{name}.md" in spec.licence
    assert spec.schedule.num_steps == steps


@pytest.mark.parametrize("spec", [spec for spec in MODELS.values() if not spec.schedule.one_step], ids=lambda s: s.name)
def test_students(spec):
    student = get(f"{spec.name}-1step")
    assert student == catalog.one_step(spec) and student.name == f"{spec.name}-1step"
    assert student.schedule.timesteps.tolist() == [spec.schedule.steps - 1]
    assert student.denoiser.lq_channels == spec.denoiser.lq_channels + 1
    assert student.weights is None and student.autoencoder_weights == spec.autoencoder_weights
    with pytest.raises(ValueError, match="unknown model 'nano-x8-1step'; did you mean"):
        get("nano-x8-1step")


def test_entries_are_immutable():
    with pytest.raises(dataclasses.FrozenInstanceError):
        get("nano-x4").scale = 2
