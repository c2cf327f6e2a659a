"""Names of images: their formats, their order, missing ones, and those of outputs.

Nothing here reads the content of an image. Every error is a built-in class whose message is one line that names the
path and says what to do, so that the command line can print it unchanged.
"""

import difflib
import os
import re
import unicodedata
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from resshift_fast.core.files import FileSet

FORMATS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".jpe": "JPEG",
    ".jif": "JPEG",
    ".jfif": "JPEG",
    ".webp": "WEBP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".bmp": "BMP",
}
"""Suffixes that are read and written (in any case), and the format each one means."""
READABLE = FORMATS | {".gif": "GIF", ".avif": "AVIF", ".heic": "HEIF", ".heif": "HEIF", ".hif": "HEIF"}
"""Suffixes that are read."""
VIDEOS = (
    *(".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ogv", ".webm"),
    ".wmv",
)
"""Suffixes of videos, of which `restore` reads and writes the frames."""
VIDEO_FORMATS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska", ".webm": "webm"}
"""Suffixes of videos that are written, and FFmpeg's name of the format that each one means."""
VIDEO_NEEDS = "videos need another package: pip install 'resshift-fast[video]'"
HEIC_NEEDS = "HEIC needs another package: pip install 'resshift-fast[heic]'"


def reads_heic() -> bool:
    """Whether the package is installed that HEIC needs."""
    return find_spec("pillow_heif") is not None


def reads_videos() -> bool:
    """Whether the package is installed that videos need."""
    return find_spec("av") is not None


def natural_key(path: str | Path) -> tuple:
    """A sort key by which ``photo2.png`` comes before ``photo10.png``; case only breaks ties."""
    parts = re.split(r"([0-9]+)", str(path))
    return [
        (1, int(part), "") if part.isascii() and part.isdigit() else (0, 0, part.casefold()) for part in parts
    ], str(path)


def missing_file(path: str | Path) -> FileNotFoundError:
    """The error for a path that does not exist, with the nearest name in its folder or the first missing folder."""
    path = Path(path)
    if path.is_symlink():
        return FileNotFoundError(
            f"{path} is a link to {os.readlink(path)}, which does not exist; restore that file, or remove the link"
        )
    if not path.parent.is_dir():
        return FileNotFoundError(f"{path} does not exist: there is no folder {path.parent}; check the path")
    names = []
    with suppress(OSError):
        names = os.listdir(path.parent)
    near = difflib.get_close_matches(path.name, names, n=1)
    hint = (
        f"did you mean {path.with_name(near[0])}?" if near else f"the folder {path.parent.resolve()} has no such file"
    )
    return FileNotFoundError(f"{path} does not exist; {hint}")


def unique_outputs(
    inputs: Sequence[str | Path],
    folder: str | Path,
    suffix: str | Callable[[Path], str] | None = ".png",
) -> list[Path]:
    """Name one output in ``folder`` for each input, so that none overwrites another or an input.

    An output has its input's stem if that is unique. To inputs that share a stem, what distinguishes them is added:
    the suffix (``a_png``, ``a_jpg``), else the folder (``a_left``, ``a_right``), else both, else a number (``a``,
    ``a-2``). Stems are compared without case and Unicode composition, as some file systems do, and without suffixes,
    so that a suffix may be changed later (``images.suffix_for``). The names do not depend on the order of the inputs.

    Args:
        inputs: the input files; they need not exist.
        folder: where the outputs go; not created.
        suffix: of every output; None keeps each input's own (".png" if that is not supported); a function gets the
            input's path and returns the suffix.

    Returns:
        One path per input, in the order of the inputs.

    Raises:
        ValueError: if an output would replace one of the inputs, whatever the path by which it is reached.
    """
    paths, folder = [Path(path) for path in inputs], Path(folder)
    stems = unique_stems(paths)
    outputs = [folder / f"{stem}{suffix_of(path, suffix)}" for path, stem in zip(paths, stems, strict=True)]
    originals = FileSet(paths)
    for path, output in zip(paths, outputs, strict=True):
        if output in originals:
            raise ValueError(f"the output for {path} would replace the input {output}; choose another output folder")
    return outputs


def suffix_of(path: Path, suffix: str | Callable[[Path], str] | None) -> str:
    """The suffix of an input's output; the arguments are those of `unique_outputs`."""
    if callable(suffix):
        return suffix(path)
    if suffix is not None:
        return suffix
    return path.suffix if path.suffix.lower() in FORMATS else ".png"


def video_suffix(source: Path) -> str:
    """The suffix of a video's output: its own if that is written, else that of MP4."""
    return source.suffix if source.suffix.lower() in VIDEO_FORMATS else ".mp4"


def comparison_outputs(outputs: Sequence[Path], originals: FileSet, suffix: str) -> list[Path]:
    """Name a before/after picture beside each output, so that none overwrites another file of the run.

    Args:
        outputs: of the photos. originals: what the run reads. suffix: of the pictures.
    """
    # A result may become PNG later, so stems are compared, not whole names.
    taken = {_file_key(output.with_suffix("")) for output in outputs}
    names = []
    for output in outputs:
        number = 1
        while True:
            stem = f"{output.stem}_compare" + (f"-{number}" if number > 1 else "")
            name = output.with_name(stem + suffix)
            if _file_key(name.with_suffix("")) not in taken and name not in originals:
                break
            number += 1
        taken.add(_file_key(name.with_suffix("")))
        names.append(name)
    return names


def _file_key(path: Path) -> str:
    """Key of an output's path; equal for two that may be the same file, also on case-insensitive file systems."""
    return os.path.realpath(path).casefold()


def unique_stems(paths: list[Path]) -> list[str]:
    """The stems of the outputs of inputs, as `unique_outputs` names them."""
    groups: dict[str, list[int]] = {}
    for index, path in enumerate(paths):
        groups.setdefault(_name_key(path.stem), []).append(index)
    stems = [path.stem for path in paths]
    taken = {key for key, members in groups.items() if len(members) == 1}
    for key in sorted(groups):
        # Sorted, so that the names don't depend on the order of the inputs.
        members = sorted(groups[key], key=lambda index: (os.path.abspath(paths[index]), index))
        if len(members) == 1:
            continue
        for index, stem in zip(members, _tell_apart([paths[index] for index in members], taken), strict=True):
            stems[index] = stem
            taken.add(_name_key(stem))
    return stems


def _tell_apart(paths: list[Path], taken: set[str]) -> list[str]:
    suffixes = [path.suffix[1:].lower() for path in paths]
    parents = [Path(os.path.abspath(path)).parent.name for path in paths]
    for marks in (
        [(suffix,) for suffix in suffixes],
        [(parent,) for parent in parents],
        list(zip(parents, suffixes, strict=True)),
    ):
        names = ["_".join((path.stem, *filter(None, mark))) for path, mark in zip(paths, marks, strict=True)]
        keys = {_name_key(name) for name in names}
        if len(keys) == len(names) and not keys & taken:
            return names
    names, used = [], set(taken)
    for path in paths:
        name, number = path.stem, 1
        while _name_key(name) in used:
            number += 1
            name = f"{path.stem}-{number}"
        used.add(_name_key(name))
        names.append(name)
    return names


def _name_key(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
