"""Results: what one will be before it exists, how it is made to fit a format, and shown."""

from dataclasses import replace

import numpy as np
from PIL import Image, ImageColor

from resshift_fast.images.photo import Photo, from_float, in_8_bits, to_float


def expected(photo: Photo, size: tuple[int, int], bits: int) -> Photo:
    """A stand-in for a photo's result, with its (height, width), bits and transparency; its pixels take no memory."""
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
