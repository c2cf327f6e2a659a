"""The objective of autoencoders against its formula, written out in float64."""

import contextlib
import copy
import math
from dataclasses import replace

import pytest
import torch
import vqgan_formula

from resshift_fast import use_backend
from resshift_fast.models.autoencoder import AutoencoderConfig, VQAutoencoder
from resshift_fast.training import choices
from resshift_fast.training.config import TrainConfig
from resshift_fast.training.interfaces import Auxiliary, Batch, Draws, Reporting
from resshift_fast.training.lpips import LPIPS
from resshift_fast.training.vqgan import VQGAN, AutoencoderParts, Options, adaptive_weight, codebook_usage

SIZES = AutoencoderConfig(channels=32, channel_mult=(1, 1), num_res_blocks=(1, 1), latent_channels=4, codebook_size=20)
CONFIG = TrainConfig(data="", run="", patch=24)
START = 5


@pytest.fixture(scope="module")
def autoencoder():
    torch.manual_seed(0)
    return VQAutoencoder(SIZES)


class Distance(torch.nn.Module):
    """In place of LPIPS, which has a test of its own."""

    def forward(self, a, b):
        return (a - b).flatten(1).pow(4).sum(1).sqrt()


def parts(autoencoder, autocast=contextlib.nullcontext, **others):
    def reconstruct(image):
        with autocast():
            return autoencoder(image)

    return AutoencoderParts(autoencoder, reconstruct, torch.device("cpu"), autocast, **others)


def objective(autoencoder, perceptual=None, config=CONFIG, **options):
    torch.manual_seed(2)
    values = {"lpips": 0.0, "disc_start": START, "disc_channels": 16} | options
    return VQGAN(parts(autoencoder), Options(**values), config, perceptual)


def images(seed=4, size=(2, 3, 24, 32)):
    """Bright images, whose mean is far from 0."""
    return torch.rand(size, generator=torch.Generator().manual_seed(seed)) * 0.6 + 0.3


def exact(module):
    return {name: value.detach().double().requires_grad_() for name, value in module.state_dict().items()}


@pytest.mark.parametrize(
    ("step", "lpips", "weight"), [(START - 1, 0.0, 1.0), (START, 0.0, 0.8), (START, 2.0, 1.0)], ids=str
)
def test_loss_and_gradients_are_those_of_the_formula(autoencoder, step, lpips, weight):
    ours = objective(autoencoder, Distance(), lpips=lpips, disc_weight=weight, beta=0.3)
    ours.networks.requires_grad_(False)
    image = images()
    autoencoder.zero_grad()
    loss = ours(Batch(image, image), Draws(0, step, range(2))).by_sample.mean()
    loss.backward()

    reference = copy.deepcopy(autoencoder).double()
    reference.zero_grad()
    options = {"lpips": lpips, "beta": 0.3, "distance": Distance(), "adversarial": weight if step >= START else 0}
    with use_backend("reference"):
        wanted, found = vqgan_formula.losses(reference, exact(ours.networks), image.double(), **options)
        wanted.backward()
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)
    report = ours.report(lambda tensor: tensor)
    assert report.get("lambda") == (None if found is None else pytest.approx(found.item(), rel=1e-4))
    whole = torch.cat([theirs.grad.flatten() for theirs in reference.parameters()]).norm()
    for (name, mine), theirs in zip(autoencoder.named_parameters(), reference.parameters(), strict=True):
        # A norm cancels the bias before it, whose gradient is then only rounding.
        error = (mine.grad - theirs.grad).norm() / (theirs.grad.norm() + 1e-3 * whole)
        assert error < 1e-4, f"{name}: {error:.2e}"
    assert all(parameter.grad is None for parameter in ours.networks.parameters())


