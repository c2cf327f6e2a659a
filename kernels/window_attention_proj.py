"""Triton kernel for `window_attention_proj`: attention within windows, its output projection and the sum after it.

A program takes a block of queries of one window and some of the output channels, and iterates over the heads. What a
head attends to is rounded to qkv's dtype, as it would be in memory, and multiplied with the head's columns of the
weight at once, so that the attention's result is never written. Bias and residual are added before the only store. The
statistics of the next group normalization can be written with it (norm_stats.py); a block of queries is a part of them.
Output channels are divided into chunks of B_N, one accumulator each, because the usual widths are no powers of two.

Small images have few windows: their queries, then their output channels are divided among programs, each of which
computes the attention of its queries for itself. The programs of one window are adjacent in the grid: all but the first
find its keys and values in the L2 cache, where the weight stays anyway.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from resshift_fast.kernels import norm_stats
from resshift_fast.kernels.dependents import wait_for_previous
from resshift_fast.kernels.epilogue import store_sum
from resshift_fast.kernels.launch import Start
from resshift_fast.kernels.norm_stats import Plan, finish, store_part
from resshift_fast.kernels.plans import FULL, contiguous, planned
from resshift_fast.kernels.tuning import Config, Space, bucket
from resshift_fast.kernels.window_attention_tiles import (
    ALL_REGISTERS,
    constants_of,
    num_windows,
    relative_position_bias,
    window_pixels,
    window_values,
)
from resshift_fast.kernels.window_attention_tiles import unsupported as unsupported_attention


def _chunk(out_channels: int) -> int:
    """Output channels of one accumulator: few chunks, none of them mostly padding."""
    return 64 if out_channels % 64 == 0 else 32 if out_channels > 16 else 16


def _chunks(b_q: int, key: tuple) -> int:
    """Chunks of a program with b_q queries that has all output channels, or as many as fit the registers."""
    _, head_dim, itemsize, _, out_channels = key
    columns = 256 if b_q < 64 and head_dim <= 32 and itemsize == 2 else 192
    width = _chunk(out_channels)
    chunks = triton.cdiv(out_channels, width)
    return triton.cdiv(chunks, triton.cdiv(chunks, columns // width))


def _tiles(key: tuple) -> list[tuple[int, int]]:
    """(queries, chunks) of a program, from the one that reads least to the one with the most programs."""
    b_t, head_dim, itemsize, *_ = key
    # In float32, which has no matrix instruction, the operands of a product fill the registers.
    largest = 16 if itemsize == 4 and head_dim == 64 else 64 if itemsize == 2 and b_t == 64 and head_dim <= 32 else 32
    tiles = [(b_q, _chunks(b_q, key)) for b_q in (64, 32, 16) if b_q <= min(b_t, largest)]
    return tiles + ([(16, 1)] if tiles[-1][1] > 1 else [])


def _config(tile: tuple[int, int], key: tuple, num_stages: int = 2) -> Config:
    b_t, head_dim, itemsize, _, out_channels = key
    b_q, chunks = tile
    b_k = min(b_t, 64 if itemsize == 2 else 32)
    blocks = {"B_Q": b_q, "B_K": b_k, "B_N": _chunk(out_channels), "CHUNKS": chunks}
    if itemsize == 4:
        blocks |= ALL_REGISTERS
    wide = b_q == 64 or (itemsize == 4 and (chunks > 1 or head_dim == 64))
    # The loop over heads is pipelined; where it contains one over keys, prefetched keys do not fit the registers.
    return Config(blocks, num_warps=8 if wide else 4, num_stages=num_stages if b_k == b_t else 1)


def _candidates(key: tuple) -> list[Config]:
    configs = [_config(tile, key, stages) for tile in _tiles(key) for stages in (2, 3)]
    return [config for i, config in enumerate(configs) if config not in configs[:i]]


def _default(arch: int, key: tuple) -> Config:
    # A warp's matrix instruction has 16 rows; only that of a group of four, or of 10.0, gains from 64 queries.
    tiles = [t for t in _tiles(key) if t[0] < 64 or arch in (90, 100)]
    full = [t for t in tiles if key[3] * _programs(*t, key[0], key[4], _chunk(key[4])) >= FULL]
    return _config(full[0] if full else tiles[-1], key)


def _programs(b_q: int, chunks: int, tokens: int, out_channels: int, width: int) -> int:
    """Programs of one window."""
    return triton.cdiv(tokens, b_q) * triton.cdiv(out_channels, width * chunks)


# Bucket: B_T, channels of a head, bytes of an element, windows of the batch, output channels.
SPACE = Space("window_attention_proj_kernel", _candidates, _default)


@triton.jit(do_not_specialize=["height", "width", "shift"])
def window_attention_proj_kernel(
    p_qkv,  # [B, height, width, 3 · HEADS · HEAD_DIM], last dimension (q | k | v, head, head_dim)
    p_table,  # [(2 · WINDOW − 1)², HEADS]
    p_weight,  # [O, HEADS · HEAD_DIM], qkv's dtype
    p_bias,  # [O] or None
    p_residual,  # [B, height, width, O] or None
    p_y,  # [B, height, width, O]
    p_parts,  # [B, parts, SLOTS, 3, NEXT_GROUPS], float32, or None
    p_counters,  # [B], int32 zeros before and after, or None
    p_next,  # [B, 2, NEXT_GROUPS], float32, or None
    height,
    width,
    shift,
    next_eps,
    O: tl.constexpr,  # noqa: E741
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    WINDOW: tl.constexpr,
    MASK: tl.constexpr,
    B_T: tl.constexpr,
    NEXT_GROUPS: tl.constexpr,
    SLOTS: tl.constexpr,
    TILE_GROUPS: tl.constexpr,
    ROWS: tl.constexpr,
    B_Q: tl.constexpr,
    B_K: tl.constexpr,
    B_N: tl.constexpr,
    CHUNKS: tl.constexpr,
):
    wait_for_previous()
    TOKENS: tl.constexpr = WINDOW * WINDOW
    Q_BLOCKS: tl.constexpr = (TOKENS + B_Q - 1) // B_Q
    N_BLOCKS: tl.constexpr = (O + B_N * CHUNKS - 1) // (B_N * CHUNKS)
    i_n = tl.program_id(0) % N_BLOCKS * CHUNKS
    i_q = tl.program_id(0) // N_BLOCKS % Q_BLOCKS
    i_window = tl.program_id(0) // (N_BLOCKS * Q_BLOCKS)
    o_q = i_q * B_Q + tl.arange(0, B_Q)
    b_pixel = window_pixels(i_window, o_q, height, width, shift, WINDOW)

    b_y = ()
    for _ in tl.static_range(CHUNKS):
        b_y += (tl.zeros([B_Q, B_N], tl.float32),)  # type: ignore[assignment]
    for i_head in range(HEADS):
        b_bias = 0.0
        if B_K >= TOKENS:
            b_bias = relative_position_bias(p_table, o_q, tl.arange(0, B_K), i_head, HEADS, WINDOW)
        b_out = window_values(
            p_qkv, p_table, b_pixel, b_bias, o_q, i_window, i_head, height, width, shift,
            HEADS, HEAD_DIM, WINDOW, MASK, B_Q, B_K,
        ).to(p_qkv.dtype.element_ty)  # fmt: skip
        o_d = i_head * HEAD_DIM + tl.arange(0, HEAD_DIM)
        b_sum = ()
        for i_c in tl.static_range(CHUNKS):
            o_n = (i_n + i_c) * B_N + tl.arange(0, B_N)
            p_w = p_weight + o_n[:, None] * (HEADS * HEAD_DIM) + o_d[None, :]
            b_w = tl.load(p_w, mask=(o_n < O)[:, None], other=0.0)
            b_sum += (tl.dot(b_out, tl.trans(b_w), b_y[i_c], input_precision="ieee"),)  # type: ignore[assignment]
        b_y = b_sum

    windows = (height // WINDOW).to(tl.int64) * (width // WINDOW)  # of an image
    i_image = i_window // windows
    i_part = i_window % windows * Q_BLOCKS + i_q
    parts = windows * Q_BLOCKS
    m_q = o_q < TOKENS
    for i_c in tl.static_range(CHUNKS):
        o_n = (i_n + i_c) * B_N + tl.arange(0, B_N)
        m_n = o_n < O
        o_y = b_pixel[:, None] * O + o_n[None, :]
        b_chunk = store_sum(b_y[i_c], p_y, p_bias, p_residual, o_y, o_n, m_q[:, None] & m_n[None, :], m_n)
        if NEXT_GROUPS:
            store_part(
                b_chunk, m_q, p_parts, i_image, i_part, parts, i_n + i_c, O, NEXT_GROUPS, SLOTS, TILE_GROUPS, B_N
            )
    if NEXT_GROUPS:
        programs = parts * N_BLOCKS
        finish(p_parts, p_counters, p_next, i_image, parts, programs, next_eps, O, NEXT_GROUPS, SLOTS, ROWS, B_N)


def unsupported(
    qkv: Tensor, bias_table: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, *options: Any
) -> str | None:
    """Why the kernel can't run a call; None if it can."""
    return unsupported_attention(qkv, bias_table, *options)


