"""Compile the kernels for CPUs as setup.py does, but for sanitizers.

scripts/sanitize.py builds the library and runs tests with it in the place of the installed one. Scratch memory is then
exactly as large as asked for and full of NaN, and loops are shared between threads of its own (csrc/cpu). Objects
are kept in build/ and made anew when their source, a header that it includes or the flags change, given ninja.
"""

import importlib.util
import os
import subprocess
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).parents[1]
FAULTS = ROOT / "python_tests/csrc/cpu_faults.cpp"
KIND = os.environ.get("RESSHIFT_FAST_SANITIZED_CPU")  # of the library that is loaded: one of SANITIZERS, or None

# Checks of pointers that are null or wrap around multiply the time that compilers take, and find nothing that
# AddressSanitizer and the system do not; calls of its checks take a third of the time of checks in place.
SANITIZERS = {
    "memory": [
        *("-fsanitize=address,undefined", "-fno-sanitize=null,object-size,pointer-overflow"),
        *("-fno-sanitize-recover=all", "--param=asan-instrumentation-with-call-threshold=0"),
    ],
    "threads": ["-fsanitize=thread"],
}
COMMON = ["-O1", "-g1", "-UNDEBUG", "-fno-omit-frame-pointer", "-DRSF_SANITIZED"]
FILLED_VARIABLES = "-ftrivial-auto-var-init=pattern"  # huge numbers, where an array on the stack was not written


@cache
def setup_module() -> ModuleType:
    """setup.py, without running it."""
    spec = importlib.util.spec_from_file_location("resshift_fast_setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def plan() -> Any:
    """setup.py's plan of the library for CPUs.

    Raises:
        setup_module().Missing: where there is no compiler.
    """
    return setup_module().cpu_plan(setup_module().Torch.find())


def fills_variables() -> bool:
    """Whether the compiler knows the flag: GCC does from 12 on."""
    probe = [setup_module().compiler(), FILLED_VARIABLES, "-Werror", "-x", "c++", "-fsyntax-only", os.devnull]
    return subprocess.run(probe, capture_output=True).returncode == 0


def build(kind: str) -> Path:
    """The library with one kind of sanitizers, and with the functions of cpu_faults.cpp."""
    setup, made = setup_module(), plan()
    flags = [*COMMON, *SANITIZERS[kind], *([FILLED_VARIABLES] if fills_variables() else [])]
    binding = next(unit for unit in made.units if unit.source.parent.name == "bindings")
    made.units.append(setup.Unit("cpu_faults.o", FAULTS, binding.command))
    for unit in made.units:
        unit.command = [*unit.command, *flags]
    made.linker += flags
    folder = ROOT / "build" / f"cpu-{kind}"
    setup.make(made, folder, folder / "_cpu.so")
    return folder / "_cpu.so"
