"""The reverse chain: the official run, an oracle denoiser, what is computed once, and tiles of one noise field."""

from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from comparison import assert_close, tied_pixels
from golden_data import array, arrays, fill_
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from resshift_fast import ops
from resshift_fast.diffusion.coefficients import PREDICTION_TYPES
from resshift_fast.diffusion.noise import noise_field
from resshift_fast.diffusion.schedule import Schedule
from resshift_fast.models.catalog import get
from resshift_fast.models.swin_unet import SwinUNet, SwinUNetConfig
from resshift_fast.restoration.sampler import LatentChain, sample_latents, torch_noise

SMALL = SwinUNetConfig(
    image_size=16,
    model_channels=32,
    num_res_blocks=(1, 1),
    attention_resolutions=(16, 8),
    channel_mult=(1, 1),
    swin_embed_dim=32,
    window_size=4,
    mlp_ratio=1,
    lq_size=32,
)
ZERO = torch.zeros(1, dtype=torch.int64)


@pytest.fixture(scope="module")
def small():
    """A denoiser of a few thousand parameters with a feature extractor; lq is twice the latent's size."""
    return fill_(SwinUNet(SMALL)).requires_grad_(False)


def small_inputs(batch):
    """y, lq and seeds for `small`."""
    y, lq = array("sampler.y", batch, 3, 16, 8), array("sampler.lq", batch, 3, 32, 16)
    return y, lq, torch.arange(batch) * 2**40 + 5


class Oracle(nn.Module):
    """A denoiser that predicts a known x_0 exactly, in any prediction type.

    Args:
        x0, y: [B, C, h, w].
        schedule: of the chain; its original step indices are the timesteps.
        prediction_type: what to predict.
    """

    def __init__(self, x0, y, schedule, prediction_type):
        super().__init__()
        self.dtype_carrier = nn.Parameter(torch.zeros(1, dtype=torch.float64), requires_grad=False)
        self.x0, self.y, self.schedule, self.prediction_type = x0.double(), y.double(), schedule, prediction_type
        self.steps_seen = []

    def modulation(self, timesteps):
        return (timesteps[:, None].double(),)

    def condition(self, lq, mask):
        return lq

    def denoise(self, x, modulation):
        (timesteps,) = modulation
        assert timesteps.shape == (x.shape[0], 1) and (timesteps == timesteps[0]).all()
        t = int(timesteps[0].item())
        self.steps_seen.append(t)
        eta, kappa = float(self.schedule.sqrt_etas_all[t] ** 2), self.schedule.kappa
        x_t = x[:, : self.x0.shape[1]] * (kappa**2 * eta + 1) ** 0.5
        noise_part = x_t - self.x0 - eta * (self.y - self.x0)
        return {
            "x0": self.x0,
            "residual": self.y - self.x0,
            "epsilon_scaled": noise_part,
            "epsilon": noise_part / (kappa * eta**0.5),
        }[self.prediction_type]


