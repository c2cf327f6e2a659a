"""The degradation of faces of GFPGAN (arXiv 2101.04061, section 4.1): x = [(y ⊛ k)↓ + n]JPEG, enlarged to y's size.

The settings have the names of GFPGAN's option files, so that these can be taken over.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from resshift_fast.training.degradations.colour import CHANGES, jitter, luma
from resshift_fast.training.degradations.compression import jpeg
from resshift_fast.training.degradations.drawing import Range, between, check_range, check_share, from_options
from resshift_fast.training.degradations.kernels import KernelDraw, Kernels, filter2d, kernels
from resshift_fast.training.degradations.noise import NoiseDraw, Noises, apply_noise
from resshift_fast.training.degradations.resizing import resize, rounded, scaled
from resshift_fast.training.interfaces import Batch, Draws

if TYPE_CHECKING:
    from resshift_fast.training.config import TrainConfig


@dataclass(frozen=True)
class FaceDraw:
    """Parameters of a batch.

    Attributes:
        blur: the kernels.
        factor: float32 [B], by which sides become smaller.
        noise: Gaussian noise at the small size.
        quality: [B], of the JPEG.
        shift: [B, 3], added to the channels at the end, for images in [0, 1].
        gray: bool [B], whether the result is gray.
        jitter: bool [B], whether brightness, contrast, saturation and hue change then.
        order, amounts: of these changes, [B, 4]; as of `colour.jitter`.
    """

    blur: KernelDraw
    factor: Tensor
    noise: NoiseDraw
    quality: Tensor
    shift: Tensor
    gray: Tensor
    jitter: Tensor
    order: Tensor
    amounts: Tensor


@dataclass(frozen=True)
class Face:
    """Settings; the default values are those of GFPGAN's option files."""

    blur_kernel_size: int = 41
    """Size of a kernel in pixels, odd."""
    kernel_list: tuple[str, ...] = ("iso", "aniso")
    """Families of kernels, as of `kernels.Kernels`."""
    kernel_prob: tuple[float, ...] = (0.5, 0.5)
    """Their relative frequencies."""
    blur_sigma: Range = (0.1, 10.0)
    """Deviations in pixels."""
    downsample_range: Range = (0.8, 8.0)
    """Factor by which sides become smaller."""
    noise_range: Range = (0.0, 20.0)
    """Standard deviation of Gaussian noise, in units of 1/255 of full brightness."""
    jpeg_range: Range = (60.0, 100.0)
    """JPEG quality, 1 to 100."""
    color_jitter_prob: float = 0.3
    """Probability of a shift of the channels."""
    color_jitter_shift: float = 20.0
    """Largest shift of a channel, in units of 1/255 of full brightness."""
    gray_prob: float = 0.01
    """Probability of a gray result."""
    color_jitter_pt_prob: float = 0.3
    """Probability of changes of brightness, contrast, saturation and hue, in random order."""
    brightness: Range = (0.5, 1.5)
    """Factor of the brightness."""
    contrast: Range = (0.5, 1.5)
    """Factor of the contrast."""
    saturation: Range = (0.0, 1.5)
    """Factor of the saturation."""
    hue: Range = (-0.1, 0.1)
    """Shift of the hue, in parts of the circle."""

    def __post_init__(self) -> None:
        check_share("face", color_jitter_prob=self.color_jitter_prob, gray_prob=self.gray_prob)
        check_share("face", color_jitter_pt_prob=self.color_jitter_pt_prob)
        check_range("face", 0.0, brightness=self.brightness, contrast=self.contrast, saturation=self.saturation)
        check_range("face", -0.5, 0.5, hue=self.hue)
        check_range("face", 1e-3, downsample_range=self.downsample_range)
        check_range("face", 1.0, 100.0, jpeg_range=self.jpeg_range)
        self._kernels()
        self._noises()

    def _kernels(self) -> Kernels:
        return Kernels(
            sizes=(self.blur_kernel_size, self.blur_kernel_size),
            kinds=self.kernel_list,
            weights=self.kernel_prob,
            sinc=0.0,
            sigma=self.blur_sigma,
        )

    def _noises(self) -> Noises:
        return Noises(gaussian=1.0, sigma=self.noise_range, scale=(0.0, 0.0), gray=0.0)

    def draw(self, draws: Draws) -> FaceDraw:
        """Parameters for a batch, drawn for each sample."""
        u = draws.uniform(7)
        shift = between(u[:, :3], (-self.color_jitter_shift / 255, self.color_jitter_shift / 255))
        blur, noise = self._kernels().draw(draws), self._noises().draw(draws)
        v = draws.uniform(9)
        ranges = [getattr(self, name) for name in CHANGES]
        return FaceDraw(
            blur=blur,
            factor=between(u[:, 3], self.downsample_range),
            noise=noise,
            quality=between(u[:, 4], self.jpeg_range),
            shift=torch.where(u[:, 5:6] < self.color_jitter_prob, shift, 0.0),
            gray=u[:, 6] < self.gray_prob,
            jitter=v[:, 0] < self.color_jitter_pt_prob,
            order=v[:, 1:5].argsort(1),
            amounts=torch.stack([between(v[:, 5 + i], limits) for i, limits in enumerate(ranges)], dim=1),
        )

    def apply(self, image: Tensor, draw: FaceDraw) -> Tensor:
        """Degrade float32 [B, 3, H, W] in [0, 1] to the same size, in 8 bits."""
        height, width = image.shape[2:]
        blurred = filter2d(image, kernels(draw.blur))
        results = []
        # The samples have sizes of their own between the two changes of size.
        for index, factor in enumerate(draw.factor.tolist()):
            one = slice(index, index + 1)
            small = resize(blurred[one], scaled(height, 1 / factor), scaled(width, 1 / factor), "bilinear")
            noise = NoiseDraw(False, draw.noise.amount[one], draw.noise.gray[one], draw.noise.seed[one])
            results.append(resize(jpeg(apply_noise(small, noise), draw.quality[one]), height, width, "bilinear"))
        result = (torch.cat(results) + draw.shift[:, :, None, None]).clamp(0, 1)
        result = torch.where(draw.gray[:, None, None, None], luma(result), result)
        changed = draw.jitter.nonzero()[:, 0]
        if len(changed):
            jittered = jitter(result[changed], draw.order[changed], draw.amounts[changed])
            result = result.index_copy(0, changed, jittered)
        return rounded(result)

    def degrade_batch(self, high: Tensor, scale: int, draws: Draws) -> Batch:
        """Make a training batch; arguments as of `interfaces.BatchDegradation`.

        Raises:
            ValueError: for a scale other than 1.
        """
        if scale != 1:
            raise ValueError(f"face makes pairs of one size, but the model's scale is {scale}; use second_order")
        return Batch(high, self.apply(high / 2 + 0.5, self.draw(draws)) * 2 - 1)


def from_config(config: TrainConfig, _spec: Any) -> Face:
    """The degradation "face" of a configuration."""
    return from_options(Face, config.degradation_options)
