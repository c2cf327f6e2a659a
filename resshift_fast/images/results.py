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
    left, right = enlarged_over_white(before, after), over_white(after)
    line = np.full((after.height, max(2, after.width // 128), 3), 255, np.uint8)
    return replace(right, pixels=np.concatenate([left.pixels, line, right.pixels], axis=1), gray=left.gray)


def enlarged_over_white(before: Photo, after: Photo) -> Photo:
    """A photo as `over_white` gives it, bicubically resized to the size of its result, and with its profile."""
    image = Image.fromarray(over_white(before).pixels)
    pixels = np.asarray(image.resize((after.width, after.height), Image.Resampling.BICUBIC))
    return Photo(pixels, gray=before.gray and after.gray, icc_profile=after.icc_profile, name=before.name)


def over_white(photo: Photo) -> Photo:
    """A photo of 8 bits, laid over white, without metadata but for its profile."""
    flat = laid_over(in_8_bits(photo), (255, 255, 255))
    return Photo(flat.pixels, gray=flat.gray, icc_profile=photo.icc_profile, name=photo.name)
