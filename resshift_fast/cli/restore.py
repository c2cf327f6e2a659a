"""`resshift-fast restore`: restore photos from files to files."""

from __future__ import annotations

import logging
from enum import Enum
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand

from resshift_fast.apps.cluster.connecting import is_address
from resshift_fast.cli import console
from resshift_fast.cli.faces import FaceOptions
from resshift_fast.cli.options import (
    Autoencoder,
    Backend,
    Dtype,
    Threads,
    Weights,
    chosen_model,
    model_option,
    one_of,
    option,
    parsed_by,
)
from resshift_fast.cli.plan import Tally
from resshift_fast.cli.request import Request
from resshift_fast.cli.running import run

OFFICIAL_SEED = 12345  # the official program's default
FORMATS = ("png", "jpg", "webp", "tiff", "same")


class Noise(str, Enum):
    field = "field"
    torch = "torch"


class Compare(str, Enum):
    png = "png"
    html = "html"


class RestoreCommand(TyperCommand):
    """Takes --compare without a value too, which is a picture, and --ray, which is the default cluster."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse arguments; a photo or folder after --compare is not its value, unless it is named html or png.

        Nor is it that of --ray, unless it has the form of an address.
        """
        kinds = {kind.value for kind in Compare}
        filled = []
        for word, following in zip_longest(args, args[1:], fillvalue=""):
            filled.append(word)
            if word == "--compare" and following not in kinds:
                filled.append(Compare.png.value)
            if word == "--ray" and not is_address(following):
                filled.append("")
        return super().parse_args(ctx, filled)


