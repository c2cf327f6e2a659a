"""Masks of inpainting models."""

import warnings
from pathlib import Path

import numpy as np
from PIL import Image

from resshift_fast.images.photo import Photo, luma
from resshift_fast.images.reading import File, from_pil, is_file, read


def read_mask(mask: File | Image.Image | Photo | np.ndarray) -> np.ndarray:
    """Read a mask: white (at least half of full brightness) is filled in, black is kept.

    With a threshold halfway, JPEG artefacts do no harm. A mask with transparency is laid over black, so that white
    strokes on a clear ground are filled in, whatever colour the ground hides.

    Args:
        mask: a path, bytes or open file of an image, Pillow image or Photo in any mode; or an array [H, W] or
            [H, W, C] of bool, uint8, uint16, or floating point in [0, 1]. The second of two and the fourth of four
            channels are alpha.

    Returns:
        bool [H, W], True where to fill in.

    Raises:
        TypeError, ValueError: if an array has another dtype or shape, or NaN, or integers that are 0 and 1 only.
        OSError, ImageError: as for ``read``.

    Warns:
        UserWarning: if nothing or everything is to be filled in, which is rarely meant; not for arrays of bool.
    """
    name = f"the mask {mask}" if isinstance(mask, str | Path) else "the mask"
    if isinstance(mask, Image.Image):
        mask = from_pil(mask, name="mask")
    elif is_file(mask):
        mask = read(mask)
    if isinstance(mask, Photo):
        mask = mask.pixels if mask.alpha is None else np.dstack([mask.pixels, mask.alpha])
    if not isinstance(mask, np.ndarray):
        raise TypeError(f"read_mask: expected a path, image or array, got {type(mask).__name__}")
    if mask.ndim not in (2, 3) or 0 in mask.shape:
        raise ValueError(f"read_mask: a mask must be [H, W] or [H, W, C], got {list(mask.shape)}")
    is_float = np.issubdtype(mask.dtype, np.floating)
    if not is_float and mask.dtype not in (bool, np.uint8, np.uint16):
        raise TypeError(f"read_mask: a mask must be bool, uint8, uint16 or floating point, got {mask.dtype}")
    if is_float and np.isnan(mask).any():
        raise ValueError("read_mask: the mask has NaN values; use 0 for kept and 1 for what to fill in")
    brightness, alpha = _planes(mask)
    if mask.dtype == bool:
        return np.array(brightness if alpha is None else brightness & alpha)
    if not is_float and brightness.max() == 1:
        raise ValueError("read_mask: the mask's values are 0 and 1, all of them black; use 0 and 255, or bool")
    top = 1.0 if is_float else float(np.iinfo(mask.dtype).max)
    over_black = brightness if alpha is None else brightness * (alpha / top)
    masked = np.asarray(over_black >= top / 2)
    _warn_of_extremes(masked, name, alpha is not None and bool(np.ptp(alpha)))
    return masked


def _planes(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Brightness [H, W], in the mask's dtype, and alpha [H, W] of a mask [H, W] or [H, W, C]."""
    if mask.ndim == 2:
        return mask, None
    channels = mask.shape[2]
    brightness = mask[..., 0] if channels < 3 or mask.dtype == bool else luma(mask[..., :3])
    return brightness, mask[..., -1] if channels in (2, 4) else None


def _warn_of_extremes(masked: np.ndarray, name: str, in_alpha: bool) -> None:
    if not masked.any():
        hint = ", on black or on a clear ground" if in_alpha else ""
        text = f"{name} has no white pixel, so nothing is filled in; paint white what is to be filled in{hint}"
        warnings.warn(text, UserWarning, stacklevel=3)
    elif masked.all():
        text = f"{name} is white everywhere, so the whole image is replaced; paint black what is to be kept"
        warnings.warn(text, UserWarning, stacklevel=3)
