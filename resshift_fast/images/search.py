"""Finding the images that paths, folders and globs name.

One entry that can't be reached does not hide the others: what is wrong is collected beside what is found.
"""

import fnmatch
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from resshift_fast.core.files import expand_home
from resshift_fast.images.files import (
    HEIC_NEEDS,
    READABLE,
    VIDEO_NEEDS,
    VIDEOS,
    missing_file,
    natural_key,
    reads_heic,
    reads_videos,
)

# Why files of these suffixes are not read.
_REASONS = {
    re.compile(r"\.(3fr|arw|cr[23w]|dng|erf|fff|iiq|kdc|mef|mos|mrw|nef|nrw|orf|pef|raf|raw|rw[2l]|sr[2fw]|srw|x3f)"): (
        "camera raw is not read; develop them as 16-bit TIFF or PNG first"
    ),
    re.compile(r"\.(ai|bpg|cdr|dds|eps|exr|hdr|ico|j2k|jp2|jpx|jxl|p[bgnp]m|pcx|pdf|ps[bd]|qoi|svgz?|tga|xcf)"): (
        "pictures of this kind are not read; export them as PNG, JPEG, WebP, TIFF or BMP first"
    ),
}
_UNKNOWN = "they have no suffix of a picture; name one as a file to restore it all the same"
_VIDEOS = "videos are not read here; export their frames as PNG first"
HIDDEN = "they are hidden; name one as a file to restore it all the same"
_DEVICES = "pipes and devices are not read"
FOLDERS = "folders below a folder are not searched without --recursive"
_SUFFIX_LIST = ", ".join(READABLE)
_MAGIC = re.compile(r"[*?[]")


@dataclass
class Found:
    """What was found.

    Attributes:
        files: the images, each once, in the order in which they were asked for.
        problems: an error for each pattern without an image, and for each folder that can't be listed.
        roots: of the files that were found below a folder, the folder that was named.
        left_out: reason to the files, and folders, that are in a folder or match a glob and are not taken.
        takes_videos: whether videos are taken too.
    """

    files: list[Path] = field(default_factory=list)
    problems: list[Exception] = field(default_factory=list)
    roots: dict[Path, Path] = field(default_factory=dict)
    left_out: dict[str, list[Path]] = field(default_factory=dict)
    takes_videos: bool = False

    def leave_out(self, path: Path, reason: str) -> None:
        """Note a file that is not taken."""
        paths = self.left_out.setdefault(reason, [])
        if path not in paths:
            paths.append(path)


def search(
    patterns: Iterable[str | Path],
    results: str | Path | None = None,
    *,
    recursive: bool = False,
    videos: bool = False,
) -> Found:
    """Expand files, folders and globs into a list of image files.

    - A file is taken as it is, whatever its suffix (``images.read`` goes by the content).
    - A folder gives its own image files, not those of folders below it, in natural order; hidden files are
      left out. ``folder/**/*.png`` goes deeper, and so does every folder with ``recursive``.
    - Anything else with ``*``, ``?`` or ``[`` is expanded as a glob (quoted globs, and shells that don't expand),
      in natural order, and gives the image files among its matches. A part of it that is the name of a file or folder
      stands for that one: brackets are common in names. ``**`` enters every folder once, also those that are linked.
    - ``~`` is expanded, unless a file has this name.
    - Links that lead nowhere are taken too, so that reading them says so.

    Args:
        patterns: paths and globs, in the order in which their images are wanted.
        results: the folder that results go to, which is not searched below others, nor noted as left out.
        recursive: whether folders below folders are searched too.
        videos: whether videos are taken, if the package that they need is installed.
    """
    found = Found(takes_videos=videos)
    files: dict[str, Path] = {}
    for pattern in patterns:
        try:
            for path in _expand(str(pattern), found, results if recursive else None, recursive):
                # The same file by way of another folder or link is the same photo; links to it are others.
                place = os.path.join(os.path.realpath(path.parent), path.name)
                files.setdefault(os.path.normcase(place), path)
        except (OSError, ValueError) as error:
            found.problems.append(error)
    found.files = list(files.values())
    if results is not None:
        own = os.path.realpath(results)
        kept = {why: [one for one in paths if os.path.realpath(one) != own] for why, paths in found.left_out.items()}
        found.left_out = {reason: paths for reason, paths in kept.items() if paths}
    return found


def find_images(patterns: str | Path | Iterable[str | Path]) -> list[Path]:
    """The files that `search` finds.

    Raises:
        FileNotFoundError: if a path does not exist or a glob matches no image.
        ValueError: if there are no patterns, or a folder has no image; names the accepted suffixes.
        PermissionError: if a folder cannot be listed.
    """
    found = search([patterns] if isinstance(patterns, str | Path) else patterns)
    if found.problems:
        raise found.problems[0]
    if not found.files:
        raise ValueError("no input was given; name image files, folders or globs")
    return found.files


