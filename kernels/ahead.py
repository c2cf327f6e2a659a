"""Kernels compiled before their first launch, in parallel processes, exactly as Triton's JIT would compile them.

A recorded launch becomes a `Job`: all that its compilation depends on. `compile_job` hands Triton's own JIT stand-ins
of the arguments and a driver that only knows the architecture, so that types, attributes, options and the key of the
disk cache are its own; the launch later finds its kernel there. It never looks for a GPU.

`compile_jobs` does so in processes that are forked from a fresh one, which alone imports torch and Triton. That one is
not made by `multiprocessing`, which would run a script without a main guard a second time.
"""

import importlib
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from resshift_fast.kernels.launch import Launch, compiler_options, hash_callees_first

_POINTERS = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float64: "*fp64",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.uint8: "*u8",
    torch.bool: "*u1",
}
_DTYPES = {kind: dtype for dtype, kind in _POINTERS.items()}


@dataclass(frozen=True)
class Job:
    """Everything a compiled kernel depends on; equal jobs are compiled once.

    Args:
        module, kernel: where the kernel is found.
        signature: (parameter, Triton type) of every parameter, "constexpr" for a constant.
        constants: (parameter, value) of the constants.
        aligned: indices of the parameters that are divisible by 16.
        num_warps, num_stages, maxnreg: how Triton compiles it.
        arch: compute capability, 90 for 9.0.
    """

    module: str
    kernel: str
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, Any], ...]
    aligned: tuple[int, ...]
    num_warps: int
    num_stages: int
    arch: int
    maxnreg: int | None = None


def job_of(launch: Launch, arch: int) -> Job:
    """The job of a recorded launch, in a process without Triton's interpreter.

    Raises:
        TypeError: for an argument that no parameter takes, or that is neither tensor, number nor None.
    """
    kernel = launch.kernel
    given = dict(zip(kernel.arg_names, launch.arguments, strict=False)) | dict(launch.constants)
    maxnreg = given.pop("maxnreg", None)  # an option that Triton takes beside the parameters
    signature, constants, aligned = [], [], []
    for index, parameter in enumerate(kernel.params):
        name = parameter.name
        value = given.pop(name) if name in given else parameter.default
        kind, is_aligned = specialize(parameter, value)
        signature.append((name, kind))
        if kind == "constexpr":
            constants.append((name, value))
        if is_aligned:
            aligned.append(index)
    if given:
        raise TypeError(f"{kernel.fn.__name__} has no parameter {', '.join(given)}")
    return Job(
        kernel.fn.__module__,
        kernel.fn.__name__,
        tuple(signature),
        tuple(constants),
        tuple(aligned),
        launch.num_warps,
        launch.num_stages,
        arch,
        maxnreg,
    )


def specialize(parameter: Any, value: Any) -> tuple[str, bool]:
    """Triton's type of an argument, and whether the compiler may assume that 16 divides it (or its address).

    These are the JIT's rules: None and the integer 1 become constants, integers are 32-bit if they fit.
    """
    if parameter.is_constexpr or value is None:
        return "constexpr", False
    specializes, aligns = not parameter.do_not_specialize, not parameter.do_not_specialize_on_alignment
    if isinstance(value, torch.Tensor):
        # Allocations start at multiples of 256 bytes; what is left is the offset of a view.
        offset = value.storage_offset() * value.element_size()
        return _POINTERS[value.dtype], specializes and aligns and offset % 16 == 0
    if isinstance(value, bool):
        return parameter.annotation_type or "u1", False
    if isinstance(value, float):
        return parameter.annotation_type or "fp32", False
    if isinstance(value, int):
        if value == 1 and specializes:
            return "constexpr", False
        kind = "i32" if -(2**31) <= value < 2**31 else "i64" if value < 2**63 else "u64"
        return parameter.annotation_type or kind, specializes and aligns and value % 16 == 0
    raise TypeError(f"parameter {parameter.name} got a {type(value).__name__}; tensors, numbers and None can be passed")


class _Pointer:
    """What Triton asks of a tensor."""

    def __init__(self, dtype: torch.dtype, aligned: bool):
        self.dtype, self._address = dtype, 0 if aligned else 8

    def data_ptr(self) -> int:
        return self._address

    @staticmethod
    def ptr_range() -> int:
        return 0  # asked for on other vendors' GPUs only


