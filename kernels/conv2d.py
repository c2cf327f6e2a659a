"""Triton kernel for 3×3 convolutions of small planes: an implicit matrix product, split along the sum over channels.

A program takes BLOCK_M pixels of one image, BLOCK_N output channels and a part of the input channels. Each channel
block of x is read once for each of the nine taps, normalized as it is read, and multiplied by the tap's weights; zeros
of the padding replace normalized values. A 1×1 convolution of another image, the skip connection of a residual block,
adds to the same sum. The partial sums of a tile go to a workspace, which stays in the L2 cache. The last program of the
tile, found by an integer counter, adds them up in a fixed order, so that results are bitwise the same from run to run.
It adds bias and residual before the only store, and makes the statistics for the next normalization.

A plane of 8×8 or 16×16 pixels has few tiles but much to sum: 640 channels at 8×8 are ten tiles of 64×64 with 5,760
products a value. cuDNN takes ten multiprocessors for them, here the split takes a hundred. The other side: every value
of x is normalized again for each tap and block of output channels, which takes 9·pixels·C·O/BLOCK_N exponentials and
divisions, each one of 16 a cycle on a multiprocessor. A normalization of its own takes one launch, and one or two more
passes over x. For an H100 (132 multiprocessors at 1.7 GHz, 3.35 TB/s) in 16 bit, projected in microseconds:

==============  ==========  ================  ===============
C → O, size     weights     normalizing here  as a launch
==============  ==========  ================  ===============
640 → 640, 8²   2.2         2.1               2 to 3
320 → 320, 16²  0.6         2.1               2 to 3
320 → 320, 32²  0.6         8.2               2 to 3
160 → 160, 64²  0.1         9.8               3 to 4
==============  ==========  ================  ===============

Hence `MAX_PIXELS`: above it, if nothing was measured, callers normalize in a pass of its own, and take the convolution
in conv2d_sum.py, which needs no split of the sum to fill most multiprocessors; conv2d_algorithms.py chooses.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from resshift_fast.kernels.dependents import wait_for_previous
from resshift_fast.kernels.epilogue import add_bias, store_sum
from resshift_fast.kernels.group_norm_tiles import load_norm, normalize
from resshift_fast.kernels.launch import Start
from resshift_fast.kernels.norm_stats import constants, write_statistics
from resshift_fast.kernels.plans import NEARLY_FULL, contiguous, new_image, planned
from resshift_fast.kernels.split_sums import (
    PASSES,
    Plan,
    buffers,
    is_last_part,
    split,
    store_part_of_sum,
    sum_of_parts,
)
from resshift_fast.kernels.tuning import Config, Space, bucket

DTYPES = (torch.float16, torch.bfloat16)  # float32 has no matrix instruction of its precision
MAX_PIXELS = 512  # of a batch for which this kernel is the default
MIN_CHANNELS = 32  # input and output: fewer are mostly padding of the blocks

# Tiles (BLOCK_M, BLOCK_N, BLOCK_K, num_warps). The first needs half the parts of the sum of one twice as large for as
# many programs, and so half the workspace; larger ones read the weights less often.
TILES = ((32, 64, 64, 4), (32, 64, 32, 4), (64, 64, 64, 4), (64, 32, 64, 4), (32, 128, 64, 4), (16, 128, 64, 4))
SMALLEST = (16, 64, 64, 4)  # for images of fewer than 32 pixels


def _programs(key: tuple, tile: tuple[int, int, int, int]) -> int:
    images, pixels, out_channels, channels, _ = key
    tiles = images * triton.cdiv(pixels, tile[0]) * triton.cdiv(out_channels, tile[1])
    return tiles * split(tiles, triton.cdiv(channels, tile[2]))[0]


def _config(tile: tuple[int, int, int, int]) -> Config:
    block_m, block_n, block_k, num_warps = tile
    return Config({"BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_K": block_k}, num_warps=num_warps, num_stages=3)


def _tiles(key: tuple) -> list[tuple[int, int, int, int]]:
    """Tiles that are not mostly padding."""
    return [t for t in TILES if t[0] <= key[1]] or [SMALLEST]


def _default(arch: int, key: tuple) -> Config:
    """The first tile, or the second, with twice the channel blocks to divide, if the first leaves processors idle."""
    tiles = _tiles(key)
    return _config(next((t for t in tiles[:2] if _programs(key, t) >= NEARLY_FULL), tiles[0]))


# Bucket: images, pixels of an image, output channels, channels, whether x is normalized.
SPACE = Space("conv2d_kernel", candidates=lambda key: [_config(tile) for tile in _tiles(key)], default=_default)


@triton.jit(do_not_specialize=["pixels", "height", "width", "n_taps"])
def conv2d_kernel(
    p_x,  # [images, height · width, C]
    p_weight,  # [O, 3, 3, C], x's dtype
    p_bias,  # [O] or None
    p_residual,  # [images, height · width, O] or None
    p_statistics,  # [images, 2, GROUPS], float32, or None
    p_norm_weight,  # [C] or None
    p_norm_bias,  # [C] or None
    p_scale,  # [images, C] or None
    p_shift,  # [images, C] or None
    p_skip,  # [images, height · width, SKIP] or None
    p_skip_weight,  # [O, SKIP], x's dtype, or None
    p_skip_bias,  # [O] or None
    p_y,  # [images, height · width, O]
    p_workspace,  # [tiles, SPLIT, BLOCK_M, BLOCK_N], float32, or None where SPLIT is 1
    p_parts,  # [images, blocks of pixels, SLOTS, 3, NEXT_GROUPS], float32, or None
    p_counters,  # [images + tiles], int32 zeros before and after, or None without workspace and statistics
    p_next,  # [images, 2, NEXT_GROUPS], float32, or None
    pixels,
    height,
    width,
    scale_stride,
    shift_stride,
    next_eps,
    n_taps,  # 9; an argument, because the compiler would unroll a constant number of rounds
    C: tl.constexpr,
    O: tl.constexpr,  # noqa: E741
    SKIP: tl.constexpr,  # channels of the skip connection's image
    GROUPS: tl.constexpr,
    SILU: tl.constexpr,
    SPLIT: tl.constexpr,
    CHUNKS: tl.constexpr,  # channel blocks of one part of the sum
    NEXT_GROUPS: tl.constexpr,
    SLOTS: tl.constexpr,
    TILE_GROUPS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    wait_for_previous()
    N_BLOCKS: tl.constexpr = (O + BLOCK_N - 1) // BLOCK_N
    m_blocks = tl.cdiv(pixels, BLOCK_M)
    # Programs with the same weights are neighbours.
    tiles_m = tl.num_programs(0) // (N_BLOCKS * SPLIT)
    i_m = tl.program_id(0) % tiles_m
    i_n = tl.program_id(0) // tiles_m % N_BLOCKS
    i_split = (tl.program_id(0) // tiles_m // N_BLOCKS).to(tl.int64)
    i_image = (i_m // m_blocks).to(tl.int64)
    i_first = i_m % m_blocks * BLOCK_M
    i_row = i_image * pixels + i_first  # of the block's first pixel
    o_m, o_k = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_K)
    o_n = i_n * BLOCK_N + tl.arange(0, BLOCK_N)
    m_m = o_m < pixels - i_first
    m_n = o_n < O
    b_row = (i_first + o_m) // width
    b_column = (i_first + o_m) % width

    b_y = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for i_chunk in range(CHUNKS):
        i_c = (i_split * CHUNKS + i_chunk) * BLOCK_K
        m_c = o_k < C - i_c
        if GROUPS:
            b_mean, b_gain, b_offset = load_norm(
                p_statistics + i_image * 2 * GROUPS, p_norm_weight, p_norm_bias, p_scale, p_shift,
                scale_stride, shift_stride, i_image, i_c + o_k, m_c, GROUPS, C // GROUPS,
            )  # fmt: skip
        for i_tap in range(n_taps):
            i_y, i_x = i_tap // 3 - 1, i_tap % 3 - 1
            b_in_row, b_in_column = b_row + i_y, b_column + i_x
            m_tap = m_m & (b_in_row >= 0) & (b_in_row < height) & (b_in_column >= 0) & (b_in_column < width)
            m_x = m_tap[:, None] & m_c[None, :]
            p_tap = p_x + (i_row + i_y * width.to(tl.int64) + i_x) * C + i_c
            b_x = tl.load(p_tap + (o_m[:, None] * C + o_k[None, :]), mask=m_x, other=0.0)
            m_w = m_n[:, None] & m_c[None, :]
            b_w = tl.load(
                p_weight + (tl.cast(i_tap, tl.int64) * C + i_c) + (o_n[:, None] * (9 * C) + o_k[None, :]),
                mask=m_w,
                other=0.0,
            )
            if GROUPS:
                b_z = normalize(b_x.to(tl.float32), b_mean, None, b_gain, b_offset, SILU)
                b_x = tl.where(m_x, b_z, 0.0).to(b_x.dtype)
            b_y = tl.dot(b_x, tl.trans(b_w), b_y, input_precision="ieee")
    if SKIP:
        EACH: tl.constexpr = (SKIP + SPLIT * BLOCK_K - 1) // (SPLIT * BLOCK_K)
        for i_chunk in range(EACH):
            i_c = (i_split * EACH + i_chunk) * BLOCK_K
            m_c = (o_k < SKIP - i_c)[None, :]
            o_x = o_m[:, None] * SKIP + o_k[None, :]
            b_x = tl.load(p_skip + (i_row * SKIP + i_c) + o_x, mask=m_m[:, None] & m_c, other=0.0)
            o_w = o_n[:, None] * SKIP + o_k[None, :]
            b_w = tl.load(p_skip_weight + i_c + o_w, mask=m_n[:, None] & m_c, other=0.0)
            b_y = tl.dot(b_x, tl.trans(b_w), b_y, input_precision="ieee")

    is_last = True
    if SPLIT > 1:
        i_tile = i_n * tiles_m + i_m
        p_tile = p_workspace + i_tile.to(tl.int64) * (SPLIT * BLOCK_M * BLOCK_N)
        store_part_of_sum(p_tile, b_y, i_split, BLOCK_M, BLOCK_N)
        is_last = is_last_part(p_counters + tiles_m // m_blocks + i_tile, SPLIT)
    if is_last:
        if SPLIT > 1:
            b_y = sum_of_parts(p_tile, SPLIT, BLOCK_M, BLOCK_N)
        o_y = i_row * O + o_m[:, None] * O + o_n[None, :]
        m_y = m_m[:, None] & m_n[None, :]
        b_y = add_bias(b_y, p_bias, o_n, m_n)
        b_y = store_sum(b_y, p_y, p_skip_bias, p_residual, o_y, o_n, m_y, m_n)
        if NEXT_GROUPS:
            write_statistics(
                b_y, m_m, p_parts, p_counters, p_next, i_image, i_m % m_blocks, m_blocks, i_n, next_eps,
                O, NEXT_GROUPS, SLOTS, TILE_GROUPS, ROWS, BLOCK_N,
            )  # fmt: skip


class Norm(NamedTuple):
    """The normalization of x before the convolution.

    Args:
        num_groups: 0 for none.
        statistics: mean and 1 / deviation of x's groups, float32 [B, 2, num_groups].
        affine, strides: weight, bias, scale and shift, and the row strides of the last two, from `affine_rows`.
        silu: whether SiLU follows.
    """

    num_groups: int
    statistics: Tensor | None
    affine: tuple[Tensor | None, ...]
    strides: tuple[int, int]
    silu: bool


NO_NORM = Norm(0, None, (None,) * 4, (0, 0), False)


class Skip(NamedTuple):
    """A 1×1 convolution of another image, added to the result: x [B, C, H, W], weight [O, C], bias [O] or None."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None


