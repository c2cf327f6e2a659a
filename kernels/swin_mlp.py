"""Triton kernel for `swin_mlp`: normalization, both products, GELU and residual in one launch.

The statistics of the normalization are given, or from an earlier launch. Those of the next one are written in the end.

A program takes BLOCK_M pixels of one image and iterates over the hidden width in steps of BLOCK_H: BLOCK_H columns of
the hidden activation are computed, rounded to x's dtype and consumed in registers, so that the hidden activation, four
times as wide as x, is never written to memory. The usual widths (96, 160, 192) are no powers of two; channels are
therefore divided into chunks, and nothing is computed on padding: of BLOCK_C where they are summed, of BLOCK_N where
they are the result's, one accumulator each.

Small images have few blocks of pixels, and a program that has 16 of them with all of both weights reads 590 KB (192
channels, 768 hidden) at some 47 bytes a cycle. Two ways divide this work. Programs that have only CHUNKS of the
result's channels each compute the hidden activation for themselves; they read a part of the second weight, but all of
the first. Programs that have a part of the hidden width (SPLIT of them) read a part of both, but write and read partial
sums (split_sums.py), of which a program adds fewer the fewer channels it has. Cycles of a multiprocessor, by the bytes
that a program and the last one of a tile read, and 2,000 for storing, counting and reading partial sums:

=====  ============  ========================  ===================  ================  ==================
plane  16 pixels     all channels, SPLIT       CHUNKS, SPLIT        these blocks      partial sums in MB
=====  ============  ========================  ===================  ================  ==================
8²     4: 12,500     24 parts, 96: 8,700       1 of 32, 5 parts     120: 3,700        0.2 instead of 1.2
16²    16: 12,500    8 parts, 128: 5,700       3 of 32, 4 parts     128: 4,900        0.8 instead of 1.6
32²    64: 12,500    2 parts, 128: 8,800       3 of 32, none        128: 9,400        0 instead of 1.6
=====  ============  ========================  ===================  ================  ==================

Hence `_shapes`: of the partitions that fill the GPU, the one with the fewest partial sums. The sums of 4,096 pixels and
more are not divided.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from resshift_fast.kernels.dependents import wait_for_previous
from resshift_fast.kernels.epilogue import store_sum
from resshift_fast.kernels.group_norm import Statistics, plan_statistics
from resshift_fast.kernels.launch import Start
from resshift_fast.kernels.norm_stats import constants, finish, store_part
from resshift_fast.kernels.plans import FULL, PROCESSORS, planned
from resshift_fast.kernels.pointwise_conv2d import normalized
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

BLOCKS_M = {2: (16, 32, 64), 4: (16, 32)}  # by bytes of an element
# Values of y that a block accumulates: together with as many of x they fill the registers, in float32 sooner.
ACCUMULATED = {2: 64 * 192, 4: 32 * 192}
MAX_CHANNELS = 512  # with which the smallest block fits

SQRT_HALF = tl.constexpr(0.7071067811865476)


class Shape(NamedTuple):
    """What a program computes: block_m pixels, chunks of block_n channels, the hidden width in steps of block_h."""

    block_m: int
    block_h: int
    block_n: int
    chunks: int


def _chunk(channels: int) -> int:
    """Channels of one accumulator: few chunks, none of them mostly padding."""
    return 64 if channels % 64 == 0 else 32 if channels > 16 else 16


def _columns(channels: int) -> list[tuple[int, int]]:
    """(BLOCK_N, CHUNKS) of a program: all channels, then fewer."""
    found: dict[int, tuple[int, int]] = {}
    for width in sorted({_chunk(channels), min(_chunk(channels), 32)}, reverse=True):
        chunks = triton.cdiv(channels, width)
        for each in range(chunks, 0, -1):
            if chunks % each == 0:
                found.setdefault(chunks // each, (width, each))
    return [found[parts] for parts in sorted(found)]


def _blocks_m(key: tuple) -> list[int]:
    """Blocks that fit the registers and are not mostly padding."""
    _, pixels, channels, _, itemsize = key
    return [b for b in BLOCKS_M[itemsize] if b * channels <= ACCUMULATED[itemsize] and b <= pixels] or [16]


def _blocks_h(block_m: int, channels: int, itemsize: int) -> list[int]:
    """The largest step whose weights fit 99 KB of shared memory, twice for the pipeline, and half of it."""
    if itemsize == 4:
        return [16]
    return [64, 32] if block_m < 64 and channels <= 192 else [32]


def _tiles(shape: Shape, pixels: int, channels: int) -> int:
    return triton.cdiv(pixels, shape.block_m) * triton.cdiv(channels, shape.block_n * shape.chunks)


def _shapes(block_m: int, key: tuple) -> list[Shape]:
    """Partitions of the result and of the hidden width, the best one first."""
    pixels, _, channels, hidden, itemsize = key

    def rank(shape: Shape) -> tuple[int, int, int]:
        tiles = _tiles(shape, pixels, channels)
        parts = split(tiles, triton.cdiv(hidden, shape.block_h))[0]
        return -min(tiles * parts, FULL), parts, -shape.block_h

    whole, *others = (
        Shape(block_m, block_h, *columns)
        for columns in _columns(channels)
        for block_h in _blocks_h(block_m, channels, itemsize)
    )
    # More programs than multiprocessors only read the weights more often.
    return sorted([whole, *(s for s in others if _tiles(s, pixels, channels) <= PROCESSORS)], key=rank)


def _config(shape: Shape, key: tuple, num_stages: int = 2) -> Config:
    *_, channels, _, itemsize = key
    block_m, block_h, block_n, chunks = shape
    blocks = {"BLOCK_M": block_m, "BLOCK_H": block_h, "BLOCK_N": block_n, "CHUNKS": chunks}
    # In float32 the accumulators and operands of the products need the registers of more threads.
    num_warps = 8 if itemsize == 4 and channels > (192 if block_m == 16 else 128) else 4
    return Config(blocks, num_warps=num_warps, num_stages=num_stages)


def _default(arch: int, key: tuple) -> Config:
    # Small blocks fill the GPU, large ones read the weights less often.
    wanted = 16 if key[0] <= 1024 else 32 if key[0] <= 4096 else 64
    return _config(_shapes(min(wanted, _blocks_m(key)[-1]), key)[0], key)


def _candidates(key: tuple) -> list[Config]:
    first, *others = (_shapes(block_m, key) for block_m in _blocks_m(key))
    shapes = [*first[:2], *(found[0] for found in others)]
    return [_config(shape, key, stages) for shape in shapes for stages in (2, 3)]


# Bucket: pixels of the batch, pixels of an image, channels, hidden width, bytes of an element.
SPACE = Space("swin_mlp_kernel", _candidates, _default)


@triton.jit(do_not_specialize=["pixels"])
def swin_mlp_kernel(
    p_x,  # [B, pixels, C]
    p_statistics,  # [B, 2, GROUPS], float32
    p_norm_weight,  # [C]
    p_norm_bias,  # [C]
    p_w1,  # [HIDDEN, C], x's dtype
    p_b1,  # [HIDDEN]
    p_w2,  # [C, HIDDEN], x's dtype
    p_b2,  # [C]
    p_y,  # [B, pixels, C]
    p_workspace,  # [tiles, CHUNKS, SPLIT, BLOCK_M, BLOCK_N], float32, or None where SPLIT is 1
    p_parts,  # [B, parts, SLOTS, 3, NEXT_GROUPS], float32, or None
    p_counters,  # [B + tiles], int32 zeros before and after, or None without workspace and statistics
    p_next,  # [B, 2, NEXT_GROUPS], float32, or None
    pixels,
    next_eps,
    C: tl.constexpr,
    GROUPS: tl.constexpr,
    HIDDEN: tl.constexpr,
    SPLIT: tl.constexpr,
    STEPS: tl.constexpr,  # of one part of the hidden width
    NEXT_GROUPS: tl.constexpr,
    SLOTS: tl.constexpr,
    TILE_GROUPS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_N: tl.constexpr,
    CHUNKS: tl.constexpr,
):
    wait_for_previous()
    N_BLOCKS: tl.constexpr = (C + BLOCK_N * CHUNKS - 1) // (BLOCK_N * CHUNKS)
    m_blocks = tl.cdiv(pixels, BLOCK_M)
    # Programs with the same weights are neighbours.
    tiles_m = tl.num_programs(0) // (N_BLOCKS * SPLIT)
    i_m = tl.program_id(0) % tiles_m
    i_n = tl.program_id(0) // tiles_m % N_BLOCKS
    i_split = tl.program_id(0) // tiles_m // N_BLOCKS
    i_image = (i_m // m_blocks).to(tl.int64)
    i_first = i_m % m_blocks * BLOCK_M
    o_m = tl.arange(0, BLOCK_M)
    m_m = o_m < pixels - i_first
    i_start = (i_image * pixels + i_first) * C  # of the block's first pixel
    p_own = p_statistics + i_image * 2 * GROUPS

    b_normalized = ()
    for i_c in tl.static_range((C + BLOCK_C - 1) // BLOCK_C):
        o_c = i_c * BLOCK_C + tl.arange(0, BLOCK_C)
        m_c = o_c < C
        b_x = tl.load(p_x + i_start + o_m[:, None] * C + o_c[None, :], mask=m_m[:, None] & m_c[None, :], other=0.0)
        b_x = normalized(b_x, p_own, p_norm_weight, p_norm_bias, o_c, m_c, GROUPS, C // GROUPS)
        b_normalized += (b_x,)  # type: ignore[assignment]

    b_y = ()
    for _ in tl.static_range(CHUNKS):
        b_y += (tl.zeros((BLOCK_M, BLOCK_N), tl.float32),)  # type: ignore[assignment]
    i_hidden = i_split.to(tl.int64) * (STEPS * BLOCK_H)  # the first column of this part
    p_w1 += i_hidden * C
    p_w2 += i_hidden
    for i_step in range(STEPS):
        o_h = i_step * BLOCK_H + tl.arange(0, BLOCK_H)
        m_h = o_h < HIDDEN - i_hidden
        b_h = tl.zeros((BLOCK_M, BLOCK_H), tl.float32)
        for i_c in tl.static_range((C + BLOCK_C - 1) // BLOCK_C):
            o_c = i_c * BLOCK_C + tl.arange(0, BLOCK_C)
            m_w1 = m_h[:, None] & (o_c < C)[None, :]
            b_w1 = tl.load(p_w1 + o_h[:, None] * C + o_c[None, :], mask=m_w1, other=0.0)
            b_h = tl.dot(b_normalized[i_c], tl.trans(b_w1), b_h, input_precision="ieee")
        b_h += tl.load(p_b1 + i_hidden + o_h, mask=m_h, other=0.0).to(tl.float32)[None, :]
        b_h = (0.5 * b_h * (1.0 + tl.erf(b_h * SQRT_HALF))).to(p_x.dtype.element_ty)
        b_sum = ()
        for i_c in tl.static_range(CHUNKS):
            o_n = (i_n * CHUNKS + i_c) * BLOCK_N + tl.arange(0, BLOCK_N)
            m_w2 = (o_n < C)[:, None] & m_h[None, :]
            b_w2 = tl.load(p_w2 + o_n[:, None] * HIDDEN + o_h[None, :], mask=m_w2, other=0.0)
            b_sum += (tl.dot(b_h, tl.trans(b_w2), b_y[i_c], input_precision="ieee"),)  # type: ignore[assignment]
        b_y = b_sum

    i_tile = i_n * tiles_m + i_m
    is_last = True
    if SPLIT > 1:
        p_tile = p_workspace + i_tile.to(tl.int64) * (CHUNKS * SPLIT * BLOCK_M * BLOCK_N)
        for i_c in tl.static_range(CHUNKS):
            p_chunk = p_tile + i_c * (SPLIT * BLOCK_M * BLOCK_N)
            store_part_of_sum(p_chunk, b_y[i_c], i_split, BLOCK_M, BLOCK_N)
        is_last = is_last_part(p_counters + tiles_m // m_blocks + i_tile, SPLIT)
    if is_last:
        for i_c in tl.static_range(CHUNKS):
            b_chunk = b_y[i_c]  # type: ignore[var-annotated]
            if SPLIT > 1:
                b_chunk = sum_of_parts(p_tile + i_c * (SPLIT * BLOCK_M * BLOCK_N), SPLIT, BLOCK_M, BLOCK_N)
            o_n = (i_n * CHUNKS + i_c) * BLOCK_N + tl.arange(0, BLOCK_N)
            m_n = o_n < C
            o_y = i_start + o_m[:, None] * C + o_n[None, :]
            b_chunk = store_sum(b_chunk, p_y, p_b2, p_x, o_y, o_n, m_m[:, None] & m_n[None, :], m_n)
            if NEXT_GROUPS:
                i_part = i_m % m_blocks
                store_part(
                    b_chunk, m_m, p_parts, i_image, i_part, m_blocks, i_n * CHUNKS + i_c,
                    C, NEXT_GROUPS, SLOTS, TILE_GROUPS, BLOCK_N,
                )  # fmt: skip
        if NEXT_GROUPS:
            finish(
                p_parts, p_counters, p_next, i_image, m_blocks, m_blocks * N_BLOCKS, next_eps,
                C, NEXT_GROUPS, SLOTS, ROWS, BLOCK_N,
            )  # fmt: skip


def unsupported(x: Tensor, *_: object) -> str | None:
    """Why the kernel can't run this call, or None."""
    if x.dtype == torch.float64:
        return "x is float64"
    if x.shape[1] > MAX_CHANNELS:
        return f"{x.shape[1]} channels are more than {MAX_CHANNELS}"
    return None


