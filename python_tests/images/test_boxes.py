"""AVIF and HEIC: sizes and colours by their boxes, and photos of them."""

import io
import warnings

import numpy as np
import pytest
from PIL import Image
from sample_photos import camera_exif

from resshift_fast.images import ImageError, boxes, headers, read

ROWS, COLUMNS = np.mgrid[:38, :52]
PIXELS = np.stack([ROWS * 6, COLUMNS * 4, 255 - ROWS * 3], axis=2).astype(np.uint8)


def save(path, form, pixels=PIXELS, **options):
    if form == "HEIF":
        pillow_heif = pytest.importorskip("pillow_heif")
        image = Image.fromarray(pixels)
        with open(path, "wb") as file:
            pillow_heif.from_pillow(image).save(file, quality=95, **options)
    else:
        Image.fromarray(pixels).save(path, form, quality=95, **options)
    return path


def psnr(a, b):
    return -10 * np.log10(np.mean((a.astype(float) - b) ** 2) / 255**2)


@pytest.mark.parametrize("form", ["AVIF", "HEIF", "GIF"])
def test_the_picture_and_its_size(tmp_path, form):
    path = save(tmp_path / "a.jpg", form)  # the content decides, not the suffix
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        photo = read(path)
    assert (photo.width, photo.height, photo.bits, photo.alpha, photo.icc_profile) == (52, 38, 8, None, None)
    assert psnr(photo.pixels, PIXELS) > 30
    expected = (64, 64) if form == "HEIF" else (52, 38)  # with the encoder's margin
    assert headers.read_header(path) == headers.Header(form, *expected)


@pytest.mark.parametrize("form", ["AVIF", "HEIF"])
def test_alpha_profile_and_notes(tmp_path, form):
    alpha = np.where(COLUMNS < 26, 255, 0).astype(np.uint8)
    profile = b"a profile of any content" if form == "HEIF" else None
    options = {"exif": camera_exif(orientation=1).tobytes(), "xmp": b"<x:xmpmeta/>"}
    path = save(tmp_path / "a", form, np.dstack([PIXELS, alpha]), **options, icc_profile=profile)
    photo = read(path)
    assert photo.alpha.shape == (38, 52) and photo.alpha[:, :24].min() > 250 and photo.alpha[:, 28:].max() < 5
    assert photo.notes.xmp == b"<x:xmpmeta/>" and b"Maker" in photo.exif
    assert psnr(photo.pixels[:, :24], PIXELS[:, :24]) > 30


def test_an_orientation_is_applied_once(tmp_path):
    path = save(tmp_path / "a", "AVIF", exif=camera_exif(orientation=6).tobytes())
    photo = read(path)
    assert (photo.width, photo.height) == (38, 52) and psnr(photo.pixels, np.rot90(PIXELS, -1)) > 30


def test_a_heic_of_ten_bits_keeps_them(tmp_path):
    pillow_heif = pytest.importorskip("pillow_heif")
    deep = (np.stack([ROWS * 1000, COLUMNS * 700, ROWS * 0 + 30000], axis=2)).astype(np.uint16)
    pillow_heif.from_bytes("RGB;16", (52, 38), deep.tobytes()).save(tmp_path / "a.heic", quality=95)
    photo = read(tmp_path / "a.heic")
    assert photo.bits == 16 and psnr(photo.pixels / 257, deep / 257) > 35
    levels = np.unique(photo.pixels)
    assert len(levels) > 256 and np.isin(levels, np.arange(1024) * 65535 // 1023 + np.array([[0], [1]])).all()


def test_heic_without_its_package(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pillow_heif", None)
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x14ftypheic" + bytes(60))
    with pytest.raises(ImageError, match=r"a\.heic cannot be read: HEIC needs another package: pip install"):
        read(tmp_path / "a.heic")


@pytest.mark.parametrize("form", ["AVIF", "HEIF", "GIF"])
def test_cut_off_files_are_errors_in_one_line(tmp_path, form):
    data = save(tmp_path / "a", form).read_bytes()
    for size in (13, 40, 100, len(data) // 2, len(data) - 30):
        (tmp_path / "b").write_bytes(data[:size])
        try:
            read(tmp_path / "b")
        except ImageError as error:
            assert "\n" not in str(error)
        assert form == "GIF" or boxes.read_properties(io.BytesIO(data[:size])) is None or size > 100


def box(kind, content):
    return (8 + len(content)).to_bytes(4, "big") + kind + content


def file_of(properties, brand=b"avif"):
    meta = box(b"meta", bytes(4) + box(b"iprp", box(b"ipco", properties)))
    return io.BytesIO(box(b"ftyp", brand + bytes(4) + brand) + meta)


def test_properties():
    size = box(b"ispe", bytes(4) + (4000).to_bytes(4, "big") + (3000).to_bytes(4, "big"))
    thumbnail = box(b"ispe", bytes(4) + (320).to_bytes(4, "big") + (240).to_bytes(4, "big"))
    colour = box(b"colr", b"nclx" + bytes([0, 12, 0, 13, 0, 6, 128]))
    ten = box(b"av1C", bytes([0x81, 0, 0x40, 0]))
    expected = boxes.Properties(4000, 3000, bytes([12, 13, 0, 1]), 10)
    assert boxes.read_properties(file_of(thumbnail + size + colour + ten)) == expected
    assert boxes.read_properties(file_of(size + thumbnail)) == boxes.Properties(4000, 3000)
    assert boxes.read_properties(file_of(colour)) is None
    assert boxes.read_properties(io.BytesIO(b"\0\0\0\0meta")) is None


def test_kinds():
    assert boxes.kind_of(file_of(b"").read()) == "AVIF"
    assert boxes.kind_of(file_of(b"", b"heic").read()) == "HEIF"
    assert boxes.kind_of(file_of(b"", b"isom").read()) is None
    assert boxes.kind_of(b"\0\0\0\x18ftypmif1\0\0\0\0mif1avif") == "AVIF"  # the compatible brands decide
    assert boxes.kind_of(b"") is None