def _bucket(
    shape: tuple[int, ...], dtype: torch.dtype, out_channels: int, num_heads: int, window_size: int, *_: object
) -> tuple:
    constants = constants_of(shape, num_heads, window_size, 0, "")
    n_windows = bucket(num_windows(shape, window_size))
    return constants["B_T"], constants["HEAD_DIM"], dtype.itemsize, n_windows, out_channels


@planned(SPACE, _bucket)
def _forward(
    config: Config,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    out_channels: int,
    num_heads: int,
    window_size: int,
    shift_size: int,
    mask: str,
    next_groups: int,
    next_eps: float,
) -> Plan:
    """Plan of the kernel for qkv of this shape."""
    blocks = config.blocks
    programs = _programs(blocks["B_Q"], blocks["CHUNKS"], window_size**2, out_channels, blocks["B_N"])
    windows = num_windows(shape, window_size)
    following = norm_stats.constants(out_channels, next_groups, blocks["B_N"], config.num_warps)
    start = Start(
        window_attention_proj_kernel,
        (windows * programs,),
        *(shape[1], shape[2], shift_size, next_eps),
        O=out_channels,
        **constants_of(shape, num_heads, window_size, shift_size, mask),
        **following,
        # Without a limit, Triton 3.6's assembler spills a few registers to fit more programs on a multiprocessor.
        **((ALL_REGISTERS if next_groups else {}) | config.options),
        passes=norm_stats.PASSES,
    )
    parts = windows // shape[0] * triton.cdiv(window_size**2, blocks["B_Q"])
    return Plan(start, parts, following["SLOTS"])