def _bucket(shape: tuple[int, ...], element_size: int, num_groups: int, hidden: int, *_: object) -> tuple:
    batch, channels, height, width = shape
    return bucket(batch * height * width), bucket(height * width), channels, hidden, element_size


class MlpPlan(NamedTuple):
    """Plan of `forward`: of the kernel, and of the statistics of x."""

    mlp: Plan
    statistics: Statistics


@planned(SPACE, _bucket)
def _forward(
    config: Config,
    shape: tuple[int, ...],
    element_size: int,
    num_groups: int,
    hidden: int,
    next_groups: int,
    next_eps: float,
    eps: float,
    device: torch.device,
) -> MlpPlan:
    batch, channels, height, width = shape
    pixels = height * width
    computed = Shape(*(config.blocks[name] for name in ("BLOCK_M", "BLOCK_H", "BLOCK_N", "CHUNKS")))
    m_blocks = triton.cdiv(pixels, computed.block_m)
    tiles = batch * m_blocks * triton.cdiv(channels, computed.block_n * computed.chunks)
    parts, steps = split(tiles, triton.cdiv(hidden, computed.block_h))
    following = constants(channels, next_groups, computed.block_n, config.num_warps)
    start = Start(
        swin_mlp_kernel,
        (tiles * parts,),
        *(pixels, next_eps),
        C=channels,
        GROUPS=num_groups,
        HIDDEN=hidden,
        SPLIT=parts,
        STEPS=steps,
        BLOCK_C=_chunk(channels),
        **following,
        maxnreg=255,  # without a limit the assembler spills a few to fit more programs on a multiprocessor
        **config.options,
        passes=PASSES,
    )
    workspace = tiles * parts * computed.chunks * computed.block_m * computed.block_n if parts > 1 else 0
    own = plan_statistics(device, shape, element_size, num_groups, True, eps)
    return MlpPlan(Plan(start, workspace, tiles, m_blocks, following["SLOTS"]), own)


