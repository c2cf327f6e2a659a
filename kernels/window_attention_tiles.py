"""What the kernels of `window_attention` share: the tokens of a shifted window, their bias and their scores.

Tokens are addressed in the unshifted image, so that no rolled, partitioned, masked or transposed tensor exists. The
bias is read from its small table.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

WINDOW_SIZES = range(4, 17)
HEAD_DIMS = (16, 32, 64)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)

# Options of `Start` for up to 8 warps. Without a limit the assembler spills a few of a thread's registers where that
# makes room for one more program on a multiprocessor.
ALL_REGISTERS = {"maxnreg": 255}

LOG2_E = tl.constexpr(1.4426950408889634)  # e^x is computed as 2^(x log2 e), because the hardware has exp2
MASK_VALUE = tl.constexpr(-100.0 * 1.4426950408889634)


@triton.jit
def window_pixels(i_window, o_t, height, width, shift, WINDOW: tl.constexpr):
    """Indices in the unshifted images of the pixels of tokens `o_t`, int64; those of padding tokens are invalid."""
    # Windows are fewer than 2³¹, the grid's limit, and 32-bit division is much cheaper than 64-bit.
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
    """Region of each token; tokens of different regions are masked from one another."""
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
    """Bias of queries `o_q` and keys `o_k` times log2 e, float32; −inf for padding keys."""
    SPAN: tl.constexpr = 2 * WINDOW - 1
    TOKENS: tl.constexpr = WINDOW * WINDOW
    # Row (r_q − r_k + w − 1)(2w − 1) + c_q − c_k + w − 1 of the table is a term of the query minus one of the key.
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


@triton.jit
def window_values(
    p_qkv,
    p_table,
    b_pixel_q,
    b_bias,
    o_q,
    i_window,
    i_head,
    height,
    width,
    shift,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    WINDOW: tl.constexpr,
    MASK: tl.constexpr,
    B_Q: tl.constexpr,
    B_K: tl.constexpr,
):
    """softmax(scores) v of queries `o_q` in one head of one window, float32 [B_Q, HEAD_DIM].

    `b_pixel_q` are their pixels. `b_bias` is their bias if the window is one block of keys; of larger windows, which
    iterate over blocks of keys and rescale the sums as the maximum grows, it is read here block by block.
    """
    CHANNELS: tl.constexpr = HEADS * HEAD_DIM
    TOKENS: tl.constexpr = WINDOW * WINDOW
    K_BLOCKS: tl.constexpr = (TOKENS + B_K - 1) // B_K
    SCALE: tl.constexpr = HEAD_DIM**-0.5
    o_d = i_head * HEAD_DIM + tl.arange(0, HEAD_DIM)
    b_region_q = window_regions(i_window, o_q, height, width, shift, WINDOW, MASK)
    p_q = p_qkv + b_pixel_q[:, None] * (3 * CHANNELS) + o_d[None, :]
    b_q = tl.load(p_q, mask=(o_q < TOKENS)[:, None], other=0.0)

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
        b_block = b_bias
        if K_BLOCKS > 1:
            b_block = relative_position_bias(p_table, o_q, o_k, i_head, HEADS, WINDOW)
        b_s = window_scores(b_q, b_k, b_block, b_region_q, b_region_k, MASK, SCALE)
        b_before = b_max
        b_max = tl.maximum(b_before, tl.max(b_s, axis=1))
        b_p = tl.exp2(b_s - b_max[:, None])
        if K_BLOCKS > 1:  # rescale the sums so far to the new maximum
            b_decay = tl.exp2(b_before - b_max)
            b_sum = b_sum * b_decay
            b_out = b_out * b_decay[:, None]
        b_sum += tl.sum(b_p, axis=1)
        b_out += tl.dot(b_p.to(b_v.dtype), b_v, input_precision="ieee")
    return b_out / b_sum[:, None]


def small_warps(b_t: int, head_dim: int, itemsize: int) -> int:
    """Warps for a small window; float32, which has no matrix instruction, needs more registers."""
    return {16: 1, 32: 2, 64: 4}[b_t] * (2 if head_dim == 64 and itemsize == 4 else 1)


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
    return None


def constants_of(shape: tuple[int, ...], num_heads: int, window_size: int, shift_size: int, mask: str) -> dict:
    """Constants of the kernels for qkv of this shape."""
    return {
        "HEADS": num_heads,
        "HEAD_DIM": shape[3] // (3 * num_heads),
        "WINDOW": window_size,
        "MASK": mask if shift_size else None,
        "B_T": max(triton.next_power_of_2(window_size**2), 16),
    }


def num_windows(shape: tuple[int, ...], window_size: int) -> int:
    """Windows of qkv of this shape."""
    return shape[0] * (shape[1] // window_size) * (shape[2] // window_size)
