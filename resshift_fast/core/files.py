"""Writing files atomically, creating folders and recognizing files, with error messages that say what to do."""

import errno
import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


class FileSet:
    """Files that are found again by any of their names.

    One file may have several: links, two mounts of one folder, and spellings on a file system that ignores case. So the
    device and the inode are compared besides the path, which is all that a missing file has.

    Args:
        paths: the files; they need not exist.
    """

    def __init__(self, paths: Iterable[str | Path] = ()):
        self._keys: set[object] = set()
        for path in paths:
            self._keys |= self._keys_of(path)

    def __contains__(self, path: str | Path) -> bool:
        return not self._keys.isdisjoint(self._keys_of(path))

    @staticmethod
    def _keys_of(path: str | Path) -> set[object]:
        keys: set[object] = {os.path.normcase(os.path.realpath(path))}
        with suppress(OSError, ValueError):
            status = os.stat(path)
            if status.st_ino:  # 0 on file systems without inodes
                keys.add((status.st_dev, status.st_ino))
        return keys


def make_folder(folder: str | Path) -> Path:
    """Create an output folder (and its parents) and check that files can be written there.

    Call it before the work starts, so that an unwritable folder is reported at once and not after minutes.

    Returns:
        The folder.

    Raises:
        NotADirectoryError: if it, or a folder above it, is a file.
        PermissionError, OSError: if it cannot be created or written, with the reason.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / _temporary_name()
        os.close(os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        probe.unlink()
    except (FileExistsError, NotADirectoryError) as error:
        raise NotADirectoryError(
            f"the output folder {folder} is, or lies under, a file; choose another name"
        ) from error
    except OSError as error:
        raise _write_error(error, folder) from error
    return folder


@contextmanager
def replacing(path: str | Path) -> Iterator[BinaryIO]:
    """Context manager: a file that atomically replaces `path` when the block ends without an error.

    The bytes go to a hidden temporary file in the same folder, which is flushed to disk and renamed to `path`, so that
    readers find the old file or the new one, never a partial one. On any failure, Ctrl-C included, the temporary file
    is removed and an existing file is untouched; a killed process may leave the temporary file
    (``.resshift-….part``). Permissions follow the umask. A symbolic link is followed, not replaced.

    Args:
        path: the file; its folder must exist.

    Raises:
        FileNotFoundError: if the folder does not exist.
        IsADirectoryError: if the path is a folder.
        PermissionError: if the folder cannot be written.
        OSError: if there is no space left or writing fails otherwise; ``errno`` is kept.
    """
    path = Path(path)
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise IsADirectoryError(f"{path} is a folder; give a file name, such as {path / 'photo.png'}")
    temporary = target.parent / _temporary_name()
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_BINARY", 0)
    try:
        with os.fdopen(os.open(temporary, flags, 0o666), "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise _write_error(error, path) from error
        raise
    _sync_folder(target.parent)


def write_atomically(path: str | Path, data: bytes | memoryview) -> None:
    """Write the whole content of a file in one step, as `replacing` does, with its errors."""
    with replacing(path) as file:
        file.write(data)


def _temporary_name() -> str:
    return f".resshift-{secrets.token_hex(8)}.part"


def _sync_folder(folder: Path) -> None:
    # Makes the rename survive a power failure. Not every system can do it; the file's content is already on disk.
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _write_error(error: OSError, path: Path) -> OSError:
    """An error of the same kind whose message says what to do."""
    number = error.errno
    if number in (errno.ENOSPC, errno.EDQUOT):
        new = OSError(f"no space left to write {path}; free some space and run again (what was written before is kept)")
    elif number in (errno.EACCES, errno.EPERM):
        new = PermissionError(
            f"{path} cannot be written: permission denied; check its folder's rights or choose another output"
        )
    elif number == errno.EROFS:
        new = OSError(f"{path} cannot be written: the file system is read-only; choose another output folder")
    elif number == errno.ENAMETOOLONG:
        new = OSError(f"{path} cannot be written: the name is too long; choose a shorter one")
    elif number in (errno.ENOENT, errno.ENOTDIR):
        new = FileNotFoundError(f"{path} cannot be written: the folder {path.parent} does not exist; create it first")
    else:
        new = OSError(f"{path} cannot be written: {error.strerror or error}")
    new.errno = number
    return new
