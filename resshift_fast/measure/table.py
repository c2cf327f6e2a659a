"""Tables for a terminal."""

from collections.abc import Sequence
from typing import Any


def table(columns: dict[str, str], rows: Sequence[dict[str, Any]]) -> str:
    """A table as text: numbers aligned right, text left."""
    cells = [[_shown(row.get(name), form) for name, form in columns.items()] for row in rows]
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    right = [bool(form) for form in columns.values()]

    def line(texts: Sequence[str]) -> str:
        aligned = (
            text.rjust(width) if to_right else text.ljust(width)
            for text, width, to_right in zip(texts, widths, right, strict=True)
        )
        return "  ".join(aligned).rstrip()

    return "\n".join([line(list(columns)), line(["─" * width for width in widths]), *map(line, cells)])


def _shown(value: Any, form: str) -> str:
    if value is None:
        return "–"
    return format(value, form) if form and not isinstance(value, str) else str(value)
