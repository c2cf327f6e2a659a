r"""Triton kernels for `window_attention`, forward and backward.

A program holds one head of one window at a time: its tokens are read from and written to the channels-last image at
their shifted addresses, so that no rolled, partitioned, masked or transposed tensor exists. A whole window is handled
on chip up to 8 × 8; larger windows are divided into blocks of queries, each of which walks over blocks of keys and
rescales its sums as the maximum grows. The bias is addressed in its small table, and where one block holds the window
it stays in registers while the program walks over several windows.

The backward kernel computes the probabilities again from q and k. With P the probabilities, and dO the gradient of the
output,

.. math:: dP = dO\,v^\top, \quad dS = P \circ (dP - \mathrm{rowsum}(P \circ dP)), \quad
          dq = dS\,k/\sqrt{d}, \quad dk = dS^\top q/\sqrt{d}, \quad dv = P^\top dO

The gradient of the bias is the sum of dS over windows, then over the pairs of tokens with the same offset. Each program
adds up the dS of its own windows in their order; a second kernel adds up the programs' sums in a fixed order. There are
no atomics, and the results are bitwise the same from run to run.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from resshift_fast.kernels.launch import launch
from resshift_fast.kernels.tuning import Config, Space, bucket

WINDOW_SIZES = range(4, 17)
HEAD_DIMS = (16, 32, 64)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)

LOG2_E = tl.constexpr(1.4426950408889634)  # the exponential is 2^(x log2 e), the instruction that there is
MASK_VALUE = tl.constexpr(-100.0 * 1.4426950408889634)

# Programs of the backward kernel: enough to fill a GPU, few enough for the sums of dS that each of them stores.
BACKWARD_PROGRAMS = {16: 1024, 32: 768, 64: 384, 128: 192, 256: 132}
SUM_ELEMENTS = 8192  # of the tile in which the programs' sums are added up: 32 a thread


def _num_tokens(window_size: int) -> int:
    """Tokens of a window, padded to the sizes that `tl.arange` and the matrix instructions take."""
    return max(triton.next_power_of_2(window_size**2), 16)


def _warps(b_t: int, head_dim: int, itemsize: int) -> int:
    """Warps that hold a small window; float32, without matrix instructions, needs more registers."""
    return {16: 1, 32: 2, 64: 4}[b_t] * (2 if head_dim == 64 and itemsize == 4 else 1)


def _in_one_kernel(b_t: int, head_dim: int) -> bool:
    """Whether registers hold a window's whole backward pass; else dk and dv have a kernel of their own."""
    return b_t <= 64 and b_t * head_dim <= 2048


def _forward_candidates(key: tuple) -> list[Config]:
    b_t, head_dim, itemsize, num_programs = key
    if b_t > 64 or (b_t == 64 and itemsize == 4):
        blocks = ((64, 64, 4), (64, 32, 4), (32, 32, 2)) if itemsize == 2 else ((64, 32, 8), (32, 32, 4))
        return [Config({"B_Q": b_q, "B_K": b_k, "WINDOWS": 1}, w, num_stages=1) for b_q, b_k, w in blocks]
    # A program's later windows find the bias in registers, but a GPU wants some hundred programs first.
    first = 1 if num_programs <= 1024 else 2 if num_programs <= 4096 else 4
    windows = sorted({1, first, 2 * first if first > 1 else 1}, key=lambda n: n != first)
    return [Config({"B_Q": b_t, "B_K": b_t, "WINDOWS": n}, _warps(b_t, head_dim, itemsize)) for n in windows]


