"""Compiles the Triton kernels of a restoration in parallel processes before its first call.

Another process runs the restoration on fake tensors and records which kernels it launches. They depend on the model,
dtype, tile and batch, and on the architecture of the GPU, which may be absent. The compiled kernels are in Triton's
disk cache. A record of each case in its subfolder `resshift_fast/` lists the files, so that a later start sees that all
are present or that the cache was cleared.

With RESSHIFT_FAST_PRECOMPILE=0 every kernel is compiled at its first launch instead.
"""

import hashlib
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any

import torch

import resshift_fast.ops  # noqa: F401 - registers the operators whose kernels are compiled
from resshift_fast import backends
from resshift_fast.backends import verification
from resshift_fast.core.cache import read_json
from resshift_fast.core.files import make_folder, write_atomically
from resshift_fast.models.catalog import ModelSpec

if TYPE_CHECKING:
    from resshift_fast.kernels.ahead import Emit, Outcome

VARIABLE = "RESSHIFT_FAST_PRECOMPILE"
FORMAT = 1
NOT_OF_THE_COMPILER = ("TRITON_CACHE_DIR", "TRITON_HOME", "TRITON_INTERPRET")

Progress = bool | Callable[[int, int], None]
Orders = tuple[tuple[tuple[str, torch.dtype], tuple[str, ...]], ...]


@dataclass(frozen=True)
class Case:
    """A set of kernels: those of a restoration, or those of the verification.

    Args:
        arch: compute capability of the GPU, 90 for 9.0.
        orders: (operator, dtype of its first argument) and the backends that are tried for it in turn.
        spec: the model of the restoration; None for the verification.
        dtype: of its networks.
        shape: (height, width) of its tiles in input pixels and the number of tiles in a batch.
        verified: (operator, dtype) that are verified.
        candidates: compile every configuration that autotuning would time, not only the default one.
    """

    arch: int
    orders: Orders
    spec: ModelSpec | None = None
    dtype: torch.dtype = torch.float32
    shape: tuple[int, int, int] = (0, 0, 0)
    verified: tuple[tuple[str, torch.dtype], ...] = ()
    candidates: bool = False

    @property
    def title(self) -> str:
        """A short description for users."""
        if self.spec is None:
            dtypes = ", ".join(sorted({_name(dtype) for _, dtype in self.verified}))
            return f"verification in {dtypes}"
        height, width, batch = self.shape
        tuning = ", all configurations" if self.candidates else ""
        return f"{self.spec.name} {_name(self.dtype)} {width}×{height} batch {batch}{tuning}"


def shapes(spec: ModelSpec, height: int, width: int, tile: int | None, batch_size: int) -> list[tuple[int, int, int]]:
    """(height, width, batch) of every batch in which an image of this size is restored.

    Args:
        spec: the model. height, width: sides of the image in input pixels. tile, batch_size: as in `Pipeline.__call__`.
    """
    rows, columns = spec.plan_tiles(height, width, tile)
    batches, rest = divmod(len(rows.starts) * len(columns.starts), batch_size)
    return [(rows.tile, columns.tile, batch) for batch in (batches and batch_size, rest) if batch]


def restoration_case(
    spec: ModelSpec,
    dtype: torch.dtype,
    shape: tuple[int, int, int],
    device: torch.device,
    arch: int,
    candidates: bool = False,
) -> Case:
    """The kernels of a restoration of one batch of tiles.

    Args:
        spec, dtype, shape, arch, candidates: as in `Case`.
        device: a CUDA device, with the index that tensors on it have; it may be absent.

    Raises:
        ValueError: for sides that are not multiples of the model's `pad_multiple`, or an empty batch.
    """
    height, width, batch = shape
    if batch < 1 or any(side < 1 or side % spec.pad_multiple for side in (height, width)):
        raise ValueError(
            f"{batch} tiles of {width}×{height}, expected at least one, of multiples of {spec.pad_multiple} "
            f"for {spec.name}"
        )
    return Case(arch, _orders(dtype, device), spec, dtype, shape, candidates=candidates)


