"""Triton kernel for `swin_mlp`: normalization, both products, GELU and residual in one launch.

The statistics of the normalization are given, or from an earlier launch. Those of the next one are written in the end.

A program takes BLOCK_M pixels of one image and loads them once: as the residual they initialize the sum of the second
product, and normalized they are the operand of the first. It then iterates over the hidden width in steps of BLOCK_H:
BLOCK_H columns of the hidden activation are computed, rounded to x's dtype and consumed in registers, so that the
hidden activation, four times as wide as x, is never written to memory. The usual widths (96, 160, 192) are no powers of
two; channels are therefore divided into chunks of BLOCK_C, one accumulator each, and nothing is computed on padding.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from resshift_fast.kernels.group_norm import statistics as group_statistics
from resshift_fast.kernels.launch import Start
from resshift_fast.kernels.norm_stats import PASSES, buffers, constants, finish, store_part
from resshift_fast.kernels.plans import planned
from resshift_fast.kernels.pointwise_conv2d import normalized
from resshift_fast.kernels.tuning import Config, Space, bucket

BLOCKS_M = {2: (16, 32, 64), 4: (16, 32)}  # by bytes of an element
# Values of y that a block accumulates: together with as many of x they fill the registers, in float32 sooner.
ACCUMULATED = {2: 64 * 192, 4: 32 * 192}
MAX_CHANNELS = 512  # with which the smallest block fits

SQRT_HALF = tl.constexpr(0.7071067811865476)


def _chunk(channels: int) -> int:
    """Channels of one accumulator: few chunks, none of them mostly padding."""
    return 64 if channels % 64 == 0 else 32 if channels > 16 else 16


def _blocks_m(key: tuple) -> list[int]:
    """Blocks that fit the registers and are not mostly padding."""
    _, pixels, channels, itemsize = key
    return [b for b in BLOCKS_M[itemsize] if b * channels <= ACCUMULATED[itemsize] and b <= pixels] or [16]


def _block_h(block_m: int, channels: int, itemsize: int) -> int:
    """The largest step whose weights fit 99 KB of shared memory, twice for the pipeline."""
    if itemsize == 4:
        return 16
    return 64 if block_m < 64 and channels <= 192 else 32


def _config(block_m: int, key: tuple, num_stages: int = 2) -> Config:
    *_, channels, itemsize = key
    blocks = {"BLOCK_M": block_m, "BLOCK_H": _block_h(block_m, channels, itemsize)}
    # In float32 the accumulators and operands of the products need the registers of more threads.
    num_warps = 8 if itemsize == 4 and channels > (192 if block_m == 16 else 128) else 4
    return Config(blocks, num_warps=num_warps, num_stages=num_stages)


def _default(arch: int, key: tuple) -> Config:
    # Small blocks fill the GPU, large ones read the weights less often.
    wanted = 16 if key[0] <= 1024 else 32 if key[0] <= 4096 else 64
    return _config(min(wanted, _blocks_m(key)[-1]), key)


# Bucket: pixels of the batch, pixels of an image, channels, bytes of an element.
SPACE = Space(
    "swin_mlp_kernel",
    candidates=lambda key: [_config(block_m, key, stages) for block_m in _blocks_m(key) for stages in (2, 3)],
    default=_default,
)


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
    p_parts,  # [B, parts, SLOTS, 3, NEXT_GROUPS], float32, or None
    p_counters,  # [B], int32 zeros before and after, or None
    p_next,  # [B, 2, NEXT_GROUPS], float32, or None
    pixels,
    next_eps,
    C: tl.constexpr,
    GROUPS: tl.constexpr,
    HIDDEN: tl.constexpr,
    NEXT_GROUPS: tl.constexpr,
    SLOTS: tl.constexpr,
    TILE_GROUPS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    CHUNKS: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    m_blocks = tl.cdiv(pixels, BLOCK_M)
    i_image = (tl.program_id(0) // m_blocks).to(tl.int64)
    i_first = (tl.program_id(0) % m_blocks) * BLOCK_M
    o_m = tl.arange(0, BLOCK_M)
    m_m = o_m < pixels - i_first
    i_start = (i_image * pixels + i_first) * C  # of the block's first pixel
    p_own = p_statistics + i_image * 2 * GROUPS

    b_normalized = ()
    b_y = ()
    for i_c in tl.static_range(CHUNKS):
        o_c = i_c * BLOCK_C + tl.arange(0, BLOCK_C)
        m_c = o_c < C
        b_x = tl.load(p_x + i_start + o_m[:, None] * C + o_c[None, :], mask=m_m[:, None] & m_c[None, :], other=0.0)
        b_b2 = tl.load(p_b2 + o_c, mask=m_c, other=0.0).to(tl.float32)
        b_normalized += (normalized(b_x, p_own, p_norm_weight, p_norm_bias, o_c, m_c, GROUPS, C // GROUPS),)  # type: ignore[assignment]
        b_y += (b_x.to(tl.float32) + b_b2[None, :],)  # type: ignore[assignment]

    for i_h in range(0, HIDDEN, BLOCK_H):
        o_h = i_h + tl.arange(0, BLOCK_H)
        m_h = o_h < HIDDEN
        b_h = tl.zeros((BLOCK_M, BLOCK_H), tl.float32)
        for i_c in tl.static_range(CHUNKS):
            o_c = i_c * BLOCK_C + tl.arange(0, BLOCK_C)
            m_w1 = m_h[:, None] & (o_c < C)[None, :]
            b_w1 = tl.load(p_w1 + o_h[:, None] * C + o_c[None, :], mask=m_w1, other=0.0)
            b_h = tl.dot(b_normalized[i_c], tl.trans(b_w1), b_h, input_precision="ieee")
        b_h += tl.load(p_b1 + o_h, mask=m_h, other=0.0).to(tl.float32)[None, :]
        b_h = (0.5 * b_h * (1.0 + tl.erf(b_h * SQRT_HALF))).to(p_x.dtype.element_ty)
        b_sum = ()
        for i_c in tl.static_range(CHUNKS):
            o_c = i_c * BLOCK_C + tl.arange(0, BLOCK_C)
            m_w2 = (o_c < C)[:, None] & m_h[None, :]
            b_w2 = tl.load(p_w2 + o_c[:, None] * HIDDEN + o_h[None, :], mask=m_w2, other=0.0)
            b_sum += (tl.dot(b_h, tl.trans(b_w2), b_y[i_c], input_precision="ieee"),)  # type: ignore[assignment]
        b_y = b_sum

    for i_c in tl.static_range(CHUNKS):
        o_c = i_c * BLOCK_C + tl.arange(0, BLOCK_C)
        p_chunk = p_y + i_start + o_m[:, None] * C + o_c[None, :]
        b_chunk = b_y[i_c].to(p_y.dtype.element_ty)  # type: ignore[var-annotated]
        tl.store(p_chunk, b_chunk, mask=m_m[:, None] & (o_c < C)[None, :])
        if NEXT_GROUPS:
            b_chunk = b_chunk.to(tl.float32)
            i_part = tl.program_id(0) % m_blocks
            store_part(
                b_chunk, m_m, p_parts, i_image, i_part, m_blocks, i_c, C, NEXT_GROUPS, SLOTS, TILE_GROUPS, BLOCK_C
            )
    if NEXT_GROUPS:
        finish(p_parts, p_counters, p_next, i_image, m_blocks, m_blocks, next_eps, C, NEXT_GROUPS, SLOTS, ROWS, BLOCK_C)


def unsupported(x: Tensor, *_: object) -> str | None:
    """Why the kernel can't run this call, or None."""
    if x.dtype == torch.float64:
        return "x is float64"
    if x.shape[1] > MAX_CHANNELS:
        return f"{x.shape[1]} channels are more than {MAX_CHANNELS}"
    return None


