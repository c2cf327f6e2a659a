"""Compile the CUDA C++ kernels for an architecture, and read the machine code of each.

A record is a hash of everything that the machine code of a file depends on but for nvcc's version. It is written when
the budgets of that code are accepted, and says that they still hold for the file.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

from . import machine_code
from .budgets import Budgets
from .machine_code import MachineCode, disassembler
from .sources import contents

ROOT = Path(__file__).parents[2]
# The options of setup.py.
FLAGS = ("-std=c++17", "-O3", "-DNDEBUG")
Results = dict[str, MachineCode]  # of the kernels of a file, by name
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
    files: list[Path],
    architectures: list[int],
    workers: int,
    objects: Path | None = None,
    known: Mapping[tuple[str, int], Results] | None = None,
) -> Iterator[tuple[Path, int, Results]]:
    """Compile each file for each architecture; yields (file, architecture, kernel to machine code) as they come.

    Args:
        files: `.cu` files. architectures: 90 for 9.0. workers: compilers at once.
        objects: folder with object files of setup.py, which are read instead for the architectures that they have.
        known: results by stem and architecture that are taken over where no object has that architecture.

    Raises:
        subprocess.CalledProcessError: with nvcc's messages, if a file does not compile.
        FileNotFoundError: if an object file is missing.
    """

    def result(pair: tuple[Path, int]) -> tuple[Path, int, Results]:
        file, arch = pair
        if objects is not None and arch in built(_object(file, objects)):
            return file, arch, parse(_listing(_object(file, objects), arch))
        taken = (known or {}).get((file.stem, arch))
        return file, arch, kernels(file, arch) if taken is None else taken

    with ThreadPoolExecutor(workers) as pool:
        yield from pool.map(result, [(file, arch) for file in files for arch in architectures])


def kernels(file: Path, arch: int) -> Results:
    """Machine code of every kernel of a `.cu` file, by name with its template arguments."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "kernels.cubin")
        command = [nvcc(), *FLAGS, f"-arch=sm_{arch}", "-cubin", str(file), "-o", str(cubin)]
        subprocess.run(command, capture_output=True, text=True, check=True)
        return parse(_listing(cubin, arch))


def key(file: Path) -> str:
    """What the record of a file has to be for its budgets to hold; it has a part for the code that reads listings."""
    judges = b"".join(Path(judge).read_bytes() for judge in (__file__, machine_code.__file__))
    return hashlib.sha256(judges + repr(FLAGS).encode() + contents(file)).hexdigest()[:24]


def load_records(file: Path) -> dict[str, str]:
    """Read the records, "group_norm sm_90" to a key; none if the file does not exist or is for another nvcc."""
    content = json.loads(file.read_text()) if file.exists() else {}
    return content["records"] if content.get("nvcc") == version() else {}


def save_records(file: Path, records: Mapping[str, str]) -> None:
    """Write the records, one per line."""
    file.write_text(json.dumps({"nvcc": version(), "records": dict(sorted(records.items()))}, indent=1) + "\n")


def accepted(files: list[Path], budgets: Budgets | None, records: Mapping[str, str]) -> dict[tuple[str, int], Results]:
    """The accepted results of the files that are as recorded, by stem and architecture."""
    unchanged = {file.stem: key(file) for file in files}
    found: dict[tuple[str, int], Results] = {
        (stem, int(arch)): {}
        for stem, arch in (name.split(" sm_") for name in records)
        if records[f"{stem} sm_{arch}"] == unchanged.get(stem)
    }
    for name, entry in budgets.entries.items() if budgets else ():
        kernel, stem, arch = name.rsplit(" ", 2)
        if (pair := (stem, int(arch.removeprefix("sm_")))) in found:
            found[pair][kernel] = MachineCode(**entry)
    return found


def _object(file: Path, objects: Path) -> Path:
    """The object file that setup.py makes of a `.cu` file."""
    return objects / f"{file.parent.name}_{file.name}.o"


@cache
def built(file: Path) -> set[int]:
    """The architectures that an object file has machine code for."""
    return {int(arch) for arch in re.findall(r"\.sm_(\d+)\w*\.cubin", _printed(file, "-lelf"))}


def _listing(file: Path, arch: int) -> str:
    """The resources and instructions that a cubin or an object file has for an architecture."""
    return _printed(file, f"-arch=sm_{arch}", "-res-usage", "-sass")


def _printed(file: Path, *options: str) -> str:
    """What cuobjdump prints of a file."""
    if not file.is_file():
        raise FileNotFoundError(f"there is no {file}; was the library for CUDA built there?")
    return subprocess.run([disassembler(), *options, str(file)], capture_output=True, text=True, check=True).stdout


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
