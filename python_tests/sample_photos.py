"""Pictures for tests that only need some picture."""

from pathlib import Path

import numpy as np
from PIL import Image


def make_photo(path: Path, size: tuple[int, int], mode: str = "RGB") -> Path:
    """Write noise of (width, height) pixels, always the same for one size; returns the path."""
    bands = len(Image.new(mode, (1, 1)).getbands())
    pixels = np.random.default_rng(size).integers(0, 256, (size[1], size[0], bands)).astype(np.uint8)
    Image.fromarray(pixels.squeeze()).save(path)
    return path


def make_mask(path: Path, size: tuple[int, int]) -> Path:
    """Write a black mask of (width, height) pixels whose upper left quarter is white; returns the path."""
    mask = np.zeros((size[1], size[0]), np.uint8)
    mask[: size[1] // 2, : size[0] // 2] = 255
    Image.fromarray(mask).save(path)
    return path
