"""Masks of every kind, which pixels they mark, and warnings about those that mark nothing or everything."""

import warnings

import numpy as np
import pytest
from PIL import Image
from pipelines import integers

from resshift_fast import images
from resshift_fast.images import Photo, read_mask

MASK = np.zeros((32, 32), bool)
MASK[8:24, 16:] = True


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "I;16"])
def test_masks_of_every_mode(mode):
    image = Image.fromarray(MASK.astype(np.uint8) * 255)
    image = Image.fromarray(MASK.astype(np.uint16) * 65535) if mode == "I;16" else image.convert("RGB").convert(mode)
    if mode in ("RGBA", "LA"):
        image.putalpha(Image.fromarray(np.where(MASK, 255, integers(32, 32)).astype(np.uint8)))
    np.testing.assert_array_equal(read_mask(image), MASK)


def test_mask_survives_jpeg(tmp_path):
    Image.fromarray(MASK.astype(np.uint8) * 255).convert("RGB").save(tmp_path / "m.jpg", quality=30)
    np.testing.assert_array_equal(read_mask(tmp_path / "m.jpg"), MASK)
    np.testing.assert_array_equal(read_mask(str(tmp_path / "m.jpg")), MASK)


@pytest.mark.parametrize(
    ("below", "above"),
    [
        (np.uint8(127), np.uint8(128)),
        (np.uint16(32767), np.uint16(32768)),
        (np.float32(0.499), np.float32(0.5)),
        (False, True),
    ],
    ids=["uint8", "uint16", "float32", "bool"],
)
@pytest.mark.parametrize("channels", [None, 1, 3, 4])
def test_mask_threshold(below, above, channels):
    row = np.array([[below, above]])
    array = row if channels is None else np.repeat(row[..., None], channels, axis=2)
    if channels == 4:
        array[..., 3] = {"f": 1, "b": True}.get(row.dtype.kind, np.iinfo(row.dtype).max if row.dtype.kind == "u" else 1)
    assert read_mask(array).tolist() == [[False, True]]


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        (np.zeros((2, 2), np.int32), TypeError, "must be bool, uint8, uint16 or floating point, got int32"),
        (np.full((2, 2), np.nan), ValueError, "NaN"),
        (np.eye(2, dtype=np.uint8), ValueError, "values are 0 and 1, all of them black; use 0 and 255, or bool"),
        (np.zeros(4, bool), ValueError, r"\[H, W\] or \[H, W, C\], got \[4\]"),
        ([[True]], TypeError, "expected a path, image or array, got list"),
    ],
    ids=["int32", "nan", "zeros-and-ones", "rank", "list"],
)
def test_bad_masks(mask, error, message):
    with pytest.raises(error, match=message):
        read_mask(mask)


def strokes(color, ground, clear=0):
    """MASK painted with `color` on a clear `ground`, uint8 [32, 32, 4]."""
    planes = np.empty((32, 32, 4), np.uint8)
    planes[..., :3] = np.where(MASK[..., None], color, ground)
    planes[..., 3] = np.where(MASK, 255, clear)
    return planes


def as_key(planes, path):
    """A PNG whose ground is a colour key."""
    pixels = np.where(MASK[..., None], planes[..., :3], 250).astype(np.uint8)
    Image.fromarray(pixels).save(path, transparency=(250, 250, 250))
    return path


FORMS = {
    "array": lambda planes, path: planes,
    "array-16-bit": lambda planes, path: planes.astype(np.uint16) * 257,
    "array-float": lambda planes, path: planes / np.float32(255),
    "two-channels": lambda planes, path: planes[..., [0, 3]],
    "photo": lambda planes, path: Photo(planes[..., :3].copy(), planes[..., 3].copy()),
    "pil": lambda planes, path: Image.fromarray(planes),
    "pil-LA": lambda planes, path: Image.fromarray(planes).convert("LA"),
    "file": lambda planes, path: (Image.fromarray(planes).save(path), path)[1],
    "colour-key": as_key,
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("ground", [255, 0], ids=["white", "black"])
def test_white_strokes_on_a_clear_ground(tmp_path, ground, form):
    mask = FORMS[form](strokes(255, ground), tmp_path / "mask.png")
    np.testing.assert_array_equal(read_mask(mask), MASK)


def test_half_transparent_white_is_half_white():
    planes = np.full((1, 2, 4), 255, np.uint8)
    planes[0, :, 3] = 127, 128
    assert read_mask(planes).tolist() == [[False, True]]


def test_bool_alpha_counts():
    planes = np.ones((1, 2, 4), bool)
    planes[0, 0, 3] = False
    assert read_mask(planes).tolist() == [[False, True]]


NOTHING = {
    "black strokes in alpha": (strokes(0, 0), "paint white what is to be filled in, on black or on a clear ground"),
    "red strokes": (strokes((255, 0, 0), 255), "no white pixel, so nothing is filled in"),
    "red on opaque black": (strokes((255, 0, 0), 0, clear=255), "paint white what is to be filled in$"),
    "clear": (np.full((4, 4, 4), (255, 255, 255, 0), np.uint8), "no white pixel"),
    "gray": (np.full((4, 4), 127, np.uint8), "no white pixel"),
    "float": (np.zeros((4, 4), np.float32), "no white pixel"),
    "white": (np.full((4, 4), 255, np.uint8), "white everywhere, so the whole image is replaced"),
    "float of 255": (np.full((4, 4), 255, np.float32), "white everywhere"),
}


@pytest.mark.parametrize("case", NOTHING)
def test_a_mask_of_nothing_or_everything_is_warned_of(case):
    mask, message = NOTHING[case]
    with pytest.warns(UserWarning, match=message) as caught:
        read_mask(mask)
    assert len(caught) == 1 and "\n" not in str(caught[0].message)


def test_the_warning_names_the_file(tmp_path):
    Image.new("L", (4, 4)).save(tmp_path / "empty.png")
    with pytest.warns(UserWarning, match=r"the mask \S*empty.png has no white pixel"):
        read_mask(tmp_path / "empty.png")


@pytest.mark.parametrize("value", [False, True])
def test_bool_arrays_are_never_warned_of(value):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_mask(np.full((3, 3), value)).all() == value


def test_a_mask_as_photo_is_read_once_from_its_file(tmp_path):
    Image.fromarray(strokes(255, 255)).save(tmp_path / "m.png")
    np.testing.assert_array_equal(read_mask(images.read(tmp_path / "m.png")), MASK)