class Pointwise(nn.Module):
    """A denoiser that looks at single pixels only, so that a tile's chain is a crop of the whole one."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.full((1,), 0.7), requires_grad=False)

    def modulation(self, timesteps):
        return (1 / (1 + timesteps[:, None].float()),)

    def condition(self, lq, mask):
        return lq

    def denoise(self, x, modulation):
        (gain,) = modulation
        latent, lq = x.chunk(2, dim=1)
        return torch.tanh(self.weight * latent + gain[:, :, None, None] * lq)


@pytest.mark.slow
def test_official_chain(official):
    """Up to the last latent; test_pipeline.py compares the image."""
    expected = arrays("sample_realsr_seed12345.npz")
    spec = get("realsr-x4-v3")
    first_stage, denoiser = official.first_stage(spec.name), official.denoiser(spec.name)
    lq = array("sample.y", 1, 3, 64, 64).clamp(-1, 1)
    latents = []
    with torch.no_grad():
        y = first_stage.encode(F.interpolate(lq, scale_factor=4, mode="bicubic"))
        torch.manual_seed(12345)
        noise = torch_noise(y, spec.schedule.num_steps)
        x0 = sample_latents(
            denoiser, spec.schedule, y, lq, seed=ZERO, noise=noise, callback=lambda t, x: latents.append(x.clone())
        )
    assert len(latents) == len(expected["steps"]) == 4
    for number, (ours, reference) in enumerate(zip(latents, expected["steps"], strict=True), start=1):
        assert_close(f"latent after step {number}", ours, reference, 1e-4)
    assert torch.equal(x0, latents[-1])

    codebook, final = first_stage.quantize.embedding.weight, expected["steps"][-1]
    tied = tied_pixels(final, codebook)
    assert tied.sum() == 2
    ours, theirs = (ops.vector_quantize(latent, codebook)[1] for latent in (x0, final))
    assert torch.equal(ours[~tied], theirs[~tied])


def test_torch_noise_is_one_draw_for_the_prior_and_one_a_step():
    y = torch.zeros(2, 3, 4, 5)
    torch.manual_seed(7)
    drawn = torch_noise(y, 3)
    torch.manual_seed(7)
    for ours in drawn:
        assert torch.equal(ours, torch.randn(2, 3, 4, 5))
    assert len(drawn) == 4
    again = torch_noise(y, 3, torch.Generator().manual_seed(7))
    assert all(torch.equal(a, b) for a, b in zip(again, drawn, strict=True))


@pytest.mark.parametrize("noise", ["field", "torch"])
@pytest.mark.parametrize("respacing", [None, 3, 1])
@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_an_oracle_leads_to_x0(prediction_type, respacing, noise):
    schedule = Schedule(steps=7, kappa=1.5, power=0.5, respacing=respacing)
    x0, y, lq = (array(f"oracle.{name}", 2, 5, 6, 4) for name in ("x0", "y", "lq"))
    oracle = Oracle(x0, y, schedule, prediction_type)
    draws = torch_noise(y, schedule.num_steps) if noise == "torch" else None
    steps = []
    seed = torch.tensor([3, 4])
    ours = sample_latents(
        oracle,
        schedule,
        y,
        lq,
        seed=seed,
        noise=draws,
        prediction_type=prediction_type,
        callback=lambda t, x: steps.append(t),
    )
    assert ours.dtype == torch.float32
    assert_close("x0", ours, x0, 1e-5)
    # The denoiser receives the original indices, last first; the callback counts the executed steps down.
    assert oracle.steps_seen == schedule.timesteps.tolist()[::-1]
    assert steps == list(range(schedule.num_steps))[::-1]


def test_the_chain_follows_the_formulas():
    schedule = Schedule(steps=5, kappa=1.2, respacing=4)
    y, lq = array("formula.y", 2, 3, 4, 6), array("formula.lq", 2, 3, 4, 6)
    seed, origin = torch.tensor([8, 2**50]), torch.tensor([[0, 5], [100, 7]])
    denoiser = Pointwise()
    ours = sample_latents(denoiser, schedule, y, lq, seed=seed, origin=origin)

    def noise(step):
        return noise_field(seed, torch.tensor(step), 3, 4, 6, origin=origin).double()

    etas = [float(schedule.sqrt_etas_all[t] ** 2) for t in schedule.timesteps]
    x_t = y.double() + 1.2 * etas[-1] ** 0.5 * noise(0)
    for position, t in enumerate((3, 2, 1, 0), start=1):
        eta, before = etas[t], etas[t - 1] if t else 0.0
        gain = 1 / (1 + float(schedule.timesteps[t]))
        x0 = torch.tanh(denoiser.weight.double() * x_t / (1.2**2 * eta + 1) ** 0.5 + gain * lq.double())
        deviation = 1.2 * (before * (eta - before) / eta) ** 0.5
        x_t = before / eta * x_t + (eta - before) / eta * x0 + deviation * noise(position)
    assert_close("x0", ours, x_t, 1e-5)


class Whole(Pointwise):
    """The same denoiser, called with everything as `models.interfaces.Denoiser` says."""

    denoise = property()  # hides it

    def forward(self, x, timesteps, lq, mask):
        assert timesteps.shape == x.shape[:1] and timesteps.dtype == torch.int64 and mask is None
        return Pointwise.denoise(self, torch.cat([x, lq], dim=1), self.modulation(timesteps))


def test_a_denoiser_may_be_any_module():
    schedule, y, lq = Schedule(steps=5, respacing=3), array("whole.y", 2, 3, 4, 6), array("whole.lq", 2, 3, 4, 6)
    ours, expected = (sample_latents(kind(), schedule, y, lq, seed=torch.tensor([1, 2])) for kind in (Whole, Pointwise))
    assert_close("x0", ours, expected, 1e-6)


def test_clamping_keeps_x0_in_range():
    schedule = Schedule()
    x0, y = 3 * array("clamp.x0", 1, 3, 4, 4), array("clamp.y", 1, 3, 4, 4)
    ours = sample_latents(Oracle(x0, y, schedule, "residual"), schedule, y, None, seed=ZERO, prediction_type="residual")
    assert_close("free", ours, x0, 1e-5)
    ours = sample_latents(
        Oracle(x0, y, schedule, "residual"), schedule, y, None, seed=ZERO, prediction_type="residual", clamp_x0=True
    )
    assert_close("clamped", ours, x0.clamp(-1, 1), 1e-5)


def test_what_a_chain_needs_only_once_is_computed_once(small, monkeypatch):
    calls = Counter()

    def counted(name, function):
        def call(*args, **kwargs):
            calls[name] += 1
            return function(*args, **kwargs)

        return call

    for name in ("modulation", "condition", "denoise"):
        monkeypatch.setattr(small, name, counted(name, getattr(small, name)))
    parts = {"time_embed": small.time_embed, "feature_extractor": small.feature_extractor}
    parts |= {f"emb_layers {i}": block.emb_layers[1] for i, block in enumerate(small._res_blocks())}
    hooks = [part.register_forward_hook(lambda *_, name=name: calls.update([name])) for name, part in parts.items()]
    y, lq, seed = small_inputs(2)
    schedule = Schedule(steps=6)
    sample_latents(small, schedule, y, lq, seed=seed)
    for hook in hooks:
        hook.remove()
    assert calls.pop("denoise") == schedule.num_steps
    assert calls.keys() == {"modulation", "condition", *parts} and set(calls.values()) == {1}


def test_batch_and_order_change_nothing(small):
    y, lq, seed = small_inputs(3)
    schedule = Schedule()
    whole = sample_latents(small, schedule, y, lq, seed=seed)
    order = [2, 0, 1]
    assert_close("shuffled", sample_latents(small, schedule, y[order], lq[order], seed=seed[order]), whole[order], 1e-5)
    for i in range(3):
        alone = sample_latents(small, schedule, y[i : i + 1], lq[i : i + 1], seed=seed[i : i + 1])
        assert_close(f"image {i}", alone, whole[i : i + 1], 1e-5)


def test_the_seed_decides_the_sample(small):
    y, lq, seed = small_inputs(1)
    first, again, other = (sample_latents(small, Schedule(), y, lq, seed=s) for s in (seed, seed, seed + 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_the_noise_field_does_not_change_torch_s_generator(small):
    y, lq, seed = small_inputs(1)
    torch.manual_seed(3)
    expected = torch.randn(4)
    torch.manual_seed(3)
    sample_latents(small, Schedule(), y, lq, seed=seed)
    assert torch.equal(torch.randn(4), expected)


@settings(max_examples=20)
@given(st.integers(0, 9), st.integers(0, 7), st.integers(1, 6), st.integers(1, 5), st.integers(0, 2**63 - 1))
def test_a_tile_s_chain_is_a_crop_of_the_whole_one(top, left, height, width, seed):
    y, lq = array("tile.y", 1, 3, 15, 12), array("tile.lq", 1, 3, 15, 12)
    options = {"seed": torch.tensor([seed])}
    whole = sample_latents(Pointwise(), Schedule(), y, lq, **options)
    window = (..., slice(top, top + height), slice(left, left + width))
    origin = torch.tensor([[top, left]])
    tile = sample_latents(Pointwise(), Schedule(), y[window], lq[window], origin=origin, **options)
    torch.testing.assert_close(tile, whole[window], rtol=1e-5, atol=1e-6)


def test_tiles_of_a_batch_have_their_own_origins():
    y, lq = array("tile.y", 1, 3, 15, 12), array("tile.lq", 1, 3, 15, 12)
    whole = sample_latents(Pointwise(), Schedule(), y, lq, seed=ZERO)
    corners = [(0, 0), (7, 4), (3, 8)]
    tiles = [torch.cat([t[..., r : r + 8, c : c + 4] for r, c in corners]) for t in (y, lq)]
    ours = sample_latents(Pointwise(), Schedule(), *tiles, seed=ZERO.expand(3), origin=torch.tensor(corners))
    for tile, (r, c) in zip(ours, corners, strict=True):
        assert_close(f"tile at {r}, {c}", tile, whole[0, :, r : r + 8, c : c + 4], 1e-6)


@pytest.mark.parametrize("dtype, ratio", [(torch.bfloat16, 0.05), (torch.float16, 0.01)], ids=["bfloat16", "float16"])
def test_a_16_bit_denoiser_samples_float32_latents(small, dtype, ratio):
    y, lq, seed = small_inputs(2)
    expected = sample_latents(small, Schedule(), y, lq, seed=seed)
    half = fill_(SwinUNet(SMALL)).to(dtype)
    ours = sample_latents(half, Schedule(), y, lq, seed=seed)
    assert ours.dtype == torch.float32 and not ours.requires_grad
    assert_close("x0", ours, expected, ratio)


def test_denoisers_with_a_mask_and_without_lq():
    y, _, seed = small_inputs(2)
    mask = torch.sign(array("sampler.mask", 2, 1, 32, 16))
    lq = array("sampler.lq", 2, 3, 32, 16)
    filling = fill_(SwinUNet(SwinUNetConfig(**(vars(SMALL) | {"cond_mask": True}))))
    filled = sample_latents(filling, Schedule(), y, lq, mask=mask, seed=seed)
    assert not torch.equal(filled, sample_latents(filling, Schedule(), y, lq, mask=-mask, seed=seed))
    blind = fill_(SwinUNet(SwinUNetConfig(**(vars(SMALL) | {"cond_lq": False}))))
    assert sample_latents(blind, Schedule(), y, None, seed=seed).isfinite().all()
    with pytest.raises(ValueError, match="mask must be given"):
        sample_latents(filling, Schedule(), y, lq, seed=seed)


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"seed": torch.tensor([1])}, ValueError, r"prior_sample: seed has shape \(1,\), expected \(2,\)"),
        ({"seed": 3}, TypeError, "seed must be an int64 tensor, got int"),
        ({"origin": torch.zeros(2, dtype=torch.int64)}, ValueError, r"origin has shape \(2,\), expected \(2, 2\)"),
        ({"prediction_type": "v"}, ValueError, "prediction_type is 'v', expected one of x0, epsilon"),
        ({"noise": [torch.zeros(2, 3, 16, 9)] * 5}, ValueError, r"noise has shape \(2, 3, 16, 9\)"),
        ({"noise": [torch.zeros(2, 3, 16, 8)] * 4}, ValueError, "noise has 4 tensors, expected 5"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_arguments_are_refused(small, change, error, message):
    y, lq, seed = small_inputs(2)
    with pytest.raises(error, match=message):
        sample_latents(small, Schedule(), y, lq, **({"seed": seed} | change))


def test_respaced_chains_start_at_the_last_kept_step(small, monkeypatch):
    y, lq, seed = small_inputs(1)
    schedule = Schedule(steps=15, respacing=4)
    seen = []
    original = small.denoise
    monkeypatch.setattr(small, "denoise", lambda x, rows: seen.append(x[:, :3].clone()) or original(x, rows))
    sample_latents(small, schedule, y, lq, seed=seed)
    eta = float(schedule.sqrt_etas_all[11] ** 2)
    prior = y + 2 * eta**0.5 * noise_field(seed, torch.tensor(0), 3, 16, 8)
    assert_close("first input", seen[0], prior / np.sqrt(4 * eta + 1), 1e-6)
    assert len(seen) == 4


class Products(TorchDispatchMode):
    """Counts matrix products with at most as many rows as the chain has steps: those of the timestep's embedding."""

    def __init__(self, steps):
        super().__init__()
        self.steps, self.count = steps, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        x = args[1] if function is torch.ops.aten.addmm.default else None
        self.count += x is not None and x.shape[0] <= self.steps
        return function(*args, **(kwargs or {}))


