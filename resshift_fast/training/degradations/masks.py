r"""Masks for inpainting, mixed after LaMa (arXiv 2109.07161, section 2.3 and its supplement).

Strokes are chains of thick segments with round ends; boxes are rectangles; blobs are star-shaped outlines
:math:`r(\theta) = r_0\,(1 + \sum_k a_k \cos(k\theta + \varphi_k))`, which stand for segmented objects without a
segmentation network; grids hide regular lines, as super-resolution does. 1 is unknown, 0 is known.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from resshift_fast.models.filling import fill
from resshift_fast.training.degradations.drawing import check_range, check_weights, from_options, pick
from resshift_fast.training.interfaces import Batch, Draws

if TYPE_CHECKING:
    from resshift_fast.training.config import TrainConfig

KINDS = ("strokes", "boxes", "blobs", "grid")
HARMONICS = 5


@dataclass(frozen=True)
class MaskDraw:
    """Shapes of the mask of one sample, in pixels; the mask is their union.

    Attributes:
        segments: float [N, 5]: row and column of both ends, and the width of a stroke.
        boxes: int64 [N, 4]: top, left, bottom, right; the last two are outside.
        blobs: float [N, 3 + 2 K]: row and column of the centre, r₀, and a_k and φ_k for k = 1 … K.
        lines: (period, width, offset) of the unknown rows, then of the unknown columns; None without a grid.
    """

    segments: Tensor | None = None
    boxes: Tensor | None = None
    blobs: Tensor | None = None
    lines: tuple[tuple[int, int, int], tuple[int, int, int]] | None = None


@dataclass(frozen=True)
class Masks:
    """How masks are drawn. Lengths are for pictures of 256 pixels a side and grow with the shorter side."""

    weights: tuple[float, float, float, float] = (0.4, 0.3, 0.2, 0.1)
    """Relative frequencies of strokes, boxes, blobs and grids; a mask has one kind."""
    strokes: tuple[int, int] = (1, 5)
    """Number of strokes."""
    stroke_vertices: tuple[int, int] = (1, 5)
    """Segments of a stroke."""
    stroke_length: tuple[float, float] = (10.0, 200.0)
    """Length of a segment in pixels."""
    stroke_width: tuple[float, float] = (5.0, 100.0)
    """Width of a stroke in pixels."""
    boxes: tuple[int, int] = (1, 4)
    """Number of boxes."""
    box_side: tuple[float, float] = (30.0, 150.0)
    """Side of a box in pixels."""
    margin: float = 10.0
    """Distance of boxes from the border in pixels."""
    blobs: tuple[int, int] = (1, 3)
    """Number of blobs."""
    blob_radius: tuple[float, float] = (15.0, 70.0)
    """Mean radius of a blob in pixels."""
    grid_period: tuple[int, int] = (2, 4)
    """Period of the lines of a grid in pixels, whatever the picture's size."""
    largest: float = 0.95
    """Largest unknown share of a picture; shapes after the first are left out where a mask would pass it."""
    filled: bool = False
    """Fill unknown pixels in smoothly instead of with −1; see `models.filling`."""

    def __post_init__(self) -> None:
        check_weights("masks", len(KINDS), weights=self.weights)
        names = ("stroke_length", "stroke_width", "box_side", "blob_radius")
        check_range("masks", 1.0, **{name: getattr(self, name) for name in names})
        counts = ("strokes", "stroke_vertices", "boxes", "blobs")
        check_range("masks", 1, 20, **{name: getattr(self, name) for name in counts})
        check_range("masks", 2, grid_period=self.grid_period)
        if self.margin < 0 or not 0 < self.largest <= 1:
            raise ValueError(f"masks: expected margin ≥ 0 and 0 < largest ≤ 1, got {self.margin} and {self.largest}")

    def draw(self, draws: Draws, height: int, width: int) -> list[MaskDraw]:
        """Shapes for each sample of a batch."""
        return [self._draw_one(values.tolist(), height, width) for values in draws.uniform(_VALUES).cpu()]

    def _draw_one(self, values: list[float], height: int, width: int) -> MaskDraw:
        u = iter(values)
        kind, unit = pick(next(u), self.weights), min(height, width) / 256
        if kind == 0:
            return MaskDraw(segments=torch.tensor(self._segments(u, height, width, unit)))
        if kind == 1:
            return MaskDraw(boxes=torch.tensor(self._boxes(u, height, width, unit)))
        if kind == 2:
            return MaskDraw(blobs=torch.tensor(self._blobs(u, height, width, unit)))
        rows, columns = self._lines(u), self._lines(u)
        return MaskDraw(lines=(rows, columns))

    def _segments(self, u: Any, height: int, width: int, unit: float) -> list[list[float]]:
        found = []
        for _ in range(_count(next(u), self.strokes)):
            row, column = next(u) * height, next(u) * width
            thickness = unit * _at(next(u), self.stroke_width)
            for _ in range(_count(next(u), self.stroke_vertices)):
                angle, length = 2 * math.pi * next(u), unit * _at(next(u), self.stroke_length)
                end_row = min(max(row + length * math.sin(angle), 0.0), height)
                end_column = min(max(column + length * math.cos(angle), 0.0), width)
                found.append([row, column, end_row, end_column, thickness])
                row, column = end_row, end_column
        return found

    def _boxes(self, u: Any, height: int, width: int, unit: float) -> list[list[int]]:
        found, margin = [], int(self.margin * unit)
        for _ in range(_count(next(u), self.boxes)):
            sides = [
                max(1, min(round(unit * _at(next(u), self.box_side)), side - 2 * margin)) for side in (height, width)
            ]
            top = margin + int(next(u) * (height - 2 * margin - sides[0] + 1))
            left = margin + int(next(u) * (width - 2 * margin - sides[1] + 1))
            found.append([top, left, top + sides[0], left + sides[1]])
        return found

    def _blobs(self, u: Any, height: int, width: int, unit: float) -> list[list[float]]:
        found = []
        for _ in range(_count(next(u), self.blobs)):
            blob = [next(u) * height, next(u) * width, unit * _at(next(u), self.blob_radius)]
            for order in range(1, HARMONICS + 1):
                # Fine details of an outline are small: the sum of all stays below 1, so that the radius is positive.
                blob += [0.4 / order * next(u), 2 * math.pi * next(u)]
            found.append(blob)
        return found

    def _lines(self, u: Any) -> tuple[int, int, int]:
        period = _count(next(u), self.grid_period)
        return period, _count(next(u), (1, period - 1)), int(next(u) * period)

    def degrade_batch(self, high: Tensor, scale: int, draws: Draws) -> Batch:
        """Make a training batch with masks; arguments as of `interfaces.BatchDegradation`.

        The low-quality picture is the high-quality one with −1, or `filled`, where the mask is 1.

        Raises:
            ValueError: for a scale other than 1.
        """
        if scale != 1:
            raise ValueError(f"masks are for inpainting models of scale 1, but the model's scale is {scale}")
        height, width = high.shape[2:]
        drawn = self.draw(draws, height, width)
        mask = torch.stack([rasterized(one, height, width, high.device, self.largest) for one in drawn])[:, None]
        low = fill(high, mask) if self.filled else torch.where(mask, -1.0, high)
        return Batch(high, low, mask.to(high.dtype) * 2 - 1)


