"""Alpha channels: colours of transparent pixels, enlargement, and the alpha of what an inpainting model fills in.

The networks see colours without alpha. Whatever is stored in transparent pixels (black, white, the colour key) would
therefore leak into the visible edge. Instead, they get the colours of the visible pixels around them: a pyramid of
averages weighted by alpha, of which each level fills what the one below leaves open ("pull-push", Gortler et al., The
Lumigraph, SIGGRAPH 1996, section 3.4).
"""

import numpy as np
from PIL import Image

from resshift_fast.images.planes import resampled

# Fainter colours are increasingly replaced: in files that stored them multiplied by alpha, they have few bits left.
_FAINT = 1 / 16


def bleed_colors(colors: np.ndarray, alpha: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    """Replace the colours of transparent and very faint pixels by those of the visible pixels around them.

    Args:
        colors: [H, W, C], uint8, uint16, or floating point in [0, 1]; not premultiplied.
        alpha: [H, W] in the same dtype, 0 (transparent) to the dtype's largest value, 1 for floating point.
        mask: bool [H, W], True where colours do not count as visible; None if all count.

    Returns:
        [H, W, C] in the same dtype. Pixels with an alpha of at least 1/16 are unchanged; `colors` itself if there is
        nothing to replace, or no visible pixel to take a colour from.
    """
    top = _largest(colors.dtype)
    opacity = alpha.astype(np.float32) / top
    weights = opacity if mask is None else np.where(mask, 0, opacity)
    if opacity.min() >= _FAINT or weights.max() == 0:
        return colors
    filled = _fill(colors.astype(np.float32), weights).clip(0, top)
    if colors.dtype.kind == "u":
        filled = np.rint(filled)
    return np.where(opacity[..., None] >= _FAINT, colors, filled).astype(colors.dtype)


def fill_alpha(alpha: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The alpha of an inpainted picture: parts of the mask that were erased become as opaque as what surrounds them.

    A connected part of the mask counts as erased if no pixel in it is more opaque than any known pixel next to it. It
    gets the alpha of the known pixels around, interpolated; it becomes opaque if these are transparent too, or if there
    are none, since what is filled in could not be seen otherwise. Other parts, such as those across the edge of a
    sprite, keep their alpha.

    Args:
        alpha: [H, W], uint8, uint16 or floating point. mask: bool [H, W], True where pixels were filled in.

    Returns:
        A new array [H, W] in the same dtype; values outside the mask are unchanged.
    """
    top = _largest(alpha.dtype)
    count, labels = _components(mask)
    inside = np.zeros(count, np.float64)
    np.maximum.at(inside, labels, alpha)
    lowest, highest = np.full(count, np.inf), np.full(count, -np.inf)
    for labels_here, alpha_beside in _neighbours(labels, alpha):
        np.minimum.at(lowest, labels_here, alpha_beside)
        np.maximum.at(highest, labels_here, alpha_beside)
    unseen = (highest <= 0) & (inside == 0)  # −∞ without neighbours
    erased = inside <= lowest
    erased[0] = False  # label 0 is outside the mask
    if (highest[1:] == -np.inf).any():  # the mask is the whole picture
        erased[1:] = inside[1:] == 0
    filled = alpha.copy()
    if erased.any():
        around = _fill(alpha.astype(np.float32)[..., None], (~mask).astype(np.float32))[..., 0].clip(0, top)
        values = np.where(unseen[labels], top, np.rint(around) if alpha.dtype.kind == "u" else around)
        filled = np.where(erased[labels], values, alpha).astype(alpha.dtype)
    return filled


def resize_alpha(alpha: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize an alpha channel bicubically (with antialiasing if it becomes smaller), clamped to its range.

    Args:
        alpha: uint8 or uint16 [H, W].
        size: (height, width) wanted.

    Returns:
        The same dtype, [height, width].
    """
    height, width = size
    if alpha.shape == (height, width):
        return np.array(alpha)
    resized = Image.fromarray(alpha.astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC)
    clamped: np.ndarray = np.rint(np.asarray(resized)).clip(0, np.iinfo(alpha.dtype).max).astype(alpha.dtype)
    return clamped


def _largest(dtype: np.dtype) -> int:
    return int(np.iinfo(dtype).max) if dtype.kind == "u" else 1


def _fill(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Values where they have weight, and a smooth continuation of these elsewhere; float32 [H, W, C].

    Args:
        values: float32 [H, W, C].
        weights: float32 [H, W] in [0, 1]. Below 1/16, the values of coarser levels are mixed in. All zero gives zeros.
    """
    level = np.dstack([values * weights[..., None], weights])
    levels = []
    while True:
        height, width = level.shape[:2]
        levels.append(level)
        if max(height, width) == 1 or level[..., -1].min() >= _FAINT:
            break
        level = _halved(level)
    filled = _divided(levels.pop())
    for level in reversed(levels):
        height, width = level.shape[:2]
        twice = (2 * filled.shape[0], 2 * filled.shape[1])
        filled = resampled(filled, twice, Image.Resampling.BILINEAR)[:height, :width]
        own = np.minimum(level[..., -1:] / _FAINT, 1)
        filled += own * (_divided(level) - filled)
    return filled


def _halved(level: np.ndarray) -> np.ndarray:
    """Means of 2 × 2 pixels of [H, W, C]; the last row and column of an odd side count twice."""
    even = np.pad(level, ((0, level.shape[0] % 2), (0, level.shape[1] % 2), (0, 0)), mode="edge")
    rows = even[::2] + even[1::2]
    return (rows[:, ::2] + rows[:, 1::2]) / 4


def _divided(level: np.ndarray) -> np.ndarray:
    """[H, W, C + 1], values times weights and the weights, to [H, W, C]; 0 where the weight is 0."""
    weights = level[..., -1:]
    return np.divide(level[..., :-1], weights, out=np.zeros_like(level[..., :-1]), where=weights > 0)


def _components(mask: np.ndarray) -> tuple[int, np.ndarray]:
    """Connected parts of a mask, diagonal neighbours among them, as those of its runs in rows.

    Returns:
        (1 + their number, int64 [H, W]: 0 outside of the mask, else the number of the part).
    """
    width = mask.shape[1]
    edges = np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    rows, starts = np.nonzero(edges > 0)
    ends = np.nonzero(edges < 0)[1]  # exclusive
    # Runs of the row above that touch a run are consecutive: from the first that ends at its start or later, to the
    # last that starts at its end or before.
    row = rows * (width + 2)
    first = np.searchsorted(row + ends, row - (width + 2) + starts, side="left")
    counts = np.maximum(np.searchsorted(row + starts, row - (width + 2) + ends, side="right") - first, 0)
    below = np.repeat(np.arange(len(rows)), counts)
    above = np.arange(len(below)) + np.repeat(first - (np.cumsum(counts) - counts), counts)
    roots = np.arange(len(rows))
    while (roots[below] != roots[above]).any():
        pair = np.sort([roots[below], roots[above]], axis=0)
        np.minimum.at(roots, pair[1], pair[0])
        while (roots[roots] != roots).any():
            roots = roots[roots]
    kinds, numbers = np.unique(roots, return_inverse=True)
    labels = np.zeros(mask.shape, np.int64)
    labels[mask] = np.repeat(numbers + 1, ends - starts)
    return 1 + len(kinds), labels


def _neighbours(labels: np.ndarray, alpha: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """(label, alpha beside it) of all pairs of a masked pixel and one of its eight neighbours that is known."""
    labels, alpha = np.pad(labels, 1, constant_values=-1), np.pad(alpha, 1)
    height, width = labels.shape
    here = (slice(1, height - 1), slice(1, width - 1))
    pairs = []
    for down in (-1, 0, 1):
        for right in (-1, 0, 1):
            beside = (slice(1 + down, height - 1 + down), slice(1 + right, width - 1 + right))
            edge = (labels[here] > 0) & (labels[beside] == 0)
            pairs.append((labels[here][edge], alpha[beside][edge]))
    return pairs
