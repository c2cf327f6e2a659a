"""The launcher of residual_block against float64, and the launches of small planes and of others."""

import pytest
import torch
from comparison import LIMITS, assert_close, double, relative_error
from interpreter import DTYPES, SIXTEEN_BITS
from pairwise import pairwise

from resshift_fast.kernels import residual_block
from resshift_fast.kernels.launch import record
from resshift_fast.ops import norm_stats
from resshift_fast.ops.residual_block import Arguments, _examples, _statistics_examples, reference

pytestmark = pytest.mark.usefixtures("poisoned_empty")

CASES = ["identity", "concatenated", "skip", "large"]  # of the verification


def assert_matches(arguments, following=()):
    """y is channels-last, and its error at most twice that of separate operations in the same dtype.

    With `following`, next_groups and next_eps, statistics are those of y as it is stored.
    """
    x, exact = arguments[0], reference(*double(arguments))
    if following:
        y, statistics = residual_block.forward_with_statistics(*arguments, *following)
        assert statistics.dtype == torch.float32
        assert_close("statistics", statistics, norm_stats.reference(y.double(), *following), 1e-5)
    else:
        y = residual_block.forward(*arguments)
    assert y.dtype == x.dtype and y.is_contiguous(memory_format=torch.channels_last)
    allowed = LIMITS[x.dtype]
    if x.dtype != torch.float32:
        allowed = min(allowed, 2 * relative_error(reference(*arguments), exact))
    assert_close("y", y, exact, allowed)


# In float32 a large block is separate operations, as the others are, and takes the interpreter seconds.
@pairwise(
    case=CASES,
    dtype=DTYPES,
    statistics={"statistics": True, "": False},
    allowed=lambda case: case["case"] != "large" or case["dtype"] != torch.float32,
)
def test_matches_float64(case, dtype, statistics, device):
    *arguments, groups, eps = _statistics_examples(device, dtype)[CASES.index(case)]
    assert residual_block.unsupported(*arguments) is None
    assert_matches(arguments, (groups, eps) if statistics else ())


@pytest.mark.parametrize("case", ["identity", "large"])
def test_given_statistics_and_float32_parameters(case, device):
    a = Arguments(*_examples(device, SIXTEEN_BITS[0])[CASES.index(case)])
    wide = {name: t.float() for name, t in a._asdict().items() if name != "x" and isinstance(t, torch.Tensor)}
    statistics = norm_stats.reference(a.x, a.num_groups, a.eps)
    assert_matches(a._replace(**wide, statistics=statistics))


def launched(channels, side, dtype=torch.bfloat16, other=0, following=(), **changes):
    """Names of the launches of one block with 32·k channels on the meta device."""
    device = torch.device("meta")
    a = Arguments(*_examples(torch.device("cpu"), dtype)[CASES.index("concatenated" if other else "identity")])
    images = {"x": torch.empty(1, channels, side, side, dtype=dtype, device=device)}
    if other:
        images["other"] = torch.empty(1, other, side, side, dtype=dtype, device=device)
    images = {name: x.contiguous(memory_format=torch.channels_last) for name, x in images.items()}
    rest = {name: t.to(device) for name, t in a._asdict().items() if isinstance(t, torch.Tensor) and name not in images}
    rest |= {name: rest[name][:1] for name in ("scale", "shift")}
    arguments = a._replace(**images, **rest)._replace(**changes)
    with record() as launches:
        if following:
            y, statistics = residual_block.forward_with_statistics(*arguments, *following)
            assert statistics.shape == (1, 2, following[0])
        else:
            y = residual_block.forward(*arguments)
    assert y.shape == (1, 64, side, side)
    return [launch.name for launch in launches]


def test_small_planes_take_two_launches_of_the_convolution():
    norm = "add_concat_group_norm_kernel"
    convolutions = ["conv2d_kernel"] * 2
    assert launched(64, 8) == ["group_stats_kernel", *convolutions]
    assert launched(64, 8, statistics=torch.empty(1, 2, 32, device="meta")) == convolutions
    assert launched(56, 16, other=40) == [norm, *convolutions]


def test_other_planes_normalize_in_passes_of_their_own():
    rest = ["conv2d_sum_kernel", "group_norm_given_kernel", "conv2d_sum_kernel"]
    assert launched(64, 32) == ["group_norm_fwd_kernel", *rest]
    assert launched(64, 32, statistics=torch.empty(1, 2, 32, device="meta")) == ["group_norm_given_kernel", *rest]
    assert launched(56, 32, other=40) == ["add_concat_group_norm_kernel", *rest]
    assert launched(56, 128, other=40) == ["merge_group_stats_kernel", "concat_group_norm_kernel", *rest]


@pytest.mark.parametrize("side", [8, 32])
def test_statistics_of_the_result_take_no_launch_of_their_own(side):
    assert launched(64, side, following=(32, 1e-5)) == launched(64, side)


def test_float32_takes_separate_operations():
    assert not {"conv2d_kernel", "conv2d_sum_kernel"} & {*launched(64, 8, torch.float32)}


def test_unsupported_arguments_have_a_reason(device):
    arguments = _examples(device, torch.float32)[0]
    assert residual_block.unsupported(*double(arguments)) == "x is float64"
