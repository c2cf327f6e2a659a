"""PNG with 16 bits per channel, of which Pillow keeps 8 in colour: decoded by Pillow twice, encoded here.

A decoder of Pillow takes one of the two bytes of each value, as its raw mode says: "RGB;16B" the first, which is the
high one in a PNG, and "RGB;16L" the second.
"""

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image

from resshift_fast.images.errors import ImageError, damaged, one_line
from resshift_fast.images.limits import lifted
from resshift_fast.images.png import SIGNATURE, chunk, header, size

_KINDS = {2: "RGB", 4: "LA", 6: "RGBA"}  # by colour type
_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}  # colour types by the number of channels
_LEVEL = 6  # of zlib
_BAND = 1 << 22  # bytes that are filtered at once


def decode_16_bit(data: bytes, name: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Decode a PNG of 16-bit colour, or gray and alpha.

    Args:
        data: the file. name: for messages.

    Returns:
        Pixels uint16 [H, W, 3] RGB and alpha uint16 [H, W] or None. The orientation is not applied.

    Raises:
        ImageError: if it is another kind of PNG, or damaged.
    """
    bits, kind = header(data)
    if bits != 16 or kind not in _KINDS:
        raise ImageError(f"{name} is a kind of 16-bit PNG that is not supported; export it as 16-bit RGB or RGBA")
    try:
        if kind == 4:
            planes = _gray_and_alpha(data)
            return np.repeat(planes[..., :1], 3, axis=2), planes[..., 1]
        high, info = _decoded(data, f"{_KINDS[kind]};16B")
        planes = high.astype(np.uint16) << 8
        planes |= _decoded(data, f"{_KINDS[kind]};16L")[0]
    except Exception as error:  # Pillow's decoders raise whatever a damaged file leads them to
        raise damaged(name, one_line(error)) from error
    if kind == 6:
        return np.ascontiguousarray(planes[..., :3]), planes[..., 3]
    clear = info.get("transparency")  # a colour
    if clear is None:
        return planes, None
    return planes, np.where((planes == np.array(clear)).all(2), 0, 0xFFFF).astype(np.uint16)


def _gray_and_alpha(data: bytes) -> np.ndarray:
    """uint16 [H, W, 2]: two values of two bytes are read as four of one, as those of RGBA with 8 bits."""
    shape = b"IHDR" + data[16:24] + bytes((8, 6)) + data[26:29]
    as_rgba = data[:12] + shape + struct.pack(">I", zlib.crc32(shape)) + data[33:]
    return np.ascontiguousarray(_decoded(as_rgba)[0]).view(">u2").astype(np.uint16)


def _decoded(data: bytes, raw_mode: str | None = None) -> tuple[np.ndarray, dict[str, Any]]:
    """uint8 [H, W, C], by another of Pillow's raw modes if it is given, and what the file says of the image."""
    width, height = size(data[:24]) or (0, 0)
    with lifted(width * height):  # which the reader has checked
        image: Any = Image.open(io.BytesIO(data), formats=("PNG",))
        if raw_mode is not None:
            image.tile = [tile._replace(args=raw_mode) for tile in image.tile]
        return np.asarray(image), image.info


def encode_16_bit(planes: np.ndarray) -> bytes:
    """A PNG of uint16 planes: [H, W] gray, [H, W, 2] gray and alpha, [H, W, 3] RGB or [H, W, 4] RGBA."""
    height, width = planes.shape[:2]
    channels = 1 if planes.ndim == 2 else planes.shape[2]
    shape = struct.pack(">IIBBBBB", width, height, 16, _TYPES[channels], 0, 0, 0)
    compress = zlib.compressobj(_LEVEL, strategy=zlib.Z_FILTERED)
    band = max(1, _BAND // (2 * channels * width))
    above = np.zeros((1, 2 * channels * width), np.uint8)
    parts = []
    for top in range(0, height, band):
        big_endian = planes[top : top + band].astype(">u2")
        rows = np.ascontiguousarray(big_endian).view(np.uint8).reshape(len(big_endian), -1)
        parts.append(compress.compress(_filtered(rows, above, 2 * channels).tobytes()))
        above = rows[-1:]
    pixels = b"".join([*parts, compress.flush()])
    chunks = ((b"IHDR", shape), (b"IDAT", pixels), (b"IEND", b""))
    return SIGNATURE + b"".join(chunk(*one) for one in chunks)


def _filtered(rows: np.ndarray, above: np.ndarray, pixel: int) -> np.ndarray:
    """Rows after the filter whose differences are the smallest in sum (PNG specification, third edition, 12.7).

    Args:
        rows: uint8 [N, bytes]. above: the row before, [1, bytes]. pixel: bytes of one.

    Returns:
        uint8 [N, 1 + bytes], the number of the filter first.
    """
    up = np.concatenate([above, rows[:-1]])
    left, corner = np.zeros_like(rows), np.zeros_like(rows)
    left[:, pixel:], corner[:, pixel:] = rows[:, :-pixel], up[:, :-pixel]
    average = ((left.astype(np.uint16) + up) >> 1).astype(np.uint8)
    candidates = {1: left, 2: up, 3: average, 4: _paeth(left, up, corner)}
    best = np.empty((len(rows), 1 + rows.shape[1]), np.uint8)
    least = np.full(len(rows), np.iinfo(np.int64).max)
    for number, predicted in candidates.items():
        difference = rows - predicted
        cost = np.abs(difference.view(np.int8).astype(np.int16)).sum(1, dtype=np.int64)
        better = cost < least
        least[better] = cost[better]
        best[better, 0] = number
        best[better, 1:] = difference[better]
    return best


def _paeth(left: np.ndarray, up: np.ndarray, corner: np.ndarray) -> np.ndarray:
    """Of three neighbours the one nearest to left + up − corner; the first of equally near ones."""
    a, b, c = (x.astype(np.int16) for x in (left, up, corner))
    to_left, to_up = np.abs(b - c), np.abs(a - c)
    to_corner = np.abs(a + b - 2 * c)
    return np.where((to_left <= to_up) & (to_left <= to_corner), left, np.where(to_up <= to_corner, up, corner))
