"""PNG chunks: those that Pillow limits to 1 MB, ignores or does not write (PNG specification, third edition, 11.3)."""

import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import cv2
import numpy as np

from resshift_fast.images.errors import ImageError

SIGNATURE = b"\x89PNG\r\n\x1a\n"
Chunk = tuple[bytes, bytes]  # type and content

XMP = b"XML:com.adobe.xmp"  # keyword of the chunk that holds it
TEXT = (b"tEXt", b"zTXt", b"iTXt")
_ANIMATION = (b"acTL", b"fcTL", b"fdAT")
_OURS = (b"iCCP", b"cICP", *TEXT, *_ANIMATION)
_MOST_INFLATED = 2**26  # bytes of a profile or text; more would be a decompression bomb
_EXIF_AS_TEXT = b"Raw profile type exif"  # as ImageMagick writes it


def header(data: bytes) -> tuple[int, int]:
    """Bit depth and colour type (0 gray, 2 RGB, 3 palette, 4 gray and alpha, 6 RGBA) of a file."""
    return data[24], data[25]


def size(head: bytes) -> tuple[int, int] | None:
    """Width and height of a file with these first 24 bytes; None if it is no PNG."""
    if len(head) < 24 or not head.startswith(SIGNATURE) or head[12:16] != b"IHDR":
        return None
    width, height = struct.unpack_from(">II", head, 16)
    return width, height


def split(data: bytes) -> tuple[bytes, list[Chunk]]:
    """A PNG without profile, text, cICP and animation, and these chunks, in their order.

    A file is read as far as it is whole; what follows stays as it is, for the decoder to judge.
    """
    kept, chunks, start = [], [], 0
    for kind, place, end in _chunks(data):
        if kind in _OURS:
            kept.append(data[start:place])
            chunks.append((kind, data[place + 8 : end - 4]))
            start = end
    return b"".join([*kept, data[start:]]), chunks


def ended(data: bytes) -> bytes:
    """The first bytes of a PNG as a whole file: its last chunk that is whole, then the end."""
    end = max((end for _, _, end in _chunks(data)), default=len(SIGNATURE))
    return data[:end] + _chunk(b"IEND", b"")


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(type, start, end) of every whole chunk."""
    place = len(SIGNATURE)
    while place + 12 <= len(data):
        end = place + 12 + int(struct.unpack_from(">I", data, place)[0])
        if end > len(data):
            return
        yield data[place + 4 : place + 8], place, end
        place = end


def info(chunks: Sequence[Chunk]) -> dict[str, Any]:
    """What the chunks say, by the keys of Pillow's ``Image.info``: profile, cICP, XMP, EXIF as text."""
    found: dict[str, Any] = {}
    for kind, content in chunks:
        name, _, rest = content.partition(b"\0")
        if kind == b"iCCP" and rest[:1] == b"\0":
            profile = _inflated(rest[1:])
            if profile:
                found["icc_profile"] = profile
        elif kind == b"iTXt" and name == XMP:
            text = rest[2:].partition(b"\0")[2].partition(b"\0")[2]
            xmp = _inflated(text) if rest[:1] == b"\1" else text
            if xmp:
                found["xmp"] = xmp
        elif kind == b"cICP":
            found["cicp"] = content
        elif kind == b"zTXt" and name == _EXIF_AS_TEXT:
            found[name.decode()] = (_inflated(rest[1:]) or b"").decode("latin-1")
        elif kind == b"tEXt" and name == _EXIF_AS_TEXT:
            found[name.decode()] = rest.decode("latin-1")
    return found


def _inflated(content: bytes) -> bytes | None:
    """Decompressed content; None if it is damaged or longer than a profile or text can be."""
    inflate = zlib.decompressobj()
    try:
        plain = inflate.decompress(content, _MOST_INFLATED)
    except zlib.error:
        return None
    return None if inflate.unconsumed_tail else plain


def frames(chunks: Sequence[Chunk]) -> int:
    """Number of frames of an animation; 1 for a still image."""
    return next((int.from_bytes(content[:4], "big") for kind, content in chunks if kind == b"acTL"), 1)


def with_chunks(data: bytes, chunks: Sequence[Chunk]) -> bytes:
    """The file with chunks inserted before its pixels."""
    after_header = len(SIGNATURE) + 25
    return data[:after_header] + b"".join(_chunk(*chunk) for chunk in chunks) + data[after_header:]


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def profile_chunk(icc_profile: bytes) -> Chunk:
    """The chunk of a colour profile."""
    return b"iCCP", b"ICC profile\0\0" + zlib.compress(icc_profile)


def exif_chunk(exif: bytes) -> Chunk:
    """The chunk of EXIF."""
    return b"eXIf", exif.removeprefix(b"Exif\0\0")


def decode_16_bit(data: bytes, name: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Decode a PNG of 16-bit colour with OpenCV.

    Args:
        data: the file. name: for messages.

    Returns:
        Pixels uint16 [H, W, 3] RGB and alpha uint16 [H, W] or None. The orientation is not applied.

    Raises:
        ImageError: if OpenCV cannot read it as 16-bit colour.
    """
    try:
        planes = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        planes = None
    if planes is None or planes.dtype != np.uint16 or planes.ndim != 3 or planes.shape[2] not in (3, 4):
        raise ImageError(f"{name} is a kind of 16-bit PNG that is not supported; export it as 16-bit RGB or RGBA")
    return cv2.cvtColor(planes[..., :3], cv2.COLOR_BGR2RGB), planes[..., 3] if planes.shape[2] == 4 else None


def encode_16_bit(planes: np.ndarray) -> bytes:
    """A PNG of uint16 planes: [H, W] gray, [H, W, 2] gray and alpha, [H, W, 3] RGB or [H, W, 4] RGBA."""
    if planes.ndim == 3 and planes.shape[2] == 2:  # which OpenCV does not write
        height, width = planes.shape[:2]
        rows = planes.astype(">u2").reshape(height, -1).view(np.uint8)
        filtered = np.full((height, 1 + rows.shape[1]), 2, np.uint8)  # filter 2: the difference from the row above
        filtered[:, 1:] = np.diff(rows, axis=0, prepend=np.zeros_like(rows[:1]))
        shape = struct.pack(">IIBBBBB", width, height, 16, 4, 0, 0, 0)
        parts = ((b"IHDR", shape), (b"IDAT", zlib.compress(filtered.tobytes(), 6)), (b"IEND", b""))
        return SIGNATURE + b"".join(_chunk(*part) for part in parts)
    if planes.ndim == 3:
        planes = cv2.cvtColor(planes, cv2.COLOR_RGB2BGR if planes.shape[2] == 3 else cv2.COLOR_RGBA2BGRA)
    return cv2.imencode(".png", planes, [cv2.IMWRITE_PNG_COMPRESSION, 6])[1].tobytes()
