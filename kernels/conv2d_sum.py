"""Triton kernel for `conv2d_sum`: a 3×3 convolution as an implicit matrix product, with all sums after it.

A program takes BLOCK_M pixels of one image and BLOCK_N output channels, and multiplies the pixels at each tap by the
tap's weights; pixels outside the image are zeros. In its epilogue it adds bias, residual and a 1×1 convolution of other
images, the skip connection of a residual block, and makes the statistics for the next normalization. After a
convolution of cuDNN, the statistics take one more pass over the result, and a sum three.

x is normalized before, by a pass of its own: here each value would be normalized again for nine taps and each block of
output channels. conv2d.py has figures, and a kernel that does so on small planes, where a launch less counts for more.

Projected for an H100 in 16 bit, in microseconds: both products at 60 % of the matrix rate of the multiprocessors that
have tiles, cuDNN's with tiles of 128×128 and followed by one pass that adds the residual and makes the statistics.
L2 is the time in which the cache delivers this kernel's tiles at 5,120 bytes a clock.

===============  =========  ====  ===  ========
C → O, size      tile       here  L2   cuDNN
===============  =========  ====  ===  ========
128 → 128, 256²  128×128    34    35   34 + 15
256 → 256, 128²  128×128    34    35   34 + 8
512 → 512, 64²   128×128    34    35   34 + 4
160 → 160, 64²   128×64     5     6    10 + 2
320 → 320, 32²   64×64      5     7    21 + 2
===============  =========  ====  ===  ========

Images of few channels, such as pixels, have all taps in one step of the product: its rows are the 9·C values that a
pixel of the result depends on.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from resshift_fast.kernels.dependents import wait_for_previous
from resshift_fast.kernels.epilogue import add_bias, store_sum
from resshift_fast.kernels.launch import Start
from resshift_fast.kernels.norm_stats import PASSES, Plan, buffers, constants, write_statistics
from resshift_fast.kernels.plans import NEARLY_FULL, contiguous, new_image, planned
from resshift_fast.kernels.tuning import Config, Space, bucket

DTYPES = (torch.float16, torch.bfloat16)  # float32 has no matrix instruction of its precision
MAX_PACKED = 7  # channels of which all taps are one step of at most 64
MIN_OUT_CHANNELS = 16  # fewer are mostly padding of a block

# Tiles (BLOCK_M, BLOCK_N, BLOCK_K, num_warps, num_stages), and those for architectures with 99 KB of shared memory for
# a program and for channels that would be mostly padding of a step of 64. Tiles of 128×256 would read a quarter less
# from the L2 cache, but the statistics of so large a tile do not fit into its registers.
TILES = ((128, 128, 64, 8, 3), (128, 64, 64, 4, 4), (64, 64, 64, 4, 4))
NARROW = ((128, 128, 32, 8, 4), (128, 64, 32, 4, 4), (64, 64, 32, 4, 4))


def _config(key: tuple, tile: tuple[int, int, int, int, int]) -> Config:
    """A tile, with all taps in one step if the image has few channels."""
    block_m, block_n, block_k, num_warps, num_stages = tile
    if key[3] <= MAX_PACKED:
        block_k, num_stages = max(triton.next_power_of_2(9 * key[3]), 16), 1
    blocks = {"BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_K": block_k}
    return Config(blocks, num_warps=num_warps, num_stages=num_stages)


def _fitting(key: tuple, tiles: tuple) -> list[tuple[int, int, int, int, int]]:
    """The tiles of which at most a fifth is padding of the output channels; always the smallest."""
    out_channels = key[2]
    return [t for t in tiles if t is tiles[-1] or triton.cdiv(out_channels, t[1]) * t[1] * 4 <= out_channels * 5]


def _programs(key: tuple, tile: tuple[int, int, int, int, int]) -> int:
    images, pixels, out_channels, _ = key
    return images * triton.cdiv(pixels, tile[0]) * triton.cdiv(out_channels, tile[1])


def _default(arch: int, key: tuple) -> Config:
    """The largest tile of which there are enough, else the smallest."""
    small_memory = arch in (86, 89) or arch >= 120
    tiles = _fitting(key, NARROW if small_memory or 0 < key[3] % 64 <= 32 else TILES)
    block_m, block_n, block_k, num_warps, num_stages = next(
        (t for t in tiles if _programs(key, t) >= NEARLY_FULL), tiles[-1]
    )
    if arch == 80 and (block_m, block_n) == (128, 64):
        num_warps = 8  # four have too few registers for the addresses of two images
    return _config(key, (block_m, block_n, block_k, num_warps, num_stages))


def _candidates(key: tuple) -> list[Config]:
    configs = [_config(key, t) for tiles in (TILES, NARROW) for t in _fitting(key, tiles)]
    return list({str(config): config for config in configs}.values())


# Bucket: images, pixels of an image, output channels, channels.
SPACE = Space("conv2d_sum_kernel", _candidates, _default)


@triton.jit
def taps_product(
    p_x, p_weight, i_row, i_first, o_m, m_m, o_n, m_n, height, width, C: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The convolution's sums [BLOCK_M, BLOCK_N] for the pixels from i_first on, row i_row (int64) of [rows, C]."""
    CHUNKS: tl.constexpr = (C + BLOCK_K - 1) // BLOCK_K
    o_k = tl.arange(0, BLOCK_K)
    b_row = (i_first + o_m) // width
    b_column = (i_first + o_m) % width
    o_x = o_m[:, None] * C + o_k[None, :]
    o_w = o_n[:, None] * (9 * C) + o_k[None, :]
    p_x += i_row * C
    b_y = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for i in range(9 * CHUNKS):
        i_tap = i // CHUNKS
        i_c = i % CHUNKS * BLOCK_K
        i_y, i_x = i_tap // 3 - 1, i_tap % 3 - 1
        b_in_row, b_in_column = b_row + i_y, b_column + i_x
        m_tap = m_m & (b_in_row >= 0) & (b_in_row < height) & (b_in_column >= 0) & (b_in_column < width)
        m_x = m_tap[:, None]
        m_w = m_n[:, None]
        if C % BLOCK_K != 0:
            m_c = (o_k < C - i_c)[None, :]
            m_x = m_x & m_c
            m_w = m_w & m_c
        i_shift = (i_y.to(tl.int64) * width + i_x) * C + i_c
        b_x = tl.load(p_x + i_shift + o_x, mask=m_x, other=0.0)
        b_w = tl.load(p_weight + (i_tap * C + i_c) + o_w, mask=m_w, other=0.0)
        b_y = tl.dot(b_x, tl.trans(b_w), b_y, input_precision="ieee")
    return b_y


