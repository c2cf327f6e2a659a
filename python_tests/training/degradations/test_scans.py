"""Dust, hairs and scratches: how much of a picture they cover, and that they are repeatable."""

import numpy as np
import pytest

from resshift_fast.training.degradations import Mixture
from resshift_fast.training.degradations.scans import marked

GRAY = np.full((96, 128, 3), 128, np.uint8)


def test_marks_are_light_or_dark_thin_and_repeatable():
    before = GRAY.copy()
    covered, values = [], []
    for seed in range(30):
        found = marked(GRAY, np.random.default_rng(seed), 1)
        assert found.dtype == np.uint8 and found.shape == GRAY.shape
        assert np.array_equal(found, marked(GRAY, np.random.default_rng(seed), 1))
        assert np.array_equal(found[..., 0], found[..., 2])  # of no colour
        changed = found[..., 0] != 128
        covered.append(changed.mean())
        values.append(found[..., 0][changed].astype(int) - 128)
    assert np.array_equal(GRAY, before) and 0 < np.mean(covered) < 0.03 and max(covered) < 0.05
    means = [one.mean() for one in values if one.size]
    assert len(means) >= 28 and min(means) < -20 and max(means) > 20
    assert all((one > 0).all() or (one < 0).all() for one in values)


def test_more_marks_cover_more_and_none_cover_nothing():
    shares = [np.mean(marked(GRAY, np.random.default_rng(1), count) != 128) for count in (0, 2, 20)]
    assert shares[0] == 0 < shares[1] < shares[2] < 0.4


def test_a_mixture_marks_a_share_of_its_patches():
    only = Mixture(clean=0.0, blur=0.0, noise=0.0, jpeg=0.0, second_order=0.0, marks=0.5, marks_most=2)
    changed = [np.any(only.degrade(GRAY, 1, np.random.default_rng(seed)) != 128) for seed in range(60)]
    assert 0.3 < np.mean(changed) < 0.7
    for bad, message in (({"marks": 1.5}, "marks is a probability"), ({"marks_most": 0}, "marks_most must be")):
        with pytest.raises(ValueError, match=message):
            Mixture(**bad)
