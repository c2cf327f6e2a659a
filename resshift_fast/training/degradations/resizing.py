r"""Resizing of batches: plain interpolation as of Real-ESRGAN (arXiv 2107.10833, section 3.1), and MATLAB's bicubic.

The cubic of R. Keys, "Cubic convolution interpolation for digital image processing" (1981), with parameter a:

.. math::
    k(x) = (a+2)|x|^3 - (a+3)|x|^2 + 1 \ (|x| \le 1), \quad a|x|^3 - 5a|x|^2 + 8a|x| - 4a \ (1 < |x| < 2)

MATLAB's imresize has a = −½, and where the image becomes smaller, a kernel that is wider by that factor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from resshift_fast.training.degradations.drawing import Range, check_range, check_weights, from_options, pick
from resshift_fast.training.interfaces import Batch, Draws

if TYPE_CHECKING:
    from resshift_fast.training.config import TrainConfig

PLAIN_KINDS = ("area", "bilinear", "bicubic")


@dataclass(frozen=True)
class ResizeDraw:
    """A change of size of the whole batch: sides are multiplied by `factor`, with the interpolation `kind`."""

    factor: float
    kind: str


@dataclass(frozen=True)
class Resizes:
    """How a factor is drawn, for all samples of a batch alike."""

    weights: tuple[float, float, float]
    """Relative frequencies of enlarging, shrinking and keeping the size."""
    limits: Range
    """Smallest factor of shrinking, at most 1, and largest of enlarging, at least 1; 1 is the other limit of both."""

    def __post_init__(self) -> None:
        check_weights("resize", 3, weights=self.weights)
        check_range("resize", 1e-3, limits=self.limits)
        if not self.limits[0] <= 1 <= self.limits[1]:
            raise ValueError(f"resize: limits are {self.limits}, expected one up to 1 and one from 1")

    def draw(self, draws: Draws) -> ResizeDraw:
        """A factor, and one of `PLAIN_KINDS`, which are equally likely."""
        way, u = pick(draws.of_batch(), self.weights), draws.of_batch()
        low, high = self.limits
        factor = (1 + (high - 1) * u, low + (1 - low) * u, 1.0)[way]
        return ResizeDraw(factor, draw_kind(draws))


def draw_kind(draws: Draws) -> str:
    """One of `PLAIN_KINDS`, for the whole batch."""
    return PLAIN_KINDS[pick(draws.of_batch(), (1.0,) * len(PLAIN_KINDS))]


def resize(image: Tensor, height: int, width: int, kind: str) -> Tensor:
    """Resize [B, C, H, W] to [B, C, height, width] without a low-pass filter, as OpenCV does.

    Args:
        image: float.
        height, width: new sides in pixels.
        kind: "area" (mean over the pixels that an output pixel touches), "bilinear", or "bicubic" (a = −¾).

    Raises:
        ValueError: for another kind.
    """
    if kind not in PLAIN_KINDS:
        raise ValueError(f"unknown resize kind {kind!r}; expected one of {', '.join(PLAIN_KINDS)}")
    if image.shape[2:] == (height, width):
        return image
    return F.interpolate(image, size=(height, width), mode=kind, align_corners=None if kind == "area" else False)


def scaled(side: int, factor: float) -> int:
    """A side in pixels times a factor, rounded down, at least 1."""
    return max(1, int(side * factor))


def imresize(image: Tensor, height: int, width: int) -> Tensor:
    """Resize [B, C, H, W] to [B, C, height, width] as MATLAB's imresize does: antialiased bicubic.

    Beyond the border the image is mirrored, its edge pixels repeated. Computed in float64, returned in image's dtype,
    not clamped.
    """
    rows = _matlab_weights(image.shape[2], height, image.device)
    columns = _matlab_weights(image.shape[3], width, image.device)
    return (rows @ image.double() @ columns.T).to(image.dtype)


def _matlab_weights(before: int, after: int, device: torch.device) -> Tensor:
    """Contribution of each pixel of a side to each of the resized side, float64 [after, before]; rows sum to 1."""
    widening = max(1.0, before / after)
    centre = (torch.arange(after, dtype=torch.float64, device=device) + 0.5) * before / after - 0.5
    reach = math.ceil(2 * widening) + 1
    taps = centre.floor()[:, None] + torch.arange(-reach, reach + 1, device=device)
    weights = _cubic((taps - centre[:, None]) / widening)
    weights = weights / weights.sum(1, keepdim=True)
    index = taps.long() % (2 * before)
    index = torch.minimum(index, 2 * before - 1 - index)
    return torch.zeros(after, before, dtype=torch.float64, device=device).scatter_add_(1, index, weights)


def _cubic(x: Tensor, a: float = -0.5) -> Tensor:
    x = x.abs()
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * (x**3 - 5 * x**2 + 8 * x - 4)
    return torch.where(x <= 1, near, torch.where(x < 2, far, 0.0))


def rounded(image: Tensor) -> Tensor:
    """Values in [0, 1], clamped and rounded to 8 bits."""
    return (image * 255).round().clamp(0, 255) / 255


@dataclass(frozen=True)
class Bicubic:
    """Antialiased bicubic downscaling alone, for bicubic super-resolution."""

    def degrade_batch(self, high: Tensor, scale: int, draws: Draws) -> Batch:
        """Downscale `scale` times, rounded to 8 bits; arguments as of `interfaces.BatchDegradation`.

        Raises:
            ValueError: if a side is not divisible by `scale`.
        """
        height, width = high.shape[2:]
        if height % scale or width % scale:
            raise ValueError(f"sides must be divisible by {scale}, got {height}×{width}")
        low = rounded(imresize(high / 2 + 0.5, height // scale, width // scale))
        return Batch(high, low * 2 - 1)


def from_config(config: TrainConfig, _spec: Any) -> Bicubic:
    """The degradation "bicubic" of a configuration."""
    return from_options(Bicubic, config.degradation_options)
