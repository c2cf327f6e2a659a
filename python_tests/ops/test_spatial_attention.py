"""spatial_attention against its formula in float64, pixel by pixel; bounded memory; invalid arguments."""

from importlib import import_module

import pytest
import torch
from comparison import DTYPES, LAYOUTS, LargestTensor, assert_close, check_operator, layouts
from golden_data import array
from pairwise import BACKENDS, once, pairwise
from torch.nn.attention import SDPBackend, sdpa_kernel

from resshift_fast import use_backend
from resshift_fast.ops import spatial_attention
from resshift_fast.ops.spatial_attention import reference

pytestmark = pytest.mark.usefixtures("poisoned_empty", "backend")
module = import_module("resshift_fast.ops.spatial_attention")

CASES = [(2, 16, 5, 7), (1, 3, 1, 1), (3, 33, 1, 6), (1, 64, 8, 9)]
IDS = [f"B{b}-C{c}-H{h}-W{w}" for b, c, h, w in CASES]


def exact(q, k, v):
    """The formula, one query pixel at a time."""
    batch, channels, _height, _width = q.shape
    keys, values = k.reshape(batch, channels, -1), v.reshape(batch, channels, -1)
    columns = []
    for pixel in q.reshape(batch, channels, -1).unbind(2):
        weights = ((pixel[:, :, None] * keys).sum(1) / channels**0.5).exp()
        columns.append((weights[:, None] * values).sum(2) / weights.sum(1, keepdim=True))
    return torch.stack(columns, dim=2).reshape(q.shape)


def inputs(batch, channels, height, width):
    """Random tensors with means far from 0; a query's largest weight differs from pixel to pixel."""
    shape = batch, channels, height, width
    return {"q": array("spatial.q", *shape), "k": array("spatial.k", *shape), "v": array("spatial.v", *shape) - 2.3}


@pairwise(case=dict(zip(IDS, CASES, strict=True)), dtype=DTYPES, backend=BACKENDS)
def test_matches_float64(case, dtype):
    batch, channels, height, width = case
    check_operator(spatial_attention, reference, exact, inputs(batch, channels, height, width), dtype)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_memory_layout(layout):
    tensors = {name: layouts(x)[layout] for name, x in inputs(2, 6, 5, 4).items()}
    check_operator(spatial_attention, reference, exact, tensors, torch.float32)


@pytest.mark.parametrize("elements", [1, 70, 71, 2 * 35 * 34, 10**9])
def test_blocks_of_queries_change_nothing(elements, monkeypatch):
    tensors = inputs(2, 6, 5, 7)
    expected = exact(**{name: x.double() for name, x in tensors.items()})
    monkeypatch.setattr(module, "SCORE_ELEMENTS", elements)
    assert_close("output", spatial_attention(**tensors), expected, 1e-5)
    check_operator(spatial_attention, reference, exact, tensors, torch.float32)


def test_the_memory_of_scores_is_bounded(monkeypatch):
    tensors = inputs(2, 4, 32, 32)  # 2 · 1024² scores
    monkeypatch.setattr(module, "SCORE_ELEMENTS", 2 * 1024 * 16)
    # PyTorch's unfused kernel allocates scores as tensors, which can be measured; fused ones allocate fewer.
    with sdpa_kernel(SDPBackend.MATH), LargestTensor() as largest:
        out = spatial_attention(**tensors)
    assert largest.bytes <= 4 * 2 * 1024 * 16
    monkeypatch.undo()
    with use_backend("reference"), sdpa_kernel(SDPBackend.MATH), LargestTensor() as largest:
        assert_close("output", out, spatial_attention(**tensors), 1e-5)
    assert largest.bytes >= 4 * 2 * 1024 * 1024  # shows that the measurement sees scores


def test_large_scores_do_not_overflow():
    tensors = inputs(1, 8, 4, 4)
    tensors["q"] = tensors["q"] * 100
    one_hot = (tensors["q"].flatten(2).transpose(1, 2) @ tensors["k"].flatten(2)).argmax(2)
    out = spatial_attention(**tensors)
    assert out.isfinite().all()
    sharp = tensors["v"].flatten(2)[:, :, one_hot[0]].reshape(out.shape)
    assert_close("output", out, sharp, 0.1)


X = torch.ones(2, 4, 3, 3)


@once
@pytest.mark.parametrize(
    "args, error, message",
    [
        ((X[0], X, X), ValueError, r"spatial_attention: q must be \[B, C, H, W\]"),
        ((X[:0], X, X), ValueError, "spatial_attention: q is empty"),
        ((X.long(), X, X), TypeError, "q has dtype torch.int64"),
        ((X, X[:1], X), ValueError, r"k has shape \(1, 4, 3, 3\), expected \(2, 4, 3, 3\) like q"),
        ((X, X, X[:, :2]), ValueError, r"v has shape \(2, 2, 3, 3\), expected \(2, 4, 3, 3\) like q"),
        ((X, X.half(), X), TypeError, "k has dtype torch.float16, expected q's torch.float32"),
        ((X, X, X.to("meta")), ValueError, "v is on meta, expected q's device cpu"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_refuses(args, error, message):
    with pytest.raises(error, match=message):
        spatial_attention(*args)
