"""Patches that depend only on (seed, step, index)."""

import numpy as np
import pytest
from PIL import Image

from resshift_fast.training.data import Patches, PatchPlan, prefetch
from resshift_fast.training.degradations import Mixture
from resshift_fast.training.photos import Photos


@pytest.fixture
def photos(tmp_path):
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 256, (70 + i, 90 - i, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    return Photos([tmp_path], min_side=32)


def make_pair(photos, plan, seed, step, index):
    return Patches(photos, plan, seed, 8).pair(step, index)


PLAN = PatchPlan(patch=32, scale=4, degradation=Mixture())


def test_pairs_are_a_function_of_seed_step_and_index(photos):
    high, low = make_pair(photos, PLAN, 3, 7, 1)
    assert high.shape == (32, 32, 3) and low.shape == (8, 8, 3) and high.dtype == low.dtype == np.uint8
    make_pair(photos, PLAN, 9, 9, 7)
    again = make_pair(photos, PLAN, 3, 7, 1)
    assert np.array_equal(high, again[0]) and np.array_equal(low, again[1])
    others = [make_pair(photos, PLAN, *key)[0] for key in [(4, 7, 1), (3, 8, 1), (3, 7, 2)]]
    assert all(not np.array_equal(high, other) for other in others)


def test_the_low_side_is_the_high_side_downscaled(photos):
    plan = PatchPlan(patch=32, scale=4, degradation=Mixture(clean=1.0))
    high, low = make_pair(photos, plan, 0, 0, 0)
    expected = Image.fromarray(high).resize((8, 8), Image.Resampling.BICUBIC)
    assert np.array_equal(low, np.asarray(expected))


def test_without_a_degradation_there_is_no_low_side(photos):
    plan = PatchPlan(patch=32, scale=4)
    high, low = make_pair(photos, plan, 3, 7, 1)
    assert low is None and Patches(photos, plan, 3, 8).batch(7, [0, 1])[1] is None
    assert np.array_equal(high, make_pair(photos, PLAN, 3, 7, 1)[0])


def test_the_most_detailed_candidate_is_chosen(tmp_path):
    photo = np.full((64, 256, 3), 90, np.uint8)
    photo[:, 128:] = np.random.default_rng(0).integers(0, 256, (64, 128, 3))
    Image.fromarray(photo).save(tmp_path / "x.png")
    photos = Photos([tmp_path], min_side=32)
    means = {}
    for candidates in (1, 8):
        plan = PatchPlan(patch=32, scale=4, max_downscale=1.0, candidates=candidates, recolour=0.0)
        means[candidates] = np.mean([make_pair(photos, plan, 0, 0, index)[0].std() for index in range(40)])
    assert means[8] > 1.3 * means[1]


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("cache_mb", [0, 500])
def test_prefetched_batches_come_in_order_and_equal_direct_ones(photos, tmp_path, workers, cache_mb):
    direct = Patches(photos, PLAN, 5, 2)
    patches = Patches(Photos([tmp_path], min_side=32, cache_mb=cache_mb), PLAN, 5, 2)
    batches = list(prefetch(patches, range(4, 9), [0, 1], workers))
    assert len(batches) == 5
    for step, (high, low) in zip(range(4, 9), batches, strict=True):
        expected = direct.batch(step, [0, 1])
        assert np.array_equal(high, expected[0]) and np.array_equal(low, expected[1])


def test_parts_of_a_batch_are_those_of_the_whole(photos):
    patches = Patches(photos, PLAN, 5, 4)
    whole, first, last = patches.batch(3, range(4)), patches.batch(3, [0, 1]), patches.batch(3, [2, 3])
    for side in range(2):
        assert np.array_equal(np.concatenate([first[side], last[side]]), whole[side])


def test_an_error_in_a_worker_reaches_the_reader(photos):
    with pytest.raises(ValueError, match="divisible by 5"):
        next(prefetch(Patches(photos, PatchPlan(patch=32, scale=5, degradation=Mixture()), 0, 1), range(1), [0]))
