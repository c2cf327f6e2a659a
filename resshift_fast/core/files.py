"""Writing files atomically, creating folders and recognizing files, with error messages that say what to do."""

import errno
import os
import secrets
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from resshift_fast.core import claims

_WRITABLE = stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH


class NotRegularError(OSError):
    """A folder, pipe or device where a file was expected; the message is one line and says what to do."""


class FileSet:
    """Files that are found again by any of their names.

    One file may have several: links, two mounts of one folder, and spellings on a file system that ignores case. So the
    device and the inode are compared besides the path, which is all that a missing file has. Two mounts of a network
    drive or of an overlay may differ in all of them; `find_mounts` finds these.

    Args:
        paths: the files; they need not exist.
    """

    def __init__(self, paths: Iterable[str | Path] = ()):
        self._keys: set[object] = set()
        self._folders: set[Path] = set()
        self._mounts: dict[Path, list[Path]] = {}
        for path in paths:
            self._keys |= self._keys_of(path)
            self._folders |= {Path(path).parent, Path(os.path.realpath(path)).parent}

    def __contains__(self, path: str | Path) -> bool:
        path = Path(path)
        folders = (path.parent, *self._mounts.get(path.parent, ()))
        return any(not self._keys.isdisjoint(self._keys_of(folder / path.name)) for folder in folders)

    def find_mounts(self, folder: Path) -> None:
        """Find out which folders of these files are this one: an empty file that is made in it shows up there.

        Args:
            folder: it exists, and files can be written there (see `make_folder`).
        """
        with suppress(OSError), _probe(folder) as name:
            self._mounts[folder] = [other for other in self._folders if os.path.lexists(other / name)]

    @staticmethod
    def _keys_of(path: str | Path) -> set[object]:
        keys: set[object] = {os.path.normcase(os.path.realpath(path))}
        with suppress(OSError, ValueError):
            status = os.stat(path)
            if status.st_ino:  # 0 on file systems without inodes
                keys.add((status.st_dev, status.st_ino))
        return keys


