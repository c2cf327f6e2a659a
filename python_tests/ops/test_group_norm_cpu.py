"""The C++ kernels of group_norm and add_concat_group_norm: instruction sets, threads, table; invalid arguments."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
from comparison import DTYPES, assert_close, check_operator, name_of
from golden_data import array
from pairwise import ISAS, pairwise

from resshift_fast import use_backend
from resshift_fast.backends import unavailable
from resshift_fast.ops import add_concat_group_norm, group_norm
from resshift_fast.ops.group_norm import reference

pytestmark = [
    pytest.mark.skipif(unavailable("cpu") is not None, reason="the CPU library is not available"),
    pytest.mark.usefixtures("poisoned_empty", "cpu_backend"),
]
FORMATS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}


def kernels():
    return torch.ops.resshift_fast_cpu


@pytest.fixture(scope="module")
def cpu_backend():
    with use_backend("cpu"):
        yield


def inputs(batch, channels, height, width, memory_format=torch.channels_last, offset=-2.3):
    """Random tensors, conditioning included; the image has a mean far from 0."""
    x = array("group_norm.x", batch, channels, height, width) + offset
    tensors = {"x": x.contiguous(memory_format=memory_format)}
    tensors |= {name: array(f"group_norm.{name}", channels) for name in ("weight", "bias")}
    return tensors | {name: array(f"group_norm.{name}", batch, channels) for name in ("scale", "shift")}


def exact(x, weight, bias, scale, shift, *, num_groups):
    """The formula, with explicit sums over each group and SiLU."""
    groups = x.reshape(x.shape[0], num_groups, -1)
    centred = groups - groups.mean(2, keepdim=True)
    normalized = centred / (centred.square().mean(2, keepdim=True) + 1e-5).sqrt()
    y = normalized.reshape(x.shape) * weight[:, None, None] + bias[:, None, None]
    y = y * (1 + scale[:, :, None, None]) + shift[:, :, None, None]
    return y / (1 + (-y).exp())


def plain(x, weight, bias, scale, shift, *, num_groups):
    return reference(x, num_groups, weight, bias, 1e-5, scale, shift, "silu")


SHAPES = [  # batch, channels, groups, height, width: rows of one pixel and of several, parts of rows, several blocks
    (1, 160, 32, 15, 17),
    (2, 15, 3, 9, 11),
    (1, 40, 8, 7, 3),
    (1, 3, 1, 173, 181),
    (2, 640, 32, 2, 2),
    (1, 1025, 5, 3, 5),
    (1, 1, 1, 1, 2),
    (1, 256, 32, 33, 31),
]


@pairwise(strength=3, shape=SHAPES, memory_format=FORMATS, dtype=DTYPES[1:], isa=ISAS)
def test_every_instruction_set_matches_float64(shape, memory_format, dtype, isa):
    batch, channels, groups, height, width = shape
    tensors = inputs(batch, channels, height, width, memory_format)
    ours = partial(group_norm, num_groups=groups, activation="silu")
    # With two values per group, the gradient is a difference of nearly equal terms.
    limit = 1e-3 if channels == 1 and dtype == torch.float32 else None
    functions = ours, partial(plain, num_groups=groups), partial(exact, num_groups=groups)
    check_operator(*functions, tensors, dtype, limit)


@pairwise(mode=["add", "concat"], dtype=DTYPES[1:], isa=ISAS)
def test_every_instruction_set_merges(mode, dtype, isa):
    x = array("merge.x", 2, 20, 40, 41) - 2.3
    other = array("merge.other", 2, 20 if mode == "add" else 11, 40, 41) - 2.3
    channels, groups = (20, 4) if mode == "add" else (31, 31)
    x, other, weight, bias = (t.to(dtype) for t in (x, other, array("merge.w", channels), array("merge.b", channels)))
    merged, y = add_concat_group_norm(x, other, groups, weight, bias, mode=mode, activation="silu")
    assert merged.equal(x + other if mode == "add" else torch.cat([x, other], dim=1))
    expected = reference(merged.double(), groups, weight.double(), bias.double(), 1e-5, None, None, "silu")
    assert_close("normalization", y, expected, 1e-6 if dtype == torch.float32 else torch.finfo(dtype).eps / 3)


@pairwise(memory_format=FORMATS, offset=[-2.3, 1000], isa=ISAS)
def test_the_table_normalizes_exactly(memory_format, offset, isa):
    tensors = inputs(2, 96, 37, 41, memory_format, offset)
    x, weight, bias, scale, shift = tensors.values()
    table = kernels().group_norm_affine(x, 32, weight, bias, 1e-5, scale, shift)
    assert (table.dtype, tuple(table.shape)) == (torch.float32, (2, 3, 96))
    mean, multiplier, offsets = table[:, :, :, None, None].unbind(1)
    z = (x - mean) * multiplier + offsets
    expected = exact(**{name: t.double() for name, t in tensors.items()}, num_groups=32)
    assert_close("normalization", torch.nn.functional.silu(z), expected, 1e-6)
    assert_close("group_norm", group_norm(**tensors, num_groups=32, activation="silu"), expected, 1e-6)


def test_the_table_of_any_layout_and_without_conditioning():
    x = (array("group_norm.x", 2, 12, 5, 7) - 2.3)[:, :, ::2, ::3]
    weight, bias = array("group_norm.weight", 24)[::2], array("group_norm.bias", 12)
    mean, multiplier, offset = kernels().group_norm_affine(x, 3, weight, bias, 1e-5, None, None).unbind(1)
    z = (x - mean[:, :, None, None]) * multiplier[:, :, None, None] + offset[:, :, None, None]
    assert_close("normalization", z, torch.group_norm(x.double(), 3, weight.double(), bias.double()), 1e-6)


def test_a_pivot_from_outliers_causes_no_cancellation():
    """The variance is summed around a pivot, a mean of samples; if those are outliers, it is far from most values."""
    x = array("group_norm.x", 1, 4, 64, 64).contiguous(memory_format=torch.channels_last)
    x[:, :, ::8] += 1e4
    y = group_norm(x, 2, torch.ones(4), torch.zeros(4))
    assert_close("output", y, torch.group_norm(x.double(), 2), 1e-6)


def everything(tensors):
    """The outputs of all kernels for some tensors."""
    x, weight, bias, scale, shift = tensors.values()
    y, mean, rstd = kernels().group_norm(x, 32, weight, bias, 1e-5, scale, shift, 1)
    gradients = kernels().group_norm_backward(y, x, mean, rstd, 32, weight, bias, scale, shift, 1)
    table = kernels().group_norm_affine(x, 32, weight, bias, 1e-5, scale, shift)
    merged = kernels().add_concat_group_norm(x, y, 32, weight, bias, 1e-5, 0, scale, shift, 1)
    return [y, mean, rstd, *gradients, table, *merged]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=name_of)
@pytest.mark.parametrize("memory_format", FORMATS.values(), ids=FORMATS)
def test_threads_change_nothing(memory_format, dtype, two_threads):
    tensors = {name: x.to(dtype) for name, x in inputs(2, 160, 45, 43, memory_format).items()}
    with_two = everything(tensors)
    torch.set_num_threads(1)
    assert all(a.equal(b) for a, b in zip(with_two, everything(tensors), strict=True))


def test_many_threads_call_at_once(two_threads):
    calls = [inputs(1 + i % 2, 64, 20 + i, 33, list(FORMATS.values())[i % 2]) for i in range(8)]
    expected = [everything(tensors) for tensors in calls]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            for found, alone in zip(pool.map(everything, calls), expected, strict=True):
                assert all(a.equal(b) for a, b in zip(found, alone, strict=True))


def test_nan_stays_in_its_group():
    x = inputs(1, 64, 9, 9)["x"]
    x[0, 5, 4, 4] = torch.nan
    y = group_norm(x, 32, torch.ones(64), torch.zeros(64), activation="silu")
    assert y[:, 4:6].isnan().all() and not y[:, :4].isnan().any() and not y[:, 6:].isnan().any()


X, W, STATISTICS = torch.ones(2, 6, 3, 3), torch.ones(6), torch.ones(2, 3)
GOOD = {
    "group_norm": [X, 3, W, W, 1e-5, None, None, 0],
    "group_norm_affine": [X, 3, W, W, 1e-5, None, None],
    "group_norm_backward": [X, X, STATISTICS, STATISTICS, 3, W, W, None, None, 0],
    "add_concat_group_norm": [X, X, 3, W, W, 1e-5, 0, None, None, 0],
}


@pytest.mark.parametrize(
    "name, index, bad, message",
    [
        ("group_norm", 0, X[0], r"must be \[B, C, H, W\]"),
        ("group_norm", 0, X[:0], "not empty"),
        ("group_norm", 0, X.double(), "x must be float32, float16 or bfloat16"),
        ("group_norm", 1, 0, "do not divide into 0 groups"),
        ("group_norm", 1, 4, "do not divide into 4 groups"),
        ("group_norm", 2, W[:5], r"weight must be \[C\]"),
        ("group_norm", 3, W.double(), "bias must be float32"),
        ("group_norm", 5, W, r"scale must be \[B, C\]"),
        ("group_norm", 6, torch.ones(1, 6), r"shift must be \[B, C\]"),
        ("group_norm", 7, 2, "activation must be 0 or 1"),
        ("group_norm_affine", 0, X[0], r"must be \[B, C, H, W\]"),
        ("group_norm_affine", 1, -2, "do not divide into -2 groups"),
        ("group_norm_affine", 5, W, r"scale must be \[B, C\]"),
        ("group_norm_backward", 0, X[:1], "dy has size 1 in dimension 0, expected 2"),
        ("group_norm_backward", 0, X.half(), "dy must have x's dtype"),
        ("group_norm_backward", 2, STATISTICS[:1], "mean has 3 elements, expected 6"),
        ("group_norm_backward", 3, STATISTICS.half(), "rstd has another dtype"),
        ("add_concat_group_norm", 1, X[:, :4], "other must be shaped like x"),
        ("add_concat_group_norm", 1, X[:1], "other must be shaped like x"),
        ("add_concat_group_norm", 1, X.half(), "in x's dtype"),
        ("add_concat_group_norm", 6, 2, "mode must be 0 or 1"),
        ("add_concat_group_norm", 6, 1, r"weight must be \[C\]"),
        ("add_concat_group_norm", 9, -1, "activation must be 0 or 1"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_refuses_invalid_arguments(name, index, bad, message):
    args = list(GOOD[name])
    getattr(kernels(), name)(*args)
    args[index] = bad
    with pytest.raises(RuntimeError, match=message):
        getattr(kernels(), name)(*args)
