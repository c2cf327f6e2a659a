"""What the first bytes of an image file say, and how much of the file is read because of that.

A file may be much larger than its picture, by accident or on purpose. So of a large one only as much is read as a
picture of the size in its header can need, with some room for metadata and for what cameras append.
"""

import os
import struct
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from resshift_fast.core.files import open_regular
from resshift_fast.images import boxes, directories, png
from resshift_fast.images.codecs import what_it_is
from resshift_fast.images.errors import DamagedError, ImageError, damaged, one_line, too_heavy
from resshift_fast.images.files import FORMATS
from resshift_fast.images.limits import check_pixels

_LARGE_FILE = 32_000_000  # bytes, up to which a file is read as it is
_MOST_HEADER = 32_000_000  # bytes before the size of a JPEG, which may be much metadata
_MOST_BESIDES = 1 << 26  # bytes of metadata and of what is not read at all
_BYTES_PER_PIXEL = 10  # more than any format needs for a pixel, compressed badly
_MOST_BETWEEN = 1 << 16  # bytes between two markers of a JPEG
_JPEG = b"\xff\xd8\xff"
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # markers of frame headers
_ALONE = {1, *range(0xD0, 0xDA)}  # markers without a segment
_HEAD = 64  # bytes that tell the format, and the size of a PNG, WebP, GIF or BMP


@dataclass(frozen=True)
class Header:
    """What the first bytes of an image file say.

    Attributes:
        format: Pillow's name of the format. width, height: in pixels, as stored; those of a HEIF may include a margin.
    """

    format: str
    width: int
    height: int


def read_header(path: str | os.PathLike[str]) -> Header | None:
    """The header of an image file; None if it is no image, or no regular file."""
    try:
        with open_regular(path) as file:
            return header_of(file)
    except OSError:
        return None


def header_of(file: BinaryIO) -> Header | None:
    """The header of an open file, from a bounded number of bytes; None if it is no image, or damaged."""
    file.seek(0)
    head = file.read(_HEAD)
    size = png.size(head)  # Pillow refuses a PNG with long texts or profiles
    if size is not None:
        return Header("PNG", *size)
    if head.startswith(directories.MAGIC):
        tags = directories.read_tags(file, (256, 257)) or {}
        width, height = tags.get(256), tags.get(257)
        return Header("TIFF", width, height) if isinstance(width, int) and isinstance(height, int) else None
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":  # Pillow reads all of a WebP
        size = _webp_size(head)
        return Header("WEBP", *size) if size else None
    if head.startswith(_JPEG):
        size = _jpeg_size(file)
        return Header("JPEG", *size) if size else None
    if head.startswith(b"GIF8") and len(head) >= 10:
        return Header("GIF", *struct.unpack_from("<HH", head, 6))
    kind = boxes.kind_of(head)
    if kind is not None:
        properties = boxes.read_properties(file)
        return Header(kind, properties.width, properties.height) if properties else None
    size = _bmp_size(head)
    return Header("BMP", *size) if size else None


def _bmp_size(head: bytes) -> tuple[int, int] | None:
    """Width and height of a BMP with these first bytes; the height is negative if the rows go down."""
    if not head.startswith(b"BM") or len(head) < 26:
        return None
    width, height = struct.unpack_from("<HH" if head[14:18] == b"\x0c\0\0\0" else "<ii", head, 18)
    return (width, abs(height)) if width > 0 and height else None


def _webp_size(head: bytes) -> tuple[int, int] | None:
    """Width and height of a WebP with these first bytes (RFC 9649, sections 2.5 to 2.7)."""
    kind = head[12:16]
    if len(head) < (25 if kind == b"VP8L" else 30):
        return None
    if kind == b"VP8X":
        return 1 + int.from_bytes(head[24:27], "little"), 1 + int.from_bytes(head[27:30], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(head[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", head, 26)
        return width & 0x3FFF, height & 0x3FFF
    return None


def _jpeg_size(file: BinaryIO) -> tuple[int, int] | None:
    """Width and height of a JPEG (ITU-T T.81, annex B); None without a frame header, or far from the marker before it.

    Pillow goes through whatever is between markers byte by byte, which takes minutes if that is much.
    """
    place = len(_JPEG) - 1
    while place < _MOST_HEADER:
        file.seek(place)
        part = file.read(_MOST_BETWEEN)
        start = part.find(b"\xff")
        while start >= 0 and part[start + 1 : start + 2] in (b"\xff", b"\0"):  # fill bytes, and no marker
            start = part.find(b"\xff", start + (1 if part[start + 1] else 2))
        if start < 0 or start + 2 > len(part):
            return None
        place, marker = place + start, part[start + 1]
        file.seek(place + 2)
        segment = file.read(7)
        if marker in _FRAMES and len(segment) == 7:
            height, width = struct.unpack_from(">HH", segment, 3)
            return width, height
        place += 2 if marker in _ALONE else 2 + int.from_bytes(segment[:2], "big")
    return None


def needed_bytes(file: BinaryIO, name: str) -> bytes:
    """As much of an open file as its picture needs: all of a small one, and of a TIFF with many pages the first.

    Raises:
        ImageError: if it is a large file that is no image or is damaged, has more pixels than Pillow's limit, or more
            bytes than they need.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(_HEAD)
    file.seek(0)
    is_tiff = head.startswith(directories.MAGIC)
    # Pillow reads no big-endian BigTIFF, and of none the EXIF, and copies the values of tags whatever their size.
    is_strange = is_tiff and (head.startswith(directories.BIG) or directories.tags_exceed(file, size))
    if head.startswith(_JPEG) and _jpeg_size(file) is None:
        raise DamagedError(what_it_is(name, head))
    if size <= _LARGE_FILE and not is_strange:
        file.seek(0)
        return file.read()
    header = header_of(file)
    if header is None:
        file.seek(0)
        raise DamagedError(what_it_is(name, file.read(1024)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # reading it warns again
        check_pixels(name, header.width, header.height, size)
    if is_tiff:
        return _first_page(file, name)
    most = _MOST_BESIDES + _BYTES_PER_PIXEL * header.width * header.height
    if header.format == "WEBP":
        size = min(size, 8 + int.from_bytes(head[4:8], "little"))  # which follows the name of the format
        if size > most:
            raise too_heavy(name, size, header.width, header.height)
    file.seek(0)
    data = file.read(min(size, most))
    return png.ended(data) if header.format == "PNG" and size > most else data


def _first_page(file: BinaryIO, name: str) -> bytes:
    try:
        return directories.first_page(file, name)
    except (ImageError, MemoryError):
        raise
    except Exception as error:  # tags of a damaged file may have any type
        raise damaged(name, one_line(error)) from error


def is_whole(path: str | os.PathLike[str]) -> bool:
    """Whether a file is an image of its suffix's format, with its end where that format marks one."""
    header = read_header(path)
    if header is None or header.format != FORMATS.get(Path(path).suffix.lower()):
        return False
    try:
        with open_regular(path) as file:
            return _has_end(file, header.format)
    except OSError:
        return False


def _has_end(file: BinaryIO, form: str) -> bool:
    head = file.read(8)
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 64))
    tail = file.read()
    if form == "PNG":
        return b"IEND" in tail
    if form == "JPEG":
        return b"\xff\xd9" in tail
    if form in ("WEBP", "BMP"):  # the file's size follows the name of the format
        start, rest = (4, 8) if form == "WEBP" else (2, 0)
        return size >= int.from_bytes(head[start : start + 4], "little") + rest
    return directories.has_pixels(file)
