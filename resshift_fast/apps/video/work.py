"""What is restored of a video, on disk: a folder beside the output, from which an interrupted run goes on.

It holds segments, which are encoded and whole, and the frames of the segment that is being restored, as they will be
encoded. So a process that is killed loses the frame that it is restoring, and disk and memory hold few frames at once.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from resshift_fast.core.claims import PREFIX
from resshift_fast.core.files import make_folder, write_atomically, write_error

_SETTINGS, _END = "settings.json", "end.json"
_SEGMENT, _FRAMES = ".nut", ".raw"
_HEAD = struct.Struct("<qqI")  # time, duration, CRC-32 of both and the planes
_MOST_NAME = 255  # bytes, on most file systems
_STORE_BYTES = 1 << 29  # that frames of one segment may take


@dataclass(frozen=True)
class Stored:
    """A restored frame: its planes, when it is shown and for how long."""

    planes: np.ndarray
    time: int
    duration: int


def folder_for(output: Path) -> Path:
    """The folder of an output's work; hidden, since it is nothing to look at."""
    name = f"{PREFIX}{output.name}.video"
    if len(os.fsencode(name)) > _MOST_NAME:
        name = f"{PREFIX}{hashlib.sha256(os.fsencode(output.name)).hexdigest()[:16]}.video"
    return output.parent / name


def frames_per_segment(frame_bytes: int, at_once: int) -> int:
    """Frames of a segment: about two seconds, fewer where they are large, and a multiple of those restored at once."""
    return max(1, min(48, _STORE_BYTES // frame_bytes) // at_once) * at_once


class Work:
    """The work for one output.

    Args:
        folder: see `folder_for`. settings: all that its content depends on; a folder with others is emptied.
        shape, dtype: of a frame's planes. per_segment: frames of a segment.

    Attributes:
        segments: those that are whole, in order.
        stored: number of frames in the store. total: of the video, once its end is reached; None before.
        notes: of the end. changed: names of the settings for which an earlier run's work was removed.
    """

    def __init__(
        self, folder: Path, settings: Mapping[str, str], shape: tuple[int, int], dtype: np.dtype, per_segment: int
    ):
        self.folder, self._shape, self._dtype, self.per_segment = folder, shape, dtype, per_segment
        self._settings = dict(settings)
        self.segments: list[Path] = []
        self._last = 0  # duration of the last frame of the store
        self.notes = tuple[str, ...]()
        self.total: int | None = None
        self._size = _HEAD.size + int(np.prod(shape)) * dtype.itemsize
        before = self._earlier_settings()
        self.changed = sorted(name for name in before if before[name] != self._settings.get(name))
        if before != self._settings:
            self.remove()
            make_folder(folder)
            write_atomically(folder / _SETTINGS, json.dumps(self._settings).encode())
        self._find()
        self._file = self._open_store()

    def _earlier_settings(self) -> dict[str, Any]:
        with suppress(OSError, ValueError, RecursionError):
            found = json.loads((self.folder / _SETTINGS).read_bytes())
            return found if isinstance(found, dict) else {}
        return {}

    def _find(self) -> None:
        while (path := self.next_segment()).is_file():
            self.segments.append(path)
            path.with_suffix(_FRAMES).unlink(missing_ok=True)  # of a process that was killed when it had encoded them
        with suppress(OSError, ValueError, TypeError, KeyError):
            end = json.loads((self.folder / _END).read_bytes())
            self.total, self.notes = int(end["total"]), tuple(map(str, end["notes"]))

    def _open_store(self) -> Any:
        """The file of the next segment's frames, cut off after the last one that is whole."""
        self.stored, path = 0, self._store
        try:
            file = open(path, "r+b" if path.exists() else "x+b")  # noqa: SIM115  it stays open
        except OSError as error:
            raise write_error(error, path) from error
        while self.stored < self.per_segment and (frame := self._read(file)) is not None:
            self.stored, self._last = self.stored + 1, frame.duration
        self._cut(file, self.stored)
        return file

    @property
    def _store(self) -> Path:
        return self.next_segment().with_suffix(_FRAMES)

    def _cut(self, file: Any, frames: int) -> None:
        file.truncate(frames * self._size)
        file.seek(frames * self._size)

    @property
    def done(self) -> int:
        """Number of frames that need not be restored again."""
        return len(self.segments) * self.per_segment + self.stored

    def forget(self, frames: int) -> None:
        """Drop the last frames of the store."""
        self.stored -= frames
        self._cut(self._file, self.stored)

    def add(self, frame: Stored) -> None:
        """Store a frame.

        Raises:
            OSError: if there is no space left.
        """
        data = np.ascontiguousarray(frame.planes).data.cast("B")
        try:
            self._file.write(_HEAD.pack(frame.time, frame.duration, _checksum(frame.time, frame.duration, data)))
            self._file.write(data)
            self._file.flush()
        except OSError as error:
            raise write_error(error, self._store) from error
        self.stored, self._last = self.stored + 1, frame.duration

    @property
    def last_duration(self) -> int:
        """Of the last frame of the store."""
        return self._last

    def frames(self) -> Iterator[Stored]:
        """The frames of the store."""
        self._file.seek(0)
        for _ in range(self.stored):
            frame = self._read(self._file)
            if frame is None:
                raise OSError(f"{self._store} was changed while it was used; run again")
            yield frame

    def _read(self, file: Any) -> Stored | None:
        head = file.read(_HEAD.size)
        data = file.read(self._size - _HEAD.size)
        if len(head) + len(data) < self._size:
            return None
        time, duration, checksum = _HEAD.unpack(head)
        if _checksum(time, duration, data) != checksum:
            return None
        return Stored(np.frombuffer(data, self._dtype).reshape(self._shape), time, duration)

    def next_segment(self) -> Path:
        """Where the frames of the store are to be encoded to; then call `finish_segment`."""
        return self.folder / f"{len(self.segments):06d}{_SEGMENT}"

    def finish_segment(self) -> None:
        """Begin the next store, since the frames of this one are in the segment, which is whole."""
        self.close()
        self._store.unlink(missing_ok=True)
        self.segments.append(self.next_segment())
        self._file = self._open_store()

    def end(self, total: int, notes: tuple[str, ...]) -> None:
        """Note that all frames of the video are in segments, how many they are, and what there is to say about it."""
        self.total, self.notes = total, notes
        write_atomically(self.folder / _END, json.dumps({"total": total, "notes": notes}).encode())

    def close(self) -> None:
        """Close the store; the work stays."""
        with suppress(OSError):  # of what could not be written, which has been reported
            self._file.close()

    def remove(self) -> None:
        """Remove the folder and all that is in it."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _checksum(time: int, duration: int, data: Any) -> int:
    return zlib.crc32(data, zlib.crc32(struct.pack("<qq", time, duration)))
