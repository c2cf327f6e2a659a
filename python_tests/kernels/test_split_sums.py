"""Sums divided over programs against float64, and the partition of a sum."""

import pytest
import torch
import triton
import triton.language as tl
from comparison import assert_close
from golden_data import array

from resshift_fast.kernels.launch import Start, record
from resshift_fast.kernels.split_sums import (
    Plan,
    buffers,
    is_last_part,
    split,
    store_part_of_sum,
    sum_of_parts,
)

BLOCK_M, BLOCK_N = 4, 16


@triton.jit
def sum_kernel(
    p_x,  # [tiles, rows, BLOCK_M, BLOCK_N]
    p_y,  # [tiles, BLOCK_M, BLOCK_N]
    p_workspace,  # [tiles, SPLIT, BLOCK_M, BLOCK_N]
    p_counters,  # [tiles]
    rows,
    SPLIT: tl.constexpr,
    EACH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """The sum of the rows of a tile, of which a program has EACH."""
    i_tile, i_split = tl.program_id(0) // SPLIT, tl.program_id(0) % SPLIT
    o_y = tl.arange(0, BLOCK_M)[:, None] * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    b_y = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for i in range(EACH):
        i_row = i_split * EACH + i
        p_row = p_x + (i_tile * rows + i_row) * (BLOCK_M * BLOCK_N)
        b_y += tl.load(p_row + o_y, mask=o_y < (rows - i_row) * (BLOCK_M * BLOCK_N), other=0.0)
    p_tile = p_workspace + i_tile * (SPLIT * BLOCK_M * BLOCK_N)
    store_part_of_sum(p_tile, b_y, i_split, BLOCK_M, BLOCK_N)
    if is_last_part(p_counters + i_tile, SPLIT):
        b_y = sum_of_parts(p_tile, SPLIT, BLOCK_M, BLOCK_N)
        tl.store(p_y + i_tile * (BLOCK_M * BLOCK_N) + o_y, b_y)


@pytest.mark.parametrize("tiles, rows, parts", [(3, 7, 4), (1, 5, 5), (2, 4, 1)])
def test_the_last_program_adds_all_parts_up(tiles, rows, parts, device):
    x = (array("split_sums.x", tiles, rows, BLOCK_M, BLOCK_N) - 2.3).float().to(device)
    workspace = torch.full((tiles, parts, BLOCK_M, BLOCK_N), torch.nan, device=device)
    counts = torch.zeros(tiles, dtype=torch.int32, device=device)
    constants = {"SPLIT": parts, "EACH": triton.cdiv(rows, parts), "BLOCK_M": BLOCK_M, "BLOCK_N": BLOCK_N}
    start = Start(sum_kernel, (tiles * parts,), rows, **constants)
    found = [torch.full((tiles, BLOCK_M, BLOCK_N), torch.nan, device=device) for _ in range(2)]
    for y in found:  # the second time with the counters as the first has left them
        start(x, y, workspace, counts)
        assert_close("sum", y, x.double().sum(1), 1e-6)
    assert torch.equal(*found) and not counts.any()


@pytest.mark.parametrize("tiles, chunks", [(10, 10), (20, 5), (40, 15), (1, 3), (200, 7), (7, 1)])
def test_the_parts_of_a_sum_are_all_of_it(tiles, chunks):
    parts, each = split(tiles, chunks)
    assert parts * each >= chunks > (parts - 1) * each


@pytest.mark.parametrize("workspace, groups", [(0, 0), (96, 0), (0, 4), (96, 4)])
def test_tensors_that_a_plan_needs(workspace, groups):
    y, following = torch.empty(2, 8, 3, 3, device="meta"), torch.empty(2, 2, 4, device="meta")
    start = Start(sum_kernel, (1,))
    with record():
        found = buffers(y, Plan(start, workspace, 6, 5, 3), groups, following if groups else None)
    sizes = [None if t is None else tuple(t.shape) for t in found]
    parts, counts = (2, 5, 3, 3, groups) if groups else None, (8,) if workspace or groups else None
    assert sizes == [(workspace,) if workspace else None, parts, counts, (2, 2, 4) if groups else None]
