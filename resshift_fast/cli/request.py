"""What `restore` was asked for, and what it sets in a process that restores."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resshift_fast.cli import console, faces
from resshift_fast.cli.options import weights_files

if TYPE_CHECKING:
    from resshift_fast.apps.faces import FaceRestorer
    from resshift_fast.cli.faces import FaceOptions
    from resshift_fast.pipeline import Pipeline


@dataclass(frozen=True)
class Request:
    """The arguments of the command line.

    Args:
        patterns: photos, folders and globs. out: file or folder. recursive: search folders below folders.
        model, backend: their names; None for a backend takes that of the environment.
        threads: of the CPU; None for torch's number.
        skip_existing: skip photos whose results exist. as_json: print a line of JSON about each photo.
        max_megapixels: largest photo; 0 for no limit, None for Pillow's.
        fitting: keyword arguments of `Fitting`; the background by its name.
        naming: suffix, compare and mask for `plan.plan_jobs`.
        files: weights of the model's networks; None for those that are published.
        faces: the options about faces; None if they are not sought.
        devices: to restore on; none for the default one.
        ray: address of the cluster to restore on, empty for the default one; None for this process.
        ray_workers: how many restore there; None for all that fit.
        loading: further keyword arguments of `Pipeline.from_pretrained`.
        options: keyword arguments of a pipeline's call.
    """

    patterns: list[str]
    out: str
    recursive: bool
    model: str
    backend: str | None
    threads: int | None
    skip_existing: bool
    as_json: bool
    max_megapixels: float | None
    fitting: dict[str, Any]
    naming: dict[str, Any]
    files: dict[str, Path | None]
    faces: FaceOptions | None
    devices: tuple[str, ...]
    ray: str | None
    ray_workers: int | None
    loading: dict[str, Any]
    options: dict[str, Any]


@contextmanager
def environment(request: Request) -> Iterator[None]:
    """Set the backend, the limit on pixels and the number of threads within the block."""
    from resshift_fast.backends import preferred, use_backend

    with use_backend(request.backend or preferred()), _limit(request.max_megapixels), threads(request.threads):
        yield


def prepare_process(request: Request, level: int) -> None:
    """Prepare a process that restores for another one: its streams, its log from this level on, and its environment."""
    console.prepare_streams()
    console.prepare_logging(level)
    console.hide_bars()
    ExitStack().enter_context(environment(request))  # until the process ends


def _limit(megapixels: float | None) -> AbstractContextManager[None]:
    """Set the limit on the pixels of a photo within the block."""
    if megapixels is None:
        return nullcontext()
    if not megapixels >= 0:
        raise ValueError(f"--max-megapixels must be at least 0, got {megapixels}")
    from resshift_fast.images.limits import limited

    return limited(int(min(megapixels, 1e9) * 1e6))


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Set the number of threads that compute within the block."""
    if count is None:
        yield
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def load(request: Request, device: str | None = None) -> tuple[Pipeline, FaceRestorer | None]:
    """The model that was asked for, and what restores faces over it, if they are sought.

    Args:
        request: names them. device: None takes CUDA if it is there, else the CPU.
    """
    from resshift_fast.pipeline import Pipeline

    loading = {"device": device, **request.loading}
    files = weights_files(**request.files)
    pipe = Pipeline.from_pretrained(request.model, **files, **loading, progress=not console.is_quiet())
    return pipe, None if request.faces is None else faces.load(request.faces, pipe, loading)
