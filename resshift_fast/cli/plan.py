"""The plan of `restore`, made before anything is written: the input files, and the output of each."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from resshift_fast.core.files import FileSet, expand_home
from resshift_fast.images.files import (
    FORMATS,
    VIDEO_FORMATS,
    VIDEOS,
    comparison_outputs,
    missing_file,
    unique_outputs,
    video_suffix,
)
from resshift_fast.images.search import find_images

# Suffixes of formats that are not written: -o out.gif is an error, not the name of a folder.
_FOREIGN_SUFFIXES = (
    ".avif",
    ".exr",
    ".gif",
    ".heic",
    ".heif",
    ".hif",
    ".jp2",
    ".jxl",
    ".pdf",
    ".ppm",
    ".psd",
    ".svg",
    ".tga",
)


@dataclass(frozen=True)
class Job:
    """One photo to restore.

    Args:
        source: the photo.
        output: where the result goes.
        compare: where the before/after picture goes, if one is wanted.
        mask: the photo's mask, for inpainting models.
        exact: the output's name was given, so its format is kept; else a format that can't hold a result becomes PNG.
        originals: all files that the run reads, none of which may be written.
        is_video: the source is a video.
    """

    source: Path
    output: Path
    compare: Path | None = None
    mask: Path | None = None
    exact: bool = False
    originals: FileSet = field(default_factory=FileSet, repr=False)
    is_video: bool = False

    @property
    def place(self) -> Path:
        """What is claimed for the output: its stem counts, and a video may have that of a photo."""
        return self.output.with_name(f"{self.output.name}.video") if self.is_video else self.output

    @property
    def fallback(self) -> Path:
        """The output's name as PNG."""
        return self.output.with_suffix(".png")


@dataclass
class Tally:
    """Counts of the photos of a batch.

    Attributes:
        total: to be restored, without those that were not found or are skipped.
        restored, failed, skipped: counts so far.
        stopped: why the batch ended early; empty if it did not.
        left_out: reason to the files in folders that are no photos.
    """

    total: int = 0
    restored: int = 0
    failed: int = 0
    skipped: int = 0
    stopped: str = ""
    left_out: dict[str, list[Path]] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.restored} restored, {self.failed} failed, {self.skipped} skipped"


def plan_jobs(
    inputs: Sequence[Path],
    out: str,
    *,
    suffix: str | None,
    compare: str | None,
    mask: Path | None,
    one_given: bool,
    roots: Mapping[Path, Path],
) -> list[Job]:
    """A job for each input, with outputs that overwrite neither one another nor an input; videos come last.

    Args:
        inputs: the photos and videos.
        out: a file (for one input, with a suffix of its kind) or a folder.
        suffix: of the photos' outputs in a folder; None keeps each input's own. Videos keep theirs if it is written.
        compare: suffix of before/after pictures or pages, STEM_compare.png or .html; None for none.
        mask: a mask for all inputs, or a folder with masks of the inputs' stems, or None.
        one_given: a single input was given, so that `out` with an image suffix names a file.
        roots: the folders that inputs below other folders were found in. Their results go to folders of the same
            names below `out`.

    Raises:
        ValueError: if `out` names a file for several inputs, has a suffix that is not supported, or would replace an
            input or a mask, or masks share a stem.
        FileNotFoundError: if the mask does not exist.
    """
    exact = _is_file(out, one_given)
    path = expand_home(out)
    videos = _videos(inputs)
    if exact:
        _check_kind(out, inputs[0], bool(videos))
    outputs = [path] if exact else _outputs(inputs, path, suffix, roots, videos)
    masks = _masks(inputs, mask)
    originals = FileSet([*inputs, *{its_mask for its_mask in masks if its_mask is not None}])
    for output in outputs:
        if output in originals:
            what = "the input" if output in FileSet(inputs) else f"the mask {output}"
            raise ValueError(f"-o {out} would replace {what}; choose another name")
    pictures = comparison_outputs(outputs, originals, compare) if compare else [None] * len(outputs)
    jobs = [
        Job(source, output, picture, its_mask, exact, originals, source in videos)
        for source, output, picture, its_mask in zip(inputs, outputs, pictures, masks, strict=True)
    ]
    return sorted(jobs, key=lambda job: job.is_video)  # a video may take as long as all photos


def _videos(inputs: Sequence[Path]) -> set[Path]:
    from resshift_fast.apps.video.clips import is_video

    return {source for source in inputs if is_video(source)}


def _check_kind(out: str, source: Path, is_video: bool) -> None:
    """Raise ValueError for a video that would be written as a picture, and the other way round."""
    if is_video != (Path(out).suffix.lower() in VIDEO_FORMATS):
        kind, formats = ("a video", VIDEO_FORMATS) if is_video else ("no video", FORMATS)
        raise ValueError(f"-o {out}: {source} is {kind}; use one of {', '.join(formats)}, or name a folder")


def _outputs(
    inputs: Sequence[Path], folder: Path, suffix: str | None, roots: Mapping[Path, Path], videos: set[Path]
) -> list[Path]:
    """An output for each input, in the folder below `folder` that corresponds to its own."""
    groups: dict[tuple[Path, bool], list[int]] = {}
    for index, source in enumerate(inputs):
        below = source.parent.relative_to(roots[source]) if source in roots else Path()
        groups.setdefault((below, source in videos), []).append(index)
    outputs = dict[int, Path]()
    for (below, are_videos), members in groups.items():
        sources = [inputs[index] for index in members]
        named = unique_outputs(sources, folder / below, video_suffix if are_videos else suffix)
        outputs |= dict(zip(members, named, strict=True))
    return [outputs[index] for index in range(len(inputs))]


def refuse_originals(jobs: Sequence[Job], folder: Path) -> None:
    """Raise ValueError if a job would replace an original by way of another mount of its folder.

    Args:
        jobs: of one run. folder: that of the outputs; it exists.
    """
    originals = jobs[0].originals  # which all have in common
    originals.find_mounts(folder)
    for output in (path for job in jobs for path in (job.output, job.compare) if path is not None):
        if output in originals:
            raise ValueError(f"{output} is an input, or a mask, by way of another mount; choose another output folder")


def _is_file(out: str, one_given: bool) -> bool:
    path = expand_home(out)
    suffix = path.suffix.lower()
    written, known = (*FORMATS, *VIDEO_FORMATS), (*FORMATS, *VIDEOS, *_FOREIGN_SUFFIXES)
    if path.is_dir() or out.endswith(("/", os.sep)) or suffix not in known:
        return False
    if suffix not in written:
        kinds = VIDEO_FORMATS if suffix in VIDEOS else FORMATS
        raise ValueError(f"-o {out}: {suffix} is not supported; use one of {', '.join(kinds)}, or name a folder")
    if not one_given:
        raise ValueError(f"-o {out} names one file, but there are several inputs; name a folder, such as {path.stem}")
    return True


def _masks(inputs: Sequence[Path], mask: Path | None) -> list[Path | None]:
    if mask is None:
        return [None] * len(inputs)
    mask = expand_home(mask)
    if not mask.is_dir():
        if not mask.exists():
            raise missing_file(mask)
        return [mask] * len(inputs)
    by_stem: dict[str, Path] = {}
    for path in find_images([mask]):
        if path.stem in by_stem:
            raise ValueError(f"two masks are called {path.stem}: {by_stem[path.stem]} and {path}; remove one")
        by_stem[path.stem] = path
    # A missing mask is an error of that photo alone, raised when the mask is read.
    return [by_stem.get(source.stem, mask / f"{source.stem}.png") for source in inputs]
