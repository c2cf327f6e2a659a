"""The epilogue of a product against float64: bias, residual, and what is stored."""

import pytest
import torch
import triton
import triton.language as tl
from comparison import LIMITS, assert_close, name_of
from golden_data import array
from interpreter import DTYPES

from resshift_fast.kernels.epilogue import add_bias, store_sum
from resshift_fast.kernels.launch import Start


@triton.jit
def sum_kernel(
    p_x,  # [ROWS, C]
    p_first,  # [C] or None
    p_bias,  # [C] or None
    p_residual,  # [ROWS, C] or None
    p_y,  # [ROWS, C]
    p_stored,  # [ROWS, C], float32
    ROWS: tl.constexpr,
    C: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    o_m, o_n = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N)
    m_n = o_n < C
    m_y = (o_m < ROWS)[:, None] & m_n[None, :]
    o_y = o_m[:, None] * C + o_n[None, :]
    b_y = tl.load(p_x + o_y, mask=m_y, other=0.0).to(tl.float32)
    b_y = add_bias(b_y, p_first, o_n, m_n)
    b_y = store_sum(b_y, p_y, p_bias, p_residual, o_y, o_n, m_y, m_n)
    tl.store(p_stored + o_y, b_y, mask=m_y)


@pytest.mark.parametrize("given", ["", "first", "bias", "residual", "first bias residual"], ids=lambda x: x or "none")
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_what_is_given_is_added_and_rounded_once(dtype, given, device):
    shape = rows, channels = 5, 11
    x = (array("epilogue.x", *shape) - 2.3).to(dtype).to(device)
    named = {"first": array("epilogue.first", channels), "bias": array("epilogue.bias", channels)}
    named["residual"] = array("epilogue.residual", *shape) + 1.7
    added = {name: t.to(dtype).to(device) if name in given else None for name, t in named.items()}
    y = torch.full(shape, torch.nan, dtype=dtype, device=device)
    stored = torch.full(shape, torch.nan, device=device)
    start = Start(sum_kernel, (1,), ROWS=rows, C=channels, BLOCK_M=8, BLOCK_N=16)
    start(x, *added.values(), y, stored)
    exact = sum((t.double() for t in added.values() if t is not None), x.double())
    assert_close("y", y, exact, LIMITS[dtype])
    assert torch.equal(stored, y.float())
