"""Triton kernel for `pointwise_conv2d`: one matrix product on the rows of the channels-last image.

A program takes BLOCK_M pixels of one image and BLOCK_N output channels, and iterates over the input channels. Each tile
of x is normalized before the product, with statistics that are given or from an earlier launch, so that no normalized
image exists; bias and residual are added before the only store. Since a program's pixels are all of one image, a tile
needs one mean a channel. The programs of the same pixels are adjacent in the grid: all but the first find x in the L2
cache, where the weight stays anyway. If the result is normalized next, the kernel also writes the statistics for that.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from resshift_fast.kernels.dependents import wait_for_previous
from resshift_fast.kernels.epilogue import store_sum
from resshift_fast.kernels.group_norm import statistics as group_statistics
from resshift_fast.kernels.group_norm_tiles import load_norm, normalize
from resshift_fast.kernels.launch import Start
from resshift_fast.kernels.norm_stats import PASSES, Plan, buffers, constants, write_statistics
from resshift_fast.kernels.plans import contiguous, new_image, planned
from resshift_fast.kernels.tuning import Config, Space, bucket

# Tiles (BLOCK_M, BLOCK_N, num_warps), from the one that reads least to the one with the most programs. With these warps
# every thread has 128 bits of a 16-bit tile to store; float32 takes at least 4, for their registers.
TILES = ((128, 128, 8), (128, 64, 4), (64, 64, 4), (32, 64, 4), (32, 32, 4), (16, 32, 2))
PROGRAMS = 192  # three for every two multiprocessors of a large GPU


def _config(tile: tuple[int, int, int], key: tuple) -> Config:
    block_m, block_n, num_warps = tile
    *_, channels, itemsize = key
    block_k = 64 if itemsize == 2 and channels % 64 == 0 else 32
    blocks = {"BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_K": block_k}
    if itemsize == 4:
        return Config(blocks, num_warps=max(num_warps, 4), num_stages=2)
    return Config(blocks, num_warps=num_warps, num_stages=3)


def _tiles(key: tuple) -> list[tuple[int, int, int]]:
    """Tiles that are not mostly padding; in float32 the larger ones do not fit the registers."""
    _, pixels, out_channels, _, itemsize = key
    largest = 2048 if itemsize == 4 else 16384
    fits = [t for t in TILES if t[0] * t[1] <= largest and t[0] <= pixels and t[1] <= bucket(out_channels)]
    return fits or [TILES[-1]]


def _default(arch: int, key: tuple) -> Config:
    rows, _, out_channels, _, itemsize = key
    # On 12.0 neither the normalization of 128 × 64 fits the registers of four warps, nor statistics of 32 × 64 floats.
    tiles = [t for t in _tiles(key) if arch < 120 or t[:2] != ((128, 64) if itemsize == 2 else (32, 64))]
    full = [t for t in tiles if triton.cdiv(rows, t[0]) * triton.cdiv(out_channels, t[1]) >= PROGRAMS]
    return _config(full[0] if full else tiles[-1], key)


# Bucket: pixels of the batch, pixels of a normalized image, output channels, channels, bytes of an element.
SPACE = Space(
    "pointwise_conv2d_kernel",
    candidates=lambda key: [_config(tile, key) for tile in _tiles(key)],
    default=_default,
)


@triton.jit
def normalized(b_x, p_statistics, p_weight, p_bias, o_c, m_c, GROUPS: tl.constexpr, GROUP_SIZE: tl.constexpr):
    """Group normalization of rows b_x [rows, channels o_c] of one image, in b_x's dtype; 0 where m_c is false.

    p_statistics points to the image's means and 1 / deviations, [2, GROUPS].
    """
    b_mean, b_gain, b_offset = load_norm(
        p_statistics, p_weight, p_bias, None, None, 0, 0, 0, o_c, m_c, GROUPS, GROUP_SIZE
    )
    return normalize(b_x.to(tl.float32), b_mean, None, b_gain, b_offset, False).to(b_x.dtype)


@triton.jit(do_not_specialize=["pixels"])
def pointwise_conv2d_kernel(
    p_x,  # [images, pixels, C]
    p_weight,  # [O, C], x's dtype
    p_bias,  # [O] or None
    p_residual,  # [images, pixels, O] or None
    p_statistics,  # [images, 2, GROUPS], float32, or None
    p_norm_weight,  # [C] or None
    p_norm_bias,  # [C] or None
    p_y,  # [images, pixels, O]
    p_parts,  # [images, parts, SLOTS, 3, NEXT_GROUPS], float32, or None
    p_counters,  # [images], int32 zeros before and after, or None
    p_next,  # [images, 2, NEXT_GROUPS], float32, or None
    pixels,
    next_eps,
    C: tl.constexpr,
    O: tl.constexpr,  # noqa: E741
    GROUPS: tl.constexpr,
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
    i_n = tl.program_id(0) % N_BLOCKS
    i_m = tl.program_id(0) // N_BLOCKS
    i_image = (i_m // m_blocks).to(tl.int64)
    i_first = (i_m % m_blocks) * BLOCK_M
    i_row = i_image * pixels + i_first  # of the block's first pixel
    o_m = tl.arange(0, BLOCK_M)
    o_n = i_n * BLOCK_N + tl.arange(0, BLOCK_N)
    m_m = o_m < pixels - i_first
    m_n = o_n < O
    p_x += i_row * C

    b_y = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for k in range(0, C, BLOCK_K):
        o_k = k + tl.arange(0, BLOCK_K)
        m_k = o_k < C
        b_x = tl.load(p_x + o_m[:, None] * C + o_k[None, :], mask=m_m[:, None] & m_k[None, :], other=0.0)
        b_w = tl.load(p_weight + o_n[:, None] * C + o_k[None, :], mask=m_n[:, None] & m_k[None, :], other=0.0)
        if GROUPS:
            p_own = p_statistics + i_image * 2 * GROUPS
            b_x = normalized(b_x, p_own, p_norm_weight, p_norm_bias, o_k, m_k, GROUPS, C // GROUPS)
        b_y = tl.dot(b_x, tl.trans(b_w), b_y, input_precision="ieee")

    o_y = i_row * O + o_m[:, None] * O + o_n[None, :]
    b_y = store_sum(b_y, p_y, p_bias, p_residual, o_y, o_n, m_m[:, None] & m_n[None, :], m_n)
    if NEXT_GROUPS:
        write_statistics(
            b_y, m_m, p_parts, p_counters, p_next, i_image, i_m % m_blocks, m_blocks, i_n, next_eps,
            O, NEXT_GROUPS, SLOTS, TILE_GROUPS, ROWS, BLOCK_N,
        )  # fmt: skip


def unsupported(x: Tensor, *_: object) -> str | None:
    """Why the kernel can't run this call, or None."""
    if x.dtype == torch.float64:
        return "x is float64"
    return None


