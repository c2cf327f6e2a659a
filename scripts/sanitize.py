"""Run the CUDA kernels' tests on the CPU under AddressSanitizer and UndefinedBehaviorSanitizer.

    python scripts/sanitize.py                                  all of python_tests/csrc
    python scripts/sanitize.py -x -k barrier                    the tests of it that are named so
    python scripts/sanitize.py python_tests/csrc/test_emulation.py

Arguments go to pytest, whose exit status is returned. An index out of bounds, in shared memory too, a misaligned
access and an overflow end the run with a report.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
COMPILER = os.environ.get("CXX", "g++")
# Python keeps much memory until its end, and a kernel that is stopped in its middle keeps what it had.
ADDRESS_OPTIONS = "detect_leaks=0:allocator_may_return_null=1:strict_string_checks=1"
UNDEFINED_OPTIONS = "print_stacktrace=1:halt_on_error=1"


def library(name: str) -> str | None:
    """Path of the compiler's own library of that name, or None."""
    found = subprocess.run([COMPILER, f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    path = found.stdout.strip()
    return path if os.path.isabs(path) else None


def environment() -> dict[str, str] | None:
    """The environment in which Python can load what was built with sanitizers, or None where there is no compiler.

    libstdc++ comes with it because AddressSanitizer looks for the functions that throw exceptions when it starts.
    """
    if shutil.which(COMPILER) is None:
        return None
    libraries = [library("libasan.so"), library("libstdc++.so")]
    if None in libraries:
        return None
    return os.environ | {
        "RESSHIFT_FAST_SANITIZE": "1",
        "RESSHIFT_FAST_REQUIRE_COMPILER": "1",
        "ASAN_OPTIONS": ADDRESS_OPTIONS,
        "UBSAN_OPTIONS": UNDEFINED_OPTIONS,
        "LD_PRELOAD": " ".join(libraries),
    }


def main() -> int:
    """Run the command; returns the exit status."""
    variables = environment()
    if variables is None:
        print(f"nothing was run: {COMPILER} with its libasan is not here; install g++ or name a compiler with CXX")
        return 2
    arguments = sys.argv[1:]
    if not any(os.path.exists(argument.partition("::")[0]) for argument in arguments):
        arguments.append(str(ROOT / "python_tests/csrc"))
    # A report is not written by Python, and would be lost with what pytest keeps of a process that ends.
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--capture=sys", *arguments]
    return subprocess.run(command, env=variables).returncode


if __name__ == "__main__":
    sys.exit(main())