class Geometry(NamedTuple):
    """What a plan depends on.

    Args:
        batch, channels, height, width: of x. out_channels: of y. skip_channels: of the skip connection, 0 without.
        num_groups, silu, scale_stride, shift_stride: of the norm of x; 0 groups for none.
        next_groups, next_eps: of the statistics of y; 0 groups for none.
    """

    batch: int
    channels: int
    height: int
    width: int
    out_channels: int
    skip_channels: int
    num_groups: int
    silu: bool
    scale_stride: int
    shift_stride: int
    next_groups: int
    next_eps: float


def _bucket(g: Geometry) -> tuple:
    return g.batch, bucket(g.height * g.width), g.out_channels, g.channels, g.num_groups > 0


@planned(SPACE, _bucket)
def _forward(config: Config, g: Geometry) -> Plan:
    block_m, block_n, block_k = (config.blocks[name] for name in ("BLOCK_M", "BLOCK_N", "BLOCK_K"))
    m_blocks = triton.cdiv(g.height * g.width, block_m)
    tiles = g.batch * m_blocks * triton.cdiv(g.out_channels, block_n)
    parts, each = split(tiles, triton.cdiv(g.channels, block_k))
    following = constants(g.out_channels, g.next_groups, block_n, config.num_warps)
    start = Start(
        conv2d_kernel,
        (tiles * parts,),
        *(g.height * g.width, g.height, g.width, g.scale_stride, g.shift_stride, g.next_eps, 9),
        maxnreg=255,
        C=g.channels,
        O=g.out_channels,
        SKIP=g.skip_channels,
        GROUPS=g.num_groups,
        SILU=g.silu,
        SPLIT=parts,
        CHUNKS=each,
        **following,
        **config.options,
        passes=PASSES,
    )
    workspace = tiles * parts * block_m * block_n if parts > 1 else 0
    return Plan(start, workspace, tiles, m_blocks, following["SLOTS"])


