"""Pictures for tests in which their content does not matter."""

from pathlib import Path

import numpy as np
from PIL import Image


def make_photo(path: Path, size: tuple[int, int], mode: str = "RGB") -> Path:
    """Write noise of (width, height) pixels, the same for equal sizes; returns the path."""
    bands = len(Image.new(mode, (1, 1)).getbands())
    pixels = np.random.default_rng(size).integers(0, 256, (size[1], size[0], bands)).astype(np.uint8)
    Image.fromarray(pixels.squeeze()).save(path)
    return path


def names(folder: Path) -> list[str]:
    """The names of a folder's entries, in order."""
    return sorted(path.name for path in folder.iterdir())


def make_mask(path: Path, size: tuple[int, int]) -> Path:
    """Write a black mask of (width, height) pixels whose upper left quarter is white; returns the path."""
    mask = np.zeros((size[1], size[0]), np.uint8)
    mask[: size[1] // 2, : size[0] // 2] = 255
    Image.fromarray(mask).save(path)
    return path


def camera_exif(orientation=1):
    """EXIF as a camera writes it: maker, orientation, date, pixel sizes, exposure and place."""
    exif = Image.Exif()
    exif[0x010F] = "Maker"
    exif[0x0112] = orientation
    exif.get_ifd(0x8769).update({0x9003: "2020:02:02 20:20:20", 0xA002: 4000, 0xA003: 3000, 0x829A: 0.01})
    exif.get_ifd(0x8825).update({1: "N"})
    return exif
