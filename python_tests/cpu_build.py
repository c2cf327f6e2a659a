"""Compile the CPU kernels as setup.py does, but with sanitizers.

scripts/sanitize.py builds the library and runs tests with it instead of the installed one. In this build scratch memory
has exactly the requested size and is filled with NaN, and loops run on the library's own threads (csrc/cpu). With
ninja, an object in build/ is compiled again only if its source, a header that it includes or the flags change.
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
KIND = os.environ.get("RESSHIFT_FAST_SANITIZED_CPU")  # of the loaded library: a key of SANITIZERS, or None

# Checks for null pointers and pointer overflow multiply the compile time, and find nothing that AddressSanitizer and
# the system do not. AddressSanitizer's checks compile in a third of the time as calls, compared with inline code.
SANITIZERS = {
    "memory": [
        *("-fsanitize=address,undefined", "-fno-sanitize=null,object-size,pointer-overflow"),
        *("-fno-sanitize-recover=all", "--param=asan-instrumentation-with-call-threshold=0"),
    ],
    "threads": ["-fsanitize=thread"],
}
# The least and the best instruction set to build, for compile time: kernels with short vectors access memory otherwise
# than those with long ones, and threads share the work alike in all of them.
SETS = {"memory": ("portable", "best"), "threads": ("best", "best")}
COMMON = ["-O1", "-g1", "-UNDEBUG", "-fno-omit-frame-pointer", "-DRSF_SANITIZED"]
FILLED_VARIABLES = "-ftrivial-auto-var-init=pattern"  # huge values in arrays on the stack that are not initialized


@cache
def setup_module() -> ModuleType:
    """setup.py, without running it."""
    spec = importlib.util.spec_from_file_location("resshift_fast_setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def plan() -> Any:
    """setup.py's plan of the CPU library.

    Raises:
        setup_module().Missing: if there is no compiler.
    """
    return setup_module().cpu_plan(setup_module().Torch.find())


def best_isa() -> str:
    """The last instruction set of setup.py's that this processor has."""

    def macros(*options: str) -> set[str]:
        command = [setup_module().compiler(), *options, "-dM", "-E", "-x", "c++", os.devnull]
        return set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines())

    here, plain = macros("-march=native"), macros()
    sets = setup_module().INSTRUCTION_SETS.items()
    return [isa for isa, options in sets if macros(*options) - plain <= here][-1]


def fills_variables() -> bool:
    """Whether the compiler has FILLED_VARIABLES; GCC has it since version 12."""
    probe = [setup_module().compiler(), FILLED_VARIABLES, "-Werror", "-x", "c++", "-fsyntax-only", os.devnull]
    return subprocess.run(probe, capture_output=True).returncode == 0


def build(kind: str) -> Path:
    """Build the library with one of SANITIZERS and with the functions of cpu_faults.cpp; returns its path.

    It has the instruction sets of SETS, of those that this processor has.
    """
    setup, made = setup_module(), plan()
    flags = [*COMMON, *SANITIZERS[kind], *([FILLED_VARIABLES] if fills_variables() else [])]
    binding = next(unit for unit in made.units if unit.source.parent.name == "bindings")
    made.units.append(setup.Unit("cpu_faults.o", FAULTS, binding.command))
    made.linker += flags
    if any(unit.name.endswith(".avx2.o") for unit in made.units):
        least, best = (best_isa() if isa == "best" else isa for isa in SETS[kind])
        others = tuple(f".{isa}.o" for isa in setup.INSTRUCTION_SETS if isa not in (least, best))
        made.units = [unit for unit in made.units if not unit.name.endswith(others)]
        flags = [*flags, f"-DRSF_LEAST_ISA={least}", f"-DRSF_BEST_ISA={best}"]
    for unit in made.units:
        # Bindings pass on, and their headers are slow to compile.
        unit.command = [*unit.command, *flags, *(["-O0"] if unit.source.parent.name == "bindings" else [])]
    folder = ROOT / "build" / f"cpu-{kind}"
    setup.make(made, folder, folder / "_cpu.so")
    return folder / "_cpu.so"
