"""pointwise_conv2d against its formula in float64: outputs, gradients, memory layouts; invalid arguments."""

from functools import partial

import pytest
import torch
from comparison import DTYPES, LAYOUTS, assert_close, check_operator, layouts, name_of
from golden_data import array
from pairwise import BACKENDS, once, pairwise

from resshift_fast.ops import norm_stats
from resshift_fast.ops.pointwise_conv2d import pointwise_conv2d, reference

pytestmark = pytest.mark.usefixtures("poisoned_empty", "backend")

CASES = [  # B, C, groups, O, H, W, bias, residual
    (2, 32, 8, 48, 5, 7, True, False),
    (2, 12, 0, 12, 5, 7, True, True),
    (1, 6, 3, 1, 3, 9, False, True),
    (3, 10, 0, 33, 1, 6, False, False),
    (1, 64, 32, 24, 8, 8, True, True),
]
IDS = [
    f"B{b}-C{c}-G{g}-O{o}-H{h}-W{w}{'-bias' * bias}{'-residual' * residual}"
    for b, c, g, o, h, w, bias, residual in CASES
]


def moments(x, num_groups, eps):
    """Mean and 1 / √(variance + eps) of every group, [B, 2, G]."""
    groups = x.reshape(x.shape[0], num_groups, -1)
    mean = groups.mean(2)
    return torch.stack([mean, ((groups - mean[..., None]).square().mean(2) + eps).rsqrt()], dim=1)


def exact(
    x,
    weight,
    bias=None,
    *,
    residual=None,
    num_groups=0,
    norm_weight=None,
    norm_bias=None,
    eps=1e-5,
    statistics=None,
    next_groups=None,
    next_eps=1e-5,
):
    """The formula as a matrix product over channels."""
    rows = x
    if num_groups:
        statistics = moments(x, num_groups, eps) if statistics is None else statistics
        mean, rstd = statistics[..., None].unbind(1)
        rows = ((x.reshape(x.shape[0], num_groups, -1) - mean) * rstd).reshape(x.shape)
        rows = rows * norm_weight[:, None, None] + norm_bias[:, None, None]
    y = (rows.permute(0, 2, 3, 1) @ weight.T).permute(0, 3, 1, 2)
    y = y if bias is None else y + bias[:, None, None]
    y = y if residual is None else y + residual
    return y if next_groups is None else (y, moments(y, next_groups, next_eps))


def plain(x, weight, bias=None, *, residual=None, num_groups=0, norm_weight=None, norm_bias=None, eps=1e-5, **options):
    """The plain PyTorch path, with keyword arguments."""
    arguments = (x, weight, bias, residual, num_groups, norm_weight, norm_bias, eps, options.get("statistics"))
    if "next_groups" in options:
        return norm_stats.with_statistics(reference)(*arguments, options["next_groups"], options.get("next_eps", 1e-5))
    return reference(*arguments)


def inputs(batch, channels, out_channels, height, width, *, norm=True, bias=True, residual=True):
    """Random tensors; the image has a mean far from 0."""
    tensors = {
        "x": array("pointwise.x", batch, channels, height, width) - 2.3,
        "weight": array("pointwise.weight", out_channels, channels) / channels**0.5,
    }
    if bias:
        tensors["bias"] = array("pointwise.bias", out_channels)
    if residual:
        tensors["residual"] = array("pointwise.residual", batch, out_channels, height, width)
    if norm:
        tensors["norm_weight"] = array("pointwise.norm_weight", channels)
        tensors["norm_bias"] = array("pointwise.norm_bias", channels)
    return tensors


@pairwise(case=dict(zip(IDS, CASES, strict=True)), dtype=DTYPES, backend=BACKENDS)
def test_matches_float64(case, dtype):
    batch, channels, groups, out_channels, height, width, bias, residual = case
    tensors = inputs(batch, channels, out_channels, height, width, norm=groups > 0, bias=bias, residual=residual)
    functions = (partial(f, num_groups=groups) for f in (pointwise_conv2d, plain, exact))
    check_operator(*functions, tensors, dtype)


@pytest.mark.parametrize("groups, following", [(0, 8), (4, 24), (4, 1)])
def test_statistics_of_the_result(groups, following):
    tensors = inputs(2, 16, 24, 6, 5, norm=groups > 0)
    options = {"num_groups": groups, "next_groups": following, "next_eps": 0.1}
    functions = (partial(f, **options) for f in (pointwise_conv2d, plain, exact))
    check_operator(*functions, tensors, torch.float32)


