"""group_norm against its formula in float64: outputs, gradients, memory layouts, extreme inputs; invalid arguments."""

from functools import partial

import pytest
import torch
from comparison import DTYPES, LAYOUTS, assert_close, check_operator, layouts, name_of
from golden_data import array
from pairwise import BACKENDS, once, pairwise

from resshift_fast.ops import group_norm
from resshift_fast.ops.group_norm import reference

pytestmark = pytest.mark.usefixtures("poisoned_empty", "backend")

CASES = [  # batch, channels, groups, height, width, conditioning, activation
    (2, 32, 32, 5, 7, "", None),
    (1, 30, 5, 3, 1, "scale-shift", "silu"),
    (3, 80, 2, 1, 5, "", "silu"),
    (2, 64, 32, 9, 11, "scale-shift", None),
    (1, 33, 11, 4, 17, "shift", "silu"),
    (2, 24, 1, 13, 3, "scale", None),
    (1, 160, 32, 15, 17, "scale-shift", "silu"),
]
IDS = [f"B{b}-C{c}-G{g}-H{h}-W{w}-{cond or 'plain'}-{act or 'linear'}" for b, c, g, h, w, cond, act in CASES]


def exact(x, weight, bias, scale=None, shift=None, *, num_groups, eps=1e-5, activation=None):
    """The formula, with explicit sums over each group."""
    batch, channels = x.shape[:2]
    values = x.reshape(batch, num_groups, -1)
    centred = values - (values.sum(2) / values.shape[2])[..., None]
    variance = (centred**2).sum(2) / values.shape[2]
    y = (centred / (variance + eps)[..., None] ** 0.5).reshape(x.shape)
    y = y * weight.view(1, channels, 1, 1) + bias.view(1, channels, 1, 1)
    if scale is not None:
        y = y * (1 + scale.view(batch, channels, 1, 1))
    if shift is not None:
        y = y + shift.view(batch, channels, 1, 1)
    return y / (1 + (-y).exp()) if activation == "silu" else y


def plain(x, weight, bias, scale=None, shift=None, *, num_groups, eps=1e-5, activation=None):
    """The plain PyTorch path, with keyword arguments."""
    return reference(x, num_groups, weight, bias, eps, scale, shift, activation)


def inputs(batch, channels, height, width, conditioning="", offset=-2.3):
    """Random tensors; the image has a mean far from 0, so that cancellation in the variance shows."""
    tensors = {
        "x": array("group_norm.x", batch, channels, height, width) + offset,
        "weight": array("group_norm.weight", channels),
        "bias": array("group_norm.bias", channels),
    }
    for name in conditioning.split("-") if conditioning else ():
        tensors[name] = array(f"group_norm.{name}", batch, channels)
    return tensors


@pytest.mark.parametrize("conditioning, activation", [("", None), ("scale-shift", "silu")])
def test_given_statistics_are_used(conditioning, activation):
    tensors = inputs(2, 24, 5, 7, conditioning)
    tensors["statistics"] = torch.stack([array("given.mean", 2, 8), (array("given.rstd", 2, 8) / 4).exp()], dim=1)

    def formula(x, weight, bias, scale=None, shift=None, *, statistics):
        mean, rstd = statistics.repeat_interleave(3, dim=2)[..., None, None].unbind(1)
        y = (x - mean) * rstd * weight[:, None, None] + bias[:, None, None]
        if scale is not None:
            y = y * (1 + scale[..., None, None]) + shift[..., None, None]
        return y / (1 + (-y).exp()) if activation else y

    def ours(x, weight, bias, **options):
        return group_norm(x, 8, weight, bias, activation=activation, **options)

    check_operator(ours, formula, formula, tensors, torch.float32)


def test_refuses_statistics_of_other_groups():
    with pytest.raises(ValueError, match=r"statistics has shape \(1, 2, 2\), expected \(1, 2, 4\)"):
        group_norm(torch.ones(1, 8, 3, 3), 4, torch.ones(8), torch.ones(8), statistics=torch.ones(1, 2, 2))


@pairwise(
    strength=3,
    case=dict(zip(IDS, CASES, strict=True)),
    memory_format={"nchw": torch.contiguous_format, "channels_last": torch.channels_last},
    dtype=DTYPES,
    backend=BACKENDS,
)
def test_matches_float64(case, memory_format, dtype):
    batch, channels, groups, height, width, conditioning, activation = case
    tensors = inputs(batch, channels, height, width, conditioning)
    tensors["x"] = tensors["x"].contiguous(memory_format=memory_format)
    functions = (partial(f, num_groups=groups, activation=activation) for f in (group_norm, plain, exact))
    check_operator(*functions, tensors, dtype)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_memory_layout(layout):
    tensors = inputs(2, 32, 6, 5, "scale-shift")
    tensors["x"] = layouts(tensors["x"])[layout]
    functions = (partial(f, num_groups=8, activation="silu") for f in (group_norm, plain, exact))
    check_operator(*functions, tensors, torch.float32)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["nchw", "channels_last"])
