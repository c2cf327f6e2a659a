"""Compile ahead of time what a launcher would start, exactly as Triton's JIT would on that GPU.

Must be imported in a process without TRITON_INTERPRET: the interpreter takes the place of the compiler for good.
"""

import importlib
import os
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from .addresses import wrapping_addresses
from .machine_code import MachineCode, plain_tf32_dots, unserved_dots

FP_FUSION = True  # a·b + c in one rounding, where Triton may choose

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


@dataclass(frozen=True)
class Compiled:
    """What came out of a job.

    Args:
        code: the machine code, None if there is none.
        violations: (limit, text) of what the compiler's own output shows to be wrong.
        seconds: of compiling.
    """

    code: MachineCode | None
    violations: list[tuple[str, str]] = field(default_factory=list)
    seconds: float = 0.0


def job_of(launch: Any, arch: int) -> Job:
    """The job of a recorded `resshift_fast.kernels.launch.Launch`."""
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


def compile_job(job: Job) -> Compiled:
    """Compile one job and look at the result."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = getattr(importlib.import_module(job.module), job.kernel)
    source = ASTSource(
        fn=kernel,
        signature=dict(job.signature),
        constexprs=dict(job.constants),
        attrs={(index,): [["tt.divisibility", 16]] for index in job.aligned},
    )
    options = {"num_warps": job.num_warps, "num_stages": job.num_stages, "enable_fp_fusion": FP_FUSION}
    options |= {"maxnreg": job.maxnreg} if job.maxnreg else {}
    start = time.perf_counter()
    try:
        compiled = triton.compile(source, target=GPUTarget("cuda", job.arch, 32), options=options)
    except Exception as error:  # whatever the compiler can't do is reported with the kernel's name
        return Compiled(None, [("compiler", f"{type(error).__name__}: {str(error).strip()[-2000:]}")])
    code = MachineCode.read(compiled.asm["cubin"], compiled.metadata.shared)
    ttir = str(compiled.asm["ttir"])
    violations = [("address", text) for text in wrapping_addresses(ttir)]
    violations += [("tf32", text) for text in plain_tf32_dots(ttir)]
    violations += [("matrix", text) for text in unserved_dots(ttir, code)]
    return Compiled(code, violations, time.perf_counter() - start)


def compile_jobs(jobs: Iterable[Job], workers: int, cache: Path | None = None) -> Iterator[tuple[Job, Compiled]]:
    """Compile jobs in so many processes; yields each as it is done.

    Args:
        jobs: what to compile.
        workers: number of processes; one is this process itself.
        cache: folder in which Triton finds and keeps what it compiled; None compiles everything anew.
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
    os.environ["TRITON_DEFAULT_FP_FUSION"] = str(int(FP_FUSION))
    torch.set_num_threads(1)