def restore(
    images: Annotated[
        list[str] | None,
        typer.Argument(metavar="IN", help="Photos, videos, folders of them, or globs.", show_default=False),
    ] = None,
    more: Annotated[
        list[str] | None,
        option("A photo, video, folder or glob like IN; may be repeated.", "-i", "--in", "--input", metavar="IN"),
    ] = None,
    out: Annotated[
        str | None,
        option(
            "Output: a file, for one photo or video and with a suffix of its kind, else a folder. Required.",
            "-o",
            "--out",
            "--output",
            metavar="OUT",
        ),
    ] = None,
    recursive: Annotated[
        bool,
        option(
            "Also restore the photos in folders below a folder; results go to folders of the same names. Default: no.",
            "-r",
            "--recursive",
        ),
    ] = False,
    model: Annotated[str | None, model_option("; with --mask photo-inpaint")] = None,
    scale: Annotated[
        float | None,
        option(
            "Enlargement of the results, such as 2 or 1.5: photos are restored at the model's, and reduced. "
            "Default: the model's.",
            metavar="N",
            parser=parsed_by(_scale),
        ),
    ] = None,
    weights: Weights = None,
    autoencoder: Autoencoder = None,
    mask: Annotated[
        str | None,
        option(
            "For inpainting models: an image that is white where to fill in, or a folder of such masks, named like the "
            "photos.",
            metavar="PATH",
        ),
    ] = None,
    faces: Annotated[
        bool,
        option(
            "Also find the faces in each photo, restore them with a model of faces, and paste them into the result. "
            "Default: no.",
            "--faces",
        ),
    ] = False,
    face_model: Annotated[
        str | None,
        option(
            "Model of --faces, of scale 1. Default: faceir if its weights are on this computer or are given, else "
            "photo-x1.",
            metavar="NAME",
        ),
    ] = None,
    face_weights: Annotated[
        Path | None, option("Weights of that model's denoiser. Default: the published ones.", metavar="FILE")
    ] = None,
    face_autoencoder: Annotated[
        Path | None, option("Weights of that model's autoencoder. Default: the published ones.", metavar="FILE")
    ] = None,
    face_detector: Annotated[
        Path | None,
        option(
            "Wheel of facenet-pytorch, whose weights find the faces. Default: the package that "
            "pip install --no-deps facenet-pytorch has installed.",
            metavar="FILE",
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
        option(
            "Largest tile side in input pixels; smaller tiles need less memory. Default: the model's; on a CPU the "
            "sides up to that which take the least time.",
            metavar="N",
        ),
    ] = None,
    overlap: Annotated[
        int | None,
        option(
            "Input pixels shared by neighbouring tiles. Default: the model's, at most a quarter of a tile.", metavar="N"
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        option(
            "Tiles restored at once. Default: 4; on a CPU 1 to 8, as many as occupy its threads.", min=1, metavar="N"
        ),
    ] = None,
    threads: Threads = None,
    device: Annotated[
        str | None,
        option(
            "cpu, cuda, cuda:1, mps, ..., or several, such as cuda:0,cuda:1, which share the photos. "
            "Default: cuda if available, else cpu.",
            metavar="NAME,...",
            parser=parsed_by(_devices),
            autocompletion=one_of(lambda: ("auto", "cpu", "cuda", "mps")),
        ),
    ] = None,
    ray: Annotated[
        str | None,
        option(
            "Restore on a Ray cluster, where IN, -o and --mask may be URIs, such as s3://bucket/photos: local, started "
            "here for the run; auto, that runs on this machine; or HOST:PORT. Default: no; if no address follows, the "
            "cluster of RAY_ADDRESS, or local.",
            "--ray",
            metavar="ADDRESS",
        ),
    ] = None,
    ray_workers: Annotated[
        int | None,
        option(
            "Workers of --ray, which are processes that restore at once. Default: one per GPU if the cluster has any, "
            "else one per --threads cores, which are 4.",
            min=1,
            metavar="N",
        ),
    ] = None,
    dtype: Dtype = "float32",
    backend: Backend = None,
    format: Annotated[
        str,
        option(
            f"File format of photos' results in a folder: {', '.join(FORMATS)}; same: that of each photo. PNG is "
            "written if the format can't hold the result; videos keep theirs, or become MP4. Default: png.",
            metavar="NAME",
            parser=parsed_by(_format),
            autocompletion=one_of(lambda: FORMATS),
        ),
    ] = "png",
    quality: Annotated[
        int,
        option(
            "Quality of JPEG, WebP and videos, 1 to 100; a WebP of 100 is lossless. Default: 95.",
            min=1,
            max=100,
            metavar="N",
        ),
    ] = 95,
    strip_metadata: Annotated[
        bool,
        option(
            "Leave out EXIF with the place, XMP, resolution, comments, texts and titles; the colour profile stays. "
            "Default: they are kept.",
            "--strip-metadata",
        ),
    ] = False,
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
        Compare | None,
        option(
            "Also write STEM_compare.png: bicubic enlargement left, result right; or html: STEM_compare.html, a page "
            "of its own with a divider to drag. Default: no; png if nothing follows.",
            "--compare",
        ),
    ] = None,
    skip_existing: Annotated[
        bool,
        option(
            "Skip photos and videos whose results exist and are whole, to continue an interrupted batch. Default: no.",
            "--skip-existing",
        ),
    ] = False,
    as_json: Annotated[
        bool,
        option("Print a line of JSON about each photo on stdout, for programs. Default: no.", "--json"),
    ] = False,
    quiet: Annotated[bool, option("Print errors only. Default: no.", "-q", "--quiet")] = False,
    verbose: Annotated[bool, option("Also print what the package logs. Default: no.", "-v", "--verbose")] = False,
) -> None:
    """Restore photos and videos. Only earlier results are overwritten, and one that fails does not stop the others.

    Exit codes: 0 all restored, 1 some failed, 2 wrong usage, 130 interrupted by Ctrl-C.
    """
    if quiet and verbose:
        _refuse("-q and -v were given; give one")
    if quiet or verbose:
        console.prepare_logging(logging.ERROR if quiet else logging.DEBUG)
    patterns = [*(images or []), *(more or [])]
    if not patterns:
        _refuse("no photos were given; name files, folders or globs: resshift-fast restore photo.jpg -o restored")
    if not all(patterns):
        _refuse("an empty name was given for a photo (an unset variable?); leave it out, or name the folder .")
    if not out:
        _refuse("no output was given; name a file or folder: -o restored")
    if ray_workers and ray is None:
        _refuse("--ray-workers is of --ray; give that too, or leave it out")
    asked_of_faces = FaceOptions(face_model, face_weights, face_autoencoder, face_detector)
    if asked_of_faces.given and not faces:
        _refuse(f"--{next(iter(asked_of_faces.given))} is of --faces; give that too, or leave it out")
    request = Request(
        patterns=patterns,
        out=out,
        recursive=recursive,
        model=chosen_model(model, weights, masked=mask is not None),
        backend=backend,
        threads=threads,
        skip_existing=skip_existing,
        as_json=as_json,
        max_megapixels=max_megapixels,
        fitting={
            "wanted_scale": scale,
            "background": background,
            "eight_bits": eight_bits,
            "quality": quality,
            "strip_metadata": strip_metadata,
        },
        naming={
            "suffix": None if format == "same" else f".{format}",
            "compare": compare and f".{compare.value}",
            "mask": mask if mask is None or ray is not None else Path(mask),
        },
        files={"weights": weights, "autoencoder": autoencoder},
        faces=asked_of_faces if faces else None,
        devices=tuple(device.split(",")) if device else (),
        ray=ray,
        ray_workers=ray_workers,
        loading={"dtype": dtype},
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
        code = run(request, tally)
    except KeyboardInterrupt:  # also before the first photo, since loading torch takes seconds
        progress = f"after {tally.restored} of {tally.total}" if tally.total else "before the first photo"
        console.say(f"interrupted {progress}; run again with --skip-existing to continue", logging.ERROR)
        code = 130
    raise typer.Exit(code)


def _refuse(message: str) -> NoReturn:
    console.say(f"error: {message}", logging.ERROR)
    raise typer.Exit(2)


def _scale(text: str) -> float:
    """An enlargement, which people also write as x2, 2x or ×2."""
    try:
        scale = float(text.strip().lower().strip("x×"))
    except ValueError:
        scale = 0.0
    if not 0 < scale < float("inf"):
        raise ValueError(f"{text!r} is not an enlargement; give a number such as 2 or 1.5")
    return scale


def _devices(text: str) -> str:
    """Names of devices, separated by commas."""
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise ValueError(f"{text!r} lacks the name of a device; give one, or several as cuda:0,cuda:1")
    return ",".join(names)


def _format(text: str) -> str:
    """One of `FORMATS`, also by its other suffix and with a dot."""
    name = text.strip().lower().removeprefix(".")
    name = {"jpeg": "jpg", "tif": "tiff"}.get(name, name)
    if name not in FORMATS:
        raise ValueError(f"{text!r} is not one of {', '.join(FORMATS)}")
    return name
