"""Pictures for tests in which their content does not matter."""

import struct
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


def stored_for(orientation, upright):
    """The stored image that Pillow's exif_transpose turns upright.

    Args:
        orientation: from 1 to 8, as in EXIF. upright: an array of pixels.
    """
    back = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[orientation]
    image = Image.fromarray(upright)
    return image if back is None else image.transpose(Image.Transpose(back))


def cmyk_profile():
    """A 2-point lut8 CMYK profile: paper is white and any cyan gives a mid gray, unlike a plain conversion."""
    grid = b"".join(bytes([128 if cmyk & 8 else 255, 128, 128]) for cmyk in range(16))
    ramp = bytes(range(256))
    identity = struct.pack(">9i", *(65536 if i % 4 == 0 else 0 for i in range(9)))
    lut = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + identity + ramp * 4 + grid + ramp * 3
    white = b"XYZ \0\0\0\0" + struct.pack(">3i", 63190, 65536, 54061)
    text = b"text\0\0\0\0none\0\0\0\0"
    tags, offset, table, body = (
        [(b"A2B0", lut), (b"A2B1", lut), (b"wtpt", white), (b"cprt", text)],
        128 + 4 + 48,
        b"",
        b"",
    )
    for name, content in tags:
        content += b"\0" * (-len(content) % 4)
        table += name + struct.pack(">2I", offset + len(body), len(content))
        body += content
    size = offset + len(body)
    header = struct.pack(">I4xI4s4s4s12x4s24x", size, 0x02400000, b"prtr", b"CMYK", b"Lab ", b"acsp")
    header += struct.pack(">I3i", 0, 63190, 65536, 54061)
    return header.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body