def expand_home(path: str | Path) -> Path:
    """A path with its leading ``~`` or ``~user`` expanded, unless a file or folder has this very name.

    Raises:
        ValueError: if there is no such user, or the home folder is unknown.
    """
    path = Path(path)
    if not path.parts or not path.parts[0].startswith("~") or os.path.lexists(path.parts[0]):
        return path
    try:
        return path.expanduser()
    except RuntimeError:
        start = path.parts[0]
        cause = f"there is no user {start[1:]}" if start != "~" else "the home folder is unknown"
        raise ValueError(f"{path}: {cause}; write ./{path} if the name begins with ~") from None


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a file for reading, unless it is a pipe or a device: to open or read one can wait for ever.

    Raises:
        OSError: if it cannot be opened. NotRegularError: if it is no regular file.
    """
    flags = os.O_RDONLY
    for name in ("O_CLOEXEC", "O_NONBLOCK", "O_NOCTTY", "O_BINARY"):
        flags |= getattr(os, name, 0)
    descriptor = os.open(path, flags)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise NotRegularError(
            f"{path} is not a regular file but a folder, pipe or device; copy its content to one first"
        )
    return os.fdopen(descriptor, "rb")


def check_target(path: str | Path) -> os.stat_result | None:
    """Check, before the work for a file begins, that `replacing` will be able to write it.

    Returns:
        The status of the file that will be replaced; None if there is none.

    Raises:
        IsADirectoryError: if the path is a folder. PermissionError: if the file is read-only, or its folder is.
        NotRegularError: if it is a pipe or a device. OSError: if the name is too long, the folder is missing, ...
    """
    path = Path(path)
    target = Path(os.path.realpath(path))
    status = None
    try:
        status = os.stat(target)
    except FileNotFoundError as error:
        if not target.parent.is_dir():
            raise write_error(error, path) from error
    except OSError as error:
        raise write_error(error, path) from error
    if status is not None:
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(f"{path} is a folder; give a file name, such as {path / 'photo.png'}")
        if not stat.S_ISREG(status.st_mode):
            raise NotRegularError(f"{path} is a pipe or a device, which is not replaced; choose another output")
        # The superuser may write to it, but whoever made it read-only wants to keep it.
        if not (status.st_mode & _WRITABLE and os.access(target, os.W_OK)):
            raise PermissionError(
                f"{path} is read-only and is not replaced; make it writable, or choose another output"
            )
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise write_error(PermissionError(errno.EACCES, os.strerror(errno.EACCES)), path)
    return status


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
        claims.remove_dead(folder)
        with _probe(folder):
            pass
    except (FileExistsError, NotADirectoryError) as error:
        raise NotADirectoryError(
            f"the output folder {folder} is, or lies under, a file; choose another name"
        ) from error
    except OSError as error:
        raise write_error(error, folder) from error
    return folder


@contextmanager
def _probe(folder: Path) -> Iterator[str]:
    """The name of an empty file that exists in a folder within the block."""
    path = folder / _temporary_name()
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    try:
        yield path.name
    finally:
        path.unlink(missing_ok=True)


@contextmanager
def replacing(path: str | Path) -> Iterator[BinaryIO]:
    """Context manager: a file that atomically replaces `path` when the block ends without an error.

    The bytes go to a hidden temporary file in the same folder, which is flushed to disk and renamed to `path`, so that
    readers find the old file or the new one, never a partial one. On any failure, Ctrl-C included, the temporary file
    is removed and an existing file is untouched; a killed process leaves the temporary file (``.resshift-….part``),
    which the next one that writes to the folder removes. Permissions follow the umask, or are those of the file that is
    replaced. A symbolic link is followed, not replaced, and a read-only file is left alone.

    Args:
        path: the file; its folder must exist.

    Raises:
        FileNotFoundError: if the folder does not exist.
        IsADirectoryError, NotRegularError: if the path is a folder, pipe or device.
        PermissionError: if the file is read-only, or the folder cannot be written.
        OSError: if there is no space left or writing fails otherwise; ``errno`` is kept.
    """
    path = Path(path)
    target = Path(os.path.realpath(path))
    replaced = check_target(path)
    _tidy(target.parent)
    temporary = target.parent / _temporary_name()
    try:
        with os.fdopen(_create_locked(temporary), "wb") as file:
            yield file
            file.flush()
            if replaced is not None:
                _keep_rights(temporary, replaced)
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise write_error(error, path) from error
        raise
    _sync_folder(target.parent)


def write_atomically(path: str | Path, data: bytes | memoryview) -> None:
    """Write the whole content of a file in one step, as `replacing` does, with its errors."""
    with replacing(path) as file:
        file.write(data)


def _temporary_name() -> str:
    return f"{claims.PREFIX}{secrets.token_hex(8)}.part"


def _create_locked(path: Path) -> int:
    """A descriptor of a new file that is locked, where there are locks, so that no other process removes it."""
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_BINARY", 0)
    for _ in range(9):
        descriptor = os.open(path, flags, 0o666)
        with suppress(ImportError, OSError):
            claims.lock(descriptor)
        if os.path.lexists(path):
            break
        os.close(descriptor)  # it was removed before it was locked
    else:
        descriptor = os.open(path, flags, 0o666)
    return descriptor


_tidied: set[Path] = set()


def _tidy(folder: Path) -> None:
    """Remove what dead processes have left, the first time that this one writes to a folder."""
    if folder not in _tidied:
        _tidied.add(folder)
        claims.remove_dead(folder)


def _keep_rights(path: Path, status: os.stat_result) -> None:
    """Give a new file the owner and the permissions of the one it replaces, as far as this user may."""
    if hasattr(os, "chown"):
        with suppress(OSError):
            os.chown(path, status.st_uid, status.st_gid)
    with suppress(OSError):
        os.chmod(path, stat.S_IMODE(status.st_mode) & 0o777)


def _sync_folder(folder: Path) -> None:
    # Makes the rename survive a power failure. Not every system can do it; the file's content is already on disk.
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_error(error: OSError, path: Path) -> OSError:
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
