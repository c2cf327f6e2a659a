"""upsample_conv2d against explicit source indices in float64: outputs, gradients, layouts; invalid arguments."""

import pytest
import torch
from comparison import DTYPES, LAYOUTS, assert_close, check_operator, layouts, name_of
from golden_data import array
from pairwise import BACKENDS, once, pairwise

from resshift_fast.ops import norm_stats, sum_upsample_taps, upsample_conv2d
from resshift_fast.ops.conv2d_winograd import DIRECT, algorithm
from resshift_fast.ops.upsample_conv2d import reference

pytestmark = pytest.mark.usefixtures("poisoned_empty", "backend")

CASES = [
    (2, 3, 5, 7, 9, True),
    (1, 17, 4, 1, 1, False),
    (3, 4, 1, 1, 6, True),
    (1, 32, 8, 5, 2, False),
    (2, 40, 33, 17, 21, True),
    (1, 64, 96, 12, 8, False),
    (1, 33, 17, 20, 1, True),
    (1, 17, 4, 32, 31, True),
    (20, 17, 4, 4, 4, False),
]
IDS = [f"B{b}-C{c}-O{o}-H{h}-W{w}-{'bias' if bias else 'plain'}" for b, c, o, h, w, bias in CASES]


def source(size: int, tap: int) -> tuple[torch.Tensor, torch.Tensor]:
    """For each of 2·size outputs: the input that a tap reads, and whether it lies inside the image."""
    upsampled = torch.arange(2 * size) + tap - 1
    return upsampled.clamp(0, 2 * size - 1) // 2, (upsampled >= 0) & (upsampled < 2 * size)


def exact(x, weight, bias=None):
    """The formula by gathering source pixels, without an upsampled image."""
    y = 0.0
    for i in range(3):
        rows, row_inside = source(x.shape[2], i)
        for j in range(3):
            columns, column_inside = source(x.shape[3], j)
            read = x[:, :, rows[:, None], columns[None, :]] * (row_inside[:, None] & column_inside[None, :])
            y = y + torch.einsum("bchw,oc->bohw", read, weight[:, :, i, j])
    return y if bias is None else y + bias.view(1, -1, 1, 1)


def plain(x, weight, bias=None):
    """The plain PyTorch path, with keyword arguments."""
    return reference(x, weight, bias)


def with_sums(x, weight, bias=None):
    """The operator with the sums of the weight's taps, which are read without gradients only."""
    return upsample_conv2d(x, weight, bias, summed=sum_upsample_taps(weight))


def inputs(batch, channels, out_channels, height, width, bias=True):
    """Random tensors; the image has a mean far from 0."""
    tensors = {
        "x": array("upsample.x", batch, channels, height, width) - 2.3,
        "weight": array("upsample.weight", out_channels, channels, 3, 3),
    }
    return tensors | ({"bias": array("upsample.bias", out_channels)} if bias else {})


@pairwise(case=dict(zip(IDS, CASES, strict=True)), dtype=DTYPES, backend=BACKENDS)
def test_matches_float64(case, dtype):
    batch, channels, out_channels, height, width, bias = case
    check_operator(upsample_conv2d, plain, exact, inputs(batch, channels, out_channels, height, width, bias), dtype)


@pairwise(groups=[1, 5], way=["public", "registered"], dtype=DTYPES[:2], backend=BACKENDS)
def test_statistics_of_the_result_match_float64(groups, way, dtype):
    def both(function):
        def with_statistics(**tensors):
            y = function(**tensors)
            return y, norm_stats.reference(y, groups, 1e-3)

        return with_statistics

    def registered(x, weight, bias):
        return torch.ops.resshift_fast.upsample_conv2d_statistics(x, weight, bias, None, groups, 1e-3)

    def public(**tensors):
        return upsample_conv2d(**tensors, next_groups=groups, next_eps=1e-3)

    ours = public if way == "public" else registered
    check_operator(ours, both(plain), both(exact), inputs(*CASES[0]), dtype)


@pairwise(case=dict(zip(IDS[:2], CASES[:2], strict=True)), dtype=DTYPES, backend=BACKENDS)
def test_sums_of_taps_match_float64(case, dtype):
    batch, channels, out_channels, height, width, bias = case
    tensors = inputs(batch, channels, out_channels, height, width, bias)
    check_operator(with_sums, plain, exact, tensors, dtype)
    rounded = {name: x.to(dtype) for name, x in tensors.items()}
    expected = exact(**{name: x.double() for name, x in rounded.items()})
    with torch.no_grad():
        limit = max(1e-5, 2 * torch.finfo(dtype).eps)
        assert_close("without gradients", with_sums(**rounded), expected, limit)


