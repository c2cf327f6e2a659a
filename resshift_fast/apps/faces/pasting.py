"""Faces of a picture aligned as those of FFHQ, and pasted back into the enlarged picture with feathered masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from resshift_fast.apps.faces.alignment import (
    SIDE,
    Picture,
    Similarity,
    Window,
    enlargement,
    image_of,
    indices,
    mask,
    source_of,
)
from resshift_fast.images.sources import Source

STRIP = 128  # rows of a result that are pasted into at once, so that float copies stay small
ALIGNED = Window(0, 0, SIDE, SIDE)


def aligned(source: Source, place: Similarity) -> Tensor:
    """A face of a picture, aligned; beyond the picture, its border is repeated.

    Args:
        source: the picture, after `Source.begin`. place: maps its points to those of the aligned face.

    Returns:
        float32 [3, 512, 512] in [0, 1].
    """
    needed = source_of(ALIGNED, place.inverse)
    part = source.crop(*indices(needed, source.height, source.width))
    return Picture((part + 1) / 2, place.inverse, needed.left, needed.top).window(ALIGNED).clamp(0, 1)


@dataclass(frozen=True, eq=False)
class Patch:
    """An aligned face that is restored.

    Args:
        pixels: float32 [3, n, n] in [0, 1], for any n.
        place: maps points of the picture that it is pasted into to those of the aligned face of 512 × 512 pixels.
    """

    pixels: Tensor
    place: Similarity

    @property
    def window(self) -> Window:
        """The pixels of the picture that the aligned face covers, also beyond its border."""
        return image_of(ALIGNED, self.place.inverse)

    def picture(self) -> Picture:
        """Its pixels, to be resampled to those of the picture."""
        return Picture(self.pixels, enlargement(self.pixels.shape[1] / SIDE).after(self.place))


def paste(result: Source, patches: Sequence[Patch]) -> None:
    """Lay faces over a picture, after `Source.begin` at scale 1; `Source.result` is then the new one.

    Where faces overlap, each counts by its mask and by how near its middle is. What no mask covers is kept bit for bit.
    """
    layers = [(patch, patch.window, patch.picture()) for patch in patches]
    columns, covered = np.arange(result.width), np.zeros((result.height, result.width), bool)
    for top in range(0, result.height, STRIP):
        strip = Window(top, 0, min(top + STRIP, result.height), result.width)
        band = np.broadcast_to(np.float32(0), (3, strip.bottom - top, result.width))
        here = [(*layer, layer[1].within(strip)) for layer in layers]
        here = [layer for layer in here if not layer[3].is_empty]
        if here:
            under = (result.crop(np.arange(top, strip.bottom), columns) + 1) / 2
            over, opacity = _laid_over(under, top, here)
            band = (over * 2 - 1).numpy()
            covered[top : strip.bottom] = opacity.numpy() > 0
        result.write(top, band, covered)


def _laid_over(
    under: Tensor, top: int, layers: Sequence[tuple[Patch, Window, Picture, Window]]
) -> tuple[Tensor, Tensor]:
    """A strip of a picture with faces over it.

    Args:
        under: float32 [3, rows, W] in [0, 1]. top: its first row.
        layers: each with the window that it covers of the strip.

    Returns:
        (the strip, the opacity of all faces together, float32 [rows, W]).
    """
    total = torch.zeros_like(under)  # of the faces by their weights
    weights, clear = torch.zeros(under.shape[1:]), torch.ones(under.shape[1:])
    for patch, _, picture, window in layers:
        place = (slice(window.top - top, window.bottom - top), slice(window.left, window.right))
        opacity, nearness = mask(window, patch.place)
        weight = opacity * nearness**2
        total[:, place[0], place[1]] += weight * picture.window(window).clamp(0, 1)
        weights[place] += weight
        clear[place] *= 1 - opacity
    opacity = torch.where(weights > 0, 1 - clear, 0)
    return under + opacity * (total / weights.clamp_min(torch.finfo(weights.dtype).tiny) - under), opacity
