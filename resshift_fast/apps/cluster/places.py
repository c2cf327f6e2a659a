"""Files and folders wherever fsspec reaches: on this machine, on shared drives, in S3 and GCS, and on the web."""

from __future__ import annotations

import functools
import os
import re
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from resshift_fast.apps.extras import MissingExtraError
from resshift_fast.core.claims import PREFIX
from resshift_fast.core.files import expand_home
from resshift_fast.images.files import natural_key

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

_URI = re.compile(r"[A-Za-z][A-Za-z0-9_+.-]*(://|::)")
_LOCAL = re.compile(r"(file|local)://")
# Where an object is there as a whole when its upload is complete, and not before. Elsewhere it is uploaded to a
# temporary name, and moved.
_WHOLE_AT_ONCE = {"abfs", "abfss", "adl", "az", "gcs", "gs", "oci", "s3", "s3a"}
_READ_ONLY = {"data", "git", "github", "http", "https", "reference", "tar", "zip"}
# Packages by which fsspec reaches a store.
_PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "http": "aiohttp", "https": "aiohttp"}
_PACKAGES |= dict.fromkeys(("abfs", "abfss", "az", "adl"), "adlfs")


@dataclass(frozen=True)
class Place:
    """A file or folder.

    Attributes:
        root: the URI by which its file system is found; empty for a path on this machine, or on a drive that all share.
        path: in that file system.
    """

    root: str
    path: str

    @property
    def is_local(self) -> bool:
        """Whether it has a path that every program can open."""
        return not self.root

    @property
    def name(self) -> str:
        """The last part of its path, without what a web address has besides."""
        path = unquote(urlsplit(self.path).path) if self._protocols & {"http", "https"} else self.path
        return PurePosixPath(path).name

    @property
    def _protocols(self) -> set[str]:
        protocol = filesystem(self.root).protocol
        return {protocol} if isinstance(protocol, str) else set(protocol)

    @property
    def pure(self) -> Path:
        """A path by which outputs are named; for another store it need not lead anywhere."""
        return Path(self.path) if self.is_local else Path(f"{self.root.partition(':')[0]}:") / self.path

    def __truediv__(self, below: str) -> Place:
        return Place(self.root, f"{self.path.rstrip('/')}/{below}") if below not in ("", ".") else self

    def __str__(self) -> str:
        return self.path if self.is_local else filesystem(self.root).unstrip_protocol(self.path)

    def holds(self, other: Place) -> bool:
        """Whether a file or folder is this one, or lies below it."""
        if self.is_local != other.is_local or filesystem(self.root) != filesystem(other.root):
            return False
        own, theirs = self.path, other.path
        if self.is_local:
            own, theirs = os.path.realpath(own), os.path.realpath(theirs)
        return f"{theirs.rstrip('/')}/".startswith(f"{own.rstrip('/')}/")


@dataclass(frozen=True)
class Entry:
    """What a folder has: its name, whether it is a folder, or else a file, and its bytes, if they are known."""

    name: str
    is_folder: bool
    is_file: bool
    size: int | None


def is_uri(text: str) -> bool:
    """Whether a text names something by a protocol, as s3://bucket/photos does, and not by a path."""
    return _URI.match(text) is not None


def place_of(text: str) -> Place:
    """The place that a path or URI names; it need not exist.

    Raises:
        MissingExtraError: if a package lacks that reaches it. ValueError: if there is no such protocol.
    """
    if _LOCAL.match(text):
        return Place("", os.path.abspath(_LOCAL.sub("", text)))
    if not is_uri(text):
        return Place("", os.path.abspath(expand_home(text)))
    import fsspec

    filesystem(text)
    return Place(text, str(fsspec.core.url_to_fs(text)[1]))


@functools.lru_cache(64)
def filesystem(root: str) -> AbstractFileSystem:
    """The file system of a place.

    Raises:
        MissingExtraError: if a package lacks that reaches it. ValueError: if there is no such protocol.
    """
    import fsspec

    protocol = re.split("://|::", root, maxsplit=1)[0]
    try:
        return fsspec.core.url_to_fs(root or "file:///")[0]
    except ImportError as error:
        package = _PACKAGES.get(protocol)
        cure = f"another package, {package}: pip install {package}" if package else f"another package: {error}"
        raise MissingExtraError(f"{root}: {protocol} needs {cure}, on all machines") from None
    except ValueError as error:
        if protocol in fsspec.available_protocols():
            raise
        reason = f"there is no protocol {protocol}; use such as s3://, gs://, https:// or a path"
        raise ValueError(f"{root}: {reason}") from error


def kind(place: Place) -> str:
    """What there is at a place: "file", "directory", "other", or "" for nothing.

    Raises:
        OSError: if that can't be found out.
    """
    if "http" in place._protocols and not place.path.endswith("/"):
        return "file"  # a page that lists files is asked for with a slash
    try:
        return str(filesystem(place.root).info(place.path)["type"])
    except FileNotFoundError:
        return ""


def listed(folder: Place) -> list[Entry]:
    """What a folder has, in natural order.

    Raises:
        OSError: if it can't be listed.
    """
    system = filesystem(folder.root)
    found = {}
    for entry in system.ls(folder.path, detail=True):
        path = str(entry["name"]).rstrip("/")
        name = Place(folder.root, path).name if "http" in folder._protocols else path.rpartition("/")[2]
        if name and path != folder.path.rstrip("/"):  # stores may have an empty object for a folder
            kinds = entry.get("type")
            found[name] = Entry(name, kinds == "directory", kinds == "file", entry.get("size"))
    return [found[name] for name in sorted(found, key=natural_key)]


def fetch(source: Place, target: Path) -> None:
    """Copy a file to one on this machine.

    Raises:
        OSError: if it can't be read; the message names it.
    """
    with _named(source):
        filesystem(source.root).get_file(source.path, str(target))


def store(file: Path, target: Place) -> None:
    """Copy a file of this machine to a store, where it is there as a whole or not at all.

    Raises:
        OSError: if it can't be written; the message names it.
    """
    system = filesystem(target.root)
    with _named(target):
        if target._protocols & _WHOLE_AT_ONCE:
            system.put_file(str(file), target.path)
            return
        folder, _, _ = target.path.rpartition("/")
        temporary = f"{folder}/{PREFIX}{secrets.token_hex(8)}.part"
        try:
            system.makedirs(folder, exist_ok=True)
            system.put_file(str(file), temporary)
            system.mv(temporary, target.path)
        except BaseException:
            with suppress(Exception):
                system.rm_file(temporary)
            raise


def check_writable(folder: Place) -> None:
    """Raise, before anything is restored, what would fail with every result.

    Raises:
        ValueError: if nothing can be written there by its kind. OSError: if it can't be written; the message names it.
    """
    if folder._protocols & _READ_ONLY:
        raise ValueError(f"-o {folder} can be read, and not written; name a folder, or such as s3://bucket/restored")
    probe = folder / f"{PREFIX}{secrets.token_hex(8)}.part"
    with tempfile.NamedTemporaryFile() as empty:
        store(Path(empty.name), probe)
    with suppress(Exception):  # to write may be permitted, and to remove not
        filesystem(probe.root).rm_file(probe.path)


@contextmanager
def _named(place: Place) -> Iterator[None]:
    """Raise what a file system raises, whose kinds differ, as an OSError that names the place."""
    try:
        yield
    except Exception as error:
        text = _reason(error)
        raise OSError(text if str(place) in text else f"{place}: {text}") from error


def _reason(error: Any) -> str:
    if isinstance(error, FileNotFoundError):
        return "it does not exist"
    return getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
