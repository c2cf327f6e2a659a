"""Degradations of photos: blur, downscaling, noise, JPEG.

Every function is a pure function of its arguments, including the random generator, so that a training run can be
repeated patch by patch. Images are uint8 RGB arrays [H, W, 3]; every stage rounds to 8 bits, as cameras and web sites
do.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from resshift_fast.training.degradations.scans import marked
from resshift_fast.training.opencv import cv2

if TYPE_CHECKING:
    from resshift_fast.training.config import TrainConfig

_PIL_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "lanczos": Image.Resampling.LANCZOS}
_CV2_FILTERS = {"area": cv2.INTER_AREA, "linear": cv2.INTER_LINEAR, "cubic": cv2.INTER_CUBIC}
RESIZE_KINDS = (*_PIL_FILTERS, *_CV2_FILTERS)


def resize(image: np.ndarray, height: int, width: int, kind: str = "bicubic") -> np.ndarray:
    """Resize uint8 [H, W, 3] to [height, width, 3].

    Args:
        image: the image.
        height, width: the new sides in pixels.
        kind: "bicubic" and "lanczos" are antialiased (bicubic as MATLAB's imresize: a = −0.5, kernel widened by the
            scale), "area" averages; "linear" and "cubic" have no low-pass filter, so they alias, as many programs do.

    Raises:
        ValueError: for another kind.
    """
    if kind in _PIL_FILTERS:
        return np.asarray(Image.fromarray(image).resize((width, height), _PIL_FILTERS[kind]))
    if kind in _CV2_FILTERS:
        return cv2.resize(image, (width, height), interpolation=_CV2_FILTERS[kind])
    raise ValueError(f"unknown resize kind {kind!r}; expected one of {', '.join(RESIZE_KINDS)}")


def gaussian_blur(image: np.ndarray, sigma: float, ratio: float = 1.0, angle: float = 0.0) -> np.ndarray:
    """Blur with a Gaussian, which may be anisotropic.

    Args:
        image: uint8 [H, W, 3].
        sigma: standard deviation in pixels along `angle`; 0 returns the image.
        ratio: standard deviation across `angle` / sigma.
        angle: in radians, counted from the horizontal axis.
    """
    if sigma <= 0.0:
        return image
    if ratio == 1.0:
        return cv2.GaussianBlur(image, (0, 0), sigma, borderType=cv2.BORDER_REFLECT_101)
    radius = max(1, int(np.ceil(3 * sigma)))
    rows, columns = np.mgrid[-radius : radius + 1, -radius : radius + 1].astype(np.float64)
    along = columns * np.cos(angle) + rows * np.sin(angle)
    across = rows * np.cos(angle) - columns * np.sin(angle)
    kernel = np.exp(-0.5 * ((along / sigma) ** 2 + (across / (ratio * sigma)) ** 2))
    return cv2.filter2D(image, -1, kernel / kernel.sum(), borderType=cv2.BORDER_REFLECT_101)


def add_noise(
    image: np.ndarray, rng: np.random.Generator, sigma: float, *, gray: bool = False, signal: bool = False
) -> np.ndarray:
    """Add zero-mean normal noise of standard deviation `sigma`, in units of 1/255 of full brightness.

    Args:
        image: uint8 [H, W, 3].
        rng: draws the noise.
        sigma: the standard deviation.
        gray: the same noise for all three channels, like film grain.
        signal: the variance is proportional to brightness, like photon noise; `sigma` is that of mid-gray.
    """
    height, width, channels = image.shape
    noise = rng.standard_normal((height, width, 1 if gray else channels), dtype=np.float32) * np.float32(sigma)
    pixels = image.astype(np.float32)
    if signal:
        noise = noise * np.sqrt(pixels / np.float32(127.5))
    return np.clip(np.rint(pixels + noise), 0, 255).astype(np.uint8)


def jpeg(image: np.ndarray, quality: int, subsampling: str = "4:2:0", offset: tuple[int, int] = (0, 0)) -> np.ndarray:
    """Encode and decode as JPEG.

    Args:
        image: uint8 [H, W, 3].
        quality: 1 to 100.
        subsampling: of the chroma planes, "4:2:0" or "4:4:4".
        offset: (rows, columns) of the image in the 8×8 block grid, as for an image that was cropped after compression.
    """
    height, width = image.shape[:2]
    top, left = offset
    if top or left:
        image = cv2.copyMakeBorder(image, top, 0, left, 0, cv2.BORDER_REFLECT)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality, subsampling=subsampling)
    return np.asarray(Image.open(buffer).convert("RGB"))[top : top + height, left : left + width]


@dataclass(frozen=True)
class Mixture:
    """How low-quality patches are made: some by bicubic downscaling alone, the others by random degradations."""

    clean: float = 0.35
    """Probability of an antialiased bicubic downscale and no other degradation."""
    blur: float = 0.6
    """Probability of a Gaussian blur before downscaling."""
    blur_sigma: tuple[float, float] = (0.2, 2.4)
    """Its standard deviation in pixels of the high-quality patch; weak blurs are the most frequent."""
    anisotropic: float = 0.3
    """Probability that a blur is narrower in one direction."""
    resize_kinds: tuple[str, ...] = RESIZE_KINDS
    """Downscaling filters of the patches that are not clean."""
    resize_weights: tuple[float, ...] = (0.3, 0.1, 0.25, 0.2, 0.15)
    """Their relative frequencies."""
    noise: float = 0.5
    """Probability of noise."""
    noise_sigma: tuple[float, float] = (1.0, 12.0)
    """Its standard deviation, in units of 1/255 of full brightness."""
    gray_noise: float = 0.4
    """Probability that noise is the same in the three channels."""
    signal_noise: float = 0.4
    """Probability that noise grows with brightness."""
    jpeg: float = 0.65
    """Probability of JPEG compression."""
    jpeg_quality: tuple[int, int] = (60, 95)
    """Its quality, 1 to 100."""
    jpeg_shift: float = 0.3
    """Probability that the 8×8 grid does not start at the patch's corner."""
    second_order: float = 0.3
    """Probability of a first round of noise and JPEG at an intermediate size, as for a photo that was shared twice."""
    marks: float = 0.0
    """Probability of the dust, hairs and scratches of a scan; see `scans.marked`."""
    marks_most: int = 6
    """Largest number of them on a patch."""

    def __post_init__(self) -> None:
        shares = ("clean", "blur", "anisotropic", "noise", "gray_noise", "signal_noise", "jpeg", "jpeg_shift",
                  "second_order", "marks")  # fmt: skip
        for name in shares:
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} is a probability, expected 0 to 1, got {getattr(self, name)}")
        if len(self.resize_kinds) != len(self.resize_weights) or sum(self.resize_weights) <= 0:
            raise ValueError("resize_weights needs one non-negative value for each of resize_kinds, not all zero")
        if self.marks_most < 1:
            raise ValueError(f"marks_most must be at least 1, got {self.marks_most}")

    def degrade(self, image: np.ndarray, scale: int, rng: np.random.Generator) -> np.ndarray:
        """Make the low-quality version of an image.

        Args:
            image: uint8 [H, W, 3].
            scale: factor by which the sides become smaller.
            rng: draws the degradations.

        Returns:
            uint8 [H/scale, W/scale, 3].

        Raises:
            ValueError: if the sides are not divisible by `scale`.
        """
        height, width = image.shape[:2]
        if height % scale or width % scale:
            raise ValueError(f"sides must be divisible by {scale}, got {height}×{width}")
        height, width = height // scale, width // scale
        if rng.random() < self.clean:
            return resize(image, height, width, "bicubic")
        if rng.random() < self.blur:
            image = self._blurred(image, rng)
        if self.marks and rng.random() < self.marks:  # without marks there is no draw, as before there were any
            image = marked(image, rng, int(rng.integers(1, self.marks_most + 1)))
        if rng.random() < self.second_order:
            factor = rng.uniform(1.0, max(1.0, scale / 2))
            image = resize(image, round(height * factor), round(width * factor), self._resize_kind(rng))
            image = self._compressed(self._noisy(image, rng), rng)
        image = resize(image, height, width, self._resize_kind(rng))
        return self._compressed(self._noisy(image, rng), rng)

    def _resize_kind(self, rng: np.random.Generator) -> str:
        weights = np.asarray(self.resize_weights, dtype=np.float64)
        return self.resize_kinds[int(rng.choice(len(weights), p=weights / weights.sum()))]

    def _blurred(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        low, high = self.blur_sigma
        sigma = low + (high - low) * rng.random() ** 1.5
        if rng.random() >= self.anisotropic:
            return gaussian_blur(image, sigma)
        return gaussian_blur(image, sigma, ratio=rng.uniform(0.3, 0.9), angle=rng.uniform(0.0, np.pi))

    def _noisy(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if rng.random() >= self.noise:
            return image
        gray, signal = rng.random() < self.gray_noise, rng.random() < self.signal_noise
        return add_noise(image, rng, rng.uniform(*self.noise_sigma), gray=gray, signal=signal)

    def _compressed(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if rng.random() >= self.jpeg:
            return image
        quality = int(rng.integers(self.jpeg_quality[0], self.jpeg_quality[1] + 1))
        subsampling = "4:2:0" if rng.random() < 0.7 else "4:4:4"
        down, right = rng.integers(0, 8, 2) if rng.random() < self.jpeg_shift else (0, 0)
        return jpeg(image, quality, subsampling, (int(down), int(right)))


def from_config(config: TrainConfig, _spec: object) -> Mixture:
    """The degradation "mixture" of a configuration."""
    return config.mixture
