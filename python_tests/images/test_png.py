"""PNGs with chunks of every size, and 16-bit gray with alpha."""

import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo
from sample_photos import camera_exif

from resshift_fast.images import Photo, headers, read, write
from resshift_fast.images.png import split, with_chunks

H, W = 9, 14


def noise(*shape, bits=8, seed=0):
    return np.random.default_rng(seed).integers(0, 2**bits, shape).astype(np.uint8 if bits == 8 else np.uint16)


PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
LONG = "long text " * 200_000  # 2 MB, compressed to a few KB
LARGE = {
    "zTXt": (b"zTXt", b"Software\0\0" + zlib.compress(LONG.encode())),
    "iTXt": (b"iTXt", b"Comment\0\1\0\0\0" + zlib.compress(LONG.encode())),
    "tEXt": (b"tEXt", b"Comment\0" + LONG.encode()),
    "iCCP": (b"iCCP", b"p\0\0" + zlib.compress(PROFILE + bytes(2_000_000))),
    "damaged zTXt": (b"zTXt", b"Comment\0\0no zlib stream"),
    "bomb": (b"zTXt", b"Comment\0\0" + zlib.compress(bytes(80_000_000))),
}


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("kind", LARGE)
def test_a_png_with_a_large_or_damaged_chunk_is_read(tmp_path, kind, bits):
    pixels = noise(H, W, 3, bits=bits)
    path = tmp_path / "a.png"
    cv2.imwrite(str(path), pixels[..., ::-1])
    path.write_bytes(with_chunks(path.read_bytes(), [LARGE[kind]]))
    photo = read(path)
    np.testing.assert_array_equal(photo.pixels, pixels)
    assert (photo.icc_profile is not None) == (kind == "iCCP")


@pytest.mark.parametrize("kind", ["zTXt", "iCCP"])
def test_a_large_chunk_in_a_large_file(tmp_path, kind, monkeypatch):
    """The header of a large file is checked before its pixels are read, and that of a result that exists."""
    monkeypatch.setattr("resshift_fast.images.headers._LARGE_FILE", 100)
    path = tmp_path / "a.png"
    Image.fromarray(noise(H, W, 3)).save(path)
    path.write_bytes(with_chunks(path.read_bytes(), [LARGE[kind]]))
    assert (read(path).width, read(path).height) == (W, H)
    assert headers.read_header(path) == headers.Header("PNG", W, H) and headers.is_whole(path)


def test_many_texts_are_read(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(noise(H, W, 3)).save(path)
    text = zlib.compress(bytes(900_000))
    path.write_bytes(with_chunks(path.read_bytes(), [(b"zTXt", b"k%d\0\0" % i + text) for i in range(100)]))
    assert read(path).width == W


def test_a_profile_is_read_as_pillow_reads_it(tmp_path):
    Image.fromarray(noise(H, W, 3)).save(tmp_path / "a.png", icc_profile=PROFILE)
    assert read(tmp_path / "a.png").icc_profile == PROFILE


@pytest.mark.parametrize("compressed", [False, True], ids=["tEXt", "zTXt"])
def test_exif_as_text_turns_the_picture(tmp_path, compressed):
    """ImageMagick's form: three lines of header, then hexadecimal digits."""
    exif = camera_exif(6).tobytes()
    text = f"\nexif\n{len(exif):8}\n" + "\n".join(exif.hex()[i : i + 72] for i in range(0, 2 * len(exif), 72)) + "\n"
    info = PngInfo()
    info.add_text("Raw profile type exif", text, zip=compressed)
    pixels = noise(H, W, 3)
    Image.fromarray(pixels).save(tmp_path / "a.png", pnginfo=info)
    np.testing.assert_array_equal(read(tmp_path / "a.png").pixels, np.rot90(pixels, -1))


def test_16_bit_gray_with_alpha_is_a_png_of_two_samples(tmp_path):
    values = noise(H, W, 2, bits=16)
    photo = Photo(np.repeat(values[..., :1], 3, axis=2), values[..., 1].copy(), gray=True)
    write(tmp_path / "a.png", photo)
    data = (tmp_path / "a.png").read_bytes()
    assert struct.unpack(">IIBB", data[16:26]) == (W, H, 16, 4)
    theirs = cv2.imread(str(tmp_path / "a.png"), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(theirs, np.dstack([values[..., :1]] * 3 + [values[..., 1:]]))
    back = read(tmp_path / "a.png")
    np.testing.assert_array_equal(back.pixels, photo.pixels)
    np.testing.assert_array_equal(back.alpha, photo.alpha)
    assert back.gray


def test_split_keeps_every_byte_of_a_cut_file():
    start = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + bytes(17)
    data = with_chunks(start, [(b"tEXt", b"a\0b")])
    for size in range(33, len(data)):
        assert split(data[:size]) == (data[:size], [])
    assert split(data + b"rest") == (start + b"rest", [(b"tEXt", b"a\0b")])
