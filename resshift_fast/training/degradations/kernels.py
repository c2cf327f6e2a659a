r"""Blur kernels of Real-ESRGAN (arXiv 2107.10833, sections 3.1 and 3.4), batched.

With :math:`q = c^T \Sigma^{-1} c` at the offset c from the centre and the covariance
:math:`\Sigma = R\,\mathrm{diag}(\sigma_1^2, \sigma_2^2) R^T`:

.. math::
    \text{Gaussian: } e^{-q/2} \quad \text{generalized: } e^{-q^\beta/2} \quad \text{plateau: } 1/(1 + q^\beta) \quad
    \text{sinc: } \frac{\omega_c}{2\pi r} J_1(\omega_c r)

All are normalized to the sum 1. J₁ is the Bessel function of the first kind; at r = 0 the last is ω_c²/4π.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from resshift_fast.training.degradations.drawing import Range, between, check_range, check_share, check_weights, picks
from resshift_fast.training.interfaces import Draws

GAUSSIANS = ("iso", "aniso", "generalized_iso", "generalized_aniso", "plateau_iso", "plateau_aniso")
KINDS = (*GAUSSIANS, "sinc", "none")
SINC, NONE = KINDS.index("sinc"), KINDS.index("none")
# A kernel below this size cannot resolve the lowest cut-off frequencies of a sinc filter.
SMALL = 13


@dataclass(frozen=True)
class KernelDraw:
    """A kernel for each sample.

    Attributes:
        kind: int64 [B], index into `KINDS`; "none" leaves the sample as it is.
        size: int64 [B], odd; the kernel is zero outside.
        sigma: float32 [B, 2], deviations in pixels along and across the angle.
        angle: float32 [B], in radians from the horizontal axis, clockwise on the screen.
        beta: float32 [B], the exponent; 1 for "iso" and "aniso".
        cutoff: float32 [B], ω_c of a sinc filter in radians a pixel.
    """

    kind: Tensor
    size: Tensor
    sigma: Tensor
    angle: Tensor
    beta: Tensor
    cutoff: Tensor


@dataclass(frozen=True)
class Kernels:
    """How kernels are drawn."""

    sizes: tuple[int, int] = (7, 21)
    """Smallest and largest size, odd; all odd ones between are equally likely."""
    kinds: tuple[str, ...] = GAUSSIANS
    """Families, of `GAUSSIANS`."""
    weights: tuple[float, ...] = (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)
    """Their relative frequencies."""
    sinc: float = 0.1
    """Probability of a sinc filter instead."""
    sigma: Range = (0.2, 3.0)
    """Deviations in pixels."""
    beta_generalized: Range = (0.5, 4.0)
    """Exponents of generalized Gaussians; below and above 1 are equally likely."""
    beta_plateau: Range = (1.0, 2.0)
    """Exponents of plateau-shaped kernels, likewise."""

    def __post_init__(self) -> None:
        if len(self.sizes) != 2 or not 1 <= self.sizes[0] <= self.sizes[1] or not all(n % 2 for n in self.sizes):
            raise ValueError(f"kernels: sizes are {self.sizes}, expected two odd numbers in increasing order")
        if unknown := set(self.kinds) - set(GAUSSIANS):
            raise ValueError(f"kernels: unknown {', '.join(sorted(unknown))}; expected {', '.join(GAUSSIANS)}")
        check_weights("kernels", len(self.kinds), weights=self.weights)
        check_share("kernels", sinc=self.sinc)
        check_range("kernels", 1e-6, sigma=self.sigma, beta_generalized=self.beta_generalized)
        check_range("kernels", 1e-6, beta_plateau=self.beta_plateau)

    def draw(self, draws: Draws, probability: float = 1.0) -> KernelDraw:
        """A kernel for each sample, "none" but with this probability."""
        u = draws.uniform(9).unbind(1)
        families = torch.tensor([KINDS.index(kind) for kind in self.kinds], device=u[0].device)
        kind = families[picks(u[0], self.weights)]
        size = self.sizes[0] + 2 * (u[1] * ((self.sizes[1] - self.sizes[0]) // 2 + 1)).long()
        first, second = between(u[2], self.sigma), between(u[3], self.sigma)
        isotropic = kind % 2 == 0  # of each pair of GAUSSIANS
        generalized = _around_one(u[5], self.beta_generalized)
        beta = torch.where(kind < 2, 1.0, torch.where(kind < 4, generalized, _around_one(u[5], self.beta_plateau)))
        lowest = torch.where(size < SMALL, math.pi / 3, math.pi / 5)
        return KernelDraw(
            kind=torch.where(u[8] >= probability, NONE, torch.where(u[6] < self.sinc, SINC, kind)),
            size=size,
            sigma=torch.stack([first, torch.where(isotropic, first, second)], 1),
            angle=torch.where(isotropic, 0.0, between(u[4], (-math.pi, math.pi))),
            beta=beta,
            cutoff=lowest + (math.pi - lowest) * u[7],
        )

    def draw_sinc(self, draws: Draws, probability: float) -> KernelDraw:
        """A sinc filter for each sample with this probability, else "none"."""
        drawn = self.draw(draws)
        u = draws.uniform(2)
        return KernelDraw(
            kind=torch.where(u[:, 0] < probability, SINC, NONE),
            size=drawn.size,
            sigma=drawn.sigma,
            angle=drawn.angle,
            beta=drawn.beta,
            cutoff=between(u[:, 1], (math.pi / 3, math.pi)),
        )


def _around_one(u: Tensor, limits: Range) -> Tensor:
    """Uniform below 1 for u < ½ and uniform above 1 for the others."""
    low, high = min(limits[0], 1.0), max(limits[1], 1.0)
    return torch.where(u < 0.5, low + (1.0 - low) * 2 * u, 1.0 + (high - 1.0) * (2 * u - 1))


def kernels(draw: KernelDraw) -> Tensor:
    """The kernels, float32 [B, K, K] with K the largest size; smaller ones are surrounded by zeros."""
    radius = int(draw.size.max()) // 2
    axis = torch.arange(-radius, radius + 1, dtype=torch.float64, device=draw.size.device)
    down, right = torch.meshgrid(axis, axis, indexing="ij")

    def column(x: Tensor) -> Tensor:
        return x.double()[:, None, None]

    angle, beta, cutoff = column(draw.angle), column(draw.beta), column(draw.cutoff)
    along = right * angle.cos() + down * angle.sin()
    across = down * angle.cos() - right * angle.sin()
    power = ((along / column(draw.sigma[:, 0])) ** 2 + (across / column(draw.sigma[:, 1])) ** 2) ** beta
    distance = (down.square() + right.square()).sqrt()
    away = distance.clamp_min(1.0)  # nothing but the centre is nearer
    sinc = torch.where(
        distance > 0,
        cutoff / (2 * math.pi * away) * torch.special.bessel_j1(cutoff * away),
        cutoff.square() / (4 * math.pi),
    )
    kind = draw.kind[:, None, None]
    plateau = (kind == GAUSSIANS.index("plateau_iso")) | (kind == GAUSSIANS.index("plateau_aniso"))
    values = torch.where(plateau, 1 / (1 + power), torch.exp(-power / 2))
    values = torch.where(kind == SINC, sinc, values)
    values = torch.where(kind == NONE, (distance == 0).double(), values)
    half = (draw.size // 2)[:, None, None]
    values = values * ((down.abs() <= half) & (right.abs() <= half))
    return (values / values.sum((1, 2), keepdim=True)).float()


def filter2d(image: Tensor, kernel: Tensor) -> Tensor:
    """Filter every sample with its own kernel; the border is mirrored without repeating its pixels.

    Args:
        image: [B, C, H, W].
        kernel: [B, K, K] with K odd, of any size, also above the image's.

    Returns:
        Like image.
    """
    batch, channels, height, width = image.shape
    radius = kernel.shape[-1] // 2
    rows, columns = (mirrored(side, radius, image.device) for side in (height, width))
    padded = image[:, :, rows][:, :, :, columns]
    weight = kernel.to(image.dtype).repeat_interleave(channels, 0)[:, None]
    return F.conv2d(padded.flatten(0, 1)[None], weight, groups=batch * channels).reshape(image.shape)


def mirrored(side: int, radius: int, device: torch.device) -> Tensor:
    """Indices of a side that is continued by `radius` pixels at both ends, mirrored at the first and last pixel."""
    if side == 1:
        return torch.zeros(2 * radius + 1, dtype=torch.int64, device=device)
    index = torch.arange(-radius, side + radius, device=device) % (2 * side - 2)
    return torch.minimum(index, 2 * side - 2 - index)
