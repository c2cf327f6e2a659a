"""Compile every CUDA C++ kernel for every architecture, without a GPU, and compare the results with their budgets.

    python scripts/cuda_budgets.py                 check; the exit status is 1 if a budget is exceeded
    python scripts/cuda_budgets.py --update        accept the results of this version of nvcc
    python scripts/cuda_budgets.py --only group_norm --arch 90
    python scripts/cuda_budgets.py --objects build/native/cuda    of the library that setup.py built last
    python scripts/cuda_budgets.py --known         compile only files that have changed since the last --update

It needs nvcc, and the triton package for its disassembler; without nvcc it says so in one line and passes. With another
version of nvcc than that of the budget file, only limits for all versions are checked: no spills, shared memory,
128-bit access, and matrix instructions in 16-bit window attention and 1×1 convolution. Shared memory is what a kernel
declares; the dynamic part is checked by the tests of the emulated kernels.

--update also writes a record of each file, with a hash of its source, beside the budget file. --known takes the budgets
of a file with the same hash for its machine code instead of compiling it.
"""

import argparse
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

from kernel_proof import cuda
from kernel_proof.budgets import Budgets, Exemption, limits_broken, not_exempt
from kernel_proof.machine_code import SHARED_LIMIT, MachineCode
from kernel_proof.report import settle

COMMAND = "python scripts/cuda_budgets.py --update"
BUDGETS = cuda.ROOT / "python_tests/csrc/budgets.json"
FOLDER = cuda.ROOT / "csrc/cuda"

_ANY_LAYOUT = "takes images of any layout and dtype, one element at a time"
_NOT_ALIGNED = "takes images whose rows are not whole 16-byte words"

EXEMPTIONS = (
    Exemption("chain_step_kernel<*", "narrow", _ANY_LAYOUT),
    Exemption("q_sample_kernel *", "narrow", _ANY_LAYOUT),
    *(
        Exemption(f"{kernel}<partitioning::Word<*,1,false>> *", "narrow", _NOT_ALIGNED)
        for kernel in ("apply_kernel", "moments_kernel", "group_norm_kernel", "dx_kernel", "sums_kernel")
    ),
    Exemption("reduce_kernel *", "narrow", "adds up a few values per channel"),
    Exemption("bias_gradient_kernel *", "narrow", "a warp adds up 32 neighbouring values of each part"),
)


def main() -> int:
    """Run the command; returns the exit status."""
    options = _options()
    if cuda.nvcc() is None:
        print("nvcc is not installed: the CUDA C++ kernels were neither compiled nor checked")
        return 0
    files = [file for file in sorted(FOLDER.glob("*.cu")) if any(part in file.stem for part in options.only)]
    if not files:
        print(f"no file's name contains {' or '.join(options.only)}", file=sys.stderr)
        return 2
    old = Budgets.load(options.budgets)
    recorded = cuda.load_records(_records(options.budgets))
    known = cuda.accepted(files, old, recorded) if options.known else {}
    try:
        codes = _compile(files, options, known)
    except subprocess.CalledProcessError as error:
        print(f"{' '.join(map(str, error.cmd))}\n{error.stderr}FAILED: nvcc does not compile it", file=sys.stderr)
        return 1
    except FileNotFoundError as error:
        print(error, file=sys.stderr)
        return 2
    whole = options.only == [""] and set(options.arch) == set(SHARED_LIMIT)
    broken = {name: [*limits_broken(code, arch), *_slow(name, code)] for name, (arch, code) in codes.items()}
    findings = not_exempt(broken, EXEMPTIONS, whole)
    new = Budgets({"nvcc": cuda.version()}, {name: asdict(code) for name, (_, code) in codes.items()})
    status = settle(options.budgets, new, findings, whole=whole, update=options.update, command=COMMAND)
    if options.update and status != 2:
        compiled = {f"{file.stem} sm_{arch}": cuda.key(file) for file in files for arch in options.arch}
        cuda.save_records(_records(options.budgets), compiled if whole else recorded | compiled)
    return status


def _records(budgets: Path) -> Path:
    """The records beside a budget file."""
    return budgets.with_suffix(".compiled")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--update", action="store_true", help="write the budget file and print what changes")
    parser.add_argument("--arch", type=int, nargs="+", default=list(SHARED_LIMIT), choices=SHARED_LIMIT)
    parser.add_argument(
        "--only", nargs="+", default=[""], metavar="PART", help="only files with this text in their names"
    )
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="parallel compiler processes")
    parser.add_argument(
        "--objects", type=Path, metavar="FOLDER", help="read these object files for the architectures that they have"
    )
    parser.add_argument("--known", action="store_true", help="take over the budgets of unchanged files")
    parser.add_argument("--budgets", type=Path, default=BUDGETS, metavar="FILE")
    return parser.parse_args()


def _compile(
    files: list[Path], options: argparse.Namespace, known: dict[tuple[str, int], cuda.Results]
) -> dict[str, tuple[int, MachineCode]]:
    """Entry "kernel file sm_90" to its architecture and machine code."""
    start, codes = time.perf_counter(), {}
    for file, arch, kernels in cuda.read_all(files, options.arch, options.workers, options.objects, known):
        codes |= {f"{kernel} {file.stem} sm_{arch}": (arch, code) for kernel, code in kernels.items()}
        taken = " as accepted" if kernels is known.get((file.stem, arch)) else ""
        print(
            f"{file.name} for sm_{arch}: {len(kernels)} kernels{taken}, {time.perf_counter() - start:.0f} s", flush=True
        )
    return codes


def _slow(name: str, code: MachineCode) -> list[tuple[str, str]]:
    """16-bit window attention and 1×1 convolution without matrix instructions."""
    multiplies = any(operator in name for operator in ("window_attention", "pointwise_conv2d"))
    is_16_bit = multiplies and ("Half" in name or "BFloat16" in name)
    return [("matrix", "16-bit products use no matrix instruction")] if is_16_bit and code.matrix == "none" else []


if __name__ == "__main__":
    sys.exit(main())
