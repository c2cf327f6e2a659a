"""vector_quantize against brute force in float64: nearest, ties, NaN, bounded memory, straight-through gradient."""

from importlib import import_module

import pytest
import torch
from comparison import DTYPES, LAYOUTS, LargestTensor, assert_close, layouts, name_of
from golden_data import array
from hypothesis import given, settings
from hypothesis import strategies as st
from pairwise import BACKENDS, once, pairwise

from resshift_fast.ops import vector_quantize

pytestmark = pytest.mark.usefixtures("poisoned_empty", "backend")
module = import_module("resshift_fast.ops.vector_quantize")

CASES = [(2, 3, 512, 9, 7), (1, 8, 100, 5, 5), (3, 1, 17, 1, 4), (1, 4, 1, 3, 3)]
IDS = [f"B{b}-C{c}-N{n}-H{h}-W{w}" for b, c, n, h, w in CASES]


def inputs(batch, channels, entries, height, width, dtype=torch.float32):
    """Random vectors and codebook with means far from 0."""
    z = array("vq.z", batch, channels, height, width) - 2.3
    return z.to(dtype), (array("vq.codebook", entries, channels) - 2.3).to(dtype)


def squared_distances(z, codebook):
    """|z − e|² for every pixel and entry, float64 [B, H, W, N]."""
    return (z.double().permute(0, 2, 3, 1)[..., None, :] - codebook.double()).square().sum(-1)


def assert_nearest(z, codebook, quantized, indices, tolerance=1e-5):
    """Fail unless the chosen entries are the nearest, up to rounding, and the returned vectors are those entries."""
    distances = squared_distances(z, codebook)
    chosen = distances.gather(3, indices[..., None])[..., 0]
    scale = z.double().square().sum(1) + codebook.double().square().sum(1).max()
    assert ((chosen - distances.amin(3)) <= tolerance * scale).all()
    assert torch.equal(quantized, codebook.to(z.dtype)[indices].permute(0, 3, 1, 2))


@pairwise(case=dict(zip(IDS, CASES, strict=True)), dtype=DTYPES, backend=BACKENDS)
def test_matches_brute_force(case, dtype):
    batch, channels, entries, height, width = case
    z, codebook = inputs(batch, channels, entries, height, width, dtype)
    quantized, indices = vector_quantize(z, codebook)
    assert (quantized.dtype, quantized.shape) == (z.dtype, z.shape)
    assert (indices.dtype, indices.shape) == (torch.int64, (batch, height, width))
    # Distances of 16-bit inputs are float32 too, so that they have the same tolerance.
    assert_nearest(z, codebook, quantized, indices, 1e-12 if dtype == torch.float64 else 1e-6)
    if dtype == torch.float64:
        assert torch.equal(indices, squared_distances(z, codebook).argmin(3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=name_of)
def test_a_float32_codebook_with_16_bit_vectors(dtype):
    z, codebook = inputs(2, 3, 512, 9, 7)
    quantized, indices = vector_quantize(z.to(dtype), codebook)
    assert_nearest(z.to(dtype), codebook, quantized, indices, 1e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_memory_layout(layout):
    z, codebook = inputs(3, 3, 64, 6, 5)
    z = layouts(z)[layout]
    strided = torch.stack([codebook, torch.full_like(codebook, torch.nan)], dim=2)[..., 0]
    for entries in (codebook, strided):
        assert_nearest(z, codebook, *vector_quantize(z, entries), 1e-6)


def test_ties_go_to_the_lowest_index():
    codebook = array("vq.ties", 16, 3).repeat(64, 1)  # every entry occurs 64 times
    z = codebook[torch.arange(999, -1, -1)].T.reshape(1, 3, 40, 25).contiguous()
    assert torch.equal(vector_quantize(z, codebook)[1].flatten(), torch.arange(999, -1, -1) % 16)


def test_equidistant_entries_go_to_the_lowest_index():
    codebook = torch.tensor([[3.0], [1.0], [-1.0], [1.0], [-1.0]])
    assert vector_quantize(torch.zeros(1, 1, 1, 1), codebook)[1].item() == 1


def test_a_vector_with_nan_gives_index_0():
    z, codebook = inputs(1, 3, 300, 8, 8)
    clean = vector_quantize(z, codebook)[1].clone()
    z[0, 1, 2, 3] = torch.nan
    z[0, :, 7, 7] = torch.nan
    quantized, indices = vector_quantize(z, codebook)
    assert indices[0, 2, 3] == indices[0, 7, 7] == 0
    assert torch.equal(quantized[0, :, 2, 3], codebook[0])
    clean[0, 2, 3] = clean[0, 7, 7] = 0
    assert torch.equal(indices, clean)


@settings(max_examples=30)
@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 7), st.integers(1, 200))
def test_chunks_change_nothing(entries, height, width, elements):
    z, codebook = inputs(2, 3, entries, height, width)
    expected = vector_quantize(z, codebook)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK_ELEMENTS", elements)
        chunked = vector_quantize(z, codebook)
    # A matrix product's rounding may depend on its number of rows, which can decide near-ties either way.
    assert_nearest(z, codebook, *chunked, 1e-6)
    assert (chunked[1] == expected[1]).double().mean() >= 0.9


