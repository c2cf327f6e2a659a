"""Validation: the whole chain on held-out photos.

Each photo has a fixed clean and a fixed degraded low-quality version, or a given one.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from resshift_fast.images.errors import ImageError
from resshift_fast.training.degradations import Mixture
from resshift_fast.training.degradations import resize as resized
from resshift_fast.training.degradations.second_order import SecondOrder
from resshift_fast.training.interfaces import BatchDegradation, Degradation, Draws, PatchDegradation
from resshift_fast.training.metrics import Metric, psnr_y
from resshift_fast.training.photos import list_photos, read_rgb
from resshift_fast.training.pixels import to_images, to_tensor, upsample

Restore = Callable[[Tensor, Tensor | None], Tensor]

SHEET_ROWS = 4
LEAST_SIDE = 64  # pixels of a photo
SEED = 20240319  # of the degradations
BEST = "psnr_y"  # the metric that chooses the best weights, unless the objective names another
FEATURES = "features"  # the distance of `training.features`
LOWER_IS_BETTER = frozenset((FEATURES, "lpips"))
MASKED = "masked"  # the kind of input for inpainting
UNKNOWN = "psnr_y_unknown"  # of the pixels to fill in alone


@dataclass(frozen=True)
class Pair:
    """A photo and its low-quality versions.

    Attributes:
        high: uint8 [H, W, 3], or [H, W, 1] for a gray one, which is measured as RGB with equal channels.
        low: by kind, each uint8 [H/scale, W/scale, 3 or 1].
        mask: float32 [H, W], 1 = unknown and −1 = known, for inpainting; else None.
    """

    high: np.ndarray
    low: dict[str, np.ndarray]
    mask: np.ndarray | None = None


@dataclass(frozen=True)
class ValidationResult:
    """Means over all photos by kind of input, then by metric, of restored and of bicubically enlarged images.

    `bicubic` is empty where the input is the photo itself.
    """

    restored: dict[str, dict[str, float]]
    bicubic: dict[str, dict[str, float]]
    best: str = BEST
    """The metric that chooses weights."""

    def gains(self, metric: str = BEST) -> dict[str, float]:
        """Gain of a metric over bicubic interpolation by kind of input, PSNR-Y in dB; without bicubic images itself.

        Where lower values are better, a gain is what the value is lower.
        """
        sign = -1.0 if metric in LOWER_IS_BETTER else 1.0
        bicubic = {kind: scores[metric] for kind, scores in self.bicubic.items()}
        return {kind: sign * (scores[metric] - bicubic.get(kind, 0.0)) for kind, scores in self.restored.items()}

    @property
    def gain(self) -> float:
        """Mean of the gains of the metric that chooses weights."""
        return float(np.mean(list(self.gains(self.best).values())))

    def metadata(self) -> dict[str, str]:
        """The gains, for a file of weights."""
        end = "_gain" if self.bicubic else ""
        metrics = dict.fromkeys((BEST, self.best))
        return {f"{name}_{kind}{end}": f"{gain:.4f}" for name in metrics for kind, gain in self.gains(name).items()}

    def row(self) -> dict[str, str]:
        """Columns of the log: val_METRIC_KIND, and bicubic_METRIC_KIND."""
        return {
            f"{start}_{metric}_{kind}": f"{value:.4f}"
            for start, means in (("val", self.restored), ("bicubic", self.bicubic))
            for kind, scores in means.items()
            for metric, value in scores.items()
        }

    def text(self) -> str:
        """One line for people."""
        parts = []
        for kind, gain in self.gains().items():
            others = "".join(f", {name} {value:.4f}" for name, value in self.restored[kind].items() if name != BEST)
            compared = "the input" if kind == MASKED else "bicubic"
            over = f" ({gain:+.3f} over {compared})" if self.bicubic else ""
            parts.append(f"{kind} PSNR-Y {self.restored[kind][BEST]:.3f}{over}{others}")
        return "; ".join(parts)


class Validation:
    """Held-out photos with their low-quality versions, which are the same in every run.

    Args:
        pairs: at least one; all have the same kinds. See `from_photos`, `from_pairs` and `originals`.
        scale: of the model.
        batch: images of one size that are restored at once.
        metrics: by name; "psnr_y" must be among them.
        bicubic: compare with bicubic interpolation, which is pointless where the input is the photo itself.
        best: name of the metric that chooses weights.

    Attributes:
        fingerprint: differs if the images or their low-quality versions do.
    """

    def __init__(
        self,
        pairs: list[Pair],
        scale: int,
        *,
        batch: int = 4,
        metrics: Mapping[str, Metric] | None = None,
        bicubic: bool = True,
        best: str = BEST,
    ):
        self.scale, self.batch, self.best = scale, batch, best
        self.metrics: Mapping[str, Metric] = {"psnr_y": psnr_y} if metrics is None else metrics
        self.high = [pair.high for pair in pairs]
        self.low = {kind: [pair.low[kind] for pair in pairs] for kind in pairs[0].low}
        self.masks = [pair.mask for pair in pairs]
        self.bicubic = {
            kind: [to_images(upsample(to_tensor(low[None]), scale))[0] for low in lows]
            for kind, lows in self.low.items()
            if bicubic
        }
        digest = hashlib.sha256()
        masks = [mask for mask in self.masks if mask is not None]
        for array in (*self.high, *(low for lows in self.low.values() for low in lows), *masks):
            digest.update(repr(array.shape).encode() + np.ascontiguousarray(array).tobytes())
        self.fingerprint = digest.hexdigest()
        # They do not change, and some metrics are slow.
        self._bicubic_means = {kind: self._means(images) for kind, images in self.bicubic.items()}

    def run(self, restore: Restore, sheet: Path | None = None) -> ValidationResult:
        """Restore all photos and measure the results.

        Args:
            restore: ([B, 3, h, w] in [−1, 1], mask [B, 1, h, w] or None) to [B, 3, scale·h, scale·w].
            sheet: PNG to write, each row of which is bicubic | restored | ground truth for each kind of input, without
                bicubic images where there are none; for inpainting it is the masked image | the mask, unknown pixels
                white | restored | ground truth.
        """
        restored = {kind: self._restored(restore, lows) for kind, lows in self.low.items()}
        if sheet is not None:
            self._write_sheet(sheet, restored)
        means = {kind: self._means(images) for kind, images in restored.items()}
        return ValidationResult(means, self._bicubic_means, self.best)

    def columns(self) -> list[str]:
        """The columns of `ValidationResult.row`."""
        hole = any(mask is not None and (mask > 0).any() for mask in self.masks)
        metrics = [*self.metrics, UNKNOWN] if hole else list(self.metrics)
        names: dict[str, dict[str, float]] = {kind: dict.fromkeys(metrics, 0.0) for kind in self.low}
        return list(ValidationResult(names, self._bicubic_means).row())

    def _means(self, images: list[np.ndarray]) -> dict[str, float]:
        pairs = [(_rgb(image), _rgb(high)) for image, high in zip(images, self.high, strict=True)]
        means = {name: float(np.mean([metric(*pair) for pair in pairs])) for name, metric in self.metrics.items()}
        unknown = [
            psnr_y(image[mask > 0][None], high[mask > 0][None])
            for (image, high), mask in zip(pairs, self.masks, strict=True)
            if mask is not None and (mask > 0).any()
        ]
        return means | ({UNKNOWN: float(np.mean(unknown))} if unknown else {})

    def _restored(self, restore: Restore, lows: list[np.ndarray]) -> list[np.ndarray]:
        results: list[np.ndarray] = []
        start = 0
        while start < len(lows):
            end = start + 1
            while end < len(lows) and end - start < self.batch and lows[end].shape == lows[start].shape:
                end += 1
            masks = [torch.from_numpy(mask)[None] for mask in self.masks[start:end] if mask is not None]
            low = to_tensor(np.stack(lows[start:end]))
            results.extend(to_images(restore(low, torch.stack(masks) if masks else None)))
            start = end
        return results

    def _bicubic_of(self, kind: str, index: int) -> list[np.ndarray]:
        return [self.bicubic[kind][index]] if kind in self.bicubic else []

    def _write_sheet(self, path: Path, restored: dict[str, list[np.ndarray]]) -> None:
        rows = []
        # Spread over the list, since neighbours in it are often two views of one scene.
        chosen = _spread(len(self.high), SHEET_ROWS)
        width = max(self.high[index].shape[1] for index in chosen)
        for index in chosen:
            mask = self.masks[index]
            shown = [] if mask is None else [np.where(mask[..., None] > 0, np.uint8(255), np.uint8(0))]
            cells = [
                _rgb(picture)
                for kind in self.low
                for picture in (*self._bicubic_of(kind, index), *shown, restored[kind][index], self.high[index])
            ]
            pad = width - cells[0].shape[1]
            rows.append(np.concatenate([np.pad(cell, ((0, 0), (0, pad), (0, 0))) for cell in cells], axis=1))
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.concatenate(rows)).save(path)


def from_photos(
    source: str | Path, scale: int, degradation: Degradation, *, limit: int, side: int | None = 256
) -> list[Pair]:
    """Pairs of photos, whose low-quality versions "clean" (bicubic) and "degraded", or "masked", are made here.

    At scale 1 there is no "clean" one: it would be the photo itself, over which nothing gains.

    Args:
        source: the photos, as in `list_photos`. Those that are unreadable or below 64 pixels a side are skipped with a
            warning.
        scale: of the model.
        degradation: makes the degraded version; the clean share of a `Mixture` and the cut of a `SecondOrder` are left
            out.
        limit: largest number of photos, spread over the list.
        side: their central squares have at most this side in pixels; None takes whole photos.

    Raises:
        FileNotFoundError: for a missing or empty folder.
        ValueError: if no usable photo is left.
    """
    if isinstance(degradation, Mixture):
        degradation = replace(degradation, clean=0.0)
    if isinstance(degradation, SecondOrder):
        degradation = replace(degradation, gt_size=None)
    pairs: list[Pair] = []
    for number, image in _usable(source, limit):
        high = _central(image, scale, side)
        high, low, mask = _degraded(degradation, high, scale, number)
        if mask is not None:
            pairs.append(Pair(high, {MASKED: low}, mask))
        elif scale == 1:
            pairs.append(Pair(high, {"degraded": low}))
        else:
            clean = resized(high, high.shape[0] // scale, high.shape[1] // scale, "bicubic")
            pairs.append(Pair(high, {"clean": clean, "degraded": low}))
    return pairs


def originals(source: str | Path, multiple: int, *, limit: int, side: int | None = 256) -> list[Pair]:
    """Photos that are their own input, of the kind "reconstructed", for a validation without bicubic images.

    Args:
        source, limit, side: as in `from_photos`.
        multiple: of pixels, to which sides are rounded down.

    Raises:
        FileNotFoundError, ValueError: as in `from_photos`.
    """
    photos = (_central(image, multiple, side) for _, image in _usable(source, limit))
    return [Pair(photo, {"reconstructed": photo}) for photo in photos]


def _usable(source: str | Path, limit: int) -> list[tuple[int, np.ndarray]]:
    """At most `limit` photos, spread over the list, with their numbers; warns of those that are left out."""
    paths = list_photos([source])
    found: list[tuple[int, np.ndarray]] = []
    for number, index in enumerate(_spread(len(paths), limit)):
        try:
            image = read_rgb(paths[index])
        except (OSError, ImageError) as error:
            warnings.warn(f"skipped {error}", stacklevel=3)
            continue
        if min(image.shape[:2]) < LEAST_SIDE:
            warnings.warn(f"skipped {paths[index]}: it is below {LEAST_SIDE} pixels a side", stacklevel=3)
            continue
        found.append((number, image))
    if not found:
        raise ValueError(f"no usable validation photo in {source}; every side must be at least {LEAST_SIDE} pixels")
    return found


def from_pairs(
    source: str | Path, low_source: str | Path, scale: int, *, limit: int, side: int | None = 256
) -> list[Pair]:
    """Pairs of photos and their given low-quality versions, of the kind "paired".

    Args:
        source, low_source: high- and low-quality photos, as in `list_photos`. Two belong together if their names
            without suffix are equal, or the low-quality one's ends in xSCALE besides, such as 0001x4.
        scale, limit, side: as in `from_photos`.

    Raises:
        FileNotFoundError, OSError, ImageError: for a photo that is missing or cannot be read.
        ValueError: if a high-quality photo has no other side than `scale` times the low-quality one's.
    """
    lows = {Path(path).stem: path for path in list_photos([low_source])}
    highs = list_photos([source])
    pairs: list[Pair] = []
    for index in _spread(len(highs), limit):
        stem = Path(highs[index]).stem
        path = lows.get(stem) or lows.get(f"{stem}x{scale}")
        if path is None:
            raise FileNotFoundError(
                f"{low_source} has no low-quality version of {highs[index]}; it must be called {stem} or {stem}x{scale}"
            )
        high, low = read_rgb(highs[index]), read_rgb(path)
        height, width = low.shape[0] * scale, low.shape[1] * scale
        if high.shape[:2] != (height, width):
            raise ValueError(
                f"{highs[index]} is {high.shape[1]}×{high.shape[0]}, but {path} is {low.shape[1]}×{low.shape[0]} and "
                f"this model enlarges ×{scale}; expected {width}×{height}"
            )
        low = _central(low, 1, None if side is None else max(1, side // scale))
        high = _central(high, scale, None if side is None else max(1, side // scale) * scale)
        pairs.append(Pair(high, {"paired": low}))
    return pairs


def _central(image: np.ndarray, multiple: int, side: int | None) -> np.ndarray:
    """The central square of at most this side, or the whole image; sides are rounded down to multiples."""
    height, width = image.shape[:2]
    if side is not None:
        height = width = min(side, height, width)
    height, width = height // multiple * multiple, width // multiple * multiple
    # Where the margins are odd, low- and high-quality images are cut at the same place: by whole multiples.
    top = (image.shape[0] // multiple - height // multiple) // 2 * multiple
    left = (image.shape[1] // multiple - width // multiple) // 2 * multiple
    return np.ascontiguousarray(image[top : top + height, left : left + width])


def _degraded(
    degradation: Degradation, high: np.ndarray, scale: int, number: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """The photo, gray if the degradation makes it gray, its low-quality version, and the mask."""
    if isinstance(degradation, BatchDegradation):
        batch = degradation.degrade_batch(to_tensor(high[None]), scale, Draws(SEED, 0, [number]))
        if batch.high.shape[1] != high.shape[2]:
            high = to_images(batch.high)[0]
        return high, to_images(batch.low)[0], None if batch.mask is None else batch.mask[0, 0].numpy()
    return high, changed(degradation, high, scale, np.random.default_rng([SEED, number])), None


def changed(degradation: PatchDegradation, image: np.ndarray, scale: int, rng: np.random.Generator) -> np.ndarray:
    """The low-quality version of an image, drawn again where it is the image itself, over which no PSNR gains.

    Args:
        degradation: what is done to it.
        image: uint8 [H, W, C].
        scale: factor by which the sides become smaller; the sides are multiples of it.
        rng: draws.

    Returns:
        uint8 [H/scale, W/scale, C].

    Raises:
        ValueError: if 100 draws change nothing, or as of `degradation.degrade`.
    """
    for _ in range(100):
        low = degradation.degrade(image, scale, rng)
        if scale > 1 or not np.array_equal(low, image):
            return low
    raise ValueError("the degradation changes nothing at scale 1, so there is nothing to validate; leave val out")


def _rgb(image: np.ndarray) -> np.ndarray:
    """[H, W, 3] of an image with 1 or 3 channels."""
    if image.shape[2] not in (1, 3):
        raise ValueError(f"validation images have 1 or 3 channels, got {image.shape[2]}; leave val out")
    return image if image.shape[2] == 3 else image.repeat(3, axis=2)


def _spread(count: int, limit: int) -> list[int]:
    """At most `limit` indices of `count`, equally spaced."""
    return [int(one) for one in np.unique(np.linspace(0, count - 1, min(limit, count)).round())]
