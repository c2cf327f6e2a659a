"""Photos in memory, and patches that depend only on (seed, step, index)."""

import warnings

import numpy as np
import pytest
from PIL import Image

from resshift_fast import images
from resshift_fast.training.data import PatchPlan, load_photos, make_batch, make_pair, prefetch, read_rgb
from resshift_fast.training.degradations import Mixture


def _save(path, height, width, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


@pytest.fixture
def photos():
    return [np.random.default_rng(i).integers(0, 256, (70 + i, 90 - i, 3), dtype=np.uint8) for i in range(3)]


PLAN = PatchPlan(patch=32, scale=4, degradation=Mixture())


def test_pairs_are_a_function_of_seed_step_and_index(photos):
    high, low = make_pair(photos, PLAN, seed=3, step=7, index=1)
    assert high.shape == (32, 32, 3) and low.shape == (8, 8, 3) and high.dtype == low.dtype == np.uint8
    make_pair(photos, PLAN, seed=9, step=9, index=9)
    again = make_pair(photos, PLAN, seed=3, step=7, index=1)
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
    assert low is None and make_batch(photos, plan, 3, 7, 2)[1] is None
    assert np.array_equal(high, make_pair(photos, PLAN, 3, 7, 1)[0])


def test_the_most_detailed_candidate_is_chosen():
    photo = np.full((64, 256, 3), 90, np.uint8)
    photo[:, 128:] = np.random.default_rng(0).integers(0, 256, (64, 128, 3))
    means = {}
    for candidates in (1, 8):
        plan = PatchPlan(patch=32, scale=4, max_downscale=1.0, candidates=candidates, recolour=0.0)
        means[candidates] = np.mean([make_pair([photo], plan, 0, 0, index)[0].std() for index in range(40)])
    assert means[8] > 1.3 * means[1]


@pytest.mark.parametrize("workers", [1, 3])
def test_prefetched_batches_come_in_order_and_equal_direct_ones(photos, workers):
    batches = list(prefetch(photos, PLAN, 5, 2, range(4, 9), workers))
    assert len(batches) == 5
    for step, (high, low) in zip(range(4, 9), batches, strict=True):
        expected = make_batch(photos, PLAN, 5, step, 2)
        assert np.array_equal(high, expected[0]) and np.array_equal(low, expected[1])


def test_an_error_in_a_worker_reaches_the_reader():
    with pytest.raises((ValueError, IndexError)):
        next(prefetch([], PLAN, 0, 1, range(1)))


def test_load_photos_reads_subfolders_sorted(tmp_path):
    second = _save(tmp_path / "b.png", 40, 50)
    first = _save(tmp_path / "a" / "z.png", 45, 41, seed=1)
    loaded = load_photos(tmp_path, min_side=32)
    assert [np.array_equal(a, b) for a, b in zip(loaded, [first, second], strict=True)] == [True, True]


def test_unreadable_and_small_pictures_are_skipped_with_a_warning(tmp_path):
    kept = _save(tmp_path / "good.png", 40, 40)
    _save(tmp_path / "small.png", 20, 400)
    (tmp_path / "text.png").write_text("not a picture")
    _save(tmp_path / "cut.png", 64, 64)
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:3000])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loaded = load_photos(tmp_path, min_side=32)
    assert len(loaded) == 1 and np.array_equal(loaded[0], kept)
    text = " ".join(str(item.message) for item in caught)
    assert all(name in text for name in ("small.png", "text.png", "cut.png")) and "good.png" not in text


def test_a_missing_an_empty_and_a_useless_folder_are_different_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder"):
        load_photos(tmp_path / "nothing", min_side=8)
    with pytest.raises(FileNotFoundError, match="no images"):
        load_photos(tmp_path, min_side=8)
    _save(tmp_path / "small.png", 8, 8)
    with pytest.warns(UserWarning, match=r"small\.png"), pytest.raises(ValueError, match="at least 64"):
        load_photos(tmp_path, min_side=64)


def test_the_largest_photos_are_shrunk_to_the_memory_bound(tmp_path):
    _save(tmp_path / "large.png", 400, 300)
    small = _save(tmp_path / "small.png", 100, 100)
    large, kept = load_photos(tmp_path, min_side=32, max_megapixels=0.05)
    assert np.array_equal(kept, small)
    assert 0.035e6 < large.shape[0] * large.shape[1] <= 0.04e6
    assert large.shape[0] / large.shape[1] == pytest.approx(4 / 3, rel=0.02)