def _backward_candidates(key: tuple) -> list[Config]:
    b_t, head_dim, itemsize = key
    if not _in_one_kernel(b_t, head_dim):
        warps = (8, 4) if itemsize == 2 or b_t == 64 else (16, 8)
        return [Config({"B_Q": 16}, w, num_stages=1) for w in warps]
    warps = 16 if b_t == 64 and itemsize == 4 else _warps(b_t, head_dim, itemsize) * (2 if b_t == 16 < head_dim else 1)
    return [Config({"B_Q": b_t}, w, num_stages=s) for w in (warps, max(warps // 2, 1)) for s in (1, 2)]


def _backward_kv_candidates(key: tuple) -> list[Config]:
    b_t, head_dim, itemsize = key
    blocks = ((32, 32, 2), (64, 64, 4)) if itemsize == 2 else ((16, 32, 8), (32, 32, 8))
    return [Config({"B_Q": b_q, "B_K": b_k}, w, num_stages=1) for b_q, b_k, w in blocks]


FORWARD = Space("window_attention_fwd_kernel", _forward_candidates, lambda _, k: _forward_candidates(k)[0])
BACKWARD = Space("window_attention_bwd_kernel", _backward_candidates, lambda _, k: _backward_candidates(k)[0])
BACKWARD_KV = Space(
    "window_attention_bwd_kv_kernel", _backward_kv_candidates, lambda _, k: _backward_kv_candidates(k)[0]
)


@triton.jit
def window_pixels(i_window, o_t, height, width, shift, WINDOW: tl.constexpr):
    """Pixels of the unshifted images that tokens `o_t` of a window are, int64; padding tokens are not on any."""
    # Windows are fewer than 2³¹, the grid's limit, and 32-bit division is much the cheaper.
    n_columns = width // WINDOW
    i_row_of_windows = i_window // n_columns
    n_rows = height // WINDOW
    b_row = (i_row_of_windows % n_rows) * WINDOW + o_t // WINDOW + shift
    b_column = (i_window % n_columns) * WINDOW + o_t % WINDOW + shift
    b_row = tl.where(b_row >= height, b_row - height, b_row)
    b_column = tl.where(b_column >= width, b_column - width, b_column)
    i_batch = (i_row_of_windows // n_rows).to(tl.int64)
    return (i_batch * height + b_row) * width + b_column


@triton.jit
def window_regions(i_window, o_t, height, width, shift, WINDOW: tl.constexpr, MASK: tl.constexpr):
    """Region of each token: those of other regions are masked."""
    n_columns = width // WINDOW
    n_rows = height // WINDOW
    is_bottom = (i_window // n_columns) % n_rows == n_rows - 1
    is_right = i_window % n_columns == n_columns - 1
    b_low = o_t // WINDOW >= WINDOW - shift
    b_far = o_t % WINDOW >= WINDOW - shift
    if MASK == "resshift":
        return (b_far & is_bottom).to(tl.int32)
    return (b_low & is_bottom).to(tl.int32) * 2 + (b_far & is_right).to(tl.int32)


@triton.jit
def relative_position_bias(p_table, o_q, o_k, i_head, HEADS: tl.constexpr, WINDOW: tl.constexpr):
    """Bias of queries `o_q` and keys `o_k` times log2 e, float32; −inf for the keys that only pad the block."""
    SPAN: tl.constexpr = 2 * WINDOW - 1
    TOKENS: tl.constexpr = WINDOW * WINDOW
    # Row (r_q − r_k + w − 1)(2w − 1) + c_q − c_k + w − 1 of the table is a difference of terms of one token each.
    b_q = o_q // WINDOW * SPAN + o_q % WINDOW + (WINDOW - 1) * (SPAN + 1)
    b_k = o_k // WINDOW * SPAN + o_k % WINDOW
    m_bias = (o_q < TOKENS)[:, None] & (o_k < TOKENS)[None, :]
    b_bias = tl.load(p_table + (b_q[:, None] - b_k[None, :]) * HEADS + i_head, mask=m_bias, other=0.0)
    b_bias = b_bias.to(tl.float32) * LOG2_E
    return tl.where((o_k < TOKENS)[None, :], b_bias, float("-inf"))


@triton.jit
def window_scores(b_q, b_k, b_bias, b_region_q, b_region_k, MASK: tl.constexpr, SCALE: tl.constexpr):
    """Scores with bias and mask times log2 e, float32."""
    b_s = tl.dot(b_q, tl.trans(b_k), input_precision="ieee") * (SCALE * LOG2_E) + b_bias
    if MASK is not None:
        b_s += tl.where(b_region_q[:, None] == b_region_k[None, :], 0.0, MASK_VALUE)
    return b_s


@triton.jit(do_not_specialize=["n_windows", "height", "width", "shift"])
def window_attention_fwd_kernel(
    p_qkv,  # [B, height, width, 3 · HEADS · HEAD_DIM], last dimension (q | k | v, head, head_dim)
    p_table,  # [(2 · WINDOW − 1)², HEADS]
    p_out,  # [B, height, width, HEADS · HEAD_DIM]
    n_windows,
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
    WINDOWS: tl.constexpr,
):
    CHANNELS: tl.constexpr = HEADS * HEAD_DIM
    TOKENS: tl.constexpr = WINDOW * WINDOW
    Q_BLOCKS: tl.constexpr = (TOKENS + B_Q - 1) // B_Q
    K_BLOCKS: tl.constexpr = (TOKENS + B_K - 1) // B_K
    SCALE: tl.constexpr = HEAD_DIM**-0.5
    i_head = tl.program_id(0) % HEADS  # neighbouring programs share the lines of the image
    i_q = tl.program_id(0) // HEADS % Q_BLOCKS
    i_first = tl.program_id(0) // (HEADS * Q_BLOCKS) * WINDOWS
    o_q = i_q * B_Q + tl.arange(0, B_Q)
    o_d = i_head * HEAD_DIM + tl.arange(0, HEAD_DIM)
    m_q = (o_q < TOKENS)[:, None]
    if K_BLOCKS == 1:
        b_bias = relative_position_bias(p_table, o_q, tl.arange(0, B_K), i_head, HEADS, WINDOW)

    for i in range(WINDOWS):
        # The last program may do its last window again, which costs less than a mask on all of them.
        i_window = tl.minimum(i_first + i, n_windows - 1)
        b_pixel_q = window_pixels(i_window, o_q, height, width, shift, WINDOW)
        b_region_q = window_regions(i_window, o_q, height, width, shift, WINDOW, MASK)
        b_q = tl.load(p_qkv + b_pixel_q[:, None] * (3 * CHANNELS) + o_d[None, :], mask=m_q, other=0.0)

        b_max = tl.full([B_Q], float("-inf"), tl.float32)
        b_sum = tl.zeros([B_Q], tl.float32)
        b_out = tl.zeros([B_Q, HEAD_DIM], tl.float32)
        for i_k in range(K_BLOCKS):
            o_k = i_k * B_K + tl.arange(0, B_K)
            m_k = (o_k < TOKENS)[:, None]
            b_pixel_k = window_pixels(i_window, o_k, height, width, shift, WINDOW)
            b_region_k = window_regions(i_window, o_k, height, width, shift, WINDOW, MASK)
            p_k = p_qkv + b_pixel_k[:, None] * (3 * CHANNELS) + o_d[None, :] + CHANNELS
            b_k = tl.load(p_k, mask=m_k, other=0.0)
            b_v = tl.load(p_k + CHANNELS, mask=m_k, other=0.0)
            if K_BLOCKS > 1:
                b_bias = relative_position_bias(p_table, o_q, o_k, i_head, HEADS, WINDOW)
            b_s = window_scores(b_q, b_k, b_bias, b_region_q, b_region_k, MASK, SCALE)
            b_before = b_max
            b_max = tl.maximum(b_before, tl.max(b_s, axis=1))
            b_p = tl.exp2(b_s - b_max[:, None])
            if K_BLOCKS > 1:  # what was added up so far moves to the new maximum
                b_decay = tl.exp2(b_before - b_max)
                b_sum = b_sum * b_decay
                b_out = b_out * b_decay[:, None]
            b_sum += tl.sum(b_p, axis=1)
            b_out += tl.dot(b_p.to(b_v.dtype), b_v, input_precision="ieee")

        p_o = p_out + b_pixel_q[:, None] * CHANNELS + o_d[None, :]
        tl.store(p_o, (b_out / b_sum[:, None]).to(p_out.dtype.element_ty), mask=m_q)


@triton.jit(do_not_specialize=["n_windows", "windows_each", "height", "width", "shift"])
def window_attention_bwd_kernel(
    p_dout,  # [B, height, width, HEADS · HEAD_DIM]
    p_qkv,  # [B, height, width, 3 · HEADS · HEAD_DIM], last dimension (q | k | v, head, head_dim)
    p_table,  # [(2 · WINDOW − 1)², HEADS]
    p_dqkv,  # like qkv; of q alone where p_rows is given
    p_dbias,  # [parts, HEADS, WINDOW², WINDOW²], float32: dS summed over a program's windows
    p_rows,  # [windows, HEADS, 3, WINDOW²], float32: of each query maximum, sum and delta, for the kernel of dk and dv
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
):
    CHANNELS: tl.constexpr = HEADS * HEAD_DIM
    TOKENS: tl.constexpr = WINDOW * WINDOW
    Q_BLOCKS: tl.constexpr = (TOKENS + B_Q - 1) // B_Q
    SCALE: tl.constexpr = HEAD_DIM**-0.5
    i_head = tl.program_id(0) % HEADS
    i_q = tl.program_id(0) // HEADS % Q_BLOCKS
    i_part = tl.program_id(0) // (HEADS * Q_BLOCKS)
    i_first = i_part * windows_each
    o_q = i_q * B_Q + tl.arange(0, B_Q)
    o_k = tl.arange(0, B_T)
    o_d = i_head * HEAD_DIM + tl.arange(0, HEAD_DIM)
    m_q = (o_q < TOKENS)[:, None]
    m_k = (o_k < TOKENS)[:, None]
    if p_rows is None:
        b_bias = relative_position_bias(p_table, o_q, o_k, i_head, HEADS, WINDOW)
    b_dbias = tl.zeros([B_Q, B_T], tl.float32)

    for i_window in range(i_first, tl.minimum(i_first + windows_each, n_windows)):
        b_pixel_q = window_pixels(i_window, o_q, height, width, shift, WINDOW)
        b_pixel_k = window_pixels(i_window, o_k, height, width, shift, WINDOW)
        b_region_q = window_regions(i_window, o_q, height, width, shift, WINDOW, MASK)
        b_region_k = window_regions(i_window, o_k, height, width, shift, WINDOW, MASK)
        b_offset_q = b_pixel_q[:, None] * (3 * CHANNELS) + o_d[None, :]
        b_offset_k = b_pixel_k[:, None] * (3 * CHANNELS) + o_d[None, :] + CHANNELS
        b_q = tl.load(p_qkv + b_offset_q, mask=m_q, other=0.0)
        b_k = tl.load(p_qkv + b_offset_k, mask=m_k, other=0.0)
        b_v = tl.load(p_qkv + b_offset_k + CHANNELS, mask=m_k, other=0.0)
        b_dout = tl.load(p_dout + b_pixel_q[:, None] * CHANNELS + o_d[None, :], mask=m_q, other=0.0)
        if p_rows is not None:
            b_bias = relative_position_bias(p_table, o_q, o_k, i_head, HEADS, WINDOW)

        b_s = window_scores(b_q, b_k, b_bias, b_region_q, b_region_k, MASK, SCALE)
        b_max = tl.max(b_s, axis=1)
        b_p = tl.exp2(b_s - b_max[:, None])
        b_sum = tl.sum(b_p, axis=1)
        b_p = b_p / b_sum[:, None]
        b_dp = tl.dot(b_dout, tl.trans(b_v), input_precision="ieee")
        b_delta = tl.sum(b_p * b_dp, axis=1)
        b_ds = b_p * (b_dp - b_delta[:, None])
        b_dbias += b_ds
        b_ds = (b_ds * SCALE).to(b_q.dtype)
        b_dq = tl.dot(b_ds, b_k, input_precision="ieee")
        tl.store(p_dqkv + b_offset_q, b_dq.to(p_dqkv.dtype.element_ty), mask=m_q)
        if p_rows is None:
            b_dk = tl.dot(tl.trans(b_ds), b_q, input_precision="ieee")
            tl.store(p_dqkv + b_offset_k, b_dk.to(p_dqkv.dtype.element_ty), mask=m_k)
            b_dv = tl.dot(tl.trans(b_p.to(b_v.dtype)), b_dout, input_precision="ieee")
            tl.store(p_dqkv + b_offset_k + CHANNELS, b_dv.to(p_dqkv.dtype.element_ty), mask=m_k)
        else:
            p_row = p_rows + (tl.cast(i_window, tl.int64) * HEADS + i_head) * (3 * TOKENS) + o_q
            tl.store(p_row, b_max, mask=o_q < TOKENS)
            tl.store(p_row + TOKENS, b_sum, mask=o_q < TOKENS)
            tl.store(p_row + 2 * TOKENS, b_delta, mask=o_q < TOKENS)

    p_sum = p_dbias + (i_part.to(tl.int64) * HEADS + i_head) * (TOKENS * TOKENS)
    tl.store(p_sum + o_q[:, None] * TOKENS + o_k[None, :], b_dbias, mask=m_q & (o_k < TOKENS)[None, :])


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


def unsupported(
    qkv: Tensor, bias_table: Tensor, num_heads: int, window_size: int, shift_size: int, mask: str
) -> str | None:
    """Why these kernels can't run a call, forward or backward; None if they can."""
    if qkv.dtype not in DTYPES:
        return f"{qkv.dtype} is not float32, float16 or bfloat16"
    head_dim = qkv.shape[3] // (3 * num_heads)
    if head_dim not in HEAD_DIMS:
        return f"head size {head_dim} is not 16, 32 or 64"
    if window_size not in WINDOW_SIZES:
        return f"window {window_size} is not 4 to 16"
    if qkv.dtype == torch.float32 and head_dim == 64 and window_size > 11:
        return f"float32 keys and values of window {window_size} and head size 64 exceed shared memory"
    return None


def _constants(qkv: Tensor, num_heads: int, window_size: int, shift_size: int, mask: str) -> dict:
    """What both kernels are compiled for."""
    return {
        "HEADS": num_heads,
        "HEAD_DIM": qkv.shape[3] // (3 * num_heads),
        "WINDOW": window_size,
        "MASK": mask if shift_size else None,
        "B_T": _num_tokens(window_size),
    }


def forward(qkv: Tensor, bias_table: Tensor, num_heads: int, window_size: int, shift_size: int, mask: str) -> Tensor:
    """Launch the forward kernel; returns [B, H, W, C], contiguous."""
    batch, height, width, channels3 = qkv.shape
    qkv, bias_table = qkv.contiguous(), bias_table.contiguous()
    out = qkv.new_empty(batch, height, width, channels3 // 3)
    constants = _constants(qkv, num_heads, window_size, shift_size, mask)
    n_windows = batch * (height // window_size) * (width // window_size)

    def start(config: Config) -> None:
        q_blocks = triton.cdiv(window_size**2, config.blocks["B_Q"])
        launch(
            window_attention_fwd_kernel,
            (triton.cdiv(n_windows, config.blocks["WINDOWS"]) * q_blocks * num_heads,),
            *(qkv, bias_table, out, n_windows, height, width, shift_size),
            passes={"p_qkv": (1 + 2 * q_blocks) / 3},
            **constants,
            **config.options,
        )

    key = (constants["B_T"], constants["HEAD_DIM"], qkv.element_size(), bucket(n_windows * num_heads))
    start(FORWARD.config(key, qkv.device, start))
    return out


def backward(
    dout: Tensor, qkv: Tensor, bias_table: Tensor, num_heads: int, window_size: int, shift_size: int, mask: str
) -> tuple[Tensor, Tensor]:
    """Launch the backward kernels; returns (dqkv like qkv, dbias_table float32)."""
    batch, height, width, _ = qkv.shape
    x, dout, bias_table = qkv.contiguous(), dout.contiguous(), bias_table.contiguous()
    constants = _constants(qkv, num_heads, window_size, shift_size, mask)
    num_tokens = window_size**2
    n_windows = batch * (height // window_size) * (width // window_size)
    # From the shape alone: another number of parts is another order of summation.
    windows_each = triton.cdiv(n_windows, max(BACKWARD_PROGRAMS[constants["B_T"]] // num_heads, 1))
    n_parts = triton.cdiv(n_windows, windows_each)
    dqkv = torch.empty_like(x)
    dbias = x.new_empty(n_parts, num_heads, num_tokens, num_tokens, dtype=torch.float32)
    alone = _in_one_kernel(constants["B_T"], constants["HEAD_DIM"])
    rows = None if alone else x.new_empty(n_windows, num_heads, 3, num_tokens, dtype=torch.float32)

    def start(config: Config) -> None:
        q_blocks = triton.cdiv(num_tokens, config.blocks["B_Q"])
        launch(
            window_attention_bwd_kernel,
            (n_parts * q_blocks * num_heads,),
            *(dout, x, bias_table, dqkv, dbias, rows, n_windows, windows_each, height, width, shift_size),
            passes={"p_qkv": (1 + 2 * q_blocks) / 3, "p_dqkv": 1 if alone else 1 / 3},
            **constants,
            **config.options,
        )

    def start_kv(config: Config) -> None:
        k_blocks = triton.cdiv(num_tokens, config.blocks["B_K"])
        launch(
            window_attention_bwd_kv_kernel,
            (n_windows * k_blocks * num_heads,),
            *(dout, x, bias_table, rows, dqkv, height, width, shift_size),
            passes={"p_dout": k_blocks, "p_qkv": (2 + k_blocks) / 3, "p_rows": k_blocks, "p_dqkv": 2 / 3},
            **constants,
            **config.options,
        )

    key = (constants["B_T"], constants["HEAD_DIM"], qkv.element_size())
    start(BACKWARD.config(key, qkv.device, start))
    if not alone:
        start_kv(BACKWARD_KV.config(key, qkv.device, start_kv))
    dtable = _sum_bias_gradient(dbias, window_size)
    return (dqkv if qkv.is_contiguous() else torch.empty_like(qkv).copy_(dqkv)), dtable


def _sum_bias_gradient(dbias: Tensor, window_size: int) -> Tensor:
    """Launch the kernel that adds up parts [parts, heads, w², w²]; returns [(2w − 1)², heads]."""
    n_parts, num_heads, *_ = dbias.shape
    span, b_w = 2 * window_size - 1, triton.next_power_of_2(window_size)
    dtable = dbias.new_empty(span**2, num_heads)
    launch(
        bias_table_bwd_kernel,
        (span * num_heads,),
        *(dbias, dtable, n_parts),
        HEADS=num_heads,
        WINDOW=window_size,
        B_P=max(SUM_ELEMENTS // b_w**3, 1),
        B_W=b_w,
        B_D=triton.next_power_of_2(span),
        num_warps=8,
    )
    return dtable
