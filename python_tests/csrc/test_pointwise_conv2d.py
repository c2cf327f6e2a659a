"""The CUDA kernel of pointwise_conv2d, executed on the CPU, against float64."""

import importlib
import re
from pathlib import Path

import pytest
import torch
from comparison import LIMITS, assert_close, name_of, relative_error
from emulation import ROOT, SANITIZED, array, filled

from resshift_fast.ops import norm_stats

formula = importlib.import_module("resshift_fast.ops.pointwise_conv2d")

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
SMALLEST, LARGEST = 1 << 20, 1  # blocks that fill the GPU: tiles are the smallest, or the largest
# batch, height, width, channels, output channels, groups before and after, bias, residual, blocks that fill the GPU.
# Channels of one and several tiles, whole 16-byte words and not; pixels that fill the last tile partly.
CASES = [
    (2, 9, 7, 96, 40, 32, 8, True, True, SMALLEST),
    (1, 13, 11, 192, 72, 32, 0, True, True, LARGEST),
    (2, 5, 3, 64, 160, 0, 32, True, True, 8),
    (1, 9, 8, 33, 65, 3, 13, True, True, LARGEST),
    (2, 4, 3, 12, 10, 0, 1, False, False, SMALLEST),
    (3, 7, 5, 20, 96, 4, 96, False, True, LARGEST),
    (2, 3, 5, 3, 1, 1, 1, True, False, SMALLEST),
    (1, 17, 9, 130, 128, 0, 0, False, True, LARGEST),
]
# Every case in float32 and in one 16-bit dtype; both 16-bit dtypes share a kernel.
TYPED = [(case, dtype) for i, case in enumerate(CASES) for dtype in (torch.float32, DTYPES[1 + i % 2])]
X, WEIGHT, BIAS, RESIDUAL, GROUPS, NORM_WEIGHT, NORM_BIAS, EPS, STATISTICS = range(9)  # indices of arguments


def case_id(case) -> str:
    text = "B{}-H{}-W{}-C{}-O{}-G{}-next{}".format(*case)
    return text + "-bias" * case[7] + "-residual" * case[8] + f"-fill{case[9]}"


def typed_id(value) -> str:
    return case_id(value) if isinstance(value, tuple) else name_of(value)


def channels_last(x):
    return x.contiguous(memory_format=torch.channels_last)


def arguments_of(case, dtype, others=None, mean=-2.3):
    """The operator's arguments; the means of x and of the residual are far from 0."""
    batch, height, width, channels, out_channels, groups, _, bias, residual, _ = case
    generator = torch.Generator().manual_seed(channels)

    def normal(*shape):
        return torch.randn(shape, generator=generator)

    x = channels_last((normal(batch, channels, height, width) + mean).to(dtype))
    tensors = [
        normal(out_channels, channels) / channels**0.5,
        normal(out_channels) if bias else None,
        channels_last(normal(batch, out_channels, height, width) - 1.7) if residual else None,
        *((normal(channels), normal(channels)) if groups else (None, None)),
    ]
    weight, bias, residual, *norm = [t if t is None else t.to(others or dtype) for t in tensors]
    statistics = norm_stats.reference(x, groups, 1e-5) if groups else None
    return [x, weight.to(dtype), bias, residual, groups, *norm, 1e-5, statistics]


def double(arguments):
    return [x.double() if isinstance(x, torch.Tensor) else x for x in arguments]


def run(emulated, case, arguments, groups=0, eps=1e-6):
    """y, and with groups also the statistics."""
    x, weight, bias, residual, *_ = arguments
    norm = emulated.Norm()
    if arguments[GROUPS]:
        tensors = [arguments[i] for i in (NORM_WEIGHT, NORM_BIAS, STATISTICS)]
        norm = emulated.Norm(arguments[GROUPS], *map(array, tensors))
    size = (x.shape[0], weight.shape[0], *x.shape[2:])
    y = filled(*size, dtype=x.dtype, memory_format=torch.channels_last)
    following, counters = emulated.Next(), torch.zeros(x.shape[0], dtype=torch.int32)
    statistics = filled(x.shape[0], 2, groups, dtype=torch.float32)
    if groups:
        following = emulated.Next(groups, eps, array(counters), array(statistics))
    tensors = map(array, (x, weight, bias, residual))
    floats = emulated.pointwise_conv2d(*tensors, norm, array(y), following, case[-1])
    assert (floats > 0) == (groups > 0) and not counters.any()
    return (y, statistics) if groups else y


def allowed(dtype, arguments, exact) -> float:
    """Largest relative error: 16-bit results may have twice the plain path's."""
    if dtype == torch.float32:
        return LIMITS[dtype]
    return min(LIMITS[dtype], 2 * relative_error(formula.reference(*arguments), exact) + torch.finfo(dtype).eps / 8)


def assert_statistics(statistics, x, groups, eps=1e-6):
    exact = norm_stats.reference(x.double(), groups, eps)
    for name, ours, expected in zip(("mean", "rstd"), statistics.unbind(1), exact.unbind(1), strict=True):
        assert_close(name, ours, expected, 1e-5)