@triton.jit
def packed_product(
    p_x, p_weight, i_row, i_first, o_m, m_m, o_n, m_n, height, width, C: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """`taps_product` in one step, for 9·C values of at most BLOCK_K."""
    o_k = tl.arange(0, BLOCK_K)
    b_y = (o_k // C // 3 - 1)[None, :]
    b_x = (o_k // C % 3 - 1)[None, :]
    b_in_row = ((i_first + o_m) // width)[:, None] + b_y
    b_in_column = ((i_first + o_m) % width)[:, None] + b_x
    m_k = (o_k < 9 * C)[None, :]
    m_x = m_m[:, None] & m_k & (b_in_row >= 0) & (b_in_row < height) & (b_in_column >= 0) & (b_in_column < width)
    o_x = (o_m[:, None] + b_y.to(tl.int64) * width + b_x) * C + (o_k % C)[None, :]
    b_taps = tl.load(p_x + i_row * C + o_x, mask=m_x, other=0.0)
    b_w = tl.load(p_weight + o_n[:, None] * (9 * C) + o_k[None, :], mask=m_n[:, None] & m_k, other=0.0)
    return tl.dot(b_taps, tl.trans(b_w), input_precision="ieee")


@triton.jit
def add_pointwise(
    b_y, p_x, p_weight, i_row, o_m, m_m, o_n, m_n, C: tl.constexpr, ROW: tl.constexpr, BLOCK_K: tl.constexpr
):
    """b_y plus the product of rows i_row + o_m of p_x [rows, C] with p_weight, C of the ROW values of each output."""
    o_k = tl.arange(0, BLOCK_K)
    p_x += i_row * C
    for i_c in range(0, C, BLOCK_K):
        m_c = (o_k < C - i_c)[None, :]
        b_x = tl.load(p_x + i_c + (o_m[:, None] * C + o_k[None, :]), mask=m_m[:, None] & m_c, other=0.0)
        b_w = tl.load(p_weight + i_c + (o_n[:, None] * ROW + o_k[None, :]), mask=m_n[:, None] & m_c, other=0.0)
        b_y = tl.dot(b_x, tl.trans(b_w), b_y, input_precision="ieee")
    return b_y


@triton.jit(do_not_specialize=["pixels", "height", "width"])
def conv2d_sum_kernel(
    p_x,  # [images, pixels, C]
    p_weight,  # [O, 3, 3, C], x's dtype
    p_bias,  # [O] or None
    p_residual,  # [images, pixels, O] or None
    p_skip,  # [images, pixels, SKIP] or None
    p_other,  # [images, pixels, OTHER] or None
    p_skip_weight,  # [O, SKIP + OTHER], x's dtype, or None
    p_skip_bias,  # [O] or None
    p_y,  # [images, pixels, O]
    p_parts,  # [images, blocks of pixels, SLOTS, 3, NEXT_GROUPS], float32, or None
    p_counters,  # [images], int32 zeros before and after, or None
    p_next,  # [images, 2, NEXT_GROUPS], float32, or None
    pixels,
    height,
    width,
    next_eps,
    C: tl.constexpr,
    O: tl.constexpr,  # noqa: E741
    SKIP: tl.constexpr,
    OTHER: tl.constexpr,
    PACKED: tl.constexpr,  # all taps in one step
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
    # Programs with the same pixels are neighbours: the weights of all outputs stay in the L2 cache anyway.
    i_n = tl.program_id(0) % N_BLOCKS
    i_m = tl.program_id(0) // N_BLOCKS
    i_image = (i_m // m_blocks).to(tl.int64)
    i_part = i_m % m_blocks
    i_first = i_part * BLOCK_M
    i_row = i_image * pixels + i_first  # of the block's first pixel
    o_m = tl.arange(0, BLOCK_M)
    o_n = i_n * BLOCK_N + tl.arange(0, BLOCK_N)
    m_m = o_m < pixels - i_first
    m_n = o_n < O
    if PACKED:
        b_y = packed_product(p_x, p_weight, i_row, i_first, o_m, m_m, o_n, m_n, height, width, C, BLOCK_K)
    else:
        b_y = taps_product(
            p_x, p_weight, i_row, i_first, o_m, m_m, o_n, m_n, height, width, C, BLOCK_M, BLOCK_N, BLOCK_K
        )
    if SKIP:
        b_y = add_pointwise(b_y, p_skip, p_skip_weight, i_row, o_m, m_m, o_n, m_n, SKIP, SKIP + OTHER, BLOCK_K)
    if OTHER:
        b_y = add_pointwise(b_y, p_other, p_skip_weight + SKIP, i_row, o_m, m_m, o_n, m_n, OTHER, SKIP + OTHER, BLOCK_K)

    o_y = i_row * O + o_m[:, None] * O + o_n[None, :]
    m_y = m_m[:, None] & m_n[None, :]
    b_y = add_bias(b_y, p_bias, o_n, m_n)
    b_y = store_sum(b_y, p_y, p_skip_bias, p_residual, o_y, o_n, m_y, m_n)
    if NEXT_GROUPS:
        write_statistics(
            b_y, m_m, p_parts, p_counters, p_next, i_image, i_part, m_blocks, i_n, next_eps,
            O, NEXT_GROUPS, SLOTS, TILE_GROUPS, ROWS, BLOCK_N,
        )  # fmt: skip


class Geometry(NamedTuple):
    """What a plan depends on.

    Args:
        batch, channels, height, width: of x. out_channels: of y.
        skip_channels, other_channels: of the two images of the skip connection, 0 without.
        next_groups, next_eps: of the statistics of y; 0 groups for none.
    """

    batch: int
    channels: int
    height: int
    width: int
    out_channels: int
    skip_channels: int
    other_channels: int
    next_groups: int
    next_eps: float


def _bucket(g: Geometry) -> tuple:
    # Without statistics too: the same tiles make the same sums.
    return g.batch, bucket(g.height * g.width), g.out_channels, g.channels


@planned(SPACE, _bucket)
def _forward(config: Config, g: Geometry) -> Plan:
    block_m, block_n = config.blocks["BLOCK_M"], config.blocks["BLOCK_N"]
    m_blocks = triton.cdiv(g.height * g.width, block_m)
    following = constants(g.out_channels, g.next_groups, block_n, config.num_warps)
    start = Start(
        conv2d_sum_kernel,
        (g.batch * m_blocks * triton.cdiv(g.out_channels, block_n),),
        *(g.height * g.width, g.height, g.width, g.next_eps),
        maxnreg=255,
        C=g.channels,
        O=g.out_channels,
        SKIP=g.skip_channels,
        OTHER=g.other_channels,
        PACKED=g.channels <= MAX_PACKED,
        **following,
        **config.options,
        passes=PASSES,
    )
    return Plan(start, m_blocks, following["SLOTS"])


def unsupported(x: Tensor, weight: Tensor, *_: object) -> str | None:
    """Why the kernel can't run this call, or None."""
    if x.dtype not in DTYPES:
        return f"{x.dtype} is not float16 or bfloat16"
    if weight.shape[0] < MIN_OUT_CHANNELS:
        return f"{weight.shape[0]} output channels are less than {MIN_OUT_CHANNELS}"
    return None


class Arguments(NamedTuple):
    """Arguments of the operator; `ops.conv2d_sum` describes them."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    residual: Tensor | None = None
    skip: Tensor | None = None
    other: Tensor | None = None
    skip_weight: Tensor | None = None
    skip_bias: Tensor | None = None
    next_groups: int = 0
    next_eps: float = 1e-5


def forward(*args: Any) -> tuple[Tensor, Tensor]:
    """Launch the kernel on `Arguments`.

    Returns:
        y [B, O, H, W], channels-last, and mean and 1 / deviation of its groups, float32 [B, 2, next_groups].
    """
    x, weight, bias, residual, skip, other, skip_weight, skip_bias, next_groups, next_eps = Arguments(*args)
    batch, channels, height, width = x.shape
    out_channels, dtype, device = weight.shape[0], x.dtype, x.device
    x = x.contiguous(memory_format=torch.channels_last)
    # A float32 weight would take twice the shared memory, and every program would round it.
    weight = (weight if weight.dtype is dtype else weight.to(dtype)).contiguous(memory_format=torch.channels_last)
    images = [None if t is None else t.contiguous(memory_format=torch.channels_last) for t in (residual, skip, other)]
    if skip_weight is not None:
        skip_weight = skip_weight.to(dtype).contiguous()
    y = new_image(x, batch, out_channels, height, width)
    statistics = x.new_empty((batch, 2, next_groups), dtype=torch.float32)
    tensors = x, weight, contiguous(bias), *images, skip_weight, contiguous(skip_bias), y

    def run(plan: Plan) -> tuple[Tensor, ...]:
        plan.start(*tensors, *buffers(y, plan.parts, plan.slots, next_groups, statistics))
        return (y, statistics) if next_groups else (y,)

    of_skip, of_other = (0 if t is None else t.shape[1] for t in images[1:])
    geometry = Geometry(batch, channels, height, width, out_channels, of_skip, of_other, next_groups, next_eps)
    run(_forward(device, geometry, trial=run))
    return y, statistics
