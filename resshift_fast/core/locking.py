"""Locks on files that several processes and threads write."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def locked(path: Path | None) -> Iterator[IO[str] | None]:
    """Open a file at its start, creating it if needed, locked against other processes and threads.

    The value is None if that is impossible: without a path, permission to write, or locks on this platform or drive.
    """
    with ExitStack() as stack:
        try:
            import fcntl

            file = stack.enter_context(open(path, "a+", encoding="utf-8")) if path else None
            if file is not None:
                fcntl.flock(file, fcntl.LOCK_EX)  # some network drives have no locks
                file.seek(0)
        except (ImportError, OSError):
            file = None
        yield file
