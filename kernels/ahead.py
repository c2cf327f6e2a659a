"""Ahead-of-time compilation in parallel processes, with the same result as Triton's JIT.

A recorded launch becomes a `Job` with everything its compilation depends on. `compile_job` calls Triton's JIT with
placeholder arguments and a driver that only reports an architecture. Types, attributes, options and the key in the disk
cache are therefore the JIT's own, and the later launch finds its kernel there. No GPU is used.

`compile_jobs` compiles in processes forked from a fresh one, so that torch and Triton are imported once. That process
is not created by `multiprocessing`, which would run a script without a main guard a second time.
"""

import importlib
import os
import pickle
import select
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
from threading import Thread
from typing import Any

import torch

from resshift_fast.core.devices import available_cores
from resshift_fast.kernels.dependents import launch_options
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
    """Everything that a compiled kernel depends on; equal jobs are compiled once.

    Args:
        module, kernel: names of the kernel's module and function.
        signature: (parameter, Triton type) of every parameter, "constexpr" for a constant.
        constants: (parameter, value) of the constants.
        aligned: indices of the parameters that are divisible by 16.
        num_warps, num_stages, maxnreg: compiler options.
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
    """The job for a recorded launch; not in a process with Triton's interpreter.

    Raises:
        TypeError: for an argument without a parameter, or that is neither a tensor, a scalar nor None.
    """
    kernel = launch.kernel
    given = dict(zip(kernel.arg_names, launch.arguments, strict=False)) | dict(launch.constants)
    maxnreg = given.pop("maxnreg", None)  # a compiler option that is passed like a parameter
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
    """Triton's type of an argument, and whether the compiler may assume that it (or its address) is divisible by 16.

    The rules are the JIT's: None and the integer 1 become constants, and integers are 32-bit if they fit.
    """
    if parameter.is_constexpr or value is None:
        return "constexpr", False
    specializes, aligns = not parameter.do_not_specialize, not parameter.do_not_specialize_on_alignment
    if isinstance(value, torch.Tensor):
        # Allocations are aligned to 256 bytes, so that only the offset of a view matters.
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
    raise TypeError(f"parameter {parameter.name} got a {type(value).__name__}; expected a tensor, a scalar or None")


class _Pointer:
    """Placeholder for a tensor, with what Triton asks of one."""

    def __init__(self, dtype: torch.dtype, aligned: bool):
        self.dtype, self._address = dtype, 0 if aligned else 8

    def data_ptr(self) -> int:
        return self._address

    @staticmethod
    def ptr_range() -> int:
        return 0  # only asked for on GPUs of other vendors


def _stand_in(kind: str, aligned: bool) -> Any:
    """A placeholder that Triton specializes to this type."""
    if kind in _DTYPES:
        return _Pointer(_DTYPES[kind], aligned)
    if kind.startswith("fp") or kind == "bf16":
        return 0.5
    if kind == "u1":
        return True
    large = {"i64": 2**32, "u64": 2**63}.get(kind, 0)
    return large + (16 if aligned else 17)


class _Driver:
    """Replaces Triton's driver to compile for an architecture without a GPU."""

    def __init__(self, arch: int):
        from triton.backends.compiler import GPUTarget

        self._arch, self._target = arch, GPUTarget("cuda", arch, 32)

    def get_current_target(self) -> Any:
        return self._target

    def get_current_device(self) -> int:
        return self._arch  # the JIT caches a target for each device

    def get_current_stream(self, device: int) -> int:
        return 0


@cache
def _driver(arch: int) -> _Driver:
    return _Driver(arch)


def target(arch: int) -> None:
    """Make this process compile for `arch`. It cannot launch kernels afterwards."""
    from triton.runtime.driver import driver

    driver.set_active(_driver(arch))


def compile_job(job: Job) -> Any:
    """Compile a job, or load it from Triton's disk cache. The process cannot launch kernels afterwards.

    Raises:
        RuntimeError: in a process with Triton's interpreter.
        Exception: errors of Triton's compiler.
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
    options = compiler_options(job.num_warps, job.num_stages) | launch_options(kernel, job.arch)
    maxnreg = {"maxnreg": job.maxnreg} if job.maxnreg else {}
    return kernel.run(grid=(1,), warmup=True, **arguments, **options, **maxnreg)


def cache_folder() -> Path:
    """The folder of Triton's disk cache."""
    from triton import knobs

    return Path(knobs.cache.dir)


@dataclass(frozen=True)
class Outcome:
    """Result of a job.

    Args:
        kernel: its name.
        file: path of the compiled kernel in `cache_folder()`; "" after an error.
        compiled: whether it was compiled now; False if it was in the cache.
        seconds: wall time. cpu_seconds: CPU time, including the assembler's.
        error: why the compilation failed; "" if it did not.
    """

    kernel: str
    file: str = ""
    compiled: bool = False
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    error: str = ""


