"""What the kernels of `group_norm` share: tiles of an image, statistics of their groups, and the partition of images.

Tiles of both memory formats are [BLOCK_P pixels, BLOCK_C channels] of a chunk of whole groups. In NCHW a chunk is one
group. In channels-last, where images are split over programs, it has enough groups for its part of a row to be at least
64 bytes and a multiple of 16, so that loads are 128-bit whatever C/G; a program that takes all pixels of its groups may
take fewer groups, so that more programs share the work.

Every slot of the tile accumulates the mean and the sum of squared deviations of its pixels (Welford). Slots and
channels are combined once, at the end, about an estimate of the mean that is then corrected, so that nothing cancels
where the mean is far above the deviation or the image is constant.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from resshift_fast.kernels.plans import PROCESSORS

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
MAX_GROUP_CHANNELS = 4096  # of one group: a tile holds whole groups
# Most of the following are in csrc/cuda/group_norm_plan.h too; python_tests/csrc/test_group_norm.py holds them equal.
MIN_ROW_BYTES = 64  # of a channels-last chunk: two sectors
MAX_ROW_BYTES = 1024  # of a chunk of several groups: wider tiles have too few pixels
SECTOR = 32  # bytes of one row that a multiprocessor reads or writes in about a cycle
TILE = 8192  # elements of a tile that is one of many
RESIDENT_TILE = 16384  # elements that 16 warps hold in registers without spills
SINGLE_ELEMENTS = 81920  # of one program's groups: if there are more, the second reading misses the L2 cache
LAUNCH_CYCLES = 5000  # of a second launch: its start, its first loads, and the end of the first launch
SPLIT_PROGRAMS = 512  # about four a multiprocessor
MAX_PARTS = 128  # of an image: each program of the second pass reads all of them


@triton.jit
def tile_start(i_image, i_chunk, pixel, pixels, C: tl.constexpr, CHUNK: tl.constexpr, CHANNELS_LAST: tl.constexpr):
    """Offset of a tile's first element; i_image is int64."""
    if CHANNELS_LAST:
        return (i_image * pixels + pixel) * C + i_chunk * CHUNK
    else:
        return (i_image * C + i_chunk * CHUNK) * pixels + pixel


@triton.jit
def tile_offsets(pixels, C: tl.constexpr, CHANNELS_LAST: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr):
    """Offsets [BLOCK_P, BLOCK_C] from a tile's first element."""
    b_p, b_c = tl.arange(0, BLOCK_P)[:, None], tl.arange(0, BLOCK_C)[None, :]
    if CHANNELS_LAST:
        return b_p * C + b_c
    else:
        return b_p + b_c.to(tl.int64) * pixels


