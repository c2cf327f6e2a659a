"""Photos from and to bytes in memory, which are those of files."""

import numpy as np
import pytest
from sample_photos import make_photo

from resshift_fast import images
from resshift_fast.images.limits import limited


@pytest.mark.parametrize("name", ["a.png", "b.jpg", "c.webp", "d.tif", "e.gif"])
def test_bytes_are_read_as_their_file(name, tmp_path):
    path = make_photo(tmp_path / name, (21, 13), "L" if name.endswith("gif") else "RGB")
    photo, expected = images.read_bytes(path.read_bytes(), name="upload"), images.read(path)
    np.testing.assert_array_equal(photo.pixels, expected.pixels)
    assert photo.gray == expected.gray and photo.name == "upload"


@pytest.mark.parametrize("name", ["a.png", "b.jpg", "c.webp", "d.tif", "e.bmp"])
def test_encoded_is_what_is_written(name, tmp_path):
    photo = images.read(make_photo(tmp_path / "photo.png", (21, 13)))
    images.write(tmp_path / name, photo, 90)
    assert images.encoded(name, photo, 90) == (tmp_path / name).read_bytes()


@pytest.mark.parametrize(
    "data, expected",
    [
        (b"", "upload is empty"),
        (b"hello", "upload is a text file; give a PNG"),
        (b"\x89PNG\r\n\x1a\n", "upload is a damaged PNG"),
        (b"II*\0\xff\xff\xff\xff", "upload is a damaged TIFF"),
    ],
)
def test_bad_bytes_are_named(data, expected):
    with pytest.raises(images.ImageError, match=expected):
        images.read_bytes(data, name="upload")


def test_a_limit_holds_within_its_block_only(tmp_path):
    data = make_photo(tmp_path / "a.png", (20, 10)).read_bytes()
    with limited(200):
        images.read_bytes(data)
    with limited(198), pytest.raises(images.ImageError, match="more than 198 pixels"):
        images.read_bytes(data)
    images.read_bytes(data)
