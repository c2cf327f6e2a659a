"""16-bit PNGs are compared with OpenCV's, an independent reader and writer."""

import struct
import zlib

import cv2
import numpy as np
import pytest
from pipelines import integers, photo

from resshift_fast.images.errors import DamagedError, ImageError
from resshift_fast.images.png import SIGNATURE, chunk, with_chunks
from resshift_fast.images.png16 import decode_16_bit, encode_16_bit

H, W = 11, 13
PASSES = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))  # Adam7


def smooth(channels):
    """A picture for which each filter is the best of some rows: [H, W, channels], or [H, W] for one."""
    planes = photo(H, W)[..., [0, 1, 2, 0][:channels]].astype(np.uint16) * 257
    planes[3] = integers(W, channels, bits=16)
    planes[5] = planes[4]
    planes[6] = np.arange(W, dtype=np.uint16)[:, None] * 300
    return planes[..., 0] if channels == 1 else planes


def interlaced(planes):
    """The file of [H, W, C], in seven passes without filters."""
    rows = b""
    for top, left, down, right in PASSES:
        part = planes[top::down, left::right].astype(">u2")
        if part.size:
            rows += b"".join(b"\0" + row.tobytes() for row in part)
    kind = {2: 4, 3: 2, 4: 6}[planes.shape[2]]
    head = struct.pack(">IIBBBBB", planes.shape[1], planes.shape[0], 16, kind, 0, 0, 1)
    return SIGNATURE + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def opencv(data):
    planes = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if planes.ndim == 2:
        return planes
    return planes[..., [2, 1, 0, 3][: planes.shape[2]]]


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_what_is_encoded_is_read_by_opencv_and_back(channels):
    planes = smooth(channels)
    data = encode_16_bit(planes)
    expected = np.dstack([planes[..., :1]] * 3 + [planes[..., 1:]]) if channels == 2 else planes
    np.testing.assert_array_equal(opencv(data), expected)
    filters = {row[0] for row in np.frombuffer(zlib.decompress(data[41:-16]), np.uint8).reshape(H, -1)}
    assert len(filters) >= 3
    if channels > 1:
        pixels, alpha = decode_16_bit(data, "a.png")
        ours = pixels if alpha is None else np.dstack([pixels, alpha])
        np.testing.assert_array_equal(ours, expected)


def test_bands_of_rows_make_the_same_file(monkeypatch):
    planes = smooth(3)
    whole = encode_16_bit(planes)
    monkeypatch.setattr("resshift_fast.images.png16._BAND", 6 * W * 2)
    np.testing.assert_array_equal(opencv(encode_16_bit(planes)), planes)
    assert zlib.decompress(encode_16_bit(planes)[41:-16]) == zlib.decompress(whole[41:-16])


@pytest.mark.parametrize("filters", ["NONE", "SUB", "UP", "AVG", "PAETH"])
@pytest.mark.parametrize("channels", [3, 4])
def test_every_filter_is_read(filters, channels):
    planes = smooth(channels)
    options = [cv2.IMWRITE_PNG_FILTER, getattr(cv2, f"IMWRITE_PNG_FILTER_{filters}")]
    data = cv2.imencode(".png", planes[..., [2, 1, 0, 3][:channels]], options)[1].tobytes()
    pixels, alpha = decode_16_bit(data, "a.png")
    np.testing.assert_array_equal(pixels if alpha is None else np.dstack([pixels, alpha]), planes)


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_interlaced_files_are_read(channels):
    planes = smooth(channels)
    pixels, alpha = decode_16_bit(interlaced(planes), "a.png")
    np.testing.assert_array_equal(pixels, np.dstack([planes[..., :1]] * 3) if channels == 2 else planes[..., :3])
    if channels == 3:
        assert alpha is None
    else:
        np.testing.assert_array_equal(alpha, planes[..., -1])


def test_a_transparent_colour_is_compared_in_16_bits():
    planes = smooth(3)
    planes[0, :4] = 0x1234
    planes[0, 4:8] = 0x1235  # the same in 8 bits
    data = with_chunks(encode_16_bit(planes), [(b"tRNS", struct.pack(">HHH", *[0x1234] * 3))])
    pixels, alpha = decode_16_bit(data, "a.png")
    np.testing.assert_array_equal(pixels, planes)
    np.testing.assert_array_equal(alpha, opencv(data)[..., 3])
    assert (alpha[0, :4] == 0).all() and (alpha[0, 4:] == 0xFFFF).all()


def test_damaged_and_other_files_are_refused():
    data = encode_16_bit(integers(H, W, 3, bits=16))
    with pytest.raises(DamagedError, match="a.png is damaged"):
        decode_16_bit(data[: len(data) // 2], "a.png")
    with pytest.raises(ImageError, match="a.png is a kind of 16-bit PNG that is not supported"):
        decode_16_bit(encode_16_bit(integers(H, W, bits=16)), "a.png")
