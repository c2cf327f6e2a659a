"""Zip archives of torch.save: whether they are whole, and those that another program has packed again."""

import io
import tempfile
import zipfile
from pathlib import Path
from typing import IO

_MOST_INFLATED = 10  # times the size of the archive; weights can hardly be compressed
_SMALL = 1 << 27  # bytes, that may be inflated from any archive


class ArchiveError(ValueError):
    """An archive that is damaged, or inflates to much more than it holds; the message is the reason alone."""


def entries(path: Path) -> list[zipfile.ZipInfo]:
    """The files and folders in an archive; only its table of contents is read.

    Raises:
        ArchiveError: if it has no table of contents, as if it was truncated, or one that promises too much.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            found = archive.infolist()
            size = path.stat().st_size
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise ArchiveError("no table of contents") from error
    inflated = sum(entry.file_size for entry in found)
    if inflated > max(_SMALL, _MOST_INFLATED * size):
        raise ArchiveError(f"its {size / 1e6:.0f} MB inflate to {inflated / 1e6:.0f} MB")
    return found


def check_sums(path: Path) -> None:
    """Read a whole archive and compare each file in it with its checksum.

    Raises:
        ArchiveError: if one differs, or as `entries`.
    """
    entries(path)
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except Exception as error:  # the decompressors raise whatever damaged data lead them to
        raise ArchiveError(str(error) or type(error).__name__) from error
    if damaged is not None:
        raise ArchiveError(f"the checksum of {damaged} differs")


def is_repacked(found: list[zipfile.ZipInfo]) -> bool:
    """Whether an archive was packed by another program than torch.save, which compresses nothing and has one folder."""
    pickled = [entry.filename for entry in found if entry.filename.rsplit("/", 1)[-1] == "data.pkl"]
    return [name.count("/") for name in pickled] != [1] or any(
        entry.compress_type != zipfile.ZIP_STORED or entry.is_dir() for entry in found
    )


def as_saved(path: Path) -> IO[bytes]:
    """An archive as torch.save writes it, from one that was packed again; a large one is a temporary file.

    Raises:
        ArchiveError: if a file in it is damaged.
    """
    try:
        inflated = sum(entry.file_size for entry in entries(path))
        packed: IO[bytes] = io.BytesIO() if inflated <= _SMALL else tempfile.TemporaryFile()  # noqa: SIM115  returned
        with zipfile.ZipFile(path) as archive, zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as new:
            names = {entry.filename for entry in entries(path) if not entry.is_dir()}
            (pickled,) = (name for name in names if name.rsplit("/", 1)[-1] == "data.pkl")
            folder = pickled[: -len("data.pkl")]
            for name in sorted(name for name in names if name.startswith(folder)):
                new.writestr(f"archive/{name[len(folder) :]}", archive.read(name))
    except ArchiveError:
        raise
    except Exception as error:  # as above; also if there are two files data.pkl
        raise ArchiveError(str(error) or type(error).__name__) from error
    packed.seek(0)
    return packed
