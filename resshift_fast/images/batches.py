"""Tiles of several photos, grouped into batches that go through the networks together."""

from collections.abc import Iterator
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
        image: index of its job. row, column: which one. top, left: its first pixel.
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
        rows, columns: its tiles. seed: of its noise. blender: takes restored tiles.
    """

    source: Source
    mask: np.ndarray | None
    rows: Axis
    columns: Axis
    seed: int
    blender: Blender


def plan_batches(jobs: list[Job], batch_size: int) -> Iterator[list[Tile]]:
    """Consecutive tiles of one shape, `batch_size` at most, in row-major order image by image.

    A batch holds either tiles that are masked in part or tiles that are not, which need no network.
    """
    batch: list[Tile] = []
    kind: tuple | None = None
    for i, job in enumerate(jobs):
        for row, top in enumerate(job.rows.starts):
            for column, left in enumerate(job.columns.starts):
                tile = Tile(i, row, column, top, left)
                its_kind = (job.rows.tile, job.columns.tile, needs_restoring(job, tile))
                if batch and (len(batch) == batch_size or its_kind != kind):
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
    """Whether the tile has anything to restore: without a mask always, with one where its mask reaches in."""
    if job.mask is None:
        return True
    return bool(job.mask[tile.top : tile.top + job.rows.tile, tile.left : tile.left + job.columns.tile].any())


def _indices(axis: Axis, start: int, margin: int) -> np.ndarray:
    """Source pixels under a tile and `margin` pixels around: the padded image continues by its border pixels, as
    bicubic interpolation of the whole would take it, and the padding itself reflects the image."""
    inside = np.arange(start - margin, start + axis.tile + margin).clip(0, axis.extent - 1)
    return reflect(0, axis.extent, axis.length)[inside]


def crop(job: Job, tile: Tile, margin: int) -> Tensor:
    """float32 [3, height + 2 · margin, width + 2 · margin] in [−1, 1]: the tile's pixels and those around it."""
    return job.source.crop(_indices(job.rows, tile.top, margin), _indices(job.columns, tile.left, margin))


def crop_mask(job: Job, tile: Tile) -> Tensor:
    """bool [1, height, width], True where the tile has to be filled in."""
    assert job.mask is not None
    rows, columns = _indices(job.rows, tile.top, 0), _indices(job.columns, tile.left, 0)
    return torch.from_numpy(job.mask[rows[:, None], columns[None, :]])[None]
