"""conv2d against a sum over the nine taps in float64, outputs and gradients; arguments it refuses."""

from functools import partial

import pytest
import torch
from comparison import DTYPES, LAYOUTS, assert_close, check_operator, layouts, name_of
from golden_data import array

from resshift_fast.ops import conv2d
from resshift_fast.ops.conv2d import reference

pytestmark = pytest.mark.usefixtures("poisoned_empty")

CASES = [  # batch, channels, out channels, height, width, padding, bias
    (2, 3, 5, 7, 9, 1, True),
    (1, 17, 4, 1, 1, 1, False),
    (3, 4, 1, 3, 5, 0, True),
    (1, 5, 33, 2, 11, 2, False),
    (2, 32, 16, 13, 8, 1, True),
]
IDS = [f"B{b}-C{c}-O{o}-H{h}-W{w}-padding{p}-{'bias' if bias else 'plain'}" for b, c, o, h, w, p, bias in CASES]


def exact(x, weight, bias=None, *, padding=1):
    """The formula as nine shifted products."""
    batch, channels, height, width = x.shape
    padded = x.new_zeros(batch, channels, height + 2 * padding, width + 2 * padding)
    padded[:, :, padding : padding + height, padding : padding + width] = x
    rows, columns = padded.shape[2] - 2, padded.shape[3] - 2
    y = 0.0
    for i, j in [(i, j) for i in range(3) for j in range(3)]:
        read = padded[:, :, i : i + rows, j : j + columns]
        y = y + torch.einsum("bchw,oc->bohw", read, weight[:, :, i, j])
    return y if bias is None else y + bias.view(1, -1, 1, 1)


def plain(x, weight, bias=None, *, padding=1):
    """The plain PyTorch path by keyword."""
    return reference(x, weight, bias, padding)


def inputs(batch, channels, out_channels, height, width, bias=True):
    """Random tensors; the image has a mean far from 0."""
    tensors = {
        "x": array("conv2d.x", batch, channels, height, width) - 2.3,
        "weight": array("conv2d.weight", out_channels, channels, 3, 3),
    }
    return tensors | ({"bias": array("conv2d.bias", out_channels)} if bias else {})


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("batch, channels, out_channels, height, width, padding, bias", CASES, ids=IDS)
def test_matches_float64(batch, channels, out_channels, height, width, padding, bias, dtype):
    tensors = inputs(batch, channels, out_channels, height, width, bias)
    functions = (partial(f, padding=padding) for f in (conv2d, plain, exact))
    check_operator(*functions, tensors, dtype)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_memory_layout(layout):
    tensors = inputs(2, 6, 5, 7, 4)
    tensors["x"] = layouts(tensors["x"])[layout]
    check_operator(conv2d, plain, exact, tensors, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=name_of)
def test_float32_parameters_with_16_bit_images(dtype):
    tensors = inputs(2, 6, 5, 7, 4)
    x = tensors.pop("x").to(dtype)
    y = conv2d(x, **tensors)
    assert y.dtype == dtype
    expected = exact(x.double(), **{name: p.double() for name, p in tensors.items()})
    assert_close("output", y, expected, 2 * torch.finfo(dtype).eps)


W, X = torch.ones(4, 6, 3, 3), torch.ones(2, 6, 5, 5)


@pytest.mark.parametrize(
    "args, options, error, message",
    [
        ((X[0], W), {}, ValueError, r"conv2d: x must be \[B, C, H, W\]"),
        ((X[:, :, :0], W), {}, ValueError, "conv2d: x is empty"),
        ((X.int(), W), {}, TypeError, "x has dtype torch.int32"),
        ((X, W[:, :5]), {}, ValueError, r"weight has shape \(4, 5, 3, 3\), expected \(O, 6, 3, 3\)"),
        ((X, W[..., :2]), {}, ValueError, r"weight has shape \(4, 6, 3, 2\)"),
        ((X, W[0]), {}, ValueError, r"weight has shape \(6, 3, 3\)"),
        ((X, W, torch.ones(6)), {}, ValueError, r"bias has shape \(6,\), expected \(4,\)"),
        ((X, W.double()), {}, TypeError, "weight has dtype torch.float64"),
        ((X, W.to("meta")), {}, ValueError, "weight is on meta"),
        ((X, W), {"padding": -1}, ValueError, "padding is -1, expected 0 or more"),
        ((X[:, :, :2], W), {"padding": 0}, ValueError, "image 2×5 with padding=0 is smaller than the 3×3 kernel"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_refuses(args, options, error, message):
    with pytest.raises(error, match=message):
        conv2d(*args, **options)
