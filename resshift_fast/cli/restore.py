"""`resshift-fast restore`: restore photos from files to files."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from resshift_fast.backends import names
from resshift_fast.cli import console
from resshift_fast.cli.options import option
from resshift_fast.cli.plan import Job, Tally, plan_jobs, refuse_originals
from resshift_fast.core.claims import announced
from resshift_fast.core.files import expand_home, make_folder
from resshift_fast.images.search import search

if TYPE_CHECKING:
    from resshift_fast.cli.batch import Fitting
    from resshift_fast.models.catalog import ModelSpec

OFFICIAL_SEED = 12345  # the official program's default
MOST_NAMES = 20  # of files that are left out for one reason


class Noise(str, Enum):
    field = "field"
    torch = "torch"


class Dtype(str, Enum):
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Format(str, Enum):
    png = "png"
    jpg = "jpg"
    webp = "webp"
    tiff = "tiff"
    same = "same"


@dataclass(frozen=True)
class Request:
    """The arguments of the command line.

    Args:
        patterns: photos, folders and globs. out: file or folder.
        model, backend: their names; None for a backend takes that of the environment.
        skip_existing: skip photos whose results exist.
        max_megapixels: largest photo; 0 for no limit, None for Pillow's.
        background, eight_bits: how photos and results are made to fit their formats.
        naming: suffix, compare and mask for `plan.plan_jobs`.
        files: weights of the model's networks; None for those that are published.
        loading: further keyword arguments of `Pipeline.from_pretrained`.
        options: keyword arguments of a pipeline's call.
    """

    patterns: list[str]
    out: str
    model: str
    backend: str | None
    skip_existing: bool
    max_megapixels: float | None
    background: str | None
    eight_bits: bool
    naming: dict[str, Any]
    files: dict[str, Path | None]
    loading: dict[str, Any]
    options: dict[str, Any]


def restore(
    images: Annotated[
        list[str] | None,
        typer.Argument(metavar="IN", help="Photos, folders of photos, or globs.", show_default=False),
    ] = None,
    more: Annotated[
        list[str] | None,
        option("A photo, folder or glob like IN; may be repeated.", "-i", "--in", "--input", metavar="IN"),
    ] = None,
    out: Annotated[
        str | None,
        option(
            "Output: a file, for one photo and with an image suffix, else a folder. Required.",
            "-o",
            "--out",
            metavar="OUT",
        ),
    ] = None,
    model: Annotated[
        str, option("A name that `resshift-fast models` lists. Default: nano-x4.", metavar="NAME")
    ] = "nano-x4",
    weights: Annotated[
        Path | None, option("Weights of the denoiser. Default: the published ones.", metavar="FILE")
    ] = None,
    autoencoder: Annotated[
        Path | None, option("Weights of the autoencoder. Default: the published ones.", metavar="FILE")
    ] = None,
    mask: Annotated[
        Path | None,
        option(
            "For inpainting models: an image that is white where to fill in, or a folder of such masks, named like the "
            "photos.",
            metavar="PATH",
        ),
    ] = None,
    seed: Annotated[
        int | None, option(f"Seed of the noise. Default: 0, or {OFFICIAL_SEED} with --noise torch.", metavar="N")
    ] = None,
    noise: Annotated[
        Noise,
        option(
            "field: a function of seed and pixel position, whatever the tiling and device; torch: drawn as in the "
            "official program. Default: field."
        ),
    ] = Noise.field,
    tile: Annotated[
        int | None,
        option("Largest tile side in input pixels; smaller tiles need less memory. Default: the model's.", metavar="N"),
    ] = None,
    overlap: Annotated[
        int | None,
        option(
            "Input pixels shared by neighbouring tiles. Default: the model's, at most a quarter of a tile.", metavar="N"
        ),
    ] = None,
    batch_size: Annotated[
        int | None, option("Tiles restored at once. Default: 1 on a CPU, 4 elsewhere.", min=1, metavar="N")
    ] = None,
    device: Annotated[
        str | None, option("cpu, cuda, cuda:1, mps, ... Default: cuda if available, else cpu.", metavar="NAME")
    ] = None,
    dtype: Annotated[Dtype, option("Floating-point format of the networks. Default: float32.")] = Dtype.float32,
    backend: Annotated[
        str | None,
        option(
            f"Kernels: {', '.join(names())}. Default: RESSHIFT_FAST_BACKEND if that is set, else auto.", metavar="NAME"
        ),
    ] = None,
    format: Annotated[
        Format,
        option(
            "File format of results in a folder; same: that of each photo. PNG is written if the format can't hold the "
            "result. Default: png."
        ),
    ] = Format.png,
    background: Annotated[
        str | None,
        option(
            "Lay transparent photos over this colour, such as white or #204060, since JPEG and BMP have no "
            "transparency. Default: transparency is kept.",
            metavar="COLOUR",
        ),
    ] = None,
    eight_bits: Annotated[
        bool,
        option(
            "Round results to 8 bits per channel, since JPEG, WebP and BMP have no more. Default: the photo's bits.",
            "--8-bit",
        ),
    ] = False,
    max_megapixels: Annotated[
        float | None,
        option(
            "Refuse larger photos, in megapixels, as a protection against decompression bombs; 0: no limit. "
            "Default: 179, or 2,863 for files with a byte for 32 pixels.",
            metavar="N",
        ),
    ] = None,
    compare: Annotated[
        bool,
        option("Also write STEM_compare.png: bicubic enlargement left, result right. Default: no.", "--compare"),
    ] = False,
    skip_existing: Annotated[
        bool,
        option(
            "Skip photos whose results exist as whole images, to continue an interrupted batch. Default: no.",
            "--skip-existing",
        ),
    ] = False,
) -> None:
    """Restore photos. Only earlier results are overwritten, and a photo that fails does not stop the others.

    Exit codes: 0 all restored, 1 some failed, 2 wrong usage, 130 interrupted by Ctrl-C.
    """
    patterns = [*(images or []), *(more or [])]
    if not patterns:
        _refuse("no photos were given; name files, folders or globs: resshift-fast restore photo.jpg -o restored")
    if not all(patterns):
        _refuse("an empty name was given for a photo (an unset variable?); leave it out, or name the folder .")
    if not out:
        _refuse("no output was given; name a file or folder: -o restored")
    request = Request(
        patterns=patterns,
        out=out,
        model=model,
        backend=backend,
        skip_existing=skip_existing,
        max_megapixels=max_megapixels,
        background=background,
        eight_bits=eight_bits,
        naming={
            "suffix": None if format is Format.same else f".{format.value}",
            "compare": compare,
            "mask": mask,
        },
        files={"weights": weights, "autoencoder": autoencoder},
        loading={"device": device, "dtype": dtype.value},
        options={
            "seed": seed if seed is not None else OFFICIAL_SEED if noise is Noise.torch else 0,
            "tile": tile,
            "overlap": overlap,
            "batch_size": batch_size,
            "noise": noise.value,
        },
    )
    tally = Tally()
    try:
        code = _run(request, tally)
    except KeyboardInterrupt:  # also before the first photo, since loading torch takes seconds
        progress = f"after {tally.restored} of {tally.total}" if tally.total else "before the first photo"
        console.say(f"interrupted {progress}; run again with --skip-existing to continue")
        code = 130
    raise typer.Exit(code)


def _refuse(message: str) -> NoReturn:
    console.say(f"error: {message}")
    raise typer.Exit(2)


def _run(request: Request, tally: Tally) -> int:
    """Plan, load and restore; returns the exit code."""
    from resshift_fast.backends import preferred, use_backend
    from resshift_fast.images.codecs import ImageError
    from resshift_fast.models import catalog
    from resshift_fast.weights.checkpoints import CheckpointError

    try:
        with use_backend(request.backend or preferred()), _limit(request.max_megapixels):
            spec = catalog.get(request.model)
            _check(request, spec)
            fitting = _fitting(request, spec)
            jobs = _jobs_to_do(request, tally, fitting)
            if jobs:
                _restore(jobs, request, tally, fitting)
    except Exception as error:
        console.report(error)
        _say_what_is_left_out(tally)
        is_usage = isinstance(error, (ValueError, TypeError)) and not isinstance(error, (CheckpointError, ImageError))
        return 2 if is_usage else 1
    _say_what_is_left_out(tally)
    console.say(f"{tally}; {tally.stopped}" if tally.stopped else str(tally))
    return 1 if tally.failed else 0


def _check(request: Request, spec: ModelSpec) -> None:
    """Raise, before anything is written, what would fail with every photo."""
    from resshift_fast.diffusion.noise import check_seed

    check_seed("--seed", request.options["seed"])
    mask = request.naming["mask"]
    if spec.needs_mask and mask is None:
        raise ValueError(f"{spec.name} is an inpainting model and needs a mask; give --mask FILE or --mask FOLDER")
    if mask is not None and not spec.needs_mask:
        raise ValueError(f"{spec.name} takes no mask; leave --mask out, or use an inpainting model")
    try:
        spec.plan_tiles(1, 1, request.options["tile"], request.options["overlap"])
    except ValueError as error:
        raise ValueError(f"--{error}") from None


@contextmanager
def _limit(megapixels: float | None) -> Iterator[None]:
    """Set Pillow's limit on the pixels of a photo within the block."""
    if megapixels is None:
        yield
        return
    if not megapixels >= 0:
        raise ValueError(f"--max-megapixels must be at least 0, got {megapixels}")
    from PIL import Image

    before = Image.MAX_IMAGE_PIXELS
    # Pillow refuses twice this number, and warns of more than it, which is not wanted of a limit that was chosen.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        Image.MAX_IMAGE_PIXELS = int(min(megapixels, 1e9) * 5e5) or None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _fitting(request: Request, spec: ModelSpec) -> Fitting:
    from resshift_fast.cli.batch import Fitting
    from resshift_fast.images import results

    try:
        background = None if request.background is None else results.colour(request.background)
    except ValueError as error:
        raise ValueError(f"--background: {error}") from None
    return Fitting(spec.scale, background, request.eight_bits)