def forward(
    x: Tensor,
    num_groups: int,
    norm_weight: Tensor,
    norm_bias: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    eps: float,
    statistics: Tensor | None = None,
) -> Tensor:
    """Launch the kernel, after that of the statistics if `statistics` [B, 2, num_groups] are None.

    Returns y [B, C, H, W] like x.
    """
    return _launch(x, num_groups, norm_weight, norm_bias, w1, b1, w2, b2, eps, statistics, 0, 0.0)[0]


def forward_with_statistics(
    x: Tensor,
    num_groups: int,
    norm_weight: Tensor,
    norm_bias: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    eps: float,
    statistics: Tensor | None,
    next_groups: int,
    next_eps: float,
) -> tuple[Tensor, Tensor]:
    """`forward`; returns y, and the statistics of its next_groups groups, float32 [B, 2, next_groups]."""
    y, following = _launch(
        x, num_groups, norm_weight, norm_bias, w1, b1, w2, b2, eps, statistics, next_groups, next_eps
    )
    assert following is not None
    return y, following


def _launch(
    x: Tensor,
    num_groups: int,
    norm_weight: Tensor,
    norm_bias: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    eps: float,
    statistics: Tensor | None,
    next_groups: int,
    next_eps: float,
) -> tuple[Tensor, Tensor | None]:
    shape, dtype, device = x.shape, x.dtype, x.device
    rows = x.contiguous(memory_format=torch.channels_last)
    y = torch.empty_like(x)
    y_rows = y if y.is_contiguous(memory_format=torch.channels_last) else torch.empty_like(rows)
    own = None if statistics is None else statistics.contiguous()
    following = x.new_empty((shape[0], 2, next_groups), dtype=torch.float32) if next_groups else None
    # Float32 matrices would take twice the shared memory, and every program would round them.
    w1 = (w1 if w1.dtype is dtype else w1.to(dtype)).contiguous()
    w2 = (w2 if w2.dtype is dtype else w2.to(dtype)).contiguous()
    parameters = norm_weight.contiguous(), norm_bias.contiguous(), w1, b1.contiguous(), w2, b2.contiguous()

    def run(plan: MlpPlan) -> tuple[Tensor | None, ...]:
        nonlocal own
        if own is None:
            own = plan.statistics(rows)
        plan.mlp.start(rows, own, *parameters, y_rows, *buffers(y_rows, plan.mlp, next_groups, following))
        return y_rows, following

    sizes = shape, x.element_size(), num_groups, w1.shape[0], next_groups, next_eps, eps, device
    run(_forward(device, *sizes, trial=run))
    return y if y_rows is y else y.copy_(y_rows), following
