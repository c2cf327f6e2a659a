r"""Triton kernels for `upsample_conv2d`: a convolution of the image as it is, one for each parity of the output.

Output pixel (2i + p, 2j + r) reads the upsampled rows 2i + p − 1, 2i + p and 2i + p + 1, which are only two rows of x:
i + p − 1 and i + p. The three rows of the weight therefore collapse into two,

.. math:: p = 0:\; (w_0,\; w_1 + w_2), \qquad p = 1:\; (w_0 + w_1,\; w_2)

and the columns likewise. Each of the four phases (p, r) is a 2×2 convolution of x: 4/9 of the operations, and the
upsampled image never exists. Zero padding works as it is: a tap outside the upsampled image is one outside x.

One kernel computes it as an implicit matrix product: rows are pixels of x, the inner dimension is tap × channel, and
the rows of a phase are stored at their pixels of the channels-last output, of which it can also make the statistics for
the next normalization. The alternative, cuDNN on
weights [4·O, C, 2, 2], writes (H + 1)(W + 1) pixels of 4·O channels that a further pass must read, shift and
interleave. In 16 bit, at batch 1, in 10⁹ operations and 10⁶ bytes (x, weights and scratch, results, all passes):

==============  ================  ================  ================  ================
C = O, size     plain             cuDNN, summed     here, summed      here, not summed
==============  ================  ================  ================  ================
512, 64 → 128   77.3 op,  59 B    35.4 op,  77 B    34.4 op,  43 B    77.3 op,  26 B
256, 128 → 256  77.3 op, 110 B    34.9 op, 115 B    34.4 op,  47 B    77.3 op,  43 B
320, 32 → 64     7.5 op,  10 B     3.6 op,  17 B     3.4 op,  12 B     7.5 op, 5.1 B
320, 16 → 32     1.9 op, 4.0 B     0.9 op,  11 B     0.8 op, 9.2 B     1.9 op, 2.7 B
640, 8 → 16      1.9 op, 8.4 B     1.1 op,  35 B     0.8 op,  34 B     1.9 op, 7.8 B
==============  ================  ================  ================  ================

Summing saves 40·pixels·C·O operations and costs 7·C·O elements that the product reads more. With A operations in the
time of one element read it pays from 7/40·A pixels on: 100 in 16 bit on an H100, 50 on an A100, and 4 to 14 in float32.
Below, the same kernel takes the nine taps as they are.

A caller that keeps the sums passes them. Otherwise they are formed in every call, because weights may change between
calls: 25·C·O elements more, read and written by a launch of its own. That is little beside the decoder's operations,
but most of the traffic of the U-Net's small images; with the launch it pays from 500 pixels on in 16 bit.

`taps` has these bounds. Where kernels are measured, conv2d_algorithms.py chooses between both ways and PyTorch's
convolution of the upsampled image instead.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from resshift_fast.kernels.dependents import wait_for_previous
from resshift_fast.kernels.launch import Start
from resshift_fast.kernels.norm_stats import PASSES, buffers, constants, finish, store_part
from resshift_fast.kernels.plans import contiguous, new_image, planned
from resshift_fast.kernels.tuning import Config, Space, bucket

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
SUMMED_PIXELS = {2: 512, 4: 128}  # by bytes of an element: from so many pixels on, the taps are summed first
GIVEN_PIXELS = {2: 128, 4: 16}  # the same for sums that the caller has

SUM_BLOCK = 1024  # input channels of a program of the summing kernel, at most
GROUP_M = tl.constexpr(8)  # blocks of pixels that use the same blocks of weights while these are in L2


def _config(channels: int, b_m: int, b_n: int, b_k: int, num_warps: int, num_stages: int) -> Config:
    blocks = {"B_M": b_m, "B_N": b_n, "B_K": min(b_k, max(channels, 16))}
    return Config(blocks, num_warps=num_warps, num_stages=num_stages)


def _candidates(key: tuple) -> list[Config]:
    pixels, channels, _, itemsize, _ = key
    blocks: tuple[tuple[int, int, int, int, int], ...]
    if itemsize == 4:
        blocks = ((64, 64, 16, 8, 3), (64, 64, 32, 8, 2), (64, 32, 32, 4, 2), (32, 32, 32, 4, 2))
    elif pixels <= 1024:
        blocks = ((64, 32, 64, 4, 4), (64, 64, 64, 4, 4), (64, 64, 64, 4, 3), (64, 32, 128, 4, 3), (32, 32, 64, 2, 4))
    else:
        large = ((128, 128, 64, 8, 3), (128, 128, 64, 4, 3), (128, 128, 32, 8, 4), (128, 256, 64, 8, 3))
        blocks = (*large, (64, 64, 64, 4, 4), (64, 64, 64, 4, 3))
    return [_config(channels, *block) for block in blocks]


def _default(arch: int, key: tuple) -> Config:
    pixels, channels, out_channels, itemsize, _ = key
    if itemsize == 4:
        block = (64, 64, 16, 8, 3) if pixels > 1024 else (64, 32, 32, 4, 2)
    elif pixels <= 256:
        block = 64, 32, 64, 4, 4
    elif pixels <= 1024 or out_channels <= 64:
        block = 64, 64, 64, 4, 3 if arch >= 120 else 4  # on sm_120 the fourth stage spills
    elif arch in (86, 89) or arch >= 120:  # 99 KB of shared memory for a program
        block = 128, 128, 32, 8, 4
    else:
        block = 128, 128, 64, 8, 3
    return _config(channels, *block)


# Bucket: (pixels, channels, output channels, itemsize, taps), the first three as powers of two.
SPACE = Space("upsample_conv2d_kernel", _candidates, _default)


@triton.jit
def collapse(b_0, b_1, b_2):
    """Three taps along one axis to the two of parity 0 and the two of parity 1."""
    return b_0, b_1 + b_2, b_0 + b_1, b_2


@triton.jit
def load_columns(p_tap, stride_x, m_weight):
    """Load a row of three taps and collapse them."""
    b_0 = tl.load(p_tap, mask=m_weight, other=0.0).to(tl.float32)
    b_1 = tl.load(p_tap + stride_x, mask=m_weight, other=0.0).to(tl.float32)
    b_2 = tl.load(p_tap + stride_x + stride_x, mask=m_weight, other=0.0).to(tl.float32)
    return collapse(b_0, b_1, b_2)


@triton.jit(do_not_specialize=["n_rows"])
def sum_taps_kernel(
    p_weight,  # [O, CHANNELS, 3, 3], of any strides
    p_summed,  # [4 phases, O, 4 taps, CHANNELS]
    n_rows,  # O
    stride_o,
    stride_c,
    stride_y,
    stride_x,
    CHANNELS: tl.constexpr,
    B_C: tl.constexpr,
):
    wait_for_previous()
    CHUNKS: tl.constexpr = (CHANNELS + B_C - 1) // B_C
    i_o = (tl.program_id(0) // CHUNKS).to(tl.int64)
    o_c = tl.program_id(0) % CHUNKS * B_C + tl.arange(0, B_C)
    m_weight = o_c < CHANNELS
    p_tap = p_weight + i_o * stride_o + o_c.to(tl.int64) * stride_c
    b_top = load_columns(p_tap, stride_x, m_weight)
    b_middle = load_columns(p_tap + stride_y, stride_x, m_weight)
    b_bottom = load_columns(p_tap + stride_y + stride_y, stride_x, m_weight)
    for i_column in tl.static_range(4):  # 2 · parity + tap, as the rows
        b_rows = collapse(b_top[i_column], b_middle[i_column], b_bottom[i_column])
        for i_row in tl.static_range(4):
            i_phase = i_row // 2 * 2 + i_column // 2
            i_tap = i_row % 2 * 2 + i_column % 2
            p_row = p_summed + ((i_phase * n_rows.to(tl.int64) + i_o) * 4 + i_tap) * CHANNELS
            tl.store(p_row + o_c, b_rows[i_row].to(p_summed.dtype.element_ty), mask=m_weight)


@triton.jit(do_not_specialize=["n_pixels", "height", "width"])
def upsample_conv2d_kernel(
    p_x,  # [images, height, width, CHANNELS]
    p_weight,  # [4 phases, OUT, 2, 2, CHANNELS] if TAPS is 2, [OUT, 3, 3, CHANNELS] if 3
    p_bias,  # [OUT], or None
    p_y,  # [images, 2 · height, 2 · width, OUT]
    p_parts,  # [images, 4 · blocks of pixels, SLOTS, 3, NEXT_GROUPS], float32, or None
    p_counters,  # [images], int32 zeros before and after, or None
    p_next,  # [images, 2, NEXT_GROUPS], float32, or None
    n_pixels,  # of an image; without statistics those of the batch, as if it were one
    height,
    width,
    next_eps,
    CHANNELS: tl.constexpr,
    OUT: tl.constexpr,
    TAPS: tl.constexpr,
    NEXT_GROUPS: tl.constexpr,
    SLOTS: tl.constexpr,
    TILE_GROUPS: tl.constexpr,
    ROWS: tl.constexpr,
    B_M: tl.constexpr,
    B_N: tl.constexpr,
    B_K: tl.constexpr,
):
    wait_for_previous()
    CHUNKS: tl.constexpr = (CHANNELS + B_K - 1) // B_K
    COLUMNS: tl.constexpr = 4 * ((OUT + B_N - 1) // B_N)  # blocks of outputs of all phases
    i_program = tl.program_id(0).to(tl.int64)
    i_group = i_program // (GROUP_M * COLUMNS)
    i_in_group = i_program % (GROUP_M * COLUMNS)
    group_size = tl.minimum(tl.num_programs(0) // COLUMNS - i_group * GROUP_M, GROUP_M)
    i_m = i_group * GROUP_M + i_in_group % group_size
    m_blocks = tl.cdiv(n_pixels, B_M)
    i_image = i_m // m_blocks
    i_in_image = i_m % m_blocks * B_M
    i_first = i_image * n_pixels + i_in_image
    i_column = (i_in_group // group_size).to(tl.int32)
    i_phase = i_column % 4
    i_phase_y, i_phase_x = i_phase // 2, i_phase % 2

    # One 64-bit division a program: within the block, columns are counted from the first pixel's.
    i_row = i_first // width
    o_m = tl.arange(0, B_M)
    b_column = (i_first - i_row * width).to(tl.int32) + o_m
    b_row_in_block = b_column // width
    b_column = b_column % width
    b_row = ((i_row % height).to(tl.int32) + b_row_in_block) % height
    m_pixel = i_in_image + o_m < n_pixels

    o_n = i_column // 4 * B_N + tl.arange(0, B_N)
    o_k = tl.arange(0, B_K)
    m_n = o_n < OUT
    o_x = o_m[:, None] * CHANNELS + o_k[None, :]
    o_weight = o_n[None, :] * (TAPS * TAPS * CHANNELS) + o_k[:, None]
    if TAPS == 2:
        p_weight += i_phase * (4 * OUT * CHANNELS)
    p_x += i_first * CHANNELS
    b_y = tl.zeros([B_M, B_N], tl.float32)
    for i in range(TAPS * TAPS * CHUNKS):
        i_tap = i // CHUNKS
        i_c = i % CHUNKS * B_K
        i_y = i_tap // TAPS
        i_x = i_tap % TAPS
        if TAPS == 2:
            i_y += i_phase_y - 1
            i_x += i_phase_x - 1
        else:  # −1, 0, 0 or 0, 0, 1: the row of x that row 2i + phase + tap − 1 of the upsampled image repeats
            i_y = (i_y + i_phase_y + 1) // 2 - 1
            i_x = (i_x + i_phase_x + 1) // 2 - 1
        b_in_y = b_row + i_y
        b_in_x = b_column + i_x
        m_x = m_pixel & (b_in_y >= 0) & (b_in_y < height) & (b_in_x >= 0) & (b_in_x < width)
        m_a = m_x[:, None]
        m_b = m_n[None, :]
        if CHANNELS % B_K != 0:
            m_a = m_a & (i_c + o_k < CHANNELS)[None, :]
            m_b = m_b & (i_c + o_k < CHANNELS)[:, None]
        i_shift = (i_y.to(tl.int64) * width + i_x) * CHANNELS + i_c
        b_x = tl.load(p_x + i_shift + o_x, mask=m_a, other=0.0)
        b_weight = tl.load(p_weight + i_tap * CHANNELS + i_c + o_weight, mask=m_b, other=0.0)
        b_y = tl.dot(b_x, b_weight.to(b_x.dtype), b_y, input_precision="ieee")

    if p_bias is not None:
        b_y += tl.load(p_bias + o_n, mask=m_n, other=0.0).to(tl.float32)[None, :]
    b_out_row = (i_row + b_row_in_block) * 2 + i_phase_y
    b_pixel = (b_out_row * width + b_column) * 2 + i_phase_x
    p_store = p_y + b_pixel[:, None] * OUT + o_n[None, :]
    b_y = b_y.to(p_y.dtype.element_ty)
    tl.store(p_store, b_y, mask=m_pixel[:, None] & m_n[None, :])
    if NEXT_GROUPS:  # a part has the pixels of one phase
        b_y = b_y.to(tl.float32)
        i_part = i_m % m_blocks * 4 + i_phase
        parts = m_blocks * 4
        i_n = i_column // 4
        store_part(b_y, m_pixel, p_parts, i_image, i_part, parts, i_n, OUT, NEXT_GROUPS, SLOTS, TILE_GROUPS, B_N)
        programs = m_blocks * COLUMNS
        finish(p_parts, p_counters, p_next, i_image, parts, programs, next_eps, OUT, NEXT_GROUPS, SLOTS, ROWS, B_N)


def unsupported(x: Tensor, *_: object) -> str | None:
    """Why these kernels can't run a call; None if they can."""
    if x.dtype not in DTYPES:
        return f"{x.dtype} is not float32, float16 or bfloat16"
    if x.shape[1] % 8:  # pixels would not be aligned for loads of 128 bits
        return f"{x.shape[1]} channels are not a multiple of 8"
    return None


