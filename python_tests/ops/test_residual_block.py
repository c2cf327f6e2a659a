"""residual_block against its formula in float64: outputs, gradients, memory layouts."""

from functools import partial

import pytest
import torch
from comparison import LAYOUTS, check_operator, layouts
from golden_data import array
from pairwise import BACKENDS, once, pairwise

from resshift_fast.ops import norm_stats, residual_block
from resshift_fast.ops.residual_block import reference

pytestmark = pytest.mark.usefixtures("backend")

SIZES = [(2, 12, 0, 12, 5, 7), (2, 8, 4, 16, 3, 4), (1, 12, 0, 8, 6, 1)]  # B, C, C of other, O, H, W


def inputs(batch, channels, other, out_channels, height, width, conditioned=True):
    """Tensors of a call; the images have means far from 0."""
    merged = channels + other
    shapes = {"x": (batch, channels, height, width), "norm1_weight": (merged,), "norm1_bias": (merged,)}
    shapes |= {"weight1": (out_channels, merged, 3, 3), "bias1": (out_channels,), "norm2_weight": (out_channels,)}
    shapes |= {"norm2_bias": (out_channels,), "weight2": (out_channels, out_channels, 3, 3), "bias2": (out_channels,)}
    if other:
        shapes["other"] = batch, other, height, width
    if conditioned:
        shapes |= {"scale": (batch, out_channels), "shift": (batch, out_channels)}
    if merged != out_channels:
        shapes |= {"skip_weight": (out_channels, merged), "skip_bias": (out_channels,)}
    tensors = {name: array(f"residual_block.{name}", *shape) for name, shape in shapes.items()}
    return tensors | {name: tensors[name] - 2.3 for name in ("x", "other") if name in tensors}


def exact(x, norm1_weight, norm1_bias, weight1, bias1, norm2_weight, norm2_bias, weight2, bias2, other=None,
          scale=None, shift=None, skip_weight=None, skip_bias=None, *, num_groups, next_groups=None):  # fmt: skip
    """The formula, with explicit sums over each group and the nine taps."""

    def norm(x, weight, bias):
        groups = x.reshape(x.shape[0], num_groups, -1)
        centred = groups - groups.mean(2, keepdim=True)
        y = (centred / (centred.square().mean(2, keepdim=True) + 1e-5).sqrt()).reshape(x.shape)
        return y * weight[:, None, None] + bias[:, None, None]

    def convolve(x, weight, bias):
        height, width = x.shape[2:]
        padded = torch.nn.functional.pad(x, (1, 1, 1, 1))
        taps = [(i, j, padded[:, :, i : i + height, j : j + width]) for i in range(3) for j in range(3)]
        y = sum(torch.einsum("oc,bchw->bohw", weight[:, :, i, j], tap) for i, j, tap in taps)
        return y + bias[:, None, None]

    x = x if other is None else torch.cat([x, other], dim=1)
    h = norm(x, norm1_weight, norm1_bias)
    h = norm(convolve(h * h.sigmoid(), weight1, bias1), norm2_weight, norm2_bias)
    if scale is not None:
        h = h * (1 + scale[:, :, None, None]) + shift[:, :, None, None]
    h = convolve(h * h.sigmoid(), weight2, bias2)
    if skip_weight is not None:
        x = torch.einsum("oc,bchw->bohw", skip_weight, x) + skip_bias[:, None, None]
    y = x + h
    if next_groups is None:
        return y
    groups = y.reshape(y.shape[0], next_groups, -1)
    mean = groups.mean(2, keepdim=True)
    return y, torch.cat([mean, 1 / ((groups - mean).square().mean(2, keepdim=True) + 1e-3).sqrt()], 2).transpose(1, 2)


def by_name(function, other=None, scale=None, shift=None, skip_weight=None, skip_bias=None, *, num_groups, following=(),
            **tensors):  # fmt: skip
    """`function` of the registered operator's positional arguments, by name."""
    names = ("norm1_weight", "norm1_bias", "weight1", "bias1", "norm2_weight", "norm2_bias", "weight2", "bias2")
    first = (tensors["x"], other, num_groups, *(tensors[name] for name in names))
    return function(*first, scale, shift, skip_weight, skip_bias, 1e-5, None, *following)


def public(other=None, **arguments):
    return residual_block(other=other, **arguments)


@pairwise(
    size=SIZES,
    conditioned={"modulated": True, "": False},
    dtype=[torch.float32, torch.float64, torch.bfloat16],
    way=["public", "registered"],
    backend=BACKENDS[:1],  # the only other backend is in kernels/test_residual_block.py
)
def test_matches_float64(size, conditioned, dtype, way):
    ours = public if way == "public" else partial(by_name, torch.ops.resshift_fast.residual_block)
    functions = (partial(f, num_groups=4) for f in (ours, partial(by_name, reference), exact))
    check_operator(*functions, inputs(*size, conditioned), dtype)


@pairwise(
    size=SIZES,
    groups=[1, 4],
    dtype=[torch.float32, torch.float64],
    way=["public", "registered"],
    backend=BACKENDS[:1],
)
def test_statistics_of_the_result_match_float64(size, groups, dtype, way):
    registered = torch.ops.resshift_fast.residual_block_statistics
    following = {"next_groups": groups, "next_eps": 1e-3}
    plain, registered = (
        partial(by_name, f, following=tuple(following.values()))
        for f in (norm_stats.with_statistics(reference), registered)
    )
    ours = partial(public, **following) if way == "public" else registered
    functions = (partial(f, num_groups=4) for f in (ours, plain, partial(exact, next_groups=groups)))
    check_operator(*functions, inputs(*size), dtype)


@once
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_memory_layout(layout):
    tensors = inputs(*SIZES[0])
    tensors["x"] = layouts(tensors["x"])[layout]
    expected = exact(**{name: t.double() for name, t in tensors.items()}, num_groups=4)
    torch.testing.assert_close(public(**tensors, num_groups=4).double(), expected, rtol=1e-4, atol=1e-4)


@once
def test_refuses_groups_that_do_not_divide_the_result():
    with pytest.raises(ValueError, match="residual_block: next_groups is 5, but 12 channels"):
        public(**inputs(*SIZES[0]), num_groups=4, next_groups=5)


@once
def test_refuses_statistics_of_a_concatenation():
    tensors = inputs(*SIZES[1])
    with pytest.raises(ValueError, match="statistics are given, but x is to be concatenated"):
        public(**tensors, num_groups=4, statistics=torch.ones(2, 2, 4))
