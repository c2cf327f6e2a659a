"""Results before they exist: what fits which format."""

import numpy as np
import pytest

from resshift_fast.images import Photo, results, suffix_for


def photo(dtype=np.uint8, alpha=None, gray=False):
    rng = np.random.default_rng(0)
    top = np.iinfo(dtype).max
    pixels = rng.integers(0, top, (5, 7, 1 if gray else 3), dtype=dtype, endpoint=True)
    if alpha == "noise":
        alpha = rng.integers(0, top, (5, 7), dtype=dtype, endpoint=True)
    elif alpha == "opaque":
        alpha = np.full((5, 7), top, dtype)
    return Photo(np.broadcast_to(pixels, (5, 7, 3)).copy(), alpha, gray)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16], ids=["8", "16"])
@pytest.mark.parametrize("alpha", [None, "opaque", "noise"], ids=["none", "opaque", "transparent"])
@pytest.mark.parametrize("suffix", [".png", ".tif", ".jpg", ".webp", ".bmp"])
def test_the_stand_in_fits_where_the_result_does(dtype, alpha, suffix):
    given = photo(dtype, alpha)
    enlarged = np.repeat(np.repeat(given.pixels, 4, 0), 4, 1)
    its_alpha = None if given.alpha is None else np.repeat(np.repeat(given.alpha, 4, 0), 4, 1)
    expected = results.expected(given, (4 * given.height, 4 * given.width), given.bits)
    assert expected.pixels.shape == enlarged.shape and expected.bits == given.bits
    assert suffix_for(expected, suffix) == suffix_for(Photo(enlarged, its_alpha), suffix)


def test_the_stand_in_of_a_result_too_wide_for_a_format_takes_no_memory():
    wide = Photo(np.zeros((4100, 1, 3), np.uint8))
    assert suffix_for(results.expected(wide, (4 * wide.height, 4 * wide.width), 8), ".webp") == ".png"
    huge = results.expected(wide, (10_000 * wide.height, 10_000 * wide.width), 16)
    assert huge.height == 41_000_000 and huge.pixels.strides == (0, 0, 0)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16], ids=["8", "16"])
@pytest.mark.parametrize("gray", [False, True], ids=["colour", "gray"])
@pytest.mark.parametrize("background", ["white", "#204060", "rgb(7, 7, 7)"])
def test_laid_over_a_colour(dtype, gray, background):
    given, top = photo(dtype, "noise", gray), np.iinfo(dtype).max
    under = np.array(results.colour(background)) / 255
    opacity = given.alpha[..., None] / top
    right = given.pixels / top * opacity + under * (1 - opacity)
    flat = results.laid_over(given, results.colour(background))
    assert flat.alpha is None and flat.pixels.dtype == dtype
    assert np.abs(flat.pixels.astype(float) - right * top).max() < 0.51
    assert flat.gray == (gray and background != "#204060")


def test_rounded_to_8_bits():
    pixels = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    given = Photo(np.stack([pixels] * 3, 2), pixels)
    rounded = results.in_8_bits(given)
    assert rounded.bits == 8
    assert np.array_equal(rounded.alpha, np.rint(pixels / 257)) and np.array_equal(
        rounded.pixels[..., 2], rounded.alpha
    )


@pytest.mark.parametrize("text", ["", "whit", "#12", "255"])
def test_what_is_no_colour(text):
    with pytest.raises(ValueError, match="is not a colour; give a name such as white"):
        results.colour(text)
