"""Hidden files that belong to a running process: temporary ones, and claims on outputs. Those of dead ones are removed.

Each is locked by its process, and the system releases the locks of a process that dies, however it dies. Where there
are no locks, as on some network drives and on Windows, nothing is claimed and nothing is removed.
"""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PREFIX = ".resshift-"
_SUFFIXES = (".part", ".claim")


@contextmanager
def claimed(output: Path) -> Iterator[bool]:
    """Claim an output, whatever its suffix; the value is False if another process or thread has claimed it.

    Args:
        output: the file that will be written; its folder must exist.
    """
    name = hashlib.sha256(os.fsencode(output.stem)).hexdigest()[:16]
    path = output.parent / f"{PREFIX}{name}.claim"
    descriptor = None
    try:
        descriptor = _open_locked(path)
    except BlockingIOError:
        yield False
        return
    except (ImportError, OSError):  # there are no locks here: both runs restore it, as atomic writes permit
        pass
    try:
        yield True
    finally:
        if descriptor is not None:
            with suppress(OSError):
                path.unlink()  # before it is unlocked, so that no other process has claimed it meanwhile
            os.close(descriptor)


def _open_locked(path: Path) -> int:
    """A descriptor of a file at this path that is locked; raises BlockingIOError if another has locked it."""
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    while True:
        descriptor = os.open(path, flags, 0o666)
        try:
            lock(descriptor)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # it was removed before it was locked


def lock(descriptor: int) -> None:
    """Lock an open file until it is closed.

    Raises:
        BlockingIOError: if another has locked it. ImportError, OSError: if there are no locks here.
    """
    import fcntl

    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def remove_dead(folder: Path) -> None:
    """Remove what processes that died have left in a folder; nothing is done where it can't be listed."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(PREFIX) and entry.name.endswith(_SUFFIXES):
                _remove_unlocked(Path(entry.path))


def _remove_unlocked(path: Path) -> None:
    flags = os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    with suppress(ImportError, OSError):
        descriptor = os.open(path, flags)
        try:
            lock(descriptor)
            path.unlink()
        finally:
            os.close(descriptor)
