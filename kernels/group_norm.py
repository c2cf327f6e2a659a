"""Triton kernels for `group_norm`: statistics, affine, scale-shift and SiLU; `statistics` alone for other kernels.

A group small enough for one program takes one launch: the program normalizes what it holds in registers, or reads x
again. Where there are fewer groups than multiprocessors, several programs read all pixels of a group for its
statistics, in the same order, and each normalizes some of them: 32 groups of 32² pixels in 128 programs.

Larger groups take two launches: `group_stats_kernel` writes a mean and a sum of squares for each part of the image, and
every program of `group_norm_apply_kernel` combines the parts of its groups in the same order before it normalizes.
Tiles and statistics are in group_norm_tiles.py, the backward pass in group_norm_backward.py.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from resshift_fast.kernels.dependents import wait_for_previous
from resshift_fast.kernels.group_norm_backward import backward, unsupported_backward
from resshift_fast.kernels.group_norm_tiles import (
    Plan,
    add_pixels,
    affine_rows,
    combine_parts,
    combine_slots,
    dense,
    forward_plan,
    group_members,
    group_size,
    like,
    load_affine,
    normalize,
    reciprocal_deviation,
    slot_statistics,
    tile_offsets,
    tile_start,
    to_channels,
    unsupported,
)
from resshift_fast.kernels.launch import Start
from resshift_fast.kernels.plans import PROCESSORS, planned
from resshift_fast.kernels.tuning import Config, Space, bucket

__all__ = ["backward", "forward", "statistics", "unsupported", "unsupported_backward"]

# Only this kernel is tuned: its block changes no sum. The order in which the others sum follows from shapes alone.
# Bucket: BLOCK_C, pixels of the batch.
APPLY = Space(
    "group_norm_apply",
    candidates=lambda key: [_apply_config(key[0], *c) for c in ((4096, 4), (4096, 8), (8192, 8), (16384, 8))],
    default=lambda arch, key: _apply_config(key[0], 4096 if arch == 100 else 8192, 8),
)


MAX_WRITERS = 8  # programs of one group, which all read it
MIN_WRITTEN = 1024  # elements of one of them, at least: four warps with 8 a thread


def _apply_config(block_c: int, tile: int, num_warps: int) -> Config:
    return Config({"BLOCK_P": max(tile // block_c, 1)}, num_warps=num_warps)


@triton.jit
def read_and_keep(
    p_x, i_image, i_chunk, i_writer, pixels, C: tl.constexpr, CHUNK: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    WRITERS: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """The i_writer-th of WRITERS tiles [BLOCK_P, BLOCK_C] of a chunk, and what `slot_statistics` returns of all."""
    b_p = tl.arange(0, BLOCK_P)
    m_c = (tl.arange(0, BLOCK_C) < CHUNK)[None, :]
    b_offsets = tile_offsets(pixels, C, CHANNELS_LAST, BLOCK_P, BLOCK_C)
    b_own = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    b_mean = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    b_m2 = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    b_count = tl.zeros((BLOCK_P,), tl.float32)
    for i in tl.static_range(WRITERS):  # unrolled, so that all tiles are loaded before the first is needed
        m_p = i * BLOCK_P + b_p < pixels
        p_tile = p_x + tile_start(i_image, i_chunk, i * BLOCK_P, pixels, C, CHUNK, CHANNELS_LAST)
        b_x = tl.load(p_tile + b_offsets, mask=m_p[:, None] & m_c, other=0.0).to(tl.float32)
        b_mean, b_m2 = add_pixels(b_x, m_p, i + 1.0, b_mean, b_m2)
        b_count += m_p.to(tl.float32)
        b_own = tl.where(i_writer == i, b_x, b_own)
    return b_own, b_mean, b_m2, b_count


@triton.jit
def group_norm_fwd_kernel(
    p_x,  # [B, C, pixels] or [B, pixels, C]
    p_weight,  # [C]
    p_bias,  # [C]
    p_scale,  # [B, C], or None
    p_shift,  # [B, C], or None
    p_y,  # like x
    p_mean,  # [B, GROUPS], float32
    p_rstd,  # [B, GROUPS], float32
    pixels,
    scale_stride,
    shift_stride,
    eps,
    C: tl.constexpr,
    GROUPS: tl.constexpr,
    K: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    SILU: tl.constexpr,
    RESIDENT: tl.constexpr,
    WRITERS: tl.constexpr,  # programs that normalize one tile each of the same chunk
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    wait_for_previous()
    CG: tl.constexpr = C // GROUPS
    CHUNK: tl.constexpr = K * CG
    CHUNKS: tl.constexpr = GROUPS // K
    i_writer = tl.program_id(0) % WRITERS
    i_image = (tl.program_id(0) // WRITERS // CHUNKS).to(tl.int64)
    i_chunk = tl.program_id(0) // WRITERS % CHUNKS
    b_p, b_k = tl.arange(0, BLOCK_P), tl.arange(0, BLOCK_K)
    m_member = group_members(CG, K, BLOCK_C, BLOCK_K)
    m_c = (tl.arange(0, BLOCK_C) < CHUNK)[None, :]
    b_offsets = tile_offsets(pixels, C, CHANNELS_LAST, BLOCK_P, BLOCK_C)
    total = group_size(pixels, CG)
    if RESIDENT:
        first = i_writer * BLOCK_P
        m_x = (first + b_p < pixels)[:, None] & m_c
        o_tile = tile_start(i_image, i_chunk, first, pixels, C, CHUNK, CHANNELS_LAST)
        if WRITERS > 1:
            b_x, b_mean, b_m2, b_count = read_and_keep(
                p_x, i_image, i_chunk, i_writer, pixels, C, CHUNK, CHANNELS_LAST, WRITERS, BLOCK_P, BLOCK_C
            )
            b_guess, b_rest, b_m2 = combine_slots(b_mean, b_m2, b_count, total, m_member)
        else:
            b_x = tl.load(p_x + o_tile + b_offsets, mask=m_x, other=0.0).to(tl.float32)
            b_guess, b_rest, b_m2 = combine_slots(b_x, 0.0, (b_p < pixels).to(tl.float32), total, m_member)
    else:
        b_mean, b_m2, b_count = slot_statistics(
            p_x, i_image, i_chunk, 0, pixels, pixels, C, CHUNK, CHANNELS_LAST, BLOCK_P, BLOCK_C
        )
        b_guess, b_rest, b_m2 = combine_slots(b_mean, b_m2, b_count, total, m_member)
    b_rstd = reciprocal_deviation(b_m2, total, eps)
    o_groups = i_image * GROUPS + i_chunk * K + b_k
    m_k = b_k < tl.where(i_writer == 0, K, 0)
    tl.store(p_mean + o_groups, b_guess + b_rest, mask=m_k)
    tl.store(p_rstd + o_groups, b_rstd, mask=m_k)

    b_gain, b_offset = load_affine(
        p_weight, p_bias, p_scale, p_shift, scale_stride, shift_stride, i_image, i_chunk * CHUNK, CHUNK, BLOCK_C
    )
    b_gain *= to_channels(b_rstd, m_member)
    b_guess, b_rest = to_channels(b_guess, m_member), to_channels(b_rest, m_member)
    if RESIDENT:
        b_y = normalize(b_x, b_guess, b_rest, b_gain, b_offset, SILU)
        tl.store(p_y + o_tile + b_offsets, b_y.to(p_y.dtype.element_ty), mask=m_x)
    else:
        for pixel in range(0, pixels, BLOCK_P):
            m_x = (pixel + b_p < pixels)[:, None] & m_c
            o_tile = tile_start(i_image, i_chunk, pixel, pixels, C, CHUNK, CHANNELS_LAST)
            b_x = tl.load(p_x + o_tile + b_offsets, mask=m_x, other=0.0).to(tl.float32)
            b_y = normalize(b_x, b_guess, b_rest, b_gain, b_offset, SILU)
            tl.store(p_y + o_tile + b_offsets, b_y.to(p_y.dtype.element_ty), mask=m_x)


@triton.jit
def group_stats_kernel(
    p_x,  # [B, C, pixels] or [B, pixels, C]
    p_mean,  # [B, parts, GROUPS], float32; [B, 2, GROUPS] where FINAL: mean, then 1 / deviation
    p_m2,  # [B, parts, GROUPS], float32: sum of squared deviations; None where FINAL
    pixels,
    parts,
    part_pixels,
    eps,
    C: tl.constexpr,
    GROUPS: tl.constexpr,
    K: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    FINAL: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    wait_for_previous()
    CG: tl.constexpr = C // GROUPS
    CHUNKS: tl.constexpr = GROUPS // K
    i_row = (tl.program_id(0) // CHUNKS).to(tl.int64)  # of [B, parts]
    i_chunk = tl.program_id(0) % CHUNKS
    i_image = i_row // parts
    first = (i_row % parts * part_pixels).to(tl.int32)
    last = tl.minimum(first + part_pixels, pixels)
    b_mean, b_m2, b_count = slot_statistics(
        p_x, i_image, i_chunk, first, last, pixels, C, K * CG, CHANNELS_LAST, BLOCK_P, BLOCK_C
    )
    total = group_size(last - first, CG)
    m_member = group_members(CG, K, BLOCK_C, BLOCK_K)
    b_guess, b_rest, b_sum = combine_slots(b_mean, b_m2, b_count, total, m_member)
    b_k = tl.arange(0, BLOCK_K)
    o_k = i_chunk * K + b_k
    if FINAL:
        p_mean += i_image * 2 * GROUPS + o_k
        tl.store(p_mean, b_guess + b_rest, mask=b_k < K)
        tl.store(p_mean + GROUPS, reciprocal_deviation(b_sum, total, eps), mask=b_k < K)
    else:
        tl.store(p_mean + i_row * GROUPS + o_k, b_guess + b_rest, mask=b_k < K)
        tl.store(p_m2 + i_row * GROUPS + o_k, b_sum, mask=b_k < K)


@triton.jit
def group_stats_combine_kernel(
    p_part_mean,  # [B, parts, GROUPS], float32
    p_part_m2,  # [B, parts, GROUPS], float32
    p_statistics,  # [B, 2, GROUPS], float32
    pixels,
    parts,
    part_pixels,
    eps,
    GROUPS: tl.constexpr,
    CG: tl.constexpr,
    K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    wait_for_previous()
    i_image = (tl.program_id(0) // (GROUPS // K)).to(tl.int64)
    i_group = tl.program_id(0) % (GROUPS // K) * K
    b_guess, b_rest, b_m2 = combine_parts(
        p_part_mean, p_part_m2, i_image, i_group, parts, part_pixels, pixels, GROUPS, CG, K, BLOCK_N, BLOCK_K
    )
    b_k = tl.arange(0, BLOCK_K)
    p_group = p_statistics + i_image * 2 * GROUPS + i_group + b_k
    tl.store(p_group, b_guess + b_rest, mask=b_k < K)
    tl.store(p_group + GROUPS, reciprocal_deviation(b_m2, group_size(pixels, CG), eps), mask=b_k < K)


@triton.jit
def group_norm_apply_kernel(
    p_x,  # [B, C, pixels] or [B, pixels, C]
    p_part_mean,  # [B, parts, GROUPS], float32
    p_part_m2,  # [B, parts, GROUPS], float32
    p_weight,  # [C]
    p_bias,  # [C]
    p_scale,  # [B, C], or None
    p_shift,  # [B, C], or None
    p_y,  # like x
    p_mean,  # [B, GROUPS], float32, or None
    p_rstd,  # [B, GROUPS], float32, or None
    pixels,
    parts,
    part_pixels,
    program_pixels,
    scale_stride,
    shift_stride,
    eps,
    C: tl.constexpr,
    GROUPS: tl.constexpr,
    K: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    SILU: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    wait_for_previous()
    CG: tl.constexpr = C // GROUPS
    CHUNK: tl.constexpr = K * CG
    CHUNKS: tl.constexpr = GROUPS // K
    blocks = tl.cdiv(pixels, program_pixels)
    i_chunk = tl.program_id(0) % CHUNKS
    i_block = tl.program_id(0) // CHUNKS % blocks
    i_image = (tl.program_id(0) // CHUNKS // blocks).to(tl.int64)
    b_guess, b_rest, b_m2 = combine_parts(
        p_part_mean, p_part_m2, i_image, i_chunk * K, parts, part_pixels, pixels, GROUPS, CG, K, BLOCK_N, BLOCK_K
    )
    b_rstd = reciprocal_deviation(b_m2, group_size(pixels, CG), eps)
    if p_mean is not None:  # noqa: SIM102  this is known at compile time, unlike i_block
        if i_block == 0:
            b_k = tl.arange(0, BLOCK_K)
            o_groups = i_image * GROUPS + i_chunk * K + b_k
            tl.store(p_mean + o_groups, b_guess + b_rest, mask=b_k < K)
            tl.store(p_rstd + o_groups, b_rstd, mask=b_k < K)

    m_member = group_members(CG, K, BLOCK_C, BLOCK_K)
    b_gain, b_offset = load_affine(
        p_weight, p_bias, p_scale, p_shift, scale_stride, shift_stride, i_image, i_chunk * CHUNK, CHUNK, BLOCK_C
    )
    b_gain *= to_channels(b_rstd, m_member)
    b_guess, b_rest = to_channels(b_guess, m_member), to_channels(b_rest, m_member)
    b_p = tl.arange(0, BLOCK_P)
    m_c = (tl.arange(0, BLOCK_C) < CHUNK)[None, :]
    b_offsets = tile_offsets(pixels, C, CHANNELS_LAST, BLOCK_P, BLOCK_C)
    first = (i_block.to(tl.int64) * program_pixels).to(tl.int32)
    for pixel in range(first, tl.minimum(first + program_pixels, pixels), BLOCK_P):
        m_x = (pixel + b_p < pixels)[:, None] & m_c
        o_tile = tile_start(i_image, i_chunk, pixel, pixels, C, CHUNK, CHANNELS_LAST)
        b_x = tl.load(p_x + o_tile + b_offsets, mask=m_x, other=0.0).to(tl.float32)
        b_y = normalize(b_x, b_guess, b_rest, b_gain, b_offset, SILU)
        tl.store(p_y + o_tile + b_offsets, b_y.to(p_y.dtype.element_ty), mask=m_x)


def _stats(shape: tuple[int, ...], plan: Plan, num_groups: int, channels_last: bool, eps: float) -> Start:
    """Start of the statistics kernel: means and sums of squares [B, parts, G], or rstd where parts is 1."""
    batch, channels, height, width = shape
    return Start(
        group_stats_kernel,
        (batch * plan.parts * (num_groups // plan.groups),),
        *(height * width, plan.parts, plan.part_pixels, eps),
        C=channels,
        GROUPS=num_groups,
        K=plan.groups,
        CHANNELS_LAST=channels_last,
        FINAL=plan.parts == 1,
        BLOCK_P=plan.block_p,
        BLOCK_C=plan.block_c,
        BLOCK_K=triton.next_power_of_2(plan.groups),
        num_warps=plan.num_warps,
    )


class Statistics(NamedTuple):
    """Plan of `statistics`: the first start, and a second where an image has several parts."""

    groups: int
    parts: int
    stats: Start
    combine: Start

    def __call__(self, x: Tensor) -> Tensor:
        """The statistics of x [B, C, H, W], which has the format that the plan was made for."""
        found = x.new_empty(x.shape[0], 2, self.groups, dtype=torch.float32)  # a tuple would take a third longer
        if self.parts == 1:
            self.stats(x, found, None)
            return found
        parts = new_parts(x, self.parts, self.groups)
        self.stats(x, *parts)
        self.combine(*parts, found)
        return found


@planned()
def plan_statistics(
    shape: tuple[int, ...], element_size: int, num_groups: int, channels_last: bool, eps: float
) -> Statistics:
    """Plan of `statistics` for an image of this shape; called with the device first."""
    batch, channels, height, width = shape
    plan = forward_plan(shape, element_size, num_groups, channels_last, writes=False)
    combine = Start(
        group_stats_combine_kernel,
        (batch * (num_groups // plan.groups),),
        *(height * width, plan.parts, plan.part_pixels, eps),
        GROUPS=num_groups,
        CG=channels // num_groups,
        K=plan.groups,
        BLOCK_N=triton.next_power_of_2(plan.parts),
        BLOCK_K=triton.next_power_of_2(plan.groups),
        num_warps=2,
    )
    return Statistics(num_groups, plan.parts, _stats(shape, plan, num_groups, channels_last, eps), combine)


def statistics(x: Tensor, num_groups: int, eps: float) -> Tensor:
    """Mean and 1 / √(variance + eps) of every group of x [B, C, H, W]: float32 [B, 2, G], in one launch or two."""
    x, channels_last = dense(x)
    return plan_statistics(x.device, x.shape, x.element_size(), num_groups, channels_last, eps)(x)


def new_parts(x: Tensor, parts: int, num_groups: int) -> tuple[Tensor, Tensor]:
    """Uninitialized means and sums of squares of the parts of x's images, float32 [B, parts, G]."""
    mean = x.new_empty((x.shape[0], parts, num_groups), dtype=torch.float32)
    return mean, torch.empty_like(mean)


