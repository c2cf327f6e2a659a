"""What is to be restored, folder by folder, and where each result goes: the names are those of a run on one machine.

Only the names of one folder are in memory at a time.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from resshift_fast.apps.cluster import places
from resshift_fast.apps.cluster.places import Entry, Place
from resshift_fast.apps.video.clips import is_video
from resshift_fast.core.files import FileSet
from resshift_fast.images import files, search
from resshift_fast.images.files import READABLE

_MAGIC = "*?["
_DEVICES = "pipes and devices are not read"


@dataclass(frozen=True)
class Item:
    """One photo or video to restore.

    Attributes:
        source: the file.
        folder, name: where the result goes; the suffix may change to one that can hold the result.
        compare: the name of the before/after picture; None for none.
        mask: for inpainting models.
        present: of the names that the run may write, those that are in a folder of another store already.
    """

    source: Place
    folder: Place
    name: str
    compare: str | None = None
    mask: Place | None = None
    present: tuple[str, ...] = ()

    def to_json(self) -> str:
        """The item as text, by which it travels."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Item:
        """The item of such a text."""
        fields = json.loads(text)
        for name in ("source", "folder", "mask"):
            fields[name] = fields[name] and Place(**fields[name])
        return cls(**{**fields, "present": tuple(fields["present"])})


@dataclass(frozen=True)
class LeftOut:
    """A file or folder that is not restored, and why."""

    place: Place
    reason: str


@dataclass(frozen=True)
class Problem:
    """Something that was asked for and can't be restored: an input without photos, a folder that can't be listed."""

    text: str


@dataclass(frozen=True)
class Wanted:
    """What to list.

    Args:
        inputs: absolute paths, globs and URIs of photos, videos and folders.
        out: the folder for the results.
        recursive: also list the folders below folders; results go to folders of the same names.
        suffix: of the photos' results; None keeps each photo's own.
        compare: suffix of before/after pictures; None for none.
        mask: a mask for all, or a folder with masks of the photos' stems; None for none.
        skip_existing: look for results that exist.
    """

    inputs: tuple[str, ...]
    out: Place
    recursive: bool = False
    suffix: str | None = ".png"
    compare: str | None = None
    mask: Place | None = None
    skip_existing: bool = False


@dataclass
class _Input:
    """An input: the folder, or the files that it names. `found` counts its photos."""

    text: str
    folder: Place | None = None
    members: list[Place] = field(default_factory=list)
    found: int = 0


def check(wanted: Wanted) -> None:
    """Raise ValueError if results would be among what is read, or a folder would be read twice."""
    inputs = [place for text in wanted.inputs for place in [_start(text)] if place is not None]
    for place in inputs:
        if wanted.out.holds(place):
            raise ValueError(f"{place} lies in the output folder {wanted.out}; choose a folder that has no input")
        for other in inputs:
            if other != place and wanted.recursive and place.holds(other):
                raise ValueError(f"{other} lies in {place}, which is searched with --recursive; name one of them")


def _start(text: str) -> Place | None:
    """The folder from which an input is searched, or the file; None if that can't be told."""
    parts = text.split("/")
    fixed = next((i for i, part in enumerate(parts) if any(sign in part for sign in _MAGIC)), None)
    if fixed is None or os.path.lexists(text):
        return places.place_of(text)
    return places.place_of("/".join(parts[:fixed])) if "".join(parts[:fixed]) else None