def _bucket(images: int, pixels: int, channels: int, out_channels: int, element_size: int, *_: object) -> tuple:
    return bucket(images * pixels), bucket(pixels), out_channels, channels, element_size


@planned(SPACE, _bucket)
def _forward(
    config: Config,
    images: int,
    pixels: int,
    channels: int,
    out_channels: int,
    element_size: int,
    num_groups: int,
    next_groups: int,
    next_eps: float,
) -> Plan:
    m_blocks = triton.cdiv(pixels, config.blocks["BLOCK_M"])
    n_blocks = triton.cdiv(out_channels, config.blocks["BLOCK_N"])
    own = {"C": channels, "O": out_channels, "GROUPS": num_groups, **config.options}
    following = constants(out_channels, next_groups, config.blocks["BLOCK_N"], config.num_warps)
    grid = (images * m_blocks * n_blocks,)
    start = Start(pointwise_conv2d_kernel, grid, pixels, next_eps, **own, **following, passes=PASSES)
    return Plan(start, m_blocks, following["SLOTS"])


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    num_groups: int,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    eps: float,
    statistics: Tensor | None = None,
) -> Tensor:
    """Launch the kernel, after that of the statistics if there are groups and no `statistics` [B, 2, num_groups].

    Returns y [B, O, H, W] channels-last.
    """
    return _launch(x, weight, bias, residual, num_groups, norm_weight, norm_bias, eps, statistics, 0, 0.0)[0]


def forward_with_statistics(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    num_groups: int,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    eps: float,
    statistics: Tensor | None,
    next_groups: int,
    next_eps: float,
) -> tuple[Tensor, Tensor]:
    """`forward`; returns y, and the statistics of its next_groups groups, float32 [B, 2, next_groups]."""
    y, following = _launch(
        x, weight, bias, residual, num_groups, norm_weight, norm_bias, eps, statistics, next_groups, next_eps
    )
    assert following is not None
    return y, following


def _launch(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    num_groups: int,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    eps: float,
    statistics: Tensor | None,
    next_groups: int,
    next_eps: float,
) -> tuple[Tensor, Tensor | None]:
    batch, channels, height, width = x.shape
    out_channels, dtype, device = weight.shape[0], x.dtype, x.device
    x = x.contiguous(memory_format=torch.channels_last)
    if residual is not None:
        residual = residual.contiguous(memory_format=torch.channels_last)
    y = new_image(x, batch, out_channels, height, width)
    following = x.new_empty((batch, 2, next_groups), dtype=torch.float32) if next_groups else None
    if num_groups:
        statistics = group_statistics(x, num_groups, eps) if statistics is None else statistics.contiguous()
    # A float32 weight would take twice the shared memory, and every program would round it.
    weight = contiguous(weight if weight.dtype is dtype else weight.to(dtype))
    bias, norm_weight, norm_bias = contiguous(bias), contiguous(norm_weight), contiguous(norm_bias)

    def run(plan: Plan) -> tuple[Tensor | None, ...]:
        written = buffers(y, plan.parts, plan.slots, next_groups, following)
        plan.start(x, weight, bias, residual, statistics, norm_weight, norm_bias, y, *written)
        return y, following

    # Without statistics the pixels of all images can be treated as those of one.
    images, pixels = (batch, height * width) if num_groups or next_groups else (1, batch * height * width)
    sizes = images, pixels, channels, out_channels, x.element_size()
    run(_forward(device, *sizes, num_groups, next_groups, next_eps, trial=run))
    return y, following
