"""Headers of image files, which of them are whole, and how little of a large file is read."""

import io
import os
import struct
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image
from sample_photos import camera_exif

from resshift_fast.images import ImageError, Photo, directories, headers, read, write

PIXELS = np.random.default_rng(0).integers(0, 256, (19, 23, 3)).astype(np.uint8)
SUFFIXES = [".png", ".jpg", ".webp", ".tif", ".bmp"]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("size", [(1, 1), (300, 2), (5, 4000)], ids=str)
def test_headers_say_what_pillow_says(tmp_path, suffix, size):
    path = tmp_path / f"a{suffix}"
    for options in ({}, {"lossless": True}, {"exif": camera_exif()}) if suffix == ".webp" else ({},):
        Image.new("RGB", size).save(path, **options)
        with Image.open(path) as image:
            assert headers.read_header(path) == headers.Header(image.format, *size)


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".gif", ".avif"])
def test_the_start_of_a_file_has_its_size_or_none(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    for options in ({}, {"lossless": True}, {"exif": camera_exif()}) if suffix == ".webp" else ({},):
        Image.fromarray(PIXELS).save(path, **options)
        data, whole = path.read_bytes(), headers.read_header(path)
        found = {headers.header_of(io.BytesIO(data[:length])) for length in range(len(data))}
        assert whole is not None and found == {None, whole}


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif", ".bmp"])
def test_whole_files(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    write(path, Photo(PIXELS))
    assert headers.is_whole(path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) - 20])
    assert not headers.is_whole(path)
    path.write_bytes(data[:3])
    assert not headers.is_whole(path)
    path.write_bytes(data + b"\0" * 20)  # some programs append to a whole file
    assert headers.is_whole(path)


