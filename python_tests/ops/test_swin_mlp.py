"""swin_mlp against its formula in float64: outputs, gradients, memory layouts; invalid arguments."""

import math
from functools import partial

import pytest
import torch
from comparison import DTYPES, LAYOUTS, assert_close, check_operator, layouts, name_of
from golden_data import array
from pairwise import BACKENDS, once, pairwise

from resshift_fast.ops import norm_stats, swin_mlp
from resshift_fast.ops.swin_mlp import reference

pytestmark = pytest.mark.usefixtures("poisoned_empty", "backend")

CASES = [(2, 32, 8, 48, 5, 7), (1, 6, 3, 1, 3, 9), (3, 10, 1, 33, 1, 6), (1, 64, 32, 128, 8, 8)]
IDS = [f"B{b}-C{c}-G{g}-hidden{n}-H{h}-W{w}" for b, c, g, n, h, w in CASES]


def moments(x, num_groups, eps):
    """Mean and 1 / √(variance + eps) of every group, [B, 2, G]."""
    groups = x.reshape(x.shape[0], num_groups, -1)
    mean = groups.mean(2)
    return torch.stack([mean, ((groups - mean[..., None]).square().mean(2) + eps).rsqrt()], dim=1)


def exact(x, norm_weight, norm_bias, w1, b1, w2, b2, *, num_groups, eps=1e-5, statistics=None, next_groups=None):
    """The formula as matrix products over channels, with gelu by the error function."""
    statistics = moments(x, num_groups, eps) if statistics is None else statistics
    mean, rstd = statistics[..., None].unbind(1)
    normalized = ((x.reshape(x.shape[0], num_groups, -1) - mean) * rstd).reshape(x.shape)
    rows = normalized.permute(0, 2, 3, 1) * norm_weight + norm_bias
    hidden = rows @ w1.T + b1
    hidden = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2
    y = x + (hidden @ w2.T + b2).permute(0, 3, 1, 2)
    return y if next_groups is None else (y, moments(y, next_groups, 1e-5))


def plain(x, norm_weight, norm_bias, w1, b1, w2, b2, *, num_groups, eps=1e-5, statistics=None, next_groups=None):
    """The plain PyTorch path, with keyword arguments."""
    arguments = (x, num_groups, norm_weight, norm_bias, w1, b1, w2, b2, eps, statistics)
    both = norm_stats.with_statistics(reference)
    return reference(*arguments) if next_groups is None else both(*arguments, next_groups, 1e-5)


def inputs(batch, channels, hidden, height, width):
    """Random tensors; the image has a mean far from 0."""
    return {
        "x": array("mlp.x", batch, channels, height, width) - 2.3,
        "norm_weight": array("mlp.norm_weight", channels),
        "norm_bias": array("mlp.norm_bias", channels),
        "w1": array("mlp.w1", hidden, channels) / channels**0.5,
        "b1": array("mlp.b1", hidden),
        "w2": array("mlp.w2", channels, hidden) / hidden**0.5,
        "b2": array("mlp.b2", channels),
    }


@pairwise(case=dict(zip(IDS, CASES, strict=True)), dtype=DTYPES, backend=BACKENDS)
def test_matches_float64(case, dtype):
    batch, channels, groups, hidden, height, width = case
    functions = (partial(f, num_groups=groups) for f in (swin_mlp, plain, exact))
    check_operator(*functions, inputs(batch, channels, hidden, height, width), dtype)


@pytest.mark.parametrize("following", [1, 8])
def test_statistics_of_the_result(following):
    functions = (partial(f, num_groups=4, next_groups=following) for f in (swin_mlp, plain, exact))
    check_operator(*functions, inputs(2, 16, 24, 6, 5), torch.float32)


def test_given_statistics_are_used():
    tensors = inputs(2, 16, 24, 6, 5)
    tensors["statistics"] = torch.stack([array("mlp.mean", 2, 4), array("mlp.rstd", 2, 4).exp()], dim=1)
    functions = (partial(f, num_groups=4) for f in (swin_mlp, plain, exact))
    check_operator(*functions, tensors, torch.float32)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_memory_layout(layout):
    tensors = inputs(2, 16, 24, 6, 5)
    tensors["x"] = layouts(tensors["x"])[layout]
    functions = (partial(f, num_groups=4) for f in (swin_mlp, plain, exact))
    check_operator(*functions, tensors, torch.float32)


def test_eps_reaches_the_norm():
    tensors = inputs(1, 8, 12, 4, 4)
    tensors["x"] = tensors["x"] * 0.01
    doubles = {name: x.double() for name, x in tensors.items()}
    ours = swin_mlp(**tensors, num_groups=2, eps=0.3)
    assert_close("output", ours, exact(**doubles, num_groups=2, eps=0.3), 1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=name_of)
def test_float32_parameters_with_16_bit_images(dtype):
    tensors = inputs(2, 16, 24, 6, 5)
    tensors["x"] = tensors["x"].to(dtype)
    y = swin_mlp(**tensors, num_groups=4)
    assert y.dtype == dtype
    expected = exact(**{name: p.double() for name, p in tensors.items()}, num_groups=4)
    assert_close("output", y, expected, 2 * torch.finfo(dtype).eps)


@once
@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"x": torch.ones(6, 3, 3)}, ValueError, r"swin_mlp: x must be \[B, C, H, W\]"),
        ({"x": torch.ones(1, 6, 0, 3)}, ValueError, "swin_mlp: x is empty"),
        ({"x": torch.ones(1, 6, 3, 3, dtype=torch.uint8)}, TypeError, "x has dtype torch.uint8"),
        ({"w1": torch.ones(9, 5)}, ValueError, r"w1 has shape \(9, 5\), expected \(hidden, 6\)"),
        ({"w1": torch.ones(9, 6, 1, 1)}, ValueError, r"w1 has shape \(9, 6, 1, 1\)"),
        ({"b1": torch.ones(6)}, ValueError, r"b1 has shape \(6,\), expected \(9,\) to match w1"),
        ({"w2": torch.ones(9, 6)}, ValueError, r"w2 has shape \(9, 6\), expected \(6, 9\)"),
        ({"b2": torch.ones(9)}, ValueError, r"b2 has shape \(9,\), expected \(6,\)"),
        ({"w2": torch.ones(6, 9).half()}, TypeError, "w2 has dtype torch.float16"),
        ({"b1": torch.ones(9, device="meta")}, ValueError, "b1 is on meta"),
        ({"num_groups": 4}, ValueError, "6 channels do not divide into 4 groups"),
        ({"norm_weight": torch.ones(5)}, ValueError, r"weight has shape \(5,\), expected \(6,\)"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_refuses(change, error, message):
    with pytest.raises(error, match=message):
        swin_mlp(**(inputs(1, 6, 9, 3, 3) | {"num_groups": 3} | change))
