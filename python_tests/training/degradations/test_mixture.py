"""Degradations: shapes, repeatability, and the measured effect of each."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resshift_fast.training import degradations
from resshift_fast.training.degradations import Mixture, add_noise, gaussian_blur, jpeg, resize


def _photo(height=64, width=48, seed=0):
    """Smooth blobs with some texture."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    waves = np.stack([np.sin(rows / 7 + k) * np.cos(columns / 5 - k) for k in range(3)], axis=-1)
    return np.clip(128 + 70 * waves + rng.normal(0, 12, (height, width, 3)), 0, 255).astype(np.uint8)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(3, 12), columns=st.integers(3, 12), scale=st.sampled_from([1, 2, 4]), seed=st.integers(0, 2**32)
)
def test_degrade_divides_the_sides_and_is_repeatable(rows, columns, scale, seed):
    image = _photo(rows * scale, columns * scale)
    before = image.copy()
    mixture = Mixture(clean=0.1, second_order=0.5)
    first = mixture.degrade(image, scale, np.random.default_rng(seed))
    assert first.shape == (rows, columns, 3) and first.dtype == np.uint8
    assert np.array_equal(first, mixture.degrade(image, scale, np.random.default_rng(seed)))
    assert np.array_equal(image, before)


def test_a_clean_mixture_is_antialiased_bicubic():
    image = _photo()
    low = Mixture(clean=1.0).degrade(image, 4, np.random.default_rng(0))
    assert np.array_equal(low, resize(image, 16, 12, "bicubic"))


def test_degraded_pictures_differ_from_clean_ones_and_from_each_other():
    image = _photo()
    lows = [Mixture(clean=0.0).degrade(image, 4, np.random.default_rng(seed)) for seed in range(8)]
    assert len({low.tobytes() for low in lows}) == 8


def test_degrade_refuses_sides_that_do_not_divide():
    with pytest.raises(ValueError, match="divisible by 4"):
        Mixture().degrade(_photo(62), 4, np.random.default_rng(0))


@pytest.mark.parametrize("kind", degradations.RESIZE_KINDS)
def test_resize_keeps_a_linear_ramp_centred(kind):
    ramp = np.broadcast_to(np.linspace(20, 220, 64)[None, :, None], (32, 64, 3)).round().astype(np.uint8)
    small = resize(ramp, 8, 16, kind)
    inner = small[2:-2, 3:-3].mean()
    assert inner == pytest.approx(120, abs=1.0)
    assert small.shape == (8, 16, 3)


@pytest.mark.parametrize(("kind", "aliases"), [("bicubic", False), ("area", False), ("linear", True), ("cubic", True)])
def test_only_unfiltered_kinds_alias(kind, aliases):
    stripes = np.zeros((32, 64, 3), np.uint8)
    stripes[:, ::5] = 255
    deviation = resize(stripes, 8, 16, kind)[:, 4:-4].std()
    smooth = resize(stripes, 8, 16, "area")[:, 4:-4].std()
    assert (deviation > 1.3 * smooth) == aliases


def test_unknown_resize_kind_is_named():
    with pytest.raises(ValueError, match="'nearest'.*bicubic"):
        resize(_photo(), 8, 8, "nearest")


def test_blur_of_an_impulse_has_the_requested_deviations():
    impulse = np.zeros((61, 61, 3), np.uint8)
    impulse[30, 30] = 255
    wide = gaussian_blur(impulse.astype(np.float32) * 1000, 4.0, ratio=0.5, angle=0.0)[..., 0]
    offsets = np.arange(61) - 30.0
    total = wide.sum()
    assert np.sqrt((wide.sum(0) * offsets**2).sum() / total) == pytest.approx(4.0, rel=0.03)
    assert np.sqrt((wide.sum(1) * offsets**2).sum() / total) == pytest.approx(2.0, rel=0.03)


def test_blur_of_zero_sigma_changes_nothing():
    image = _photo()
    assert np.array_equal(gaussian_blur(image, 0.0), image)


@pytest.mark.parametrize("gray", [False, True], ids=["colour", "gray"])
def test_noise_has_the_requested_deviation_and_mean_zero(gray):
    flat = np.full((128, 128, 3), 128, np.uint8)
    noise = add_noise(flat, np.random.default_rng(0), 8.0, gray=gray).astype(float) - 128
    assert noise.std() == pytest.approx(8.0, rel=0.05)
    assert noise.mean() == pytest.approx(0.0, abs=0.3)
    assert np.array_equal(noise[..., 0], noise[..., 1]) == gray


def test_signal_noise_grows_with_brightness():
    image = np.zeros((64, 128, 3), np.uint8)
    image[:, :64], image[:, 64:] = 20, 200
    noise = add_noise(image, np.random.default_rng(0), 6.0, signal=True).astype(float) - image
    ratio = noise[:, 64:].std() / noise[:, :64].std()
    assert ratio == pytest.approx(np.sqrt(10), rel=0.15)


def test_jpeg_offset_moves_the_block_grid():
    image = _photo()
    plain, shifted = jpeg(image, 40), jpeg(image, 40, offset=(3, 5))
    assert shifted.shape == image.shape

    def block_energy(picture):
        jumps = np.abs(np.diff(picture.astype(float), axis=0)).mean((1, 2))
        return np.array([jumps[phase::8].mean() for phase in range(8)])

    added_plain = block_energy(plain) - block_energy(image)
    added_shifted = block_energy(shifted) - block_energy(image)
    assert added_plain.argmax() == 7
    assert added_shifted.argmax() == 4


def test_jpeg_quality_orders_the_error():
    image = _photo()
    errors = [np.square(jpeg(image, quality).astype(float) - image).mean() for quality in (30, 60, 95)]
    assert errors[0] > errors[1] > errors[2] > 0


@pytest.mark.parametrize("name", ["clean", "jpeg", "second_order"])
def test_a_share_outside_zero_to_one_is_refused(name):
    with pytest.raises(ValueError, match=name):
        Mixture(**{name: 1.5})


def test_weights_must_match_kinds():
    with pytest.raises(ValueError, match="resize_weights"):
        Mixture(resize_kinds=("area",), resize_weights=(0.5, 0.5))
