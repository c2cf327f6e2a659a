r"""Triton kernels for the gradients of `window_attention`.

The probabilities are computed again from q and k. With P the probabilities, and dO the gradient of the output,

.. math:: dP = dO\,v^\top, \quad \delta = \mathrm{rowsum}(P \circ dP), \quad dS = P \circ (dP - \delta), \quad
          dq = dS\,k/\sqrt{d}, \quad dk = dS^\top q/\sqrt{d}, \quad dv = P^\top dO

One kernel does the whole backward pass of a small window. For larger windows a program takes a block of queries and
iterates over blocks of keys twice: first for each query's maximum, sum and δ, rescaled as the maximum grows, then for
dS and dq. A second kernel reads these three values, takes a block of keys and accumulates dk and dv over blocks of
queries.

The gradient of the bias is the sum of dS over windows, then over the pairs of tokens with the same offset. Each program
adds up the dS of its own windows in order; a last kernel adds up the programs' sums in a fixed order. There are no
atomics, so that the results are bitwise the same from run to run.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from resshift_fast.kernels.dependents import wait_for_previous
from resshift_fast.kernels.launch import Start
from resshift_fast.kernels.tuning import Config, Space
from resshift_fast.kernels.window_attention_tiles import (
    ALL_REGISTERS,
    constants_of,
    relative_position_bias,
    small_warps,
    unsupported,
    window_pixels,
    window_regions,
    window_scores,
)

# Programs by tokens: enough to fill a GPU, but few, as each stores a sum of dS.
PROGRAMS = {16: 1024, 32: 768, 64: 384, 128: 192, 256: 132}
SUM_ELEMENTS = 8192  # of the tile in which the programs' sums are added up, 32 a thread


def _in_one_kernel(b_t: int, head_dim: int) -> bool:
    """Whether registers hold a window's whole backward pass."""
    return b_t <= 64 and b_t * head_dim <= 2048