def forward(
    qkv: Tensor,
    bias_table: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    num_heads: int,
    window_size: int,
    shift_size: int,
    mask: str,
) -> Tensor:
    """Launch the kernel; returns [B, H, W, O], contiguous."""
    return _launch(qkv, bias_table, weight, bias, residual, num_heads, window_size, shift_size, mask, 0, 0.0)[0]


def forward_with_statistics(
    qkv: Tensor,
    bias_table: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    num_heads: int,
    window_size: int,
    shift_size: int,
    mask: str,
    next_groups: int,
    next_eps: float,
) -> tuple[Tensor, Tensor]:
    """`forward`; returns y, and the statistics of its next_groups groups, float32 [B, 2, next_groups]."""
    y, following = _launch(
        qkv, bias_table, weight, bias, residual, num_heads, window_size, shift_size, mask, next_groups, next_eps
    )
    assert following is not None
    return y, following


def _launch(
    qkv: Tensor,
    bias_table: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    num_heads: int,
    window_size: int,
    shift_size: int,
    mask: str,
    next_groups: int,
    next_eps: float,
) -> tuple[Tensor, Tensor | None]:
    shape, dtype, out_channels = qkv.shape, qkv.dtype, weight.shape[0]
    # A float32 weight would take twice the shared memory, and every program would round it.
    weight = contiguous(weight if weight.dtype is dtype else weight.to(dtype))
    qkv, bias_table = contiguous(qkv), contiguous(bias_table)
    bias, residual = contiguous(bias), contiguous(residual)
    y = qkv.new_empty(*shape[:3], out_channels)
    following = qkv.new_empty((shape[0], 2, next_groups), dtype=torch.float32) if next_groups else None

    def run(plan: Plan) -> tuple[Tensor | None, ...]:
        written = norm_stats.buffers(y, plan.parts, plan.slots, next_groups, following)
        plan.start(qkv, bias_table, weight, bias, residual, y, *written)
        return y, following

    options = num_heads, window_size, shift_size, mask, next_groups, next_eps
    run(_forward(qkv.device, shape, dtype, out_channels, *options, trial=run))
    return y, following