def _expand(pattern: str, found: Found, results: str | Path | None, recursive: bool) -> list[Path]:
    path = expand_home(pattern)
    if os.path.isdir(path):
        files = _images_below(path, found, results) if recursive else _images_in(path, found)
        if not files:
            how = "and none is in folders below it" if recursive else "folders below it are not searched"
            raise ValueError(f"the folder {path} has no images; accepted are {_SUFFIX_LIST} ({how})")
        return files
    if os.path.lexists(path):
        return [path]
    if not _MAGIC.search(pattern):
        raise missing_file(path)
    start = Path(path.anchor)
    problems = len(found.problems)
    files = _images(_matches(start, path.parts[len(start.parts) :], found), found)
    if not files and len(found.problems) == problems:
        raise FileNotFoundError(f"no image matches {pattern}; accepted are {_SUFFIX_LIST}")
    return files


def _images_in(folder: Path, found: Found) -> list[Path]:
    return _images((folder / name for name in _names(folder, found)), found)


def _images_below(root: Path, found: Found, results: str | Path | None) -> list[Path]:
    """The images in a folder and in all below it, but not in that of the results."""
    _names(root)  # raises, if the folder itself can't be listed
    files = []
    for folder in sorted(_tree(root, found, results), key=natural_key):
        try:
            there = _images((folder / name for name in _names(folder, found) if not (folder / name).is_dir()), found)
        except OSError:  # has been noted
            continue
        files += there
        found.roots |= dict.fromkeys(there, root)
    return files


def _names(folder: Path, found: Found | None = None) -> list[str]:
    """The names in a folder that are not hidden; pictures that are hidden are noted as left out."""
    try:
        names = sorted(os.listdir(folder), key=natural_key)
    except PermissionError as error:
        raise PermissionError(f"the folder {folder} cannot be listed: permission denied; check its rights") from error
    except OSError as error:
        raise OSError(f"the folder {folder} cannot be listed: {error.strerror or error}") from error
    if found is not None:
        # Not those that another system keeps beside each file, as ._photo.jpg.
        for name in names:
            if name.startswith(".") and not name.startswith("._") and Path(name).suffix.lower() in READABLE:
                found.leave_out(folder / name, HIDDEN)
    return [name for name in names if not name.startswith(".")]


def _images(paths: Iterable[Path], found: Found) -> list[Path]:
    """The image files among these paths, in natural order; the others are noted as left out."""
    files = []
    for path in sorted(paths, key=natural_key):
        reason = _why_not(path, found.takes_videos)
        if reason is None:
            files.append(path)
        else:
            found.leave_out(path, reason)
    return files


def _why_not(path: Path, takes_videos: bool) -> str | None:
    """Why a path that a folder or glob gives is not taken; None if it is."""
    if not _may_be_file(path):
        return FOLDERS if os.path.isdir(path) else _DEVICES
    return reason_against(path.suffix.lower(), takes_videos)


def reason_against(suffix: str, takes_videos: bool) -> str | None:
    """Why files of a suffix, in lower case, are not taken from a folder; None if they are."""
    if suffix in READABLE:
        return HEIC_NEEDS if READABLE[suffix] == "HEIF" and not reads_heic() else None
    if suffix in VIDEOS:
        return _VIDEOS if not takes_videos else None if reads_videos() else VIDEO_NEEDS
    return next((reason for suffixes, reason in _REASONS.items() if suffixes.fullmatch(suffix)), _UNKNOWN)


def _may_be_file(path: Path) -> bool:
    """Whether a path is a regular file, or can't be reached, which reading it will report."""
    try:
        os.stat(path)
    except OSError:
        return True
    return os.path.isfile(path)


def _matches(folder: Path, parts: tuple[str, ...], found: Found) -> Iterator[Path]:
    """The paths below a folder that match the parts of a glob."""
    part, rest = parts[0], parts[1:]
    if part == "**":
        for below in _tree(folder, found):
            yield from _matches(below, rest or ("*",), found)
        return
    literal = folder / part
    if not _MAGIC.search(part) or os.path.lexists(literal):
        names = [part]
    else:
        names = [name for name in _listed(folder, part, found) if fnmatch.fnmatch(name, part)]
    for name in names:
        path = folder / name
        if not rest:
            if os.path.lexists(path):
                yield path
        elif os.path.isdir(path):
            yield from _matches(path, rest, found)


def _listed(folder: Path, part: str, found: Found) -> list[str]:
    """The names in a folder, the hidden ones if the glob asks for them; none if it can't be listed, which is noted."""
    try:
        return sorted(os.listdir(folder)) if part.startswith(".") else sorted(_names(folder))
    except OSError as error:
        if str(error) not in map(str, found.problems):
            found.problems.append(error)
        return []


def _tree(folder: Path, found: Found, results: str | Path | None = None) -> Iterator[Path]:
    """A folder and all below it but that of the results, each once: links to folders may form cycles."""
    own = None if results is None else os.path.realpath(results)
    seen: set[tuple[int, int]] = set()
    # Breadth first, and links after folders, so that a folder has its shortest path without a link.
    level, links = [folder], list[Path]()
    while level or links:
        if not level:
            level, links = links, []
        following: list[Path] = []
        for path in level:
            try:
                status = os.stat(path)
            except OSError:
                continue
            key = (status.st_dev, status.st_ino)
            if status.st_ino and key in seen:
                continue
            seen.add(key)
            yield path
            for name in _listed(path, "*", found):
                below = path / name
                if os.path.isdir(below) and (own is None or os.path.realpath(below) != own):
                    (links if os.path.islink(below) else following).append(below)
        level = following
