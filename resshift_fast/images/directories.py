"""Directories of TIFF files, classic and BigTIFF, in either byte order (TIFF 6.0, section 2; BigTIFF of libtiff 4.0).

They are read from an open file, so that of a large one nothing is read that is not needed: `first_page` copies the
first page with its metadata into a file of its own.
"""

import os
import struct
import warnings
from collections.abc import Container, Mapping, Sequence
from contextlib import suppress
from typing import Any, BinaryIO, NamedTuple

from resshift_fast.images.errors import ImageError, too_heavy

BIG = (b"II+\0", b"MM\0+")
MAGIC = (b"II*\0", b"MM\0*", *BIG)

_SHORT, _LONG = 3, 4
# Types of values, as letters of `struct`; rationals are pairs of integers.
_LETTERS = {
    1: "s", 2: "s", 3: "H", 4: "I", 5: "II", 6: "b", 7: "s", 8: "h", 9: "i", 10: "ii", 11: "f", 12: "d", 13: "I",
    16: "Q", 17: "q", 18: "Q",
}  # fmt: skip
_NOT_INTEGERS = (5, 10, 11, 12)
_ONLY_BIG = {13: _LONG, 16: _LONG, 17: _LONG, 18: _LONG}  # types of BigTIFF, by those of the same values in a TIFF
_LONG_TAGS = (256, 257, 273, 278, 279, 322, 323, 324, 325)
_SEQUENCES = (258, 273, 279, 324, 325, 330, 338, 339)
_PAGE_TAGS = (254, 256, 257, 330)
_MOST_VALUES = 1 << 26  # bytes of all tags of a directory that are read; strips, profiles and EXIF need less
_MOST_PAGES = 10_000
_CHILDREN = (34665, 34853, 40965)  # directories of EXIF, GPS and interoperability
_MOST_BELOW = 16
_ELSEWHERE = (288, 289, 330, 513, 514)  # tags that say where something is that is not copied


class Entry(NamedTuple):
    """A tag of a directory: its number, type, number of values, and their bytes; None if they are not in the file."""

    tag: int
    kind: int
    number: int
    values: bytes | None


def read_tags(file: BinaryIO, only: Container[int] | None = None) -> dict[int, Any] | None:
    """The first directory of a TIFF, by tag; None if it is damaged. See `read_directory`."""
    try:
        return read_directory(file, _layout(file)[2], only)[0]
    except struct.error:
        return None


def read_directory(file: BinaryIO, offset: int, only: Container[int] | None = None) -> tuple[dict[int, Any], int]:
    """A directory of a TIFF: its tags, and the offset of the next one or 0.

    Tags that can have a value for each sample, strip or tile are tuples, others with one value are that value, and text
    and bytes are bytes. Rationals and floats are left out, and so are values that are too long, or not in the file.

    Args:
        file: the TIFF. offset: of the directory.
        only: the tags whose values are wanted; None for all.

    Raises:
        struct.error: if it is damaged.
    """
    order, _, _ = _layout(file)
    entries, following = _entries(file, offset, only)
    return {entry.tag: _value(entry, order) for entry in entries if _is_plain(entry)}, following


def _layout(file: BinaryIO) -> tuple[str, bool, int]:
    """Byte order for `struct`, whether it is a BigTIFF, and where its first directory is."""
    file.seek(0)
    head = file.read(16)
    order, big = "<" if head[:2] == b"II" else ">", 43 in head[2:4]
    return order, big, struct.unpack_from(order + ("Q" if big else "I"), head, 8 if big else 4)[0]


def _bytes_at(file: BinaryIO, place: int, size: int) -> bytes:
    if place >= 1 << 63:  # which no file has, and seek refuses
        raise struct.error(f"there is no byte {place}")
    file.seek(place)
    content = file.read(size)
    if len(content) < size:
        raise struct.error("the file ends too early")
    return content


def _entries(file: BinaryIO, offset: int, only: Container[int] | None = None) -> tuple[list[Entry], int]:
    """The tags of the directory at an offset, and the offset of the next one or 0; struct.error if it is damaged."""
    order, big, _ = _layout(file)
    word, counter = ("Q", "Q") if big else ("I", "H")
    size = struct.calcsize(word)
    count = struct.unpack(order + counter, _bytes_at(file, offset, struct.calcsize(order + counter)))[0]
    if count > 65535:
        raise struct.error("too many tags")
    each = 4 + 2 * size
    table = _bytes_at(file, file.tell(), count * each + size)
    entries: list[Entry] = []
    left = _MOST_VALUES
    for place in range(0, count * each, each):
        tag, kind, number = struct.unpack_from(f"{order}HH{word}", table, place)
        letters = _LETTERS.get(kind)
        if letters is None or number == 0:
            continue
        length, inline = struct.calcsize("=" + letters) * number, place + 4 + size
        values: bytes | None = None
        if only is not None and tag not in only:
            pass
        elif length <= size:
            values = table[inline : inline + length]
        elif length <= left:
            left -= length
            with suppress(struct.error):
                values = _bytes_at(file, struct.unpack_from(order + word, table, inline)[0], length)
        entries.append(Entry(tag, kind, number, values))
    return entries, struct.unpack_from(order + word, table, count * each)[0]