# Uniform values that one mask needs at most: 20 strokes of 20 segments are the most that the settings allow.
_VALUES = 1024


def _at(u: float, limits: tuple[float, float]) -> float:
    return limits[0] + (limits[1] - limits[0]) * u


def _count(u: float, limits: tuple[int, int]) -> int:
    """A whole number between the limits, both included."""
    return limits[0] + int(u * (limits[1] - limits[0] + 1))


def rasterized(draw: MaskDraw, height: int, width: int, device: torch.device, largest: float = 1.0) -> Tensor:
    """The mask, bool [H, W]: a pixel is unknown if its centre is inside a shape.

    Args:
        draw: the shapes.
        height, width: sides in pixels.
        device: of the result.
        largest: largest unknown share; shapes after the first that would pass it are left out.
    """
    row = torch.arange(height, dtype=torch.float32, device=device)[:, None] + 0.5
    column = torch.arange(width, dtype=torch.float32, device=device) + 0.5
    if draw.lines is not None:
        (period, thickness, offset), (across, breadth, shift) = draw.lines
        rows = (torch.arange(height, device=device) - offset) % period < thickness
        columns = (torch.arange(width, device=device) - shift) % across < breadth
        return rows[:, None] | columns
    shapes = [_segment(row, column, *one) for one in _rows(draw.segments)]
    shapes += [_box(row, column, *one) for one in _rows(draw.boxes)]
    shapes += [_blob(row, column, *one) for one in _rows(draw.blobs)]
    mask = torch.zeros(height, width, dtype=torch.bool, device=device)
    for index, shape in enumerate(shapes):
        union = mask | shape
        fits = union.float().mean() <= largest
        mask = torch.where(fits, union, mask) if index else union
    return mask


def _rows(shapes: Tensor | None) -> list[list[float]]:
    return [] if shapes is None else shapes.tolist()


def _segment(row: Tensor, column: Tensor, r0: float, c0: float, r1: float, c1: float, thickness: float) -> Tensor:
    """Whether the nearest point of the segment is within half the thickness."""
    down, right = r1 - r0, c1 - c0
    along = ((row - r0) * down + (column - c0) * right) / max(down * down + right * right, 1e-12)
    along = along.clamp(0, 1)
    return (row - r0 - along * down).square() + (column - c0 - along * right).square() <= (thickness / 2) ** 2


def _box(row: Tensor, column: Tensor, top: float, left: float, bottom: float, right: float) -> Tensor:
    return (row > top) & (row < bottom) & (column > left) & (column < right)


def _blob(row: Tensor, column: Tensor, r0: float, c0: float, radius: float, *waves: float) -> Tensor:
    theta = torch.atan2((row - r0).expand(-1, column.numel()), (column - c0).expand(row.numel(), -1))
    pairs = enumerate(zip(waves[::2], waves[1::2], strict=True), start=1)
    outline = 1 + sum(amplitude * torch.cos(order * theta + phase) for order, (amplitude, phase) in pairs)
    return ((row - r0).square() + (column - c0).square()).sqrt() <= radius * outline


def from_config(config: TrainConfig, spec: Any) -> Masks:
    """The degradation "masks" of a configuration; `filled` is the model's unless it is given."""
    return from_options(Masks, {"filled": getattr(spec, "filled", False)} | config.degradation_options)
