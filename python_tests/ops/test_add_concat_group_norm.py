"""add_concat_group_norm against its formula in float64: outputs, gradients, memory layouts; invalid arguments."""

from functools import partial

import pytest
import torch
from comparison import DTYPES, LAYOUTS, check_operator, layouts, name_of
from golden_data import array
from pairwise import BACKENDS, once, pairwise

from resshift_fast.ops import add_concat_group_norm, group_norm
from resshift_fast.ops.add_concat_group_norm import reference

pytestmark = pytest.mark.usefixtures("poisoned_empty", "backend")

CASES = [  # batch, channels of x and of other (None for mode add), groups, height, width, conditioned, activation
    (2, 32, None, 32, 5, 7, False, "silu"),
    (3, 30, None, 5, 3, 1, True, None),
    (2, 20, 12, 8, 5, 7, False, "silu"),
    (1, 7, 14, 3, 9, 4, True, "silu"),
    (3, 64, 32, 32, 1, 5, False, None),
]
IDS = [
    f"B{b}-C{c}{f'+{d}' if d else ''}-G{g}-H{h}-W{w}{'-conditioned' * cond}-{act or 'linear'}"
    for b, c, d, g, h, w, cond, act in CASES
]


def exact(x, other, weight, bias, scale=None, shift=None, *, num_groups, mode="add", eps=1e-5, activation=None):
    """The formula, with explicit sums over each group."""
    merged = x + other if mode == "add" else torch.stack([*x.unbind(1), *other.unbind(1)], dim=1)
    groups = merged.reshape(x.shape[0], num_groups, -1)
    centred = groups - groups.sum(2, keepdim=True) / groups.shape[2]
    variance = centred.square().sum(2, keepdim=True) / groups.shape[2]
    y = (centred / (variance + eps) ** 0.5).reshape(merged.shape) * weight[:, None, None] + bias[:, None, None]
    if scale is not None:
        y = y * (1 + scale[:, :, None, None]) + shift[:, :, None, None]
    return merged, y / (1 + (-y).exp()) if activation == "silu" else y


def plain(x, other, weight, bias, scale=None, shift=None, *, num_groups, mode="add", eps=1e-5, activation=None):
    """The plain PyTorch path, with keyword arguments."""
    return reference(x, other, num_groups, weight, bias, eps, mode, scale, shift, activation)


def inputs(batch, first, second, height, width, conditioned=False):
    """Random tensors; the images have a mean far from 0."""
    channels = first + (second or 0)
    tensors = {
        "x": array("merge.x", batch, first, height, width) - 2.3,
        "other": array("merge.other", batch, second or first, height, width) - 2.3,
        "weight": array("merge.weight", channels),
        "bias": array("merge.bias", channels),
    }
    if conditioned:
        tensors |= {name: array(f"merge.{name}", batch, channels) for name in ("scale", "shift")}
    return tensors


def functions(second, **options):
    mode = "concat" if second else "add"
    return (partial(f, mode=mode, **options) for f in (add_concat_group_norm, plain, exact))


@pairwise(case=dict(zip(IDS, CASES, strict=True)), dtype=DTYPES, backend=BACKENDS)
def test_matches_float64(case, dtype):
    batch, first, second, groups, height, width, conditioned, activation = case
    tensors = inputs(batch, first, second, height, width, conditioned)
    check_operator(*functions(second, num_groups=groups, activation=activation), tensors, dtype)


@pairwise(strength=3, layout=LAYOUTS, second={"add": None, "concat": 8}, name=["x", "other"], backend=BACKENDS)
def test_any_memory_layout(layout, second, name):
    tensors = inputs(2, 16, second, 6, 5)
    tensors[name] = layouts(tensors[name])[layout]
    check_operator(*functions(second, num_groups=4, activation="silu"), tensors, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=name_of)
