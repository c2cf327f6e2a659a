"""The noise field: known answers, independence of batch, order and tile, and the normal distribution."""

import math

import numpy as np
import pytest
import torch
from golden_data import document
from hypothesis import given, settings
from hypothesis import strategies as st

from resshift_fast.diffusion import noise
from resshift_fast.diffusion.noise import MAX_SEED, check_seed, noise_field, noise_words, philox4x32

VECTORS = document("noise_vectors.json")
seeds = st.integers(0, MAX_SEED)
words32 = st.integers(0, 2**32 - 1)


def to_int(word) -> int:
    return int(word, 16) if isinstance(word, str) else word


def philox_in_integers(counter, key):
    """Philox4x32-10 in Python's unbounded integers, as in the paper."""
    (r0, r1, r2, r3), (k0, k1) = counter, key
    for _ in range(10):
        high0, low0 = divmod(0xD2511F53 * r0, 2**32)
        high1, low1 = divmod(0xCD9E8D57 * r2, 2**32)
        r0, r1, r2, r3 = high1 ^ r1 ^ k0, low1, high0 ^ r3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return [r0, r1, r2, r3]


def normals_in_float64(words: torch.Tensor) -> torch.Tensor:
    """Box–Muller in float64, [4, …] words to [4, …] normals."""
    u = ((words >> 9).double() + 0.5) / 2**23
    radius, angle = (-2 * u[0::2].log()).sqrt(), 2 * math.pi * u[1::2]
    cosine, sine = radius * angle.cos(), radius * angle.sin()
    return torch.stack([cosine[0], sine[0], cosine[1], sine[1]])


def field(seed, step, channels, height, width, origin=None):
    """The field of one seed, [channels, height, width]."""
    origin = None if origin is None else torch.tensor([origin])
    return noise_field(torch.tensor([seed]), torch.tensor(step), channels, height, width, origin=origin)[0]


@pytest.mark.parametrize("case", VECTORS["philox4x32_10"], ids=lambda case: f"key-{case['key'][0]}")
def test_philox_known_answers(case):
    counter, key = ([torch.tensor(to_int(word)) for word in case[name]] for name in ("counter", "key"))
    assert [int(word) for word in philox4x32(tuple(counter), tuple(key))] == [int(word, 16) for word in case["words"]]


@given(st.tuples(words32, words32, words32, words32), st.tuples(words32, words32))
def test_philox_equals_unbounded_integers(counter, key):
    ours = philox4x32(tuple(torch.tensor(c) for c in counter), tuple(torch.tensor(k) for k in key))
    assert [int(word) for word in ours] == philox_in_integers(counter, key)


@pytest.mark.parametrize("case", VECTORS["cases"], ids=lambda case: f"seed-{case['seed']}")
def test_field_known_answers(case):
    size = case["channels"], case["height"], case["width"]
    seed, step, origin = torch.tensor([case["seed"]]), torch.tensor(case["step"]), torch.tensor([case["origin"]])
    words = noise_words(seed, step, *size, origin)[:, 0].permute(1, 2, 3, 0)  # [group, row, column, word]
    assert words.tolist() == case["words"]
    normals = noise_field(seed, step, *size, origin=origin)[0]
    assert normals.dtype == torch.float32 and normals.is_contiguous()
    assert (normals.double() - torch.tensor(case["normals"], dtype=torch.float64)).abs().max() <= 4e-6


