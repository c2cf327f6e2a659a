"""The group normalization kernel with given statistics against float64: group widths, layouts, dtypes."""

import pytest
import torch
from comparison import LAYOUTS, LIMITS, assert_close, double, layouts, name_of
from golden_data import array
from interpreter import DTYPES

from resshift_fast.kernels import group_norm_given
from resshift_fast.kernels.launch import record
from resshift_fast.ops import norm_stats

pytestmark = pytest.mark.usefixtures("poisoned_empty")

SHAPES = [
    (1, 8, 5, 3, 8),
    (2, 40, 7, 5, 4),
    (1, 96, 9, 33, 32),
    (2, 3, 1, 1, 1),
    (1, 33, 70, 2, 3),
]  # B, C, H, W, groups
FORMATS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}


def inputs(shape, device, dtype=torch.float32, conditioned=True, activation="silu"):
    """The launcher's arguments, with statistics that are not those of x."""
    batch, channels, *_, groups = shape
    x = (array("group_norm.x", *shape[:4]) - 2.3).to(device, dtype)
    statistics = torch.stack(
        [array("given.mean", batch, groups) - 2, (array("given.rstd", batch, groups) / 4).exp()], dim=1
    ).to(device)
    sizes = {"weight": (channels,), "bias": (channels,), "scale": (batch, channels), "shift": (batch, channels)}
    weight, bias, scale, shift = (array(f"group_norm.{n}", *size).to(device, dtype) for n, size in sizes.items())
    scale, shift = (scale, shift) if conditioned else (None, None)
    return [x, statistics, weight, bias, scale, shift, activation]


def check(arguments):
    x = arguments[0]
    y = group_norm_given.forward(*arguments)
    assert y.dtype == x.dtype and y.stride() == torch.empty_like(x).stride()
    doubles = double(arguments)
    assert_close("y", y, norm_stats.normalized(*doubles), LIMITS[x.dtype])


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "B{}-C{}-H{}-W{}-G{}".format(*shape))
def test_matches_float64(shape, layout, dtype, device):
    arguments = inputs(shape, device, dtype)
    arguments[0] = arguments[0].contiguous(memory_format=FORMATS[layout])
    assert group_norm_given.unsupported(*arguments) is None
    check(arguments)


@pytest.mark.parametrize("conditioned, activation", [(False, None), (False, "silu"), (True, None)])
def test_options(conditioned, activation, device):
    check(inputs(SHAPES[1], device, torch.float32, conditioned, activation))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_memory_layout(layout, device):
    arguments = inputs((2, 40, 7, 5, 4), device)
    arguments[0] = layouts(arguments[0])[layout]
    check(arguments)


def test_scale_and_shift_may_be_views(device):
    arguments = inputs((2, 40, 7, 5, 4), device)
    arguments[4:6] = array("group_norm.modulation", 2, 80).to(device).chunk(2, dim=1)
    check(arguments)


def test_one_pass():
    arguments = inputs((2, 160, 64, 64, 32), "meta", torch.bfloat16, conditioned=False)
    arguments[0] = arguments[0].contiguous(memory_format=torch.channels_last)
    with record() as launches:
        y = group_norm_given.forward(*arguments)
    assert [launch.name for launch in launches] == ["group_norm_given_kernel"]
    assert launches[0].num_bytes == 2 * 2 * y.numel() + 2 * 2 * 160 + 2 * 2 * 32 * 4
    assert launches[0].grid[0] >= 132


def test_unsupported_arguments_have_a_reason(device):
    arguments = inputs((1, 8, 5, 3, 8), device)
    assert "float64" in group_norm_given.unsupported(arguments[0].double(), *arguments[1:])
    wide = torch.ones(1, 4097, 1, 1, device=device)
    assert "4097 channels a group" in group_norm_given.unsupported(wide, torch.ones(1, 2, 1, device=device))
