"""Ways a photo loses detail: blur, downscaling, noise, JPEG. Every function is a pure function of its arguments and,
where it is random, of the generator it is given, so a training run can be repeated patch by patch.

Images are uint8 RGB arrays [H, W, 3]; every stage rounds to 8 bits, as cameras and web sites do between theirs.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image

_PIL_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "lanczos": Image.Resampling.LANCZOS}
_CV2_FILTERS = {"area": cv2.INTER_AREA, "linear": cv2.INTER_LINEAR, "cubic": cv2.INTER_CUBIC}
RESIZE_KINDS = (*_PIL_FILTERS, *_CV2_FILTERS)


def resize(image: np.ndarray, height: int, width: int, kind: str = "bicubic") -> np.ndarray:
    """Resize [H, W, 3] uint8 to [height, width, 3].

    kind: "bicubic" and "lanczos" are antialiased (bicubic is MATLAB's imresize: a = −0.5, kernel widened by the scale),
    "area" averages; "linear" and "cubic" sample without a low-pass, so they alias as many programs do.
    Raises ValueError for another kind.
    """
    if kind in _PIL_FILTERS:
        return np.asarray(Image.fromarray(image).resize((width, height), _PIL_FILTERS[kind]))
    if kind in _CV2_FILTERS:
        return cv2.resize(image, (width, height), interpolation=_CV2_FILTERS[kind])
    raise ValueError(f"unknown resize kind {kind!r}; expected one of {', '.join(RESIZE_KINDS)}")


def gaussian_blur(image: np.ndarray, sigma: float, ratio: float = 1.0, angle: float = 0.0) -> np.ndarray:
    """Blur with a Gaussian of standard deviation `sigma` pixels along `angle` (radians) and `ratio`·sigma across it."""
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
    """Add zero-mean noise of standard deviation `sigma` (of 255).

    gray: one value for the three channels, as film grain; signal: the variance grows with brightness as photon noise
    does, and `sigma` is reached at mid-gray.
    """
    height, width, channels = image.shape
    noise = rng.standard_normal((height, width, 1 if gray else channels), dtype=np.float32) * np.float32(sigma)
    pixels = image.astype(np.float32)
    if signal:
        noise = noise * np.sqrt(pixels / np.float32(127.5))
    return np.clip(np.rint(pixels + noise), 0, 255).astype(np.uint8)


def jpeg(image: np.ndarray, quality: int, subsampling: str = "4:2:0", offset: tuple[int, int] = (0, 0)) -> np.ndarray:
    """Encode and decode as JPEG. offset (rows, columns): where the 8×8 block grid starts, as in a picture that was
    cropped after it had been compressed."""
    height, width = image.shape[:2]
    top, left = offset
    if top or left:
        image = cv2.copyMakeBorder(image, top, 0, left, 0, cv2.BORDER_REFLECT)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality, subsampling=subsampling)
    return np.asarray(Image.open(buffer).convert("RGB"))[top : top + height, left : left + width]


@dataclass(frozen=True)
class Mixture:
    """How low-quality pictures are made: a share of clean bicubic ones, the rest with each defect drawn on its own."""

    clean: float = 0.35
    """Probability of an antialiased bicubic downscale and nothing else."""
    blur: float = 0.6
    """Probability of a Gaussian blur before downscaling."""
    blur_sigma: tuple[float, float] = (0.2, 2.4)
    """Its standard deviation in high-quality pixels; drawn so that weak blurs are the most frequent."""
    anisotropic: float = 0.3
    """Probability that a blur is narrower in one direction."""
    resize_kinds: tuple[str, ...] = RESIZE_KINDS
    """Downscaling filters of the pictures that are not clean."""
    resize_weights: tuple[float, ...] = (0.3, 0.1, 0.25, 0.2, 0.15)
    """Their relative frequencies."""
    noise: float = 0.5
    """Probability of noise."""
    noise_sigma: tuple[float, float] = (1.0, 12.0)
    """Its standard deviation, of 255."""
    gray_noise: float = 0.4
    """Probability that noise is the same in the three channels."""
    signal_noise: float = 0.4
    """Probability that noise grows with brightness."""
    jpeg: float = 0.65
    """Probability of JPEG compression."""
    jpeg_quality: tuple[int, int] = (60, 95)
    """Its quality."""
    jpeg_shift: float = 0.3
    """Probability that the 8×8 grid does not start at the picture's corner."""
    second_order: float = 0.3
    """Probability of a first round of noise and JPEG at an intermediate size, as for a picture shared twice."""

    def __post_init__(self) -> None:
        shares = ("clean", "blur", "anisotropic", "noise", "gray_noise", "signal_noise", "jpeg", "jpeg_shift",
                  "second_order")  # fmt: skip
        for name in shares:
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} is a probability, expected 0 to 1, got {getattr(self, name)}")
        if len(self.resize_kinds) != len(self.resize_weights) or sum(self.resize_weights) <= 0:
            raise ValueError("resize_weights needs one non-negative number for each of resize_kinds, not all zero")

    def degrade(self, image: np.ndarray, scale: int, rng: np.random.Generator) -> np.ndarray:
        """Low-quality version of `image` (uint8 [H, W, 3], sides divisible by `scale`): uint8 [H/scale, W/scale, 3].
        Raises ValueError when the sides aren't divisible."""
        height, width = image.shape[:2]
        if height % scale or width % scale:
            raise ValueError(f"sides must be divisible by {scale}, got {height}×{width}")
        height, width = height // scale, width // scale
        if rng.random() < self.clean:
            return resize(image, height, width, "bicubic")
        if rng.random() < self.blur:
            image = self._blurred(image, rng)
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
