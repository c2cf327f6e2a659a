"""Reducing photos: with a Lanczos filter as wide as the reduction, so that fine patterns do not alias."""

from dataclasses import replace

import numpy as np
from PIL import Image

from resshift_fast.images.photo import Photo, from_float, to_float
from resshift_fast.images.planes import resampled

_LOBES = 3  # of the filter, on either side
_STRIP = 256  # rows of a result that are computed at once, so that float copies stay small


def sides_at(photo: Photo, scale: float) -> tuple[int, int]:
    """(height, width) of a photo at a scale, at least one pixel each."""
    return max(1, round(photo.height * scale)), max(1, round(photo.width * scale))


def reduced(photo: Photo, size: tuple[int, int]) -> Photo:
    """A photo reduced to (height, width) in float, with alpha; itself if that is its size.

    Colours are weighted by their alpha, so that those of transparent pixels do not show at edges.
    """
    if (photo.height, photo.width) == size:
        return photo
    dtype = photo.pixels.dtype
    pixels = np.empty((*size, 3), dtype)
    alpha = None if photo.alpha is None else np.empty(size, dtype)
    for top in range(0, size[0], _STRIP):
        rows = slice(top, min(size[0], top + _STRIP))
        source = _rows_for(photo.height, size[0], rows)
        colours = to_float(photo.pixels[source])
        box = (rows.start * photo.height / size[0] - source.start, rows.stop * photo.height / size[0] - source.start)
        shape = (rows.stop - rows.start, size[1])
        if photo.alpha is None or alpha is None:
            pixels[rows] = from_float(_resized(colours, shape, box), dtype)
            continue
        opacity = to_float(photo.alpha[source])[..., None]
        coverage = _resized(opacity, shape, box)
        weighted, plain = _resized(colours * opacity, shape, box), _resized(colours, shape, box)
        visible = coverage > 1 / 512
        pixels[rows] = from_float(np.where(visible, weighted / np.where(visible, coverage, 1), plain), dtype)
        alpha[rows] = from_float(coverage[..., 0], dtype)
    return replace(photo, pixels=pixels, alpha=alpha)


def _rows_for(height: int, wanted: int, rows: slice) -> slice:
    """The rows of the source that rows of the result depend on."""
    factor = height / wanted
    margin = int(np.ceil(_LOBES * factor)) + 1
    start = max(0, int(rows.start * factor) - margin)
    return slice(start, min(height, int(np.ceil(rows.stop * factor)) + margin))


def _resized(values: np.ndarray, size: tuple[int, int], rows: tuple[float, float]) -> np.ndarray:
    """float32 [H, W, C], of which the given rows become (height, width) pixels."""
    return resampled(values, size, Image.Resampling.LANCZOS, (0, rows[0], values.shape[1], rows[1]))