def _is_plain(entry: Entry) -> bool:
    return entry.values is not None and entry.kind not in _NOT_INTEGERS


def _value(entry: Entry, order: str) -> Any:
    assert entry.values is not None
    if _LETTERS[entry.kind] == "s":
        return entry.values
    values = struct.unpack(f"{order}{entry.number}{_LETTERS[entry.kind]}", entry.values)
    return values[0] if entry.number == 1 and entry.tag not in _SEQUENCES else values


def check_pages(file: BinaryIO, name: str) -> None:
    """Refuse camera raw files, whose first page is a preview, and warn of pages beyond the first.

    Raises:
        ImageError: for a Canon CR2, and for a file that has a larger image in a subdirectory (DNG, NEF and others).

    Warns:
        UserWarning: if there are more pages. Thumbnails and masks of the first one do not count.
    """
    pages: list[tuple[int, int]] = []
    try:
        offset = _layout(file)[2]
        seen: set[int] = set()
        while offset and offset not in seen and len(seen) < _MOST_PAGES:
            seen.add(offset)
            tags, offset = read_directory(file, offset, _PAGE_TAGS)
            if len(seen) == 1:
                _refuse_raw(file, tags, name)
            if len(seen) == 1 or not int(tags.get(254, 0)) & 5:
                pages.append((int(tags.get(256, 0)), int(tags.get(257, 0))))
    except (struct.error, TypeError, ValueError) as error:
        if isinstance(error, ImageError):
            raise
    if len(pages) > 1:
        largest = max(range(len(pages)), key=lambda i: pages[i][0] * pages[i][1])
        width, height = pages[0]
        hint = "" if largest == 0 else f"; page {largest + 1} is larger, {pages[largest][0]}×{pages[largest][1]}"
        text = f"{name} has {len(pages)} pages, of which only the first is read, {width}×{height}{hint}"
        warnings.warn(text, UserWarning, stacklevel=4)


def _refuse_raw(file: BinaryIO, tags: dict[int, Any], name: str) -> None:
    own = tags.get(256, 0) * tags.get(257, 0)
    larger = _bytes_at(file, 8, 2) == b"CR"  # Canon's mark, in place of the first directory
    offsets = tags.get(330, ())
    for offset in offsets[:16] if isinstance(offsets, tuple) else ():
        try:
            child, _ = read_directory(file, offset, _PAGE_TAGS)
            larger = larger or child.get(256, 0) * child.get(257, 0) > own
        except struct.error:
            continue
    if larger:
        raise ImageError(f"{name} begins with a preview, as camera raw files do; develop it to a TIFF or PNG first")


def tags_exceed(file: BinaryIO, size: int) -> bool:
    """Whether the tags of the first directory, or of one below it, claim more bytes than these; none is read then."""
    total = 0
    with suppress(struct.error):
        order, _, first = _layout(file)
        places, seen = [first], {first}
        while places:
            entries, _ = _entries(file, places.pop(), _CHILDREN)
            total += sum(struct.calcsize("=" + _LETTERS[entry.kind]) * entry.number for entry in entries)
            below = {_value(entry, order) for entry in entries if entry.tag in _CHILDREN and entry.number == 1}
            places += [place for place in below if isinstance(place, int) and place not in seen]
            seen |= below
            if len(seen) > _MOST_BELOW:
                break
    return total > size


def has_pixels(file: BinaryIO) -> bool:
    """Whether all strips or tiles of the first page lie in the file."""
    tags = read_tags(file) or {}
    places, counts = (tags.get(tag, ()) for tag in ((324, 325) if 324 in tags else (273, 279)))
    if not isinstance(places, tuple) or not isinstance(counts, tuple) or not places or len(places) != len(counts):
        return False
    end = file.seek(0, os.SEEK_END)
    return all(offset + size <= end for offset, size in zip(places, counts, strict=True))


