"""Triton kernels for `add_concat_group_norm`: a sum or concatenation of two images, and its group normalization.

Everything is channels-last. A program takes whole groups of the merged image, as in group_norm.py. Where the groups of
an image fit into registers, one launch does it all. Otherwise the first launch reads both images and writes the merged
one and the statistics of its parts, and the apply kernel of `group_norm` is the second launch. Statistics are those of
the rounded values. A chunk of groups may have channels of both images of a concatenation: each is loaded from its own.

`concat_group_norm` is for callers that need only the normalization of a concatenation: both of its launches read the
two images, and the concatenation is never written.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from resshift_fast.kernels.dependents import wait_for_previous
from resshift_fast.kernels.group_norm import apply_parts, new_parts, tile_constants
from resshift_fast.kernels.group_norm_tiles import (
    DTYPES,
    MAX_GROUP_CHANNELS,
    RESIDENT_TILE,
    Plan,
    add_pixels,
    affine_rows,
    combine_parts,
    combine_slots,
    forward_plan,
    group_members,
    group_size,
    load_affine,
    normalize,
    reciprocal_deviation,
    split_plan,
    tile_offsets,
    to_channels,
)
from resshift_fast.kernels.launch import Start
from resshift_fast.kernels.plans import planned

TILE = 4096  # elements of the first of two launches: two images and two statistics in registers
ODD_TILE = RESIDENT_TILE // 2  # of a concatenation in chunks of odd width, where every element needs its own address


@triton.jit
def load_merged(
    p_x, p_other, i_row, i_channel, m_p, C: tl.constexpr, C1: tl.constexpr, CHUNK: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """The merged tile [BLOCK_P, BLOCK_C] in x's dtype from row i_row (int64) of [B · pixels] and channel i_channel on.

    C1 is the number of x's channels, C for a sum. Rows outside m_p [BLOCK_P] are 0.
    """
    b_p, b_c = tl.arange(0, BLOCK_P)[:, None], tl.arange(0, BLOCK_C)[None, :]
    m_tile = m_p[:, None] & (b_c < CHUNK)
    p_x += i_row * C1 + i_channel
    if C1 == C:
        p_other += i_row * C1 + i_channel
        b_x = tl.load(p_x + (b_p * C1 + b_c), mask=m_tile, other=0.0)
        b_other = tl.load(p_other + (b_p * C1 + b_c), mask=m_tile, other=0.0)
        return (b_x.to(tl.float32) + b_other.to(tl.float32)).to(p_x.dtype.element_ty)
    else:
        C2: tl.constexpr = C - C1
        p_other += i_row * C2 + (i_channel - C1)
        m_first = i_channel + b_c < C1
        b_x = tl.load(p_x + (b_p * C1 + b_c), mask=m_tile & m_first, other=0.0)
        b_other = tl.load(p_other + (b_p * C2 + b_c), mask=m_tile & (i_channel + b_c >= C1), other=0.0)
        return tl.where(m_first, b_x, b_other)


@triton.jit
def add_concat_group_norm_kernel(
    p_x,  # [B, pixels, C1]
    p_other,  # like x, or [B, pixels, C − C1]
    p_weight,  # [C]
    p_bias,  # [C]
    p_scale,  # [B, C], or None
    p_shift,  # [B, C], or None
    p_merged,  # [B, pixels, C], or None
    p_y,  # [B, pixels, C]
    pixels,
    scale_stride,
    shift_stride,
    eps,
    C: tl.constexpr,
    C1: tl.constexpr,
    GROUPS: tl.constexpr,
    K: tl.constexpr,
    SILU: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    wait_for_previous()
    CG: tl.constexpr = C // GROUPS
    CHUNK: tl.constexpr = K * CG
    CHUNKS: tl.constexpr = GROUPS // K
    i_image = (tl.program_id(0) // CHUNKS).to(tl.int64)
    i_channel = tl.program_id(0) % CHUNKS * CHUNK
    m_p = tl.arange(0, BLOCK_P) < pixels
    b_merged = load_merged(p_x, p_other, i_image * pixels, i_channel, m_p, C, C1, CHUNK, BLOCK_P, BLOCK_C)
    m_tile = m_p[:, None] & (tl.arange(0, BLOCK_C) < CHUNK)[None, :]
    b_offsets = i_image * pixels * C + i_channel + tile_offsets(pixels, C, True, BLOCK_P, BLOCK_C)
    if p_merged is not None:
        tl.store(p_merged + b_offsets, b_merged, mask=m_tile)

    b_x = b_merged.to(tl.float32)
    m_member = group_members(CG, K, BLOCK_C, BLOCK_K)
    total = group_size(pixels, CG)
    b_guess, b_rest, b_m2 = combine_slots(b_x, 0.0, m_p.to(tl.float32), total, m_member)
    b_rstd = reciprocal_deviation(b_m2, total, eps)
    b_gain, b_offset = load_affine(
        p_weight, p_bias, p_scale, p_shift, scale_stride, shift_stride, i_image, i_channel, CHUNK, BLOCK_C
    )
    b_gain *= to_channels(b_rstd, m_member)
    b_guess, b_rest = to_channels(b_guess, m_member), to_channels(b_rest, m_member)
    b_y = normalize(b_x, b_guess, b_rest, b_gain, b_offset, SILU)
    tl.store(p_y + b_offsets, b_y.to(p_y.dtype.element_ty), mask=m_tile)


@triton.jit
def merge_group_stats_kernel(
    p_x,  # [B, pixels, C1]
    p_other,  # like x, or [B, pixels, C − C1]
    p_merged,  # [B, pixels, C], or None
    p_mean,  # [B, parts, GROUPS], float32
    p_m2,  # [B, parts, GROUPS], float32: sum of squared deviations
    pixels,
    parts,
    part_pixels,
    C: tl.constexpr,
    C1: tl.constexpr,
    GROUPS: tl.constexpr,
    K: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    wait_for_previous()
    CG: tl.constexpr = C // GROUPS
    CHUNK: tl.constexpr = K * CG
    CHUNKS: tl.constexpr = GROUPS // K
    i_row = (tl.program_id(0) // CHUNKS).to(tl.int64)  # of [B, parts]
    i_chunk = tl.program_id(0) % CHUNKS
    i_image = i_row // parts
    first = (i_row % parts * part_pixels).to(tl.int32)
    last = tl.minimum(first + part_pixels, pixels)
    b_p = tl.arange(0, BLOCK_P)
    m_c = (tl.arange(0, BLOCK_C) < CHUNK)[None, :]
    b_offsets = tile_offsets(pixels, C, True, BLOCK_P, BLOCK_C)
    b_mean = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    b_m2 = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    b_count = tl.zeros((BLOCK_P,), tl.float32)
    seen = 0.0
    for pixel in range(first, last, BLOCK_P):
        m_p = pixel + b_p < pixels
        i_pixel = i_image * pixels + pixel
        b_merged = load_merged(p_x, p_other, i_pixel, i_chunk * CHUNK, m_p, C, C1, CHUNK, BLOCK_P, BLOCK_C)
        if p_merged is not None:
            tl.store(p_merged + i_pixel * C + i_chunk * CHUNK + b_offsets, b_merged, mask=m_p[:, None] & m_c)
        seen += 1.0
        b_mean, b_m2 = add_pixels(b_merged.to(tl.float32), m_p, seen, b_mean, b_m2)
        b_count += m_p.to(tl.float32)
    m_member = group_members(CG, K, BLOCK_C, BLOCK_K)
    b_guess, b_rest, b_sum = combine_slots(b_mean, b_m2, b_count, group_size(last - first, CG), m_member)
    b_k = tl.arange(0, BLOCK_K)
    o_groups = i_row * GROUPS + i_chunk * K + b_k
    tl.store(p_mean + o_groups, b_guess + b_rest, mask=b_k < K)
    tl.store(p_m2 + o_groups, b_sum, mask=b_k < K)


@triton.jit
def concat_group_norm_kernel(
    p_x,  # [B, pixels, C1]
    p_other,  # [B, pixels, C − C1]
    p_part_mean,  # [B, parts, GROUPS], float32
    p_part_m2,  # [B, parts, GROUPS], float32
    p_weight,  # [C]
    p_bias,  # [C]
    p_y,  # [B, pixels, C]
    pixels,
    parts,
    part_pixels,
    eps,
    C: tl.constexpr,
    C1: tl.constexpr,
    GROUPS: tl.constexpr,
    K: tl.constexpr,
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
    i_row = (tl.program_id(0) // CHUNKS).to(tl.int64)  # of [B, parts]
    i_chunk = tl.program_id(0) % CHUNKS
    i_image = i_row // parts
    first = (i_row % parts * part_pixels).to(tl.int32)
    last = tl.minimum(first + part_pixels, pixels)
    b_guess, b_rest, b_m2 = combine_parts(
        p_part_mean, p_part_m2, i_image, i_chunk * K, parts, part_pixels, pixels, GROUPS, CG, K, BLOCK_N, BLOCK_K
    )
    b_rstd = reciprocal_deviation(b_m2, group_size(pixels, CG), eps)
    m_member = group_members(CG, K, BLOCK_C, BLOCK_K)
    b_gain, b_offset = load_affine(p_weight, p_bias, None, None, 0, 0, i_image, i_chunk * CHUNK, CHUNK, BLOCK_C)
    b_gain *= to_channels(b_rstd, m_member)
    b_guess, b_rest = to_channels(b_guess, m_member), to_channels(b_rest, m_member)
    b_p = tl.arange(0, BLOCK_P)
    m_c = (tl.arange(0, BLOCK_C) < CHUNK)[None, :]
    b_offsets = tile_offsets(pixels, C, True, BLOCK_P, BLOCK_C)
    for pixel in range(first, last, BLOCK_P):
        m_p = pixel + b_p < pixels
        i_pixel = i_image * pixels + pixel
        b_x = load_merged(p_x, p_other, i_pixel, i_chunk * CHUNK, m_p, C, C1, CHUNK, BLOCK_P, BLOCK_C)
        b_y = normalize(b_x.to(tl.float32), b_guess, b_rest, b_gain, b_offset, SILU)
        p_tile = p_y + i_pixel * C + i_chunk * CHUNK
        tl.store(p_tile + b_offsets, b_y.to(p_y.dtype.element_ty), mask=m_p[:, None] & m_c)


def unsupported(x: Tensor, other: Tensor, num_groups: int, weight: Tensor, *_: object) -> str | None:
    """Why the kernels can't run this call, or None."""
    if x.dtype not in DTYPES:
        return f"{x.dtype} is not float32, float16 or bfloat16"
    per_group = weight.shape[0] // num_groups
    if per_group > MAX_GROUP_CHANNELS:
        return f"{per_group} channels a group are more than {MAX_GROUP_CHANNELS}"
    return None