def test_given_statistics_are_used():
    tensors = inputs(2, 16, 24, 6, 5)
    tensors["statistics"] = torch.stack([array("pointwise.mean", 2, 4), array("pointwise.rstd", 2, 4).exp()], dim=1)
    functions = (partial(f, num_groups=4) for f in (pointwise_conv2d, plain, exact))
    check_operator(*functions, tensors, torch.float32)


@pytest.mark.parametrize("name", ["x", "residual"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_memory_layout(layout, name):
    tensors = inputs(2, 16, 24, 6, 5)
    tensors[name] = layouts(tensors[name])[layout]
    functions = (partial(f, num_groups=4) for f in (pointwise_conv2d, plain, exact))
    check_operator(*functions, tensors, torch.float32)


def test_eps_reaches_the_norm():
    tensors = inputs(1, 8, 12, 4, 4)
    tensors["x"] = tensors["x"] * 0.01
    doubles = {name: x.double() for name, x in tensors.items()}
    ours = pointwise_conv2d(**tensors, num_groups=2, eps=0.3)
    assert_close("output", ours, exact(**doubles, num_groups=2, eps=0.3), 1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=name_of)
def test_float32_tensors_with_16_bit_images(dtype):
    tensors = inputs(2, 16, 24, 6, 5)
    tensors["x"] = tensors["x"].to(dtype)
    y = pointwise_conv2d(**tensors, num_groups=4)
    assert y.dtype == dtype
    expected = exact(**{name: p.double() for name, p in tensors.items()}, num_groups=4)
    assert_close("output", y, expected, 2 * torch.finfo(dtype).eps)


def test_refuses_statistics_without_groups():
    with pytest.raises(ValueError, match="statistics are given, but num_groups is 0"):
        pointwise_conv2d(torch.ones(1, 6, 3, 3), torch.ones(9, 6), statistics=torch.ones(1, 2, 3))


@once
@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"x": torch.ones(6, 3, 3)}, ValueError, r"pointwise_conv2d: x must be \[B, C, H, W\]"),
        ({"x": torch.ones(1, 6, 0, 3)}, ValueError, "pointwise_conv2d: x is empty"),
        ({"x": torch.ones(1, 6, 3, 3, dtype=torch.uint8)}, TypeError, "x has dtype torch.uint8"),
        ({"weight": torch.ones(9, 5)}, ValueError, r"weight has shape \(9, 5\), expected \(O, 6\)"),
        ({"weight": torch.ones(0, 6)}, ValueError, r"weight has shape \(0, 6\), expected \(O, 6\) with O ≥ 1"),
        ({"weight": torch.ones(9, 6, 1, 1)}, ValueError, r"weight has shape \(9, 6, 1, 1\)"),
        ({"weight": torch.ones(9, 6).half()}, TypeError, "weight has dtype torch.float16"),
        ({"bias": torch.ones(6)}, ValueError, r"bias has shape \(6,\), expected \(9,\) to match weight"),
        ({"bias": torch.ones(9, device="meta")}, ValueError, "bias is on meta"),
        ({"residual": torch.ones(1, 6, 3, 3)}, ValueError, r"residual has shape .*, expected \(1, 9, 3, 3\)"),
        ({"residual": torch.ones(1, 9, 1, 1)}, ValueError, r"residual has shape \(1, 9, 1, 1\)"),
        ({"residual": torch.ones(1, 9, 3, 3).half()}, TypeError, "residual has dtype torch.float16"),
        ({"num_groups": 4}, ValueError, "6 channels do not divide into 4 groups"),
        ({"num_groups": -3}, ValueError, "6 channels do not divide into -3 groups"),
        ({"num_groups": 0}, ValueError, "norm_weight is given, but num_groups is 0"),
        ({"norm_bias": None}, ValueError, r"norm_bias is None, expected shape \(6,\) for 3 groups"),
        ({"norm_weight": torch.ones(5)}, ValueError, r"norm_weight has shape \(5,\), expected \(6,\)"),
        ({"norm_bias": torch.ones(6).half()}, TypeError, "norm_bias has dtype torch.float16"),
        ({"statistics": torch.ones(1, 3, 2)}, ValueError, r"statistics has shape \(1, 3, 2\), expected \(1, 2, 3\)"),
        ({"statistics": torch.ones(1, 2, 3).half()}, TypeError, "statistics have dtype torch.float16"),
        ({"statistics": torch.ones(1, 2, 3, device="meta")}, ValueError, "statistics is on meta"),
        ({"next_groups": 4}, ValueError, "next_groups is 4, but 9 channels do not divide"),
        ({"next_groups": 0}, ValueError, "next_groups is 0"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_refuses(change, error, message):
    with pytest.raises(error, match=message):
        pointwise_conv2d(**(inputs(1, 6, 9, 3, 3) | {"num_groups": 3} | change))
