"""The C++ kernels of pointwise_conv2d, swin_mlp and spatial_attention: instruction sets, threads, invalid arguments."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib import import_module

import pytest
import torch
from comparison import LargestTensor, assert_close, check_operator, name_of
from pairwise import ISAS, pairwise

from python_tests.ops import test_pointwise_conv2d as pointwise
from python_tests.ops import test_spatial_attention as spatial
from python_tests.ops import test_swin_mlp as mlp
from resshift_fast import use_backend
from resshift_fast.backends import chosen, unavailable
from resshift_fast.ops import spatial_attention, swin_mlp
from resshift_fast.ops.pointwise_conv2d import pointwise_conv2d

pytestmark = [
    pytest.mark.skipif(bool(unavailable("cpu")), reason=f"the cpu backend {unavailable('cpu')}"),
    pytest.mark.usefixtures("poisoned_empty", "native"),
]

CONVOLUTIONS = [  # B, C, groups, O, H, W, bias, residual
    (1, 1, 0, 1, 1, 1, True, True),
    (2, 33, 11, 47, 9, 13, True, True),
    (1, 7, 0, 5, 1, 4, False, False),
    (3, 64, 32, 96, 5, 7, True, False),
    (2, 1025, 5, 31, 3, 5, False, True),
    (1, 512, 0, 16, 10, 11, False, False),
    (1, 1024, 0, 40, 3, 3, True, False),
    (2, 192, 32, 576, 8, 8, True, False),
]
LAYERS = [(1, 1, 1, 1, 3, 2), (2, 33, 11, 47, 9, 13), (3, 64, 32, 96, 5, 7), (1, 48, 16, 192, 16, 17)]
ATTENTIONS = [(1, 1, 1, 2), (2, 33, 19, 17), (1, 100, 7, 9), (3, 512, 5, 5), (1, 32, 24, 33)]


@pytest.fixture(scope="module")
def native():
    with use_backend("cpu"):
        yield


def case_of(operator: str, size: tuple):
    """(operator, plain PyTorch path, formula, tensors) for a row of the tables above."""
    if operator == "pointwise_conv2d":
        batch, channels, groups, out, height, width, bias, residual = size
        sides = batch, channels, out, height, width
        tensors = pointwise.inputs(*sides, norm=groups > 0, bias=bias, residual=residual)
        functions = (partial(f, num_groups=groups) for f in (pointwise_conv2d, pointwise.plain, pointwise.exact))
        return *functions, tensors
    if operator == "swin_mlp":
        batch, channels, groups, hidden, height, width = size
        functions = (partial(f, num_groups=groups) for f in (swin_mlp, mlp.plain, mlp.exact))
        return *functions, mlp.inputs(batch, channels, hidden, height, width)
    return spatial_attention, spatial.reference, spatial.exact, spatial.inputs(*size)


def channels_last(tensors: dict, dtype: torch.dtype = torch.float32) -> dict:
    """The tensors in a dtype, images channels-last."""
    tensors = {name: x.to(dtype) for name, x in tensors.items()}
    images = {n: x.contiguous(memory_format=torch.channels_last) for n, x in tensors.items() if x.dim() == 4}
    return tensors | images


CASES = [("pointwise_conv2d", size) for size in CONVOLUTIONS]
CASES += [("swin_mlp", size) for size in LAYERS] + [("spatial_attention", size) for size in ATTENTIONS]
IDS = [f"{operator}-{'x'.join(str(int(n)) for n in size)}" for operator, size in CASES]
LARGE = [
    ("pointwise_conv2d", (1, 192, 32, 576, 20, 21, True, True)),
    ("pointwise_conv2d", (2, 160, 0, 192, 8, 7, True, False)),
    ("swin_mlp", (1, 192, 32, 768, 20, 21)),
    ("swin_mlp", (1, 192, 32, 768, 8, 8)),
    ("spatial_attention", (2, 64, 24, 25)),
]
LARGE_IDS = [f"{operator}-{'x'.join(str(int(n)) for n in size)}" for operator, size in LARGE]


@pairwise(case=dict(zip(IDS, CASES, strict=True)), dtype=[torch.float32, torch.bfloat16, torch.float16], isa=ISAS)
def test_every_instruction_set_matches_float64(case, dtype, isa):
    *functions, tensors = case_of(*case)
    check_operator(*functions, channels_last(tensors), dtype)


@pairwise(case=dict(zip(LARGE_IDS[:4], LARGE, strict=False)), dtype=[torch.float16, torch.bfloat16], isa=ISAS)
def test_float32_parameters_with_16_bit_images(case, dtype, isa):
    ours, _plain, exact, tensors = case_of(*case)
    tensors = channels_last(tensors)
    tensors["x"] = tensors["x"].to(dtype)
    expected = exact(**{name: x.double() for name, x in tensors.items()})
    error = torch.finfo(dtype).eps
    assert_close("output", ours(**tensors), expected, error)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=name_of)
@pytest.mark.parametrize("operator, size", LARGE, ids=LARGE_IDS)
def test_results_are_bitwise_equal_with_any_number_of_threads(operator, size, dtype):
    ours, _, _, tensors = case_of(operator, size)
    tensors = channels_last(tensors, dtype)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 1, 2, 3, 7):
            torch.set_num_threads(threads)
            results.append(ours(**tensors))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(results[0], other) for other in results[1:])


@pytest.mark.parametrize("operator, size", LARGE, ids=LARGE_IDS)
def test_several_threads_may_call_at_once(operator, size):
    ours, _, _, tensors = case_of(operator, size)
    first = "q" if operator == "spatial_attention" else "x"
    calls = [tensors | {first: tensors[first] * (i + 1) / 8} for i in range(8)]
    expected = [ours(**call) for call in calls]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            found = list(pool.map(lambda call: ours(**call), calls))
            assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=name_of)
def test_gelu_far_from_zero(dtype, isa):
    """One hidden channel at a time: gelu(z) is 0 for very negative z, and z for large z."""
    z = torch.tensor([-1e4, -50, -9, -4.5, -3.9, -1, -1e-3, 0, 1e-3, 1, 3.9, 4.5, 9, 50, 1e4]).to(dtype)
    x = torch.zeros(1, len(z), 1, 2, dtype=dtype)
    zeros, ones = torch.zeros_like(z), torch.ones(len(z), 1, dtype=dtype)
    for i, value in enumerate(z):
        y = swin_mlp(x, 1, zeros, zeros, zeros[None], value[None], ones, zeros).double()
        expected = torch.nn.functional.gelu(value.double())
        error = (y - expected).abs().max()
        assert error <= (1e-6 if dtype == torch.float32 else 1.4e-4) + torch.finfo(dtype).eps * expected.abs(), i


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=name_of)
def test_nan_stays_at_its_pixel(dtype, isa):
    for operator, size in LARGE[1:3]:
        _ours, _, _, tensors = case_of(operator, size)
        tensors = channels_last(tensors, dtype)
        weights = {name: x for name, x in tensors.items() if not name.startswith("norm")}
        if operator == "pointwise_conv2d":
            weights["x"] = weights["x"].clone()
            weights["x"][0, 3, 2, 1] = torch.nan
            broken = pointwise_conv2d(**weights).isnan()
            assert broken[0, :, 2, 1].all()
            assert broken.sum() == broken.shape[1]
    q, k, v = (x.to(dtype) for x in spatial.inputs(1, 8, 5, 6).values())
    q[0, 3, 2, 1] = torch.nan
    broken = spatial_attention(q, k, v).isnan()
    assert broken[0, :, 2, 1].all()
    assert broken.sum() == 8


def test_no_score_matrix_is_allocated():
    tensors = spatial.inputs(1, 4, 64, 64)
    spatial_attention(**tensors)
    with LargestTensor() as largest:
        spatial_attention(**tensors)
    assert largest.bytes <= 4 * 4 * 64 * 64


@pytest.mark.parametrize("operator", sorted({operator for operator, _ in LARGE}))
def test_the_cpu_kernels_are_chosen(operator):
    module = import_module(f"resshift_fast.ops.{operator}")
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for args in module._examples(torch.device("cpu"), dtype):
            assert chosen(operator, *args) == "cpu"


X, W, B = torch.rand(2, 6, 4, 5), torch.rand(9, 6), torch.rand(9)
TABLE = torch.rand(2, 3, 6)
CONVOLUTION = {"x": X, "weight": W, "bias": B, "residual": torch.rand(2, 9, 4, 5), "normalization": TABLE}
LAYER = {"x": X, "normalization": TABLE, "w1": W, "b1": B, "w2": W.T, "b2": torch.rand(6)}
ATTENTION = {"q": X, "k": X, "v": X}


@pytest.mark.parametrize(
    "operator, changes, message",
    [
        ("pointwise_conv2d", {"x": X[0]}, r"x must be \[B, C, H, W\]"),
        ("pointwise_conv2d", {"x": X[:, :, :0]}, "not empty"),
        ("pointwise_conv2d", {"x": X.double()}, "x must be float32, float16 or bfloat16"),
        ("pointwise_conv2d", {"weight": W[:0]}, r"weight must be \[O, C\] and not empty"),
        ("pointwise_conv2d", {"weight": W[:, :5]}, "weight has another shape"),
        ("pointwise_conv2d", {"weight": W.double()}, "weight must be float32, float16 or bfloat16"),
        ("pointwise_conv2d", {"bias": B[:8]}, "bias has another shape"),
        ("pointwise_conv2d", {"bias": B[None]}, "bias has another shape"),
        ("pointwise_conv2d", {"bias": B.long()}, "bias must be float32"),
        ("pointwise_conv2d", {"residual": X}, "residual has size 6 in dimension 1, expected 9"),
        ("pointwise_conv2d", {"residual": CONVOLUTION["residual"].half()}, "residual must be float32 or have x's"),
        ("pointwise_conv2d", {"normalization": TABLE[:1]}, "normalization has 18 elements, expected 36"),
        ("pointwise_conv2d", {"normalization": TABLE.double()}, "normalization has another dtype"),
        ("swin_mlp", {"x": X[:0]}, "not empty"),
        ("swin_mlp", {"x": X.long()}, "x must be float32, float16 or bfloat16"),
        ("swin_mlp", {"w1": W[:0]}, r"w1 must be \[hidden, C\] and not empty"),
        ("swin_mlp", {"w1": W[:, :5]}, "w1 has another shape"),
        ("swin_mlp", {"b1": B[:5]}, "b1 has another shape"),
        ("swin_mlp", {"w2": W}, "w2 has another shape"),
        ("swin_mlp", {"b2": B}, "b2 has another shape"),
        ("swin_mlp", {"normalization": TABLE[:, :2]}, "normalization has 24 elements, expected 36"),
        ("spatial_attention", {"q": X[0]}, r"q must be \[B, C, H, W\]"),
        ("spatial_attention", {"k": X[:1]}, "k has size 1 in dimension 0, expected 2"),
        ("spatial_attention", {"v": X[..., :4]}, "v has size 4 in dimension 3, expected 5"),
        ("spatial_attention", {"k": X.half()}, "k and v must have q's dtype"),
        ("spatial_attention", dict.fromkeys("qkv", X.double()), "q must be float32, float16 or bfloat16"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_refuses_invalid_arguments(operator, changes, message):
    good = {"pointwise_conv2d": CONVOLUTION, "swin_mlp": LAYER, "spatial_attention": ATTENTION}[operator]
    run = getattr(torch.ops.resshift_fast_cpu, operator)
    assert run(**good).isfinite().all()
    with pytest.raises(RuntimeError, match=message):
        run(**(good | changes))