@planned()
def _sum_taps(shape: tuple[int, ...], strides: tuple[int, ...]) -> Start:
    """Plan of the summing kernel for a weight of this shape; it writes [4, O, 4, C]."""
    out_channels, channels = shape[:2]
    b_c = min(triton.next_power_of_2(channels), SUM_BLOCK)
    return Start(
        sum_taps_kernel,
        (out_channels * triton.cdiv(channels, b_c),),
        *(out_channels, *strides),
        CHANNELS=channels,
        B_C=b_c,
        num_warps=max(b_c // 256, 1),  # 8 channels a thread
        maxnreg=255,  # without a limit the assembler spills a few to fit one more program on a multiprocessor
    )


class Plan(NamedTuple):
    """Plan of `forward`: its start, and parts and slots of the statistics that it writes."""

    start: Start
    parts: int
    slots: int


def _bucket(
    images: int, pixels: int, sizes: tuple[int, ...], out_channels: int, taps: int, element_size: int, *_: object
) -> tuple[int, ...]:
    return bucket(images * pixels), bucket(sizes[0]), bucket(out_channels), element_size, taps


@planned(SPACE, _bucket)
def _forward(
    config: Config,
    images: int,
    pixels: int,
    sizes: tuple[int, ...],
    out_channels: int,
    taps: int,
    element_size: int,
    next_groups: int,
    next_eps: float,
) -> Plan:
    """Plan for so many pixels of each image; `sizes` are channels, height and width of x."""
    channels, height, width = sizes
    block_n = config.blocks["B_N"]
    m_blocks = triton.cdiv(pixels, config.blocks["B_M"])
    following = constants(out_channels, next_groups, block_n, config.num_warps)
    start = Start(
        upsample_conv2d_kernel,
        (images * m_blocks * 4 * triton.cdiv(out_channels, block_n),),
        *(pixels, height, width, next_eps),
        CHANNELS=channels,
        OUT=out_channels,
        TAPS=taps,
        **({"maxnreg": 255} if element_size == 4 else {}),  # as above
        **following,
        **config.options,
        passes=PASSES,
    )
    return Plan(start, 4 * m_blocks, following["SLOTS"])


def taps(pixels: int, element_size: int, given: bool) -> int:
    """Taps of a row that are the faster way for so many pixels of the batch: 2, summed, or 3.

    Args:
        element_size: of x, in bytes. given: whether the caller has the sums.
    """
    return 2 if pixels >= (GIVEN_PIXELS if given else SUMMED_PIXELS)[element_size] else 3


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    summed: Tensor | None = None,
    next_groups: int = 0,
    next_eps: float = 0.0,
    row_taps: int | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Launch the kernels.

    Args:
        x, weight, bias, next_groups, next_eps: as in `ops.upsample_conv2d`; 0 groups for no statistics.
        summed: what `sum_taps_kernel` writes, in x's dtype, or None.
        row_taps: 2 to sum the taps, 3 to take them as they are, None for the faster by `taps`.

    Returns:
        [B, O, 2H, 2W], channels-last unless x is contiguous, and the statistics of its groups, float32
        [B, 2, next_groups], or None.
    """
    batch, channels, height, width = x.shape
    out_channels, device, in_rows = weight.shape[0], x.device, x.is_contiguous()
    x = x.contiguous(memory_format=torch.channels_last)
    y = new_image(x, batch, out_channels, 2 * height, 2 * width)
    following = x.new_empty((batch, 2, next_groups), dtype=torch.float32) if next_groups else None
    bias = contiguous(bias)
    if row_taps is None:
        row_taps = taps(batch * height * width, x.element_size(), summed is not None)
    if row_taps == 2:
        if summed is None:
            summed = weight.new_empty((4, out_channels, 4, channels), dtype=x.dtype)
            _sum_taps(device, weight.shape, weight.stride())(weight, summed)
        weight = summed.contiguous()
    else:
        weight = weight.contiguous(memory_format=torch.channels_last)

    def run(plan: Plan) -> tuple[Tensor | None, ...]:
        plan.start(x, weight, bias, y, *buffers(y, plan.parts, plan.slots, next_groups, following))
        return y, following

    # Without statistics the pixels of all images can be treated as those of one.
    images, pixels = (batch, height * width) if next_groups else (1, batch * height * width)
    sizes = images, pixels, (channels, height, width), out_channels, row_taps, x.element_size(), next_groups, next_eps
    run(_forward(device, *sizes, trial=run))
    return y.contiguous() if in_rows else y, following