def _stand_in(kind: str, aligned: bool) -> Any:
    """A value that Triton specializes to this type."""
    if kind in _DTYPES:
        return _Pointer(_DTYPES[kind], aligned)
    if kind.startswith("fp") or kind == "bf16":
        return 0.5
    if kind == "u1":
        return True
    large = {"i64": 2**32, "u64": 2**63}.get(kind, 0)
    return large + (16 if aligned else 17)


class _Driver:
    """Stands in Triton's driver's place where a GPU of this architecture is only to be compiled for."""

    def __init__(self, arch: int):
        from triton.backends.compiler import GPUTarget

        self._arch, self._target = arch, GPUTarget("cuda", arch, 32)

    def get_current_target(self) -> Any:
        return self._target

    def get_current_device(self) -> int:
        return self._arch  # the JIT keeps a target for each device

    def get_current_stream(self, device: int) -> int:
        return 0


@cache
def _driver(arch: int) -> _Driver:
    return _Driver(arch)


def target(arch: int) -> None:
    """Have this process compile for `arch`; it can launch no kernel from then on."""
    from triton.runtime.driver import driver

    driver.set_active(_driver(arch))


def compile_job(job: Job) -> Any:
    """The compiled kernel of a job, from Triton's disk cache or anew; the process can launch no kernel from then on.

    Raises:
        RuntimeError: in a process with Triton's interpreter.
        Exception: whatever Triton's compiler raises.
    """
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise RuntimeError("kernels can't be compiled in a process with TRITON_INTERPRET=1")
    target(job.arch)
    kernel = getattr(importlib.import_module(job.module), job.kernel)
    hash_callees_first(kernel)
    constants = dict(job.constants)
    arguments = {
        name: constants[name] if name in constants else _stand_in(kind, index in job.aligned)
        for index, (name, kind) in enumerate(job.signature)
    }
    options = compiler_options(job.num_warps, job.num_stages)
    maxnreg = {"maxnreg": job.maxnreg} if job.maxnreg else {}
    return kernel.run(grid=(1,), warmup=True, **arguments, **options, **maxnreg)


def cache_folder() -> Path:
    """Where Triton keeps what it compiles."""
    from triton import knobs

    return Path(knobs.cache.dir)


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class Outcome:
    """What came of a job.

    Args:
        kernel: its name.
        file: of the compiled kernel, below `cache_folder()`; "" if there is none.
        compiled: whether it was compiled now, not found.
        seconds: wall time. cpu_seconds: of the processor, assembler included.
        error: why there is none.
    """

    kernel: str
    file: str = ""
    compiled: bool = False
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    error: str = ""


class CompilationError(RuntimeError):
    """The processes that compile could not do their work; one line."""


Emit = Callable[[Job], None]


def emit_all(emit: Emit, jobs: Iterable[Job]) -> None:
    """A source of jobs for `compile_jobs`: those that are given."""
    for job in jobs:
        emit(job)


def compile_jobs(
    source: Callable[..., Any],
    *arguments: Any,
    workers: int | None = None,
    advance: Callable[[int, int], None] | None = None,
    environment: Mapping[str, str] | None = None,
) -> tuple[dict[Job, Outcome], Any]:
    """Compile in parallel processes into Triton's disk cache.

    They end with this call, however it ends. A job whose compilation fails only fails its own outcome.

    Args:
        source: a function of a module, called as `source(emit, *arguments)` in a fresh process, which hands every
            job to `emit` as soon as it is known; equal jobs count once.
        arguments: are pickled.
        workers: processes that compile; None takes one a core.
        advance: is called with (done, jobs known so far) after each.
        environment: variables in which the processes differ from this one.

    Returns:
        (what came of every job, what the source returned).

    Raises:
        CompilationError: if a process dies, or the source fails.
        ValueError: for fewer workers than 1.
    """
    workers = available_cores() if workers is None else workers
    if workers < 1:
        raise ValueError(f"workers is {workers}, expected at least 1")
    request = pickle.dumps((source, arguments, workers))
    outcomes: dict[Job, Outcome] = {}
    with TemporaryDirectory(prefix="resshift_fast_") as scratch:  # also takes what an assembler that is killed leaves
        log = Path(scratch) / "log"
        with open(log, "wb") as errors:
            process = _start(errors, {**os.environ, **(environment or {}), "TMPDIR": scratch})
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(request)
            process.stdin.close()
            while isinstance(message := pickle.load(process.stdout), _Done):
                outcomes[message.job] = message.outcome
                if advance is not None:
                    advance(len(outcomes), message.known)
            if isinstance(message, _Failed):
                raise CompilationError(message.reason)
        except (EOFError, OSError, pickle.UnpicklingError):
            _end(process)
            lines = log.read_text(errors="replace").strip().splitlines()
            raise CompilationError(lines[-1] if lines else f"a process ended with {process.returncode}") from None
        finally:
            _end(process)
    return outcomes, message