def _jobs_to_do(request: Request, tally: Tally, fitting: Fitting) -> list[Job]:
    """The jobs to run; inputs that were not found are reported and counted as failed."""
    found = search(request.patterns, expand_home(request.out))
    inputs, problems = found.files, found.problems
    one_given = len(inputs) == 1 and not problems
    jobs = plan_jobs(inputs, request.out, one_given=one_given, **request.naming) if inputs else []
    for problem in problems:
        console.report(problem)
    tally.left_out = found.left_out
    todo = jobs
    if request.skip_existing and jobs:
        from resshift_fast.cli.batch import is_done

        todo = [job for job in jobs if not is_done(job, fitting)]
    tally.failed, tally.skipped, tally.total = len(problems), len(jobs) - len(todo), len(todo)
    return todo


def _say_what_is_left_out(tally: Tally) -> None:
    for reason, paths in tally.left_out.items():
        named = ", ".join(map(str, paths[:MOST_NAMES]))
        others = f" and {len(paths) - MOST_NAMES} more" if len(paths) > MOST_NAMES else ""
        console.say(f"left out {len(paths)}: {named}{others}: {reason}")


def _restore(jobs: list[Job], request: Request, tally: Tally, fitting: Fitting) -> None:
    # What cannot be written is reported before a download of minutes.
    folder = make_folder(jobs[0].output.parent)
    refuse_originals(jobs, folder)
    with announced(folder, _settings(request), (job.output for job in jobs)) as differences:
        if differences:
            raise ValueError(
                f"another run restores some of these photos into {folder}, with {', '.join(differences)}; wait for it, "
                "or choose another output folder"
            )
        _restore_writable(jobs, request, tally, fitting)


