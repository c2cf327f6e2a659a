"""The official objective against its formula, written out in float64."""

import contextlib
import copy
from types import SimpleNamespace

import pytest
import torch
from lpips_formula import formula as lpips_formula
from lpips_formula import random_weights

from resshift_fast import use_backend
from resshift_fast.diffusion.schedule import Schedule
from resshift_fast.models import catalog
from resshift_fast.models.autoencoder import AutoencoderConfig, SpaceToDepth, SpaceToDepthConfig, VQAutoencoder
from resshift_fast.models.swin_unet import SwinUNet, SwinUNetConfig
from resshift_fast.training import choices
from resshift_fast.training.interfaces import Batch, Draws, Parts
from resshift_fast.training.lpips import LPIPS
from resshift_fast.training.objective import LPIPS_WEIGHTS, Official, target

SIZES = dict(
    image_size=4,
    in_channels=3,
    out_channels=3,
    model_channels=32,
    num_res_blocks=(1,),
    attention_resolutions=(4,),
    channel_mult=(1,),
    swin_embed_dim=32,
    swin_depth=1,
    mlp_ratio=1.0,
    lq_size=4,
)


def randomize(module, seed=0):
    """Weights that are nowhere zero, of a size that keeps activations near 1."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        fan_in = parameter[0].numel() if parameter.dim() > 1 else 4
        parameter.data.normal_(std=fan_in**-0.5, generator=generator)
    return module


@pytest.fixture(scope="module")
def networks():
    autoencoder = AutoencoderConfig(channels=32, channel_mult=(1, 1, 1), num_res_blocks=(1, 1, 1), codebook_size=32)
    perceptual, weights = LPIPS(), random_weights()
    perceptual.load(*weights)
    return randomize(SwinUNet(SwinUNetConfig(**SIZES))), randomize(VQAutoencoder(autoencoder), 1), perceptual, weights


def spec(prediction_type="x0", scale=4, steps=4):
    return SimpleNamespace(schedule=Schedule(steps=steps), prediction_type=prediction_type, scale=scale)


def parts(model, first_stage, predict):
    rest = (contextlib.nullcontext, torch.device("cpu"), None)
    return Parts(model, first_stage, model.schedule.table(), predict, *rest)


def predictor(denoiser, schedule):
    def predict(x_t, t, lq, mask):
        scale = torch.as_tensor(schedule.coefficients[:, 6]).to(x_t)[t][:, None, None, None]
        return denoiser(x_t * scale, t, lq, mask)

    return predict


def expected_loss(denoiser, first_stage, weights, schedule, batch, t, noise, kind, c, quantize):
    """Section 3.3 of arXiv 2403.07319 with its q(x_t | x_0, y), for one picture after the other."""
    high, lq = batch
    total = 0
    for i in range(len(high)):
        image, small, step = high[i : i + 1], lq[i : i + 1], int(t[i])
        x0 = first_stage.encode(image)
        y = first_stage.encode(torch.nn.functional.interpolate(small, scale_factor=4, mode="bicubic"))
        eta, kappa = schedule.sqrt_etas_all[step] ** 2, schedule.kappa
        x_t = (1 - eta) * x0 + eta * y + kappa * eta**0.5 * noise[i : i + 1]
        out = denoiser(x_t / (kappa**2 * eta + 1) ** 0.5, t[i : i + 1], small)
        wanted = {"x0": x0, "residual": y - x0, "epsilon": noise[i : i + 1]}[kind]
        total = total + ((out - wanted) ** 2).mean()
        if c:
            x0_hat = {"x0": out, "residual": y - out}.get(kind)
            if x0_hat is None:
                x0_hat = (x_t - eta * y - kappa * eta**0.5 * out) / (1 - eta)
            if quantize:
                codes = first_stage.quantize.embedding.weight
                nearest = torch.cdist(x0_hat[0].flatten(1).T, codes).argmin(1)
                x0_hat = x0_hat + (codes[nearest].T.reshape(x0_hat.shape) - x0_hat).detach()
            total = total + c * lpips_formula(first_stage.decode(x0_hat, quantize=False), image, *weights)[0]
    return total / len(high)


@pytest.mark.parametrize("kind, c, quantize", [("x0", 0, False), ("x0", 1, False), ("epsilon", 10, True)])
def test_loss_and_gradients_are_those_of_the_formula(kind, c, quantize, networks):
    denoiser, first_stage, perceptual, weights = networks
    model = spec(kind)
    generator = torch.Generator().manual_seed(4)  # without an activation whose sign is rounding
    high = torch.rand(2, 3, 16, 16, generator=generator) * 2 - 1
    lq = torch.rand(2, 3, 4, 4, generator=generator) * 2 - 1
    # The last step for one of them: x_T is q(x_T | x_0), which still depends on x_0. There x̂_0 from ε divides by 0.02.
    t, noise = torch.tensor([2 if kind == "epsilon" else 3, 1]), torch.randn(2, 3, 4, 4, generator=generator)
    predict = predictor(denoiser, model.schedule)
    objective = Official(parts(model, first_stage, predict), lpips=c, perceptual=perceptual, quantize=quantize)
    with torch.no_grad():
        x0 = first_stage.encode(high)
        y = first_stage.encode(torch.nn.functional.interpolate(lq, scale_factor=4, mode="bicubic"))
    denoiser.zero_grad()
    loss = objective.by_sample(Batch(high, lq), x0, y, t, noise).mean()
    loss.backward()

    exact, stage = copy.deepcopy(denoiser).double(), copy.deepcopy(first_stage).double()
    exact.zero_grad()
    with use_backend("reference"):
        batch = high.double(), lq.double()
        wanted = expected_loss(exact, stage, weights, model.schedule, batch, t, noise.double(), kind, c, quantize)
        wanted.backward()
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)
    whole = torch.cat([theirs.grad.flatten() for theirs in exact.parameters()]).norm()
    for (name, ours), theirs in zip(denoiser.named_parameters(), exact.parameters(), strict=True):
        # A norm cancels the bias before it, whose gradient is then only rounding.
        error = (ours.grad - theirs.grad).norm() / (theirs.grad.norm() + 1e-3 * whole)
        assert error < 1e-4, f"{name}: {error:.2e}"
    assert all(parameter.grad is None for parameter in first_stage.parameters())


def test_steps_are_uniform_and_repeatable():
    model, seen = spec(steps=5), []
    stage = SpaceToDepth(SpaceToDepthConfig(factor=4))

    def predict(x_t, t, lq, mask):
        seen.append(x_t)
        return x_t

    objective = Official(parts(model, stage, predict))
    batch = Batch(torch.zeros(1500, 3, 4, 4), torch.zeros(1500, 3, 1, 1))
    first, again = (objective(batch, Draws(7, 3, range(1500))) for _ in range(2))
    assert torch.equal(first.by_sample, again.by_sample) and torch.equal(*seen)
    assert first.by_sample.shape == (1500,)
    counts = torch.bincount(first.t, minlength=5)
    # Five standard deviations of a binomial count.
    assert (counts - 300).abs().max() < 5 * (1500 * 0.2 * 0.8) ** 0.5


def test_the_mask_reaches_the_denoiser():
    model, seen = spec(scale=1), []
    mask = torch.ones(1, 1, 8, 8)

    def predict(x_t, t, lq, given):
        seen.append(given)
        return x_t

    objective = Official(parts(model, SpaceToDepth(SpaceToDepthConfig(factor=4)), predict))
    objective(Batch(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8), mask), Draws(0, 0, range(1)))
    assert seen == [mask]


def test_a_configuration_gives_the_weights(tmp_path):
    vgg, linear = random_weights()
    torch.save(vgg, tmp_path / "vgg.pth")
    torch.save(linear, tmp_path / "linear.pth")
    make = choices.chosen(choices.OBJECTIVES, "objective", "official")
    given = parts(spec(), SpaceToDepth(SpaceToDepthConfig(factor=4)), None)
    files = {"vgg": str(tmp_path / "vgg.pth"), "lpips_weights": str(tmp_path / "linear.pth")}
    made = make(SimpleNamespace(model="faceir", objective_options=files), given)
    assert (made.mse, made.lpips, made.quantize) == (1.0, 10.0, False)
    assert torch.equal(made.perceptual.features["0"].weight, vgg["features.0.weight"])
    assert make(SimpleNamespace(model="nano-x4", objective_options={"mse": 2.0}), given).perceptual is None
    with pytest.raises(ValueError, match="no setting lpip; it has lpips"):
        make(SimpleNamespace(model="faceir", objective_options={"lpip": 1.0}), given)


@pytest.mark.parametrize(
    "options, message",
    [(dict(mse=-1.0), "not both 0"), (dict(mse=0.0), "not both 0"), (dict(lpips=1.0), "no LPIPS module")],
)
def test_bad_weights_are_refused(options, message):
    model = spec()
    with pytest.raises(ValueError, match=message):
        Official(parts(model, SpaceToDepth(SpaceToDepthConfig()), None), **options)


def test_every_published_model_has_its_weight():
    trained = {name for name, spec in catalog.MODELS.items() if spec.autoencoder_weights and spec.condition == "image"}
    assert trained <= LPIPS_WEIGHTS.keys()


def test_targets():
    x0, y, noise = (torch.full((1, 1, 1, 1), value) for value in (1.0, 5.0, 3.0))
    row = Schedule().table()[torch.tensor([2])].T[..., None, None, None]
    found = [target(kind, x0, y, noise, row).item() for kind in ("x0", "residual", "epsilon", "epsilon_scaled")]
    assert found == pytest.approx([1.0, 4.0, 3.0, 3.0 * float(Schedule().coefficients[2, 2])])
