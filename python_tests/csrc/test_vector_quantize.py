"""The vector-quantization kernels, executed on the CPU, against brute force in float64: nearest, ties, NaN, layouts.

Codebooks of 3, 4 and 8 channels take the narrow kernel, others the wide one.
"""

import pytest
import torch
from comparison import layouts, name_of
from emulation import array, filled
from golden_data import array as random

CASES = [
    (2, 3, 700, 9, 7),
    (1, 3, 3000, 1, 1),
    (3, 3, 1, 4, 4),
    (1, 3, 1023, 4, 9),
    (1, 4, 1025, 5, 5),
    (2, 8, 300, 5, 5),
    (1, 8, 5, 1, 17),
    (1, 1, 17, 1, 4),
    (1, 2, 129, 6, 6),
    (1, 9, 260, 5, 7),
    (2, 16, 128, 4, 8),
    (1, 40, 130, 2, 17),
    (1, 200, 77, 3, 3),
]
IDS = [f"B{b}-C{c}-N{n}-H{h}-W{w}" for b, c, n, h, w in CASES]
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
WIDTHS = [3, 4, 8, 12]


def inputs(batch, channels, entries, height, width, dtype=torch.float32):
    """Random vectors and codebook with means far from 0."""
    z = random("vq.z", batch, channels, height, width) - 2.3
    return z.to(dtype), (random("vq.codebook", entries, channels) - 2.3).to(dtype)


def quantize(emulated, z, codebook):
    """(quantized, indices) of the kernel; elements that it does not write stay NaN or −1."""
    batch, _, height, width = z.shape
    quantized, indices = filled(*z.shape, dtype=z.dtype), torch.full((batch, height, width), -1)
    emulated.vector_quantize(*(array(x) for x in (z, codebook, quantized, indices)))
    return quantized, indices


def squared_distances(z, codebook):
    """|z − e|² for every pixel and entry, float64 [B, H, W, N]."""
    return (z.double().permute(0, 2, 3, 1)[..., None, :] - codebook.double()).square().sum(-1)


def assert_nearest(z, codebook, quantized, indices):
    """Fail unless the entries are the nearest, up to rounding, and the returned vectors are those entries."""
    distances = squared_distances(z, codebook)
    nearest = distances.amin(3)
    assert (distances.gather(3, indices[..., None])[..., 0] - nearest <= 1e-6 * nearest).all()
    assert torch.equal(quantized, codebook[indices].permute(0, 3, 1, 2).to(z.dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_matches_brute_force(case, dtype, emulated):
    z, codebook = inputs(*case, dtype)
    quantized, indices = quantize(emulated, z, codebook)
    assert_nearest(z, codebook, quantized, indices)
    if dtype == torch.float32:
        assert torch.equal(indices, squared_distances(z, codebook).argmin(3))


@pytest.mark.parametrize("channels", WIDTHS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=name_of)
def test_a_float32_codebook_with_16_bit_vectors(dtype, channels, emulated):
    z, codebook = inputs(2, channels, 300, 5, 7)
    assert_nearest(z.to(dtype), codebook, *quantize(emulated, z.to(dtype), codebook))


@pytest.mark.parametrize("channels", WIDTHS)
@pytest.mark.parametrize("layout", ["channels_last", "strided", "offset", "expanded"])
def test_any_memory_layout(layout, channels, emulated):
    z, codebook = inputs(2, channels, 150, 6, 5)
    z = layouts(z)[layout]
    for ours, expected in zip(
        quantize(emulated, z, codebook), quantize(emulated, z.contiguous(), codebook), strict=True
    ):
        assert torch.equal(ours, expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("channels", WIDTHS)
def test_misaligned_memory_gives_the_same(channels, dtype, emulated):
    z, codebook = inputs(2, channels, 301, 6, 5, dtype)
    expected = quantize(emulated, z, codebook)
    moved = [torch.cat([x.new_full((1,), torch.nan), x.flatten()])[1:].view(x.shape) for x in (z, codebook)]
    for ours, other in zip(quantize(emulated, *moved), expected, strict=True):
        assert torch.equal(ours, other)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("channels", WIDTHS)
def test_ties_go_to_the_lowest_index(channels, dtype, in_all_orders, emulated):
    codebook = random("vq.ties", 16, channels).to(dtype).repeat(140, 1)  # ties within every thread, step and tile
    order = torch.arange(99, -1, -1)
    z = codebook[order].T.reshape(1, channels, 20, 5).contiguous()
    _, indices = in_all_orders(lambda: quantize(emulated, z, codebook))
    assert torch.equal(indices.flatten(), order % 16)


@pytest.mark.parametrize("channels", WIDTHS)
def test_near_ties_are_decided_as_in_exact_arithmetic(channels, emulated):
    # Far from 0, |e|² − 2 z·e in float32 could not distinguish these entries.
    near = torch.tensor([[0.0, 0, 0.5], [0.25, 0, 0], [0, 0.125, 0], [0.125, 0, 0.125]])
    codebook = torch.nn.functional.pad(near, (0, channels - 3)) + 1000
    z = 1000 + random("vq.near", 1, channels, 9, 5) / 8
    _, indices = quantize(emulated, z, codebook)
    assert torch.equal(indices, squared_distances(z, codebook).argmin(3)) and indices.unique().numel() >= 3


@pytest.mark.parametrize("channels", [1, *WIDTHS])
def test_equidistant_entries_go_to_the_lowest_index(channels, emulated):
    codebook = torch.tensor([3.0, 1, -1, 1, -1])[:, None].expand(5, channels).contiguous()
    assert quantize(emulated, torch.zeros(1, channels, 1, 1), codebook)[1].item() == 1


@pytest.mark.parametrize("channels", WIDTHS)
def test_a_vector_that_is_not_finite_gives_index_0(channels, emulated):
    z, codebook = inputs(1, channels, 300, 8, 8)
    expected = quantize(emulated, z, codebook)[1]
    z[0, 1, 2, 3] = torch.nan
    z[0, :, 7, 7] = torch.nan
    z[0, 0, 5, 5] = torch.inf
    quantized, indices = quantize(emulated, z, codebook)
    for row, column in ((2, 3), (7, 7), (5, 5)):
        assert expected[0, row, column] != 0
        expected[0, row, column] = 0
        assert torch.equal(quantized[0, :, row, column], codebook[0])
    assert torch.equal(indices, expected)


@pytest.mark.parametrize("channels", WIDTHS)
def test_the_order_of_threads_changes_nothing(channels, in_all_orders, emulated):
    z, codebook = inputs(2, channels, 1500, 5, 8, torch.bfloat16)
    assert_nearest(z, codebook, *in_all_orders(lambda: quantize(emulated, z, codebook)))
