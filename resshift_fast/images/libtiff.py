"""What libtiff says of a damaged file, which it prints on stderr if Pillow decodes it.

Its error handler belongs to the whole process, so it is replaced once, by one that goes by the thread: lines of a
thread that listens are kept, and those of others go on to the handler before. Where the library is not found, as where
it is part of Pillow's own, nothing is changed.
"""

import ctypes
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import PIL
from PIL import Image

_MOST_LINES, _MOST_LENGTH = 100, 300  # lines, and characters of one
_HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_void_p)  # module, format, va_list
_listening = threading.local()


@contextmanager
def errors() -> Iterator[list[str]]:
    """Keep what libtiff reports in this thread within the block; the value is the list of its lines."""
    _install()
    before = getattr(_listening, "lines", None)
    lines: list[str] = []
    _listening.lines = lines
    try:
        yield lines
    finally:
        _listening.lines = before


_handlers: list[object] = []  # which have to live as long as libtiff may call them


@cache
def _install() -> None:
    # Only where a list of arguments is a pointer, or passed as one.
    if sys.platform not in ("linux", "darwin"):
        return
    with suppress(OSError, AttributeError):
        for path in _libraries():
            library = ctypes.CDLL(path, mode=os.RTLD_NOLOAD | os.RTLD_NOW)
            library.TIFFSetErrorHandler.restype = ctypes.c_void_p
            library.TIFFSetErrorHandler.argtypes = [ctypes.c_void_p]
            before: list[int | None] = []
            handler = _handler(before)
            _handlers.append(handler)
            before.append(library.TIFFSetErrorHandler(ctypes.cast(handler, ctypes.c_void_p)))


def _handler(before: list[int | None]) -> Any:
    """A handler that keeps the lines of a thread that listens, and passes the others on to the handler before."""
    vsnprintf = ctypes.CDLL(None).vsnprintf
    vsnprintf.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_void_p]

    def handle(module: bytes | None, text: int, arguments: int) -> None:
        lines: list[str] | None = getattr(_listening, "lines", None)
        if lines is None:
            if before and before[0]:
                _HANDLER(before[0])(module, text, arguments)
        elif len(lines) < _MOST_LINES:
            buffer = ctypes.create_string_buffer(_MOST_LENGTH)
            vsnprintf(buffer, len(buffer), text, arguments)
            lines.append(" ".join(buffer.value.decode(errors="replace").split()).rstrip("."))

    return _HANDLER(handle)


def _libraries() -> list[str]:
    """Shared libraries of libtiff that Pillow has loaded."""
    Image.preinit()
    if sys.platform == "darwin":
        return [str(path) for path in (Path(PIL.__file__).parent / ".dylibs").glob("libtiff*")]
    lines = Path("/proc/self/maps").read_text(errors="replace").splitlines()
    return sorted({line.split(maxsplit=5)[5] for line in lines if "/libtiff" in line})