def test_keeps_the_memory_format(memory_format):
    tensors = inputs(2, 32, 6, 5, "scale-shift")
    x = tensors.pop("x").contiguous(memory_format=memory_format)
    assert group_norm(x, 8, **tensors, activation="silu").is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("offset, limit", [(-50, 1e-4), (1000, 1e-3)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["nchw", "channels_last"])
def test_a_large_offset_causes_no_cancellation(memory_format, offset, limit):
    tensors = inputs(2, 64, 33, 31, offset=offset)
    tensors["x"] = tensors["x"].contiguous(memory_format=memory_format)
    functions = (partial(f, num_groups=32) for f in (group_norm, plain, exact))
    check_operator(*functions, tensors, torch.float32, limit)


@pytest.mark.parametrize("batch", [1, 2])
def test_a_group_of_one_value_becomes_the_bias(batch):
    tensors = inputs(batch, 32, 1, 1)
    x = tensors["x"].requires_grad_()
    y = group_norm(x, 32, tensors["weight"], tensors["bias"])
    assert_close("output", y, tensors["bias"].view(1, 32, 1, 1).expand(batch, 32, 1, 1), 2e-4)
    y.sum().backward()
    assert x.grad.abs().max() < 1e-3


def test_a_constant_image_stays_finite():
    y = group_norm(torch.full((1, 4, 8, 8), -2.3), 2, array("w", 4), torch.arange(4.0))
    assert_close("output", y, torch.arange(4.0).view(1, 4, 1, 1).expand(1, 4, 8, 8), 1e-3)


@pytest.mark.parametrize("eps", [1e-6, 1e-5, 0.3])
def test_eps_is_added_to_the_variance(eps):
    tensors = inputs(1, 8, 4, 4)
    tensors["x"] = tensors["x"] * 0.01
    doubles = {name: x.double() for name, x in tensors.items()}
    assert_close("output", group_norm(**tensors, num_groups=2, eps=eps), exact(**doubles, num_groups=2, eps=eps), 1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=name_of)
def test_float32_parameters_with_16_bit_images(dtype):
    tensors = {name: x.requires_grad_() for name, x in inputs(2, 32, 5, 7, "scale-shift").items()}
    x = tensors.pop("x").detach().to(dtype)
    y = group_norm(x, 8, **tensors, activation="silu")
    assert y.dtype == dtype
    doubles = {name: p.detach().double() for name, p in tensors.items()}
    expected = exact(x.double(), **doubles, num_groups=8, activation="silu")
    assert_close("output", y, expected, torch.finfo(dtype).eps / 4)  # rounded once, at the end
    y.float().square().sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in tensors.values())


W, X = torch.ones(6), torch.ones(2, 6, 3, 3)


@once
@pytest.mark.parametrize(
    "args, options, error, message",
    [
        ((X[0], 2, W, W), {}, ValueError, r"group_norm: x must be \[B, C, H, W\], got shape \(6, 3, 3\)"),
        ((X[:0], 2, W, W), {}, ValueError, "group_norm: x is empty"),
        ((X.long(), 2, W, W), {}, TypeError, "x has dtype torch.int64, expected a floating-point"),
        (([1.0], 2, W, W), {}, TypeError, "x must be a torch.Tensor, got list"),
        ((X, 4, W, W), {}, ValueError, "6 channels do not divide into 4 groups"),
        ((X, 0, W, W), {}, ValueError, "6 channels do not divide into 0 groups"),
        ((X, 2, W[:5], W), {}, ValueError, r"weight has shape \(5,\), expected \(6,\) to match"),
        ((X, 2, W, W[:, None]), {}, ValueError, r"bias has shape \(6, 1\), expected \(6,\)"),
        ((X, 2, W, W), {"scale": W}, ValueError, r"scale has shape \(6,\), expected \(2, 6\)"),
        ((X, 2, W, W), {"shift": X}, ValueError, r"shift has shape .*, expected \(2, 6\)"),
        ((X, 2, W.double(), W), {}, TypeError, "weight has dtype torch.float64, expected x's torch.float32"),
        ((X, 2, W, W.half()), {}, TypeError, "bias has dtype torch.float16"),
        ((X, 2, W.to("meta"), W), {}, ValueError, "weight is on meta, expected x's device cpu"),
        ((X, 2, W, W), {"activation": "gelu"}, ValueError, "activation is 'gelu', expected None or 'silu'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_refuses(args, options, error, message):
    with pytest.raises(error, match=message):
        group_norm(*args, **options)