class CompilationError(RuntimeError):
    """The compiling processes failed; one line."""


Emit = Callable[[Job], None]


def emit_all(emit: Emit, jobs: Iterable[Job]) -> None:
    """A source for `compile_jobs` that emits the given jobs."""
    for job in jobs:
        emit(job)


def compile_jobs(
    source: Callable[..., Any],
    *arguments: Any,
    workers: int | None = None,
    advance: Callable[[int, int], None] | None = None,
    environment: Mapping[str, str] | None = None,
) -> tuple[dict[Job, Outcome], Any]:
    """Compile into Triton's disk cache in parallel processes, which end when this call or its process does.

    Args:
        source: a function of a module, called as `source(emit, *arguments)` in a fresh process. It passes each job to
            `emit` as soon as it is known; equal jobs count once.
        arguments: picklable arguments of the source.
        workers: number of compiling processes; None for one per core.
        advance: called with (number of jobs done, number of jobs known) after each job.
        environment: variables to set in the processes.

    Returns:
        (outcome of every job, return value of the source). If a job's compilation fails, its outcome says why.

    Raises:
        CompilationError: if a process dies or the source fails.
        ValueError: for fewer workers than 1.
    """
    workers = available_cores() if workers is None else workers
    if workers < 1:
        raise ValueError(f"workers is {workers}, expected at least 1")
    request = pickle.dumps((source, arguments, workers))
    outcomes: dict[Job, Outcome] = {}
    with TemporaryDirectory(prefix="resshift_fast_") as scratch:  # also removes the files of a killed assembler
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
    """Start the process that serves `compile_jobs`, in its own session, so that Ctrl-C reaches only this process."""
    # Hide the GPUs, since forked processes cannot use an initialized CUDA driver; and do not interpret kernels.
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
    """Kill a process and its children, which may outlive it."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for pipe in (process.stdout, process.stdin):
        if pipe is not None:
            pipe.close()


@dataclass(frozen=True)
class _Done:
    """A job is done; `known` is the number of jobs known so far."""

    job: Job
    outcome: Outcome
    known: int


@dataclass(frozen=True)
class _Failed:
    reason: str


def serve() -> None:
    """Answer the request of `compile_jobs` on stdin: `_Done` for each job, then the source's return value."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # other output goes to stderr
    source, arguments, workers = pickle.load(sys.stdin.buffer)

    def answer(message: Any) -> None:
        pickle.dump(message, answers)
        answers.flush()

    try:
        answer(_compile_all(source, arguments, workers, answer, answers.fileno()))
    except BrokenPipeError:
        pass  # the parent has gone
    except Exception as error:
        answer(_Failed(_one_line(error)))


def _compile_all(
    source: Callable[..., Any], arguments: tuple, workers: int, answer: Callable[[Any], None], pipe: int
) -> Any:
    """Compile and answer all jobs of a source; returns the source's value. `pipe`: descriptor of the answers."""
    from concurrent.futures import ProcessPoolExecutor, as_completed
    from multiprocessing import get_context

    from triton.runtime.cache import triton_key

    triton_key()  # hashes all of Triton, once for all processes
    torch.set_num_threads(1)
    # No other process may hold the pipe open: its end tells the parent that this process has ended.
    with ProcessPoolExecutor(workers, get_context("fork"), initializer=os.close, initargs=(pipe,)) as pool:
        pool.submit(os.getpid).result()  # forks before any thread or mode is started here
        Thread(target=_end_unread, args=(pipe,), daemon=True).start()
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


def _end_unread(pipe: int) -> None:
    """Kill this session's processes when nothing can read from a pipe any more, as when the parent was killed."""
    poll = select.poll()
    poll.register(pipe, 0)  # for errors alone, of which this is one
    poll.poll()
    os.killpg(0, signal.SIGKILL)


def _outcome(job: Job) -> Outcome:
    """Compile a job and the launcher that Triton needs for it."""
    from triton import knobs

    hits = []
    knobs.compilation.listener = lambda cache_hit, **_: hits.append(cache_hit)
    start, cpu = time.perf_counter(), _cpu_seconds()
    try:
        compiled = compile_job(job)
        _build_launcher(compiled)
    except Exception as error:  # the launch will raise it again
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
    """Build Triton's C functions that load kernels, if there is a driver library and a C compiler."""
    from triton.backends.nvidia import driver

    with suppress(Exception):  # otherwise the first launch builds them
        driver.CudaUtils()


def _build_launcher(compiled: Any) -> None:
    """Build the C launcher of a kernel's signature, which Triton needs up to version 3.6."""
    from triton.backends.nvidia import driver

    if hasattr(driver, "make_launcher"):
        with suppress(Exception):  # no driver library or C compiler: the first launch builds it
            driver.CudaLauncher(compiled.src, compiled.metadata)


def _cpu_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