def unsupported(dtype: torch.dtype, *channels: int) -> str | None:
    """Why the kernel is not for a convolution, or None.

    Args:
        dtype: of the image. channels: of input and output.
    """
    if dtype not in DTYPES:
        return f"{dtype} is not float16 or bfloat16"
    if min(channels) < MIN_CHANNELS:
        return f"{min(channels)} channels are less than {MIN_CHANNELS}"
    return None


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    residual: Tensor | None = None,
    norm: Norm = NO_NORM,
    skip: Skip | None = None,
    next_groups: int = 0,
    next_eps: float = 1e-5,
) -> tuple[Tensor, Tensor | None]:
    """Launch the kernel.

    Args:
        x, weight, bias, residual: as in `ops.conv2d`, with padding 1.
        norm: of x, before the convolution.
        skip: added to the result.
        next_groups, next_eps: groups of y to make statistics of, 0 for none, and what is added to their variance.

    Returns:
        y [B, O, H, W], channels-last, and mean and 1 / deviation of its groups, float32 [B, 2, next_groups], or None.
    """
    batch, channels, height, width = x.shape
    out_channels, dtype, device = weight.shape[0], x.dtype, x.device
    x = x.contiguous(memory_format=torch.channels_last)
    # A float32 weight would take twice the shared memory, and every program would round it.
    weight = (weight if weight.dtype is dtype else weight.to(dtype)).contiguous(memory_format=torch.channels_last)
    if residual is not None:
        residual = residual.contiguous(memory_format=torch.channels_last)
    skip_x = skip_weight = skip_bias = None
    if skip is not None:
        skip_x = skip.x.contiguous(memory_format=torch.channels_last)
        skip_weight, skip_bias = skip.weight.to(dtype).contiguous(), contiguous(skip.bias)
    y = new_image(x, batch, out_channels, height, width)
    tensors = contiguous(bias), residual, norm.statistics, *norm.affine, skip_x, skip_weight, skip_bias
    statistics = x.new_empty((batch, 2, next_groups), dtype=torch.float32) if next_groups else None

    def run(plan: Plan) -> tuple[Tensor | None, ...]:
        plan.start(x, weight, *tensors, y, *buffers(y, plan, next_groups, statistics))
        return y, statistics

    geometry = Geometry(
        *(batch, channels, height, width, out_channels, 0 if skip_x is None else skip_x.shape[1]),
        *(norm.num_groups, norm.silu, *norm.strides, next_groups, next_eps),
    )
    run(_forward(device, geometry, trial=run))
    return y, statistics
