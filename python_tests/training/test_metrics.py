"""Known answers for PSNR and SSIM on luma."""

import numpy as np
import pytest

from resshift_fast.training.metrics import luma, psnr_y, ssim_y


def _noise(shape=(24, 20, 3), seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize(
    ("rgb", "expected"),
    [((0, 0, 0), 16.0), ((255, 255, 255), 235.0), ((255, 0, 0), 81.481), ((0, 255, 0), 144.553), ((0, 0, 255), 40.966)],
    ids=["black", "white", "red", "green", "blue"],
)
def test_luma_of_primaries_is_bt601(rgb, expected):
    assert luma(np.full((2, 3, 3), rgb, np.uint8)) == pytest.approx(np.full((2, 3), expected), abs=1e-9)


def test_psnr_of_a_constant_gray_shift():
    reference = np.full((16, 16, 3), 100, np.uint8)
    shifted = reference + np.uint8(10)
    error = 10 * 219 / 255
    assert psnr_y(shifted, reference) == pytest.approx(20 * np.log10(255 / error))


def test_equal_images_have_infinite_psnr_and_ssim_one():
    image = _noise()
    assert psnr_y(image, image) == float("inf")
    assert ssim_y(image, image) == pytest.approx(1.0)


def test_floats_are_rounded_and_clipped_as_a_saved_picture():
    image = _noise()
    other = _noise(seed=1)
    assert psnr_y(image + 0.4, other) == psnr_y(image, other)
    assert psnr_y(np.where(image == 255, 300.0, image), other) == psnr_y(image, other)


def test_border_is_left_out():
    reference = _noise()
    image = reference.copy()
    image[:2] = 255 - image[:2]
    image[:, -2:] = 255 - image[:, -2:]
    assert psnr_y(image, reference) < 20
    assert psnr_y(image, reference, border=2) == float("inf")


def test_ssim_of_constant_images_is_the_luminance_term():
    # Without variance only (2 μ1 μ2 + c1) / (μ1² + μ2² + c1) is left.
    first, second = np.full((12, 12, 3), 50, np.uint8), np.full((12, 12, 3), 200, np.uint8)
    a, b, c1 = 16 + 50 * 219 / 255, 16 + 200 * 219 / 255, (0.01 * 255) ** 2
    assert ssim_y(first, second) == pytest.approx((2 * a * b + c1) / (a * a + b * b + c1))


def test_ssim_matches_a_direct_sum_over_one_window():
    first, second = _noise((11, 11, 3)), _noise((11, 11, 3), 1)
    offsets = np.arange(11) - 5.0
    weights = np.exp(-(offsets[:, None] ** 2 + offsets**2) / (2 * 1.5**2))
    weights /= weights.sum()
    x, y = luma(first), luma(second)
    mx, my = (weights * x).sum(), (weights * y).sum()
    vx, vy = (weights * (x - mx) ** 2).sum(), (weights * (y - my) ** 2).sum()
    cov = (weights * (x - mx) * (y - my)).sum()
    c1, c2 = 2.55**2, 7.65**2
    expected = (2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    assert ssim_y(first, second) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("measure", [psnr_y, ssim_y])
def test_unequal_shapes_are_refused(measure):
    with pytest.raises(ValueError, match="one shape"):
        measure(_noise((12, 12, 3)), _noise((12, 13, 3)))


@pytest.mark.parametrize("shape", [(12, 12), (12, 12, 4), (1, 12, 12, 3)], ids=str)
def test_other_than_rgb_is_refused(shape):
    with pytest.raises(ValueError, match="RGB"):
        luma(np.zeros(shape, np.uint8))


@pytest.mark.parametrize("border", [-1, 6, 7])
def test_a_border_that_leaves_nothing_is_refused(border):
    with pytest.raises(ValueError, match="border"):
        psnr_y(_noise((12, 12, 3)), _noise((12, 12, 3)), border=border)