@pytest.mark.parametrize("norm", ["group", "batch"])
@pytest.mark.parametrize("kind", ["hinge", "vanilla"])
def test_the_discriminators_loss_and_gradients_are_those_of_the_formula(autoencoder, kind, norm):
    image = images()
    ours = objective(autoencoder, disc_loss=kind, disc_norm=norm)
    for parameter in ours.networks.parameters():  # values on both sides of the hinge's corners
        parameter.data *= 3
    autoencoder.zero_grad()
    loss = ours.auxiliary_loss(Batch(image, image), Draws(0, START, range(2)))
    assert loss.shape == (2,)
    loss.mean().backward()
    assert all(parameter.grad is None for parameter in autoencoder.parameters())
    state = exact(ours.networks)
    with torch.no_grad():
        fake = vqgan_formula.reconstruct(copy.deepcopy(autoencoder).double(), image.double())[0]
    wanted = _discriminator_loss(state, image.double(), fake, kind, norm)
    wanted.backward()
    assert loss.mean().item() == pytest.approx(wanted.item(), rel=1e-5)
    for name, parameter in ours.networks.named_parameters():
        error = (parameter.grad - state[name].grad).norm() / state[name].grad.norm()
        assert error < 1e-4, f"{name}: {error:.2e}"


def _discriminator_loss(state, real, fake, kind, norm):
    a, b = (vqgan_formula.discriminate(state, x, norm=norm) for x in (real, fake))
    assert a.shape == (2, 1, 1, 2)
    return vqgan_formula.discriminator_loss(a, b, kind)


def test_the_discriminator_has_the_papers_sizes(autoencoder):
    ours = objective(autoencoder, disc_channels=64, disc_norm="batch")
    shapes = [tuple(value.shape) for value in ours.networks.parameters() if value.dim() == 4]
    widths = [(64, 3), (128, 64), (256, 128), (512, 256), (1, 512)]
    assert shapes == [(*width, 4, 4) for width in widths]
    # The patch of one value: 70 pixels (appendix 6.1.2 of arXiv 1611.07004).
    image = torch.zeros(1, 3, 128, 128, requires_grad=True)
    plain = [module for module in ours.networks.body if not isinstance(module, torch.nn.BatchNorm2d)]
    torch.nn.Sequential(*plain)(image)[0, 0, 7, 7].backward()
    rows = image.grad.abs().sum((0, 1, 3)).nonzero().flatten()
    assert int(rows[-1] - rows[0]) + 1 == 70


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_precision_keeps_the_loss_close_and_in_float32(dtype):
    image = images()
    torch.manual_seed(1)
    autoencoder = VQAutoencoder(replace(SIZES, codebook_size=1))  # the same entry in each precision

    def autocast():
        return torch.autocast("cpu", dtype=dtype)

    values = Options(lpips=0.0, disc_start=0, disc_channels=16)
    torch.manual_seed(2)
    half = VQGAN(
        parts(autoencoder, autocast, loss_scale=lambda: 65536.0 if dtype == torch.float16 else 1.0), values, CONFIG
    )
    whole = objective(autoencoder, disc_start=0)
    found = [one(Batch(image, image), Draws(0, 0, range(2))).by_sample for one in (half, whole)]
    assert found[0].dtype == torch.float32
    # λ is the quotient of two norms of 16-bit gradients.
    assert torch.allclose(*found, rtol=0.03, atol=0.01)
    weights = [one.report(lambda tensor: tensor)["lambda"] for one in (half, whole)]
    assert weights[0] == pytest.approx(weights[1], rel=0.2)


def test_the_codebook_learns_from_its_own_loss_alone(autoencoder):
    image = images()
    autoencoder.zero_grad()
    found = autoencoder(image)
    found.image.square().mean().backward(retain_graph=True)
    assert autoencoder.quantize.embedding.weight.grad is None
    assert autoencoder.encoder.conv_in.weight.grad.norm() > 0
    assert torch.equal(found.entries, autoencoder.quantize.embedding.weight[found.indices].permute(0, 3, 1, 2))


