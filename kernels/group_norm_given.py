"""Triton kernel for `group_norm` with given statistics: one pass over the image, in tiles of any of its pixels."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from resshift_fast.kernels.dependents import wait_for_previous
from resshift_fast.kernels.group_norm_tiles import (
    DTYPES,
    MAX_GROUP_CHANNELS,
    affine_rows,
    dense,
    like,
    load_norm,
    normalize,
    row_groups,
    tile_offsets,
    tile_start,
)
from resshift_fast.kernels.launch import Start
from resshift_fast.kernels.plans import planned
from resshift_fast.kernels.tuning import Config, Space, bucket


def _config(block_c: int, tile: int, num_warps: int) -> Config:
    return Config({"BLOCK_P": max(tile // block_c, 1)}, num_warps=num_warps)


# Elements of a program and its warps. No block changes a sum.
# Bucket: BLOCK_C, pixels of the batch.
SPACE = Space(
    "group_norm_given_kernel",
    candidates=lambda key: [_config(key[0], *c) for c in ((4096, 4), (2048, 2), (8192, 4), (8192, 8))],
    default=lambda arch, key: _config(key[0], 4096, 4),
)


@triton.jit
def group_norm_given_kernel(
    p_x,  # [B, C, pixels] or [B, pixels, C]
    p_statistics,  # [B, 2, GROUPS], float32
    p_weight,  # [C]
    p_bias,  # [C]
    p_scale,  # [B, C], or None
    p_shift,  # [B, C], or None
    p_y,  # like x
    pixels,
    scale_stride,
    shift_stride,
    C: tl.constexpr,
    GROUPS: tl.constexpr,
    CHUNK: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    SILU: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    wait_for_previous()
    CHUNKS: tl.constexpr = C // CHUNK
    blocks = tl.cdiv(pixels, BLOCK_P)
    i_chunk = tl.program_id(0) % CHUNKS
    i_pixel = tl.program_id(0) // CHUNKS % blocks * BLOCK_P
    i_image = (tl.program_id(0) // CHUNKS // blocks).to(tl.int64)
    b_c = i_chunk * CHUNK + tl.arange(0, BLOCK_C)
    m_c = tl.arange(0, BLOCK_C) < CHUNK
    b_mean, b_gain, b_offset = load_norm(
        p_statistics + i_image * 2 * GROUPS, p_weight, p_bias, p_scale, p_shift, scale_stride, shift_stride, i_image,
        b_c, m_c, GROUPS, C // GROUPS,
    )  # fmt: skip
    m_x = (i_pixel + tl.arange(0, BLOCK_P) < pixels)[:, None] & m_c[None, :]
    o_tile = tile_start(i_image, i_chunk, i_pixel, pixels, C, CHUNK, CHANNELS_LAST)
    b_offsets = tile_offsets(pixels, C, CHANNELS_LAST, BLOCK_P, BLOCK_C)
    b_x = tl.load(p_x + o_tile + b_offsets, mask=m_x, other=0.0).to(tl.float32)
    b_y = normalize(b_x, b_mean, None, b_gain, b_offset, SILU)
    tl.store(p_y + o_tile + b_offsets, b_y.to(p_y.dtype.element_ty), mask=m_x)


def unsupported(x: Tensor, statistics: Tensor, *_: object) -> str | None:
    """Why the kernel can't run this call, or None."""
    if x.dtype not in DTYPES:
        return f"{x.dtype} is not float32, float16 or bfloat16"
    per_group = x.shape[1] // statistics.shape[2]
    if per_group > MAX_GROUP_CHANNELS:
        return f"{per_group} channels a group are more than {MAX_GROUP_CHANNELS}"
    return None


def _chunk(shape: tuple[int, ...], element_size: int, num_groups: int, channels_last: bool) -> int:
    """Channels of a program: whole groups."""
    return row_groups(shape[1], num_groups, element_size, channels_last) * shape[1] // num_groups


def _bucket(
    shape: tuple[int, ...], element_size: int, num_groups: int, channels_last: bool, *_: object
) -> tuple[int, int]:
    chunk = _chunk(shape, element_size, num_groups, channels_last)
    return triton.next_power_of_2(chunk), bucket(shape[0] * shape[2] * shape[3])


@planned(SPACE, _bucket)
def _forward(
    config: Config,
    shape: tuple[int, ...],
    element_size: int,
    num_groups: int,
    channels_last: bool,
    activation: str | None,
    strides: tuple[int, int],
) -> Start:
    batch, channels, pixels = shape[0], shape[1], shape[2] * shape[3]
    chunk = _chunk(shape, element_size, num_groups, channels_last)
    block_c = triton.next_power_of_2(chunk)
    block_p = min(config.blocks["BLOCK_P"], triton.next_power_of_2(pixels))
    return Start(
        group_norm_given_kernel,
        (batch * (channels // chunk) * triton.cdiv(pixels, block_p),),
        *(pixels, *strides),
        C=channels,
        GROUPS=num_groups,
        CHUNK=chunk,
        CHANNELS_LAST=channels_last,
        SILU=activation == "silu",
        BLOCK_P=block_p,
        BLOCK_C=block_c,
        # A small image does not have 32 elements for each thread.
        num_warps=min(max(block_p * block_c // 1024, 1), config.num_warps),
    )


def forward(
    x: Tensor,
    statistics: Tensor,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    activation: str | None,
) -> Tensor:
    """Launch the kernel; returns y like x."""
    values, channels_last = dense(x)
    y = torch.empty_like(values)
    affine, strides = affine_rows(weight, bias, scale, shift)
    sizes = x.shape, x.element_size(), statistics.shape[2], channels_last
    statistics = statistics.contiguous()

    def run(start: Start) -> tuple[Tensor]:
        start(values, statistics, *affine, y)
        return (y,)

    run(_forward(x.device, *sizes, activation, strides, trial=run))
    return like(y, x)
