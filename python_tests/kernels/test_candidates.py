"""All candidate configurations of a kernel compute the same: bitwise, or up to rounding."""

import itertools
import os
import sys
import warnings

import pytest
import torch

from resshift_fast.kernels import (
    group_norm,
    group_norm_given,
    pointwise_conv2d,
    residual_shift,
    spatial_attention,
    swin_mlp,
    tuning,
    upsample_conv2d,
    vector_quantize,
    window_attention,
    window_attention_proj,
)
from resshift_fast.kernels.group_norm_tiles import TILE, split_plan

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="only the interpreter ignores warps")


def draw(*shape, dtype=torch.float32):
    return torch.randn(shape).to(dtype)


def images(*shape):
    return draw(*shape).contiguous(memory_format=torch.channels_last)


def norm_apply():
    return group_norm.forward(images(1, 32, 24, 24), 4, draw(32), draw(32), 1e-5, None, None, "silu")


def norm_given():
    x, statistics = images(1, 32, 24, 24), torch.stack([draw(1, 4), draw(1, 4).exp()], dim=1)
    return group_norm_given.forward(x, statistics, draw(32), draw(32), None, None, "silu")


def norm_dx():
    x = images(1, 32, 12, 20)
    *_, mean, rstd = group_norm.forward(x, 4, draw(32), draw(32), 1e-5, None, None, "silu")
    return group_norm.backward(draw(1, 32, 12, 20), x, mean, rstd, 4, draw(32), draw(32), None, None, "silu")


def q_sample():
    return residual_shift.q_sample(
        draw(2, 3, 9, 31), draw(2, 3, 9, 31), torch.tensor([0, 3]), draw(4, 8), draw(2, 3, 9, 31)
    )


def prior_sample():
    seed = torch.tensor([7, 8])
    return residual_shift.prior_sample(draw(2, 3, 9, 31), draw(8), seed, None, None, None, torch.float16)


def quantize_small():
    return vector_quantize.forward(draw(1, 3, 9, 7), draw(500, 3))


def quantize_large():
    return vector_quantize.forward(draw(1, 24, 9, 7), draw(200, 24))


def attention_large():
    return window_attention.forward(draw(1, 8, 8, 96), draw(225, 2), 2, 8, 4, "swin")


def attention_projected():
    qkv, table, weight = draw(1, 8, 8, 192), draw(225, 2), draw(128, 64)
    return window_attention_proj.forward(qkv, table, weight, draw(128), draw(1, 8, 8, 128), 2, 8, 4, "swin")


def attention_backward():
    return window_attention.backward(draw(1, 8, 8, 64), draw(1, 8, 8, 192), draw(225, 1), 1, 8, 0, "swin")


def attention_spatial():
    return spatial_attention.forward(*(images(1, 32, 10, 10) for _ in range(3)))


def pointwise():
    return pointwise_conv2d.forward(images(1, 96, 16, 16), draw(64, 96), draw(64), None, 0, None, None, 1e-5)


def mlp():
    parameters = [draw(*s) for s in ((32,), (32,), (128, 32), (128,), (32, 128), (32,))]
    return swin_mlp.forward(images(1, 32, 8, 8), 8, *parameters, 1e-5)


def upsample():
    return upsample_conv2d.forward(images(1, 32, 6, 6), draw(8, 32, 3, 3), draw(8))[0]


# The configurations differ in blocks of pixels, over which nothing is summed.
SAME = (norm_apply, norm_given, norm_dx, q_sample, prior_sample, quantize_small, quantize_large)
# They differ in blocks of keys or input channels, over which the kernel sums.
REORDERED = (attention_spatial, upsample)
# They differ in blocks of a matrix product; its order of summation is the hardware's, here that of NumPy.
PRODUCTS = (attention_large, attention_projected, pointwise, mlp)


def in_each_candidate(call, monkeypatch):
    """Results with the first candidate of every space that the call uses, with the second, and so on."""
    counts, results = {}, []

    def config(space, bucket, device, trial=None):
        candidates = space.candidates(bucket)
        counts[space.name] = len(candidates)
        return candidates[min(len(results), len(candidates) - 1)]

    monkeypatch.setattr(tuning.Space, "config", config)
    monkeypatch.setattr(group_norm, "forward_plan", lambda *args, **_: split_plan(*args, TILE))
    while not results or len(results) < max(counts.values()):
        torch.manual_seed(0)
        tuning.renew()
        found = call()
        results.append([found] if isinstance(found, torch.Tensor) else [x for x in found if x is not None])
    return results


def names(calls):
    return [call.__name__ for call in calls]


@pytest.mark.parametrize("call", SAME, ids=names(SAME))
def test_blocks_of_pixels_change_no_bit(call, monkeypatch):
    first, *others = in_each_candidate(call, monkeypatch)
    assert len(others) >= 3
    assert all(x.equal(y) for found in others for x, y in zip(found, first, strict=True))


@pytest.mark.parametrize("call", REORDERED, ids=names(REORDERED))
def test_blocks_along_a_sum_change_its_order(call, monkeypatch):
    """So results are only reproducible from run to run because the choice is cached."""
    first, *others = in_each_candidate(call, monkeypatch)
    assert any(not x.equal(y) for found in others for x, y in zip(found, first, strict=True))
    assert_rounded(first, others)


@pytest.mark.parametrize("call", PRODUCTS, ids=names(PRODUCTS))
def test_blocks_of_a_matrix_product_change_only_rounding(call, monkeypatch):
    first, *others = in_each_candidate(call, monkeypatch)
    assert others
    assert_rounded(first, others)


SPACES = [
    value
    for name, module in sys.modules.items()
    if name.startswith("resshift_fast.kernels.")
    for value in vars(module).values()
    if isinstance(value, tuning.Space)
]


ALL = (*SAME, *REORDERED, *PRODUCTS, attention_backward)


@pytest.mark.parametrize("call", ALL, ids=names(ALL))
def test_every_trial_writes_the_defaults_result(call, monkeypatch):
    """By the tuner's comparison, and by the final result, for which the last candidate is made the fastest.

    It and the default are tried, as the tests above run all.
    """
    monkeypatch.setattr(group_norm, "forward_plan", lambda *args, **_: split_plan(*args, TILE))
    for space in SPACES:
        monkeypatch.setattr(space, "_chosen", {})
    every = tuning.Space._all
    monkeypatch.setattr(tuning.Space, "_all", lambda *arguments: [every(*arguments)[i] for i in (0, -1)])
    torch.manual_seed(0)
    expected = call()
    times = itertools.count(1000, -1)

    def timer(trial):
        trial()
        return next(times)

    torch.manual_seed(0)
    with tuning.measuring(timer), tuning.watching() as measured, warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        found = call()
    assert measured and any(choice.config != choice.default for choice in measured)
    as_lists = [[x] if isinstance(x, torch.Tensor) else list(x) for x in (found, expected)]
    assert_rounded(as_lists[1], as_lists[:1])


def assert_rounded(first, others):
    for found in others:
        for x, y in zip(found, first, strict=True):
            assert (x - y).abs().max() <= 1e-6 * y.abs().max()
