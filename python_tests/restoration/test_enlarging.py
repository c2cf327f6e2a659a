"""The bicubic convolution against PyTorch's interpolation in float64."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from resshift_fast.diffusion.schedule import Schedule
from resshift_fast.models.autoencoder import SpaceToDepth, SpaceToDepthConfig
from resshift_fast.restoration.enlarging import MARGIN, enlarge, phase_filters
from resshift_fast.restoration.model import Restoration


@pytest.mark.parametrize(("scale", "shape"), [(2, (2, 3, 9, 13)), (3, (1, 1, 5, 8)), (4, (3, 3, 17, 6))], ids=str)
def test_it_is_pytorchs_bicubic_interpolation(scale, shape):
    image = torch.randn(shape, generator=torch.Generator().manual_seed(0)) - 2.3
    border = MARGIN * scale
    whole = F.interpolate(image.double(), scale_factor=scale, mode="bicubic")
    expected = whole[:, :, border:-border, border:-border]
    found = enlarge(image, phase_filters(scale))
    assert found.shape == expected.shape and found.dtype == torch.float32
    assert (found.double() - expected).abs().max() <= 1e-6 * expected.abs().max()


def test_the_filters_of_every_phase_keep_a_constant():
    assert torch.allclose(phase_filters(4).sum((1, 2, 3)), torch.ones(16), atol=1e-6)


@pytest.mark.parametrize("scale", [2, 4])
def test_the_latent_of_blocks_of_pixels_is_made_without_the_image_bit_for_bit(scale):
    stage = SpaceToDepth(SpaceToDepthConfig(factor=scale))
    spec = SimpleNamespace(scale=scale, schedule=Schedule(steps=2), prediction_type="x0", clamp_x0=True)
    image = torch.randn(2, 3, 9, 13, generator=torch.Generator().manual_seed(0))
    restoration = Restoration(spec, torch.nn.Linear(1, 1), stage)
    found = restoration.encode(image, torch.float32)
    expected = stage.encode(enlarge(image, phase_filters(scale)))
    assert torch.equal(found, expected) and found.stride() == expected.stride()
