"""Files that several processes and threads write."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def locked(path: Path | None) -> Iterator[IO[str] | None]:
    """The file, made if need be, open at its start and locked against other processes and threads.

    None where that is impossible: there is no path, no right to write, or no locks on this platform.
    """
    try:
        import fcntl

        file = open(path, "a+", encoding="utf-8") if path else None  # noqa: SIM115
    except (ImportError, OSError):
        file = None
    if file is None:
        yield None
        return
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        yield file
