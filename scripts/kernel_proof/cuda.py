"""Compile the CUDA C++ kernels for an architecture, and read the machine code of each."""

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

from .machine_code import MachineCode, disassembler

ROOT = Path(__file__).parents[2]
# The options of setup.py.
FLAGS = ("-std=c++17", "-O3", "-DNDEBUG")
_RESOURCES = re.compile(r"^ Function (\w+):\n(.*)$", re.MULTILINE)
_LISTING = re.compile(r"^\s+Function : (\w+)$", re.MULTILINE)


@cache
def nvcc() -> str | None:
    """The nvcc of CUDA_HOME, else the one on PATH; None without one."""
    home = os.environ.get("CUDA_HOME")
    return str(Path(home, "bin/nvcc")) if home and Path(home, "bin/nvcc").exists() else shutil.which("nvcc")


@cache
def version() -> str:
    """nvcc's version, "13.0.88"."""
    done = subprocess.run([nvcc(), "--version"], capture_output=True, text=True, check=True)
    return re.search(r"V(\d[\d.]*)", done.stdout)[1]


def read_all(
    files: list[Path], architectures: list[int], workers: int, objects: Path | None = None
) -> Iterator[tuple[Path, int, dict[str, MachineCode]]]:
    """Compile each file for each architecture; yields (file, architecture, kernel to machine code) as they come.

    Args:
        files: `.cu` files. architectures: 90 for 9.0. workers: compilers at once.
        objects: folder with object files of setup.py, which are read instead, and nothing is compiled.

    Raises:
        subprocess.CalledProcessError: with nvcc's messages, if a file does not compile.
        FileNotFoundError: if an object file is missing.
    """
    with ThreadPoolExecutor(workers) as pool:
        pairs = [(file, arch) for file in files for arch in architectures]
        yield from pool.map(lambda pair: (*pair, kernels(*pair, objects)), pairs)


def kernels(file: Path, arch: int, objects: Path | None = None) -> dict[str, MachineCode]:
    """Machine code of every kernel of a `.cu` file, by name with its template arguments."""
    if objects is not None:
        return parse(_listing(objects / f"{file.parent.name}_{file.name}.o", arch))
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "kernels.cubin")
        command = [nvcc(), *FLAGS, f"-arch=sm_{arch}", "-cubin", str(file), "-o", str(cubin)]
        subprocess.run(command, capture_output=True, text=True, check=True)
        return parse(_listing(cubin, arch))


def _listing(file: Path, arch: int) -> str:
    """What cuobjdump prints of a cubin or an object file."""
    if not file.is_file():
        raise FileNotFoundError(f"there is no {file}; was the library for CUDA built there?")
    command = [disassembler(), f"-arch=sm_{arch}", "-res-usage", "-sass", str(file)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def parse(listing: str) -> dict[str, MachineCode]:
    """Machine code by kernel from the listing of `cuobjdump -res-usage -sass`; shared memory is the static one."""
    resources = dict(_RESOURCES.findall(listing))
    pieces = _LISTING.split(listing)[1:]
    instructions = dict(zip(pieces[::2], pieces[1::2], strict=True))
    names = readable(list(resources))
    found = {}
    for symbol, text in resources.items():
        shared = int(re.search(r"SHARED:(\d+)", text)[1])
        found[names[symbol]] = MachineCode.parse(f"{text}\n{instructions[symbol]}", shared)
    return found


def readable(symbols: list[str]) -> dict[str, str]:
    """Mangled names to readable ones, such as "chain_step_rows_kernel<Half,3,false>"."""
    if not symbols:
        return {}
    done = subprocess.run(["c++filt", *symbols], capture_output=True, text=True, check=True)
    return {symbol: _short(line) for symbol, line in zip(symbols, done.stdout.splitlines(), strict=True)}


def _short(name: str) -> str:
    name = re.sub(r"\(anonymous namespace\)::|resshift::(cuda::)?", "", name)
    name = re.sub(r"^void ", "", name)
    depth = 0
    for position, character in enumerate(name):  # up to the parameters, which follow the template arguments
        depth += {"<": 1, ">": -1}.get(character, 0)
        if character == "(" and depth == 0:
            name = name[:position]
            break
    return re.sub(r"\((?:bool|int|unsigned int)\)", "", name).replace(" ", "")
