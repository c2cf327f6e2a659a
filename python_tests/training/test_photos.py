"""Photos of folders and lists: which are found, how they are read, and in which order they are used."""

import os
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from resshift_fast import images
from resshift_fast.training.photos import Photos, list_photos, read_rgb


def _save(path, height, width, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


def _names(paths, folder):
    return [os.path.relpath(path, folder) for path in paths]


def test_folders_are_searched_sorted_and_without_hidden_ones(tmp_path):
    for name in ("b.png", "a/z.JFIF", "a/b/y.jpeg", ".hidden.png", "._b.png", ".trash/c.png", "a/note.txt", "c.tiff"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert _names(list_photos([tmp_path]), tmp_path) == ["a/b/y.jpeg", "a/z.JFIF", "b.png", "c.tiff"]
    twice = list_photos([tmp_path / "a", tmp_path / "b.png", tmp_path / "a" / "b"])
    assert _names(twice, tmp_path) == ["a/b/y.jpeg", "a/z.JFIF", "b.png"]
    (tmp_path / "a" / "b" / "round").symlink_to(tmp_path)
    assert _names(list_photos([tmp_path]), tmp_path) == ["a/b/y.jpeg", "a/z.JFIF", "b.png", "c.tiff"]


def test_a_list_names_photos_in_its_order_relative_to_itself(tmp_path):
    pixels = _save(tmp_path / "photos" / "ä b.png", 40, 50)
    other = _save(tmp_path / "c.png", 40, 40, seed=1)
    (tmp_path / "list.txt").write_text(f"photos/ä b.png\n\n{tmp_path / 'c.png'}\nnone.png\n", encoding="utf-8")
    photos = Photos([tmp_path / "list.txt"], min_side=32)
    assert len(photos) == 3 and photos.reports() == []
    assert np.array_equal(photos.get(0), pixels) and np.array_equal(photos.get(1), other) and photos.get(2) is None
    assert "none.png does not exist" in photos.reports()[0] and photos.reports() == []


def test_a_list_may_be_written_on_windows(tmp_path):
    pixels = _save(tmp_path / "a.png", 40, 50)
    (tmp_path / "list.txt").write_bytes("a.png\r\n\r\n".encode("utf-8-sig"))
    photos = Photos([tmp_path / "list.txt"], min_side=32)
    assert len(photos) == 1 and np.array_equal(photos.get(0), pixels)


def test_what_is_no_source_is_one_clear_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing does not exist"):
        list_photos([tmp_path / "nothing"])
    with pytest.raises(FileNotFoundError, match="no images in"):
        list_photos([tmp_path])
    (tmp_path / "x.bin").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="neither a folder, a photo nor a text file"):
        list_photos([tmp_path / "x.bin"])
    _save(tmp_path / "small.png", 8, 9)
    with pytest.raises(ValueError, match=r"small\.png is 9×8, below 64 pixels a side.*at least 64 pixels"):
        Photos([tmp_path], min_side=64)


def test_unusable_photos_are_reported_once_and_replaced(tmp_path):
    kept = _save(tmp_path / "good.png", 40, 40)
    _save(tmp_path / "small.png", 20, 400)
    (tmp_path / "text.png").write_text("not a picture")
    _save(tmp_path / "cut.png", 64, 64)
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:3000])
    photos = Photos([tmp_path], min_side=32)
    for position in range(8):
        assert np.array_equal(photos.at(0, position, np.random.default_rng(position)), kept)
    text = " ".join(photos.reports())
    assert all(text.count(name) == 1 for name in ("small.png", "text.png", "cut.png")) and "good.png" not in text


def test_the_only_usable_one_of_many_is_found(tmp_path, monkeypatch):
    kept = _save(tmp_path / "z.png", 40, 40)
    for index in range(9):
        _save(tmp_path / f"{index}.png", 8, 8)
    monkeypatch.setattr("resshift_fast.training.photos.TRIES", 1)
    photos = Photos([tmp_path], min_side=32)
    assert all(np.array_equal(photos.at(0, place, np.random.default_rng(place)), kept) for place in range(10))


def test_every_epoch_uses_each_photo_once_in_another_order(tmp_path):
    shades = range(0, 120, 10)
    for shade in shades:
        Image.new("RGB", (32, 32), (shade, 0, 0)).save(tmp_path / f"{shade}.png")
    photos = Photos([tmp_path], min_side=32)

    def epoch(seed, number):
        rng = np.random.default_rng(0)
        return [int(photos.at(seed, number * 12 + place, rng)[0, 0, 0]) for place in range(12)]

    orders = [epoch(0, 0), epoch(0, 1), epoch(0, 2), epoch(1, 0)]
    assert all(Counter(order) == Counter(shades) for order in orders)
    assert len(set(map(tuple, orders))) == 4 and epoch(0, 0) == orders[0]


def test_the_cache_keeps_what_was_used_last_within_its_limit(tmp_path, monkeypatch):
    for index in range(3):
        _save(tmp_path / f"{index}.png", 100, 1000)  # 0.3 MB each
    read = []
    monkeypatch.setattr(
        "resshift_fast.training.photos.read_rgb", lambda path: (read.append(path[-5]), read_rgb(path))[1]
    )
    photos = Photos([tmp_path], min_side=32, cache_mb=1)
    for index in (0, 1, 2, 0, 1, 2):
        photos.get(index)
    assert read == ["0", "1", "2"]
    _save(tmp_path / "3.png", 200, 1500)  # 0.9 MB, for which the others have to leave
    photos = Photos([tmp_path], min_side=32, cache_mb=1)
    read.clear()
    for index in (0, 1, 3, 3, 0):
        photos.get(index)
    assert read == ["1", "3", "0"]
    with pytest.raises(ValueError, match="read-only"):
        photos.get(0)[0] = 0


def test_nothing_is_shrunk(tmp_path):
    pixels = _save(tmp_path / "large.png", 1500, 1200)
    assert np.array_equal(Photos([tmp_path], min_side=32, cache_mb=0).get(0), pixels)


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
    photos = Photos([tmp_path], min_side=32)
    assert np.array_equal(photos.at(0, 0, np.random.default_rng(0)), kept)
    (report,) = photos.reports()
    assert "bad.tif" in report and "convert it to 8 or 16 bit first" in report


def test_pictures_are_turned_upright(tmp_path):
    image = Image.fromarray(np.zeros((20, 30, 3), np.uint8))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "x.jpg", exif=exif)
    assert read_rgb(tmp_path / "x.jpg").shape == (30, 20, 3)