@pytest.mark.parametrize("case, dtype", TYPED, ids=typed_id)
def test_result_and_statistics(emulated, case, dtype):
    arguments, groups = arguments_of(case, dtype), case[6]
    exact = formula.reference(*double(arguments))
    y = run(emulated, case, arguments)
    assert_close("y", y, exact, allowed(dtype, arguments, exact))
    if groups:
        again, statistics = run(emulated, case, arguments, groups)
        assert torch.equal(again, y)
        assert_statistics(statistics, y, groups)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("case", [CASES[0], CASES[3]], ids=case_id)
def test_there_is_no_race(in_all_orders, emulated, case, dtype):
    """Results are also the same whichever block of an image is the last."""
    arguments = arguments_of(case, dtype)
    in_all_orders(lambda: run(emulated, case, arguments, case[6]))


def test_float32_tensors_with_16_bit_images(emulated):
    arguments = arguments_of(CASES[0], torch.bfloat16, torch.float32)
    exact = formula.reference(*double(arguments))
    assert_close("y", run(emulated, CASES[0], arguments), exact, allowed(torch.bfloat16, arguments, exact))


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_means_far_above_the_deviation(emulated, dtype):
    """Neither the normalization of x nor the statistics of y lose their digits."""
    far = 100 if dtype == torch.float32 else 16
    case = CASES[0]
    arguments = arguments_of(case, dtype, mean=far)
    arguments[RESIDUAL] = channels_last(0.1 * arguments[RESIDUAL] + far)
    arguments[WEIGHT] = 0.1 * arguments[WEIGHT]
    exact = formula.reference(*double(arguments))
    y, statistics = run(emulated, case, arguments, 8)
    assert_close("y", y, exact, allowed(dtype, arguments, exact))
    assert_statistics(statistics, y, 8)


@pytest.fixture
def bound(emulated_library):
    if SANITIZED:
        pytest.skip("the sanitizers check the kernels, not torch")
    return torch.ops.resshift_fast_cuda


NAMES = "x", "weight", "bias", "residual", "num_groups", "norm_weight", "norm_bias", "eps", "statistics"


def bound_arguments():
    """Arguments of the operator with statistics, by name."""
    following = {"next_groups": 8, "next_eps": 1e-6, "counters": torch.zeros(2, dtype=torch.int32)}
    return dict(zip(NAMES, arguments_of(CASES[0], torch.float16), strict=True)) | following


def test_tensors_in_other_layouts(bound):
    """Strided and misaligned tensors are copied, because kernels read 16 bytes at a time."""
    arguments = bound_arguments()
    expected = bound.pointwise_conv2d_statistics(**arguments)
    images = {name: arguments[name] for name in ("x", "residual")}
    contiguous = {name: x.contiguous() for name, x in images.items()}
    shifted = {
        name: torch.cat([x.flatten()[:1], x.permute(0, 2, 3, 1).flatten()])[1:]
        .view(x.permute(0, 2, 3, 1).shape)
        .permute(0, 3, 1, 2)
        for name, x in images.items()
    }
    assert shifted["x"].data_ptr() % 16
    for tensors in (contiguous, shifted, {"weight": arguments["weight"].float()}):
        ours = bound.pointwise_conv2d_statistics(**arguments | tensors)
        assert ours[0].is_contiguous(memory_format=torch.channels_last)
        assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))
    assert not arguments["counters"].any()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"x": torch.randn(2, 96, 9)}, r"\[B, C, H, W\]"),
        ({"x": torch.randn(0, 96, 9, 7)}, "not empty"),
        ({"x": torch.randn(2, 96, 9, 7).double()}, "must be float32"),
        ({"weight": torch.randn(40, 95)}, r"weight must be \[O, C\]"),
        ({"weight": torch.randn(40)}, r"weight must be \[O, C\]"),
        ({"bias": torch.randn(41)}, r"bias must be \[O\]"),
        ({"residual": torch.randn(2, 40, 9, 6)}, "residual must have y's shape"),
        ({"residual": torch.randn(40, 9, 7)}, "residual must have 4 dimensions"),
        ({"num_groups": 5}, "do not divide into 5 groups"),
        ({"num_groups": -1}, "must not be negative"),
        ({"norm_weight": None}, "needs norm_weight"),
        ({"norm_bias": torch.randn(95)}, r"norm_bias must be \[C\]"),
        ({"statistics": None}, "needs statistics"),
        ({"statistics": torch.randn(2, 2, 31)}, r"statistics must be \[B, 2, groups\]"),
        ({"statistics": torch.randn(2, 2, 32).half()}, "statistics must be float32"),
        ({"next_groups": 3}, "do not divide into 3 groups"),
        ({"counters": torch.zeros(1, dtype=torch.int32)}, "counters has 1 elements"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_calls_that_would_access_memory_out_of_bounds_are_refused(bound, changes, message):
    with pytest.raises(RuntimeError, match=message):
        bound.pointwise_conv2d_statistics(**bound_arguments() | changes)


def test_constants_are_those_of_python():
    text = Path(ROOT, "csrc/cuda/pointwise_conv2d.h").read_text()
    constants = {name: int(value) for name, value in re.findall(r"constexpr .* (k\w+) = (\d+);", text)}
    triton = Path(ROOT, "kernels/pointwise_conv2d.py").read_text()
    programs = re.search(r"^PROGRAMS = (\d+)", triton, re.MULTILINE)
    assert constants == {"kMostNormalized": formula.MOST_NORMALIZED, "kPointwiseFill": int(programs[1])}
