"""The CUDA kernels of window attention, executed on the CPU, against the formula in float64."""

import importlib

import pytest
import torch
from comparison import LIMITS, assert_close, name_of, relative_error
from emulation import SANITIZED, array, filled

formula = importlib.import_module("resshift_fast.ops.window_attention")

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# batch, rows and columns of windows, window, shift, mask, heads, head size. An 8 × 8 window is one tile of the matrix
# instructions; larger ones take several; 9, 11 and 13 fill the last one partly.
CASES = [
    (2, 1, 3, 8, 4, "resshift", 2, 32),
    (1, 3, 1, 8, 1, "swin", 1, 32),
    (1, 1, 1, 8, 0, "swin", 3, 32),
    (1, 2, 2, 8, 4, "swin", 1, 64),
    (1, 1, 2, 8, 7, "resshift", 1, 16),
    (2, 3, 1, 4, 2, "swin", 2, 16),
    (1, 1, 2, 4, 1, "resshift", 1, 64),
    (1, 1, 1, 5, 0, "resshift", 2, 32),
    (1, 2, 1, 7, 3, "swin", 1, 32),
    (1, 1, 1, 9, 4, "swin", 1, 64),
    (1, 1, 2, 11, 5, "resshift", 1, 16),
    (1, 1, 1, 12, 6, "swin", 1, 32),
    (1, 1, 1, 13, 1, "swin", 1, 16),
    (1, 1, 1, 16, 8, "swin", 1, 32),
]
# Every case in float32 and in one 16-bit dtype; both 16-bit dtypes share a kernel.
TYPED = [(case, dtype) for i, case in enumerate(CASES) for dtype in (torch.float32, DTYPES[1 + i % 2])]
ORDER_CASES = [CASES[0], CASES[5], CASES[9]]


def case_id(case) -> str:
    batch, rows, columns, window, shift, mask, heads, head_dim = case
    return f"B{batch}-{rows}x{columns}-window{window}-shift{shift}-{mask}-{heads}x{head_dim}"


def typed_id(value) -> str:
    return case_id(value) if isinstance(value, tuple) else name_of(value)


def tensors_of(case, dtype, table_dtype=None):
    """qkv with a mean, the bias table, and the gradient of the output."""
    batch, rows, columns, window, _, _, heads, head_dim = case
    generator = torch.Generator().manual_seed(window)

    def normal(*shape):
        return torch.randn(shape, generator=generator)

    image = (batch, rows * window, columns * window)
    qkv = (normal(*image, 3 * heads * head_dim) - 0.3).to(dtype)
    table = normal((2 * window - 1) ** 2, heads).to(table_dtype or dtype)
    return qkv, table, normal(*image, heads * head_dim).to(dtype)


