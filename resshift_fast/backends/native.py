"""The compiled libraries of csrc/: loading them, and why one is missing.

`_cpu.abi3.so` in the package's folder registers `torch.ops.resshift_fast_cpu.*`, and `_cuda.abi3.so` the same for CUDA.
Both are built against LibTorch's stable ABI and work with every torch from 2.10 on. RESSHIFT_FAST_CPU_LIBRARY and
RESSHIFT_FAST_CUDA_LIBRARY name other files to load, such as builds with sanitizers for tests.
"""

import ctypes
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

LIBRARIES = ("cpu", "cuda")
FOLDER = Path(__file__).parents[1]
INSTRUCTION_SETS = ("portable", "avx2", "avx512", "avx512_bf16", "neon")  # in the order of csrc/cpu/isa.h


def path(name: str) -> Path:
    """Path of the library "cpu" or "cuda", which exists if it was built."""
    if other := os.environ.get(f"RESSHIFT_FAST_{name.upper()}_LIBRARY"):
        return Path(other)
    return FOLDER / f"_{name}.abi3.so"


@cache
def missing(name: str) -> str | None:
    """Load the library "cpu" or "cuda" once; returns None, or why it cannot be loaded."""
    import torch

    file = path(name)
    if name == "cuda" and torch.version.cuda is None:
        return f"needs a build of torch for CUDA; this is {torch.__version__}"
    if not file.exists():
        return f"was not built: {_record().get(name, 'this copy was not installed with pip')}"
    try:
        if name == "cuda":
            # The library takes torch's current stream from libtorch_cuda, but is not linked to it: its build may have
            # had no CUDA build of torch.
            ctypes.CDLL(str(Path(torch.__file__).parent / "lib/libtorch_cuda.so"), mode=ctypes.RTLD_GLOBAL)
        torch.ops.load_library(str(file))
    except OSError as error:
        return f"could not be loaded: {' '.join(str(error).split())[:300]}"
    return None


def _record() -> dict[str, str]:
    """Name to reason of the libraries that the build left out, from native.json."""
    file = FOLDER / "native.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def instruction_set() -> str:
    """The instruction set that the library "cpu", which is loaded, runs in: one of INSTRUCTION_SETS."""
    return INSTRUCTION_SETS[operator("cpu", "isa")()]


def operator(library: str, name: str) -> Any:
    """An operator of a loaded library: the callable `torch.ops.resshift_fast_<library>.<name>.default`.

    Raises:
        AttributeError: if the library does not have it, or is not loaded.
    """
    import torch

    return getattr(getattr(torch.ops, f"resshift_fast_{library}"), name).default


class Loop(NamedTuple):
    """A loop whose iterations threads share, as a kernel of the library "cpu" divides it.

    Args:
        iterations: of the loop.
        grain: iterations that a thread takes at least.
        seconds: of the processor, that all of it took on one thread; 0 where it did not run.
    """

    iterations: int
    grain: int
    seconds: float = 0.0

    @property
    def pieces(self) -> int:
        """Into how many parts it can be divided."""
        return -(-self.iterations // self.grain)


@contextmanager
def recorded_loops(threads: int, *, run: bool = True) -> Iterator[list[Loop]]:
    """Record the loops of the CPU kernels that this thread calls within the block.

    Kernels divide their work as if for `threads` threads, and this thread does all of it. Without `run` no loop runs:
    results have the right shapes and no values, and no memory is written to. Blocks cannot be nested.

    Yields:
        A list, empty within the block and complete after it.

    Raises:
        ValueError: if threads is below 1.
        RuntimeError: where there is no library "cpu".
    """
    if threads < 1:
        raise ValueError(f"threads is {threads}, expected at least 1")
    if reason := missing("cpu"):
        raise RuntimeError(f"the kernels in C++ that are to be recorded are missing: the library {reason}")
    found: list[Loop] = []
    operator("cpu", "record_loops")(threads, run)
    try:
        yield found
    finally:
        for iterations, grain, nanoseconds in operator("cpu", "recorded_loops")().tolist():
            found.append(Loop(iterations, grain, nanoseconds / 1e9))
