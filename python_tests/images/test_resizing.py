"""Reduction: against a filter in float64, without aliasing, with 16 bits and alpha."""

import numpy as np
import pytest

from resshift_fast.images import Photo, resizing


def lanczos_matrix(before, after):
    """float64 [after, before]: a Lanczos filter of 3 lobes as wide as the reduction, normalized at every pixel."""
    factor = before / after
    centres = (np.arange(after)[:, None] + 0.5) * factor - 0.5
    x = (np.arange(before)[None] - centres) / factor
    weights = np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0)
    return weights / weights.sum(axis=1, keepdims=True)


def reference(values, size):
    rows, columns = lanczos_matrix(values.shape[0], size[0]), lanczos_matrix(values.shape[1], size[1])
    return np.einsum("ah,bw,hw...->ab...", rows, columns, values.astype(np.float64))


@pytest.mark.parametrize("size", [(20, 30), (27, 41), (39, 60), (1, 1), (7, 60)], ids=str)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_against_float64(monkeypatch, size, dtype):
    monkeypatch.setattr(resizing, "_STRIP", 8)  # several strips
    top = np.iinfo(dtype).max
    pixels = np.random.default_rng(0).integers(top // 2, top, (40, 61, 3)).astype(dtype)
    found = resizing.reduced(Photo(pixels), size)
    expected = reference(pixels, size).clip(0, top)
    assert found.pixels.shape == (*size, 3) and found.pixels.dtype == dtype
    assert np.abs(found.pixels - expected).max() < (0.51 if dtype == np.uint8 else 1)


def test_a_fine_pattern_becomes_its_mean():
    stripes = np.where(np.arange(200) % 2, 200, 50).astype(np.uint8)
    pixels = np.broadcast_to(stripes[None, :, None], (120, 200, 3)).copy()
    inside = resizing.reduced(Photo(pixels), (40, 67)).pixels[4:-4, 4:-4]
    assert np.abs(inside.astype(int) - 125).max() <= 4


def test_hidden_colours_do_not_show():
    pixels = np.full((40, 40, 3), 200, np.uint8)
    alpha = np.full((40, 40), 255, np.uint8)
    pixels[:, :17], alpha[:, :17] = 0, 0
    found = resizing.reduced(Photo(pixels, alpha), (15, 15))
    assert (found.pixels[found.alpha > 8] == 200).all()
    assert found.alpha[:, 0].max() == 0 and found.alpha[:, -1].min() == 255
    assert 0 < found.alpha[0, 6] < 255


def test_the_rest_of_a_photo_stays():
    photo = Photo(np.full((8, 9, 3), 7, np.uint8), gray=True, icc_profile=b"p", exif=b"e", name="n")
    found = resizing.reduced(photo, (4, 4))
    assert (found.gray, found.icc_profile, found.exif, found.name) == (True, b"p", b"e", "n")
    assert resizing.reduced(photo, (8, 9)) is photo


def test_sides():
    photo = Photo(np.zeros((3, 5, 3), np.uint8))
    assert resizing.sides_at(photo, 1.5) == (4, 8) and resizing.sides_at(photo, 0.01) == (1, 1)