def test_what_is_no_result(tmp_path):
    path = tmp_path / "a.png"
    assert not headers.is_whole(path)
    path.touch()
    assert not headers.is_whole(path)
    path.write_text("a note")
    assert not headers.is_whole(path)
    Image.new("RGB", (3, 4)).save(path, "JPEG")
    assert not headers.is_whole(path)
    path.unlink()
    path.mkdir()
    assert not headers.is_whole(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    assert headers.read_header(tmp_path / "a.png") is None and not headers.is_whole(tmp_path / "a.png")


@pytest.fixture
def all_files_are_large(monkeypatch):
    monkeypatch.setattr(headers, "_LARGE_FILE", 0)
    monkeypatch.setattr(headers, "_MOST_BESIDES", 1 << 16)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("tail", [b"", b"\0" * (1 << 17)], ids=["whole", "tail"])
def test_a_large_file_is_read_as_a_small_one(tmp_path, suffix, tail, request):
    path = tmp_path / f"a{suffix}"
    details = {} if suffix == ".bmp" else {"exif": camera_exif(6), "icc_profile": b"\0" * 16 + b"RGB " + b"\0" * 108}
    Image.fromarray(PIXELS).save(path, **details)
    before = read(path)
    path.write_bytes(path.read_bytes() + tail)
    request.getfixturevalue("all_files_are_large")
    after = read(path)
    np.testing.assert_array_equal(after.pixels, before.pixels)
    assert (after.exif, after.icc_profile) == (before.exif, before.icc_profile)
    assert suffix == ".bmp" or after.exif


@pytest.mark.parametrize(
    ("suffix", "message"),
    [(".png", "damaged"), (".jpg", "damaged"), (".webp", "for 23×19 pixels"), (".tif", "damaged")],
)
def test_a_large_file_that_is_damaged(tmp_path, all_files_are_large, suffix, message):
    path = tmp_path / f"a{suffix}"
    write(path, Photo(PIXELS))
    data = bytearray(path.read_bytes()[:200])
    if suffix == ".webp":
        data[4:8] = struct.pack("<I", 1 << 20)
    path.write_bytes(bytes(data) + bytes(1 << 20))
    with pytest.raises(ImageError, match=message) as error:
        read(path)
    assert "\n" not in str(error.value)


def test_the_limit_on_pixels_of_a_large_file(tmp_path, all_files_are_large, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200)
    for suffix in SUFFIXES:
        Image.fromarray(PIXELS).save(tmp_path / f"a{suffix}")
        with pytest.raises(ImageError, match="more than 400 pixels"):
            read(tmp_path / f"a{suffix}")


def test_tags_that_claim_more_than_the_file_has_are_not_read(tmp_path, monkeypatch):
    """Of 3,000 tags that all claim the file's 200 kB, which Pillow would copy for each."""
    path = tmp_path / "a.tif"
    write(path, Photo(PIXELS))
    data = path.read_bytes()
    (first,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, first)
    table = data[first + 2 : first + 2 + 12 * count]
    size = len(data) + 200_000
    bombs = b"".join(struct.pack("<HHII", 40000 + i, 7, size - 8, 8) for i in range(3000))
    moved = struct.pack("<H", count + 3000) + table + bombs + bytes(4)
    path.write_bytes(data[:4] + struct.pack("<I", len(data)) + data[8:] + moved + bytes(size - len(data)))
    read_sizes = []
    entries = directories._bytes_at
    monkeypatch.setattr(directories, "_bytes_at", lambda f, at, n: read_sizes.append(n) or entries(f, at, n))
    np.testing.assert_array_equal(read(path).pixels, PIXELS)
    assert sum(read_sizes) < 4 << 26 and len(Image.open(io.BytesIO(needed(path))).tag_v2) < 500


@pytest.mark.parametrize("suffix", [".png", ".webp"])
def test_exif_that_claims_more_than_it_has_is_left_out(tmp_path, suffix):
    size, count = 20_000, 500
    tags = b"".join(struct.pack(">HHII", 40000 + i, 7, size, 16 + 12 * count) for i in range(count))
    exif = b"Exif\0\0MM\0*" + struct.pack(">IH", 8, count) + tags + bytes(4 + size)
    Image.fromarray(PIXELS).save(tmp_path / f"a{suffix}", exif=exif)
    with pytest.warns(UserWarning, match="its EXIF is damaged and was left out") as found:
        assert read(tmp_path / f"a{suffix}").exif is None
    assert len(found) == 1


def test_a_jpeg_of_nothing_is_refused_at_once(tmp_path):
    path = tmp_path / "a.jpg"
    for start in (b"", b"\xe0\0\4ab" + bytes(9)):
        path.write_bytes(b"\xff\xd8\xff" + start)
        os.truncate(path, 30_000_000)
        began = time.process_time()
        assert headers.read_header(path) is None
        with pytest.raises(ImageError, match="is a damaged JPEG"):
            read(path)
        assert time.process_time() - began < 1


def test_junk_before_the_frame_of_a_jpeg(tmp_path):
    path = tmp_path / "a.jpg"
    Image.fromarray(PIXELS).save(path)
    data, before = path.read_bytes(), read(path).pixels
    path.write_bytes(data[:2] + b"\xff\xff" + data[2:20] + b"\0junk\xff\0\xff" + data[20:])
    np.testing.assert_array_equal(read(path).pixels, before)
    assert headers.read_header(path) == headers.Header("JPEG", 23, 19)


def needed(path):
    with open(path, "rb") as file:
        return headers.needed_bytes(file, str(path))


SPARSE = """
import os, resource, sys
from resshift_fast.images import ImageError, headers, read

def most():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

for path in sys.argv[1:]:
    read(path)
before = most()
for path in sys.argv[1:]:
    os.truncate(path, 5 << 30)
    assert headers.read_header(path).width == 23, path
    assert read(path).pixels.shape == (19, 23, 3), path
    assert most() - before < 200e6, (path, most() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs sparse files and a peak of memory in KB")
def test_memory_for_a_small_picture_in_a_file_of_5_gb(tmp_path):
    paths = [tmp_path / f"a{suffix}" for suffix in SUFFIXES]
    for path in paths:
        write(path, Photo(PIXELS))
    deep = tmp_path / "deep.tif"
    write(deep, Photo(PIXELS.astype(np.uint16) * 257))
    subprocess.run([sys.executable, "-c", SPARSE, *map(str, [*paths, deep])], check=True, timeout=120)
