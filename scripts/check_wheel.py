"""Check the native libraries of the installed package against the installed torch, which may be another than built them.

    python scripts/check_wheel.py cpu          the CPU library has a kernel for each of its operators, and computes
    python scripts/check_wheel.py cpu cuda     so does the CUDA library; its kernels start only where there is a GPU

Run it from elsewhere than the repository's root, so that the installed package is the one that is imported.
"""

import argparse
import subprocess
import sys

import torch

from resshift_fast import native

OPERATORS = {
    "cpu": ("posterior_step", "prior_sample", "q_sample"),
    "cuda": (
        *("posterior_step", "prior_sample", "q_sample", "group_norm", "group_norm_backward"),
        *("window_attention", "window_attention_backward", "vector_quantize"),
    ),
}
# The stable ABI is C functions alone; these namespaces change from release to release.
UNSTABLE = ("at::", "c10::", "torch::")


def main() -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("libraries", nargs="+", choices=native.LIBRARIES)
    wrong = [problem for name in parser.parse_args().libraries for problem in problems(name)]
    for problem in wrong:
        print(problem, file=sys.stderr)
    return 1 if wrong else 0


def problems(name: str) -> list[str]:
    """What is wrong with a library, one line each."""
    if reason := native.missing(name):
        return [f"{name}: {reason}"]
    found = [f"{name}: needs {symbol}, which is not of the stable ABI" for symbol in unstable_symbols(name)]
    for operator in OPERATORS[name]:
        qualified = f"resshift_fast_{name}::{operator}"
        if not torch._C._dispatch_has_kernel_for_dispatch_key(qualified, name.upper()):
            found.append(f"{qualified} has no kernel for {name.upper()}")
    if not found:
        print(f"{name}: torch {torch.__version__} has kernels for {', '.join(OPERATORS[name])}")
    return found


def unstable_symbols(name: str) -> list[str]:
    """Undefined C++ symbols of torch in a library."""
    command = ["nm", "--dynamic", "--undefined-only", "--demangle", native.path(name)]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    symbols = [line.split(maxsplit=1)[-1] for line in listing.splitlines()]
    return [symbol for symbol in symbols if any(space in symbol for space in UNSTABLE)]


if __name__ == "__main__":
    sys.exit(main())