@given(seeds, words32, st.integers(0, 2**31), st.integers(0, 2**31), st.integers(0, 9))
def test_words_follow_the_counter_and_key(seed, step, row, column, channel):
    words = noise_words(torch.tensor([seed]), torch.tensor(step), channel + 1, 1, 1, torch.tensor([[row, column]]))
    expected = philox_in_integers((column, row, channel // 4, step), (seed % 2**32, seed // 2**32))
    assert words[:, 0, channel // 4, 0, 0].tolist() == expected


def test_normals_are_within_4e_6_of_float64():
    seed, step = torch.tensor([77]), torch.tensor(3)
    exact = normals_in_float64(noise_words(seed, step, 4, 500, 500, None)[:, 0, 0])
    assert (noise_field(seed, step, 4, 500, 500)[0].double() - exact).abs().max() <= 4e-6


def test_normals_of_extreme_words_are_within_4e_6_of_float64(monkeypatch):
    # The smallest uniform value gives the largest radius, 5.77, which magnifies the angle's rounding most.
    generator = torch.Generator().manual_seed(0)
    angle = torch.randint(0, 2**32, (40_000,), generator=generator)
    angle[:8] = torch.tensor([0, 2**32 - 1, 2**31, 2**30, 3 * 2**30, 2**31 - 1, 2**30 - 1, 512])
    radius = torch.tensor([0, 511, 512, 2**32 - 1]).repeat(10_000)
    words = torch.stack([radius, angle, radius.flip(0), angle])
    monkeypatch.setattr(noise, "noise_words", lambda *args: words.view(4, 1, 1, 200, 200))
    ours = noise_field(torch.tensor([0]), torch.tensor(0), 4, 200, 200)[0].flatten(1)
    exact = normals_in_float64(words)
    assert exact.abs().max() > 5.7
    assert (ours.double() - exact).abs().max() <= 4e-6


@settings(max_examples=30)
@given(st.lists(seeds, min_size=2, max_size=5), st.randoms(), st.integers(0, 20), st.integers(1, 9))
def test_batch_and_order_change_nothing(batch, random, step, channels):
    origins = [[random.randrange(10_000), random.randrange(10_000)] for _ in batch]
    seed, origin, size = torch.tensor(batch), torch.tensor(origins), (channels, 3, 5)
    whole = noise_field(seed, torch.tensor(step), *size, origin=origin)
    order = random.sample(range(len(batch)), len(batch))
    shuffled = noise_field(seed[order], torch.tensor(step), *size, origin=origin[order])
    assert torch.equal(shuffled, whole[order])
    for i, own in enumerate(batch):
        assert torch.equal(field(own, step, *size, origins[i]), whole[i])


@settings(max_examples=30)
@given(seeds, st.integers(0, 11), st.integers(0, 13), st.integers(1, 6), st.integers(1, 7))
def test_a_tile_is_a_crop_of_the_larger_field(seed, top, left, height, width):
    whole = field(seed, 1, 6, 17, 20)
    assert torch.equal(field(seed, 1, 6, height, width, (top, left)), whole[:, top : top + height, left : left + width])


@settings(max_examples=30)
@given(seeds, st.integers(0, 30), st.integers(1, 12))
def test_fewer_channels_are_the_first_ones(seed, step, channels):
    assert torch.equal(field(seed, step, channels, 4, 3), field(seed, step, 12, 4, 3)[:channels])


def test_no_origin_is_the_origin():
    assert torch.equal(field(5, 1, 3, 4, 4), field(5, 1, 3, 4, 4, (0, 0)))


@pytest.fixture(scope="module")
def million():
    """1,048,576 samples, [64 channels, 128, 128]."""
    return field(2024, 1, 64, 128, 128).double()


def test_moments(million):
    n = million.numel()
    mean, variance = million.mean().item(), million.var().item()
    standardized = (million - mean) / variance**0.5
    assert abs(mean) < 4 / n**0.5
    assert abs(variance - 1) < 4 * (2 / n) ** 0.5
    assert abs(standardized.pow(3).mean().item()) < 4 * (6 / n) ** 0.5
    assert abs(standardized.pow(4).mean().item() - 3) < 4 * (24 / n) ** 0.5


def test_distribution_is_normal(million):
    # Kolmogorov–Smirnov: a distance above 1.95/√n has a probability of one in a thousand.
    value = million.flatten().sort().values
    n = len(value)
    cumulative = torch.special.ndtr(value)
    rank = torch.arange(n, dtype=torch.float64)
    distance = torch.maximum((cumulative - rank / n).max(), ((rank + 1) / n - cumulative).max())
    assert distance < 1.95 / n**0.5


NEIGHBOURS = {
    "row": lambda z: (z[:, 1:], z[:, :-1]),
    "column": lambda z: (z[..., 1:], z[..., :-1]),
    "diagonal": lambda z: (z[:, 1:, 1:], z[:, :-1, :-1]),
    "same-pair-of-channels": lambda z: (z[0::2], z[1::2]),
    "pairs-of-a-group": lambda z: (z[0::4], z[2::4]),
    "groups-of-channels": lambda z: (z[4:], z[:-4]),
    "step": lambda z: (z, field(2024, 2, 64, 128, 128).double()),
    "seed": lambda z: (z, field(2025, 1, 64, 128, 128).double()),
    "seed's-high-word": lambda z: (z, field(2024 + 2**32, 1, 64, 128, 128).double()),
}


@pytest.mark.parametrize("neighbours", NEIGHBOURS)
def test_neighbours_are_independent(million, neighbours):
    a, b = NEIGHBOURS[neighbours](million)
    for power in (1, 2):  # squares correlate if two values share a radius
        correlation = np.corrcoef(a.pow(power).flatten(), b.pow(power).flatten())[0, 1]
        assert abs(correlation) < 4.5 / a.numel() ** 0.5


@pytest.mark.parametrize("seed", [0, 12345, MAX_SEED, np.int64(7), torch.tensor(7)], ids=repr)
def test_check_seed_accepts(seed):
    value = check_seed("sample", seed)
    assert value == seed and type(value) is int


@pytest.mark.parametrize(
    "seed, error, message",
    [
        (-1, ValueError, r"^sample: seed is -1, expected 0 to 2\*\*63 - 1$"),
        (2**63, ValueError, "sample: seed is 9223372036854775808, expected 0 to"),
        (True, TypeError, "sample: seed is True, expected an integer"),
        (1.0, TypeError, "sample: seed is 1.0, expected an integer"),
        ("7", TypeError, "sample: seed is '7', expected an integer"),
        (None, TypeError, "sample: seed is None, expected an integer"),
    ],
    ids=repr,
)
def test_check_seed_refuses(seed, error, message):
    with pytest.raises(error, match=message):
        check_seed("sample", seed)
