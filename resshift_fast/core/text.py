"""Text that may be printed: nothing in it controls the terminal."""

import unicodedata

# They reorder the text around them, so that a name may look like another.
_REORDERING = frozenset(map(chr, (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))))
_INVISIBLE = frozenset(("Cc", "Cs", "Zl", "Zp"))  # controls, surrogates, separators of lines and paragraphs


def visible(text: str, keep: str = "") -> str:
    r"""Replace control characters by their escapes, such as \x1b.

    File names may hold any bytes, and some sequences of them set the title of a terminal or colours, or erase lines.

    Args:
        text: the text. Bytes of a file name that are not in the file system's encoding, which Python represents by
            surrogates, become escapes of these bytes. keep: control characters that stay.
    """
    return "".join(_escaped(one) if one not in keep and _is_control(one) else one for one in text)


def _is_control(character: str) -> bool:
    return unicodedata.category(character) in _INVISIBLE or character in _REORDERING


def _escaped(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that could not be decoded (PEP 383)
        return f"\\x{code - 0xDC00:02x}"
    return {"\n": "\\n", "\r": "\\r", "\t": "\\t"}.get(character) or (
        f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
    )