@once
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_sums_of_taps_are_kernels_of_the_image(dtype):
    """Each phase of the result is a 2×2 convolution of x with its kernel."""
    tensors = inputs(2, 6, 5, 4, 3, bias=False)
    x, weight = tensors["x"].double(), tensors["weight"].to(dtype)
    summed = sum_upsample_taps(weight)
    assert summed.shape == (4, 5, 4, 6) and summed.dtype == dtype and not summed.requires_grad
    expected = exact(x, weight.double())
    padded = torch.nn.functional.pad(x, (1, 1, 1, 1))
    for p, r in ((0, 0), (0, 1), (1, 0), (1, 1)):
        kernel = summed[2 * p + r].double().view(5, 2, 2, 6).permute(0, 3, 1, 2)
        phase = torch.nn.functional.conv2d(padded, kernel)[:, :, p : p + 4, r : r + 3]
        assert_close("phase", phase, expected[:, :, p::2, r::2], 2 * torch.finfo(dtype).eps)


@once
def test_sums_of_another_dtype_are_not_read():
    tensors = inputs(1, 6, 5, 4, 3)
    with torch.no_grad():
        y = upsample_conv2d(**tensors, summed=torch.full((4, 5, 4, 6), torch.nan, dtype=torch.float64))
    assert y.equal(upsample_conv2d(**tensors))


def test_the_cases_take_every_algorithm():
    for dtype, expected in ((torch.float32, {DIRECT, 4, 6}), (torch.bfloat16, {DIRECT, 4, 6, 8})):
        chosen = set()
        for batch, channels, out_channels, height, width, _ in CASES:
            x = torch.empty(batch, channels, height, width, dtype=dtype)
            chosen.add(algorithm(x, torch.empty(out_channels, channels, 3, 3), 1, True))
        assert chosen == expected


@pytest.mark.parametrize("size", [(2, 6, 5, 3, 4), (2, 24, 20, 13, 12)], ids=["small", "tiles"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_memory_layout(layout, size):
    tensors = inputs(*size)
    for name in ("x", "weight"):
        changed = tensors | {name: layouts(tensors[name])[layout]}
        check_operator(upsample_conv2d, plain, exact, changed, torch.float32)


@pytest.mark.parametrize("enabled", [True, False], ids=["autocast", "no-autocast"])
def test_autocast_is_the_same_in_every_backend(enabled):
    tensors = inputs(2, 24, 20, 13, 12)
    with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
        y = upsample_conv2d(**tensors)
        doubled = upsample_conv2d(**{name: t.double() for name, t in tensors.items()})
    assert y.dtype == (torch.bfloat16 if enabled else torch.float32) and doubled.dtype == torch.float64
    assert_close("output", y, doubled, 2e-2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=name_of)
def test_float32_parameters_with_16_bit_images(dtype):
    tensors = inputs(2, 6, 5, 3, 4)
    x = tensors.pop("x").to(dtype)
    y = upsample_conv2d(x, **tensors)
    assert y.dtype == dtype
    expected = exact(x.double(), **{name: p.double() for name, p in tensors.items()})
    assert_close("output", y, expected, 2 * torch.finfo(dtype).eps)


W, X = torch.ones(4, 6, 3, 3), torch.ones(2, 6, 5, 5)


@once
@pytest.mark.parametrize(
    "args, error, message",
    [
        ((X[0], W), ValueError, r"upsample_conv2d: x must be \[B, C, H, W\]"),
        ((X[:0], W), ValueError, "upsample_conv2d: x is empty"),
        ((X.bool(), W), TypeError, "x has dtype torch.bool"),
        ((X, W[:, :5]), ValueError, r"weight has shape \(4, 5, 3, 3\), expected \(O, 6, 3, 3\)"),
        ((X, W[..., 0]), ValueError, r"weight has shape \(4, 6, 3\)"),
        ((X, W, torch.ones(4, 1)), ValueError, r"bias has shape \(4, 1\), expected \(4,\)"),
        ((X, W, torch.ones(4).half()), TypeError, "bias has dtype torch.float16"),
        ((X, W.to("meta")), ValueError, "weight is on meta"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_refuses(args, error, message):
    with pytest.raises(error, match=message):
        upsample_conv2d(*args)


@once
def test_refuses_sums_of_another_weight():
    with pytest.raises(ValueError, match=r"summed has shape \(4, 4, 4, 5\), expected \(4, 4, 4, 6\)"):
        upsample_conv2d(X, W, summed=sum_upsample_taps(W[:, :5]))
    with pytest.raises(ValueError, match="summed is on meta, expected x's device"):
        upsample_conv2d(X, W, summed=sum_upsample_taps(W).to("meta"))
    with pytest.raises(ValueError, match=r"weight has shape \(4, 6, 3\), expected \(O, C, 3, 3\)"):
        sum_upsample_taps(W[..., 0])