@torch.no_grad()
@pytest.mark.parametrize("batch", [1, 3])
def test_prepared_modulations_change_no_bit(small, batch):
    chain, arguments = LatentChain(small, Schedule(steps=3)), small_inputs(batch)
    with Products(3) as products:
        expected = chain(*arguments)
    assert products.count == 2 + len(small.modulation_layers())
    chain.prepare()
    with Products(3) as products:
        assert chain(*arguments).equal(expected)
    assert products.count == 0


@torch.no_grad()
@pytest.mark.parametrize("name", ["time_embed.2.bias", "middle_block.0.emb_layers.1.weight"])
def test_a_prepared_chain_follows_its_weights(name):
    denoiser, arguments = fill_(SwinUNet(SMALL)).requires_grad_(False), small_inputs(1)
    chain = LatentChain(denoiser, Schedule(steps=2))
    chain.prepare()
    before = chain(*arguments)
    denoiser.get_parameter(name).add_(0.5)
    expected = LatentChain(denoiser, Schedule(steps=2))(*arguments)
    assert not expected.equal(before) and chain(*arguments).equal(expected)
    chain.prepare()
    assert chain(*arguments).equal(expected)
    denoiser.to(torch.bfloat16)
    rounded = chain(*arguments)
    chain.prepare()
    assert chain(*arguments).equal(rounded) and chain.modulations.value.dtype == torch.bfloat16


def test_a_prepared_chain_has_gradients(small):
    denoiser = fill_(SwinUNet(SMALL))
    chain = LatentChain(denoiser, Schedule(steps=2))
    chain.prepare()
    chain(*small_inputs(1)).sum().backward()
    assert denoiser.time_embed[0].weight.grad.abs().max() > 0


def test_another_denoiser_needs_no_preparation():
    LatentChain(Pointwise(), Schedule(steps=2)).prepare()
