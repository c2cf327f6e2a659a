"""Run the library for CPUs on arm64, under qemu, from this process: `torch.ops.resshift_fast_cpu.*` call it.

The library is compiled as setup.py does, by a cross compiler, and linked with csrc/cross to a program that needs no
torch. qemu-aarch64 executes it, and each call's tensors go to it and come back through pipes. So the tests of the
operators run as they do on this machine, with their references in float64: only the kernels run elsewhere. As a plugin
of pytest (`-p arm`) it takes the place of the installed library, as scripts/check_neon.py does.

Not shown: how fast an arm64 processor runs the kernels, and macOS, whose compiler and linker are others.
"""

import ctypes
import os
import shutil
import subprocess
import threading
from functools import cache
from pathlib import Path
from struct import pack, unpack
from typing import Any

import cpu_build
import pytest
import torch

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "build/cpu-arm64"
COMPILER = "aarch64-linux-gnu-g++"
EMULATOR = "qemu-aarch64"
PACKAGES = "apt install g++-aarch64-linux-gnu qemu-user"
VARIABLE = "RESSHIFT_FAST_TEST_ARM64"  # set where this plugin is, so that tests know whose instruction sets there are
NAMESPACE = "resshift_fast_cpu"

NONE, NUMBER, TENSOR, OPTIONAL = 0, 1, 2, 8  # as in csrc/cross/program.cpp
DTYPES = {
    0: torch.uint8,
    3: torch.int32,
    4: torch.int64,
    5: torch.float16,
    6: torch.float32,
    7: torch.float64,
    11: torch.bool,
    15: torch.bfloat16,
}  # by torch's number
NUMBERS = {dtype: number for number, dtype in DTYPES.items()}


def missing() -> str | None:
    """What is not installed here, or None."""
    for name in (COMPILER, EMULATOR):
        if shutil.which(name) is None:
            return f"{name} is not on PATH; {PACKAGES}"
    return None


@cache
def build() -> Path:
    """Compile the library for arm64 and link the program; returns its path.

    Bindings and what stands in for torch are compiled without optimization, for compile time; all else as it is
    installed.
    """
    setup = cpu_build.setup_module()
    before = os.environ.get("CXX")
    os.environ["CXX"] = COMPILER
    try:
        plan = cpu_build.plan()
    finally:
        os.environ.pop("CXX")
        if before is not None:
            os.environ["CXX"] = before
    binding = next(unit for unit in plan.units if unit.source.parent.name == "bindings")
    plan.units += [
        setup.Unit(f"cross_{file.stem}.o", file, binding.command) for file in sorted(ROOT.glob("csrc/cross/*.cpp"))
    ]
    for unit in plan.units:
        unit.command = [*unit.command, *(["-O0"] if unit.source.parent.name in ("bindings", "cross") else [])]
    plan.linker = [COMPILER, "-static", "-pthread"]
    setup.make(plan, FOLDER, FOLDER / "program")
    return FOLDER / "program"


class Ended(RuntimeError):
    """The program has ended, as at an access past the end of a tensor."""


class Program:
    """The running program; what is called on several threads runs one after another."""

    def __init__(self, path: Path):
        self.path = path
        self.lock = threading.Lock()
        self.start()

    def start(self) -> None:
        """Start it and read its operators' schemas."""
        self.process = subprocess.Popen([EMULATOR, str(self.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.schemas = [self._text() for _ in range(self._number())]

    def call(self, name: str, arguments: list[bytes], results: int, kind: int) -> list[Any]:
        """Run an operator.

        Raises:
            RuntimeError: with the library's message. Ended: if the program has ended; the next call starts another.
        """
        request = [_text(name), pack("<2q", torch.get_num_threads(), len(arguments)), *arguments]
        with self.lock:
            try:
                self.process.stdin.write(b"".join([*request, pack("<2q", results, kind)]))
                self.process.stdin.flush()
                if self._number():
                    raise RuntimeError(self._text())
                return [self._tensor() if self._number() == TENSOR else self._number() for _ in range(results)]
            except (BrokenPipeError, Ended):
                status = self.process.wait()
                self.start()
                raise Ended(f"{name} has ended the program for arm64 with status {status}") from None

    def _read(self, count: int) -> bytes:
        data = self.process.stdout.read(count)
        if len(data) != count:
            raise Ended
        return data

    def _number(self) -> int:
        return unpack("<q", self._read(8))[0]

    def _text(self) -> str:
        return self._read(self._number()).decode()

    def _tensor(self) -> torch.Tensor:
        dtype = DTYPES[self._number()]
        dimensions = self._number()
        sizes, strides = ([self._number() for _ in range(dimensions)] for _ in range(2))
        data = self._read(self._number())
        tensor = torch.empty_strided(sizes, strides, dtype=dtype)
        ctypes.memmove(tensor.data_ptr(), data, len(data))
        return tensor


def _text(text: str) -> bytes:
    return pack("<q", len(text.encode())) + text.encode()


def _argument(value: Any, optional: bool) -> bytes:
    flag = OPTIONAL if optional else 0
    if value is None:
        return pack("<q", NONE)
    if isinstance(value, torch.Tensor):
        return pack("<q", TENSOR | flag) + _tensor(value)
    if isinstance(value, float):
        return pack("<qd", NUMBER | flag, value)
    return pack("<2q", NUMBER | flag, NUMBERS[value] if isinstance(value, torch.dtype) else value)


def _tensor(value: torch.Tensor) -> bytes:
    """A tensor with its strides, and the memory from its first element to its last, or to the end of its storage."""
    steps = [(size - 1) * stride for size, stride in zip(value.shape, value.stride(), strict=True)]
    end = 0 if value.numel() == 0 else 1 + sum(steps)
    there = value.untyped_storage().nbytes() - value.storage_offset() * value.element_size()
    count = max(min(end * value.element_size(), there), 0)
    head = pack(f"<{3 + 2 * value.dim()}q", NUMBERS[value.dtype], value.dim(), *value.shape, *value.stride(), count)
    return head + (ctypes.string_at(value.data_ptr(), count) if count else b"")


@cache
def register() -> Program:
    """Build the program, start it and register its operators as torch.ops.resshift_fast_cpu."""
    program = Program(build())
    library = torch.library.Library(NAMESPACE, "DEF")
    program.library = library  # which unregisters its operators when it is destroyed
    for text in program.schemas:
        library.define(text)
        _implement(program, torch._C.parse_schema(f"{NAMESPACE}::{text}"))
    return program


def _implement(program: Program, schema: Any) -> None:
    name = schema.name.partition("::")[2]
    optional = [isinstance(argument.type, torch._C.OptionalType) for argument in schema.arguments]
    kind = TENSOR if any(str(value.type) == "Tensor" for value in schema.returns) else NUMBER

    def run(*values: Any) -> Any:
        arguments = [_argument(value, maybe) for value, maybe in zip(values, optional, strict=True)]
        found = program.call(name, arguments, len(schema.returns), kind)
        return (found[0] if len(found) == 1 else tuple(found)) if found else None

    # Where there is no tensor, there is no device to dispatch by.
    program.library.impl(name, run, "CPU" if schema.arguments and kind == TENSOR else "CompositeExplicitAutograd")


def load_instead() -> None:
    """Have the package load this library in place of the installed one."""
    program, load = register(), torch.ops.load_library
    os.environ["RESSHIFT_FAST_CPU_LIBRARY"] = str(program.path)

    def load_library(path: str) -> None:
        if path != str(program.path):
            load(path)

    torch.ops.load_library = load_library


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests() -> None:
    """Load it before conftest.py loads the other."""
    load_instead()