def listing(wanted: Wanted) -> Iterator[Item | LeftOut | Problem]:
    """List the photos, and say what is left out, in the order in which it is found."""
    masks = None
    inputs = []
    for text in dict.fromkeys(wanted.inputs):
        try:
            inputs.append(_resolved(text))
        except (OSError, ValueError) as error:
            yield Problem(str(error))
    try:
        masks = _masks(wanted.mask)
    except (OSError, ValueError) as error:
        yield Problem(str(error))
        return
    roots = [one for one in inputs if one.folder is not None]
    below = [""]  # folders that are still to be listed, relative to the roots
    walk = _Walk(wanted)
    while below:
        here = below.pop()
        sources: dict[tuple[object, str], Place] = {}
        if not here:
            for one in inputs:
                sources |= {_identity(place): place for place in one.members}
                one.found += len(one.members)
        deeper: dict[str, None] = {}
        for root in roots:
            assert root.folder is not None
            for found in walk.folder(root.folder / here, is_root=not here):
                if isinstance(found, (LeftOut, Problem)):
                    yield found
                elif found.name and found.path.endswith("/"):
                    deeper[f"{here}/{found.name}".strip("/")] = None
                else:
                    sources.setdefault(_identity(found), found)
                    root.found += 1
        yield from _named(list(sources.values()), wanted.out / here, masks, wanted)
        below += reversed(deeper)
    for one in roots:
        if not one.found and not walk.has_failed(one.folder):
            how = "and none is in folders below it" if wanted.recursive else "folders below it are not searched"
            yield Problem(f"the folder {one.folder} has no images; accepted are {', '.join(READABLE)} ({how})")


def _identity(place: Place) -> tuple[object, str]:
    """What tells a file from others, by whatever folder or link it was reached."""
    if not place.is_local:
        return places.filesystem(place.root), place.path
    folder, _, name = place.path.rpartition("/")
    return None, os.path.join(os.path.realpath(folder), name)


def _resolved(text: str) -> _Input:
    """What an input names.

    Raises:
        OSError, ValueError: if there is nothing.
    """
    place = places.place_of(text)
    kind = places.kind(place)
    if kind == "directory":
        return _Input(text, folder=Place(place.root, place.path.rstrip("/") or "/"))
    if kind:
        return _Input(text, members=[place])
    if any(sign in text for sign in _MAGIC):
        found = places.filesystem(place.root).glob(place.path)
        members = [Place(place.root, str(path)) for path in sorted(map(str, found), key=files.natural_key)]
        members = [one for one in members if _reason(one.name) is None and places.kind(one) == "file"]
        if not members:
            raise FileNotFoundError(f"no image matches {text}; accepted are {', '.join(READABLE)}")
        return _Input(text, members=members)
    if place.is_local:
        raise files.missing_file(place.path)
    raise FileNotFoundError(f"{place} does not exist; check its name, and that this machine may list it")


def _reason(name: str) -> str | None:
    """Why a file of a folder is not taken; None if it is."""
    if name.startswith("."):
        return search.HIDDEN
    return search.reason_against(Path(name).suffix.lower(), takes_videos=True)


class _Walk:
    """Lists folders, each once, also where links to folders form cycles.

    Args:
        wanted: what to list.
    """

    def __init__(self, wanted: Wanted):
        self._wanted = wanted
        self._linked: set[str] = set()  # folders that a link led to
        self._failed: set[Place] = set()

    def has_failed(self, root: Place | None) -> bool:
        """Whether an input's folder could not be listed, which has been said."""
        return root in self._failed

    def folder(self, folder: Place, *, is_root: bool) -> Iterator[Place | LeftOut | Problem]:
        """The photos of a folder, and those below it, whose paths end with a slash; nothing if it does not exist."""
        try:
            entries = places.listed(folder)
        except Exception as error:
            if is_root or not isinstance(error, FileNotFoundError):
                self._failed.add(folder)
                yield Problem(f"the folder {folder} cannot be listed: {getattr(error, 'strerror', None) or error}")
            return
        for entry in entries:
            yield from self._entry(folder, entry)

    def _entry(self, folder: Place, entry: Entry) -> Iterator[Place | LeftOut]:
        place = folder / entry.name
        if entry.is_folder:
            if entry.name.startswith("."):
                return
            if not self._wanted.recursive:
                if not place.holds(self._wanted.out):
                    yield LeftOut(place, search.FOLDERS)
            elif not self._wanted.out.holds(place) and not self._was_seen(place):
                yield Place(place.root, f"{place.path}/")
            return
        if entry.name.startswith(".") and (
            entry.name.startswith("._") or Path(entry.name).suffix.lower() not in READABLE
        ):
            return
        reason = _reason(entry.name) if entry.is_file else _DEVICES
        yield place if reason is None else LeftOut(place, reason)

    def _was_seen(self, place: Place) -> bool:
        """Whether a link leads to a folder that is above it, or that another link led to."""
        if not place.is_local or not os.path.islink(place.path):
            return False
        real = os.path.realpath(place.path)
        above = f"{os.path.realpath(os.path.dirname(place.path))}/".startswith(f"{real}/")
        if above or real in self._linked:
            return True
        self._linked.add(real)
        return False