class Forward(NamedTuple):
    """Plan of `forward`: the only start, or the first of two."""

    tiles: Plan
    resident: bool
    first: Start


@planned()
def _forward(
    shape: tuple[int, ...],
    element_size: int,
    first_channels: int,
    num_groups: int,
    activation: str | None,
    strides: tuple[int, int],
    eps: float,
) -> Forward:
    """Plan for a merged image of this shape whose first channels are x's."""
    batch, channels, height, width = shape
    pixels = height * width
    plan = forward_plan(shape, element_size, num_groups, channels_last=True)
    odd = first_channels < channels and plan.groups * channels // num_groups % 2
    resident = plan.parts == 1 and plan.block_p >= pixels
    resident = resident and plan.block_p * plan.block_c <= (ODD_TILE if odd else RESIDENT_TILE)
    if not resident:
        plan = split_plan(shape, element_size, num_groups, channels_last=True, tile=TILE)
    constants = tile_constants(channels, num_groups, plan, channels_last=True, activation=activation)
    merging: dict[str, Any] = {name: constants[name] for name in ("C", "GROUPS", "K", "BLOCK_C", "BLOCK_K")}
    merging |= {"C1": first_channels, "BLOCK_P": plan.block_p, "num_warps": plan.num_warps}
    programs = batch * plan.parts * (num_groups // plan.groups)
    if resident:
        values = (pixels, *strides, eps)
        start = Start(add_concat_group_norm_kernel, (programs,), *values, SILU=constants["SILU"], **merging)
    else:
        start = Start(merge_group_stats_kernel, (programs,), pixels, plan.parts, plan.part_pixels, **merging)
    return Forward(plan, resident, start)


def forward(
    x: Tensor,
    other: Tensor,
    num_groups: int,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    mode: str,
    scale: Tensor | None,
    shift: Tensor | None,
    activation: str | None,
) -> tuple[Tensor, Tensor]:
    """Launch one kernel or two; returns the merged image and its normalization, channels-last."""
    batch, first, height, width = x.shape
    shape, device = (batch, weight.shape[0], height, width), x.device
    x, other = (t.contiguous(memory_format=torch.channels_last) for t in (x, other))
    merged = torch.empty(shape, dtype=x.dtype, device=device, memory_format=torch.channels_last)
    y = torch.empty_like(merged)
    affine, strides = affine_rows(weight, bias, scale, shift)
    plan = _forward(device, shape, x.element_size(), first, num_groups, activation, strides, eps)
    if plan.resident:
        plan.first(x, other, *affine, merged, y)
        return merged, y

    parts = new_parts(merged, plan.tiles.parts, num_groups)
    plan.first(x, other, merged, *parts)

    def run(apply: Start) -> tuple[Tensor]:
        apply(merged, *parts, *affine, y, None, None)
        return (y,)

    run(apply_parts(device, shape, plan.tiles, num_groups, True, activation, strides, eps, trial=run))
    return merged, y


@planned()
def _apply(
    shape: tuple[int, ...], tiles: Plan, first_channels: int, num_groups: int, activation: str | None, eps: float
) -> Start:
    """Plan of the second launch of `concat_group_norm`, in the tiles of the first."""
    return Start(
        concat_group_norm_kernel,
        (shape[0] * tiles.parts * (num_groups // tiles.groups),),
        *(shape[2] * shape[3], tiles.parts, tiles.part_pixels, eps),
        C=shape[1],
        C1=first_channels,
        GROUPS=num_groups,
        K=tiles.groups,
        SILU=activation == "silu",
        BLOCK_N=triton.next_power_of_2(tiles.parts),
        BLOCK_P=tiles.block_p,
        BLOCK_C=tiles.block_c,
        BLOCK_K=triton.next_power_of_2(tiles.groups),
        num_warps=tiles.num_warps,
        maxnreg=255,  # without a limit the assembler spills a few to fit one more program on a multiprocessor
    )


def concat_group_norm(
    x: Tensor, other: Tensor, num_groups: int, weight: Tensor, bias: Tensor, eps: float, activation: str | None
) -> Tensor:
    """Launch one kernel or two; returns the normalization of the concatenation, channels-last."""
    batch, first, height, width = x.shape
    shape, device = (batch, weight.shape[0], height, width), x.device
    x, other = (t.contiguous(memory_format=torch.channels_last) for t in (x, other))
    y = torch.empty(shape, dtype=x.dtype, device=device, memory_format=torch.channels_last)
    affine, strides = affine_rows(weight, bias, None, None)
    plan = _forward(device, shape, x.element_size(), first, num_groups, activation, strides, eps)
    if plan.resident:
        plan.first(x, other, *affine, None, y)
        return y
    parts = new_parts(y, plan.tiles.parts, num_groups)
    plan.first(x, other, None, *parts)
    _apply(device, shape, plan.tiles, first, num_groups, activation, eps)(x, other, *parts, *affine[:2], y)
    return y