def test_the_report_counts_entries_and_starts_anew(autoencoder):
    ours = objective(autoencoder)
    assert isinstance(ours, Auxiliary) and isinstance(ours, Reporting)
    image = images()
    for _ in range(2):
        ours(Batch(image, image), Draws(0, 0, range(2)))
    with torch.no_grad():
        found = autoencoder(image)
    used = torch.bincount(found.indices.flatten(), minlength=20)
    report = ours.report(lambda tensor: 2 * tensor)  # as two processes with equal batches
    assert report.keys() == {"l1", "codebook", "perplexity", "usage"}
    assert report["usage"] == pytest.approx(float((used > 0).sum()) / 20)
    share = [n / int(used.sum()) for n in used.tolist() if n]
    assert report["perplexity"] == pytest.approx(math.exp(-sum(p * math.log(p) for p in share)))
    assert report["l1"] == pytest.approx(float((found.image - image).abs().mean()), rel=1e-4)
    assert ours.report(lambda tensor: tensor) == {"perplexity": 1.0, "usage": 0.0}
    assert codebook_usage(torch.tensor([3, 3, 3, 3]))["perplexity"] == pytest.approx(4.0)


def test_the_adaptive_weight_is_bounded():
    one, zero = torch.ones(3), torch.zeros(3)
    assert adaptive_weight(one, zero).item() == 1e4
    assert adaptive_weight(zero, one).item() == 0
    assert adaptive_weight(one * math.inf, one * math.inf).item() == 0
    assert adaptive_weight(2 * one, one).item() == pytest.approx(2.0, rel=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lpips": -1.0}, "lpips must be at least 0, got -1"),
        ({"beta": math.nan}, "beta must be at least 0, got nan"),
        ({"disc_start": -1}, "disc_start must be at least 0"),
        ({"disc_lr": 0.0}, "disc_lr must be above 0"),
        ({"disc_loss": "wgan"}, "unknown disc_loss 'wgan'; expected one of hinge, vanilla"),
        ({"disc_norm": "layer"}, "unknown norm 'layer' of the discriminator; expected one of group, batch"),
        ({"disc_channels": 24}, "channels of the discriminator must be a multiple of 16, got 24"),
        ({"disc_layers": 0}, "at least 1 layer, got 0"),
        ({"disc_layers": 4}, "needs patches of at least 48 pixels, got 24"),
        ({"lpips": 1.0}, "no LPIPS module was given"),
    ],
    ids=str,
)
def test_bad_settings_are_refused(autoencoder, options, message):
    with pytest.raises(ValueError, match=message):
        objective(autoencoder, **options)


def test_a_configuration_gives_the_objective(autoencoder, tmp_path, monkeypatch):
    make = choices.chosen(choices.AUTOENCODER_OBJECTIVES, "objective", "vqgan")
    given = parts(autoencoder)

    def config(**options):
        return TrainConfig(data="", run="", patch=64, lr=1e-3, objective="vqgan", objective_options=options)

    made = make(config(lpips=0.0, disc_lr=2e-4), given)
    assert made.perceptual is None and made.optimizer.defaults["lr"] == 2e-4
    assert make(config(lpips=0), given).optimizer.defaults["lr"] == 1e-3
    seen = []
    with monkeypatch.context() as patched:
        patched.setattr(LPIPS, "from_files", lambda *files: (seen.append(files), Distance())[1])
        assert isinstance(make(config(vgg="a.pth", lpips_weights="b.whl"), given).perceptual, Distance)
    assert seen == [("a.pth", "b.whl")]
    with pytest.raises(OSError, match=r"no\.pth.*--lpips 0 .* trains without LPIPS"):
        make(config(vgg=str(tmp_path / "no.pth")), given)
    with pytest.raises(ValueError, match="no setting disc; it has beta, disc_channels"):
        make(config(disc=1), given)