def _start(errors: Any, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """The process that serves `compile_jobs`, in a session of its own: Ctrl-C is answered on this side alone."""
    # The CUDA driver is out of its reach, as forked processes could not use it; nor do they interpret kernels.
    environment = {**environment, "CUDA_VISIBLE_DEVICES": ""}
    environment.pop("TRITON_INTERPRET", None)
    path = [os.path.abspath(folder) for folder in sys.path]
    command = f"import sys; sys.path[:] = {path!r}; from {__name__} import serve; serve()"
    return subprocess.Popen(
        [sys.executable, "-c", command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        env=environment,
        start_new_session=True,
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and those that it started, which may be left where it is gone."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for pipe in (process.stdout, process.stdin):
        if pipe is not None:
            pipe.close()


@dataclass(frozen=True)
class _Done:
    """A job is compiled, of those that are known so far."""

    job: Job
    outcome: Outcome
    known: int


@dataclass(frozen=True)
class _Failed:
    reason: str


def serve() -> None:
    """Answer one request of `compile_jobs` on this process's stdin: `_Done` for each job, then the source's result."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever else is printed
    source, arguments, workers = pickle.load(sys.stdin.buffer)

    def answer(message: Any) -> None:
        pickle.dump(message, answers)
        answers.flush()

    try:
        answer(_compile_all(source, arguments, workers, answer, answers.fileno()))
    except BrokenPipeError:
        pass  # nobody waits for it any more
    except Exception as error:
        answer(_Failed(_one_line(error)))


def _compile_all(
    source: Callable[..., Any], arguments: tuple, workers: int, answer: Callable[[Any], None], pipe: int
) -> Any:
    """Compile all jobs of a source, answering for each; returns what the source did. `pipe` is that of the answers."""
    from concurrent.futures import ProcessPoolExecutor, as_completed
    from multiprocessing import get_context

    from triton.runtime.cache import triton_key

    triton_key()  # reads all of Triton, once for all processes
    torch.set_num_threads(1)
    # Answers end when this process does, so no other one may hold their pipe open.
    with ProcessPoolExecutor(workers, get_context("fork"), initializer=os.close, initargs=(pipe,)) as pool:
        pool.submit(os.getpid).result()  # forks while no thread runs here and no mode is on
        pool.submit(_build_utilities)
        futures: dict[Job, Any] = {}

        def emit(job: Job) -> None:
            if job not in futures:
                futures[job] = pool.submit(_outcome, job)

        try:
            result = source(emit, *arguments)
            jobs = {future: job for job, future in futures.items()}
            for future in as_completed(jobs):
                answer(_Done(jobs[future], future.result(), len(jobs)))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return result


def _outcome(job: Job) -> Outcome:
    """Compile a job, and what its launch needs beside."""
    from triton import knobs

    hits = []
    knobs.compilation.listener = lambda cache_hit, **_: hits.append(cache_hit)
    start, cpu = time.perf_counter(), _cpu_seconds()
    try:
        compiled = compile_job(job)
        _build_launcher(compiled)
    except Exception as error:  # the launch itself will say so where it belongs
        return Outcome(job.kernel, error=_one_line(error))
    file = next(path for name, path in compiled.metadata_group.items() if name.endswith(".json"))
    return Outcome(
        job.kernel,
        os.path.relpath(file, cache_folder()),
        not all(hits),
        time.perf_counter() - start,
        _cpu_seconds() - cpu,
    )


def _build_utilities() -> None:
    """Build the C functions with which Triton loads kernels, where there is a driver library and a C compiler."""
    from triton.backends.nvidia import driver

    with suppress(Exception):  # else left to the first launch
        driver.CudaUtils()


def _build_launcher(compiled: Any) -> None:
    """Build the C function that starts a kernel where Triton needs one for each signature, as up to version 3.6."""
    from triton.backends.nvidia import driver

    if hasattr(driver, "make_launcher"):
        with suppress(Exception):  # without a driver library or a C compiler: left to the first launch
            driver.CudaLauncher(compiled.src, compiled.metadata)


def _cpu_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