@pytest.mark.parametrize(
    ("array", "mode"),
    [
        (np.full((9, 7), 65535, np.uint16), None),
        (np.full((9, 7, 4), 255, np.uint8), None),
        (np.full((9, 7), 255, np.uint8), "P"),
    ],
    ids=["16-bit-gray", "rgba", "palette"],
)
def test_other_modes_are_read_as_rgb(tmp_path, array, mode):
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(tmp_path / "x.png")
    assert np.array_equal(read_rgb(tmp_path / "x.png"), np.full((9, 7, 3), 255, np.uint8))


def _tiff(path, plane):
    """An uncompressed gray TIFF of any type of values."""
    Image.fromarray(plane).save(path)


def _transparent(path):
    planes = np.random.default_rng(0).integers(0, 256, (9, 7, 4)).astype(np.uint8)
    planes[2:5, 2:5] = 255, 255, 255, 0
    Image.fromarray(planes).save(path)


RAMP = np.linspace(0, 255, 63).round().astype(np.uint8).reshape(9, 7)
SAME = {  # files, and the gray values [9, 7] that restore sees in them
    "gray": (lambda path: Image.fromarray(RAMP).save(path), RAMP),
    "16-bit-gray": (lambda path: Image.fromarray(RAMP.astype(np.uint16) * 257).save(path), RAMP),
    "16-bit-rounded": (lambda path: Image.fromarray(RAMP.astype(np.uint16) * 257 // 3).save(path), None),
    "white-is-zero": (lambda path: _white_is_zero(path, 255 - RAMP), RAMP),
    "palette": (lambda path: Image.fromarray(RAMP).convert("P").save(path), RAMP),
    "cmyk": (lambda path: Image.fromarray(np.dstack([RAMP] * 4)).convert("RGB").convert("CMYK").save(path), None),
    "transparent": (_transparent, None),
}


def _white_is_zero(path, plane):
    """Pillow writes none, so the tag of a plain one is changed."""
    _tiff(path, plane)
    data = bytearray(path.read_bytes())
    place = data.index(b"\x06\x01\x03\x00\x01\x00\x00\x00\x01") + 8
    data[place] = 0
    path.write_bytes(data)


@pytest.mark.parametrize("kind", SAME)
def test_files_are_read_as_restore_reads_them(tmp_path, kind):
    make, values = SAME[kind]
    path = tmp_path / "x.tif"
    make(path)
    expected = images.to_float(images.read(path).pixels)
    ours = read_rgb(path)
    assert ours.dtype == np.uint8
    if values is not None:
        np.testing.assert_array_equal(ours, np.repeat(values[..., None], 3, axis=2))
    clear = images.read(path).alpha
    visible = np.ones(ours.shape[:2], bool) if clear is None else clear >= 16
    assert np.abs(ours / 255 - expected)[visible].max() <= 0.51 / 255


def test_clear_pixels_do_not_keep_hidden_colours(tmp_path):
    planes = np.full((20, 20, 4), (90, 100, 110, 255), np.uint8)
    planes[5:15, 5:15] = 255, 255, 255, 0
    Image.fromarray(planes).save(tmp_path / "x.png")
    assert (read_rgb(tmp_path / "x.png") == planes[0, 0, :3]).all()


REFUSED = {
    "float": lambda: np.ones((40, 40), np.float32),
    "signed": lambda: -np.ones((40, 40), np.int32),
    "32-bit": lambda: np.full((40, 40), 70000, np.int32),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_restore_refuses_is_skipped_with_its_name(tmp_path, kind):
    kept = _save(tmp_path / "good.png", 40, 40)
    _tiff(tmp_path / "bad.tif", REFUSED[kind]())
    with pytest.raises(images.ImageError):
        images.read(tmp_path / "bad.tif")
    with pytest.warns(UserWarning, match=r"bad\.tif .*convert it to 8 or 16 bit first") as caught:
        loaded = load_photos(tmp_path, min_side=32)
    assert len(loaded) == 1 and np.array_equal(loaded[0], kept) and len(caught) == 1


def test_pictures_are_turned_upright(tmp_path):
    image = Image.fromarray(np.zeros((20, 30, 3), np.uint8))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "x.jpg", exif=exif)
    assert read_rgb(tmp_path / "x.jpg").shape == (30, 20, 3)
