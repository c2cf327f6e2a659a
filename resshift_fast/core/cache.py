"""The cache folder: downloaded weights, autotuned choices and verification verdicts.

Its small files may be anything by the time they are read: another program, a full disk or a crash may have left it. So
whoever reads one checks all of it, and whoever cannot use one goes on without.
"""

import os
import stat
import sys
from pathlib import Path

CACHE_VARIABLE = "RESSHIFT_FAST_CACHE"
MAX_BYTES = 1 << 24  # of a file of text; more was not written by this package


def cache_dir() -> Path:
    """The cache folder, which may not exist yet.

    It is RESSHIFT_FAST_CACHE if that is set, else `resshift_fast` in the platform's cache folder: %LOCALAPPDATA% on
    Windows, ~/Library/Caches on macOS, $XDG_CACHE_HOME or ~/.cache elsewhere.

    Raises:
        OSError: the home folder is unknown.
    """
    try:
        if chosen := os.environ.get(CACHE_VARIABLE):
            return Path(chosen).expanduser().absolute()
        if sys.platform == "win32":
            base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
        elif sys.platform == "darwin":
            base = Path.home() / "Library" / "Caches"
        else:
            configured = os.environ.get("XDG_CACHE_HOME", "")
            # The XDG specification says that relative paths must be ignored.
            base = Path(configured) if os.path.isabs(configured) else Path.home() / ".cache"
    except RuntimeError as error:
        raise OSError(f"the home folder is unknown; name a cache folder with {CACHE_VARIABLE}=FOLDER") from error
    return base / "resshift_fast"


class CacheFile:
    """A small text file, open for reading and replacing; a context manager that closes it.

    Pipes and devices are refused, because opening or reading them can wait for ever.

    Args:
        path: the file. create: open it for writing too, and create it if it is missing.

    Raises:
        OSError: if it cannot be opened, or is no regular file.
    """

    def __init__(self, path: Path, *, create: bool = True):
        flags = os.O_RDWR | os.O_CREAT if create else os.O_RDONLY
        for name in ("O_CLOEXEC", "O_NONBLOCK", "O_NOCTTY", "O_BINARY"):
            flags |= getattr(os, name, 0)
        self._descriptor = os.open(path, flags, 0o666)
        if not stat.S_ISREG(os.fstat(self._descriptor).st_mode):
            os.close(self._descriptor)
            raise OSError(f"{path} is no regular file")

    def __enter__(self) -> "CacheFile":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def fileno(self) -> int:
        """The file descriptor."""
        return self._descriptor

    def read(self) -> str:
        """The whole text; bytes that are not UTF-8 become U+FFFD.

        Raises:
            OSError: if it cannot be read, or is longer than `MAX_BYTES`.
        """
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        parts: list[bytes] = []
        while part := os.read(self._descriptor, 1 << 20):
            parts.append(part)
            if sum(map(len, parts)) > MAX_BYTES:
                raise OSError(f"the file is longer than {MAX_BYTES} bytes")
        return b"".join(parts).decode("utf-8", errors="replace")

    def replace(self, text: str) -> None:
        """Replace the whole text and flush it to disk, so that it survives a crash.

        Raises:
            OSError: if it cannot be written; the file is empty or incomplete then.
        """
        os.ftruncate(self._descriptor, 0)
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        data = text.encode()
        while data:
            data = data[os.write(self._descriptor, data) :]
        os.fsync(self._descriptor)


def read_text(path: Path) -> str:
    """The whole text of a cache file.

    Raises:
        OSError: if it is missing, cannot be read or is no regular file of at most `MAX_BYTES`.
    """
    with CacheFile(path, create=False) as file:
        return file.read()


def read_json(path: Path) -> object:
    """The content of a cache file in JSON.

    Raises:
        OSError: as `read_text`.
        ValueError: if it is no JSON, or nested too deep.
    """
    import json

    try:
        return json.loads(read_text(path))
    except RecursionError:
        raise ValueError("its brackets are nested too deep") from None