def _settings(request: Request) -> dict[str, str]:
    """All that results depend on, but for rounding errors, by the names of the options."""
    found = {"model": request.model, "dtype": request.loading["dtype"], "background": request.background}
    found |= {"8-bit": request.eight_bits, "format": request.naming["suffix"], "compare": request.naming["compare"]}
    found |= {name: request.options[name] for name in ("seed", "tile", "overlap", "noise")}
    for name, path in (*request.files.items(), ("mask", request.naming["mask"])):
        found[name] = path and expand_home(path).name
    return {name: str(value) for name, value in found.items()}


def _restore_writable(jobs: list[Job], request: Request, tally: Tally, fitting: Fitting) -> None:
    """Load the model, and restore the photos whose outputs can be written."""
    from resshift_fast.cli.batch import check_targets, prepare, run_jobs
    from resshift_fast.pipeline import Pipeline

    writable, prepared = [], None
    for job in jobs:
        try:
            check_targets(job)
            if job.exact:  # the only one, so its pixels may stay in memory
                prepared = prepare(job, fitting)
            writable.append(job)
        except Exception as error:
            console.report(error, str(job.source))
            tally.failed += 1
    if writable:
        files: dict[str, Any] = {name: path and expand_home(path) for name, path in request.files.items()}
        pipe = Pipeline.from_pretrained(request.model, **files, **request.loading)
        run_jobs(pipe, writable, request.options, tally, fitting, prepared)