def verification_case(dtype: torch.dtype, device: torch.device, arch: int) -> Case:
    """The kernels that `backends.verify` will launch: those without a stored verdict."""
    operators = backends.verified_operators(device, dtype)
    wanted = tuple(
        (operator.name, kind)
        for operator, kind in operators
        if "triton" in backends.order(operator.name, device, kind)
        and not verification.verdict(operator, "triton", device, kind)
    )
    return Case(arch, _orders(dtype, device), verified=wanted)


def _orders(dtype: torch.dtype, device: torch.device) -> Orders:
    return tuple(
        ((name, kind), backends.order(name, device, kind))
        for name, operator in sorted(backends.OPERATORS.items())
        if not operator.training
        for kind in dict.fromkeys((dtype, torch.float32))  # latents are float32
    )


def emit_jobs(emit: "Emit", cases: Sequence[Case]) -> dict[int, list]:
    """Emit the compile jobs of all cases, for `kernels.ahead.compile_jobs`; returns case index to its jobs."""
    from resshift_fast.kernels.ahead import job_of

    jobs: dict[int, list] = {}
    for index, case in enumerate(cases):
        known: dict[Any, None] = {}

        def keep(launches: list, case: Case = case, known: dict = known) -> None:
            for launch in launches:
                job = job_of(launch, case.arch)
                if job not in known:
                    known[job] = None
                    emit(job)

        _launch_restoration(case, keep) if case.spec else _launch_verification(case, keep)
        jobs[index] = list(known)
    return jobs


def _recording(case: Case, keep: Callable[[list], None]) -> Any:
    """Mode in which operators run the case's backends and `keep` is called with their launches."""
    from resshift_fast.restoration.fake_gpu import FusedPath

    class Recording(FusedPath):
        def launched(self, name: str, function: Any, args: tuple, result: Any, launches: list) -> None:
            keep(launches)

        def plain(self, operator: str, args: tuple) -> None:
            """Do nothing: plain PyTorch launches none of these kernels."""

    orders = dict(case.orders)
    return Recording(lambda operator, dtype: orders.get((operator, dtype), ()))


def _launch_restoration(case: Case, keep: Callable[[list], None]) -> None:
    from resshift_fast.kernels.tuning import enumerating
    from resshift_fast.restoration.fake_gpu import fake_call, fake_restoration

    assert case.spec is not None
    height, width, batch = case.shape
    with backends.use_backend("auto"), fake_restoration(case.spec, case.dtype, case.arch) as restoration:
        denoiser = restoration.chain.denoiser
        denoiser.denoise = _once(denoiser.denoise)  # all steps launch the same kernels
        arguments = fake_call(restoration, (height, width), batch)
        restoration.prepare()
        with _recording(case, keep), enumerating() if case.candidates else nullcontext():
            restoration(*arguments)


