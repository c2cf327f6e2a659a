"""Locks on cache files that several processes and threads use."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from resshift_fast.core.cache import CacheFile

PATIENCE = 60.0  # seconds that a process waits for the locks of others, in all
INTERVAL = 0.05  # seconds between two attempts

_left = PATIENCE


@contextmanager
def locked(path: Path | None) -> Iterator[CacheFile | None]:
    """Open a cache file, creating it if needed, locked against other processes and threads.

    The value is None if that is impossible: without a path, permission to write or locks on this platform or drive, if
    something else than a file has its name, or if another process keeps the lock for longer than PATIENCE.
    """
    with ExitStack() as stack:
        file = None
        # Some network drives have no locks, and not every platform has fcntl.
        with suppress(ImportError, OSError):
            if path is not None:
                opened = stack.enter_context(CacheFile(path))
                _lock(opened.fileno())
                file = opened
        yield file


def _lock(descriptor: int) -> None:
    """Lock a file; raises TimeoutError, an OSError, if another process does not release it.

    A process that is stopped or hangs keeps its locks for ever, and nothing in a cache is worth as long a wait.
    """
    import fcntl

    global _left
    start = time.monotonic()
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waited = time.monotonic() - start
            if waited >= _left:
                _left = 0.0
                raise TimeoutError(f"another process has kept its lock for {waited:.0f} s") from None
            time.sleep(INTERVAL)
        else:
            _left = max(0.0, _left - (time.monotonic() - start))
            return
