"""Triton kernels for the gradient of `group_norm`.

With z = n · a + o for normalized n, gain a = w(1 + s), and dz the gradient of z (dy, or dy · silu'(z)), all gradients
follow from two sums over the pixels of each image's channel, Σdz and Σdz·n. There are three launches: for parts of
these sums; for dx, whose programs add up the parts of their groups' channels in order; and for the sums of dweight and
dbias over images. n is computed from x, so that the forward pass saves only x and its statistics.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from resshift_fast.kernels.dependents import wait_for_previous
from resshift_fast.kernels.group_norm_tiles import (
    affine_rows,
    dense,
    group_members,
    group_size,
    like,
    load_affine,
    split_plan,
    sum_groups,
    tile_offsets,
    tile_start,
    to_channels,
    unsupported,
)
from resshift_fast.kernels.launch import Start
from resshift_fast.kernels.tuning import Config, Space, bucket

TILE = 4096  # elements: registers hold a tile of x, one of dy and two of sums
SUM_BLOCK = 32  # channels whose dweight and dbias one program adds up

# The block of the dx kernel changes no sum. Bucket: BLOCK_C, bytes of an element, pixels of the batch.
DX = Space(
    "group_norm_dx",
    candidates=lambda key: [_dx_config(key[0], *c) for c in ((2048, 4), (4096, 4), (4096, 8), (8192, 8))],
    default=lambda arch, key: _dx_config(key[0], 4096, 8),
)


def _dx_config(block_c: int, tile: int, num_warps: int) -> Config:
    return Config({"BLOCK_P": max(tile // block_c, 1)}, num_warps=num_warps)


@triton.jit
def output_gradient(b_dy, b_n, b_gain, b_offset, SILU: tl.constexpr):
    """dz [BLOCK_P, BLOCK_C] of dy and normalized values."""
    if SILU:
        b_z = b_n * b_gain[None, :] + b_offset[None, :]
        b_sigmoid = 1.0 / (1.0 + tl.exp(-b_z))
        b_dy = b_dy * (b_sigmoid * (1.0 + b_z * (1.0 - b_sigmoid)))
    return b_dy


@triton.jit
def channel_statistics(p_mean, p_rstd, i_image, i_group, m_member, GROUPS: tl.constexpr, K: tl.constexpr,
                       BLOCK_K: tl.constexpr):  # fmt: skip
    """Mean and 1 / deviation [BLOCK_C] of each channel's group."""
    b_k = tl.arange(0, BLOCK_K)
    o_groups = i_image * GROUPS + i_group + b_k
    b_mean = tl.load(p_mean + o_groups, mask=b_k < K, other=0.0)
    b_rstd = tl.load(p_rstd + o_groups, mask=b_k < K, other=0.0)
    return to_channels(b_mean, m_member), to_channels(b_rstd, m_member)


