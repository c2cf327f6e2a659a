"""Read the files of a Qt resource collection (.rcc), and the credits of the photos in those of GCompris."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import NamedTuple

HEADER = struct.Struct(">4sIIII")  # b"qres", version, places of the tree, of the data and of the names
NODE_SIZES = {1: 14, 2: 22, 3: 22}  # bytes, by version
COMPRESSED, FOLDER, ZSTANDARD = 1, 2, 4  # flags of a node


class Credit(NamedTuple):
    """Who took a photo, the licence, and the address where it was found or "", as the collection says it."""

    author: str
    licence: str
    source: str = ""


def read(path: Path) -> dict[str, bytes]:
    """The files of a collection, by their paths in it.

    The layout is that of Qt's tool rcc: a tree of nodes of fixed size, the contents and the UTF-16 names, each with its
    length before it, all big-endian.

    Raises:
        ValueError: `path` is not such a collection, or a file in it is compressed by Zstandard.
        OSError: `path` can't be read.
    """
    raw = path.read_bytes()
    magic, version, tree, data, names = HEADER.unpack_from(raw) if len(raw) >= HEADER.size else (b"", 0, 0, 0, 0)
    if magic != b"qres" or version not in NODE_SIZES:
        raise ValueError(f"{path} is no Qt resource collection of version 1 to 3; give an .rcc file")

    def name(place: int) -> str:
        (length,) = struct.unpack_from(">H", raw, names + place)
        start = names + place + 6  # after the length and a hash
        return raw[start : start + 2 * length].decode("utf-16-be")

    def content(place: int, flags: int) -> bytes:
        (length,) = struct.unpack_from(">I", raw, data + place)
        found = raw[data + place + 4 : data + place + 4 + length]
        if flags & ZSTANDARD:
            raise ValueError(f"{path}: files compressed by Zstandard can't be read; rcc --reverse unpacks them")
        return zlib.decompress(found[4:]) if flags & COMPRESSED else found  # before it: 4 bytes with its size

    found: dict[str, bytes] = {}

    def walk(number: int, folder: str) -> None:
        node = tree + number * NODE_SIZES[version]
        place, flags = struct.unpack_from(">IH", raw, node)
        whole = f"{folder}/{name(place)}" if number else ""
        if flags & FOLDER:
            count, first = struct.unpack_from(">II", raw, node + 6)
            for child in range(first, first + count):
                walk(child, whole)
        else:
            (place,) = struct.unpack_from(">I", raw, node + 10)  # after two numbers of language and country
            found[whole] = content(place, flags)

    walk(0, "")
    return found


def credits(text: str) -> dict[str, Credit]:
    """The credits in a README of GCompris, by file: blocks of "Copyright:", "License:" and "Files:" in any order, where
    the names of files may follow on lines of their own. Blocks without one of the three are left out."""
    found: dict[str, Credit] = {}
    for block in text.split("\n\n"):
        entries: dict[str, list[str]] = {}
        key = ""
        for line in block.splitlines():
            word, colon, rest = line.partition(":")
            if colon and word.istitle() and "/" not in word:
                key, line = word, rest
            if line.strip():
                entries.setdefault(key, []).append(line.strip())
        if {"Copyright", "License", "Files"} <= entries.keys():
            source = entries.get("Source", [""])[0]
            credit = Credit(" ".join(entries["Copyright"]).lstrip("© "), entries["License"][0], source)
            found.update(dict.fromkeys(entries["Files"], credit))
    return found
