"""Forms with files (multipart/form-data, RFC 7578), parsed in memory: Starlette's parser writes files to the disk."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

_MOST_PARTS = 32


class FormError(ValueError):
    """A form that is damaged, or has too many parts; one line says what it is."""


@dataclass
class Part:
    """One part of a form.

    Attributes:
        name: of the field. is_file: whether it has the name of a file, which is not kept. data: its content.
    """

    name: str = ""
    is_file: bool = False
    data: bytearray = field(default_factory=bytearray)


def parts_of(content_type: str, body: bytes) -> list[Part]:
    """The parts of a form, in their order.

    Args:
        content_type: with the boundary. body: whole, of a size that was checked.

    Raises:
        FormError: if it is no form, or is not whole.
    """
    boundary = parse_options_header(content_type)[1].get(b"boundary")
    if not boundary:
        raise FormError("its Content-Type has no boundary")
    collector = _Collector()
    try:
        parser = MultipartParser(boundary, collector.callbacks())
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise FormError(" ".join(str(error).split())) from None
    if not collector.is_whole:
        raise FormError("its end is missing")
    return collector.parts


class _Collector:
    """Collects what the parser finds."""

    def __init__(self) -> None:
        self.parts: list[Part] = []
        self.is_whole = False
        self._name, self._value = bytearray(), bytearray()

    def callbacks(self) -> Any:
        return {
            "on_part_begin": self._begin,
            "on_header_field": lambda data, start, end: self._name.extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
            "on_header_end": self._end_header,
            "on_part_data": lambda data, start, end: self.parts[-1].data.extend(memoryview(data)[start:end]),
            "on_end": self._end,
        }

    def _begin(self) -> None:
        if len(self.parts) == _MOST_PARTS:
            raise FormError(f"it has more than {_MOST_PARTS} parts")
        self.parts.append(Part())

    def _end_header(self) -> None:
        if self._name.lower() == b"content-disposition":
            options = parse_options_header(bytes(self._value))[1]
            self.parts[-1].name = options.get(b"name", b"").decode("utf-8", "replace")
            self.parts[-1].is_file = b"filename" in options
        self._name.clear()
        self._value.clear()

    def _end(self) -> None:
        self.is_whole = True
