"""The second-order degradation of Real-ESRGAN (arXiv 2107.10833, section 3).

Blur, resize, noise and JPEG, then the same again, with the last JPEG before or after the last resize and a sinc filter.
The settings have the names of the option files of Real-ESRGAN and of the published ResShift models, so that these can
be taken over; 2 at the end of a name is the second round.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from resshift_fast.training.degradations.compression import jpeg
from resshift_fast.training.degradations.drawing import Range, between, check_range, check_share, from_options
from resshift_fast.training.degradations.kernels import GAUSSIANS, KernelDraw, Kernels, filter2d, kernels
from resshift_fast.training.degradations.noise import NoiseDraw, Noises, apply_noise
from resshift_fast.training.degradations.resizing import ResizeDraw, Resizes, draw_kind, resize, rounded, scaled
from resshift_fast.training.interfaces import Batch, Draws

if TYPE_CHECKING:
    from resshift_fast.training.config import TrainConfig


@dataclass(frozen=True)
class RoundDraw:
    """Parameters of one round; `blur` and `resize` come before `noise`."""

    blur: KernelDraw
    resize: ResizeDraw
    noise: NoiseDraw


@dataclass(frozen=True)
class SecondOrderDraw:
    """Parameters of the whole degradation of a batch.

    Attributes:
        first: the first round.
        quality: [B], of the first JPEG.
        second: the second round; its factor is relative to the final size. None leaves it out.
        last_quality: [B], of the last JPEG.
        sinc: the last filter.
        sinc_first: whether the final resize and the sinc filter come before the last JPEG.
        last_kind: interpolation of the final resize.
    """

    first: RoundDraw
    quality: Tensor
    second: RoundDraw | None
    last_quality: Tensor
    sinc: KernelDraw
    sinc_first: bool
    last_kind: str


@dataclass(frozen=True)
class SecondOrder:
    """Settings; the default values are those of Real-ESRGAN's ×4 model."""

    sf: int = 4
    """Factor by which sides become smaller."""
    resize_prob: tuple[float, float, float] = (0.2, 0.7, 0.1)
    """Relative frequencies of enlarging, shrinking and keeping the size."""
    resize_range: Range = (0.15, 1.5)
    """Factors of the size."""
    gaussian_noise_prob: float = 0.5
    """Probability of Gaussian noise instead of Poisson noise."""
    noise_range: Range = (1.0, 30.0)
    """Standard deviation of Gaussian noise, in units of 1/255 of full brightness."""
    poisson_scale_range: Range = (0.05, 3.0)
    """Scale of Poisson noise."""
    gray_noise_prob: float = 0.4
    """Probability of equal noise in all channels."""
    jpeg_range: Range = (30.0, 95.0)
    """JPEG quality, 1 to 100."""
    second_order_prob: float = 1.0
    """Probability of the second round; the final resize, sinc filter and JPEG are always done."""
    second_blur_prob: float = 0.8
    """Probability of its blur."""
    resize_prob2: tuple[float, float, float] = (0.3, 0.4, 0.3)
    """As `resize_prob`."""
    resize_range2: Range = (0.3, 1.2)
    """Factors relative to the final size."""
    gaussian_noise_prob2: float = 0.5
    """As `gaussian_noise_prob`."""
    noise_range2: Range = (1.0, 25.0)
    """As `noise_range`."""
    poisson_scale_range2: Range = (0.05, 2.5)
    """As `poisson_scale_range`."""
    gray_noise_prob2: float = 0.4
    """As `gray_noise_prob`."""
    jpeg_range2: Range = (30.0, 95.0)
    """Quality of the last JPEG."""
    blur_kernel_size: int = 21
    """Largest size of a kernel in pixels, odd."""
    kernel_list: tuple[str, ...] = GAUSSIANS
    """Families of kernels."""
    kernel_prob: tuple[float, ...] = (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)
    """Their relative frequencies."""
    sinc_prob: float = 0.1
    """Probability of a sinc filter instead."""
    blur_sigma: Range = (0.2, 3.0)
    """Deviations in pixels."""
    betag_range: Range = (0.5, 4.0)
    """Exponents of generalized Gaussians."""
    betap_range: Range = (1.0, 2.0)
    """Exponents of plateau-shaped kernels."""
    blur_kernel_size2: int = 21
    """As `blur_kernel_size`; also of the last sinc filter."""
    kernel_list2: tuple[str, ...] = GAUSSIANS
    """As `kernel_list`."""
    kernel_prob2: tuple[float, ...] = (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)
    """As `kernel_prob`."""
    sinc_prob2: float = 0.1
    """As `sinc_prob`."""
    blur_sigma2: Range = (0.2, 1.5)
    """As `blur_sigma`."""
    betag_range2: Range = (0.5, 4.0)
    """As `betag_range`."""
    betap_range2: Range = (1.0, 2.0)
    """As `betap_range`."""
    final_sinc_prob: float = 0.8
    """Probability of the last sinc filter."""
    gt_size: int | None = None
    """Side of the square that is cut out of both pictures at the end, away from borders; None keeps all."""
    resize_back: bool = False
    """Enlarge the result to the size of the high-quality picture, for models of scale 1."""
    use_sharp: bool = False
    """Sharpen the high-quality picture by an unsharp mask."""

    def __post_init__(self) -> None:
        shares = ("second_order_prob", "second_blur_prob", "final_sinc_prob")
        check_share("second_order", **{name: getattr(self, name) for name in shares})
        check_range("second_order", 1.0, 100.0, jpeg_range=self.jpeg_range, jpeg_range2=self.jpeg_range2)
        if self.sf < 1 or (self.gt_size is not None and (self.gt_size < 1 or self.gt_size % self.sf)):
            raise ValueError(f"second_order: sf is {self.sf} and gt_size {self.gt_size}, expected a multiple of sf ≥ 1")
        for number in ("", "2"):
            for part in (self._kernels, self._resizes, self._noises):
                part(number)  # checks the settings of that part

    def _get(self, name: str, number: str) -> Any:
        return getattr(self, name + number)

    def _kernels(self, number: str) -> Kernels:
        largest = self._get("blur_kernel_size", number)
        return Kernels(
            sizes=(min(7, largest), largest),
            kinds=tuple(self._get("kernel_list", number)),
            weights=tuple(self._get("kernel_prob", number)),
            sinc=self._get("sinc_prob", number),
            sigma=self._get("blur_sigma", number),
            beta_generalized=self._get("betag_range", number),
            beta_plateau=self._get("betap_range", number),
        )

    def _resizes(self, number: str) -> Resizes:
        return Resizes(self._get("resize_prob", number), self._get("resize_range", number))

    def _noises(self, number: str) -> Noises:
        return Noises(
            gaussian=self._get("gaussian_noise_prob", number),
            sigma=self._get("noise_range", number),
            scale=self._get("poisson_scale_range", number),
            gray=self._get("gray_noise_prob", number),
        )

    def draw(self, draws: Draws) -> SecondOrderDraw:
        """Parameters for a batch; sizes, interpolations and the order of stages are the same for all its samples."""

        def one_round(number: str, blur_probability: float) -> RoundDraw:
            blur = self._kernels(number).draw(draws, blur_probability)
            return RoundDraw(blur, self._resizes(number).draw(draws), self._noises(number).draw(draws))

        first, second = one_round("", 1.0), one_round("2", self.second_blur_prob)
        return SecondOrderDraw(
            first=first,
            quality=between(draws.uniform(), self.jpeg_range),
            second=second if draws.of_batch() < self.second_order_prob else None,
            last_quality=between(draws.uniform(), self.jpeg_range2),
            sinc=self._kernels("2").draw_sinc(draws, self.final_sinc_prob),
            sinc_first=draws.of_batch() < 0.5,
            last_kind=draw_kind(draws),
        )

    def apply(self, image: Tensor, draw: SecondOrderDraw) -> Tensor:
        """Degrade float32 [B, 3, H, W] in [0, 1] to [B, 3, H/sf, W/sf], in 8 bits."""
        height, width = image.shape[2:]
        final = height // self.sf, width // self.sf
        x = jpeg(_round(image, draw.first, (height, width)), draw.quality)
        if draw.second is not None:
            x = _round(x, draw.second, final)

        def finished(x: Tensor) -> Tensor:
            return filter2d(resize(x, *final, draw.last_kind), kernels(draw.sinc))

        x = jpeg(finished(x), draw.last_quality) if draw.sinc_first else finished(jpeg(x, draw.last_quality))
        return rounded(x)

    def degrade_batch(self, high: Tensor, scale: int, draws: Draws) -> Batch:
        """Make a training batch; arguments as of `interfaces.BatchDegradation`.

        Raises:
            ValueError: for a scale other than `sf` (1 with `resize_back`), or sides that are below `gt_size` or not
                divisible by `sf`.
        """
        expected = 1 if self.resize_back else self.sf
        if scale != expected:
            raise ValueError(f"second_order makes pairs of scale {expected}, but the model's is {scale}; change sf")
        if any(side % self.sf or side < (self.gt_size or 1) for side in high.shape[2:]):
            raise ValueError(
                f"second_order: expected sides divisible by {self.sf} and at least {self.gt_size or self.sf} pixels, "
                f"got {high.shape[2]}×{high.shape[3]}"
            )
        image = high / 2 + 0.5
        low = self.apply(image, self.draw(draws))
        if self.resize_back:
            low = rounded(resize(low, image.shape[2], image.shape[3], "bicubic"))
        if self.use_sharp:
            image = sharpened(image)
        image, low = self._cut(image, low, draws)
        return Batch(image * 2 - 1, low * 2 - 1)

    def _cut(self, image: Tensor, low: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """The same random squares of both; the corner is a multiple of `sf` in the high-quality picture."""
        size, u = self.gt_size, draws.uniform(2)
        if size is None or image.shape[2:] == (size, size):
            return image, low
        ratio = image.shape[2] // low.shape[2]
        places = torch.tensor([(side - size) // self.sf + 1 for side in image.shape[2:]], device=u.device)
        corners = ((u * places).long() * self.sf).tolist()

        def squares(pictures: Tensor, ratio: int) -> Tensor:
            pairs = zip(pictures, corners, strict=True)
            return torch.stack(
                [x[:, r // ratio : (r + size) // ratio, c // ratio : (c + size) // ratio] for x, (r, c) in pairs]
            )

        return squares(image, 1), squares(low, ratio)


def _round(image: Tensor, draw: RoundDraw, reference: tuple[int, int]) -> Tensor:
    """Blur, resize to the reference size times the drawn factor, and noise."""
    x = filter2d(image, kernels(draw.blur))
    height, width = (scaled(side, draw.resize.factor) for side in reference)
    x = resize(x, height, width, draw.resize.kind)
    return apply_noise(x, draw.noise)


def sharpened(image: Tensor, size: int = 51, weight: float = 0.5, threshold: float = 10 / 255) -> Tensor:
    """Unsharp mask of [B, 3, H, W] in [0, 1], only where the blurred image differs by more than the threshold.

    Args:
        image: the images.
        size: of the Gaussian, whose deviation is 0.3 ((size − 1) / 2 − 1) + 0.8 pixels, as in OpenCV.
        weight: of the difference that is added.
        threshold: smallest difference.
    """
    position = torch.arange(size, dtype=torch.float64, device=image.device) - size // 2
    line = torch.exp(-((position / (0.3 * ((size - 1) / 2 - 1) + 0.8)) ** 2) / 2)
    down = torch.zeros(size, size, dtype=image.dtype, device=image.device)
    down[:, size // 2] = (line / line.sum()).to(image.dtype)
    kernel = down.expand(len(image), -1, -1)

    def blurred(x: Tensor) -> Tensor:
        return filter2d(filter2d(x, kernel), kernel.transpose(1, 2))

    difference = image - blurred(image)
    amount = blurred((difference.abs() > threshold).to(image.dtype))
    sharp = (image + weight * difference).clamp(0, 1)
    return amount * sharp + (1 - amount) * image


def from_config(config: TrainConfig, spec: Any) -> SecondOrder:
    """The degradation "second_order" of a configuration; `sf` is the model's scale unless it is given."""
    return from_options(SecondOrder, {"sf": spec.scale} | config.degradation_options)
