"""Blur kernels against their formulas in numpy, pixel by pixel, and the distribution of their parameters."""

import math

import numpy as np
import pytest
import torch

from resshift_fast.training.degradations import kernels as k
from resshift_fast.training.interfaces import Draws


def bessel_j1(x):
    """J₁ by its integral (1/π) ∫ cos(τ − x sin τ) dτ from 0 to π, by the midpoint rule."""
    tau = (np.arange(2000) + 0.5) * math.pi / 2000
    return float(np.cos(tau - x * np.sin(tau)).mean())


def formula(kind, size, sigma, angle, beta, cutoff, whole):
    """One kernel [whole, whole], element by element."""
    result, centre = np.zeros((whole, whole)), whole // 2
    rotation = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    inverse = np.linalg.inv(rotation @ np.diag(np.square(sigma)) @ rotation.T)
    for i in range(-(size // 2), size // 2 + 1):
        for j in range(-(size // 2), size // 2 + 1):
            c = np.array([j, i])
            q = c @ inverse @ c
            r = math.hypot(i, j)
            if kind in ("iso", "aniso"):
                value = math.exp(-q / 2)
            elif kind.startswith("generalized"):
                value = math.exp(-(q**beta) / 2)
            elif kind.startswith("plateau"):
                value = 1 / (1 + q**beta)
            elif kind == "sinc":
                value = cutoff / (2 * math.pi * r) * bessel_j1(cutoff * r) if r else cutoff**2 / (4 * math.pi)
            else:
                value = float(r == 0)
            result[centre + i, centre + j] = value
    return result / result.sum()


def draw_of(rows):
    """A KernelDraw from rows of (kind, size, sigma, angle, beta, cutoff)."""
    columns = list(zip(*rows, strict=True))
    kind = torch.tensor([k.KINDS.index(name) for name in columns[0]])
    return k.KernelDraw(kind, torch.tensor(columns[1]), *(torch.tensor(column) for column in columns[2:]))


ROWS = [
    ("iso", 7, (1.3, 1.3), 0.0, 1.0, 1.0),
    ("aniso", 13, (2.5, 0.7), 0.6, 1.0, 1.0),
    ("generalized_iso", 9, (2.0, 2.0), 0.0, 0.6, 1.0),
    ("generalized_aniso", 13, (3.0, 1.1), -2.2, 3.1, 1.0),
    ("plateau_iso", 11, (1.7, 1.7), 0.0, 1.6, 1.0),
    ("plateau_aniso", 13, (0.4, 2.9), 2.9, 1.2, 1.0),
    ("sinc", 13, (1.0, 1.0), 0.0, 1.0, 1.2),
    ("sinc", 7, (1.0, 1.0), 0.0, 1.0, 3.1),
    ("none", 9, (1.0, 1.0), 0.0, 1.0, 1.0),
]


def test_kernels_are_those_of_the_formulas():
    ours = k.kernels(draw_of(ROWS)).double().numpy()
    expected = np.stack([formula(*row, whole=13) for row in ROWS])
    np.testing.assert_allclose(ours, expected, atol=1e-6)
    np.testing.assert_allclose(ours.sum((1, 2)), 1, atol=1e-6)


@pytest.mark.parametrize("height, width", [(20, 17), (3, 1), (5, 4)])
def test_filtering_mirrors_the_border(height, width):
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(2, 3, height, width, generator=generator)
    kernel = k.kernels(draw_of([ROWS[3], ROWS[5]]))
    ours = k.filter2d(image, kernel).double().numpy()
    expected = np.zeros_like(ours)
    pixels, weights = image.double().numpy(), kernel.double().numpy()

    def mirrored(index, side):
        while not 0 <= index < side:
            index = -index if index < 0 else 2 * (side - 1) - index
            if side == 1:
                return 0
        return index

    for i in range(-6, 7):
        rows = [mirrored(r + i, height) for r in range(height)]
        for j in range(-6, 7):
            columns = [mirrored(c + j, width) for c in range(width)]
            expected += pixels[:, :, rows][..., columns] * weights[:, 6 + i, 6 + j][:, None, None, None]
    assert np.abs(ours - expected).max() < 1e-5


def test_drawn_parameters_have_their_distributions():
    count = 2000
    draw = k.Kernels().draw(Draws(0, 1, range(count)), probability=0.8)
    tolerance = 4 * 0.5 / count**0.5
    share = torch.bincount(draw.kind, minlength=len(k.KINDS)) / count
    expected = [0.8 * 0.9 * weight for weight in k.Kernels().weights] + [0.8 * 0.1, 0.2]
    assert (share - torch.tensor(expected)).abs().max() < tolerance
    sizes = torch.bincount(draw.size, minlength=22) / count
    assert (sizes[7::2] - 1 / 8).abs().max() < tolerance and sizes[6::2].sum() == 0
    assert draw.sigma.min() >= 0.2 and draw.sigma.max() <= 3.0
    assert abs(float(draw.sigma[:, 0].mean()) - 1.6) < 0.08
    round_ones = (draw.kind < 6) & (draw.kind % 2 == 0)
    assert torch.equal(draw.sigma[round_ones, 0], draw.sigma[round_ones, 1])
    assert not draw.angle[round_ones].any() and draw.angle.abs().max() > 3.0
    generalized = draw.beta[(draw.kind == 2) | (draw.kind == 3)]
    assert 0.5 <= generalized.min() < 0.75 and 3.4 < generalized.max() <= 4.0
    assert abs(float((generalized < 1).float().mean()) - 0.5) < 0.15
    plateau = draw.beta[(draw.kind == 4) | (draw.kind == 5)]
    assert plateau.min() >= 1.0 and plateau.max() <= 2.0
    lowest = torch.where(draw.size < 13, math.pi / 3, math.pi / 5)
    assert (draw.cutoff >= lowest - 1e-6).all() and draw.cutoff.max() <= math.pi + 1e-6


def test_the_last_filter_is_a_sinc_or_none():
    draw = k.Kernels().draw_sinc(Draws(0, 1, range(1000)), 0.8)
    assert set(draw.kind.tolist()) == {k.SINC, k.NONE}
    assert abs(float((draw.kind == k.SINC).float().mean()) - 0.8) < 0.06
    assert draw.cutoff.min() >= math.pi / 3 - 1e-6


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(sizes=(6, 21)), "odd"),
        (dict(kinds=("disk",), weights=(1.0,)), "unknown disk; expected iso"),
        (dict(weights=(1.0,)), "6 weights"),
        (dict(sinc=2.0), "sinc is a probability"),
        (dict(sigma=(3.0, 1.0)), "sigma is .*increasing"),
    ],
)
def test_bad_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        k.Kernels(**options)
