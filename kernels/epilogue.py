"""What follows a product in a kernel: bias and residual are added before the only store."""

import triton
import triton.language as tl


@triton.jit
def add_bias(b_y, p_bias, o_n, m_n):
    """b_y [BLOCK_M, BLOCK_N], float32, plus the bias of its columns o_n, if p_bias is not None."""
    if p_bias is not None:
        b_y += tl.load(p_bias + o_n, mask=m_n, other=0.0).to(tl.float32)[None, :]
    return b_y


@triton.jit
def store_sum(b_y, p_y, p_bias, p_residual, o_y, o_n, m_y, m_n):
    """Add a bias and a residual like y, each of which may be None, and store; returns what is stored, as float32.

    Args:
        b_y: [BLOCK_M, BLOCK_N], float32. o_y, m_y: its offsets from p_y, and which of them exist.
        o_n, m_n: [BLOCK_N], its columns, and which of them exist.
    """
    b_y = add_bias(b_y, p_bias, o_n, m_n)
    if p_residual is not None:
        b_y += tl.load(p_residual + o_y, mask=m_y, other=0.0).to(tl.float32)
    b_stored = b_y.to(p_y.dtype.element_ty)
    tl.store(p_y + o_y, b_stored, mask=m_y)
    return b_stored.to(tl.float32)