def forward(emulated, case, qkv, table):
    window, shift, mask, heads = *case[3:6], case[6]
    out = filled(*qkv.shape[:3], qkv.shape[3] // 3, dtype=qkv.dtype)
    emulated.window_attention(array(qkv), array(table), heads, window, shift, mask == "swin", array(out))
    return out


def backward(emulated, case, dout, qkv, table):
    window, shift, mask, heads = *case[3:6], case[6]
    elements = emulated.window_attention_scratch(array(qkv), array(table), heads, window)
    dqkv = filled(*qkv.shape, dtype=qkv.dtype)
    dtable, scratch = filled(*table.shape, dtype=torch.float32), filled(elements, dtype=torch.float32)
    results = (array(dqkv), array(dtable), array(scratch))
    emulated.window_attention_backward(
        array(dout), array(qkv), array(table), heads, window, shift, mask == "swin", *results
    )
    return dqkv, dtable


def plain(case, qkv, table):
    window, shift, mask, heads = *case[3:6], case[6]
    return formula.reference(qkv, table, heads, window, shift, mask)


def plain_backward(case, dout, qkv, table):
    qkv, table = qkv.detach().requires_grad_(), table.detach().requires_grad_()
    return torch.autograd.grad(plain(case, qkv, table), (qkv, table), dout)


def check_gradients(emulated, case, dtype, table_dtype=None):
    qkv, table, dout = tensors_of(case, dtype, table_dtype)
    exact = plain_backward(case, *(x.double() for x in (dout, qkv, table)))
    theirs = plain_backward(case, dout, qkv, table.to(dtype))
    ours = backward(emulated, case, dout, qkv, table)
    for name, x, reference, other in zip(("dqkv", "dtable"), ours, exact, theirs, strict=True):
        assert_close(name, x, reference, allowed(dtype, other, reference))


def allowed(dtype, theirs, exact) -> float:
    """Largest relative error: 16-bit results may have twice the plain path's."""
    if dtype == torch.float32:
        return LIMITS[dtype]
    return min(LIMITS[dtype], 2 * relative_error(theirs, exact) + torch.finfo(dtype).eps / 8)


@pytest.mark.parametrize("case, dtype", TYPED, ids=typed_id)
def test_forward(emulated, case, dtype):
    qkv, table, _ = tensors_of(case, dtype)
    exact = plain(case, qkv.double(), table.double())
    assert_close("output", forward(emulated, case, qkv, table), exact, allowed(dtype, plain(case, qkv, table), exact))


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("case", ORDER_CASES, ids=case_id)
def test_forward_has_no_race(in_all_orders, emulated, case, dtype):
    qkv, table, _ = tensors_of(case, dtype)
    in_all_orders(lambda: forward(emulated, case, qkv, table))


@pytest.mark.parametrize("case, dtype", TYPED, ids=typed_id)
def test_backward(emulated, case, dtype):
    check_gradients(emulated, case, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("case", ORDER_CASES, ids=case_id)
def test_backward_has_no_race(in_all_orders, emulated, case, dtype):
    qkv, table, dout = tensors_of(case, dtype)
    in_all_orders(lambda: backward(emulated, case, dout, qkv, table))


@pytest.mark.parametrize("case", [CASES[1], CASES[7]], ids=case_id)
def test_float32_table(emulated, case):
    qkv, table, _ = tensors_of(case, torch.float16, torch.float32)
    exact = plain(case, qkv.double(), table.double())
    limit = allowed(torch.float16, plain(case, qkv, table.half()), exact)
    assert_close("output", forward(emulated, case, qkv, table), exact, limit)
    check_gradients(emulated, case, torch.float16, torch.float32)


@pytest.mark.slow
@pytest.mark.slow
def test_many_windows_in_a_block(emulated):
    """So many heads and windows that a block processes a second window, except the last block."""
    case = (1, 1, 33, 4, 2, "resshift", 32, 16)
    qkv, table, _ = tensors_of(case, torch.float16)
    exact = plain(case, qkv.double(), table.double())
    limit = allowed(torch.float16, plain(case, qkv, table), exact)
    assert_close("output", forward(emulated, case, qkv, table), exact, limit)
    check_gradients(emulated, case, torch.float16)


def test_large_scores_stay_finite(emulated):
    """The maximum of each row is subtracted, also if a later tile has a larger one."""
    case = (1, 1, 1, 16, 0, "swin", 1, 32)
    qkv, table, _ = tensors_of(case, torch.float32)
    qkv[..., :64] *= 12
    exact = plain(case, qkv.double(), table.double())
    assert_close("output", forward(emulated, case, qkv, table), exact, 1e-4)


@pytest.mark.parametrize(
    "window, head_dim, message", [(3, 32, "do not support"), (17, 32, "1 to 16 pixels wide"), (8, 48, "do not support")]
)
def test_unsupported_calls_are_refused(emulated, window, head_dim, message):
    case = (1, 1, 1, window, 0, "swin", 1, head_dim)
    qkv, table, _ = tensors_of(case, torch.float32)
    with pytest.raises(RuntimeError, match=message):
        forward(emulated, case, qkv, table)


@pytest.fixture
def bound(emulated_library):
    if SANITIZED:
        pytest.skip("the sanitizers check the kernels, not torch")
    return torch.ops.resshift_fast_cuda


BOUND_CASE = (2, 1, 2, 8, 4, "swin", 2, 32)


def test_tensors_in_other_layouts(bound):
    """Strided and misaligned tensors are copied, because kernels read 16 bytes at a time."""
    qkv, table, dout = tensors_of(BOUND_CASE, torch.float16)
    options = (2, 8, 4, 1)
    expected = (
        bound.window_attention(qkv, table, *options),
        *bound.window_attention_backward(dout, qkv, table, *options),
    )
    strided = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in (qkv, table, dout)]
    misaligned = [torch.cat([x.flatten()[:1], x.flatten()])[1:].view(x.shape) for x in (qkv, table, dout)]
    assert misaligned[0].data_ptr() % 16
    for x, t, dx in (strided, misaligned):
        ours = (bound.window_attention(x, t, *options), *bound.window_attention_backward(dx, x, t, *options))
        assert all(torch.equal(a, b) and a.is_contiguous() for a, b in zip(ours, expected, strict=True))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"qkv": torch.randn(16, 16, 192)}, r"\[B, H, W, 3C\] and not empty"),
        ({"qkv": torch.randn(0, 8, 16, 192)}, "not empty"),
        ({"qkv": torch.randn(2, 8, 16, 192).double()}, "qkv must be float32"),
        ({"qkv": torch.randn(2, 8, 15, 192)}, "not a multiple of the window"),
        ({"qkv": torch.randn(2, 8, 16, 288)}, "heads must be 16, 32 or 64 wide, got 48"),
        ({"bias_table": torch.randn(225, 3)}, r"bias_table must be \["),
        ({"bias_table": torch.randn(224, 2)}, r"bias_table must be \["),
        ({"bias_table": torch.randn(225, 2).half()}, "bias_table must be float32 or"),
        ({"num_heads": 0}, "multiple of 0 heads"),
        ({"num_heads": 2**32 + 2}, "heads"),
        ({"window_size": 17}, "4 to 16 pixels"),
        ({"window_size": 2**32 + 8}, "4 to 16 pixels"),
        ({"shift_size": 8}, "shift must be 0 to 7"),
        ({"shift_size": -1}, "shift must be 0 to 7"),
        ({"mask": 2}, "mask must be 0 or 1"),
        ({"dout": torch.randn(2, 8, 16, 63)}, "to match qkv"),
        ({"dout": torch.randn(2, 8, 16, 64).half()}, "dout must have qkv's dtype"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_calls_that_would_access_memory_out_of_bounds_are_refused(bound, changes, message):
    qkv, table, dout = tensors_of(BOUND_CASE, torch.float32)
    arguments = {"dout": dout, "qkv": qkv, "bias_table": table}
    arguments |= {"num_heads": 2, "window_size": 8, "shift_size": 4, "mask": 0} | changes
    with pytest.raises(RuntimeError, match=message):
        bound.window_attention_backward(**arguments)
    if "dout" not in changes:
        del arguments["dout"]
        with pytest.raises(RuntimeError, match=message):
            bound.window_attention(**arguments)