def _bucket(shape: tuple[int, ...], element_size: int, *_: object) -> tuple[int, int, int, int]:
    batch, channels, height, width = shape
    return bucket(batch * height * width), bucket(height * width), channels, element_size


class Plan(NamedTuple):
    """Plan of `forward`: its start, and parts and slots of the statistics that it writes."""

    start: Start
    parts: int
    slots: int


@planned(SPACE, _bucket)
def _forward(
    config: Config,
    shape: tuple[int, ...],
    element_size: int,
    num_groups: int,
    hidden: int,
    next_groups: int,
    next_eps: float,
) -> Plan:
    batch, channels, height, width = shape
    pixels = height * width
    parts = triton.cdiv(pixels, config.blocks["BLOCK_M"])
    following = constants(channels, next_groups, _chunk(channels), config.num_warps)
    start = Start(
        swin_mlp_kernel,
        (batch * parts,),
        *(pixels, next_eps),
        C=channels,
        GROUPS=num_groups,
        HIDDEN=hidden,
        BLOCK_C=_chunk(channels),
        **following,
        # Without a limit, Triton 3.6's assembler spills a few registers to fit more programs on a multiprocessor.
        **({"maxnreg": 255} if next_groups else {}),
        **config.options,
        passes=PASSES,
    )
    return Plan(start, parts, following["SLOTS"])


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
    shape, dtype = x.shape, x.dtype
    rows = x.contiguous(memory_format=torch.channels_last)
    y = torch.empty_like(x)
    y_rows = y if y.is_contiguous(memory_format=torch.channels_last) else torch.empty_like(rows)
    own = group_statistics(rows, num_groups, eps) if statistics is None else statistics.contiguous()
    following = x.new_empty((shape[0], 2, next_groups), dtype=torch.float32) if next_groups else None
    # Float32 matrices would take twice the shared memory, and every program would round them.
    w1, w2 = (w if w.dtype is dtype else w.to(dtype) for w in (w1, w2))
    norm_weight, norm_bias, w1, b1, w2, b2 = (p.contiguous() for p in (norm_weight, norm_bias, w1, b1, w2, b2))

    def run(plan: Plan) -> tuple[Tensor | None, ...]:
        written = buffers(y_rows, plan.parts, plan.slots, next_groups, following)
        plan.start(rows, own, norm_weight, norm_bias, w1, b1, w2, b2, y_rows, *written)
        return y_rows, following

    run(_forward(x.device, shape, x.element_size(), num_groups, w1.shape[0], next_groups, next_eps, trial=run))
    return y if y_rows is y else y.copy_(y_rows), following
