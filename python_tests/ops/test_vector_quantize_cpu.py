"""The C++ kernel of vector_quantize: instruction sets, ties, NaN, threads; invalid arguments."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from golden_data import array
from pairwise import ISAS, pairwise

from resshift_fast import use_backend
from resshift_fast.backends import chosen, unavailable
from resshift_fast.ops import vector_quantize

pytestmark = [
    pytest.mark.skipif(bool(unavailable("cpu")), reason=f"the cpu backend {unavailable('cpu')}"),
    pytest.mark.usefixtures("poisoned_empty", "native"),
]

CASES = [  # batch, channels, entries, height, width
    (2, 3, 8192, 9, 7),
    (1, 3, 37, 8, 8),
    (1, 3, 15, 1, 1),
    (3, 8, 100, 5, 13),
    (1, 1, 17, 1, 200),
    (2, 67, 50, 3, 22),
    (1, 4, 1, 3, 3),
]
IDS = [f"B{b}-C{c}-N{n}-H{h}-W{w}" for b, c, n, h, w in CASES]


@pytest.fixture(scope="module")
def native():
    with use_backend("cpu"):
        yield


def inputs(batch, channels, entries, height, width, dtype=torch.float32):
    """Random vectors and codebook with means far from 0."""
    z = array("vq.z", batch, channels, height, width) - 2.3
    return z.to(dtype), (array("vq.codebook", entries, channels) - 2.3).to(dtype)


def distances(z, codebook):
    """|z − e|² for every pixel and entry, float64 [B, H, W, N]."""
    return (z.double().permute(0, 2, 3, 1)[..., None, :] - codebook.double()).square().sum(-1)


@pairwise(case=dict(zip(IDS, CASES, strict=True)), dtype=[torch.float32, torch.float16, torch.bfloat16], isa=ISAS)
def test_every_instruction_set_finds_the_nearest(case, dtype, isa):
    z, codebook = inputs(*case, dtype)
    assert chosen("vector_quantize", z, codebook) == "cpu"
    quantized, indices = vector_quantize(z, codebook)
    exact = distances(z, codebook)
    found = exact.gather(3, indices[..., None])[..., 0]
    # Distances are sums of squares, without cancellation: the one found is the smallest up to rounding.
    assert (found <= exact.amin(3) * (1 + 1e-6)).all()
    assert torch.equal(quantized, codebook[indices].permute(0, 3, 1, 2))


def test_ties_go_to_the_lowest_index(isa):
    codebook = array("vq.ties", 21, 3).repeat(50, 1)  # every entry occurs 50 times, in groups before and after
    z = codebook[torch.arange(999, -1, -1)].T.reshape(1, 3, 40, 25).contiguous()
    assert torch.equal(vector_quantize(z, codebook)[1].flatten(), torch.arange(999, -1, -1) % 21)


def test_the_last_entry_can_be_the_nearest(isa):
    for entries in range(1, 40):
        codebook = torch.arange(float(entries))[:, None].repeat(1, 3)
        z = codebook.T.reshape(1, 3, 1, entries).contiguous() + 0.25
        assert torch.equal(vector_quantize(z, codebook)[1].flatten(), torch.arange(entries))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 3e38], ids=str)
def test_a_vector_without_a_finite_distance_gives_index_0(isa, value):
    z, codebook = inputs(1, 3, 300, 8, 9)
    clean = vector_quantize(z, codebook)[1].clone()
    z[0, 1, 2, 3] = value
    z[0, :, 7, 8] = value
    quantized, indices = vector_quantize(z, codebook)
    clean[0, 2, 3] = clean[0, 7, 8] = 0
    assert torch.equal(indices, clean) and torch.equal(quantized[0, :, 2, 3], codebook[0])


def test_an_entry_with_nan_is_never_chosen(isa):
    z, codebook = inputs(1, 3, 300, 8, 9)
    codebook[::7] = torch.nan
    indices = vector_quantize(z, codebook)[1]
    assert (indices % 7 != 0).all()
    assert torch.equal(indices, distances(z, codebook).nan_to_num(torch.inf).argmin(3))


def test_results_are_bitwise_equal_with_any_number_of_threads():
    z, codebook = inputs(2, 3, 1024, 33, 31)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(vector_quantize(z, codebook))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


def test_several_threads_may_call_at_once():
    z, codebook = inputs(8, 3, 512, 20, 20)
    expected = [vector_quantize(image[None], codebook) for image in z]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            found = list(pool.map(lambda image: vector_quantize(image[None], codebook), z))
            assert all(all(map(torch.equal, *pair)) for pair in zip(found, expected, strict=True))


Z, E = torch.rand(1, 3, 2, 2), torch.rand(5, 3)


@pytest.mark.parametrize(
    "z, codebook, message",
    [
        (Z[0], E, r"z must be \[B, C, H, W\]"),
        (Z[:0], E, "not empty"),
        (Z[:, :0], E[:, :0], "not empty"),
        (Z.double(), E, "z must be float32"),
        (Z, E[:, :2], "with z's channels"),
        (Z, E[:0], "not empty"),
        (Z, E[0], r"must be \[N, C\]"),
        (Z, E.double(), "codebook must be float32"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_refuses_invalid_arguments(z, codebook, message):
    with pytest.raises(RuntimeError, match=message):
        torch.ops.resshift_fast_cpu.vector_quantize(z, codebook)
