"""Tiles of several photos, grouped into batches that go through the networks together."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from resshift_fast.images.sources import Source
from resshift_fast.images.tiling import Axis, Blender, reflect


@dataclass(frozen=True)
class Tile:
    """One tile of one image.

    Args:
        image: index of its job. row, column: position among the tiles. top, left: its first pixel.
    """

    image: int
    row: int
    column: int
    top: int
    left: int


@dataclass
class Job:
    """One image under restoration.

    Args:
        source: its pixels. mask: bool [H, W], True where to fill in; None for a model without masks.
        rows, columns: its tiles. seed: of its noise. blender: accumulates the restored tiles.
        filled: float32 [3, H, W] in [−1, 1], its pixels with those of the mask filled in; None for a model that does
            without.
    """

    source: Source
    mask: np.ndarray | None
    rows: Axis
    columns: Axis
    seed: int
    blender: Blender
    filled: Tensor | None = None


def _count_tiles(jobs: list[Job]) -> dict[tuple[int, int], int]:
    """(height, width) of a tile to how many there are of it, in all images."""
    counts: dict[tuple[int, int], int] = {}
    for job in jobs:
        shape = job.rows.tile, job.columns.tile
        counts[shape] = counts.get(shape, 0) + len(job.rows.starts) * len(job.columns.starts)
    return counts


def plan_batches(jobs: list[Job], batch_size: Callable[[tuple[int, int], int], int]) -> Iterator[list[Tile]]:
    """Batches of consecutive tiles of one shape, in row-major order, image by image.

    Tiles that the mask does not reach need no network, and are never in one batch with tiles that do.

    Args:
        jobs: the images.
        batch_size: of the (height, width) of a tile, and how many there are of it, the most that share a batch.
    """
    most = {shape: batch_size(shape, count) for shape, count in _count_tiles(jobs).items()}
    batch: list[Tile] = []
    kind: tuple | None = None
    for i, job in enumerate(jobs):
        shape = job.rows.tile, job.columns.tile
        for row, top in enumerate(job.rows.starts):
            for column, left in enumerate(job.columns.starts):
                tile = Tile(i, row, column, top, left)
                its_kind = (shape, needs_restoring(job, tile))
                if batch and (len(batch) == most[shape] or its_kind != kind):
                    yield batch
                    batch = []
                batch, kind = [*batch, tile], its_kind
    if batch:
        yield batch


def shape_of(jobs: list[Job], batch: list[Tile]) -> tuple[int, int, int]:
    """(height, width, tiles) of a batch."""
    job = jobs[batch[0].image]
    return job.rows.tile, job.columns.tile, len(batch)


def needs_restoring(job: Job, tile: Tile) -> bool:
    """Whether the tile has pixels to restore: always without a mask, else if the mask overlaps it."""
    if job.mask is None:
        return True
    return bool(job.mask[tile.top : tile.top + job.rows.tile, tile.left : tile.left + job.columns.tile].any())


def _indices(axis: Axis, start: int, margin: int) -> np.ndarray:
    """Indices of the source pixels of a tile and of `margin` pixels on either side.

    The padding reflects the image. Beyond the padded image its border pixel is repeated, as in bicubic interpolation
    of the whole.
    """
    inside = np.arange(start - margin, start + axis.tile + margin).clip(0, axis.extent - 1)
    return reflect(0, axis.extent, axis.length)[inside]


def crop(job: Job, tile: Tile, margin: int) -> Tensor:
    """float32 [3, height + 2 · margin, width + 2 · margin] in [−1, 1]: the tile's pixels and those around it."""
    rows, columns = _indices(job.rows, tile.top, margin), _indices(job.columns, tile.left, margin)
    return job.source.crop(rows, columns) if job.filled is None else job.filled[:, rows[:, None], columns[None, :]]


def crop_mask(job: Job, tile: Tile) -> Tensor:
    """bool [1, height, width], True where the tile has to be filled in."""
    assert job.mask is not None
    rows, columns = _indices(job.rows, tile.top, 0), _indices(job.columns, tile.left, 0)
    return torch.from_numpy(job.mask[rows[:, None], columns[None, :]])[None]