@triton.jit
def group_members(CG: tl.constexpr, K: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr):
    """[BLOCK_C, BLOCK_K]: whether a channel of the chunk belongs to a group of the chunk."""
    b_c = tl.arange(0, BLOCK_C)[:, None]
    return (b_c // CG == tl.arange(0, BLOCK_K)[None, :]) & (b_c < K * CG)


@triton.jit
def group_size(pixels, CG: tl.constexpr):
    """Elements of a group in float32; pixels may be a constant: Triton makes one of an argument that is 1."""
    return pixels * 1.0 * CG


@triton.jit
def sum_groups(b_channel, m_member):
    """Sums over the channels of each group: [BLOCK_C] to [BLOCK_K]."""
    return tl.sum(tl.where(m_member, b_channel[:, None], 0.0), axis=0)


@triton.jit
def to_channels(b_group, m_member):
    """The values of the channels' groups: [BLOCK_K] to [BLOCK_C]."""
    return tl.sum(tl.where(m_member, b_group[None, :], 0.0), axis=1)


@triton.jit
def add_pixels(b_x, m_p, seen, b_mean, b_m2):
    """Update means and sums of squared deviations [BLOCK_P, BLOCK_C] by the `seen`-th pixel of each slot, where m_p."""
    b_delta = tl.where(m_p[:, None], b_x - b_mean, 0.0)
    b_mean += b_delta * (1.0 / seen)
    b_m2 += b_delta * (b_x - b_mean)
    return b_mean, b_m2


@triton.jit
def slot_statistics(
    p_x, i_image, i_chunk, first, last, pixels, C: tl.constexpr, CHUNK: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Mean and sum of squared deviations [BLOCK_P, BLOCK_C] of the pixels first + slot, first + slot + BLOCK_P, …

    Returns them and the number of pixels in each slot, [BLOCK_P].
    """
    b_p = tl.arange(0, BLOCK_P)
    b_offsets = tile_offsets(pixels, C, CHANNELS_LAST, BLOCK_P, BLOCK_C)
    m_c = (tl.arange(0, BLOCK_C) < CHUNK)[None, :]
    b_mean = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    b_m2 = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    b_count = tl.zeros((BLOCK_P,), tl.float32)
    seen = 0.0
    for pixel in range(first, last, BLOCK_P):
        m_p = pixel + b_p < pixels
        p_tile = p_x + tile_start(i_image, i_chunk, pixel, pixels, C, CHUNK, CHANNELS_LAST)
        b_x = tl.load(p_tile + b_offsets, mask=m_p[:, None] & m_c, other=0.0).to(tl.float32)
        seen += 1.0
        b_mean, b_m2 = add_pixels(b_x, m_p, seen, b_mean, b_m2)
        b_count += m_p.to(tl.float32)
    return b_mean, b_m2, b_count


@triton.jit
def combine_slots(b_mean, b_m2, b_count, total, m_member):
    """Statistics of groups of `total` elements from those of slots [S, BLOCK_C] that saw b_count [S] pixels.

    Returns an estimate of the mean, its correction, and the sum of squared deviations, [BLOCK_K]. The estimate has the
    rounding error of a sum, which for a constant image of large values is far more than the deviation.
    """
    b_count = b_count[:, None]
    b_guess = sum_groups(tl.sum(b_mean * b_count, axis=0), m_member) / total
    b_delta = b_mean - to_channels(b_guess, m_member)[None, :]
    b_rest = sum_groups(tl.sum(b_delta * b_count, axis=0), m_member) / total
    b_sum = sum_groups(tl.sum(b_m2 + b_delta * b_delta * b_count, axis=0), m_member)
    return b_guess, b_rest, b_sum - total * b_rest * b_rest


@triton.jit
def combine_parts(p_mean, p_m2, i_image, i_group, parts, part_pixels, pixels, GROUPS: tl.constexpr, CG: tl.constexpr,
                  K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):  # fmt: skip
    """`combine_slots` of the parts [B, parts, GROUPS] of groups i_group, …, i_group + K − 1."""
    b_n, b_k = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K)
    m_part = (b_n < parts)[:, None] & (b_k < K)[None, :]
    b_offsets = (i_image * parts + b_n)[:, None] * GROUPS + i_group + b_k[None, :]
    b_mean = tl.load(p_mean + b_offsets, mask=m_part, other=0.0)
    b_m2 = tl.load(p_m2 + b_offsets, mask=m_part, other=0.0)
    b_count = tl.maximum(tl.minimum(pixels - b_n * part_pixels, part_pixels), 0)
    b_count = tl.where(b_n < parts, b_count, 0).to(tl.float32) * CG
    total = group_size(pixels, CG)
    return combine_slots(b_mean, b_m2, b_count, total, group_members(1, K, BLOCK_K, BLOCK_K))


@triton.jit
def reciprocal_deviation(b_m2, total, eps):
    """1 / √(variance + eps); a sum of squares that rounding made negative counts as 0, NaN stays NaN."""
    b_variance = tl.where(b_m2 < 0.0, 0.0, b_m2) / total
    return 1.0 / tl.sqrt(b_variance + eps)


@triton.jit
def load_affine(p_weight, p_bias, p_scale, p_shift, scale_stride, shift_stride, i_image, i_channel,
                CHUNK: tl.constexpr, BLOCK_C: tl.constexpr):  # fmt: skip
    """Gain and offset [BLOCK_C] of the chunk from i_channel on: norm · gain + offset = (norm · w + b)(1 + s) + h."""
    b_c = i_channel + tl.arange(0, BLOCK_C)
    m_c = tl.arange(0, BLOCK_C) < CHUNK
    b_gain = tl.load(p_weight + b_c, mask=m_c, other=0.0).to(tl.float32)
    b_offset = tl.load(p_bias + b_c, mask=m_c, other=0.0).to(tl.float32)
    return modulated(b_gain, b_offset, p_scale, p_shift, scale_stride, shift_stride, i_image, b_c, m_c)


@triton.jit
def load_norm(
    p_statistics, p_weight, p_bias, p_scale, p_shift, scale_stride, shift_stride, i_image, b_c, m_c,
    GROUPS: tl.constexpr, CG: tl.constexpr,
):  # fmt: skip
    """Mean, gain, which includes 1 / deviation, and offset of an image's channels b_c where m_c.

    p_statistics points to the image's, [2, GROUPS].
    """
    b_mean = tl.load(p_statistics + b_c // CG, mask=m_c, other=0.0)
    b_rstd = tl.load(p_statistics + GROUPS + b_c // CG, mask=m_c, other=0.0)
    b_gain = b_rstd * tl.load(p_weight + b_c, mask=m_c, other=0.0).to(tl.float32)
    b_offset = tl.load(p_bias + b_c, mask=m_c, other=0.0).to(tl.float32)
    b_gain, b_offset = modulated(b_gain, b_offset, p_scale, p_shift, scale_stride, shift_stride, i_image, b_c, m_c)
    return b_mean, b_gain, b_offset


@triton.jit
def modulated(b_gain, b_offset, p_scale, p_shift, scale_stride, shift_stride, i_image, b_c, m_c):
    """Gain and offset with an image's scale and shift, each of which may be None."""
    if p_scale is not None:
        b_scale = 1.0 + tl.load(p_scale + i_image * scale_stride + b_c, mask=m_c, other=0.0).to(tl.float32)
        b_gain *= b_scale
        b_offset *= b_scale
    if p_shift is not None:
        b_offset += tl.load(p_shift + i_image * shift_stride + b_c, mask=m_c, other=0.0).to(tl.float32)
    return b_gain, b_offset


@triton.jit
def normalize(b_x, b_guess, b_rest, b_gain, b_offset, SILU: tl.constexpr):
    """A tile [BLOCK_P, BLOCK_C] in float32; gain includes 1 / deviation, b_rest corrects the mean, or is None."""
    b_z = b_x - b_guess[None, :]
    if b_rest is not None:
        b_z -= b_rest[None, :]
    b_z = b_z * b_gain[None, :] + b_offset[None, :]
    if SILU:
        b_z = b_z / (1.0 + tl.exp(-b_z))
    return b_z


class Plan(NamedTuple):
    """Partition of an image.

    Args:
        groups: of one program's chunk of channels.
        block_p, block_c, num_warps: of its tile.
        part_pixels: of one program, a multiple of block_p unless the image is one part.
        parts: of an image; 1 means a single launch.
    """

    groups: int
    block_p: int
    block_c: int
    num_warps: int
    part_pixels: int
    parts: int


def row_groups(channels: int, num_groups: int, element_size: int, channels_last: bool) -> int:
    """Groups of a chunk: the fewest whose part of a row is long enough and a multiple of 128 bits."""
    if not channels_last:
        return 1
    width = channels // num_groups * element_size
    divisors = [k for k in range(1, num_groups + 1) if num_groups % k == 0]
    aligned = [k for k in divisors if k * width % 16 == 0 and MIN_ROW_BYTES <= k * width <= MAX_ROW_BYTES]
    return aligned[0] if aligned else max([k for k in divisors if k * width <= 2 * MIN_ROW_BYTES], default=1)


def _row_cycles(channels: int, element_size: int, channels_last: bool) -> float:
    """Cycles of a multiprocessor for the chunk's elements of one pixel."""
    sectors = channels * element_size / SECTOR
    return max(sectors, 1.0) if channels_last else sectors


def split_plan(shape: tuple[int, ...], element_size: int, num_groups: int, channels_last: bool, tile: int) -> Plan:
    """As many parts as fill the GPU, in tiles of `tile` elements."""
    batch, channels, pixels = shape[0], shape[1], shape[2] * shape[3]
    groups = row_groups(channels, num_groups, element_size, channels_last)
    block_c = triton.next_power_of_2(groups * channels // num_groups)
    block_p = max(min(tile // block_c, triton.next_power_of_2(pixels)), 1)
    parts = min(max(SPLIT_PROGRAMS * groups // (batch * num_groups), 1), MAX_PARTS)
    part_pixels = triton.cdiv(triton.cdiv(pixels, parts), block_p) * block_p
    num_warps = min(max(block_p * block_c // 1024, 1), 8)
    return Plan(groups, block_p, block_c, num_warps, part_pixels, triton.cdiv(pixels, part_pixels))


def forward_plan(
    shape: tuple[int, ...], element_size: int, num_groups: int, channels_last: bool, writes: bool = True
) -> Plan:
    """One part an image where a count of sectors says that it is faster, else `split_plan`.

    Args:
        shape, element_size: of x [B, C, H, W].
        channels_last: its format, else contiguous.
        writes: whether x is also normalized, not only read for its statistics.
    """
    batch, channels, pixels, size = shape[0], shape[1], shape[2] * shape[3], element_size
    per_group = channels // num_groups
    most = row_groups(channels, num_groups, size, channels_last)
    split_cycles = batch * num_groups // most * pixels * _row_cycles(most * per_group, size, channels_last)
    best, plan = LAUNCH_CYCLES + split_cycles / PROCESSORS * (3 if writes else 1), None
    for groups in range(1, most + 1):
        if num_groups % groups or pixels * groups * per_group > SINGLE_ELEMENTS:
            continue
        block_c = triton.next_power_of_2(groups * per_group)
        whole = triton.next_power_of_2(pixels)
        resident = whole * block_c <= RESIDENT_TILE
        rounds = triton.cdiv(batch * num_groups // groups, PROCESSORS)
        cycles = rounds * pixels * _row_cycles(groups * per_group, size, channels_last)
        cycles *= (2 if resident else 3) if writes else 1
        if cycles < best:
            block_p = whole if resident else max(TILE // block_c, 1)
            num_warps = min(max(block_p * block_c // 512, 1), 16)
            best, plan = cycles, Plan(groups, block_p, block_c, num_warps, pixels, 1)
    return plan or split_plan(shape, element_size, num_groups, channels_last, TILE)


def dense(x: Tensor) -> tuple[Tensor, bool]:
    """x in a format that the kernels read, that of `torch.empty_like(x)` if possible; whether it is channels-last."""
    if x.is_contiguous(memory_format=torch.channels_last):
        return x, True
    if x.is_contiguous():
        return x, False
    channels_last = x.stride(1) == 1
    return x.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format), channels_last


def affine_rows(
    weight: Tensor, bias: Tensor, scale: Tensor | None, shift: Tensor | None
) -> tuple[tuple[Tensor | None, ...], tuple[int, int]]:
    """The four with contiguous channels, and the row strides of scale and shift.

    These two are usually halves of a linear layer's output, which need no copy.
    """
    scale, scale_stride = _row_stride(scale)
    shift, shift_stride = _row_stride(shift)
    return (weight.contiguous(), bias.contiguous(), scale, shift), (scale_stride, shift_stride)


def _row_stride(x: Tensor | None) -> tuple[Tensor | None, int]:
    if x is None:
        return None, 0
    row, channel = x.stride()
    return (x, row) if channel == 1 else (x.contiguous(), x.shape[1])


def like(y: Tensor, x: Tensor) -> Tensor:
    """y with the strides of `torch.empty_like(x)`."""
    if y.stride() == x.stride():
        return y
    empty = torch.empty_like(x)
    return y if y.stride() == empty.stride() else empty.copy_(y)


def unsupported(x: Tensor, num_groups: int, *_: object) -> str | None:
    """Why the kernels can't run this call, or None."""
    if x.dtype not in DTYPES:
        return f"{x.dtype} is not float32, float16 or bfloat16"
    if x.shape[1] // num_groups > MAX_GROUP_CHANNELS:
        return f"{x.shape[1] // num_groups} channels a group are more than {MAX_GROUP_CHANNELS}"
    return None
