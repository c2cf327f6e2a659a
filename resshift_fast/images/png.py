"""PNG chunks: those that Pillow limits to 1 MB, ignores or does not write (PNG specification, third edition, 11.3)."""

import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

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
    return data[:end] + chunk(b"IEND", b"")


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
    return data[:after_header] + b"".join(chunk(*one) for one in chunks) + data[after_header:]


def chunk(kind: bytes, content: bytes) -> bytes:
    """A chunk as it is in a file."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def profile_chunk(icc_profile: bytes) -> Chunk:
    """The chunk of a colour profile."""
    return b"iCCP", b"ICC profile\0\0" + zlib.compress(icc_profile)


def exif_chunk(exif: bytes) -> Chunk:
    """The chunk of EXIF."""
    return b"eXIf", exif.removeprefix(b"Exif\0\0")
