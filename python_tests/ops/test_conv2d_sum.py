"""conv2d_sum against its formula in float64: outputs, gradients, dtypes of images, and wrong arguments."""

from functools import partial

import pytest
import torch
from comparison import check_operator
from golden_data import array
from pairwise import BACKENDS, once, pairwise

from resshift_fast.ops import conv2d_sum, norm_stats
from resshift_fast.ops.conv2d_sum import reference

pytestmark = pytest.mark.usefixtures("backend")

SIZES = [(2, 12, 8, 5, 7), (1, 3, 16, 4, 1)]  # B, C, O, H, W


def inputs(batch, channels, out_channels, height, width, residual=True, skip=2):
    """Tensors of a call, with that many images of the skip connection; x has a mean far from 0."""
    plane = height, width
    shapes = {"x": (batch, channels, *plane), "weight": (out_channels, channels, 3, 3), "bias": (out_channels,)}
    if residual:
        shapes["residual"] = (batch, out_channels, *plane)
    if skip:
        shapes |= {
            "skip": (batch, 6, *plane),
            "skip_weight": (out_channels, 3 + 3 * skip),
            "skip_bias": (out_channels,),
        }
    if skip == 2:
        shapes["other"] = (batch, 3, *plane)
    tensors = {name: array(f"conv2d_sum.{name}", *shape) for name, shape in shapes.items()}
    return tensors | {"x": tensors["x"] - 2.3}


def exact(x, weight, bias, residual=None, skip=None, other=None, skip_weight=None, skip_bias=None, *, groups):
    """The formula, with an explicit sum over the nine taps."""
    height, width = x.shape[2:]
    padded = torch.nn.functional.pad(x, (1, 1, 1, 1))
    taps = [(i, j, padded[:, :, i : i + height, j : j + width]) for i in range(3) for j in range(3)]
    y = sum(torch.einsum("oc,bchw->bohw", weight[:, :, i, j], tap) for i, j, tap in taps) + bias[:, None, None]
    if residual is not None:
        y = y + residual
    if skip is not None:
        both = skip if other is None else torch.cat([skip, other], dim=1)
        y = y + torch.einsum("oc,bchw->bohw", skip_weight, both) + skip_bias[:, None, None]
    if not groups:
        return y
    values = y.reshape(y.shape[0], groups, -1)
    mean = values.mean(2)
    variance = (values - mean[..., None]).square().mean(2)
    return y, torch.stack([mean, 1 / (variance + 1e-3).sqrt()], dim=1)


def public(*, groups, **tensors):
    y, statistics = conv2d_sum(**tensors, next_groups=groups, next_eps=1e-3)
    return (y, statistics) if groups else y


def by_name(
    function, x, weight, bias, residual=None, skip=None, other=None, skip_weight=None, skip_bias=None, *, groups
):
    """`function` of the registered operator's positional arguments, by name."""
    y, statistics = function(x, weight, bias, residual, skip, other, skip_weight, skip_bias, groups, 1e-3)
    return (y, statistics) if groups else y


@pairwise(
    size=SIZES,
    residual={"residual": True, "": False},
    skip={"": 0, "skip": 1, "skip-of-two": 2},
    groups=[0, 4],
    dtype=[torch.float32, torch.float64],
    way=["public", "registered"],
    backend=BACKENDS[:1],  # the only other backend is in kernels/test_conv2d_sum.py
)
def test_matches_float64(size, residual, skip, groups, dtype, way):
    ours = public if way == "public" else partial(by_name, torch.ops.resshift_fast.conv2d_sum)
    functions = (partial(f, groups=groups) for f in (ours, partial(by_name, reference), exact))
    check_operator(*functions, inputs(*size, residual, skip), dtype)


@once
def test_images_are_cast_and_statistics_are_those_of_the_rounded_result():
    tensors = inputs(*SIZES[0])
    x = tensors.pop("x").bfloat16()
    y, statistics = conv2d_sum(x, **tensors, next_groups=4)
    assert y.dtype == torch.bfloat16 and statistics.dtype == torch.float32
    torch.testing.assert_close(statistics, norm_stats.reference(y, 4, 1e-5))


@once
@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"residual": torch.ones(2, 8, 5, 6)}, r"residual has shape \(2, 8, 5, 6\)"),
        ({"skip_weight": None}, "only some of skip"),
        ({"skip": None}, "only some of skip"),
        ({"other": torch.ones(2, 4, 5, 7)}, r"skip_weight has shape \(8, 9\), expected \(8, 10\)"),
        ({"next_groups": 3}, "next_groups is 3, but 8 channels"),
        ({"skip": torch.ones(2, 6, 5, 7, device="meta")}, "skip is on meta"),
    ],
    ids=["residual", "no-skip-weight", "no-skip", "other", "groups", "device"],
)
def test_wrong_arguments(changes, error):
    with pytest.raises(ValueError, match=error):
        conv2d_sum(**inputs(*SIZES[0]) | changes)
