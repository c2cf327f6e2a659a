"""Tiling of large images: where tiles lie, how they are padded, and how they are blended.

Tiles start at multiples of the denoiser's downsampling factor, so that a pixel has the same phase in every tiling, and
the noise field is evaluated at the tile's position. Overlaps are feathered with a raised cosine, normalized to a
partition of unity. Blending keeps one row of tiles in memory, whatever the image's size.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Axis:
    """Tiles along one side of an image, in input pixels.

    Args:
        length: the image's side.
        tile: every tile's side; the part past `length` is padding.
        starts: first pixel of every tile, increasing from 0.
        extent: side of the padded image, which does not depend on the tiling; at least `padded`.
    """

    length: int
    tile: int
    starts: tuple[int, ...]
    extent: int

    @property
    def padded(self) -> int:
        """Side that the tiles cover, at least `length`."""
        return self.starts[-1] + self.tile


def plan_axis(length: int, tile: int, overlap: int, multiple: int, align: int) -> Axis:
    """Place tiles along one side.

    A side that fits into one tile gets one, padded to `multiple`. A longer one gets as few tiles as possible with sides
    of at most `tile`, each as small as that count allows. Their starts are their side less `overlap` apart, rounded
    down to `align`, and the last tile is moved back to end at the side padded to `align`.

    Args:
        length: the image's side, ≥ 1. tile: the largest, a multiple of `multiple`. overlap: 0 ≤ overlap < tile.
        multiple: what the network's input must be a multiple of; itself a multiple of `align`.
        align: grid on which tiles start. All in input pixels.

    Raises:
        ValueError: if tile or overlap is out of range, or the step would be 0.
    """
    if tile < multiple or tile % multiple:
        raise ValueError(f"tile is {tile}, expected a multiple of {multiple} (the network's window and halvings)")
    if not 0 <= overlap < tile:
        raise ValueError(f"overlap is {overlap}, expected 0 to tile − 1 = {tile - 1}")
    shared = _rounded_up(overlap, align)  # pixels that neighbouring tiles share
    if shared >= tile:
        raise ValueError(f"overlap is {overlap}, expected at most {tile - align} in a tile of {tile}")
    extent = _rounded_up(length, multiple)
    if length <= tile:
        return Axis(length, extent, (0,), extent)
    covered = _rounded_up(length, align)
    count = -(-(covered - shared) // (tile - shared))
    side = _rounded_up(-(-(covered + (count - 1) * shared) // count), multiple)
    last = covered - side
    return Axis(length, side, (*range(0, last, side - shared), last), extent)


def _rounded_up(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple


def reflect(start: int, count: int, length: int) -> np.ndarray:
    """Indices start … start + count − 1 reflected into 0 … length − 1 without repeating the border, int64 [count].

    Reflection goes on back and forth, so padding may exceed the side; a single pixel is repeated.
    """
    if length == 1:
        return np.zeros(count, dtype=np.int64)
    index = np.arange(start, start + count) % (2 * (length - 1))
    return np.minimum(index, 2 * (length - 1) - index)


def feather(axis: Axis, scale: int) -> np.ndarray:
    """Blending weights of every tile along an axis, float32 [tiles, tile · scale]; they sum to 1 at every pixel.

    They cross-fade with sin² and cos² over the whole width of each overlap.
    """
    n, side = len(axis.starts), axis.tile * scale
    weights = np.ones((n, side), dtype=np.float64)
    position = np.arange(side) + 0.5
    for i in range(1, n):
        width = (axis.starts[i - 1] + axis.tile - axis.starts[i]) * scale
        if width > 0:
            ramp = np.sin(np.pi / 2 * np.clip(position / width, 0, 1)) ** 2
            weights[i] *= ramp
            weights[i - 1] *= ramp[::-1]
    total = np.zeros(axis.padded * scale)
    for start, weight in zip(axis.starts, weights, strict=True):
        total[start * scale : start * scale + side] += weight
    for start, weight in zip(axis.starts, weights, strict=True):
        weight /= total[start * scale : start * scale + side]
    return weights.astype(np.float32)


class Blender:
    """Accumulates weighted tiles and emits finished rows.

    Args:
        rows, columns: the tiles along both sides, as from `plan_axis`.
        scale: output side / input side.
        emit: called with (top, band) for consecutive bands of finished output rows, band float32
            [3, height, width] cropped to the image.
        row_weights, column_weights: as from `feather`, which is the default.
    """

    def __init__(
        self,
        rows: Axis,
        columns: Axis,
        scale: int,
        emit: Callable[[int, np.ndarray], None],
        row_weights: np.ndarray | None = None,
        column_weights: np.ndarray | None = None,
    ):
        self._rows, self._columns, self._scale, self._emit = rows, columns, scale, emit
        # The only tile of an image, without weights of its own, is its result.
        self._is_single = row_weights is None and column_weights is None and len(rows.starts) * len(columns.starts) == 1
        self._row_weights = feather(rows, scale) if row_weights is None else row_weights
        self._column_weights = feather(columns, scale) if column_weights is None else column_weights
        self._band: np.ndarray | None = None
        self._row = 0

    def add(self, row: int, column: int, pixels: np.ndarray | None) -> None:
        """Add the tile at (row, column) of the plan; tiles come in row-major order, each once.

        Args:
            pixels: float32 [3, rows.tile · scale, columns.tile · scale], or None for a tile that adds nothing.
        """
        scale = self._scale
        if self._is_single and pixels is not None:
            self._emit(0, pixels[:, : self._rows.length * scale, : self._columns.length * scale])
            return
        if self._band is None:
            self._band = np.zeros((3, self._rows.tile * scale, self._columns.padded * scale), dtype=np.float32)
        if row > self._row:
            self._finish(self._rows.starts[row])
            self._row = row
        if pixels is not None:
            left = self._columns.starts[column] * scale
            weight = self._row_weights[row][:, None] * self._column_weights[column][None, :]
            self._band[:, :, left : left + pixels.shape[2]] += pixels * weight
        if row == len(self._rows.starts) - 1 and column == len(self._columns.starts) - 1:
            self._finish(self._rows.length)
            self._band = None

    def _finish(self, until: int) -> None:
        """Emit the band's rows above input row `until` and move the rest up."""
        assert self._band is not None
        scale = self._scale
        top = self._rows.starts[self._row]
        count = (min(until, self._rows.length) - top) * scale
        self._emit(top * scale, self._band[:, :count, : self._columns.length * scale])
        shift = (until - top) * scale
        keep = self._band.shape[1] - shift
        self._band[:, : max(keep, 0)] = self._band[:, shift:].copy()
        self._band[:, max(keep, 0) :] = 0
