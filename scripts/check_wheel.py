"""Check the native libraries of the installed package with the installed torch, which may differ from the build's.

    python scripts/check_wheel.py cpu          the CPU library has a correct kernel for each of its operators
    python scripts/check_wheel.py cpu cuda     so has the CUDA library, whose kernels are run if there is a GPU

Then the installed program restores, profiles and measures in an empty folder, with what the wheel depends on alone:

    python scripts/check_wheel.py cpu --commands restore "bench count"    no more than that

Run it outside the repository's root, so that the installed package is imported.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from PIL import Image

from resshift_fast import ops  # noqa: F401  ops registers the operators
from resshift_fast.backends import OPERATORS, native, unavailable, verification

# The stable ABI consists of C functions; symbols of these namespaces change from release to release.
UNSTABLE = ("at::", "c10::", "torch::")
# Operators that run another one's kernel.
SHARED = {("cpu", "upsample_conv2d"): "conv2d"}


def main() -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("libraries", nargs="+", choices=native.LIBRARIES)
    parser.add_argument("--commands", nargs="+", metavar="BEGINNING", default=[""], help="Those to run. Default: all.")
    args = parser.parse_args()
    wrong = [problem for name in args.libraries for problem in problems(name)]
    available = (*COMMANDS, *WITH_TRITON) if find_spec("triton") else COMMANDS
    chosen = [command for command in available if " ".join(command).startswith(tuple(args.commands))]
    if not chosen:
        parser.error(f"no command begins with {', '.join(args.commands)}")
    wrong += program_problems(chosen)
    for problem in wrong:
        print(problem, file=sys.stderr)
    return 1 if wrong else 0


def problems(name: str) -> list[str]:
    """What is wrong with a library, one line each."""
    if reason := native.missing(name):
        return [f"{name}: {reason}"]
    found = [f"{name}: needs {symbol}, which is not in the stable ABI" for symbol in unstable_symbols(name)]
    bound = sorted(operator.name for operator in OPERATORS.values() if name in operator.loaders)
    for operator in bound:
        qualified = f"resshift_fast_{name}::{SHARED.get((name, operator), operator)}"
        if not has_kernel(qualified, name.upper()):
            found.append(f"{qualified} has no kernel for {name.upper()}")
        elif unavailable(name) is None:
            verdict = verification.compare(OPERATORS[operator], name, torch.device(name), torch.float32)
            found += [f"{qualified}: {verdict}"] if verdict != verification.PASSED else []
    if not found:
        print(f"{name}: torch {torch.__version__} has kernels for {', '.join(bound)}")
    return found


SMALL = ("--model", "nano-x4", "--size", "16")
COMMANDS = (
    ("restore", "photo.png", "-o", "restored.png"),
    ("models", "--json"),
    ("profile", *SMALL, "--dtype", "float32", "--warmup", "1", "--runs", "1", "--device", "cpu"),
    ("bench", "report", "out/profile/trace.json"),
    ("bench", "e2e", *SMALL, "--dtype", "float32", "--providers", "reference,ours", "--runs", "1", "--device", "cpu"),
)
# They read the definitions of Triton's kernels.
WITH_TRITON = (("bench", "count", *SMALL), ("bench", "roofline", *SMALL))


def program_problems(commands: Sequence[tuple[str, ...]]) -> list[str]:
    """Commands of the installed program that fail in an empty folder, one line each."""
    found = ["OpenCV is installed, so that this does not show whether restoring needs it"] * (
        find_spec("cv2") is not None
    )
    with tempfile.TemporaryDirectory() as folder:
        Image.linear_gradient("L").resize((24, 20)).convert("RGB").save(Path(folder, "photo.png"))
        for arguments in commands:
            command = [sys.executable, "-m", "resshift_fast", *arguments]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
            if done.returncode:
                found.append(f"{' '.join(arguments)}: {(done.stderr or done.stdout).strip().splitlines()[-1]}")
        restored = Path(folder, "restored.png")
        if restored.exists() and Image.open(restored).size != (96, 80):
            found.append(f"restored.png has {Image.open(restored).size}, expected (96, 80)")
    if not found:
        print(f"the program runs: {', '.join(' '.join(arguments[:2]) for arguments in commands)}")
    return found


def has_kernel(operator: str, key: str) -> bool:
    """Whether torch's dispatcher knows an operator and has a kernel of it for a dispatch key."""
    try:
        return torch._C._dispatch_has_kernel_for_dispatch_key(operator, key)
    except RuntimeError:  # it knows no such operator
        return False


def unstable_symbols(name: str) -> list[str]:
    """Undefined C++ symbols of torch in a library."""
    command = ["nm", "--dynamic", "--undefined-only", "--demangle", native.path(name)]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    symbols = [line.split(maxsplit=1)[-1] for line in listing.splitlines()]
    return [symbol for symbol in symbols if any(space in symbol for space in UNSTABLE)]


if __name__ == "__main__":
    sys.exit(main())