def _candidates(key: tuple) -> list[Config]:
    b_t, head_dim, itemsize = key
    if b_t == 64 and itemsize == 4:
        warps = 8 if head_dim == 16 else 16
    else:
        warps = small_warps(*key) * (2 if b_t == 16 < head_dim else 1)
    options = [(w, s) for w in (warps, max(warps // 2, 1)) for s in (1, 2)]
    return [Config(ALL_REGISTERS if w <= 8 else {}, w, num_stages=s) for w, s in options]


def _q_candidates(key: tuple) -> list[Config]:
    _b_t, head_dim, itemsize = key
    if itemsize == 2:
        blocks = ((16, 64, 4), (32, 32, 4)) if head_dim > 16 else ((16, 32, 2), (32, 32, 4))
    else:
        blocks = (16, 32, 4), (32, 32, 8)
    return [Config({"B_Q": b_q, "B_K": b_k, **ALL_REGISTERS}, w, num_stages=1) for b_q, b_k, w in blocks]


def _kv_candidates(key: tuple) -> list[Config]:
    _b_t, head_dim, itemsize = key
    blocks = ((32, 32, 2), (64, 64, 4)) if itemsize == 2 else ((16, 32, 4 if head_dim == 16 else 8), (32, 32, 8))
    return [Config({"B_Q": b_q, "B_K": b_k, **ALL_REGISTERS}, w, num_stages=1) for b_q, b_k, w in blocks]


# Buckets: (tokens as a power of two, head size, itemsize).
SMALL = Space("window_attention_bwd_kernel", _candidates, lambda _, key: _candidates(key)[0])
QUERIES = Space("window_attention_bwd_q_kernel", _q_candidates, lambda _, key: _q_candidates(key)[0])
KEYS = Space("window_attention_bwd_kv_kernel", _kv_candidates, lambda _, key: _kv_candidates(key)[0])


@triton.jit(do_not_specialize=["n_windows", "windows_each", "height", "width", "shift"])
def window_attention_bwd_kernel(
    p_dout,  # [B, height, width, HEADS · HEAD_DIM]
    p_qkv,  # [B, height, width, 3 · HEADS · HEAD_DIM], last dimension (q | k | v, head, head_dim)
    p_table,  # [(2 · WINDOW − 1)², HEADS]
    p_dqkv,  # like qkv
    p_dbias,  # [parts, HEADS, WINDOW², WINDOW²], float32: dS summed over a program's windows
    n_windows,
    windows_each,
    height,
    width,
    shift,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    WINDOW: tl.constexpr,
    MASK: tl.constexpr,
    B_T: tl.constexpr,
):
    wait_for_previous()
    CHANNELS: tl.constexpr = HEADS * HEAD_DIM
    TOKENS: tl.constexpr = WINDOW * WINDOW
    SCALE: tl.constexpr = HEAD_DIM**-0.5
    i_head = tl.program_id(0) % HEADS
    i_part = tl.program_id(0) // HEADS
    i_first = i_part * windows_each
    o_t = tl.arange(0, B_T)
    o_d = i_head * HEAD_DIM + tl.arange(0, HEAD_DIM)
    m_t = (o_t < TOKENS)[:, None]
    b_bias = relative_position_bias(p_table, o_t, o_t, i_head, HEADS, WINDOW)
    b_dbias = tl.zeros([B_T, B_T], tl.float32)

    # Addresses computed before the loop would take the registers that its products need.
    for i_window in tl.range(i_first, tl.minimum(i_first + windows_each, n_windows), disable_licm=True):
        b_pixel = window_pixels(i_window, o_t, height, width, shift, WINDOW)
        b_region = window_regions(i_window, o_t, height, width, shift, WINDOW, MASK)
        b_offset = b_pixel[:, None] * (3 * CHANNELS) + o_d[None, :]
        b_q = tl.load(p_qkv + b_offset, mask=m_t, other=0.0)
        b_k = tl.load(p_qkv + b_offset + CHANNELS, mask=m_t, other=0.0)
        b_v = tl.load(p_qkv + b_offset + 2 * CHANNELS, mask=m_t, other=0.0)
        b_dout = tl.load(p_dout + b_pixel[:, None] * CHANNELS + o_d[None, :], mask=m_t, other=0.0)

        b_s = window_scores(b_q, b_k, b_bias, b_region, b_region, MASK, SCALE)
        b_p = tl.exp2(b_s - tl.max(b_s, axis=1)[:, None])
        b_p = b_p / tl.sum(b_p, axis=1)[:, None]
        b_dp = tl.dot(b_dout, tl.trans(b_v), input_precision="ieee")
        b_ds = b_p * (b_dp - tl.sum(b_p * b_dp, axis=1)[:, None])
        b_dbias += b_ds
        b_ds = (b_ds * SCALE).to(b_q.dtype)
        b_dq = tl.dot(b_ds, b_k, input_precision="ieee")
        tl.store(p_dqkv + b_offset, b_dq.to(p_dqkv.dtype.element_ty), mask=m_t)
        b_dk = tl.dot(tl.trans(b_ds), b_q, input_precision="ieee")
        tl.store(p_dqkv + b_offset + CHANNELS, b_dk.to(p_dqkv.dtype.element_ty), mask=m_t)
        b_dv = tl.dot(tl.trans(b_p.to(b_v.dtype)), b_dout, input_precision="ieee")
        tl.store(p_dqkv + b_offset + 2 * CHANNELS, b_dv.to(p_dqkv.dtype.element_ty), mask=m_t)

    p_sum = p_dbias + (i_part.to(tl.int64) * HEADS + i_head) * (TOKENS * TOKENS)
    tl.store(p_sum + o_t[:, None] * TOKENS + o_t[None, :], b_dbias, mask=m_t & (o_t < TOKENS)[None, :])


@triton.jit
def scores_and_gradient(
    p_qkv, p_table, b_q, b_dout, b_region_q, o_q, o_k, o_d, i_window, i_head, height, width, shift,
    HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, WINDOW: tl.constexpr, MASK: tl.constexpr,
):  # fmt: skip
    """Keys `o_k` [B_K, HEAD_DIM], and the queries' scores and dP with them [B_Q, B_K]."""
    b_pixel_k = window_pixels(i_window, o_k, height, width, shift, WINDOW)
    b_region_k = window_regions(i_window, o_k, height, width, shift, WINDOW, MASK)
    m_k = (o_k < WINDOW * WINDOW)[:, None]
    p_k = p_qkv + b_pixel_k[:, None] * (3 * HEADS * HEAD_DIM) + o_d[None, :] + HEADS * HEAD_DIM
    b_k = tl.load(p_k, mask=m_k, other=0.0)
    b_v = tl.load(p_k + HEADS * HEAD_DIM, mask=m_k, other=0.0)
    b_bias = relative_position_bias(p_table, o_q, o_k, i_head, HEADS, WINDOW)
    b_s = window_scores(b_q, b_k, b_bias, b_region_q, b_region_k, MASK, HEAD_DIM**-0.5)
    return b_k, b_s, tl.dot(b_dout, tl.trans(b_v), input_precision="ieee")


@triton.jit
def softmax_rows(
    p_qkv, p_table, b_q, b_dout, b_region_q, o_q, o_d, i_window, i_head, height, width, shift,
    HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, WINDOW: tl.constexpr, MASK: tl.constexpr,
    B_Q: tl.constexpr, B_K: tl.constexpr,
):  # fmt: skip
    """Of each query the maximum score, the sum of exponentials and δ, [B_Q] each, in one pass over the keys."""
    b_max = tl.full([B_Q], float("-inf"), tl.float32)
    b_sum = tl.zeros([B_Q], tl.float32)
    b_delta = tl.zeros([B_Q], tl.float32)
    for i_k in range((WINDOW * WINDOW + B_K - 1) // B_K):
        o_k = i_k * B_K + tl.arange(0, B_K)
        _, b_s, b_dp = scores_and_gradient(
            p_qkv, p_table, b_q, b_dout, b_region_q, o_q, o_k, o_d, i_window, i_head, height, width, shift,
            HEADS, HEAD_DIM, WINDOW, MASK,
        )  # fmt: skip
        b_before = b_max
        b_max = tl.maximum(b_before, tl.max(b_s, axis=1))
        b_decay = tl.exp2(b_before - b_max)
        b_p = tl.exp2(b_s - b_max[:, None])
        b_sum = b_sum * b_decay + tl.sum(b_p, axis=1)
        b_delta = b_delta * b_decay + tl.sum(b_p * b_dp, axis=1)
    return b_max, b_sum, b_delta / b_sum


@triton.jit(do_not_specialize=["n_windows", "windows_each", "height", "width", "shift"])
def window_attention_bwd_q_kernel(
    p_dout,  # [B, height, width, HEADS · HEAD_DIM]
    p_qkv,  # [B, height, width, 3 · HEADS · HEAD_DIM], last dimension (q | k | v, head, head_dim)
    p_table,  # [(2 · WINDOW − 1)², HEADS]
    p_dqkv,  # like qkv, of q
    p_dbias,  # [parts, HEADS, WINDOW², WINDOW²], float32: dS summed over a program's windows
    p_rows,  # [windows, HEADS, 3, WINDOW²], float32: maximum, sum and delta of each query
    n_windows,
    windows_each,
    height,
    width,
    shift,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    WINDOW: tl.constexpr,
    MASK: tl.constexpr,
    B_T: tl.constexpr,
    B_Q: tl.constexpr,
    B_K: tl.constexpr,
):
    wait_for_previous()
    CHANNELS: tl.constexpr = HEADS * HEAD_DIM
    TOKENS: tl.constexpr = WINDOW * WINDOW
    Q_BLOCKS: tl.constexpr = (TOKENS + B_Q - 1) // B_Q
    K_BLOCKS: tl.constexpr = (TOKENS + B_K - 1) // B_K
    SCALE: tl.constexpr = HEAD_DIM**-0.5
    i_head = tl.program_id(0) % HEADS
    i_q = tl.program_id(0) // HEADS % Q_BLOCKS
    i_part = tl.program_id(0) // (HEADS * Q_BLOCKS)
    i_first = i_part * windows_each
    o_q = i_q * B_Q + tl.arange(0, B_Q)
    o_block = tl.arange(0, B_T // B_K)
    o_d = i_head * HEAD_DIM + tl.arange(0, HEAD_DIM)
    m_q = o_q < TOKENS
    b_dbias = tl.zeros([B_Q, B_T // B_K, B_K], tl.float32)

    # Addresses computed before the loop would take the registers that its products need.
    for i_window in tl.range(i_first, tl.minimum(i_first + windows_each, n_windows), disable_licm=True):
        b_pixel_q = window_pixels(i_window, o_q, height, width, shift, WINDOW)
        b_region_q = window_regions(i_window, o_q, height, width, shift, WINDOW, MASK)
        b_offset_q = b_pixel_q[:, None] * (3 * CHANNELS) + o_d[None, :]
        b_q = tl.load(p_qkv + b_offset_q, mask=m_q[:, None], other=0.0)
        b_dout = tl.load(p_dout + b_pixel_q[:, None] * CHANNELS + o_d[None, :], mask=m_q[:, None], other=0.0)

        b_max, b_sum, b_delta = softmax_rows(
            p_qkv, p_table, b_q, b_dout, b_region_q, o_q, o_d, i_window, i_head, height, width, shift,
            HEADS, HEAD_DIM, WINDOW, MASK, B_Q, B_K,
        )  # fmt: skip
        b_dq = tl.zeros([B_Q, HEAD_DIM], tl.float32)
        for i_k in range(K_BLOCKS):
            o_k = i_k * B_K + tl.arange(0, B_K)
            b_k, b_s, b_dp = scores_and_gradient(
                p_qkv, p_table, b_q, b_dout, b_region_q, o_q, o_k, o_d, i_window, i_head, height, width, shift,
                HEADS, HEAD_DIM, WINDOW, MASK,
            )  # fmt: skip
            b_p = tl.exp2(b_s - b_max[:, None]) / b_sum[:, None]
            b_ds = b_p * (b_dp - b_delta[:, None])
            # Registers can't be indexed: every block of sums is added to, all but one of them zeros.
            b_dbias += tl.where((o_block == i_k)[None, :, None], b_ds[:, None, :], 0.0)
            b_dq += tl.dot((b_ds * SCALE).to(b_k.dtype), b_k, input_precision="ieee")

        tl.store(p_dqkv + b_offset_q, b_dq.to(p_dqkv.dtype.element_ty), mask=m_q[:, None])
        p_row = p_rows + (tl.cast(i_window, tl.int64) * HEADS + i_head) * (3 * TOKENS) + o_q
        tl.store(p_row, b_max, mask=m_q)
        tl.store(p_row + TOKENS, b_sum, mask=m_q)
        tl.store(p_row + 2 * TOKENS, b_delta, mask=m_q)

    p_sum = p_dbias + (i_part.to(tl.int64) * HEADS + i_head) * (TOKENS * TOKENS)
    o_k = (o_block * B_K)[:, None] + tl.arange(0, B_K)[None, :]
    m_sum = m_q[:, None, None] & (o_k < TOKENS)[None, :, :]
    tl.store(p_sum + (o_q * TOKENS)[:, None, None] + o_k[None, :, :], b_dbias, mask=m_sum)


@triton.jit(do_not_specialize=["height", "width", "shift"])
def window_attention_bwd_kv_kernel(
    p_dout,  # [B, height, width, HEADS · HEAD_DIM]
    p_qkv,  # [B, height, width, 3 · HEADS · HEAD_DIM], last dimension (q | k | v, head, head_dim)
    p_table,  # [(2 · WINDOW − 1)², HEADS]
    p_rows,  # [windows, HEADS, 3, WINDOW²], float32: maximum, sum and delta of each query
    p_dqkv,  # like qkv, of k and v
    height,
    width,
    shift,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    WINDOW: tl.constexpr,
    MASK: tl.constexpr,
    B_T: tl.constexpr,
    B_Q: tl.constexpr,
    B_K: tl.constexpr,
):
    wait_for_previous()
    CHANNELS: tl.constexpr = HEADS * HEAD_DIM
    TOKENS: tl.constexpr = WINDOW * WINDOW
    Q_BLOCKS: tl.constexpr = (TOKENS + B_Q - 1) // B_Q
    K_BLOCKS: tl.constexpr = (TOKENS + B_K - 1) // B_K
    SCALE: tl.constexpr = HEAD_DIM**-0.5
    i_head = tl.program_id(0) % HEADS
    i_k = tl.program_id(0) // HEADS % K_BLOCKS
    i_window = tl.program_id(0) // (HEADS * K_BLOCKS)
    o_k = i_k * B_K + tl.arange(0, B_K)
    o_d = i_head * HEAD_DIM + tl.arange(0, HEAD_DIM)
    m_k = (o_k < TOKENS)[:, None]
    b_pixel_k = window_pixels(i_window, o_k, height, width, shift, WINDOW)
    b_region_k = window_regions(i_window, o_k, height, width, shift, WINDOW, MASK)
    b_offset_k = b_pixel_k[:, None] * (3 * CHANNELS) + o_d[None, :] + CHANNELS
    b_k = tl.load(p_qkv + b_offset_k, mask=m_k, other=0.0)
    b_v = tl.load(p_qkv + b_offset_k + CHANNELS, mask=m_k, other=0.0)
    b_dk = tl.zeros([B_K, HEAD_DIM], tl.float32)
    b_dv = tl.zeros([B_K, HEAD_DIM], tl.float32)

    for i_q in range(Q_BLOCKS):
        o_q = i_q * B_Q + tl.arange(0, B_Q)
        m_q = (o_q < TOKENS)[:, None]
        b_pixel_q = window_pixels(i_window, o_q, height, width, shift, WINDOW)
        b_region_q = window_regions(i_window, o_q, height, width, shift, WINDOW, MASK)
        b_q = tl.load(p_qkv + b_pixel_q[:, None] * (3 * CHANNELS) + o_d[None, :], mask=m_q, other=0.0)
        b_dout = tl.load(p_dout + b_pixel_q[:, None] * CHANNELS + o_d[None, :], mask=m_q, other=0.0)
        p_row = p_rows + (i_window.to(tl.int64) * HEADS + i_head) * (3 * TOKENS) + o_q
        b_max = tl.load(p_row, mask=o_q < TOKENS, other=0.0)
        b_sum = tl.load(p_row + TOKENS, mask=o_q < TOKENS, other=1.0)
        b_delta = tl.load(p_row + 2 * TOKENS, mask=o_q < TOKENS, other=0.0)
        b_bias = relative_position_bias(p_table, o_q, o_k, i_head, HEADS, WINDOW)

        b_s = window_scores(b_q, b_k, b_bias, b_region_q, b_region_k, MASK, SCALE)
        b_p = tl.exp2(b_s - b_max[:, None]) / b_sum[:, None]
        b_dv += tl.dot(tl.trans(b_p.to(b_v.dtype)), b_dout, input_precision="ieee")
        b_dp = tl.dot(b_dout, tl.trans(b_v), input_precision="ieee")
        b_ds = (b_p * (b_dp - b_delta[:, None]) * SCALE).to(b_q.dtype)
        b_dk += tl.dot(tl.trans(b_ds), b_q, input_precision="ieee")

    tl.store(p_dqkv + b_offset_k, b_dk.to(p_dqkv.dtype.element_ty), mask=m_k)
    tl.store(p_dqkv + b_offset_k + CHANNELS, b_dv.to(p_dqkv.dtype.element_ty), mask=m_k)


@triton.jit(do_not_specialize=["n_parts"])
def bias_table_bwd_kernel(
    p_dbias,  # [n_parts, HEADS, WINDOW², WINDOW²], float32
    p_dtable,  # [(2 · WINDOW − 1)², HEADS], float32
    n_parts,
    HEADS: tl.constexpr,
    WINDOW: tl.constexpr,
    B_P: tl.constexpr,
    B_W: tl.constexpr,
    B_D: tl.constexpr,
):
    wait_for_previous()
    SPAN: tl.constexpr = 2 * WINDOW - 1
    TOKENS: tl.constexpr = WINDOW * WINDOW
    i_row = tl.program_id(0) % SPAN  # of offsets: r_q − r_k + w − 1
    i_head = tl.program_id(0) // SPAN
    # Along one axis the parts and the queries' rows, which fix the keys' rows; along the other both tokens' columns,
    # of which the keys' are contiguous in memory.
    o_part = tl.arange(0, B_P * B_W) // B_W
    b_row_q = tl.arange(0, B_P * B_W) % B_W
    b_row_k = b_row_q - i_row + WINDOW - 1
    m_row = (b_row_q < WINDOW) & (b_row_k >= 0) & (b_row_k < WINDOW)
    b_column_q = tl.arange(0, B_W * B_W) // B_W
    b_column_k = tl.arange(0, B_W * B_W) % B_W
    m_column = (b_column_q < WINDOW) & (b_column_k < WINDOW)
    o_rows = b_row_q * (WINDOW * TOKENS) + b_row_k * WINDOW
    o_columns = b_column_q * TOKENS + b_column_k

    b_sum = tl.zeros([B_P * B_W, B_W * B_W], tl.float32)
    for i_part in range(0, n_parts, B_P):
        b_part = (i_part + o_part).to(tl.int64)
        o_dbias = (b_part * HEADS + i_head) * (TOKENS * TOKENS) + o_rows
        m_dbias = (m_row & (b_part < n_parts))[:, None] & m_column[None, :]
        b_sum += tl.load(p_dbias + o_dbias[:, None] + o_columns[None, :], mask=m_dbias, other=0.0)

    o_offset = tl.arange(0, B_D)  # of columns: c_q − c_k + w − 1
    m_pair = o_offset[:, None] == (b_column_q - b_column_k + WINDOW - 1)[None, :]
    b_dtable = tl.sum(tl.where(m_pair, tl.sum(b_sum, axis=0)[None, :], 0.0), axis=1)
    tl.store(p_dtable + (i_row * SPAN + o_offset) * HEADS + i_head, b_dtable, mask=o_offset < SPAN)


def unsupported_backward(dout: Tensor, *args: Any) -> str | None:
    """Why these kernels can't run a call of `backward`; None if they can."""
    return unsupported(*args)


def backward(
    dout: Tensor, qkv: Tensor, bias_table: Tensor, num_heads: int, window_size: int, shift_size: int, mask: str
) -> tuple[Tensor, Tensor]:
    """Launch the backward kernels; returns (dqkv like qkv, dbias_table float32)."""
    batch, height, width, _ = qkv.shape
    x, dout, bias_table = qkv.contiguous(), dout.contiguous(), bias_table.contiguous()
    constants = constants_of(qkv.shape, num_heads, window_size, shift_size, mask)
    n_windows = batch * (height // window_size) * (width // window_size)
    # From the shape alone, because the number of parts decides the order of summation.
    windows_each = triton.cdiv(n_windows, max(PROGRAMS[constants["B_T"]] // num_heads, 1))
    n_parts = triton.cdiv(n_windows, windows_each)
    dqkv = torch.empty_like(x)
    dbias = x.new_empty(n_parts, num_heads, window_size**2, window_size**2, dtype=torch.float32)
    sizes = n_windows, windows_each, height, width, shift_size
    run = _small if _in_one_kernel(constants["B_T"], constants["HEAD_DIM"]) else _large
    run(dout, x, bias_table, dqkv, dbias, sizes, constants)
    dtable = _sum_bias_gradient(dbias, window_size)
    return (dqkv if qkv.is_contiguous() else torch.empty_like(qkv).copy_(dqkv)), dtable


def _small(
    dout: Tensor, qkv: Tensor, bias_table: Tensor, dqkv: Tensor, dbias: Tensor, sizes: tuple, constants: dict
) -> None:
    """Launch the kernel that does all of a window."""
    n_parts, num_heads, *_ = dbias.shape

    def start(config: Config) -> tuple[Tensor, ...]:
        grid = (n_parts * num_heads,)
        planned = Start(window_attention_bwd_kernel, grid, *sizes, **constants, **config.options)
        planned(dout, qkv, bias_table, dqkv, dbias)
        return dqkv, dbias

    start(SMALL.config(_bucket(qkv, constants), qkv.device, start))


def _large(
    dout: Tensor, qkv: Tensor, bias_table: Tensor, dqkv: Tensor, dbias: Tensor, sizes: tuple, constants: dict
) -> None:
    """Launch the kernel of dq and the bias, then that of dk and dv."""
    n_parts, num_heads, num_tokens, _ = dbias.shape
    n_windows, *_ = sizes
    rows = dbias.new_empty(n_windows, num_heads, 3, num_tokens)

    def start_q(config: Config) -> tuple[Tensor, ...]:
        q_blocks = triton.cdiv(num_tokens, config.blocks["B_Q"])
        again = 2 * q_blocks if num_tokens > config.blocks["B_K"] else q_blocks
        planned = Start(
            window_attention_bwd_q_kernel,
            (n_parts * q_blocks * num_heads,),
            *sizes,
            passes={"p_qkv": (1 + 2 * again) / 3, "p_dqkv": 1 / 3},
            **constants,
            **config.options,
        )
        planned(dout, qkv, bias_table, dqkv, dbias, rows)
        return dqkv, dbias, rows

    def start_kv(config: Config) -> tuple[Tensor]:
        k_blocks = triton.cdiv(num_tokens, config.blocks["B_K"])
        planned = Start(
            window_attention_bwd_kv_kernel,
            (n_windows * k_blocks * num_heads,),
            *sizes[2:],
            passes={"p_dout": k_blocks, "p_qkv": (2 + k_blocks) / 3, "p_rows": k_blocks, "p_dqkv": 2 / 3},
            **constants,
            **config.options,
        )
        planned(dout, qkv, bias_table, rows, dqkv)
        return (dqkv,)

    bucket = _bucket(qkv, constants)
    start_q(QUERIES.config(bucket, qkv.device, start_q))
    start_kv(KEYS.config(bucket, qkv.device, start_kv))


def _bucket(qkv: Tensor, constants: dict) -> tuple[int, int, int]:
    return constants["B_T"], constants["HEAD_DIM"], qkv.element_size()


def _sum_bias_gradient(dbias: Tensor, window_size: int) -> Tensor:
    """Launch the kernel that adds up parts [parts, heads, w², w²]; returns [(2w − 1)², heads]."""
    n_parts, num_heads, *_ = dbias.shape
    span, b_w = 2 * window_size - 1, triton.next_power_of_2(window_size)
    dtable = dbias.new_empty(span**2, num_heads)
    Start(
        bias_table_bwd_kernel,
        (span * num_heads,),
        n_parts,
        HEADS=num_heads,
        WINDOW=window_size,
        B_P=max(SUM_ELEMENTS // b_w**3, 1),
        B_W=b_w,
        B_D=triton.next_power_of_2(span),
        num_warps=8,
    )(dbias, dtable)
    return dtable
