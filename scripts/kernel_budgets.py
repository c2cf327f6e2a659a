"""Compile every Triton kernel for every architecture, without a GPU, and hold the results against their budgets.

    python scripts/kernel_budgets.py                 check; the exit status tells
    python scripts/kernel_budgets.py --update        accept the numbers of this version of Triton
    python scripts/kernel_budgets.py --only group_norm --arch 90
    python scripts/kernel_budgets.py --sweep         check every window, head size and width of the operators that take
                                                     many; takes the better part of an hour

The kernels are compiled in the configurations that the launchers choose for each architecture. On another version of
Triton than the budget file's, only what holds on any version is checked: no spills, addresses that don't wrap, shared
memory, 128-bit access, matrix instructions for 16-bit dots. The same goes for a sweep, which has no budgets.
"""

import argparse
import importlib
import os
import sys
import time
from fnmatch import fnmatchcase
from pathlib import Path
from types import ModuleType

# Triton reads it when kernels are decorated; its interpreter compiles nothing.
os.environ.pop("TRITON_INTERPRET", None)

import triton  # noqa: E402
from kernel_proof import coverage  # noqa: E402
from kernel_proof.budgets import Budgets, beyond_budgets, beyond_limits, differences, numbers  # noqa: E402
from kernel_proof.compilation import FP_FUSION, Compiled, Job, compile_jobs  # noqa: E402

from resshift_fast.kernels import tuning  # noqa: E402

FOLDER = Path(__file__).parent
COMMAND = "python scripts/kernel_budgets.py --update"
BUDGETS = FOLDER.parent / "python_tests/kernels/budgets.json"


def main() -> int:
    """Run the command; returns the exit status."""
    options = _options()
    specimens = _load(options.specimens)
    every = specimens.SWEEP if options.sweep else specimens.SPECIMENS
    chosen = [x for x in every if any(fnmatchcase(x.name, f"*{part}*") for part in options.only)]
    if not chosen:
        print(f"no specimen's name contains {' or '.join(options.only)}", file=sys.stderr)
        return 2
    jobs = coverage.entries(chosen, options.arch)
    compiled = _compile(set(jobs.values()), options)
    findings = beyond_limits(jobs, compiled, specimens.EXEMPTIONS, _is_whole(options))
    if options.sweep:
        _print_maxima(compiled)
        return _report(findings, len(jobs))
    old, new = Budgets.load(options.budgets), Budgets(triton.__version__)
    new.entries = {name: numbers(job, compiled[job]) for name, job in jobs.items() if compiled[job].code}
    if options.update:
        return _update(options, old, new, findings)
    if not old:
        findings.append((str(options.budgets), f"there is no such file; {COMMAND} writes it"))
    elif (old.triton, old.fp_fusion) != (new.triton, new.fp_fusion):
        print(
            f"The budgets are for Triton {old.triton} with fp_fusion={old.fp_fusion}, here is {new.triton} with "
            f"fp_fusion={FP_FUSION}: numbers are not compared, only what holds on any version."
        )
    else:
        worse = beyond_budgets(old, new, _is_whole(options))
        findings += worse
        if worse:
            print(f"If the numbers changed on purpose, {COMMAND} accepts them.")
    return _report(findings, len(jobs))


def _is_whole(options: argparse.Namespace) -> bool:
    """Whether every specimen is compiled for every architecture."""
    return not options.sweep and options.only == [""] and set(options.arch) == set(tuning.ARCHITECTURES)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--update", action="store_true", help="write the budget file and print what changes")
    action.add_argument(
        "--sweep", action="store_true", help="compile every shape of the operators that take many; limits only"
    )
    parser.add_argument("--arch", type=int, nargs="+", default=tuning.ARCHITECTURES, choices=tuning.ARCHITECTURES)
    parser.add_argument("--only", nargs="+", default=[""], metavar="PART", help="of the specimens' names")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="processes that compile")
    parser.add_argument("--cache", type=Path, metavar="FOLDER", help="keep there what is compiled, for the next time")
    parser.add_argument("--budgets", type=Path, default=BUDGETS, metavar="FILE")
    parser.add_argument("--specimens", type=Path, metavar="FILE", help="a module with SPECIMENS and EXEMPTIONS")
    return parser.parse_args()


def _load(file: Path | None) -> ModuleType:
    if file is None:
        from kernel_proof import specimens

        return specimens
    # The processes that compile have the same search path, and import the kernels of the specimens from it.
    sys.path.insert(0, str(file.resolve().parent))
    return importlib.import_module(file.stem)


def _compile(jobs: set[Job], options: argparse.Namespace) -> dict[Job, Compiled]:
    start = time.perf_counter()
    results = {}
    for job, compiled in compile_jobs(sorted(jobs, key=repr), options.workers, options.cache):
        results[job] = compiled
        if len(results) % 50 == 0 or len(results) == len(jobs):
            print(f"{len(results)}/{len(jobs)} kernels compiled in {time.perf_counter() - start:.0f} s", flush=True)
    slowest = max(results, key=lambda job: results[job].seconds)
    print(f"slowest: {slowest.kernel} for sm_{slowest.arch} in {results[slowest].seconds:.0f} s")
    return results


def _print_maxima(compiled: dict[Job, Compiled]) -> None:
    for arch in sorted({job.arch for job in compiled}):
        codes = [result.code for job, result in compiled.items() if job.arch == arch and result.code]
        most = {key: max(getattr(code, key) for code in codes) for key in ("registers", "spill", "shared")}
        print(f"sm_{arch}: {len(codes)} kernels, at most " + ", ".join(f"{key} {x}" for key, x in most.items()))


def _update(options: argparse.Namespace, old: Budgets | None, new: Budgets, findings: list[tuple[str, str]]) -> int:
    before = old.entries if old else {}
    if not _is_whole(options):
        if old and (old.triton, old.fp_fusion) != (new.triton, new.fp_fusion):
            print("The budgets are for another Triton: update all of them.", file=sys.stderr)
            return 2
        new.entries = {**before, **new.entries}
    for line in differences(before, new.entries):
        print(line)
    new.save(options.budgets)
    print(f"{len(new.entries)} budgets are in {options.budgets}")
    return _report(findings, len(new.entries))


def _report(findings: list[tuple[str, str]], count: int) -> int:
    """Print the findings, those that a kernel has in several specimens once; returns the exit status."""
    if not findings:
        print(f"{count} kernels × specimens × architectures are within their budgets")
        return 0
    entries: dict[tuple[str, str], list[str]] = {}
    for name, text in findings:
        kernel, _, specimen = name.partition(" ")
        entries.setdefault((kernel, text), []).append(specimen)
    for (kernel, text), names in entries.items():
        others = f" and {len(names) - 1} more" if len(names) > 1 else ""
        where = f" ({names[0]}{others})" if names[0] else ""
        print(f"{kernel}: {text}{where}", file=sys.stderr)
    print(f"FAILED: {len(entries)} findings", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
