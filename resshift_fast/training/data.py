"""Training patches.

A patch is a pure function of (seed, step, index), so that a resumed run gets the same patches as an uninterrupted one
without a saved loader state.
"""

from __future__ import annotations

import os
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from resshift_fast.images.alpha import bleed_colors
from resshift_fast.images.errors import ImageError
from resshift_fast.images.photo import in_8_bits
from resshift_fast.images.reading import read
from resshift_fast.training.interfaces import PatchDegradation

Pair = tuple[np.ndarray, np.ndarray | None]
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")


def list_images(folder: Path) -> list[Path]:
    """Image files in `folder` and its subfolders, sorted; hidden ones, such as those of macOS, are left out.

    Raises:
        FileNotFoundError: if the folder does not exist or has no images.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}; give a folder that holds photos")
    paths = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and os.path.isfile(path)
    )
    if not paths:
        raise FileNotFoundError(f"no images in {folder}; expected files ending in {', '.join(SUFFIXES)}")
    return paths


def read_rgb(path: Path, max_pixels: float | None = None) -> np.ndarray:
    """Read an image as `restore` does (`images.read`), upright as uint8 RGB [H, W, 3].

    16 bits are rounded to 8. Alpha is dropped; transparent pixels get the colours of the visible ones around them.

    Args:
        path: the file.
        max_pixels: a larger image is downscaled to about this many pixels.

    Raises:
        OSError, ImageError: for a file that cannot be read, or whose white level is undefined (float, signed).
    """
    photo = in_8_bits(read(path))
    pixels = photo.pixels if photo.alpha is None else bleed_colors(photo.pixels, photo.alpha)
    if max_pixels is not None and photo.width * photo.height > max_pixels:
        factor = (max_pixels / (photo.width * photo.height)) ** 0.5
        size = (max(1, int(photo.width * factor)), max(1, int(photo.height * factor)))
        pixels = np.array(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0))
    return pixels


def _pixel_limit(sizes: Sequence[int], total: float) -> float:
    """The largest limit L with Σ min(size, L) ≤ total."""
    remaining, left = total, len(sizes)
    for size in sorted(sizes):
        if size * left > remaining:
            return remaining / left
        remaining, left = remaining - size, left - 1
    return float("inf")


def load_photos(folder: Path, *, min_side: int, max_megapixels: float = 500.0) -> list[np.ndarray]:
    """Load all photos of a folder and its subfolders, as uint8 [H, W, 3] in the order of their paths.

    Args:
        folder: the folder. Files that are unreadable or too small are skipped with a warning.
        min_side: shortest side of a photo that is used, in pixels.
        max_megapixels: limit on all photos together (3 MB per megapixel); the largest are downscaled until all fit.

    Raises:
        FileNotFoundError: for a missing or empty folder.
        ValueError: if no usable photo is left.
    """
    readable: list[tuple[Path, int]] = []
    for path in list_images(folder):
        try:
            with Image.open(path) as image:
                width, height = image.size
        except Exception as error:  # Pillow's parsers raise whatever a damaged file leads them to
            warnings.warn(f"skipped {path}: cannot be read ({error})", stacklevel=2)
            continue
        if min(width, height) < min_side:
            warnings.warn(f"skipped {path}: {width}×{height} is below {min_side} pixels a side", stacklevel=2)
            continue
        readable.append((path, width * height))
    limit = _pixel_limit([pixels for _, pixels in readable], max_megapixels * 1e6)
    photos: list[np.ndarray] = []
    for path, _ in readable:
        try:
            photo = read_rgb(path, limit)
        except (OSError, ImageError) as error:
            warnings.warn(f"skipped {path}: {error}", stacklevel=2)
            continue
        if min(photo.shape[:2]) >= min_side:
            photos.append(photo)
    if not photos:
        raise ValueError(f"no usable photo in {folder}; every side must be at least {min_side} pixels")
    return photos


@dataclass(frozen=True)
class PatchPlan:
    """How patches are made from photos."""

    patch: int = 256
    """Side of the high-quality patch in pixels, a multiple of scale."""
    scale: int = 4
    """Side of the high-quality patch / side of the low-quality one."""
    max_downscale: float = 4.0
    """A patch is area-averaged from a region with sides up to this many times larger, so that large photos give dense
    detail and every photo is seen at many scales."""
    candidates: int = 2
    """Number of regions drawn for a patch; the one with the largest gradients is used, since smooth regions such as sky
    contribute little to the training."""
    recolour: float = 0.3
    """Probability of permuted channels and a changed exposure, an augmentation for small sets of photos."""
    degradation: PatchDegradation | None = None
    """Makes the low-quality patch; None where that is done for the whole batch later."""


def _region(photo: np.ndarray, plan: PatchPlan, rng: np.random.Generator) -> np.ndarray:
    """The region with the largest gradients of a few random squares of one random size, not yet resized."""
    height, width = photo.shape[:2]
    largest = max(1.0, min(plan.max_downscale, min(height, width) / plan.patch))
    side = min(round(plan.patch * largest ** rng.random()), height, width)
    best, best_activity = photo, -1.0
    for _ in range(max(1, plan.candidates)):
        top, left = int(rng.integers(0, height - side + 1)), int(rng.integers(0, width - side + 1))
        region = photo[top : top + side, left : left + side]
        step = max(1, side // plan.patch)
        green = region[::step, ::step, 1].astype(np.int16)
        activity = float(np.abs(np.diff(green, axis=0)).mean() + np.abs(np.diff(green, axis=1)).mean())
        if activity > best_activity:
            best, best_activity = region, activity
    return best


def _recoloured(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    gamma, gain = np.exp(rng.uniform(-0.3, 0.3)), rng.uniform(0.8, 1.1)
    table = np.clip(np.rint(255.0 * gain * (np.arange(256) / 255.0) ** gamma), 0, 255).astype(np.uint8)
    return table[image[..., rng.permutation(3)]]


def make_pair(photos: Sequence[np.ndarray], plan: PatchPlan, seed: int, step: int, index: int) -> Pair:
    """Make one training pair; equal arguments give equal arrays, independent of earlier calls.

    Args:
        photos: uint8 [H, W, 3], with sides of at least `plan.patch`.
        plan: how patches are made.
        seed, step, index: of the run, the batch and the pair in the batch.

    Returns:
        uint8 (high [P, P, 3], low [P/scale, P/scale, 3] or None without a degradation).
    """
    rng = np.random.default_rng([seed, step, index])
    high = _region(photos[int(rng.integers(len(photos)))], plan, rng)
    if high.shape[0] != plan.patch:
        high = cv2.resize(high, (plan.patch, plan.patch), interpolation=cv2.INTER_AREA)
    if rng.random() < 0.5:
        high = high[:, ::-1]
    if rng.random() < 0.5:
        high = high[::-1]
    if rng.random() < 0.5:
        high = high.transpose(1, 0, 2)
    if rng.random() < plan.recolour:
        high = _recoloured(high, rng)
    high = np.ascontiguousarray(high)
    return high, None if plan.degradation is None else plan.degradation.degrade(high, plan.scale, rng)


def make_batch(photos: Sequence[np.ndarray], plan: PatchPlan, seed: int, step: int, size: int) -> Pair:
    """Make a batch of `size` pairs; arguments as in `make_pair`.

    Returns:
        uint8 (high [B, P, P, 3], low [B, P/scale, P/scale, 3] or None without a degradation).
    """
    pairs = [make_pair(photos, plan, seed, step, index) for index in range(size)]
    lows = [low for _, low in pairs if low is not None]
    return np.stack([high for high, _ in pairs]), np.stack(lows) if lows else None


def prefetch(
    photos: Sequence[np.ndarray], plan: PatchPlan, seed: int, size: int, steps: range, workers: int = 1
) -> Iterator[Pair]:
    """The batches of `steps` in order, prepared by `workers` threads. Closing the iterator stops them.

    Args:
        photos, plan, seed: as in `make_pair`.
        size: pairs per batch.
        steps: batches to make.
        workers: threads; at most `workers` + 1 batches are in memory.
    """
    pool = ThreadPoolExecutor(max_workers=max(1, workers), thread_name_prefix="patches")
    pending: deque[Future] = deque()
    upcoming = iter(steps)
    try:
        while True:
            while len(pending) <= workers:
                step = next(upcoming, None)
                if step is None:
                    break
                pending.append(pool.submit(make_batch, photos, plan, seed, step, size))
            if not pending:
                return
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