@pytest.mark.parametrize("second", [None, 8], ids=["add", "concat"])
def test_equals_the_two_operations(second, dtype):
    tensors = {name: x.to(dtype) for name, x in inputs(2, 16, second, 6, 5, conditioned=True).items()}
    x, other, weight, bias = (tensors.pop(name) for name in ("x", "other", "weight", "bias"))
    # Channels-last like the merged image, so that both paths sum in the same order.
    x, other = (image.contiguous(memory_format=torch.channels_last) for image in (x, other))
    mode = "concat" if second else "add"
    merged, y = add_concat_group_norm(x, other, 4, weight, bias, 0.3, mode=mode, **tensors, activation="silu")
    separate = torch.cat([x, other], dim=1) if second else x + other
    assert merged.equal(separate)
    assert y.equal(group_norm(separate, 4, weight, bias, 0.3, **tensors, activation="silu"))


X, OTHER, C, C2 = torch.ones(2, 6, 3, 3), torch.ones(2, 4, 3, 3), torch.ones(6), torch.ones(10)
CONCAT = {"mode": "concat"}


@once
@pytest.mark.parametrize(
    "args, options, error, message",
    [
        ((X[0], X, 2, C, C), {}, ValueError, r"add_concat_group_norm: x must be \[B, C, H, W\], got shape \(6, 3, 3\)"),
        ((X[:0], X, 2, C, C), {}, ValueError, "x is empty"),
        ((X.long(), X, 2, C, C), {}, TypeError, "x has dtype torch.int64"),
        ((X, None, 2, C, C), {}, TypeError, "other must be a torch.Tensor, got NoneType"),
        ((X, OTHER, 2, C, C), {}, ValueError, r"other has shape \(2, 4, 3, 3\), expected \(2, 6, 3, 3\) like x"),
        ((X, X[:1], 2, C, C), {}, ValueError, r"other has shape \(1, 6, 3, 3\), expected \(2, 6, 3, 3\) like x"),
        ((X, X.half(), 2, C, C), {}, TypeError, "other has dtype torch.float16, expected x's torch.float32"),
        ((X, X.to("meta"), 2, C, C), {}, ValueError, "other is on meta"),
        ((X, OTHER[:1], 2, C2, C2), CONCAT, ValueError, r"other has shape .*, expected \(2, 4, 3, 3\) \[B, C2, H, W\]"),
        ((X, OTHER[..., :2], 2, C2, C2), CONCAT, ValueError, r"other has shape .*, expected \(2, 4, 3, 3\)"),
        ((X, OTHER.half(), 2, C2, C2), CONCAT, TypeError, "other has dtype torch.float16, expected x's torch.float32"),
        ((X, OTHER.to("meta"), 2, C2, C2), CONCAT, ValueError, "other is on meta"),
        ((X, OTHER, 3, C2, C2), CONCAT, ValueError, "10 channels do not divide into 3 groups"),
        ((X, X, 0, C, C), {}, ValueError, "6 channels do not divide into 0 groups"),
        ((X, X, 2, C2, C), {}, ValueError, r"weight has shape \(10,\), expected \(6,\) to match the merged channels"),
        ((X, OTHER, 2, C2, C), CONCAT, ValueError, r"bias has shape \(6,\), expected \(10,\)"),
        ((X, X, 2, C, C.half()), {}, TypeError, "bias has dtype torch.float16"),
        ((X, X, 2, C, C), {"scale": C}, ValueError, r"scale has shape \(6,\), expected \(2, 6\)"),
        ((X, X, 2, C, C), {"shift": X}, ValueError, r"shift has shape .*, expected \(2, 6\)"),
        ((X, X, 2, C, C), {"activation": "gelu"}, ValueError, "activation is 'gelu', expected None or 'silu'"),
        ((X, X, 2, C, C), {"mode": "sub"}, ValueError, "mode is 'sub', expected 'add' or 'concat'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_refuses(args, options, error, message):
    with pytest.raises(error, match=message):
        add_concat_group_norm(*args, **options)