def _named(sources: Sequence[Place], folder: Place, masks: _Masks, wanted: Wanted) -> Iterator[Item]:
    """Name the results of the photos and videos that go to one folder."""
    videos = [one for one in sources if _is_video(one)]
    photos = [one for one in sources if one not in set(videos)]
    outputs: list[tuple[Place, Path]] = []
    for group, suffix in ((photos, wanted.suffix), (videos, files.video_suffix)):
        paths = [one.pure.with_name(one.name) for one in group]
        stems = files.unique_stems(paths)
        names = [f"{stem}{files.suffix_of(path, suffix)}" for stem, path in zip(stems, paths, strict=True)]
        outputs += [(one, folder.pure / name) for one, name in zip(group, names, strict=True)]
    compare: list[str | None] = [None] * len(outputs)
    if wanted.compare:
        found = files.comparison_outputs([output for _, output in outputs], FileSet(), wanted.compare)
        compare = [path.name for path in found]
    existing = _existing(folder) if wanted.skip_existing and outputs and not folder.is_local else set()
    for (source, output), picture in zip(outputs, compare, strict=True):
        stem = output.stem
        own = {output.name, f"{stem}.png", f"{stem}.webp", picture} & existing
        mask = masks.of(Path(source.name).stem)
        yield Item(source, folder, output.name, picture, mask, tuple(sorted(filter(None, own))))


def _is_video(place: Place) -> bool:
    """Whether a file is a video: by its suffix, and on this machine also by its content if that says nothing."""
    return is_video(Path(place.path) if place.is_local else Path(place.name))


def _existing(folder: Place) -> set[str | None]:
    """The names of the files in a folder of another store, but for empty ones; none if it can't be listed."""
    try:
        return {entry.name for entry in places.listed(folder) if entry.is_file and entry.size != 0}
    except (OSError, ValueError):
        return set()


@dataclass(frozen=True)
class _Masks:
    """The masks: `single` for all, or those of a folder by stem; neither for none."""

    single: Place | None = None
    folder: Place | None = None
    by_stem: dict[str, Place] = field(default_factory=dict)

    def of(self, stem: str) -> Place | None:
        """The mask of a photo; one that is missing is an error of that photo alone, when it is read."""
        if self.folder is None:
            return self.single
        return self.by_stem.get(stem, self.folder / f"{stem}.png")


def _masks(mask: Place | None) -> _Masks:
    if mask is None:
        return _Masks()
    kind = places.kind(mask)
    if kind != "directory":
        if not kind:
            raise FileNotFoundError(f"the mask {mask} does not exist; check its name")
        return _Masks(single=mask)
    found: dict[str, Place] = {}
    for entry in places.listed(mask):
        stem, suffix = os.path.splitext(entry.name)
        if not entry.is_file or suffix.lower() not in READABLE or entry.name.startswith("."):
            continue
        if stem in found:
            raise ValueError(f"two masks are called {stem}: {found[stem]} and {mask / entry.name}; remove one")
        found[stem] = mask / entry.name
    return _Masks(folder=mask, by_stem=found)
