"""The vector-quantization kernels against brute force in float64: ties, NaN, layouts, launches."""

import numpy as np
import pytest
import torch
import triton
from comparison import LAYOUTS, layouts, name_of
from golden_data import array
from interpreter import truncates

from resshift_fast.kernels import tuning, vector_quantize
from resshift_fast.kernels.launch import record

pytestmark = pytest.mark.usefixtures("poisoned_empty")

CASES = [
    (2, 3, 700, 9, 7),
    (1, 1, 17, 1, 4),
    (1, 4, 1, 3, 3),
    (2, 8, 300, 5, 5),
    (1, 9, 260, 5, 7),
    (1, 40, 130, 2, 17),
]
IDS = [f"B{b}-C{c}-N{n}-H{h}-W{w}" for b, c, n, h, w in CASES]
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def inputs(batch, channels, entries, height, width, device, dtype=torch.float32):
    """Random vectors and codebook with means far from 0."""
    z = array("vq.z", batch, channels, height, width) - 2.3
    return z.to(dtype).to(device), (array("vq.codebook", entries, channels) - 2.3).to(dtype).to(device)


def squared_distances(z, codebook):
    """|z − e|² for every pixel and entry, float64 [B, H, W, N]."""
    return (z.double().permute(0, 2, 3, 1)[..., None, :] - codebook.double()).square().sum(-1)


def assert_nearest(z, codebook, quantized, indices):
    """The entries are nearest up to float32 rounding of distances, and the vectors returned are those entries."""
    distances = squared_distances(z, codebook)
    chosen = distances.gather(3, indices[..., None])[..., 0]
    # The rounding error of a sum of squared differences is relative to the sum, that of |e|² − 2 z·e to its terms.
    scale = distances.amin(3)
    if z.shape[1] > vector_quantize.MAX_UNROLLED:
        scale = z.double().square().sum(1) + codebook.double().square().sum(1).max()
    assert ((chosen - distances.amin(3)) <= 1e-6 * scale).all()
    assert quantized.is_contiguous() and quantized.dtype == z.dtype
    # The kernel converts the codebook to float32.
    expected = codebook.float()[indices].permute(0, 3, 1, 2)
    if truncates(z.dtype) and z.dtype != codebook.dtype:
        assert ((quantized.float() - expected).abs() <= expected.abs() / 128).all()
    else:
        assert torch.equal(quantized, expected.to(z.dtype))
    assert indices.dtype == torch.int64 and indices.is_contiguous()


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_matches_brute_force(case, dtype, device):
    z, codebook = inputs(*case, device, dtype)
    quantized, indices = vector_quantize.forward(z, codebook)
    assert quantized.shape == z.shape and indices.shape == (case[0], *case[3:])
    assert_nearest(z, codebook, quantized, indices)
    if dtype == torch.float32:
        assert torch.equal(indices, squared_distances(z, codebook).argmin(3))


@pytest.mark.parametrize("channels", [3, 12])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=name_of)
def test_a_float32_codebook_with_16_bit_vectors(dtype, channels, device):
    z, codebook = inputs(2, channels, 300, 5, 7, device)
    assert_nearest(z.to(dtype), codebook, *vector_quantize.forward(z.to(dtype), codebook))


@pytest.mark.parametrize("channels", [3, 12])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_memory_layout(layout, channels, device):
    z, codebook = inputs(2, channels, 150, 6, 5, device)
    z = layouts(z)[layout]
    expected = vector_quantize.forward(z.contiguous(), codebook)
    strided = torch.stack([codebook, torch.full_like(codebook, torch.nan)], dim=2)[..., 0]
    for entries in (codebook, strided):
        for ours, other in zip(vector_quantize.forward(z, entries), expected, strict=True):
            assert torch.equal(ours, other)


@pytest.mark.parametrize("channels", [3, 12])
def test_ties_go_to_the_lowest_index(channels, device):
    codebook = array("vq.ties", 16, channels).repeat(60, 1).to(device)  # every entry occurs 60 times, in every tile
    order = torch.arange(99, -1, -1, device=device)
    z = codebook[order].T.reshape(1, channels, 20, 5).contiguous()
    assert torch.equal(vector_quantize.forward(z, codebook)[1].flatten(), order % 16)


