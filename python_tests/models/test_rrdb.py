"""The denoiser of one step against its formula in float64; sizes, threads, gradients, arguments that are refused."""

import pytest
import torch
import torch.nn.functional as F
from pairwise import BACKENDS, pairwise
from rrdb_formula import formula

from resshift_fast import use_backend
from resshift_fast.models.derived import Preparable
from resshift_fast.models.layers import Conv3x3, prepack_weights_
from resshift_fast.models.rrdb import RRDBDenoiser, RRDBNet
from resshift_fast.models.sizes import RRDBConfig

CONFIG = RRDBConfig(channels=16, growth=8, blocks=2)
TIMESTEPS = torch.zeros(2, dtype=torch.int64)


@pytest.fixture
def denoiser():
    torch.manual_seed(0)
    return RRDBDenoiser(CONFIG)


def inputs(height=9, width=7):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 48, height, width, generator=generator)
    return x, torch.rand(2, 3, height, width, generator=generator) * 2 - 1


def expected(denoiser, x, lq):
    convs = [layer for layer in denoiser.modules() if isinstance(layer, Conv3x3)]
    weights = [(layer.weight.double(), layer.bias.double()) for layer in convs]
    image = formula(torch.cat([x.double(), lq.double() / 2 + 0.5], 1), weights, CONFIG.blocks)
    return F.pixel_unshuffle(image * 2 - 1, 4)


@pairwise(size=[(9, 7), (1, 1), (16, 33)], prepared=[True, False], kernels=BACKENDS)
def test_is_the_formula(denoiser, size, prepared, kernels):
    x, lq = inputs(*size)
    if prepared:
        prepack_weights_(denoiser)
        for part in denoiser.modules():
            if isinstance(part, Preparable):
                part.prepare()
    with torch.no_grad(), use_backend(kernels):
        torch.testing.assert_close(denoiser(x, TIMESTEPS, lq).double(), expected(denoiser, x, lq), rtol=1e-4, atol=1e-5)


def test_a_changed_weight_is_seen(denoiser):
    x, lq = inputs()
    with torch.no_grad():
        for part in denoiser.modules():
            if isinstance(part, Preparable):
                part.prepare()
        before = denoiser(x, TIMESTEPS, lq)
        denoiser.network.body[0][0].convs[-1].weight *= 2
        after = denoiser(x, TIMESTEPS, lq)
        torch.testing.assert_close(after.double(), expected(denoiser, x, lq), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(before, after)


def test_gradients_are_those_of_the_formula(denoiser):
    x, lq = (image.requires_grad_() for image in inputs(5, 4))
    parameters = [x, lq, *denoiser.parameters()]
    found = torch.autograd.grad(denoiser(x, TIMESTEPS, lq).square().sum(), parameters)
    wanted = torch.autograd.grad(expected(denoiser, x, lq).square().sum(), parameters)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3 * float(other.abs().max()))


def test_the_published_network_has_its_size():
    with torch.device("meta"):
        assert sum(one.numel() for one in RRDBNet().parameters()) == 16_697_987


@pytest.mark.parametrize(
    "options", [{}, {"lq": True, "mask": True}, {"lq": True, "noise": True}], ids=["no image", "mask", "noise"]
)
def test_other_conditions_are_refused(denoiser, options):
    x, lq = inputs()
    given = {name: lq if name == "lq" else x[:, :1] for name in options}
    with pytest.raises(ValueError, match="expected the low-quality image, and neither a mask nor noise"):
        denoiser(x, TIMESTEPS, **given)
