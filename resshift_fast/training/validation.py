"""Validation: the whole chain on held-out photos, each with a fixed clean and a fixed degraded low-quality version."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from resshift_fast.images.errors import ImageError
from resshift_fast.training.degradations import Mixture, resize
from resshift_fast.training.interfaces import BatchDegradation, Degradation, Draws
from resshift_fast.training.metrics import psnr_y
from resshift_fast.training.photos import list_photos, read_rgb
from resshift_fast.training.pixels import to_images, to_tensor, upsample

SHEET_ROWS = 4
LEAST_SIDE = 64  # pixels of a photo
SEED = 20240319  # of the degradations


@dataclass(frozen=True)
class ValidationResult:
    """Mean PSNR-Y in dB over all photos, of restored and of bicubically enlarged ones, for both kinds of input."""

    clean: float
    degraded: float
    bicubic_clean: float
    bicubic_degraded: float

    @property
    def gain(self) -> float:
        """Mean gain over bicubic interpolation in dB."""
        return (self.clean - self.bicubic_clean + self.degraded - self.bicubic_degraded) / 2


def _degraded(degradation: Degradation, high: np.ndarray, scale: int, number: int) -> np.ndarray:
    if isinstance(degradation, BatchDegradation):
        return to_images(degradation.degrade_batch(to_tensor(high[None]), scale, Draws(SEED, 0, [number])).low)[0]
    return degradation.degrade(high, scale, np.random.default_rng([SEED, number]))


def _fingerprint(arrays: list[np.ndarray]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(repr(array.shape).encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


class Validation:
    """Held-out photos with their low-quality versions, which are the same in every run.

    Args:
        source: the photos, as in `list_photos`; the central square of each is used. Those that are unreadable or below
            64 pixels a side are skipped with a warning.
        scale: of the model.
        degradation: makes one of the two low-quality versions, without the clean share of a `Mixture`; the other is
            bicubic.
        limit: largest number of photos.
        side: largest side of the squares in pixels.
        batch: photos restored at once.

    Raises:
        FileNotFoundError: for a missing or empty folder.
        ValueError: if no usable photo is left.

    Attributes:
        fingerprint: differs if the photos or their low-quality versions do.
    """

    def __init__(
        self, source: str | Path, scale: int, degradation: Degradation, *, limit: int, side: int = 256, batch: int = 4
    ):
        self.scale, self.batch = scale, batch
        paths = list_photos([source])
        picked = np.unique(np.linspace(0, len(paths) - 1, min(limit, len(paths))).round().astype(int))
        self.high: list[np.ndarray] = []
        self.low: dict[str, list[np.ndarray]] = {"clean": [], "degraded": []}
        if isinstance(degradation, Mixture):
            degradation = replace(degradation, clean=0.0)
        for number, index in enumerate(picked):
            try:
                image = read_rgb(paths[index])
            except (OSError, ImageError) as error:
                warnings.warn(f"skipped {error}", stacklevel=2)
                continue
            size = min(side, *image.shape[:2]) // scale * scale
            if size < LEAST_SIDE:
                warnings.warn(f"skipped {paths[index]}: it is below {LEAST_SIDE} pixels a side", stacklevel=2)
                continue
            top, left = (image.shape[0] - size) // 2, (image.shape[1] - size) // 2
            high = np.ascontiguousarray(image[top : top + size, left : left + size])
            self.high.append(high)
            self.low["clean"].append(resize(high, size // scale, size // scale, "bicubic"))
            self.low["degraded"].append(_degraded(degradation, high, scale, number))
        if not self.high:
            raise ValueError(f"no usable photo in {source}; every side must be at least {LEAST_SIDE} pixels")
        self.fingerprint = _fingerprint([*self.high, *self.low["clean"], *self.low["degraded"]])
        self.bicubic = {
            kind: [to_images(upsample(to_tensor(low[None]), scale))[0] for low in lows]
            for kind, lows in self.low.items()
        }

    def run(self, restore: Callable[[Tensor], Tensor], sheet: Path | None = None) -> ValidationResult:
        """Restore all photos and measure the results.

        Args:
            restore: [B, 3, h, w] in [−1, 1] to [B, 3, scale·h, scale·w].
            sheet: PNG to write, each row of which is bicubic | restored | ground truth, clean left and degraded right.
        """
        restored = {kind: self._restored(restore, lows) for kind, lows in self.low.items()}
        if sheet is not None:
            self._write_sheet(sheet, restored)

        def mean(images: list[np.ndarray]) -> float:
            return float(np.mean([psnr_y(image, high) for image, high in zip(images, self.high, strict=True)]))

        return ValidationResult(
            clean=mean(restored["clean"]),
            degraded=mean(restored["degraded"]),
            bicubic_clean=mean(self.bicubic["clean"]),
            bicubic_degraded=mean(self.bicubic["degraded"]),
        )

    def _restored(self, restore: Callable[[Tensor], Tensor], lows: list[np.ndarray]) -> list[np.ndarray]:
        results: list[np.ndarray] = []
        start = 0
        while start < len(lows):
            end = start + 1
            while end < len(lows) and end - start < self.batch and lows[end].shape == lows[start].shape:
                end += 1
            results.extend(to_images(restore(to_tensor(np.stack(lows[start:end])))))
            start = end
        return results

    def _write_sheet(self, path: Path, restored: dict[str, list[np.ndarray]]) -> None:
        rows = []
        # Spread over the list, since neighbours in it are often two views of one scene.
        chosen = np.unique(np.linspace(0, len(self.high) - 1, min(SHEET_ROWS, len(self.high))).round().astype(int))
        width = max(high.shape[1] for high in self.high)
        for index in chosen:
            cells = [
                picture
                for kind in ("clean", "degraded")
                for picture in (self.bicubic[kind][index], restored[kind][index], self.high[index])
            ]
            pad = width - cells[0].shape[1]
            rows.append(np.concatenate([np.pad(cell, ((0, 0), (0, pad), (0, 0))) for cell in cells], axis=1))
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.concatenate(rows)).save(path)
