"""Boxes of AVIF and HEIF files (ISO/IEC 14496-12, 4.2, and 23008-12, 6.5): what they are, sizes, colour, bit depth."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

_MOST_META = 1 << 24  # bytes of a box of properties, which has no pixels
_MOST_BOXES = 64  # before it
_AVIF = (b"avif", b"avis")
_HEIF = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")


@dataclass(frozen=True)
class Properties:
    """What the boxes of a file say.

    Attributes:
        width, height: of its largest picture, in pixels, before a margin is cut off that encoders of HEIF add.
        cicp: primaries, transfer, matrix and range as in ITU-T H.273 for RGB, 4 bytes; None without them.
        bits: per channel of an AVIF; 8 for other files.
    """

    width: int
    height: int
    cicp: bytes | None = None
    bits: int = 8


def kind_of(head: bytes) -> str | None:
    """AVIF or HEIF for a file with these first 32 bytes or more; None for others, such as films and camera raw."""
    if head[4:8] != b"ftyp":
        return None
    end = min(len(head), int.from_bytes(head[:4], "big"))
    brands = [head[8:12], *(head[place : place + 4] for place in range(16, end, 4))]
    if any(brand in _AVIF for brand in brands):
        return "AVIF"
    return "HEIF" if any(brand in _HEIF for brand in brands) else None


def read_properties(file: BinaryIO) -> Properties | None:
    """The properties of an open AVIF or HEIF; None if it has none, or is damaged."""
    place = 0
    for _ in range(_MOST_BOXES):
        file.seek(place)
        head = file.read(16)
        if len(head) < 8:
            return None
        size, kind, start = int.from_bytes(head[:4], "big"), head[4:8], 8
        if size == 1:  # the size follows, in 64 bits
            size, start = int.from_bytes(head[8:16], "big"), 16
        if kind == b"meta":
            file.seek(place + start)
            return _properties(file.read(min(size - start, _MOST_META) if size else _MOST_META))
        if size < start:
            return None
        place += size
    return None


def _properties(meta: bytes) -> Properties | None:
    width = height = 0
    cicp, bits = None, 8
    for kind, content in _inside(_inside_all(_inside_all(meta[4:], b"iprp"), b"ipco")):
        if kind == b"ispe" and len(content) >= 12:
            _, across, down = struct.unpack_from(">III", content)
            if across * down > width * height:
                width, height = across, down
        elif kind == b"colr" and content[:4] == b"nclx" and len(content) >= 8 and cicp is None:
            # What is decoded is RGB of full range, whatever is stored.
            cicp = bytes([content[5], content[7], 0, 1]) if not (content[4] or content[6]) else None
        elif kind == b"av1C" and len(content) >= 3 and content[2] & 0x40:
            bits = max(bits, 12 if content[2] & 0x20 else 10)
    return Properties(width, height, cicp, bits) if width * height else None


def _inside(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(type, content) of the boxes one after the other."""
    place = 0
    while place + 8 <= len(data):
        size = int.from_bytes(data[place : place + 4], "big")
        if size < 8:
            return
        yield data[place + 4 : place + 8], data[place + 8 : place + size]
        place += size


def _inside_all(data: bytes, wanted: bytes) -> bytes:
    """The contents of all boxes of one type."""
    return b"".join(content for kind, content in _inside(data) if kind == wanted)
