r"""Gaussian and Poisson noise of Real-ESRGAN (arXiv 2107.10833, section 3.1), in colour or gray.

Poisson noise is that of a sensor which counts :math:`v\,x` photons, with v levels as the image has, times a scale s:

.. math::
    x + s\,(\mathrm{Poisson}(v\,x_8)/v - x_8), \quad v = 2^{\lceil \log_2 n \rceil}

for x_8, which is x rounded to 8 bits and has n different values. Gray noise is that of the gray image in all channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from resshift_fast.training.degradations.drawing import PixelNoise, Range, between, check_range, check_share
from resshift_fast.training.degradations.resizing import rounded
from resshift_fast.training.interfaces import Draws

LUMA = (0.2989, 0.5870, 0.1140)


@dataclass(frozen=True)
class NoiseDraw:
    """Noise of a batch.

    Attributes:
        poisson: whether it is Poisson noise, else Gaussian.
        amount: float32 [B], the standard deviation for images in [0, 1], or the scale of Poisson noise.
        gray: bool [B], whether all channels have the same noise.
        seed: int64 [B], from which the pixels are drawn.
    """

    poisson: bool
    amount: Tensor
    gray: Tensor
    seed: Tensor


@dataclass(frozen=True)
class Noises:
    """How noise is drawn: its kind for all samples of a batch alike, all else for each."""

    gaussian: float
    """Probability of Gaussian noise; else it is Poisson noise."""
    sigma: Range
    """Standard deviation of Gaussian noise, in units of 1/255 of full brightness."""
    scale: Range
    """Scale of Poisson noise."""
    gray: float
    """Probability of gray noise."""

    def __post_init__(self) -> None:
        check_share("noise", gaussian=self.gaussian, gray=self.gray)
        check_range("noise", 0.0, sigma=self.sigma, scale=self.scale)

    def draw(self, draws: Draws) -> NoiseDraw:
        """Noise for a batch."""
        poisson = draws.of_batch() >= self.gaussian
        u = draws.uniform(2)
        sigma = between(u[:, 0], self.sigma) / 255
        amount = between(u[:, 0], self.scale) if poisson else sigma
        return NoiseDraw(poisson, amount, u[:, 1] < self.gray, draws.integers(0, 1 << 62))


def apply_noise(image: Tensor, draw: NoiseDraw) -> Tensor:
    """Add the noise to float32 [B, 3, H, W] in [0, 1] and clamp."""
    pixels = PixelNoise(draw.seed, image.device)
    if not draw.poisson:
        return add_gaussian(image, pixels.normal(*image.shape[1:]), draw.amount, draw.gray)
    rate, levels = poisson_rate(image, draw.gray)
    return add_poisson(image, pixels.poisson(rate), levels, draw.amount, draw.gray)


def add_gaussian(image: Tensor, normal: Tensor, sigma: Tensor, gray: Tensor) -> Tensor:
    """Add Gaussian noise and clamp.

    Args:
        image: [B, 3, H, W] in [0, 1].
        normal: standard normal values like image; gray noise takes the first channel's.
        sigma: [B]. gray: bool [B].
    """
    noise = torch.where(_each(gray), normal[:, :1], normal) * _each(sigma)
    return (image + noise).clamp(0, 1)


def poisson_rate(image: Tensor, gray: Tensor) -> tuple[Tensor, Tensor]:
    """Rates of the photons and their levels.

    Args:
        image: [B, 3, H, W] in [0, 1].
        gray: bool [B].

    Returns:
        (v · x_8 [B, 3, H, W], v [B]); the three channels of a gray sample are equal.
    """
    source = _source(image, gray)
    values = (source * 255).round().long().flatten(1)
    seen = torch.zeros(len(image), 256, device=image.device).scatter_(1, values, 1.0)
    levels = torch.exp2(seen.sum(1).log2().ceil())
    return source * _each(levels), levels


def add_poisson(image: Tensor, counts: Tensor, levels: Tensor, scale: Tensor, gray: Tensor) -> Tensor:
    """Add Poisson noise and clamp.

    Args:
        image: [B, 3, H, W] in [0, 1].
        counts: photons, like image; gray noise takes the first channel's.
        levels: [B], as of `poisson_rate`. scale: [B]. gray: bool [B].
    """
    noise = counts / _each(levels) - _source(image, gray)
    return (image + torch.where(_each(gray), noise[:, :1], noise) * _each(scale)).clamp(0, 1)


def _source(image: Tensor, gray: Tensor) -> Tensor:
    """The image, or its luma in three channels, in 8 bits."""
    luma = sum(weight * image[:, index : index + 1] for index, weight in enumerate(LUMA))
    return rounded(torch.where(_each(gray), luma, image))


def _each(values: Tensor) -> Tensor:
    return values[:, None, None, None]
