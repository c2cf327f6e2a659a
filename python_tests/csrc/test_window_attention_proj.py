"""The CUDA kernel of window_attention_proj, executed on the CPU, against the formula in float64."""

import importlib

import pytest
import torch
from comparison import LIMITS, assert_close, name_of, relative_error
from emulation import SANITIZED, array, filled

from resshift_fast.backends import OPERATORS
from resshift_fast.ops import norm_stats

formula = importlib.import_module("resshift_fast.ops.window_attention_proj")

HEAD_DIM = 32
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
SMALLEST, LARGEST = 1 << 20, 1  # blocks that fill the GPU: tiles are the smallest, or the largest
# batch, rows and columns of windows, window, shift, mask, heads, output channels, groups of the next norm,
# bias, residual, blocks that fill the GPU. Larger windows than 8 × 8 take several tiles of keys; 9, 11 and 13 fill the
# last one partly. Output channels of one and several blocks, some no multiple of 16 bytes.
CASES = [
    (2, 1, 2, 8, 4, "resshift", 3, 96, 32, True, True, SMALLEST),
    (1, 2, 1, 8, 3, "swin", 2, 192, 32, True, True, LARGEST),
    (1, 1, 1, 8, 0, "swin", 1, 200, 8, False, True, 2),
    (1, 2, 1, 8, 4, "resshift", 2, 104, 13, True, False, 8),
    (1, 1, 2, 8, 1, "resshift", 2, 33, 3, True, True, SMALLEST),
    (1, 1, 1, 8, 7, "swin", 2, 40, 1, False, False, SMALLEST),
    (2, 2, 1, 4, 2, "swin", 1, 48, 2, True, True, SMALLEST),
    (1, 1, 2, 5, 0, "resshift", 2, 1, 1, True, False, LARGEST),
    (1, 1, 1, 9, 4, "swin", 1, 40, 40, True, True, LARGEST),
    (1, 1, 1, 13, 1, "swin", 1, 57, 19, False, True, 2),
    (1, 1, 1, 16, 8, "resshift", 2, 96, 6, True, True, LARGEST),
]
# Every case in float32 and in one 16-bit dtype; both 16-bit dtypes share a kernel.
TYPED = [(case, dtype) for i, case in enumerate(CASES) for dtype in (torch.float32, DTYPES[1 + i % 2])]
ORDER_CASES = [CASES[0], CASES[3], CASES[8]]


def case_id(case) -> str:
    text = "B{}-{}x{}-window{}-shift{}-{}-heads{}-O{}-G{}".format(*case)
    return text + "-bias" * case[9] + "-residual" * case[10] + f"-fill{case[11]}"


def typed_id(value) -> str:
    return case_id(value) if isinstance(value, tuple) else name_of(value)


def arguments_of(case, dtype, others=None):
    """The operator's arguments; the means of v and of the residual are far from 0."""
    batch, rows, columns, window, shift, mask, heads, out_channels, _, bias, residual, _ = case
    generator = torch.Generator().manual_seed(window)

    def normal(*shape):
        return torch.randn(shape, generator=generator)

    channels, image = heads * HEAD_DIM, (batch, rows * window, columns * window)
    qkv = normal(*image, 3 * channels)
    qkv[..., 2 * channels :] -= 2.3
    tensors = [
        normal((2 * window - 1) ** 2, heads),
        normal(out_channels, channels) / channels**0.5,
        normal(out_channels) if bias else None,
        normal(*image, out_channels) - 1.7 if residual else None,
    ]
    tensors = [x if x is None else x.to(others or dtype) for x in tensors]
    tensors[1] = tensors[1].to(dtype)  # as the bindings convert it
    return [qkv.to(dtype), *tensors, heads, window, shift, mask]


def double(arguments):
    return [x.double() if isinstance(x, torch.Tensor) else x for x in arguments]


def run(emulated, case, arguments, groups=0, eps=1e-6):
    """y, and with groups also the statistics."""
    qkv, table, weight, bias, residual, heads, window, shift, mask = arguments
    attention = emulated.Attention(array(qkv), array(table), heads, window, shift, mask == "swin")
    y = filled(*qkv.shape[:3], weight.shape[0], dtype=qkv.dtype)
    following = emulated.Next()
    counters = torch.zeros(qkv.shape[0], dtype=torch.int32)
    statistics = filled(qkv.shape[0], 2, groups, dtype=torch.float32)
    if groups:
        following = emulated.Next(groups, eps, array(counters), array(statistics))
    floats = emulated.window_attention_proj(
        attention, array(weight), array(bias), array(residual), array(y), following, case[-1]
    )
    assert (floats > 0) == (groups > 0) and not counters.any()
    return (y, statistics) if groups else y


def allowed(dtype, arguments, exact) -> float:
    """Largest relative error: 16-bit results may have twice the plain path's."""
    if dtype == torch.float32:
        return LIMITS[dtype]
    plain = formula.reference(*[x.to(dtype) if isinstance(x, torch.Tensor) else x for x in arguments])
    return min(LIMITS[dtype], 2 * relative_error(plain, exact) + torch.finfo(dtype).eps / 8)


def assert_statistics(statistics, y, groups, eps=1e-6):
    """The statistics are those of y as it was stored."""
    exact = norm_stats.reference(y.double().permute(0, 3, 1, 2), groups, eps)
    for name, ours, expected in zip(("mean", "rstd"), statistics.unbind(1), exact.unbind(1), strict=True):
        assert_close(name, ours, expected, 1e-5)


