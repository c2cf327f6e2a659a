"""Resizing against loops over pixels in numpy, and the distribution of the factors."""

import math

import numpy as np
import pytest
import torch

from resshift_fast.training.degradations.resizing import Bicubic, Resizes, imresize, resize, scaled
from resshift_fast.training.interfaces import Draws


def cubic(x, a):
    x = abs(x)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0


def weights(before, after, kind):
    """Contributions [after, before] of one side, pixel by pixel."""
    result, ratio = np.zeros((after, before)), before / after
    for i in range(after):
        centre = (i + 0.5) * ratio - 0.5
        if kind == "area":
            taps = range(math.floor(i * before / after), math.ceil((i + 1) * before / after))
            result[i, list(taps)] = 1 / len(taps)
            continue
        wide = max(1.0, ratio) if kind == "matlab" else 1.0
        for j in range(math.floor(centre - 2 * wide), math.ceil(centre + 2 * wide) + 1):
            distance = (j - centre) / wide
            if kind == "bilinear":
                weight, target = max(0.0, 1 - abs(distance)), min(max(j, 0), before - 1)
            elif kind == "bicubic":
                weight, target = cubic(distance, -0.75), min(max(j, 0), before - 1)
            else:
                weight, target = cubic(distance, -0.5), j
                while not 0 <= target < before:
                    target = -target - 1 if target < 0 else 2 * before - 1 - target
            result[i, target] += weight
    return result / result.sum(1, keepdims=True)


@pytest.mark.parametrize("kind", ["area", "bilinear", "bicubic", "matlab"])
@pytest.mark.parametrize(
    "before, after", [((24, 20), (6, 5)), ((23, 17), (9, 16)), ((7, 9), (15, 13)), ((3, 2), (1, 1))]
)
def test_sizes_change_as_the_formulas_say(kind, before, after):
    image = torch.rand(2, 3, *before, generator=torch.Generator().manual_seed(0))
    ours = imresize(image, *after) if kind == "matlab" else resize(image, *after, kind)
    rows, columns = (weights(*sides, kind) for sides in zip(before, after, strict=True))
    expected = rows @ image.double().numpy() @ columns.T
    assert ours.shape == (2, 3, *after) and ours.dtype == torch.float32
    assert np.abs(ours.double().numpy() - expected).max() < 1e-5


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="'lanczos'; expected one of area"):
        resize(torch.zeros(1, 3, 4, 4), 2, 2, "lanczos")


def test_factors_have_their_distribution():
    settings = Resizes((0.2, 0.7, 0.1), (0.15, 1.5))
    drawn = [settings.draw(Draws(0, step, range(1))) for step in range(700)]
    factors = np.array([draw.factor for draw in drawn])
    shares = [(factors > 1).mean(), (factors < 1).mean(), (factors == 1).mean()]
    np.testing.assert_allclose(shares, [0.2, 0.7, 0.1], atol=0.07)
    assert 0.15 <= factors.min() < 0.2 and 1.4 < factors.max() <= 1.5
    assert abs(factors[factors < 1].mean() - 0.575) < 0.05
    kinds = [draw.kind for draw in drawn]
    assert all(abs(kinds.count(kind) / 700 - 1 / 3) < 0.07 for kind in ("area", "bilinear", "bicubic"))


def test_all_samples_share_a_factor_however_the_batch_is_divided():
    settings = Resizes((0.2, 0.7, 0.1), (0.15, 1.5))
    assert settings.draw(Draws(0, 5, range(4))) == settings.draw(Draws(0, 5, [7]))


@pytest.mark.parametrize("limits", [(1.2, 1.5), (0.5, 0.9), (0.0, 1.5)])
def test_limits_must_contain_one(limits):
    with pytest.raises(ValueError, match="limits"):
        Resizes((1.0, 1.0, 1.0), limits)


def test_a_bicubic_batch_is_rounded_to_8_bits():
    high = torch.rand(2, 3, 16, 12, generator=torch.Generator().manual_seed(0)) * 2 - 1
    batch = Bicubic().degrade_batch(high, 4, Draws(0, 0, range(2)))
    levels = (batch.low + 1) * 127.5
    assert batch.high is high and (levels - levels.round()).abs().max() < 1e-4
    assert (batch.low - imresize(high, 4, 3).clamp(-1, 1)).abs().max() <= 1 / 255 + 1e-5
    with pytest.raises(ValueError, match="divisible by 8"):
        Bicubic().degrade_batch(high, 8, Draws(0, 0, range(2)))


def test_a_side_never_vanishes():
    assert [scaled(64, 0.3), scaled(2, 0.15), scaled(10, 1.0)] == [19, 1, 10]
