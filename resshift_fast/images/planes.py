"""Resampling of arrays of floats with several channels, of which Pillow takes one at a time."""

import numpy as np
from PIL import Image


def resampled(
    values: np.ndarray,
    size: tuple[int, int],
    how: Image.Resampling,
    box: tuple[float, float, float, float] | None = None,
) -> np.ndarray:
    """Resize an image with one of Pillow's filters.

    Args:
        values: float32 [H, W, C]. size: (height, width) wanted.
        box: (left, top, right, bottom) of the part to resize, in pixels; None for all.

    Returns:
        float32 [height, width, C].
    """
    planes = [
        np.asarray(Image.fromarray(np.ascontiguousarray(values[..., i])).resize(size[::-1], how, box))
        for i in range(values.shape[2])
    ]
    return np.stack(planes, axis=2)
