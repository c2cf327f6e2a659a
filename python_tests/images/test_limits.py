"""The limit on pixels: bombs are refused, and what was restored from a large photo is read again."""

import threading

import numpy as np
import pytest
from PIL import Image

from resshift_fast.images import ImageError, Photo, limits, read, write

SIDE = 40
NOISE = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3)).astype(np.uint8)
FLAT = np.full((SIDE, SIDE, 3), 90, np.uint8)


@pytest.fixture
def default(monkeypatch):
    """Pillow's default limit in miniature: a warning above `default` pixels, an error above twice as many."""

    def set_default(pixels):
        monkeypatch.setattr(limits, "DEFAULT", pixels)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pixels)

    return set_default


def test_the_default_is_pillows():
    assert Image.MAX_IMAGE_PIXELS == limits.DEFAULT


@pytest.mark.parametrize(
    "suffix, bits", [(".png", 8), (".png", 16), (".jpg", 8), (".webp", 8), (".tif", 8), (".tif", 16), (".bmp", 8)]
)
def test_the_result_of_the_largest_photo_is_read(tmp_path, default, suffix, bits):
    default(SIDE**2 // 2 // limits.LARGEST_GAIN)
    path = tmp_path / f"a{suffix}"
    write(path, Photo(NOISE if bits == 8 else NOISE.astype(np.uint16) * 257))
    assert read(path).bits == bits
    default(SIDE**2 // 2 // limits.LARGEST_GAIN - 1)
    with pytest.raises(ImageError, match="the limit against decompression bombs"):
        read(path)


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif"])
def test_a_file_without_the_bytes_for_its_pixels_is_a_bomb(tmp_path, default, monkeypatch, suffix):
    monkeypatch.setattr(limits, "PIXELS_PER_BYTE", 1)
    path = tmp_path / f"a{suffix}"
    Image.fromarray(FLAT).save(path, **({"compression": "tiff_adobe_deflate"} if suffix == ".tif" else {}))
    default(SIDE**2 // 2 - 1)
    with pytest.raises(ImageError, match=f"more than {SIDE**2 - 2:,} pixels"):
        read(path)
    default(SIDE**2 // 2)
    with pytest.warns(Image.DecompressionBombWarning, match="has 1,600 pixels"):
        assert read(path).width == SIDE


def test_a_limit_that_was_chosen_is_kept_whatever_the_files_size(tmp_path, monkeypatch):
    write(tmp_path / "a.png", Photo(NOISE))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", SIDE**2 // 2 - 1)
    with pytest.raises(ImageError, match=f"more than {SIDE**2 - 2:,} pixels"):
        read(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert read(tmp_path / "a.png").width == SIDE


def test_lifting_for_one_photo_is_not_lifting_for_another(default):
    default(100)
    inside, go_on = threading.Event(), threading.Event()

    def hold():
        with limits.lifted(500):
            inside.set()
            go_on.wait(20)

    thread = threading.Thread(target=hold)
    thread.start()
    assert inside.wait(20)
    try:
        assert Image.MAX_IMAGE_PIXELS is None and limits.limit() == 100
        with pytest.raises(ImageError, match="bomb"):
            limits.check_pixels("other", 100, 100, 10)
        with limits.lifted(500):
            pass
        assert Image.MAX_IMAGE_PIXELS is None
    finally:
        go_on.set()
        thread.join()
    assert Image.MAX_IMAGE_PIXELS == 100