def _once(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Cache the results of `function` by the layout of its arguments."""
    from torch.utils._pytree import tree_leaves

    results: dict[tuple, torch.Tensor] = {}

    def call(*args: Any) -> torch.Tensor:
        key = tuple((x.shape, x.stride(), x.storage_offset() * x.element_size() % 16) for x in tree_leaves(args))
        if key not in results:
            results[key] = function(*args)
        return results[key]

    return call


def _launch_verification(case: Case, keep: Callable[[list], None]) -> None:
    """Record the launches of the verification on CPU tensors.

    Launchers only read the layout of tensors, and fake tensors would take longer.
    """
    from resshift_fast.kernels.launch import record
    from resshift_fast.kernels.tuning import targeting

    for name, dtype in case.verified:
        kernel = backends.kernel(name, "triton")
        with torch.no_grad(), targeting(case.arch), record() as launches:
            for args in backends.OPERATORS[name].examples(torch.device("cpu"), dtype):
                if kernel.unsupported(*args) is None:
                    kernel.function(*args)
        keep(launches)


@dataclass(frozen=True)
class Record:
    """The stored record of a case whose kernels were compiled.

    Args:
        title: of the case. arch: its architecture. triton: the version that compiled it.
        sources: hash of the versions and sources that it is valid for.
        kernels: number of its kernels. files: of those that compiled, relative to Triton's cache folder.
    """

    title: str
    arch: int
    triton: str
    sources: str
    kernels: int
    files: tuple[str, ...]

    @property
    def present(self) -> int:
        """Number of its files that are still in the cache."""
        folder = cache_folder()
        return sum((folder / file).exists() for file in self.files)

    @property
    def is_current(self) -> bool:
        """Whether it is valid for the installed versions and sources."""
        return self.sources == _sources()


def records() -> list[Record]:
    """The records of all cases, including those of other versions and sources."""
    found = [_read(path) for path in sorted(_records_folder().glob("*.json"))]
    return [record for record in found if record is not None]


def is_compiled(case: Case) -> bool:
    """Whether all of a case's kernels that can be compiled are in Triton's disk cache."""
    record = _read(_records_folder() / f"{_key(case)}.json")
    return record is not None and record.present == len(record.files)


def _read(path: Path) -> Record | None:
    try:
        content: Any = read_json(path)
        if content.pop("format") == FORMAT and all(isinstance(file, str) for file in content["files"]):
            return Record(**{**content, "files": tuple(content["files"])})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # missing, or not of this format
        pass
    return None


def _write(case: Case, jobs: Sequence, outcomes: "dict[Any, Outcome]") -> None:
    import triton

    files = sorted(outcomes[job].file for job in jobs if outcomes[job].file)
    record = Record(case.title, case.arch, triton.__version__, _sources(), len(jobs), tuple(files))
    make_folder(_records_folder())
    text = json.dumps({"format": FORMAT, **asdict(record)}, ensure_ascii=False)
    write_atomically(_records_folder() / f"{_key(case)}.json", text.encode())


def cache_folder() -> Path:
    """Triton's cache folder."""
    from resshift_fast.kernels import ahead

    return ahead.cache_folder()


def _records_folder() -> Path:
    return cache_folder() / "resshift_fast"


def _key(case: Case) -> str:
    compiler = sorted((k, v) for k, v in os.environ.items() if k.startswith("TRITON_") and k not in NOT_OF_THE_COMPILER)
    return hashlib.sha256(f"{_sources()} {compiler} {case!r}".encode()).hexdigest()[:32]


@cache
def _sources() -> str:
    """Hash of what the kernels and their compilation depend on: versions and the sources of this package."""
    import triton

    digest = hashlib.sha256(f"{triton.__version__} {torch.__version__} {sys.version_info}".encode())
    kernels = find_spec("resshift_fast.kernels")
    assert kernels is not None and kernels.submodule_search_locations is not None
    folders = [Path(__file__).parents[1], *map(Path, kernels.submodule_search_locations)]
    for path in sorted(path for folder in folders for path in folder.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def compile_cases(cases: Sequence[Case], progress: Progress = True, workers: int | None = None) -> "list[Outcome]":
    """Compile the kernels of these cases that are not in Triton's disk cache, and store a record of each case.

    Args:
        cases: what to compile for.
        progress: True shows a bar on a terminal; a function is called with (done, known) kernels.
        workers: processes that compile; None takes one per core.

    Returns:
        The outcome for every kernel, including those that were in the cache.

    Raises:
        kernels.ahead.CompilationError: if the compiling processes fail.
        OSError: if the cache cannot be written.
    """
    from resshift_fast.kernels.ahead import compile_jobs

    with _reported(progress) as advance:
        outcomes, jobs = compile_jobs(emit_jobs, tuple(cases), workers=workers, advance=advance)
    for index, case in enumerate(cases):
        _write(case, jobs[index], outcomes)
    return list(outcomes.values())


@contextmanager
def _reported(progress: Progress) -> Iterator[Callable[[int, int], None] | None]:
    """Context manager whose value is the function to call with (done, known), or None."""
    if progress is not True:
        yield progress or None
        return
    from tqdm import tqdm

    with tqdm(total=1, desc="compiling kernels", unit="kernel", leave=False, disable=None) as bar:

        def advance(done: int, known: int) -> None:
            bar.total = known
            bar.update(done - bar.n)

        yield advance


def target(device: torch.device) -> tuple[torch.device, int] | None:
    """(device with index, compute capability) to compile for; None if `device` runs no kernels of Triton on CUDA."""
    if device.type != "cuda" or not torch.cuda.is_available() or torch.version.hip:
        return None
    from resshift_fast.kernels.tuning import architecture

    device = torch.empty(0, device=device).device  # with the index that tensors on it have
    return device, architecture(device)


def check() -> None:
    """Raise ValueError, with the reason, if kernels can't be compiled ahead of time here."""
    if find_spec("triton") is None:
        raise ValueError("kernels are compiled with Triton, which is not installed; pip install triton")
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise ValueError("kernels are interpreted, not compiled, with TRITON_INTERPRET=1; unset it")
    if not hasattr(os, "fork") or not sys.executable:
        raise ValueError("kernels are compiled in forked processes, which this platform does not have; use Linux")


def _is_on() -> bool:
    if os.environ.get(VARIABLE) == "0":
        return False
    try:
        check()
    except ValueError:
        return False
    return True


_prepared: set[tuple] = set()
_preparing = RLock()


def prepare_verification(device: torch.device, dtype: torch.dtype, progress: Progress = False) -> None:
    """Compile what `backends.verify(device, dtype)` will launch on a GPU; no effect on other devices."""
    _prepare((device, dtype, backends.preferred()), progress, lambda *on: [verification_case(dtype, *on)], device)


def prepare_restoration(
    spec: ModelSpec,
    device: torch.device,
    dtype: torch.dtype,
    shapes: Iterable[tuple[int, int, int]],
    progress: Progress = False,
    candidates: bool = False,
) -> None:
    """Compile what restorations of these batches will launch on a GPU; no effect on other devices.

    Args:
        spec, dtype: the model, and the dtype of its networks.
        device: where they run.
        shapes: (height, width, batch) of the tiles.
        progress: as in `compile_cases`.
        candidates: as in `Case`, for restorations that will be autotuned.
    """
    wanted = tuple(sorted(set(shapes)))
    key = (spec, device, dtype, wanted, candidates, backends.preferred())

    def make(device: torch.device, arch: int) -> list[Case]:
        return [restoration_case(spec, dtype, shape, device, arch, candidates) for shape in wanted]

    _prepare(key, progress, make, device)


def _prepare(key: tuple, progress: Progress, make: Callable[..., list[Case]], device: torch.device) -> None:
    """Compile what is missing, once per process; after a failure, which is a warning, first launches compile."""
    if key in _prepared or not _is_on() or (on := target(device)) is None:
        return
    from resshift_fast.kernels.ahead import CompilationError

    with _preparing:
        if key in _prepared:
            return
        _prepared.add(key)
        cases = [case for case in make(*on) if case.spec or case.verified]
        cases = [case for case in cases if _uses_triton(case) and not is_compiled(case)]
        if not cases:
            return
        try:
            compile_cases(cases, progress)
        except (CompilationError, OSError) as error:
            warnings.warn(
                f"kernels could not be compiled ahead of time ({' '.join(str(error).split())[:200]}); each is compiled "
                f"at its first launch; set {VARIABLE}=0 to skip the attempt",
                RuntimeWarning,
                stacklevel=4,
            )


def _uses_triton(case: Case) -> bool:
    return any("triton" in order for _, order in case.orders)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