def first_page(file: BinaryIO, name: str) -> bytes:
    """The first page of a TIFF with its metadata, as a classic TIFF in the same byte order.

    What is read is bounded by the number of pixels, whatever the size of the file and its tags say.

    Raises:
        ImageError: if it holds much more pixel data than pixels. struct.error: if it is damaged.
    """
    order, _, first = _layout(file)
    entries = _entries(file, first)[0]
    tags = {entry.tag: _value(entry, order) for entry in entries if _is_plain(entry)}
    places, counts = (324, 325) if 324 in tags else (273, 279)
    out = bytearray(_start(order))
    offsets, sizes = tags.get(places, ()), _sizes_of_strips(file, tags, tags.get(places, ()), tags.get(counts, ()))
    most = _MOST_VALUES + 2 * _bytes_of_pixels(tags)
    if sum(sizes) > most:
        raise too_heavy(name, sum(sizes), tags[256], tags[257])
    new_offsets, new_sizes = [], []
    for offset, size in zip(offsets, sizes, strict=True):
        file.seek(offset)
        strip = file.read(size)
        new_offsets.append(len(out))
        new_sizes.append(len(strip))
        out += strip + bytes(len(strip) % 2)
    kept = [entry for entry in entries if entry.tag not in (places, counts)]
    kept += [integers(places, new_offsets, order), integers(counts, new_sizes, order)] if new_offsets else []
    portable = _portable(file, kept, order, out)
    struct.pack_into(order + "I", out, 4, _append(out, portable, order))
    return bytes(out)


def _bytes_of_pixels(tags: Mapping[int, Any]) -> int:
    """Of the first page, uncompressed."""
    tile = tags.get(322, 0) * tags.get(323, 0)  # which is whole also where the page is smaller
    samples, bits = tags.get(277, 1), max(tags.get(258, (1,)))
    return int((tags.get(256, 0) * tags.get(257, 0) + tile) * samples * bits // 8)


def _sizes_of_strips(
    file: BinaryIO, tags: Mapping[int, Any], offsets: Sequence[int], counts: Sequence[int]
) -> list[int]:
    """Bytes of each strip or tile that are in the file; they are estimated where the file does not say."""
    end = file.seek(0, os.SEEK_END)
    if len(counts) != len(offsets):
        following = dict(zip(sorted(offsets), [*sorted(offsets)[1:], end], strict=True))
        counts = [min(following[offset] - offset, _bytes_of_pixels(tags) + 1024) for offset in offsets]
    return [max(0, min(count, end - offset)) for offset, count in zip(offsets, counts, strict=True)]


def _portable(file: BinaryIO, entries: list[Entry], order: str, out: bytearray, depth: int = 2) -> list[Entry]:
    """The tags that can be copied into a classic TIFF; directories below are copied to the end of `out`."""
    portable = []
    for entry in entries:
        if entry.values is None or entry.tag in _ELSEWHERE:
            continue
        if entry.kind in _ONLY_BIG:
            values = struct.unpack(f"{order}{entry.number}{_LETTERS[entry.kind]}", entry.values)
            if not 0 <= min(values) <= max(values) < 1 << 32:
                continue
            entry = integers(entry.tag, values, order, _LONG)
        if entry.tag in _CHILDREN:
            try:
                below = _entries(file, _value(entry, order))[0] if depth and entry.number == 1 else []
            except struct.error:
                below = []
            if not below:
                continue
            entry = integers(entry.tag, [_append(out, _portable(file, below, order, out, depth - 1), order)], order)
        portable.append(entry)
    return portable


def integers(tag: int, values: Sequence[int], order: str, kind: int | None = None) -> Entry:
    """A tag of integers: of 32 bits for sizes and places, else of 16, if no other type is given."""
    if kind is None:
        kind = _LONG if tag in _LONG_TAGS or tag in _CHILDREN else _SHORT
    return Entry(tag, kind, len(values), struct.pack(f"{order}{len(values)}{_LETTERS[kind]}", *values))


def with_directories(data: bytes, directories: Sequence[Mapping[int, Sequence[int]]]) -> bytes:
    """A TIFF with these directories, in this order, in place of its own, as a classic TIFF."""
    order = "<" if data[:2] == b"II" else ">"
    out = bytearray(data) + b"\0" * (-len(data) % 4)
    out[2:8] = _start(order)[2:]
    link = 4
    for directory in directories:
        entries = [integers(tag, values, order) for tag, values in directory.items()]
        offset = _append(out, entries, order)
        struct.pack_into(order + "I", out, link, offset)
        link = offset + 2 + 12 * len(entries)
    return bytes(out)


def _start(order: str) -> bytes:
    """The first 8 bytes of a classic TIFF whose first directory is not known yet."""
    return (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 0)


def _append(out: bytearray, entries: Sequence[Entry], order: str) -> int:
    """Append a directory, and the values of its tags, to a classic TIFF; returns its offset."""
    out += bytes(len(out) % 2)
    offset = len(out)
    table, more, after = b"", bytearray(), offset + 2 + 12 * len(entries) + 4
    for entry in sorted(entries):
        values = entry.values or b""
        place = values.ljust(4, b"\0")
        if len(values) > 4:
            place = struct.pack(order + "I", after + len(more))
            more += values + bytes(-len(values) % 4)
        table += struct.pack(f"{order}HHI", entry.tag, entry.kind, entry.number) + place
    out += struct.pack(order + "H", len(entries)) + table + bytes(4) + more
    return offset
