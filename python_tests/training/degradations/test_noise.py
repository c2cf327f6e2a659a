"""Noise against its formulas for given values, and the statistics of what is drawn."""

import math

import numpy as np
import pytest
import torch

from resshift_fast.training.degradations.noise import (
    NoiseDraw,
    Noises,
    add_gaussian,
    add_poisson,
    apply_noise,
    poisson_rate,
)
from resshift_fast.training.interfaces import Draws

COLOUR_AND_GRAY = torch.tensor([False, True])


def picture(height=9, width=7):
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))


def test_gaussian_noise_is_added_and_clamped():
    image, sigma = picture(), torch.tensor([0.1, 0.3])
    normal = torch.randn(image.shape, generator=torch.Generator().manual_seed(1))
    ours = add_gaussian(image, normal, sigma, COLOUR_AND_GRAY).numpy()
    for sample, gray in enumerate((False, True)):
        for channel in range(3):
            noise = normal[sample, 0 if gray else channel].numpy() * sigma[sample].item()
            expected = np.clip(image[sample, channel].numpy() + noise, 0, 1)
            assert np.abs(ours[sample, channel] - expected).max() < 1e-6


def test_poisson_noise_is_that_of_the_photons():
    image, scale = picture(), torch.tensor([0.5, 2.0])
    rate, levels = poisson_rate(image, COLOUR_AND_GRAY)
    counts = torch.poisson(rate, generator=torch.Generator().manual_seed(1))
    ours = add_poisson(image, counts, levels, scale, COLOUR_AND_GRAY).numpy()
    for sample, gray in enumerate((False, True)):
        pixels = image[sample].double().numpy()
        source = np.stack([0.2989 * pixels[0] + 0.587 * pixels[1] + 0.114 * pixels[2]] * 3) if gray else pixels
        source = np.round(source * 255) / 255
        v = 2 ** math.ceil(math.log2(len(np.unique(source))))
        assert levels[sample].item() == v
        np.testing.assert_allclose(rate[sample].numpy(), v * source, rtol=1e-5, atol=1e-5)
        photons = counts[sample].double().numpy()
        photons = np.stack([photons[0]] * 3) if gray else photons
        expected = np.clip(pixels + scale[sample].item() * (photons / v - source), 0, 1)
        assert np.abs(ours[sample] - expected).max() < 1e-5


@pytest.mark.parametrize("poisson", [False, True], ids=["gaussian", "poisson"])
def test_pixels_have_the_variance_and_are_repeatable(poisson):
    image = torch.full((2, 3, 96, 96), 0.5)
    image[:, :, 0, :4] = torch.tensor([0.2, 0.3, 0.4, 0.6])  # eight levels of brightness, so v is 8
    amount = torch.tensor([0.1, 0.1])
    draw = NoiseDraw(poisson, amount, COLOUR_AND_GRAY, torch.tensor([5, 6]))
    noisy = apply_noise(image, draw)
    assert torch.equal(noisy, apply_noise(image, draw))
    noise = (noisy - image)[:, :, 1:]
    variance = 0.01 * (128 / 255) / 8 if poisson else 0.01
    assert noise.mean().abs() < 5 * (variance / noise.numel()) ** 0.5 * 2
    assert noise.var().item() == pytest.approx(variance, rel=0.05)
    assert torch.equal(noise[1, 0], noise[1, 1]) and not torch.equal(noise[0, 0], noise[0, 1])
    assert not torch.equal(noise[0, 0], noise[1, 0])


def test_drawn_parameters_have_their_distributions():
    settings = Noises(gaussian=0.3, sigma=(1.0, 30.0), scale=(0.05, 3.0), gray=0.4)
    drawn = [settings.draw(Draws(0, step, range(4))) for step in range(300)]
    assert abs(np.mean([draw.poisson for draw in drawn]) - 0.7) < 0.1
    sigma = torch.cat([draw.amount for draw in drawn if not draw.poisson]) * 255
    scale = torch.cat([draw.amount for draw in drawn if draw.poisson])
    assert 1 <= sigma.min() < 2 and 28.5 < sigma.max() <= 30 and abs(sigma.mean() - 15.5) < 2
    assert 0.05 <= scale.min() < 0.1 and 2.9 < scale.max() <= 3 and abs(scale.mean() - 1.525) < 0.18
    assert abs(torch.cat([draw.gray for draw in drawn]).float().mean() - 0.4) < 0.06
    assert len(set(torch.cat([draw.seed for draw in drawn]).tolist())) == 1200


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="gray is a probability"):
        Noises(gaussian=0.5, sigma=(1, 2), scale=(0, 1), gray=1.5)
    with pytest.raises(ValueError, match="sigma"):
        Noises(gaussian=0.5, sigma=(2, 1), scale=(0, 1), gray=0.5)
