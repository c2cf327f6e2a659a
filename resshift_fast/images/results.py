"""Results: what one will be before it exists, how it is made to fit a format, shown, and found whole."""

import os
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageColor

from resshift_fast.core.files import open_regular
from resshift_fast.images import png
from resshift_fast.images.files import FORMATS
from resshift_fast.images.photo import Photo, from_float, in_8_bits, to_float


@dataclass(frozen=True)
class Header:
    """What the first bytes of an image file say.

    Attributes:
        format: Pillow's name of the format. width, height: in pixels, as stored.
    """

    format: str
    width: int
    height: int


def read_header(path: str | os.PathLike[str]) -> Header | None:
    """The header of an image file; None if it is no image, or no regular file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a large image: reading it warns again
        try:
            with open_regular(path) as file:
                size = png.size(file.read(24))
                if size is not None:  # Pillow refuses those with long texts or profiles
                    return Header("PNG", *size)
                file.seek(0)
                with Image.open(file, formats=tuple(set(FORMATS.values()))) as image:
                    return Header(image.format or "", image.width, image.height)
        except Exception:  # Pillow's parsers raise whatever a damaged file leads them to
            return None


def is_whole(path: str | os.PathLike[str]) -> bool:
    """Whether a file is an image of its suffix's format, with its end where that format marks one."""
    header = read_header(path)
    if header is None or header.format != FORMATS.get(Path(path).suffix.lower()):
        return False
    try:
        with open_regular(path) as file:
            return _has_end(file, header.format)
    except OSError:
        return False


def _has_end(file: BinaryIO, form: str) -> bool:
    head = file.read(8)
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 64))
    tail = file.read()
    if form == "PNG":
        return b"IEND" in tail
    if form == "JPEG":
        return b"\xff\xd9" in tail
    if form in ("WEBP", "BMP"):  # the file's size follows the name of the format
        start, rest = (4, 8) if form == "WEBP" else (2, 0)
        return size >= int.from_bytes(head[start : start + 4], "little") + rest
    return True


def expected(photo: Photo, scale: int, bits: int) -> Photo:
    """A stand-in for a photo's result, with its size, bits and transparency; its pixels take no memory."""
    size = (photo.height * scale, photo.width * scale)
    dtype = np.uint8 if bits == 8 else np.uint16
    pixels, alpha = np.broadcast_to(np.zeros((), dtype), (*size, 3)), None
    if photo.alpha is not None:
        opaque = photo.alpha.min() == np.iinfo(photo.alpha.dtype).max
        alpha = np.broadcast_to(np.array(np.iinfo(dtype).max if opaque else 0, dtype), size)
    return replace(photo, pixels=pixels, alpha=alpha)


def colour(text: str) -> tuple[int, int, int]:
    """The red, green and blue, 0 to 255, of a colour's name or code, such as white or #204060.

    Raises:
        ValueError: if it is neither.
    """
    try:
        red, green, blue = ImageColor.getrgb(text)[:3]
    except ValueError:
        raise ValueError(
            f"{text!r} is not a colour; give a name such as white, or red, green and blue as #204060"
        ) from None
    return red, green, blue


def laid_over(photo: Photo, background: tuple[int, int, int]) -> Photo:
    """A photo without transparency: laid over a colour, in its own number of bits."""
    if photo.alpha is None:
        return photo
    opacity = to_float(photo.alpha)[..., None]
    under = np.array(background, np.float32) / 255
    pixels = from_float(to_float(photo.pixels) * opacity + under * (1 - opacity), photo.pixels.dtype)
    return replace(photo, pixels=pixels, alpha=None, gray=photo.gray and len(set(background)) == 1)


def side_by_side(before: Photo, after: Photo) -> Photo:
    """A before/after picture: ``before`` (bicubically resized to the size of ``after``), a thin white line, ``after``.

    Transparent pixels are composited over white; the result has 8 bits and the profile of ``after``.
    """
    left = Image.fromarray(_over_white(before)).resize((after.width, after.height), Image.Resampling.BICUBIC)
    line = np.full((after.height, max(2, after.width // 128), 3), 255, np.uint8)
    pixels = np.concatenate([np.asarray(left), line, _over_white(after)], axis=1)
    return Photo(pixels, gray=before.gray and after.gray, icc_profile=after.icc_profile, name=after.name)


def _over_white(photo: Photo) -> np.ndarray:
    return laid_over(in_8_bits(photo), (255, 255, 255)).pixels