@triton.jit
def group_norm_bwd_sums_kernel(
    p_dy,  # like x
    p_x,  # [B, C, pixels] or [B, pixels, C]
    p_mean,  # [B, GROUPS], float32
    p_rstd,  # [B, GROUPS], float32
    p_weight,  # [C]
    p_bias,  # [C]
    p_scale,  # [B, C], or None
    p_shift,  # [B, C], or None
    p_parts,  # [B, parts, 2, C], float32: Σdz and Σdz·n of each part
    pixels,
    parts,
    part_pixels,
    scale_stride,
    shift_stride,
    C: tl.constexpr,
    GROUPS: tl.constexpr,
    K: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    SILU: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    wait_for_previous()
    CG: tl.constexpr = C // GROUPS
    CHUNK: tl.constexpr = K * CG
    i_row = (tl.program_id(0) // (GROUPS // K)).to(tl.int64)  # of [B, parts]
    i_chunk = tl.program_id(0) % (GROUPS // K)
    i_image = i_row // parts
    first = (i_row % parts * part_pixels).to(tl.int32)
    m_member = group_members(CG, K, BLOCK_C, BLOCK_K)
    b_mean, b_rstd = channel_statistics(p_mean, p_rstd, i_image, i_chunk * K, m_member, GROUPS, K, BLOCK_K)
    b_gain, b_offset = load_affine(
        p_weight, p_bias, p_scale, p_shift, scale_stride, shift_stride, i_image, i_chunk * CHUNK, CHUNK, BLOCK_C
    )
    b_p, b_c = tl.arange(0, BLOCK_P), tl.arange(0, BLOCK_C)
    b_offsets = tile_offsets(pixels, C, CHANNELS_LAST, BLOCK_P, BLOCK_C)
    b_dz_sum = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    b_dz_n_sum = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    for pixel in range(first, tl.minimum(first + part_pixels, pixels), BLOCK_P):
        m_x = (pixel + b_p < pixels)[:, None] & (b_c < CHUNK)[None, :]
        o_tile = tile_start(i_image, i_chunk, pixel, pixels, C, CHUNK, CHANNELS_LAST)
        b_x = tl.load(p_x + o_tile + b_offsets, mask=m_x, other=0.0).to(tl.float32)
        b_dy = tl.load(p_dy + o_tile + b_offsets, mask=m_x, other=0.0).to(tl.float32)
        b_n = (b_x - b_mean[None, :]) * b_rstd[None, :]
        b_dz = output_gradient(b_dy, b_n, b_gain, b_offset, SILU)  # 0 where dy is masked
        b_dz_sum += b_dz
        b_dz_n_sum += b_dz * b_n
    p_sum = p_parts + i_row * (2 * C) + i_chunk * CHUNK + b_c
    tl.store(p_sum, tl.sum(b_dz_sum, axis=0), mask=b_c < CHUNK)
    tl.store(p_sum + C, tl.sum(b_dz_n_sum, axis=0), mask=b_c < CHUNK)


@triton.jit
def group_norm_bwd_dx_kernel(
    p_dy,  # like x
    p_x,  # [B, C, pixels] or [B, pixels, C]
    p_mean,  # [B, GROUPS], float32
    p_rstd,  # [B, GROUPS], float32
    p_weight,  # [C]
    p_bias,  # [C]
    p_scale,  # [B, C], or None
    p_shift,  # [B, C], or None
    p_parts,  # [B, parts, 2, C], float32: Σdz and Σdz·n of each part
    p_dx,  # like x
    p_dscale,  # [B, C], float32
    p_dshift,  # [B, C], float32: Σdz
    p_dz_n,  # [B, C], float32: Σdz·n
    pixels,
    parts,
    program_pixels,
    scale_stride,
    shift_stride,
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
    m_member = group_members(CG, K, BLOCK_C, BLOCK_K)
    b_mean, b_rstd = channel_statistics(p_mean, p_rstd, i_image, i_chunk * K, m_member, GROUPS, K, BLOCK_K)
    b_gain, b_offset = load_affine(
        p_weight, p_bias, p_scale, p_shift, scale_stride, shift_stride, i_image, i_chunk * CHUNK, CHUNK, BLOCK_C
    )
    b_p, b_c = tl.arange(0, BLOCK_P), tl.arange(0, BLOCK_C)

    b_dshift = tl.zeros((BLOCK_C,), tl.float32)
    b_dz_n = tl.zeros((BLOCK_C,), tl.float32)
    for i_part in range(0, parts, BLOCK_N):
        b_n = i_part + tl.arange(0, BLOCK_N)
        m_part = (b_n < parts)[:, None] & (b_c < CHUNK)[None, :]
        b_parts = (i_image * parts + b_n)[:, None] * (2 * C) + i_chunk * CHUNK + b_c[None, :]
        b_dshift += tl.sum(tl.load(p_parts + b_parts, mask=m_part, other=0.0), axis=0)
        b_dz_n += tl.sum(tl.load(p_parts + b_parts + C, mask=m_part, other=0.0), axis=0)
    if i_block == 0:
        b_w = tl.load(p_weight + i_chunk * CHUNK + b_c, mask=b_c < CHUNK, other=0.0).to(tl.float32)
        b_b = tl.load(p_bias + i_chunk * CHUNK + b_c, mask=b_c < CHUNK, other=0.0).to(tl.float32)
        o_c = i_image * C + i_chunk * CHUNK + b_c
        tl.store(p_dscale + o_c, b_w * b_dz_n + b_b * b_dshift, mask=b_c < CHUNK)
        tl.store(p_dshift + o_c, b_dshift, mask=b_c < CHUNK)
        tl.store(p_dz_n + o_c, b_dz_n, mask=b_c < CHUNK)

    total = group_size(pixels, CG)
    b_mean_d = to_channels(sum_groups(b_gain * b_dshift, m_member) / total, m_member)
    b_mean_dn = to_channels(sum_groups(b_gain * b_dz_n, m_member) / total, m_member)
    b_offsets = tile_offsets(pixels, C, CHANNELS_LAST, BLOCK_P, BLOCK_C)
    first = (i_block.to(tl.int64) * program_pixels).to(tl.int32)
    for pixel in range(first, tl.minimum(first + program_pixels, pixels), BLOCK_P):
        m_x = (pixel + b_p < pixels)[:, None] & (b_c < CHUNK)[None, :]
        o_tile = tile_start(i_image, i_chunk, pixel, pixels, C, CHUNK, CHANNELS_LAST)
        b_x = tl.load(p_x + o_tile + b_offsets, mask=m_x, other=0.0).to(tl.float32)
        b_dy = tl.load(p_dy + o_tile + b_offsets, mask=m_x, other=0.0).to(tl.float32)
        b_n = (b_x - b_mean[None, :]) * b_rstd[None, :]
        b_dz = output_gradient(b_dy, b_n, b_gain, b_offset, SILU)
        b_dx = (b_dz * b_gain[None, :] - b_mean_d[None, :] - b_n * b_mean_dn[None, :]) * b_rstd[None, :]
        tl.store(p_dx + o_tile + b_offsets, b_dx.to(p_dx.dtype.element_ty), mask=m_x)


@triton.jit
def group_norm_bwd_weight_kernel(
    p_dshift,  # [B, C], float32
    p_dz_n,  # [B, C], float32
    p_scale,  # [B, C], or None
    p_dweight,  # [C], float32
    p_dbias,  # [C], float32
    batch,
    scale_stride,
    C: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    wait_for_previous()
    b_c = tl.program_id(0).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
    b_dweight = tl.zeros((BLOCK_B, BLOCK_C), tl.float32)
    b_dbias = tl.zeros((BLOCK_B, BLOCK_C), tl.float32)
    for i_image in range(0, batch, BLOCK_B):
        b_image = i_image + tl.arange(0, BLOCK_B)
        m_row = (b_image < batch)[:, None] & (b_c < C)[None, :]
        b_image = b_image.to(tl.int64)[:, None]
        o_row = b_image * C + b_c[None, :]
        b_dshift = tl.load(p_dshift + o_row, mask=m_row, other=0.0)
        b_dz_n = tl.load(p_dz_n + o_row, mask=m_row, other=0.0)
        if p_scale is not None:
            b_scale = 1.0 + tl.load(p_scale + b_image * scale_stride + b_c[None, :], mask=m_row, other=0.0).to(
                tl.float32
            )
            b_dshift *= b_scale
            b_dz_n *= b_scale
        b_dweight += b_dz_n
        b_dbias += b_dshift
    tl.store(p_dweight + b_c, tl.sum(b_dweight, axis=0), mask=b_c < C)
    tl.store(p_dbias + b_c, tl.sum(b_dbias, axis=0), mask=b_c < C)


def unsupported_backward(dy: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, num_groups: int, *_: object) -> str | None:
    """Why the kernels can't run this call, or None."""
    return unsupported(x, num_groups)


def backward(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    num_groups: int,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    activation: str | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Launch three kernels; returns dx like x and, in float32, dweight and dbias [C], dscale and dshift [B, C]."""
    batch, channels, height, width = x.shape
    pixels = height * width
    values, channels_last = dense(x)
    dy = dy.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    dx = torch.empty_like(values)
    affine, strides = affine_rows(weight, bias, scale, shift)
    inputs = (dy, values, mean.contiguous(), rstd.contiguous(), *affine)
    plan = split_plan(x.shape, x.element_size(), num_groups, channels_last, TILE)
    parts = x.new_empty((batch, plan.parts, 2, channels), dtype=torch.float32)
    dscale, dshift, dz_n = (x.new_empty((batch, channels), dtype=torch.float32) for _ in range(3))
    constants = {
        "C": channels,
        "GROUPS": num_groups,
        "K": plan.groups,
        "CHANNELS_LAST": channels_last,
        "SILU": activation == "silu",
        "BLOCK_C": plan.block_c,
        "BLOCK_K": triton.next_power_of_2(plan.groups),
    }
    chunks = num_groups // plan.groups
    Start(
        group_norm_bwd_sums_kernel,
        (batch * plan.parts * chunks,),
        *(pixels, plan.parts, plan.part_pixels, *strides),
        **constants,
        BLOCK_P=plan.block_p,
        num_warps=min(2 * plan.num_warps, 8),  # of the forward's: two images are held at once
    )(*inputs, parts)

    # Without a limit the assembler spills a few registers for 16-bit NCHW to fit one more program on a multiprocessor.
    limit = {} if channels_last or x.element_size() == 4 else {"maxnreg": 80}

    def start(config: Config) -> tuple[Tensor, ...]:
        block_p = min(config.blocks["BLOCK_P"], triton.next_power_of_2(pixels))
        program_pixels = triton.cdiv(plan.part_pixels, block_p) * block_p
        Start(
            group_norm_bwd_dx_kernel,
            (batch * chunks * triton.cdiv(pixels, program_pixels),),
            *(pixels, plan.parts, program_pixels, *strides),
            **constants,
            BLOCK_N=min(triton.next_power_of_2(plan.parts), max(TILE // plan.block_c, 1)),
            **{**config.options, **limit, "BLOCK_P": block_p},
        )(*inputs, parts, dx, dscale, dshift, dz_n)
        return dx, dscale, dshift, dz_n

    key = (plan.block_c, x.element_size(), bucket(batch * pixels))
    start(DX.config(key, x.device, start))
    dweight, dbias = (weight.new_empty((channels,), dtype=torch.float32) for _ in range(2))
    Start(
        group_norm_bwd_weight_kernel,
        (triton.cdiv(channels, SUM_BLOCK),),
        *(batch, strides[0]),
        C=channels,
        BLOCK_B=min(triton.next_power_of_2(batch), 64),
        BLOCK_C=SUM_BLOCK,
        num_warps=4,
    )(dshift, dz_n, affine[2], dweight, dbias)
    return like(dx, x), dweight, dbias, dscale, dshift
