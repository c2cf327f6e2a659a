"""Hidden files that belong to a running process: temporary ones, claims on outputs, and what a run will write.

Each is locked by its process, and the system releases the locks of a process that dies, however it dies: its files are
removed by the next one. Where there are no locks, as on some network drives and on Windows, nothing is claimed and
nothing is removed.
"""

import hashlib
import json
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

PREFIX = ".resshift-"
_RUN = ".run"
_SUFFIXES = (".part", ".claim", _RUN)
_MOST_BYTES = 1 << 24  # of a run's file; a hundred thousand outputs need less


@contextmanager
def claimed(output: Path) -> Iterator[bool]:
    """Claim an output, whatever its suffix; the value is False if another process or thread has claimed it.

    Args:
        output: the file that will be written; its folder must exist.
    """
    path = output.parent / f"{PREFIX}{_key(output)}.claim"
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


def _key(output: Path) -> str:
    return hashlib.sha256(os.fsencode(output.stem)).hexdigest()[:16]


@contextmanager
def announced(folder: Path, settings: Mapping[str, str], outputs: Iterable[Path]) -> Iterator[list[str]]:
    """Let other runs know what this one writes; the value says how running ones with the same outputs differ.

    Args:
        folder: that of the outputs; it exists.
        settings: all that the results depend on, by the name that the user knows.
        outputs: the files that will be written. Their suffixes do not count, since they may change.
    """
    keys = {_key(output) for output in outputs}
    path, descriptor = folder / f"{PREFIX}{secrets.token_hex(8)}{_RUN}", None
    content = json.dumps({"settings": dict(settings), "outputs": sorted(keys)}).encode()
    try:
        descriptor = _open_locked(path)
        os.write(descriptor, content)
    except (ImportError, OSError):  # no locks, or no space: as for claims
        pass
    try:
        yield [] if descriptor is None else sorted(_differences(folder, path, settings, keys))
    finally:
        if descriptor is not None:
            with suppress(OSError):
                path.unlink()
            os.close(descriptor)


def _differences(folder: Path, own: Path, settings: Mapping[str, str], keys: set[str]) -> set[str]:
    """The settings, as "seed 1 instead of 2", by which living runs with some of these outputs differ."""
    found: set[str] = set()
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if not (entry.name.startswith(PREFIX) and entry.name.endswith(_RUN)) or entry.name == own.name:
                continue
            run = _read_living(Path(entry.path))
            theirs, outputs = run.get("settings"), run.get("outputs")
            if isinstance(theirs, dict) and isinstance(outputs, list) and not keys.isdisjoint(map(str, outputs)):
                names = settings.keys() | theirs.keys()
                differing = {name for name in names if settings.get(name) != theirs.get(name)}
                found |= {f"{name} {theirs.get(name)} instead of {settings.get(name)}" for name in differing}
    return found


def _read_living(path: Path) -> dict[str, Any]:
    """The content of a run's file that its process holds; empty if that is dead."""
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    with suppress(ImportError, OSError, ValueError, RecursionError):
        descriptor = os.open(path, flags)
        try:
            lock(descriptor)
        except BlockingIOError:
            content = json.loads(os.read(descriptor, _MOST_BYTES))
            return content if isinstance(content, dict) else {}
        finally:
            os.close(descriptor)
    return {}


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