def tile_constants(
    channels: int, num_groups: int, plan: Plan, channels_last: bool, activation: str | None
) -> dict[str, Any]:
    """Constants of the kernels that normalize."""
    return {
        "C": channels,
        "GROUPS": num_groups,
        "K": plan.groups,
        "CHANNELS_LAST": channels_last,
        "SILU": activation == "silu",
        "BLOCK_C": plan.block_c,
        "BLOCK_K": triton.next_power_of_2(plan.groups),
    }


@planned(APPLY, lambda shape, plan, *_: (plan.block_c, bucket(shape[0] * shape[2] * shape[3])))
def apply_parts(
    config: Config,
    shape: tuple[int, ...],
    plan: Plan,
    num_groups: int,
    channels_last: bool,
    activation: str | None,
    strides: tuple[int, int],
    eps: float,
) -> Start:
    """Plan of the apply kernel: y, and mean and 1 / deviation where wanted, of x and the statistics of its parts.

    Args:
        shape, plan, num_groups, channels_last: of x.
        activation, eps: of the operator.
        strides: of the rows of scale and shift.
    """
    batch, channels, pixels = shape[0], shape[1], shape[2] * shape[3]
    block_p = min(config.blocks["BLOCK_P"], triton.next_power_of_2(pixels))
    program_pixels = triton.cdiv(plan.part_pixels, block_p) * block_p
    return Start(
        group_norm_apply_kernel,
        (batch * (num_groups // plan.groups) * triton.cdiv(pixels, program_pixels),),
        *(pixels, plan.parts, plan.part_pixels, program_pixels, *strides, eps),
        **tile_constants(channels, num_groups, plan, channels_last, activation),
        BLOCK_N=triton.next_power_of_2(plan.parts),
        **(config.options | {"BLOCK_P": block_p}),
    )


def _shared(plan: Plan, chunks: int) -> tuple[Plan, int]:
    """The plan of a program that normalizes a part of its chunk, and the number of these programs.

    The given plan is of one that holds its whole chunk in registers; the batch has so many `chunks`.
    """
    most = min(PROCESSORS // chunks, MAX_WRITERS, plan.block_p * plan.block_c // MIN_WRITTEN)
    if most < 2:
        return plan, 1
    block_p = triton.next_power_of_2(triton.cdiv(plan.part_pixels, most))
    num_warps = min(max(block_p * plan.block_c // 256, 1), 16)  # statistics and two values of 8 elements a thread
    return plan._replace(block_p=block_p, num_warps=num_warps), triton.cdiv(plan.part_pixels, block_p)


class Forward(NamedTuple):
    """Plan of `forward`: the only start, or the first of two."""

    tiles: Plan
    first: Start


@planned()
def _forward(
    shape: tuple[int, ...],
    element_size: int,
    num_groups: int,
    channels_last: bool,
    activation: str | None,
    strides: tuple[int, int],
    eps: float,
) -> Forward:
    batch, channels, height, width = shape
    plan = forward_plan(shape, element_size, num_groups, channels_last)
    if plan.parts > 1:
        return Forward(plan, _stats(shape, plan, num_groups, channels_last, eps))
    resident = plan.block_p >= height * width
    chunks = batch * (num_groups // plan.groups)
    plan, writers = _shared(plan, chunks) if resident else (plan, 1)
    start = Start(
        group_norm_fwd_kernel,
        (chunks * writers,),
        *(height * width, *strides, eps),
        **tile_constants(channels, num_groups, plan, channels_last, activation),
        RESIDENT=resident,
        WRITERS=writers,
        BLOCK_P=plan.block_p,
        num_warps=plan.num_warps,
        passes={} if resident else {"p_x": 2},
    )
    return Forward(plan, start)


def forward(
    x: Tensor,
    num_groups: int,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    scale: Tensor | None,
    shift: Tensor | None,
    activation: str | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Launch one kernel or two; returns y like x, and mean and 1 / deviation, float32 [B, G]."""
    shape, device = x.shape, x.device
    values, channels_last = dense(x)
    y = torch.empty_like(values)
    mean = x.new_empty((shape[0], num_groups), dtype=torch.float32)
    rstd = torch.empty_like(mean)
    affine, strides = affine_rows(weight, bias, scale, shift)
    plan = _forward(device, shape, x.element_size(), num_groups, channels_last, activation, strides, eps)
    if plan.tiles.parts == 1:
        plan.first(values, *affine, y, mean, rstd)
        return like(y, x), mean, rstd

    parts = new_parts(values, plan.tiles.parts, num_groups)
    plan.first(values, *parts)

    def run(apply: Start) -> tuple[Tensor, ...]:
        apply(values, *parts, *affine, y, mean, rstd)
        return y, mean, rstd

    run(apply_parts(device, shape, plan.tiles, num_groups, channels_last, activation, strides, eps, trial=run))
    return like(y, x), mean, rstd
