"""Check the kernels for arm64 on this machine: compile them with a cross compiler and run tests of them under qemu.

    python scripts/check_neon.py                       every operator, in float32, float16 and bfloat16
    python scripts/check_neon.py --tests               and the operators' own tests of the kernels for CPUs
    python scripts/check_neon.py --tests -k conv2d --most-cases=10    arguments after --tests go to pytest

Every operator runs on the examples on which an installation verifies it, forward and backward, and is compared with
plain PyTorch in float64, as on x86. Behind every tensor is memory that cannot be accessed. How fast an arm64 processor
is, this does not show.

Exit status: 0 if all results are right, 1 if not, 2 if nothing was run because the compiler or qemu is not installed.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "python_tests")]

# What takes many calls, much memory or other code than the kernels', which all run elsewhere too.
CASES = (
    "(cpu or neon) and not program and not compile and not earlier_call and not at_once and not threads "
    "and not no_score_matrix and not public_function"
)


def check_operators() -> int:
    """Compare every operator with plain PyTorch; returns how many results are wrong."""
    import arm
    import torch

    arm.load_instead()
    from resshift_fast import ops  # noqa: F401  registers the operators
    from resshift_fast.backends import OPERATORS, native, verification

    assert native.missing("cpu") is None, native.missing("cpu")
    checked = wrong = 0
    for operator in OPERATORS.values():
        for dtype in (torch.float32, torch.float16, torch.bfloat16) if "cpu" in operator.loaders else ():
            verdict = verification.compare(operator, "cpu", torch.device("cpu"), dtype)
            checked += 1
            wrong += verdict != verification.PASSED
            if verdict != verification.PASSED:
                print(f"{operator.name} in {dtype} is wrong: {verdict}")
    print(f"arm64, {native.instruction_set()}: {checked - wrong} of {checked} operators and dtypes are right")
    return wrong


def run_tests(arguments: list[str]) -> int:
    """Run the operators' tests of the kernels for CPUs; returns pytest's exit status."""
    import arm

    files = sorted(map(str, (ROOT / "python_tests/ops").glob("test_*_cpu.py")))
    command = [sys.executable, "-m", "pytest", "-p", "arm", "-p", "no:cacheprovider", "-q", "-n", "0", "-k", CASES]
    environment = os.environ | {
        arm.VARIABLE: "1",
        "RESSHIFT_FAST_VERIFY": "0",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT / "python_tests"), os.environ.get("PYTHONPATH")])),
    }
    return subprocess.run([*command, "--most-cases=1", *files, *arguments], env=environment, cwd=ROOT).returncode


def main() -> int:
    """Returns the exit status."""
    import arm

    if reason := arm.missing():
        print(f"nothing was run: {reason}")
        return 2
    arguments, began = sys.argv[1:], time.perf_counter()
    if arguments and arguments[0] != "--tests":
        print(f"error: unknown argument {arguments[0]!r}, expected --tests and options of pytest after it")
        return 1
    arm.build()
    print(f"compiled for arm64 in {time.perf_counter() - began:.0f} s", flush=True)
    if check_operators():
        return 1
    return min(run_tests(arguments[1:]), 1) if arguments else 0


if __name__ == "__main__":
    sys.exit(main())
