"""Triton kernel for `window_attention`.

A program takes one head of one window at a time: its tokens are read from and written to the channels-last image at
their shifted addresses, so that no rolled, partitioned, masked or transposed tensor exists. Windows of up to 8 × 8, in
float32 of up to 5 × 5, are one block; larger ones are divided into blocks of queries, each of which iterates over
blocks of keys and rescales its sums as the maximum grows. The bias is read from its small table; where the window is
one block it stays in registers while the program iterates over several windows.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from resshift_fast.kernels.dependents import wait_for_previous
from resshift_fast.kernels.launch import Start
from resshift_fast.kernels.plans import planned
from resshift_fast.kernels.tuning import Config, Space, bucket
from resshift_fast.kernels.window_attention_backward import backward, unsupported_backward
from resshift_fast.kernels.window_attention_tiles import (
    ALL_REGISTERS,
    constants_of,
    num_windows,
    relative_position_bias,
    small_warps,
    unsupported,
    window_pixels,
    window_values,
)

__all__ = ["backward", "forward", "unsupported", "unsupported_backward"]


def _candidates(key: tuple) -> list[Config]:
    b_t, head_dim, itemsize, num_programs = key
    if b_t > 64 or (b_t == 64 and itemsize == 4):
        if itemsize == 2:
            blocks = ((64, 64, 4), (64, 32, 4), (32, 32, 2)) if head_dim > 16 else ((64, 32, 4), (32, 32, 2))
        else:
            blocks = ((64, 32, 8), (32, 32, 8)) if head_dim == 64 else ((32, 32, 4), (64, 32, 8))
        return [
            Config({"B_Q": b_q, "B_K": b_k, "WINDOWS": 1} | ALL_REGISTERS, w, num_stages=1) for b_q, b_k, w in blocks
        ]
    # All but the first window of a program find the bias in registers, but a GPU needs some hundred programs.
    first = 1 if num_programs <= 1024 else 2 if num_programs <= 4096 else 4
    windows = sorted({1, first, 2 * first if first > 1 else 1}, key=lambda n: n != first)
    return [Config({"B_Q": b_t, "B_K": b_t, "WINDOWS": n}, small_warps(b_t, head_dim, itemsize)) for n in windows]


FORWARD = Space("window_attention_fwd_kernel", _candidates, lambda _, key: _candidates(key)[0])


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
    wait_for_previous()
    TOKENS: tl.constexpr = WINDOW * WINDOW
    Q_BLOCKS: tl.constexpr = (TOKENS + B_Q - 1) // B_Q
    i_head = tl.program_id(0) % HEADS  # adjacent programs share the cache lines of the image
    i_q = tl.program_id(0) // HEADS % Q_BLOCKS
    i_first = tl.program_id(0) // (HEADS * Q_BLOCKS) * WINDOWS
    o_q = i_q * B_Q + tl.arange(0, B_Q)
    o_d = i_head * HEAD_DIM + tl.arange(0, HEAD_DIM)
    m_q = (o_q < TOKENS)[:, None]
    b_bias = 0.0
    if B_K >= TOKENS:
        b_bias = relative_position_bias(p_table, o_q, tl.arange(0, B_K), i_head, HEADS, WINDOW)

    for i in range(WINDOWS):
        # The last program may do its last window again, which costs less than a mask on all of them.
        i_window = tl.minimum(i_first + i, n_windows - 1)
        b_pixel = window_pixels(i_window, o_q, height, width, shift, WINDOW)
        b_out = window_values(
            p_qkv, p_table, b_pixel, b_bias, o_q, i_window, i_head, height, width, shift,
            HEADS, HEAD_DIM, WINDOW, MASK, B_Q, B_K,
        )  # fmt: skip
        p_o = p_out + b_pixel[:, None] * (HEADS * HEAD_DIM) + o_d[None, :]
        tl.store(p_o, b_out.to(p_out.dtype.element_ty), mask=m_q)


def _bucket(shape: tuple[int, ...], dtype: torch.dtype, num_heads: int, window_size: int, *_: object) -> tuple:
    constants = constants_of(shape, num_heads, window_size, 0, "")
    programs = bucket(num_windows(shape, window_size) * num_heads)
    return constants["B_T"], constants["HEAD_DIM"], dtype.itemsize, programs


@planned(FORWARD, _bucket)
def _forward(
    config: Config,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    num_heads: int,
    window_size: int,
    shift_size: int,
    mask: str,
) -> Start:
    """Plan of the forward kernel for qkv of this shape."""
    _, height, width, _ = shape
    n_windows = num_windows(shape, window_size)
    q_blocks = triton.cdiv(window_size**2, config.blocks["B_Q"])
    return Start(
        window_attention_fwd_kernel,
        (triton.cdiv(n_windows, config.blocks["WINDOWS"]) * q_blocks * num_heads,),
        *(n_windows, height, width, shift_size),
        passes={"p_qkv": (1 + 2 * q_blocks) / 3},
        **constants_of(shape, num_heads, window_size, shift_size, mask),
        **config.options,
    )


def forward(qkv: Tensor, bias_table: Tensor, num_heads: int, window_size: int, shift_size: int, mask: str) -> Tensor:
    """Launch the forward kernel; returns [B, H, W, C], contiguous."""
    shape = qkv.shape
    qkv, bias_table = qkv.contiguous(), bias_table.contiguous()
    out = qkv.new_empty(*shape[:3], shape[3] // 3)

    def run(start: Start) -> tuple[Tensor]:
        start(qkv, bias_table, out)
        return (out,)

    run(_forward(qkv.device, shape, qkv.dtype, num_heads, window_size, shift_size, mask, trial=run))
    return out
