"""Files beside a download: the part received so far, its state, and the record of the finished file's hash.

They lie in a folder that other programs write to as well, and a crash may leave anything in them. So they are checked
before they are believed, and never written through: a link, or a second name of another file, is removed first.
"""

import contextlib
import json
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from resshift_fast.core.cache import read_json, read_text
from resshift_fast.core.files import write_atomically

if TYPE_CHECKING:
    from resshift_fast.weights.published import WeightFile

_RECORD = re.compile(r"# size (\d{1,20}) mtime_ns (-?\d{1,20})\n([0-9a-f]{64}) ")
# Of sha256sum, which begins a line with \ if it escapes the name; a comment before it may have the size in bytes.
_PINNED = re.compile(r"(?:# size (\d{1,20})\n)?\\?([0-9a-fA-F]{64})\b")


@dataclass(frozen=True)
class Record:
    """SHA-256 of a complete file, and its size and modification time, by which a change is noticed.

    One that the user wrote, in the format of sha256sum, has no time, and a size only if `pins.pin` wrote it.
    """

    size: int | None
    mtime_ns: int | None
    sha256: str


@dataclass(frozen=True)
class Partial:
    """State of an unfinished download: bytes received, the server's validator (ETag or date), total length."""

    received: int = 0
    validator: str | None = None
    total: int | None = None


def beside(path: Path, ending: str) -> Path:
    """The path with something appended to its name."""
    return path.with_name(path.name + ending)


def read_record(target: Path) -> Record | None:
    """The record of a file; None if there is none, or it is damaged."""
    try:
        text = read_text(beside(target, ".sha256"))
    except (OSError, ValueError):
        return None
    if found := _RECORD.match(text):
        return Record(int(found[1]), int(found[2]), found[3])
    pinned = _PINNED.match(text)
    if pinned is None:
        return None
    return Record(int(pinned[1]) if pinned[1] else None, None, pinned[2].lower())


def write_record(target: Path, record: Record) -> None:
    """Write a record, if the folder can be written."""
    path = beside(target, ".sha256")
    # sha256sum skips lines that begin with a hash sign.
    text = f"# size {record.size} mtime_ns {record.mtime_ns}\n{record.sha256}  {target.name}\n"
    with contextlib.suppress(OSError):  # in a read-only cache the file is hashed at each start instead
        remove_foreign(path)
        write_atomically(path, text.encode())


def read_partial(part: Path, file: "WeightFile") -> Partial:
    """The state of an earlier try for the same address; empty if it can't be resumed safely."""
    try:
        state, status = read_json(_state_file(part)), os.lstat(part)
    except (OSError, ValueError):
        return Partial()
    if not isinstance(state, dict) or state.get("url") != file.url or not _is_own(status):
        return Partial()
    validator, total = state.get("validator"), state.get("total")
    if not isinstance(validator, str) or not _is_header(validator) or type(total) is not int:
        return Partial()
    return Partial(status.st_size, validator, total) if status.st_size <= total else Partial()


def restart(part: Path, file: "WeightFile", partial: Partial) -> None:
    """Empty the part before its state names the new version, so that a crash cannot mix two versions."""
    discard(part)
    state = {"url": file.url, "validator": partial.validator, "total": partial.total}
    remove_foreign(_state_file(part))
    write_atomically(_state_file(part), json.dumps(state).encode())
    os.close(os.open(part, os.O_WRONLY | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666))


def discard(part: Path) -> None:
    """Empty the part, if there is one, and forget its state."""
    remove_state(part)
    remove_foreign(part)
    with contextlib.suppress(FileNotFoundError):
        os.truncate(part, 0)


def remove_state(part: Path) -> None:
    """Forget the state of a part."""
    _state_file(part).unlink(missing_ok=True)


def remove_foreign(path: Path) -> None:
    """Remove what would be written through: a link, another name of some file, a pipe. The file itself is unchanged."""
    with contextlib.suppress(FileNotFoundError):
        if not _is_own(os.lstat(path)):
            path.unlink()


def size_of(path: Path) -> int:
    """Bytes in a file; 0 if there is none."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _is_own(status: os.stat_result) -> bool:
    return stat.S_ISREG(status.st_mode) and status.st_nlink <= 1


def _is_header(text: str) -> bool:
    """Whether a text can be sent in the header of a request."""
    return text.isascii() and text.isprintable()


def _state_file(part: Path) -> Path:
    return beside(part, ".json")
