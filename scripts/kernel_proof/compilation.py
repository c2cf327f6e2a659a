"""Compiles a list of jobs and checks the compiler's output.

Must be imported in a process without TRITON_INTERPRET, because kernels are decorated for the interpreter otherwise.
"""

import os
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

import torch

from resshift_fast.kernels import ahead
from resshift_fast.kernels.ahead import Job

from .addresses import wrapping_addresses
from .machine_code import MachineCode, plain_tf32_dots, unserved_dots


@dataclass(frozen=True)
class Compiled:
    """The result of a job.

    Args:
        code: the machine code, None if there is none.
        violations: (limit, text) of violations that the compiler's output shows.
        seconds: of the compilation.
    """

    code: MachineCode | None
    violations: list[tuple[str, str]] = field(default_factory=list)
    seconds: float = 0.0


def compile_job(job: Job) -> Compiled:
    """Compile one job and check the result."""
    start = time.perf_counter()
    try:
        compiled = ahead.compile_job(job)
    except Exception as error:  # whatever the compiler can't do is reported with the kernel's name
        return Compiled(None, [("compiler", f"{type(error).__name__}: {str(error).strip()[-2000:]}")])
    code = MachineCode.read(compiled.asm["cubin"], compiled.metadata.shared)
    ttir = str(compiled.asm["ttir"])
    violations = [("address", text) for text in wrapping_addresses(ttir)]
    violations += [("tf32", text) for text in plain_tf32_dots(ttir)]
    violations += [("matrix", text) for text in unserved_dots(ttir, code)]
    return Compiled(code, violations, time.perf_counter() - start)


def compile_jobs(jobs: Iterable[Job], workers: int, cache: Path | None = None) -> Iterator[tuple[Job, Compiled]]:
    """Compile jobs in parallel processes; yields each when it is done.

    Args:
        jobs: what to compile.
        workers: number of processes; with 1, this process compiles.
        cache: Triton's cache folder; None compiles everything again.
    """
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise RuntimeError("kernels can't be compiled in a process with TRITON_INTERPRET=1")
    with tempfile.TemporaryDirectory(prefix="kernel_proof_") as temporary:
        cache = str(cache or temporary)
        if workers == 1:
            _prepare(cache)
            yield from ((job, compile_job(job)) for job in jobs)
            return
        with ProcessPoolExecutor(workers, get_context("spawn"), initializer=_prepare, initargs=(cache,)) as pool:
            futures = {pool.submit(compile_job, job): job for job in jobs}
            for future in as_completed(futures):
                yield futures[future], future.result()


def _prepare(cache: str) -> None:
    """Set up a process that compiles."""
    os.environ["TRITON_CACHE_DIR"] = cache
    torch.set_num_threads(1)