def test_memory_is_bounded_by_a_chunk():
    z, codebook = inputs(1, 3, 8192, 48, 48)  # all distances at once would take 75 MB
    with LargestTensor() as largest:
        vector_quantize(z, codebook)
    assert largest.bytes <= 4 * module.CHUNK_ELEMENTS < 4 * 48 * 48 * 8192 / 4


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_the_gradient_passes_straight_through(dtype):
    z, codebook = (x.requires_grad_() for x in inputs(2, 3, 16, 6, 5, dtype))
    quantized, indices = vector_quantize(z, codebook)
    assert not indices.requires_grad
    cotangent = array("vq.cotangent", 2, 3, 6, 5).to(dtype)
    quantized.backward(cotangent)
    assert torch.equal(z.grad, cotangent)
    expected = torch.zeros(16, 3, dtype=torch.float64)
    for b, row, column in torch.cartesian_prod(torch.arange(2), torch.arange(6), torch.arange(5)).tolist():
        expected[indices[b, row, column]] += cotangent[b, :, row, column].double()
    assert codebook.grad.dtype == dtype
    assert_close("gradient of codebook", codebook.grad, expected, 2 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=name_of)
def test_a_16_bit_codebook_gradient_is_summed_in_float32(dtype):
    codebook = torch.zeros(1, 1, dtype=dtype, requires_grad=True)
    quantized, _ = vector_quantize(torch.ones(1, 1, 64, 64, dtype=dtype), codebook)
    quantized.sum().backward()
    assert codebook.grad.item() == 4096


def test_no_gradient_for_a_frozen_codebook():
    z, codebook = inputs(1, 3, 16, 2, 2)
    quantized, _ = vector_quantize(z.requires_grad_(), codebook)
    quantized.sum().backward()
    assert codebook.grad is None and torch.equal(z.grad, torch.ones_like(z))


Z, E = torch.ones(1, 3, 2, 2), torch.ones(5, 3)


@once
@pytest.mark.parametrize(
    "z, codebook, error, message",
    [
        (Z[0], E, ValueError, r"vector_quantize: z must be \[B, C, H, W\]"),
        (Z[:0], E, ValueError, "vector_quantize: z is empty"),
        (Z.long(), E, TypeError, "z has dtype torch.int64"),
        (Z, E[:, :2], ValueError, r"codebook has shape \(5, 2\), expected \(N, 3\)"),
        (Z, E[:0], ValueError, r"codebook has shape \(0, 3\)"),
        (Z, E[0], ValueError, r"codebook has shape \(3,\)"),
        (Z, E.double(), TypeError, "codebook has dtype torch.float64, expected x's torch.float32"),
        (Z, E.to("meta"), ValueError, "codebook is on meta"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_refuses(z, codebook, error, message):
    with pytest.raises(error, match=message):
        vector_quantize(z, codebook)
