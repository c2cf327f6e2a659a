"""Transparent pixels: their colours leak into no visible one, and filled-in regions become visible."""

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pipelines import integers, oracle, tensor_of, zero

from resshift_fast import images
from resshift_fast.images import Photo
from resshift_fast.images.alpha import _components, bleed_colors, fill_alpha

BICUBIC = oracle(zero)
SIDE = 40
COLOR = np.array([230, 180, 60], np.uint8)


def sprite(under, edge, bits=8):
    """A disc [H, W, 4] of one colour with a hard or soft edge, over clear pixels that hold another colour."""
    y, x = np.mgrid[0:SIDE, 0:SIDE]
    distance = 13 - np.hypot(y - 19.5, x - 19.5)
    alpha = (distance * (255 if edge == "hard" else 80) + 127).clip(0, 255).astype(np.uint8)
    pixels = np.empty((SIDE, SIDE, 3), np.uint8)
    pixels[:] = under
    pixels[alpha > 0] = COLOR
    planes = np.dstack([pixels, alpha])
    return planes if bits == 8 else planes.astype(np.uint16) * 257


def halo(planes):
    """The largest difference of a picture [H, W, 4], laid over the sprite's own colour, from this colour, of 255."""
    top = np.iinfo(planes.dtype).max
    values = planes.astype(np.float64) / top * 255
    opacity = values[..., 3:] / 255
    return np.abs(values[..., :3] * opacity + COLOR * (1 - opacity) - COLOR).max()


def as_webp(planes, folder):
    Image.fromarray(planes).save(folder / "s.webp", lossless=True, exact=True)
    return folder / "s.webp"


def as_palette(planes, folder):
    clear = planes[..., 3] < 128
    image = Image.fromarray(clear.astype(np.uint8)).convert("P")
    image.putpalette([*COLOR, *planes[0, 0, :3]])
    image.save(folder / "s.png", transparency=1)
    return folder / "s.png"


def as_color_key(planes, folder):
    clear = planes[..., 3] < 128
    pixels = np.where(clear[..., None], planes[0, 0, :3], COLOR)
    Image.fromarray(pixels).save(folder / "s.png", transparency=tuple(int(v) for v in planes[0, 0, :3]))
    return folder / "s.png"


def as_file(suffix):
    def write(planes, folder):
        images.write(folder / f"s{suffix}", Photo(planes[..., :3].copy(), planes[..., 3].copy()))
        return folder / f"s{suffix}"

    return write


FORMS = {
    "array": lambda planes, folder: planes,
    "pil": lambda planes, folder: Image.fromarray(planes),
    "premultiplied-pil": lambda planes, folder: Image.fromarray(planes).convert("RGBa"),
    "tensor": lambda planes, folder: tensor_of(planes),
    "png": as_file(".png"),
    "tiff": as_file(".tif"),
    "webp": as_webp,
    "palette": as_palette,
    "colour-key": as_color_key,
}


def planes_of(result):
    if isinstance(result, torch.Tensor):
        return (result[0].permute(1, 2, 0).numpy() * 65535).round().astype(np.uint16)
    return np.dstack([result.pixels, result.alpha]) if isinstance(result, Photo) else np.asarray(result)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("edge", ["hard", "soft"])
@pytest.mark.parametrize("under", [0, 255, (0, 255, 0)], ids=["black", "white", "green"])
def test_a_sprite_of_one_colour_has_no_halo(tmp_path, under, edge, form):
    image = FORMS[form](sprite(under, edge), tmp_path)
    assert halo(planes_of(BICUBIC(image, progress=False))) <= (9 if "premultiplied" in form else 1)


@pytest.mark.parametrize("form", ["array", "png", "tiff"])
def test_a_16_bit_sprite_has_no_halo(tmp_path, form):
    image = FORMS[form](sprite(0, "hard", bits=16), tmp_path)
    if form != "array":
        image = images.read(image)
    result = planes_of(BICUBIC(image, progress=False))
    assert result.dtype == np.uint16 and halo(result) <= 0.02


@pytest.mark.parametrize("edge", ["hard", "soft"])
def test_edges_are_as_near_the_true_picture_as_a_premultiplied_enlargement(edge):
    """The picture is a gradient, whose enlargement is known; Pillow enlarges colours multiplied by alpha."""
    planes, y = sprite(0, edge), np.arange(SIDE)
    planes[..., 0] = np.where(planes[..., 3] > 0, (40 + 4 * y)[:, None], 0)
    large = (np.arange(4 * SIDE) + 0.5) / 4 - 0.5
    truth = np.stack(np.broadcast_arrays((40 + 4 * large)[:, None], 180.0, 60.0), 2)

    def error(result):
        opacity = result[..., 3:] / 255
        return np.abs((result[..., :3] - truth) * opacity).max()

    ours = error(BICUBIC(planes, progress=False).astype(float))
    theirs = np.asarray(Image.fromarray(planes).convert("RGBa").resize((4 * SIDE,) * 2, Image.Resampling.BICUBIC))
    assert ours <= max(error(np.asarray(Image.fromarray(theirs, "RGBa").convert("RGBA")).astype(float)), 6)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_visible_colours_are_unchanged_and_clear_ones_are_between_them(dtype):
    top = 1 if dtype == np.float32 else np.iinfo(dtype).max
    random = np.random.default_rng(0)
    colors = (random.uniform(0.4, 0.6, (31, 45, 3)) * top).astype(dtype)
    alpha = (random.choice([0, 0.2, 1], (31, 45)) * top).astype(dtype)
    alpha[5:25, 5:30] = 0
    hidden = np.where(alpha[..., None] == 0, np.array(top, dtype), colors)
    filled = bleed_colors(hidden, alpha)
    np.testing.assert_array_equal(filled[alpha > 0], colors[alpha > 0])
    assert filled.dtype == dtype and filled.min() > 0.39 * top and filled.max() < 0.61 * top


