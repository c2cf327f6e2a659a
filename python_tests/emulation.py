"""Build and call the emulation of csrc/emulation, which executes the CUDA kernels on the CPU.

It needs a C++ compiler and pybind11. An object in build/emulation is compiled again if its source, a header that it
includes or the flags change. RESSHIFT_FAST_SANITIZE=1 builds the kernels with AddressSanitizer and
UndefinedBehaviorSanitizer; the interpreter then has to be started with libasan preloaded, as scripts/sanitize.py does.
"""

import fcntl
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from types import ModuleType

import cpu_build
import numpy as np
import torch

from scripts.kernel_proof.sources import contents

ROOT = Path(__file__).parents[1]
CSRC = ROOT / "csrc"
# Kernels first: an inline function is linked from the first file that has it, and only kernels have sanitizers.
SOURCES = [file for kind in ("cuda/*.cu", "emulation/*.cu", "emulation/*.cpp") for file in sorted(CSRC.glob(kind))]
BINDINGS = sorted(CSRC.glob("bindings/cuda_*.cpp"))
BUILD = ROOT / "build/emulation"
MODULE = "resshift_emulation"
SANITIZED = os.environ.get("RESSHIFT_FAST_SANITIZE") == "1"
COMPILER = os.environ.get("CXX", "g++")
FLAGS = [
    *("-std=c++17", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-DRSF_EMULATED"),
    *("-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"),
]
KERNEL_FLAGS = ["-O1", "-g1"]
SANITIZER_FLAGS = [*cpu_build.SANITIZERS["memory"], "-fno-omit-frame-pointer"]


def missing() -> str | None:
    """Why the emulation cannot be built here, or None."""
    if shutil.which(COMPILER) is None:
        return f"no C++ compiler: {COMPILER} is not on PATH"
    if importlib.util.find_spec("pybind11") is None:
        return "pybind11 is not installed; pip install pybind11"
    return None


@cache
def module() -> ModuleType:
    """The built Python module.

    Raises:
        RuntimeError: with the compiler's output, if a source does not compile.
    """
    library = _build(MODULE, SOURCES, [])
    spec = importlib.util.spec_from_file_location(MODULE, library)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


@cache
def load_library() -> None:
    """Register `torch.ops.resshift_fast_cuda` with the emulated kernels, for CPU tensors.

    Raises:
        RuntimeError: as `module`.
    """
    kernels = [file for file in SOURCES if file.stem in ("emulator", "fiber") or file.parent.name == "cuda"]
    torch_libraries = Path(torch.__file__).parent / "lib"
    torch.ops.load_library(_build("resshift_cuda", [*kernels, *BINDINGS], [f"-L{torch_libraries}", "-ltorch_cpu"]))


def _build(name: str, sources: list[Path], libraries: list[str]) -> Path:
    BUILD.mkdir(parents=True, exist_ok=True)
    with open(BUILD / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return _link(name, list(pool.map(_object, sources)), libraries)


def _flags(source: Path) -> list[str]:
    if source in BINDINGS:
        includes = [option for path in _torch_includes() for option in ("-isystem", path)]
        return [*FLAGS, "-O0", "-DTORCH_TARGET_VERSION=0x020a000000000000", "-DUSE_CUDA", *includes]
    import pybind11

    includes = (pybind11.get_include(), sysconfig.get_paths()["include"])
    # It only passes arrays to kernels, and is slow to compile even without optimization.
    own = ["-O0"] if source.stem == "module" else [*KERNEL_FLAGS, *(SANITIZER_FLAGS if SANITIZED else [])]
    return [*FLAGS, *own, *(f"-I{path}" for path in includes)]


@cache
def _torch_includes() -> list[str]:
    from torch.utils.cpp_extension import include_paths

    return include_paths()


def _object(source: Path) -> Path:
    key = hashlib.sha256(repr((contents(source), COMPILER, _flags(source))).encode()).hexdigest()[:16]
    file = BUILD / f"{source.stem}-{key}.o"
    if not file.exists():
        _run([COMPILER, *_flags(source), "-x", "c++", "-c", source, "-o", file.with_suffix(".tmp")])
        file.with_suffix(".tmp").rename(file)
    return file


def _link(name: str, objects: list[Path], libraries: list[str]) -> Path:
    key = hashlib.sha256(repr(objects).encode()).hexdigest()[:16]
    library = BUILD / f"{name}-{key}.so"
    if not library.exists():
        flags = SANITIZER_FLAGS if SANITIZED else []
        _run([COMPILER, "-shared", *flags, *objects, *libraries, "-o", library.with_suffix(".tmp")])
        library.with_suffix(".tmp").rename(library)
    return library


def _run(command: list) -> None:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}\n{done.stderr}")


def array(x: torch.Tensor | None) -> np.ndarray | None:
    """A CPU tensor as the emulation takes it: its memory and strides, with bfloat16 viewed as uint16."""
    if x is None:
        return None
    return (x.view(torch.uint16) if x.dtype == torch.bfloat16 else x).numpy()


def filled(*shape: int, dtype: torch.dtype, memory_format: torch.memory_format = torch.contiguous_format):
    """A tensor of NaN, so that a test fails if a kernel leaves an element unwritten."""
    return torch.empty(shape, dtype=dtype, memory_format=memory_format).fill_(float("nan"))
