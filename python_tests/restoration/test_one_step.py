"""Chains of one step with a channel of noise: the official results, the formula, seeds, tiles and draws of torch."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from comparison import assert_close
from golden_data import array, arrays, fill_

from resshift_fast.diffusion.noise import noise_field
from resshift_fast.diffusion.schedule import Schedule
from resshift_fast.models import catalog
from resshift_fast.models.loading import build, trained_as
from resshift_fast.models.sizes import AutoencoderConfig
from resshift_fast.models.swin_unet import SwinUNet, SwinUNetConfig
from resshift_fast.ops import prior_sample
from resshift_fast.restoration.model import Restoration
from resshift_fast.restoration.sampler import sample_latents, torch_noise
from resshift_fast.training.config import TrainConfig
from resshift_fast.training.trainer import Trainer
from resshift_fast.weights.checkpoints import read_state_dict, save_safetensors

CONFIG = SwinUNetConfig(
    image_size=16,
    model_channels=32,
    num_res_blocks=(1,),
    attention_resolutions=(),
    channel_mult=(1,),
    swin_embed_dim=32,
    swin_depth=1,
    window_size=4,
    mlp_ratio=1,
    lq_size=16,
    noise_channels=1,
)
SCHEDULE = Schedule(steps=7, kappa=1.3, one_step=True)
SEED = torch.tensor([4, 2**45])


@pytest.fixture(scope="module")
def student():
    """A denoiser of a few thousand parameters with a channel of noise."""
    return fill_(SwinUNet(CONFIG)).eval().requires_grad_(False)


def inputs():
    return array("one_step.y", 2, 3, 16, 8) - 2.3, array("one_step.lq", 2, 3, 16, 8)


def test_the_official_prior():
    y, noise = 0.5 * array("sinsr.y", 1, 3, 64, 64), array("sinsr.noise", 1, 3, 64, 64)
    row = catalog.get("realsr-x4-v1-1step").schedule.table()[-1]
    ours, _ = prior_sample(y, row, noise=noise)
    assert_close("x_T", ours, arrays("one_step.npz")["sinsr.xT"], 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rsd", "sinsr"])
def test_official_students(name):
    spec = catalog.get("realsr-x4-v1-1step")
    if name == "sinsr":
        spec = replace(spec, denoiser=replace(spec.denoiser, noise_channels=0))
    y, lq = 0.5 * array(f"{name}.y", 1, 3, 64, 64), array(f"{name}.lq", 1, 3, 64, 64).clamp(-1, 1)
    prior = array(f"{name}.noise", 1, 3, 64, 64)
    noise = [prior, array("rsd.eps", 1, 1, 64, 64) if name == "rsd" else torch.zeros_like(prior)]
    denoiser = fill_(catalog.build_denoiser(spec)).eval()
    ours = sample_latents(denoiser, spec.schedule, y, lq, seed=SEED[:1], noise=noise)
    assert_close("x0", ours, arrays("one_step.npz")[f"{name}.x0"], 1e-5)


def test_the_result_is_the_prediction_from_y_plus_noise(student):
    y, lq = inputs()
    origin = torch.tensor([[3, 0], [0, 9]])
    ours = sample_latents(student, SCHEDULE, y, lq, seed=SEED, origin=origin)
    # Prior: the noise field's step 0; channel: its step 1.
    prior, channel = (noise_field(SEED, torch.tensor(i), c, 16, 8, origin=origin) for i, c in enumerate((3, 1)))
    eta = 0.99**2
    x_t = y.double() + 1.3 * eta**0.5 * prior.double()
    scaled = x_t / (1.3**2 * eta + 1) ** 0.5
    denoiser = fill_(SwinUNet(CONFIG)).eval().double()
    expected = denoiser(scaled, torch.tensor([6, 6]), lq.double(), None, channel.double())
    assert_close("x0", ours, expected, 1e-5)
    others = {
        "seed": sample_latents(student, SCHEDULE, y, lq, seed=SEED + 1, origin=origin),
        "channel": sample_latents(student, SCHEDULE, y, lq, seed=SEED, noise=[prior, -channel]),
    }
    assert_close("given noise", sample_latents(student, SCHEDULE, y, lq, seed=SEED, noise=[prior, channel]), ours, 1e-5)
    for name, other in others.items():
        assert not torch.allclose(other, ours, atol=1e-3), name


def test_a_tile_has_the_noise_of_its_place(student):
    noises = []
    condition = student.condition
    try:
        student.condition = lambda lq, mask, noise: noises.append(noise) or condition(lq, mask, noise)
        y, lq = inputs()
        sample_latents(student, SCHEDULE, y, lq, seed=SEED)
        sample_latents(student, SCHEDULE, y[..., 4:], lq[..., 4:], seed=SEED, origin=torch.tensor([[0, 4], [0, 4]]))
    finally:
        del student.condition
    whole, tile = noises
    assert torch.equal(tile, whole[..., 4:]) and whole.std() > 0.5
    assert not torch.equal(whole[0], whole[1])


def test_torch_draws_the_channel_before_the_prior():
    y = torch.zeros(2, 3, 4, 5)
    torch.manual_seed(7)
    prior, channel = torch_noise(y, 1, noise_channels=1)
    torch.manual_seed(7)
    assert torch.equal(channel, torch.randn(2, 1, 4, 5)) and torch.equal(prior, torch.randn(2, 3, 4, 5))


def test_several_steps_with_a_channel_of_noise_are_refused(student):
    y, lq = inputs()
    with pytest.raises(ValueError, match="needs a schedule of one step, got 7 steps; set Schedule's one_step"):
        sample_latents(student, replace(SCHEDULE, one_step=False), y, lq, seed=SEED)


# ---- Distilled-ResShift


def test_a_unit_prior_is_y_plus_kappa_times_the_noise():
    schedule = replace(SCHEDULE, unit_prior=True)
    y, noise = inputs()[0], array("one_step.prior", 2, 3, 16, 8)
    x_t, scaled = prior_sample(y, schedule.table()[-1], noise=noise)
    assert_close("x_T", x_t, y.double() + 1.3 * noise.double(), 1e-6)
    assert_close("input", scaled, (y.double() + 1.3 * noise.double()) / (1.3**2 * 0.99**2 + 1) ** 0.5, 1e-6)
    with pytest.raises(ValueError, match="unit_prior needs one_step"):
        Schedule(unit_prior=True)


def test_torch_draws_the_prior_first_where_the_model_says_so():
    y = torch.zeros(2, 3, 4, 5)
    torch.manual_seed(7)
    prior, channel = torch_noise(y, 1, noise_channels=1, prior_first=True)
    torch.manual_seed(7)
    assert torch.equal(prior, torch.randn(2, 3, 4, 5)) and torch.equal(channel, torch.randn(2, 1, 4, 5))


@pytest.mark.parametrize(
    "condition, scale", [("latent", 4), ("latent", 2), ("enlarged", 4), ("enlarged", 2), ("image", 4)]
)
def test_a_distilled_model_is_its_formula(condition, scale):
    """In float64: prior, condition, one prediction, and the decoder without quantization."""
    config = replace(CONFIG, image_size=8, lq_size=8)
    sizes = AutoencoderConfig(channels=32, channel_mult=(1, 1, 1), num_res_blocks=(1, 1, 1), codebook_size=16)
    spec = replace(catalog.get(f"distilled-x{scale}"), denoiser=config, first_stage=sizes, condition=condition)
    model = Restoration(spec, fill_(catalog.build_denoiser(spec)), fill_(catalog.build_first_stage(spec))).eval()
    side = 32 // scale
    wide = array("distilled.image", 1, 3, side + 2 * model.margin, side + 2 * model.margin).clamp(-1, 1)
    prior, channel = array("distilled.prior", 1, 3, 8, 8), array("distilled.channel", 1, 1, 8, 8)
    with torch.no_grad():
        ours, finite = model(wide, SEED[:1], noise=[prior, channel])
        exact, stage = model.chain.denoiser.double(), model.first_stage.double()
        border = model.margin * scale
        enlarged = F.interpolate(wide.double(), scale_factor=scale, mode="bicubic")[..., border:-border, border:-border]
        y = stage.encode(enlarged)
        given = {
            "image": wide.double()[..., model.margin : -model.margin, model.margin : -model.margin],
            "latent": y,
            "enlarged": F.interpolate(enlarged, size=(8, 8), mode="bicubic").clamp(-1, 1),
        }
        schedule = catalog.get("realsr-x4-v1").schedule
        scaled = (y + 2 * prior.double()) / (4 * schedule.etas[-1] + 1) ** 0.5
        x0 = exact(scaled, torch.tensor([14]), given[condition], None, channel.double())
        expected = stage.decode(x0, quantize=False)
    assert finite
    assert_close("pixels", ours, expected, 1e-4)


def weights_of(spec, path, **metadata):
    save_safetensors(fill_(SwinUNet(spec.denoiser)), path, metadata)
    return path


@pytest.fixture
def tiny_distilled(monkeypatch):
    """Small networks under the names of both, and of the model that is trained from y plus noise of another size."""
    sizes = AutoencoderConfig(channels=32, channel_mult=(1, 1, 1), num_res_blocks=(1, 1, 1), codebook_size=16)
    for name in ("distilled-x4", "distilled-x2", "realsr-x4-v1"):
        spec = catalog.get(name)
        channels = spec.denoiser.noise_channels
        small = replace(spec, denoiser=replace(CONFIG, noise_channels=channels), first_stage=sizes)
        monkeypatch.setitem(catalog.MODELS, name, small)
    return catalog.MODELS["distilled-x4"]


def test_metadata_tell_the_condition(tiny_distilled, tmp_path, monkeypatch):
    path = tmp_path / "autoencoder.safetensors"
    save_safetensors(fill_(catalog.build_first_stage(tiny_distilled)), path, {})
    for metadata, condition in (
        ({"noise_mode": "concat", "noise_channels": "1", "cond_lq": "pixel"}, "enlarged"),
        ({"noise_mode": "concat", "cond_lq": "latent"}, "latent"),
        ({"noise_mode": "concat"}, "latent"),
        ({}, "latent"),
    ):
        weights = weights_of(tiny_distilled, tmp_path / "student.safetensors", **metadata)
        spec, denoiser, _ = build(tiny_distilled, weights=weights, autoencoder=path)
        assert spec == replace(tiny_distilled, condition=condition) and denoiser.noise_channels == 1
        if metadata:
            assert build(catalog.get("realsr-x4-v1"), weights=weights, autoencoder=path)[0] == spec


@pytest.mark.parametrize(
    "name, metadata, message",
    [
        ("distilled-x4", {"noise_mode": "add"}, "noise_mode 'add', and only 'concat' is supported"),
        ("distilled-x4", {"noise_mode": "concat", "cond_lq": "text"}, "cond_lq 'text', expected one of latent, pixel"),
        ("faceir", {"noise_mode": "concat"}, "Distilled-ResShift model, and faceir is none; name one of distilled-x4"),
    ],
)
def test_other_kinds_of_distilled_weights_are_named(tiny_distilled, tmp_path, name, metadata, message):
    weights = weights_of(tiny_distilled, tmp_path / "student.safetensors", **metadata)
    state = read_state_dict(weights)
    with pytest.raises(ValueError, match=message):
        trained_as(catalog.get(name), state, metadata)


def test_a_distilled_model_has_no_student_of_its_own_and_is_not_trained():
    with pytest.raises(ValueError, match="unknown model 'distilled-x4-1step'"):
        catalog.get("distilled-x4-1step")
    with pytest.raises(ValueError, match="distilled-x2 is not trained here: it is given the latent"):
        Trainer(TrainConfig(data="photos", run="run", model="distilled-x2"), denoiser=object(), first_stage=object())
