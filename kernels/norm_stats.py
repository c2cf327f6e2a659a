"""Statistics for the next group normalization, written by the kernel that makes the image.

A kernel has every value of its result in registers once. `store_part` and `finish`, called in its epilogue, spare the
normalization a launch that reads the whole image again only to find mean and deviation of its groups. They are made
from the values as they are stored, rounded to the image's dtype.

A part is any set of pixels of one image; usually a part is the rows of one tile. The image's channels are divided into
tiles of BLOCK_N, and for every part each of them is given to `store_part` exactly once, in one program or several. It
writes count, mean and sum of squared deviations of each group it has channels of: a group that begins in one tile and
ends in another has an entry, a slot, from each. Then each program calls `finish` once. The last program of an image,
known by an integer counter, combines the entries of all parts in a fixed order (Chan, Golub and LeVeque, 1983) and
writes mean and 1 / √(variance + eps), so that results are bitwise the same from run to run. Deviations are taken from a
mean that is known by then, so that nothing cancels where the mean is far above the deviation.

A kernel with tiles of [BLOCK_M pixels, BLOCK_N channels] has the parameters ::

    p_parts,       # [images, parts, SLOTS, 3, NEXT_GROUPS], float32, or None
    p_counters,    # [images], int32 zeros before and after, or None
    p_next,        # [images, 2, NEXT_GROUPS], float32, or None
    next_eps, NEXT_GROUPS: tl.constexpr, SLOTS: tl.constexpr, TILE_GROUPS: tl.constexpr, ROWS: tl.constexpr

and ends, if a program has one tile, with ::

    b_y = store_sum(b_y, p_y, p_bias, p_residual, o_y, o_n, m_y, m_n)
    if NEXT_GROUPS:
        write_statistics(
            b_y, m_m, p_parts, p_counters, p_next, i_image, i_part, parts, i_n, next_eps,
            C, NEXT_GROUPS, SLOTS, TILE_GROUPS, ROWS, BLOCK_N,
        )

Its launcher takes the four constants from `constants`, the three tensors from `buffers`, and declares `passes=PASSES`,
because the parts are written and read.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from resshift_fast.kernels.counters import counters
from resshift_fast.kernels.group_norm_tiles import reciprocal_deviation, sum_groups, to_channels
from resshift_fast.kernels.launch import Start

PASSES = {"p_parts": 2}
ENTRIES = 512  # that a warp of the last program combines at a time, 16 a thread; of two warps, which have little, half


@triton.jit
def store_part(
    b_y, m_m, p_parts, i_image, i_part, parts, i_n, C: tl.constexpr, GROUPS: tl.constexpr, SLOTS: tl.constexpr,
    TILE_GROUPS: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Write the entries of one tile.

    Args:
        b_y: [BLOCK_M, BLOCK_N], float32 as they are stored; channels from C on are ignored.
        m_m: [BLOCK_M], whether a row is a pixel of the part.
        i_image, i_part: int64, and the part of the image's `parts`.
        i_n: index of the tile among those of BLOCK_N channels.
    """
    CG: tl.constexpr = C // GROUPS
    o_n = i_n * BLOCK_N + tl.arange(0, BLOCK_N)
    o_g = i_n * BLOCK_N // CG + tl.arange(0, TILE_GROUPS)
    m_member = (o_n // CG)[:, None] == o_g[None, :]
    m_member = m_member & (o_n < C)[:, None]
    b_channels = tl.sum(m_member.to(tl.float32), axis=0)
    b_count = b_channels * tl.sum(m_m.to(tl.float32), axis=0)
    b_total = tl.maximum(b_count, 1.0)

    m_m = m_m[:, None]
    b_guess = sum_groups(tl.sum(tl.where(m_m, b_y, 0.0), axis=0), m_member) / b_total
    b_delta = tl.where(m_m, b_y - to_channels(b_guess, m_member)[None, :], 0.0)
    b_rest = sum_groups(tl.sum(b_delta, axis=0), m_member) / b_total
    b_m2 = sum_groups(tl.sum(b_delta * b_delta, axis=0), m_member) - b_count * b_rest * b_rest

    i_slot = i_n - o_g * CG // BLOCK_N
    p_entry = p_parts + ((i_image * parts + i_part) * SLOTS + i_slot) * 3 * GROUPS + o_g
    m_g = b_channels > 0.0
    tl.store(p_entry, b_count, mask=m_g)
    tl.store(p_entry + GROUPS, b_guess + b_rest, mask=m_g)
    tl.store(p_entry + 2 * GROUPS, b_m2, mask=m_g)


@triton.jit
def finish(
    p_parts, p_counters, p_statistics, i_image, parts, programs, eps, C: tl.constexpr, GROUPS: tl.constexpr,
    SLOTS: tl.constexpr, ROWS: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Combine the entries of an image in the last of its `programs`; the others return at once."""
    CG: tl.constexpr = C // GROUPS
    ALL_GROUPS: tl.constexpr = triton.next_power_of_2(GROUPS)
    tl.debug_barrier()  # all threads have written their entries before one of them counts the program
    if tl.atomic_add(p_counters + i_image, 1, sem="acq_rel") == programs - 1:
        o_g = tl.arange(0, ALL_GROUPS)
        first = o_g * CG // BLOCK_N  # the tile in which a group begins
        b_slots = tl.where(o_g < GROUPS, (o_g * CG + CG - 1) // BLOCK_N - first + 1, 0)
        b_count = tl.zeros((ROWS, ALL_GROUPS), tl.float32)
        b_mean = tl.zeros((ROWS, ALL_GROUPS), tl.float32)
        b_m2 = tl.zeros((ROWS, ALL_GROUPS), tl.float32)
        b_offsets = tl.arange(0, ROWS)[:, None] * (3 * GROUPS) + o_g[None, :]
        p_parts += i_image * parts * SLOTS * 3 * GROUPS
        for i_first in range(0, parts * SLOTS, ROWS):
            i_r = i_first + tl.arange(0, ROWS)
            m_r = (i_r < parts * SLOTS)[:, None] & ((i_r % SLOTS)[:, None] < b_slots[None, :])
            p_entry = p_parts + b_offsets
            # Past the L1 cache, which does not see what other multiprocessors write.
            b_more = tl.load(p_entry, mask=m_r, other=0.0, cache_modifier=".cg")
            b_other = tl.load(p_entry + GROUPS, mask=m_r, other=0.0, cache_modifier=".cg")
            b_other_m2 = tl.load(p_entry + 2 * GROUPS, mask=m_r, other=0.0, cache_modifier=".cg")
            b_sum = b_count + b_more
            b_share = b_more / tl.maximum(b_sum, 1.0)
            b_delta = tl.where(m_r, b_other - b_mean, 0.0)
            b_mean += b_delta * b_share
            b_m2 += b_other_m2 + b_delta * b_delta * b_count * b_share
            b_count = b_sum
            p_parts += ROWS * 3 * GROUPS
        b_total = tl.maximum(tl.sum(b_count, axis=0), 1.0)
        b_guess = tl.sum(b_mean * b_count, axis=0) / b_total
        b_delta = b_mean - b_guess[None, :]
        b_rest = tl.sum(b_delta * b_count, axis=0) / b_total
        b_sum_m2 = tl.sum(b_m2 + b_delta * b_delta * b_count, axis=0) - b_total * b_rest * b_rest
        p_group = p_statistics + i_image * 2 * GROUPS + o_g
        tl.store(p_group, b_guess + b_rest, mask=o_g < GROUPS)
        tl.store(p_group + GROUPS, reciprocal_deviation(b_sum_m2, b_total, eps), mask=o_g < GROUPS)
        tl.store(p_counters + i_image, 0)


@triton.jit
def write_statistics(
    b_y, m_m, p_parts, p_counters, p_statistics, i_image, i_part, parts, i_n, eps, C: tl.constexpr,
    GROUPS: tl.constexpr, SLOTS: tl.constexpr, TILE_GROUPS: tl.constexpr, ROWS: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """`store_part` and `finish` where every program has one tile."""
    store_part(b_y, m_m, p_parts, i_image, i_part, parts, i_n, C, GROUPS, SLOTS, TILE_GROUPS, BLOCK_N)
    programs = parts * ((C + BLOCK_N - 1) // BLOCK_N)
    finish(p_parts, p_counters, p_statistics, i_image, parts, programs, eps, C, GROUPS, SLOTS, ROWS, BLOCK_N)


class Plan(NamedTuple):
    """The start of a kernel that writes statistics, and their parts of an image and slots."""

    start: Start
    parts: int
    slots: int


def constants(channels: int, num_groups: int, block_n: int, num_warps: int) -> dict[str, int]:
    """Constants NEXT_GROUPS, SLOTS, TILE_GROUPS and ROWS of a kernel whose tiles have block_n channels.

    Args:
        channels: of the image that the kernel writes. num_groups: of the normalization; 0 writes no statistics.
    """
    if not num_groups:
        return {"NEXT_GROUPS": 0, "SLOTS": 1, "TILE_GROUPS": 1, "ROWS": 1}
    size = channels // num_groups
    slots = max((g * size + size - 1) // block_n - g * size // block_n + 1 for g in range(num_groups))
    tiles = range(0, channels, block_n)
    groups = max((min(n + block_n, channels) - 1) // size - n // size + 1 for n in tiles)
    entries = ENTRIES * num_warps if num_warps > 2 else ENTRIES * num_warps // 2
    rows = max(entries // triton.next_power_of_2(num_groups), 1)
    return {
        "NEXT_GROUPS": num_groups,
        "SLOTS": slots,
        "TILE_GROUPS": triton.next_power_of_2(groups),
        "ROWS": rows,
    }


class Buffers(NamedTuple):
    """Tensors of a kernel that writes statistics: p_parts, p_counters and p_next of the module's description."""

    parts: Tensor | None
    counters: Tensor | None
    statistics: Tensor | None


NONE = Buffers(None, None, None)


def buffers(y: Tensor, parts: int, slots: int, num_groups: int, statistics: Tensor | None = None) -> Buffers:
    """Uninitialized parts and statistics, and counters, for the image y that a kernel writes in `parts` parts.

    Args:
        slots, num_groups: SLOTS and NEXT_GROUPS of `constants`; without groups all three are None.
        statistics: float32 [B, 2, num_groups] to write into; None allocates it.
    """
    if not num_groups:
        return NONE
    batch = y.shape[0]
    values = y.new_empty((batch, parts, slots, 3, num_groups), dtype=torch.float32)
    if statistics is None:
        statistics = y.new_empty((batch, 2, num_groups), dtype=torch.float32)
    return Buffers(values, counters(y, batch), statistics)
