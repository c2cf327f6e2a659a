"""Triton kernel for `pointwise_conv2d`: one matrix product on the rows of the channels-last image.

A program takes BLOCK_M pixels of one image and BLOCK_N output channels, and iterates over the input channels. Each tile
of x is normalized before the product, with statistics from an earlier launch, so that no normalized image exists; bias
and residual are added before the only store. Since a program's pixels are all of one image, a tile needs one mean a
channel. The programs of the same pixels are adjacent in the grid: all but the first find x in the L2 cache, where the
weight stays anyway.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from resshift_fast.kernels.group_norm import statistics
from resshift_fast.kernels.launch import Start
from resshift_fast.kernels.plans import contiguous, planned
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
    rows, _, out_channels, _, _ = key
    # On 12.0 the normalization of a tile of 128 x 64 does not fit the registers of four warps.
    tiles = [t for t in _tiles(key) if arch < 120 or t[:2] != (128, 64)]
    full = [t for t in tiles if triton.cdiv(rows, t[0]) * triton.cdiv(out_channels, t[1]) >= PROGRAMS]
    return _config(full[0] if full else tiles[-1], key)


# Bucket: pixels of the batch, pixels of a normalized image, output channels, channels, bytes of an element.
SPACE = Space(
    "pointwise_conv2d_kernel",
    candidates=lambda key: [_config(tile, key) for tile in _tiles(key)],
    default=_default,
)


@triton.jit
def normalized(b_x, p_mean, p_rstd, p_weight, p_bias, o_c, m_c, GROUP_SIZE: tl.constexpr):
    """Group normalization of rows b_x [rows, channels o_c] of one image, in b_x's dtype; 0 where m_c is false.

    p_mean and p_rstd point to the image's statistics.
    """
    b_mean = tl.load(p_mean + o_c // GROUP_SIZE, mask=m_c, other=0.0)
    b_rstd = tl.load(p_rstd + o_c // GROUP_SIZE, mask=m_c, other=0.0)
    b_scale = b_rstd * tl.load(p_weight + o_c, mask=m_c, other=0.0).to(tl.float32)
    b_shift = tl.load(p_bias + o_c, mask=m_c, other=0.0).to(tl.float32)
    b_y = (b_x.to(tl.float32) - b_mean[None, :]) * b_scale[None, :] + b_shift[None, :]
    return b_y.to(b_x.dtype)


@triton.jit(do_not_specialize=["pixels"])
def pointwise_conv2d_kernel(
    p_x,  # [images, pixels, C]
    p_weight,  # [O, C], x's dtype
    p_bias,  # [O] or None
    p_residual,  # [images, pixels, O] or None
    p_mean,  # [images, GROUPS], float32, or None
    p_rstd,  # [images, GROUPS], float32, or None
    p_norm_weight,  # [C] or None
    p_norm_bias,  # [C] or None
    p_y,  # [images, pixels, O]
    pixels,
    C: tl.constexpr,
    O: tl.constexpr,  # noqa: E741
    GROUPS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
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
            p_m, p_r = p_mean + i_image * GROUPS, p_rstd + i_image * GROUPS
            b_x = normalized(b_x, p_m, p_r, p_norm_weight, p_norm_bias, o_k, m_k, C // GROUPS)
        b_y = tl.dot(b_x, tl.trans(b_w), b_y, input_precision="ieee")

    if p_bias is not None:
        b_y += tl.load(p_bias + o_n, mask=m_n, other=0.0).to(tl.float32)[None, :]
    o_y = i_row * O + o_m[:, None] * O + o_n[None, :]
    m_y = m_m[:, None] & m_n[None, :]
    if p_residual is not None:
        b_y += tl.load(p_residual + o_y, mask=m_y, other=0.0).to(tl.float32)
    tl.store(p_y + o_y, b_y.to(p_y.dtype.element_ty), mask=m_y)


def unsupported(x: Tensor, *_: object) -> str | None:
    """Why the kernel can't run this call, or None."""
    if x.dtype == torch.float64:
        return "x is float64"
    return None


def _bucket(images: int, pixels: int, channels: int, out_channels: int, element_size: int, _: int) -> tuple:
    return bucket(images * pixels), bucket(pixels), out_channels, channels, element_size


@planned(SPACE, _bucket)
def _forward(
    config: Config, images: int, pixels: int, channels: int, out_channels: int, element_size: int, num_groups: int
) -> Start:
    m_blocks = triton.cdiv(pixels, config.blocks["BLOCK_M"])
    n_blocks = triton.cdiv(out_channels, config.blocks["BLOCK_N"])
    constants = {"C": channels, "O": out_channels, "GROUPS": num_groups, **config.options}
    return Start(pointwise_conv2d_kernel, (images * m_blocks * n_blocks,), pixels, **constants)


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    num_groups: int,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    eps: float,
) -> Tensor:
    """Launch the kernel, after that of the statistics if there are groups; returns y [B, O, H, W] channels-last."""
    batch, channels, height, width = x.shape
    out_channels, dtype, device = weight.shape[0], x.dtype, x.device
    x = x.contiguous(memory_format=torch.channels_last)
    if residual is not None:
        residual = residual.contiguous(memory_format=torch.channels_last)
    size = (batch, out_channels, height, width)
    y = torch.empty(size, dtype=dtype, device=device, memory_format=torch.channels_last)
    mean, rstd = statistics(x, num_groups, eps) if num_groups else (None, None)
    # A float32 weight would take twice the shared memory, and every program would round it.
    weight = contiguous(weight if weight.dtype is dtype else weight.to(dtype))
    bias, norm_weight, norm_bias = contiguous(bias), contiguous(norm_weight), contiguous(norm_bias)

    def run(start: Start) -> tuple[Tensor]:
        start(x, weight, bias, residual, mean, rstd, norm_weight, norm_bias, y)
        return (y,)

    # Without statistics the pixels of all images can be treated as those of one.
    images, pixels = (batch, height * width) if num_groups else (1, batch * height * width)
    run(_forward(device, images, pixels, channels, out_channels, x.element_size(), num_groups, trial=run))
    return y