def test_the_nearest_colour_is_taken():
    colors, alpha = np.zeros((20, 40, 3), np.uint8), np.zeros((20, 40), np.uint8)
    colors[:, :5], colors[:, -5:] = (200, 0, 0), (0, 0, 200)
    alpha[:, :5] = alpha[:, -5:] = 255
    filled = bleed_colors(colors, alpha)
    assert (filled[:, 5, 0] > 180).all() and (filled[:, -6, 2] > 180).all()


def test_colours_of_faint_pixels_count_little():
    """Colours that were multiplied by alpha keep few bits where it is small."""
    colors, alpha = np.full((9, 9, 3), 100, np.uint8), np.full((9, 9), 255, np.uint8)
    colors[4, 4], alpha[4, 4] = 255, 1
    assert np.abs(bleed_colors(colors, alpha)[4, 4].astype(int) - 100).max() <= 10


@pytest.mark.parametrize("value", [0, 255], ids=["invisible", "opaque"])
def test_pictures_without_an_edge_are_unchanged(value):
    colors = integers(5, 7, 3)
    np.testing.assert_array_equal(bleed_colors(colors, np.full((5, 7), value, np.uint8)), colors)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 5))
def test_every_size_is_filled(height, width, seed):
    colors, alpha = integers(height, width, 3, seed=seed), np.zeros((height, width), np.uint8)
    row, column = seed * height // 6, seed * width // 6
    alpha[row, column] = 255
    filled = bleed_colors(colors, alpha)
    np.testing.assert_array_equal(filled, np.broadcast_to(colors[row, column], filled.shape))


def test_colours_under_a_mask_are_not_seen():
    colors, alpha, mask = np.full((8, 8, 3), 50, np.uint8), np.full((8, 8), 255, np.uint8), np.zeros((8, 8), bool)
    mask[2:4, 2:4], alpha[4:, 4:] = True, 0
    colors[mask], colors[4:, 4:] = 255, 0
    assert (bleed_colors(colors, alpha, mask)[4:, 4:] == 50).all()


def _rectangle(top, left, bottom, right, shape=(20, 30)):
    mask = np.zeros(shape, bool)
    mask[top:bottom, left:right] = True
    return mask


@pytest.mark.parametrize("top", [255, 65535, 1.0], ids=["uint8", "uint16", "float32"])
def test_an_erased_hole_becomes_as_opaque_as_its_surroundings(top):
    dtype = {255: np.uint8, 65535: np.uint16}.get(top, np.float32)
    mask = _rectangle(5, 5, 12, 20)
    for around in (1, 0.5):
        alpha = np.full(mask.shape, around * top).astype(dtype)
        expected = alpha.copy()
        alpha[mask] = 0
        alpha[8, 8] = around * top / 4  # erased with a soft brush
        filled = fill_alpha(alpha, mask)
        assert filled.dtype == dtype
        np.testing.assert_allclose(filled, expected, rtol=1e-6)


def test_each_part_of_a_mask_is_judged_by_itself():
    alpha, mask = np.full((20, 30), 255, np.uint8), _rectangle(2, 2, 6, 6) | _rectangle(10, 10, 18, 28)
    alpha[:, 20:] = 0  # the edge of a sprite lies in the second part
    before = alpha.copy()
    alpha[2:6, 2:6] = 0
    np.testing.assert_array_equal(fill_alpha(alpha, mask), before)


def test_clear_surroundings_give_an_opaque_fill():
    mask = _rectangle(5, 5, 12, 20)
    np.testing.assert_array_equal(fill_alpha(np.zeros(mask.shape, np.uint8), mask), np.where(mask, 255, 0))


def test_a_hole_that_is_the_whole_picture():
    mask = np.ones((4, 6), bool)
    assert (fill_alpha(np.zeros((4, 6), np.uint8), mask) == 255).all()
    partial = integers(4, 6)
    np.testing.assert_array_equal(fill_alpha(partial, mask), partial)


def test_a_clear_border_round_a_photo_becomes_opaque():
    alpha = np.zeros((20, 30), np.uint8)
    alpha[4:16, 6:24] = 255
    assert (fill_alpha(alpha, alpha == 0) == 255).all()


def test_an_empty_mask_changes_no_alpha():
    alpha = integers(6, 5)
    np.testing.assert_array_equal(fill_alpha(alpha, np.zeros((6, 5), bool)), alpha)


MASKS = {
    "empty": np.zeros((3, 4), bool),
    "full": np.ones((3, 4), bool),
    "diagonal": np.eye(5, dtype=bool),
    "one row": np.array([[1, 0, 1, 1, 0, 1]], bool),
    "spiral": np.kron([[1, 1, 1, 1], [0, 0, 0, 1], [1, 1, 0, 1], [1, 0, 0, 1], [1, 1, 1, 1]], [[1, 0], [0, 0]]) > 0,
    "comb": np.pad(np.tile([True, False], 8)[None].repeat(6, 0), ((0, 1), (0, 0)), constant_values=True),
} | {f"random {density}": np.random.default_rng(0).random((23, 31)) < density for density in (0.2, 0.4, 0.6)}


@pytest.mark.parametrize("name", MASKS)
def test_connected_parts_are_those_of_opencv(name):
    mask = MASKS[name]
    count, labels = _components(mask)
    expected_count, expected = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    assert count == expected_count
    np.testing.assert_array_equal(labels > 0, mask)
    pairs = set(zip(labels.ravel().tolist(), expected.ravel().tolist(), strict=True))
    assert len(pairs) == len(np.unique(labels))  # the same parts, whatever their numbers
