"""The denoiser that fills holes in, against its formula in float64; local contrast, gradients, conditions refused."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from golden_data import fill_
from pairwise import BACKENDS, pairwise

from resshift_fast import use_backend
from resshift_fast.models.filling import fill
from resshift_fast.models.inpaint_unet import InpaintUNet, surroundings
from resshift_fast.models.layers import prepack_weights_
from resshift_fast.models.sizes import InpaintUNetConfig

CONFIG = InpaintUNetConfig(widths=(16, 24, 32), blocks=1)
TIMESTEPS = torch.zeros(2, dtype=torch.int64)


@pytest.fixture
def denoiser():
    return fill_(InpaintUNet(CONFIG))


def inputs(height=32, width=48):
    """x_T, a picture whose hole is filled in, and its mask."""
    generator = torch.Generator().manual_seed(1)
    image = torch.rand(2, 3, height, width, generator=generator) * 2 - 1
    unknown = torch.zeros(2, 1, height, width, dtype=torch.bool)
    unknown[0, :, 2 : height // 2, 3 : width - 5] = True
    unknown[1, :, ::3] = True
    x = torch.randn(2, 12, height // 2, width // 2, generator=generator)
    return x, fill(image, unknown), unknown.float() * 2 - 1


def formula(denoiser, lq, mask):
    """The prediction in float64, with plain operations of PyTorch."""
    image, mask = lq.double(), mask.double()
    mean, deviation = surroundings(image, mask)
    parts = [F.pixel_unshuffle((image - mean) / deviation, 2), F.pixel_unshuffle(mask, 2)]
    scale = F.avg_pool2d(deviation.log(), 2)
    x = torch.cat([*parts, F.avg_pool2d(mean, 2), scale], 1)

    def conv(layer, x):
        return F.conv2d(x, layer.weight.double(), layer.bias.double(), padding=1)

    def blocks(modules, x):
        for block in modules:
            inner = conv(block.convs[0], x)
            x = x + conv(block.convs[1], torch.where(inner > 0, inner, 0.2 * inner))
        return x

    x, skips = conv(denoiser.first, x), []
    for level, narrowing in enumerate(denoiser.narrowing):
        x = blocks(denoiser.down[level], x)
        skips.append(x)
        x = conv(narrowing, F.avg_pool2d(x, 2))
    x = blocks(denoiser.down[-1], x)
    for level in reversed(range(len(skips))):
        x = conv(denoiser.enlarging[level], x)
        x = skips[level] + F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        x = blocks(denoiser.up[level], x)
    return conv(denoiser.last, x) * 0.3 * scale.exp()


@pairwise(size=[(32, 48), (8, 8), (64, 16)], packed=[True, False], kernels=BACKENDS)
def test_is_the_formula(denoiser, size, packed, kernels):
    x, lq, mask = inputs(*size)
    if packed:
        prepack_weights_(denoiser)
    with torch.no_grad(), use_backend(kernels):
        found, expected = denoiser(x, TIMESTEPS, lq, mask).double(), formula(denoiser, lq, mask)
    assert float(expected.abs().max()) > 0.01
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def test_gradients_are_those_of_the_formula(denoiser):
    x, lq, mask = inputs(16, 8)
    parameters = list(denoiser.parameters())
    found = torch.autograd.grad(denoiser(x, TIMESTEPS, lq, mask).square().sum(), parameters)
    wanted = torch.autograd.grad(formula(denoiser, lq, mask).square().sum(), parameters)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3 * float(other.abs().max()))


def test_a_fresh_network_adds_nothing():
    x, lq, mask = inputs()
    assert not InpaintUNet(CONFIG)(x, TIMESTEPS, lq, mask).any()


def test_surroundings_are_means_over_squares():
    """Of 24 pixels a side around each square of 8, at its centre, computed one by one."""
    rng = np.random.default_rng(0)
    image, known = rng.uniform(-1, 1, (3, 32, 40)), rng.random((32, 40)) < 0.6
    mean, deviation = surroundings(torch.tensor(image)[None], torch.tensor(1 - 2.0 * known)[None, None])
    squares = np.full((4, 5), np.nan)
    for row, column in np.ndindex(4, 5):
        around = np.s_[max(row - 1, 0) * 8 : (row + 2) * 8, max(column - 1, 0) * 8 : (column + 2) * 8]
        # Four pixels share the centre of a square; the mean is linear between centres.
        middle = mean[0, :, row * 8 + 3 : row * 8 + 5, column * 8 + 3 : column * 8 + 5].mean((1, 2))
        if 0 < row < 3 and 0 < column < 4:
            np.testing.assert_allclose(middle, image[:, around[0], around[1]].mean((1, 2)), atol=0.05)
        difference = np.square(image - mean[0].numpy()).mean(0)[around]
        squares[row, column] = difference[known[around]].mean()
    centre = deviation[0, 0, 3::8, 3::8].square().numpy()
    np.testing.assert_allclose(centre[1:-1, 1:-1], squares[1:-1, 1:-1], rtol=0.1)


def test_contrast_of_a_hole_is_that_around_it():
    """Not that of its smooth filling; and a picture of one colour has the smallest deviation."""
    unknown = torch.zeros(1, 1, 128, 128, dtype=torch.bool)
    unknown[..., 32:96, 32:96] = True
    noise = torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(0)) * 0.2
    _, deviation = surroundings(fill(noise, unknown), unknown.float() * 2 - 1)
    assert 0.15 < float(deviation.min()) <= float(deviation.max()) < 0.25
    _, deviation = surroundings(torch.full_like(noise, 0.3), unknown.float() * 2 - 1)
    torch.testing.assert_close(deviation, torch.full_like(deviation, 0.01), rtol=1e-3, atol=0)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
def test_surroundings_as_an_operator(layout):
    _, lq, mask = inputs()
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(surroundings, (lq.contiguous(memory_format=layout), mask), test_utils=checks)


def test_a_picture_without_known_pixels_is_finite(denoiser):
    x, lq, _ = inputs()
    assert denoiser(x, TIMESTEPS, lq, torch.ones(2, 1, 32, 48)).isfinite().all()


def test_the_start_is_not_used(denoiser):
    x, lq, mask = inputs()
    with torch.no_grad():
        assert torch.equal(denoiser(x, TIMESTEPS, lq, mask), denoiser(-x, TIMESTEPS, lq, mask))


@pytest.mark.parametrize("missing", ["lq", "mask", None], ids=["no image", "no mask", "noise"])
def test_other_conditions_are_refused(denoiser, missing):
    x, lq, mask = inputs()
    given = {"lq": lq, "mask": mask} | ({"noise": x} if missing is None else {missing: None})
    with pytest.raises(ValueError, match="expected the filled-in image and its mask, and no noise"):
        denoiser(x, TIMESTEPS, **given)
