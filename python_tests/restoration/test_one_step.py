"""Chains of one step with a channel of noise: the official results, the formula, seeds, tiles and draws of torch."""

from dataclasses import replace

import pytest
import torch
from comparison import assert_close
from golden_data import array, arrays, fill_

from resshift_fast.diffusion.noise import noise_field
from resshift_fast.diffusion.schedule import Schedule
from resshift_fast.models import catalog
from resshift_fast.models.swin_unet import SwinUNet, SwinUNetConfig
from resshift_fast.ops import prior_sample
from resshift_fast.restoration.sampler import sample_latents, torch_noise

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
