"""Reads the machine code of a compiled kernel: registers, memory, access widths, matrix instructions."""

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path

# Limit of shared memory per block, in bytes.
SHARED_LIMIT = {80: 166_912, 86: 101_376, 89: 101_376, 90: 232_448, 100: 232_448, 120: 101_376}

_RESOURCES = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)")
_INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", re.MULTILINE)
_LOADS, _STORES = {"LDG", "LDGSTS"}, {"STG"}
_BULK_LOADS, _BULK_STORES = {"UTMALDG", "UBLKCP"}, {"UTMASTG"}  # the tensor memory accelerator's
_MATRIX = re.compile(r"(?:[HIQO]|HG|IG|QG|UTC[HIQO])MMA\b")
_DOT = re.compile(r"^.*= tt\.dot(?:_scaled)? (.*) : tensor<[\dx]+x(\w+)> \* tensor.*$", re.MULTILINE)


@dataclass(frozen=True)
class MachineCode:
    """Resources and instructions of one compiled kernel.

    Args:
        registers: per thread.
        spill: bytes of local memory per thread: registers that did not fit, or indexed arrays.
        shared: bytes of shared memory per block.
        loads_128, stores_128: instructions that load from or store to global memory 128 bits or more per thread.
        matrix: the matrix instructions, or "none".
    """

    registers: int
    spill: int
    shared: int
    loads_128: int
    stores_128: int
    matrix: str

    @classmethod
    def read(cls, cubin: bytes, shared: int) -> "MachineCode":
        """Disassemble a cubin; `shared` is the dynamic shared memory, which only the launch knows."""
        return cls.parse(_disassemble(cubin), shared)

    @classmethod
    def parse(cls, listing: str, shared: int) -> "MachineCode":
        """Read the listing of `cuobjdump -res-usage -sass`."""
        resources = _RESOURCES.search(listing)
        if not resources:
            raise ValueError(f"cuobjdump reported no resources: {listing[:500]!r}")
        registers, stack, local = map(int, resources.groups())
        counts = Counter(_INSTRUCTION.findall(listing))
        if not counts:
            raise ValueError(f"no instructions in cuobjdump's listing: {listing[:500]!r}")
        matrix = sorted(name for name in counts if _MATRIX.match(name))
        return cls(
            registers,
            stack + local,
            shared,
            _wide(counts, _LOADS, _BULK_LOADS),
            _wide(counts, _STORES, _BULK_STORES),
            " ".join(matrix) or "none",
        )


def _wide(counts: Counter, ordinary: set[str], bulk: set[str]) -> int:
    total = 0
    for name, count in counts.items():
        opcode, *modifiers = name.split(".")
        if opcode in bulk or (opcode in ordinary and {"128", "256"} & set(modifiers)):
            total += count
    return total


@cache
def disassembler() -> Path:
    """The cuobjdump of the triton package."""
    import triton

    return Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


def _disassemble(cubin: bytes) -> str:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "kernel.cubin")
        file.write_bytes(cubin)
        command = [disassembler(), "-res-usage", "-sass", file]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def plain_tf32_dots(ttir: str) -> list[str]:
    """Float32 dots whose inputs are rounded to tf32, with 10 mantissa bits; they have to be ieee or tf32x3."""
    dots = [match[1] for match in _DOT.finditer(ttir) if match[2] == "f32"]
    return [f"a float32 dot rounds its inputs to tf32: {dot}" for dot in dots if re.search(r"= tf32\b", dot)]


def unserved_dots(ttir: str, code: MachineCode) -> list[str]:
    """16-bit dots in a kernel without matrix instructions."""
    kinds = {match[2] for match in _DOT.finditer(ttir)} & {"f16", "bf16"}
    if kinds and code.matrix == "none":
        return [f"no matrix instruction serves the {' and '.join(sorted(kinds))} dots"]
    return []