def test_other_heads_and_windows_are_left_to_other_backends(bound):
    texts = []
    for head_dim, window in ((HEAD_DIM, 8), (16, 8), (HEAD_DIM, 3)):
        qkv, weight = torch.empty(1, 24, 24, 6 * head_dim), torch.empty(1, 2 * head_dim)
        arguments = (qkv, torch.empty((2 * window - 1) ** 2, 2), weight, None, None, 2, window, 0, "swin")
        texts.append(OPERATORS["window_attention_proj"].loaders["cuda"]().unsupported(*arguments))
    assert texts == [None, "head size 16 is not 32", "window 3 is not 4 to 16"]


@pytest.mark.parametrize("case, dtype", TYPED, ids=typed_id)
def test_result_and_statistics(emulated, case, dtype):
    arguments, groups = arguments_of(case, dtype), case[8]
    exact = formula.reference(*double(arguments))
    y, statistics = run(emulated, case, arguments, groups)
    assert_close("y", y, exact, allowed(dtype, arguments, exact))
    assert_statistics(statistics, y, groups)
    assert torch.equal(run(emulated, case, arguments), y)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("case", ORDER_CASES, ids=case_id)
def test_there_is_no_race(in_all_orders, emulated, case, dtype):
    """Results are also the same whichever block of an image is the last."""
    arguments = arguments_of(case, dtype)
    in_all_orders(lambda: run(emulated, case, arguments, case[8]))


@pytest.mark.parametrize("case", [CASES[0], CASES[8]], ids=case_id)
def test_float32_tensors_with_16_bit_images(emulated, case):
    arguments = arguments_of(case, torch.bfloat16, torch.float32)
    exact = formula.reference(*double(arguments))
    y = run(emulated, case, arguments)
    assert_close("y", y, exact, allowed(torch.bfloat16, arguments, exact))


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_statistics_survive_a_mean_far_above_the_deviation(emulated, dtype):
    case = CASES[1]
    arguments = arguments_of(case, dtype)
    arguments[2], arguments[3] = 0.01 * arguments[2], 0.01 * arguments[3]
    arguments[4] = 0.1 * arguments[4] + (100 if dtype == torch.float32 else 16)
    y, statistics = run(emulated, case, arguments, 32)
    assert_statistics(statistics, y, 32)


@pytest.fixture
def bound(emulated_library):
    if SANITIZED:
        pytest.skip("the sanitizers check the kernels, not torch")
    return torch.ops.resshift_fast_cuda


NAMES = ("qkv", "bias_table", "weight", "bias", "residual", "num_heads", "window_size", "shift_size", "mask")


def bound_arguments():
    """Arguments of the operator with statistics, by name."""
    *arguments, _ = arguments_of(CASES[0], torch.float16)
    following = {"next_groups": 32, "next_eps": 1e-6, "counters": torch.zeros(2, dtype=torch.int32)}
    return dict(zip(NAMES, [*arguments, 0], strict=True)) | following


def test_tensors_in_other_layouts(bound):
    """Strided and misaligned tensors are copied, because kernels read 16 bytes at a time."""
    arguments = bound_arguments()
    expected = bound.window_attention_proj_statistics(**arguments)
    strided = {n: x.transpose(0, -1).contiguous().transpose(0, -1) for n, x in arguments.items() if n in NAMES[:5]}
    shifted = {n: torch.cat([x.flatten()[:1], x.flatten()])[1:].view(x.shape) for n, x in strided.items()}
    assert shifted["weight"].data_ptr() % 16
    for tensors in (strided, shifted, {"weight": arguments["weight"].float()}):
        ours = bound.window_attention_proj_statistics(**arguments | tensors)
        assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))
    assert not arguments["counters"].any()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"qkv": torch.randn(2, 8, 15, 288)}, "not a multiple of the window"),
        ({"qkv": torch.randn(16, 16, 288)}, r"\[B, H, W, 3C\]"),
        ({"num_heads": 1, "bias_table": torch.randn(225, 1)}, "heads must be 32 wide"),
        ({"window_size": 3}, "4 to 16 pixels"),
        ({"weight": torch.randn(96, 95)}, r"weight must be \[O, C\]"),
        ({"weight": torch.randn(96)}, r"weight must be \[O, C\]"),
        ({"weight": torch.randn(96, 96).double()}, "weight must be float32"),
        ({"bias": torch.randn(95)}, r"bias must be \[O\]"),
        ({"bias": torch.randn(96).bfloat16()}, "bias must be float32 or"),
        ({"residual": torch.randn(2, 8, 16, 95)}, "residual must have y's shape"),
        ({"residual": torch.randn(2, 8, 16, 96).double()}, "residual must be float32"),
        ({"next_groups": 5}, "do not divide into 5 groups"),
        ({"next_groups": 0}, "next_groups must be positive"),
        ({"counters": torch.zeros(1, dtype=torch.int32)}, "counters has 1 elements"),
        ({"counters": torch.zeros(2)}, "counters has another dtype"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_calls_that_would_access_memory_out_of_bounds_are_refused(bound, changes, message):
    with pytest.raises(RuntimeError, match=message):
        bound.window_attention_proj_statistics(**bound_arguments() | changes)
