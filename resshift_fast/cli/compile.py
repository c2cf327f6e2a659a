"""`resshift-fast compile`: compile the Triton kernels before the first photo, also for a GPU that is absent."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Annotated

import typer

from resshift_fast.cli import console
from resshift_fast.cli.bench import DTYPES
from resshift_fast.cli.options import option

if TYPE_CHECKING:
    import torch


def compile_kernels(
    model: Annotated[
        str | None, option("Model that will restore. Default: photo-x4.", "--model", metavar="NAME")
    ] = None,
    size: Annotated[
        str | None,
        option(
            "Photo's width and height in pixels, such as 512 or 640x480. Default: a tile of the model.", metavar="N"
        ),
    ] = None,
    tile: Annotated[
        int | None,
        option("Largest tile side in input pixels. Default: the model's.", metavar="N", min=1),
    ] = None,
    batch_size: Annotated[int, option("Tiles restored at once. Default: 4.", metavar="N", min=1)] = 4,
    dtype: Annotated[str, option(f"One of {', '.join(DTYPES)}. Default: float32.", metavar="D")] = "float32",
    arch: Annotated[
        int | None,
        option("Compute capability of the GPU, 80 for 8.0. Default: that of the GPU here.", metavar="N", min=70),
    ] = None,
    workers: Annotated[int | None, option("Processes that compile. Default: one per core.", metavar="N", min=1)] = None,
) -> None:
    """Compile the Triton kernels of a restoration ahead of time.

    The first restoration does so by itself; this command is for building container images. With --arch no GPU is
    needed. Kernels are kept in Triton's cache folder, which TRITON_CACHE_DIR sets.
    """
    import torch

    from resshift_fast.models import catalog
    from resshift_fast.restoration import precompilation

    precompilation.check()
    spec = catalog.get(model or catalog.DEFAULT_MODEL)
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}, expected one of {', '.join(DTYPES)}")
    height, width = _sides(size) if size else (min(spec.tile, tile or spec.tile),) * 2
    on = _target(arch)
    torch_dtype = getattr(torch, dtype)
    cases = [
        precompilation.restoration_case(spec, torch_dtype, shape, *on)
        for shape in precompilation.shapes(spec, height, width, tile, batch_size)
    ]
    verification = precompilation.verification_case(torch_dtype, *on)
    cases += [verification] if verification.verified else []
    start = time.perf_counter()
    outcomes = precompilation.compile_cases(cases, workers=workers)
    seconds = time.perf_counter() - start
    for case in cases:
        print(f"{case.title} for sm_{case.arch}")
    new, failed = sum(outcome.compiled for outcome in outcomes), [outcome for outcome in outcomes if outcome.error]
    print(
        f"{len(outcomes)} kernels in {precompilation.cache_folder()}, {new} of them compiled in "
        f"{console.duration(seconds)}"
    )
    for outcome in failed:
        console.say(f"error: {outcome.kernel}: {outcome.error}")
    if failed:
        raise typer.Exit(1)


def _sides(size: str) -> tuple[int, int]:
    """(height, width)."""
    found = re.fullmatch(r"([1-9]\d*)(?:[x×]([1-9]\d*))?", size)
    if found is None:
        raise ValueError(f"size is {size!r}, expected the sides of a photo in pixels, such as 512 or 640x480")
    width, height = int(found[1]), int(found[2] or found[1])
    return height, width


def _target(arch: int | None) -> tuple[torch.device, int]:
    import torch

    from resshift_fast.restoration import precompilation

    if arch is not None:
        return torch.device("cuda", 0), arch
    found = precompilation.target(torch.device("cuda"))
    if found is None:
        raise ValueError("there is no GPU here; name the one to compile for, such as --arch 90 for an H100")
    return found
