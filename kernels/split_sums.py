"""A sum divided over programs: each stores its part of a tile, and the last one adds the parts up.

The parts of a tile are in a workspace, which stays in the L2 cache. The last program, known by an integer counter, adds
them in their order, whoever wrote them when, so that results are bitwise the same from run to run. In a kernel ::

    store_part_of_sum(p_tile, b_y, i_split, BLOCK_M, BLOCK_N)         # for each tile of the program
    is_last = is_last_part(p_counter, SPLIT)
    if is_last:
        b_y = sum_of_parts(p_tile, SPLIT, BLOCK_M, BLOCK_N)
        ...

where p_tile points to the tile's parts [SPLIT, BLOCK_M, BLOCK_N], float32. The kernel also writes the statistics for
the next normalization (norm_stats.py). It has the parameters ::

    p_workspace,   # [tiles, SPLIT, BLOCK_M, BLOCK_N], float32, or None where SPLIT is 1
    p_parts,       # as in norm_stats.py
    p_counters,    # [images + tiles], int32 zeros before and after, or None without workspace and statistics
    p_next,        # as in norm_stats.py

which its launcher takes from `buffers`.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from resshift_fast.kernels import norm_stats
from resshift_fast.kernels.counters import counters
from resshift_fast.kernels.launch import Start
from resshift_fast.kernels.plans import PROCESSORS

PASSES = {"p_workspace": 2, **norm_stats.PASSES}  # written and read


@triton.jit
def store_part_of_sum(p_tile, b_y, i_split, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Store b_y [BLOCK_M, BLOCK_N] as part i_split of a tile."""
    o_y = tl.arange(0, BLOCK_M)[:, None] * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    tl.store(p_tile + i_split.to(tl.int64) * (BLOCK_M * BLOCK_N) + o_y, b_y)


@triton.jit
def is_last_part(p_counter, parts):
    """Whether all `parts` programs have stored theirs; p_counter is 0 before the first of them and after the last."""
    tl.debug_barrier()  # all threads have stored before one of them releases the stores
    is_last = tl.atomic_add(p_counter, 1, sem="acq_rel", scope="gpu") == parts - 1
    tl.debug_barrier()
    if is_last:
        tl.store(p_counter, 0)
    return is_last


@triton.jit
def sum_of_parts(p_tile, SPLIT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """The sum of a tile's parts, read past the L1 cache, which does not see what other multiprocessors write."""
    o_y = tl.arange(0, BLOCK_M)[:, None] * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    b_y = tl.load(p_tile + o_y, cache_modifier=".cg")
    for i in range(1, SPLIT):
        b_y += tl.load(p_tile + i * (BLOCK_M * BLOCK_N) + o_y, cache_modifier=".cg")
    return b_y


def split(tiles: int, chunks: int) -> tuple[int, int]:
    """(parts of the sum, blocks of it that each has) with which so many tiles fill the multiprocessors.

    They follow from shapes alone, so that the order of summation is the same on every GPU.
    """
    parts = min(max(PROCESSORS // tiles, 1), chunks)
    each = triton.cdiv(chunks, parts)
    return triton.cdiv(chunks, each), each


class Plan(NamedTuple):
    """The start of such a kernel, and the sizes of the tensors that it works with."""

    start: Start
    workspace: int  # elements, 0 where the sum is not divided
    tiles: int
    parts: int  # of an image's statistics
    slots: int


def buffers(y: Tensor, plan: Plan, num_groups: int, statistics: Tensor | None) -> tuple[Tensor | None, ...]:
    """p_workspace, p_parts, p_counters and p_next for the image y; `statistics` of num_groups groups are the last."""
    batch = y.shape[0]
    workspace = y.new_empty(plan.workspace, dtype=torch.float32) if plan.workspace else None
    parts = None
    if num_groups:
        parts = y.new_empty((batch, plan.parts, plan.slots, 3, num_groups), dtype=torch.float32)
    counts = counters(y, batch + plan.tiles) if plan.workspace or num_groups else None
    return workspace, parts, counts, statistics