def test_near_ties_are_decided_as_in_exact_arithmetic(device):
    # So far from 0, |e|² − 2 z·e in float32 could not distinguish these entries.
    codebook = 1000 + torch.tensor([[0.0, 0, 0.5], [0.25, 0, 0], [0, 0.125, 0], [0.125, 0, 0.125]], device=device)
    z = (1000 + array("vq.near", 1, 3, 9, 5) / 8).to(device)
    _, indices = vector_quantize.forward(z, codebook)
    assert torch.equal(indices, squared_distances(z, codebook).argmin(3)) and indices.unique().numel() >= 3


@pytest.mark.parametrize("channels", [1, 12])
def test_equidistant_entries_go_to_the_lowest_index(channels, device):
    codebook = torch.tensor([3.0, 1, -1, 1, -1], device=device)[:, None].expand(5, channels)
    assert vector_quantize.forward(torch.zeros(1, channels, 1, 1, device=device), codebook)[1].item() == 1


@pytest.mark.parametrize("channels", [3, 12])
def test_a_vector_with_nan_gives_index_0(channels, device):
    z, codebook = inputs(1, channels, 300, 8, 8, device)
    clean = vector_quantize.forward(z, codebook)[1].clone()
    z[0, 1, 2, 3] = torch.nan
    z[0, :, 7, 7] = torch.nan
    quantized, indices = vector_quantize.forward(z, codebook)
    assert torch.equal(quantized[0, :, 2, 3], codebook[0])
    assert clean[0, 2, 3] != 0 and clean[0, 7, 7] != 0
    clean[0, 2, 3] = clean[0, 7, 7] = 0
    assert torch.equal(indices, clean)


@pytest.mark.parametrize("channels", [3, 12])
def test_configurations_change_no_bit(channels, device, monkeypatch):
    z, codebook = inputs(1, channels, 300, 5, 7, device)
    space = "SMALL" if channels <= vector_quantize.MAX_UNROLLED else "LARGE"
    original = getattr(vector_quantize, space)
    expected = vector_quantize.forward(z, codebook)
    for config in original.candidates((64,)):
        chosen = tuning.Space(original.name, original.candidates, lambda arch, bucket, config=config: config)
        monkeypatch.setattr(vector_quantize, space, chosen)
        for ours, other in zip(vector_quantize.forward(z, codebook), expected, strict=True):
            assert torch.equal(ours, other)


@pytest.mark.parametrize("channels", [3, 12])
def test_results_repeat_bitwise(channels, device):
    z, codebook = inputs(2, channels, 200, 5, 7, device)
    first, second = vector_quantize.forward(z, codebook), vector_quantize.forward(z, codebook)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_addresses_beyond_2_to_the_31(device):
    z, codebook = inputs(3, 3, 20, 3, 5, device)
    stride = 2**30 + 16  # fits in 32 bits; image 2's offset does not
    # Memory between the images is never touched, so that the CPU allocates no pages for it.
    size = 2 * stride + z[0].numel()
    memory = torch.from_numpy(np.empty(size, np.float32)) if device.type == "cpu" else torch.empty(size, device=device)
    far = memory.as_strided(z.shape, (stride, *z.stride()[1:])).copy_(z)
    assert torch.equal(vector_quantize.forward(far, codebook)[1], vector_quantize.forward(z, codebook)[1])


@pytest.mark.parametrize("channels", [3, 256])
@pytest.mark.parametrize("size, images", [(64, 1), (512, 2), (40_000, 1)], ids=["64x64", "512x512", "40000x40000"])
def test_one_launch_moves_every_tensor_once(size, images, channels):
    z = torch.empty(images, channels, size, size, device="meta", dtype=torch.bfloat16)
    codebook = torch.empty(8192, channels, device="meta")
    with record() as launches:
        vector_quantize.forward(z, codebook)
    (launch,) = launches
    assert launch.grid == (images * triton.cdiv(size * size, launch.constants["BLOCK_M"]),) and launch.grid[0] < 2**31
    pixels = images * size * size
    assert launch.num_bytes == 2 * 2 * channels * pixels + 8 * pixels + 4 * 8192 * channels
    if size == 64:
        assert launch.grid[0] >= 128  # enough programs for a large GPU


def test_unsupported_arguments_have_a_reason():
    z, codebook = torch.ones(1, 3, 2, 2), torch.ones(5, 3)
    assert vector_quantize.unsupported(z, codebook) is None
    assert vector_quantize.unsupported(z.half(), codebook) is None
    assert vector_quantize.unsupported(z.double(), codebook) == "z is float64"
