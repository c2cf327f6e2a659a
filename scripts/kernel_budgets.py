"""Compile every Triton kernel for every architecture, without a GPU, and compare the results with their budgets.

    python scripts/kernel_budgets.py                 check; the exit status is 1 if a budget is exceeded
    python scripts/kernel_budgets.py --update        accept the results of this version of Triton
    python scripts/kernel_budgets.py --only group_norm --arch 90
    python scripts/kernel_budgets.py --known SEED    compile kernels that have changed since the last --update, and one
                                                     of forty of the others, a sample for SEED, any text
    python scripts/kernel_budgets.py --sweep         check every window, head size and width of the operators that
                                                     support many; takes almost an hour

The kernels are compiled in the configurations that the launchers choose for each architecture. There is a budget file
for each minor version of Triton, with some or all architectures. Without one, only limits for all versions are checked:
no spills, addresses that don't overflow, shared memory, 128-bit access, matrix instructions for 16-bit dots. The same
applies to a sweep, which has no budgets.

--update also writes a record of each kernel beside the budget file, with a hash of its source and of everything else
that its machine code depends on, and one of its intermediate representation. --known uses the records of kernels with
one of these instead of compiling them: of kernels that are the same, or that were only reworded or moved.
"""

import argparse
import importlib
import os
import sys
import time
from fnmatch import fnmatchcase
from pathlib import Path
from types import ModuleType

# Triton reads this variable when kernels are decorated; with the interpreter nothing would be compiled.
os.environ.pop("TRITON_INTERPRET", None)

import triton
from kernel_proof import coverage, records
from kernel_proof.budgets import Budgets, beyond_limits, budget_file, resources
from kernel_proof.compilation import Compiled, compile_jobs
from kernel_proof.report import report, settle

from resshift_fast.kernels import tuning
from resshift_fast.kernels.ahead import Job
from resshift_fast.kernels.launch import FP_FUSION

FOLDER = Path(__file__).parent
COMMAND = "python scripts/kernel_budgets.py --update"
BUDGETS = FOLDER.parent / "python_tests/kernels/budgets"


def main() -> int:
    """Run the command; returns the exit status."""
    options = _options()
    launch_cases = _load(options.launch_cases)
    every = launch_cases.SWEEP if options.sweep else launch_cases.LAUNCH_CASES
    chosen = [x for x in every if any(fnmatchcase(x.name, f"*{part}*") for part in options.only)]
    if not chosen:
        print(f"no launch case's name contains {' or '.join(options.only)}", file=sys.stderr)
        return 2
    jobs = coverage.entries(chosen, options.arch)
    new = Budgets({"triton": triton.__version__, "fp_fusion": FP_FUSION})
    file = options.budgets or budget_file(BUDGETS, triton.__version__, options.update)
    keys = {job: records.key(job) for job in set(jobs.values())}
    recorded = {} if options.sweep else records.load(records.file_of(file), new.compiler)
    known = _known(keys, recorded) if options.known else {}
    compiled = {job: record.compiled for job, record in known.items()}
    compiled |= _compile(_not_taken_over(keys, known, options.known), options)
    findings = beyond_limits(jobs, compiled, launch_cases.EXEMPTIONS, _is_whole(options))
    findings += records.contradictions(jobs, compiled, known)
    if options.sweep:
        _print_maxima(compiled)
        return report(findings, len(jobs))
    new.entries = {name: resources(job, compiled[job]) for name, job in jobs.items() if compiled[job].code}
    status = settle(file, new, findings, whole=options.only == [""], update=options.update, command=COMMAND)
    if options.update and status != 2:
        kept = records.but_of(recorded, options.arch) if options.only == [""] else recorded
        records.save(records.file_of(file), new.compiler, kept | _records(keys, compiled, known))
    return status


def _known(keys: dict[Job, str], recorded: records.Records) -> dict[Job, records.Record]:
    """Records of the jobs whose sources, or else whose intermediate representation, have not changed."""
    same = {job: recorded[key] for job, key in keys.items() if key in recorded}
    return same | records.same_ir(recorded, sorted(keys.keys() - same, key=repr))


def _records(keys: dict[Job, str], compiled: dict[Job, Compiled], known: dict[Job, records.Record]) -> records.Records:
    """What is recorded of the compiled jobs."""
    irs = {job: known[job].ir if job in known else records.ir_key(job) for job in keys if compiled[job].code}
    return {keys[job]: records.Record(compiled[job], ir) for job, ir in irs.items()}


def _not_taken_over(keys: dict[Job, str], known: dict[Job, records.Record], seed: str | None) -> set[Job]:
    """The jobs to compile: those without a record, and some of the others."""
    if seed is None:
        return set(keys)
    sample = {job for job in known if records.is_sampled(keys[job], seed)}
    print(f"{len(known)} of {len(keys)} kernels are unchanged; {len(sample)} of them are compiled anyway")
    return keys.keys() - known | sample


def _is_whole(options: argparse.Namespace) -> bool:
    """Whether every launch case is compiled for every architecture."""
    return not options.sweep and options.only == [""] and set(options.arch) == set(tuning.ARCHITECTURES)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--update", action="store_true", help="write the budget file and print what changes")
    action.add_argument(
        "--sweep", action="store_true", help="compile every shape of the operators that take many; limits only"
    )
    parser.add_argument("--known", metavar="SEED", help="use the records of unchanged kernels, but for a sample")
    parser.add_argument("--arch", type=int, nargs="+", default=tuning.ARCHITECTURES, choices=tuning.ARCHITECTURES)
    parser.add_argument(
        "--only", nargs="+", default=[""], metavar="PART", help="only launch cases with this text in their names"
    )
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="processes that compile")
    parser.add_argument("--cache", type=Path, metavar="FOLDER", help="folder to cache compiled kernels in")
    parser.add_argument("--budgets", type=Path, metavar="FILE", help="budget file to use instead of this version's")
    parser.add_argument("--launch-cases", type=Path, metavar="FILE", help="a module with LAUNCH_CASES and EXEMPTIONS")
    return parser.parse_args()


def _load(file: Path | None) -> ModuleType:
    if file is None:
        from kernel_proof import launch_cases

        return launch_cases
    # The compiling processes have the same search path, from which they import the kernels of the launch cases.
    sys.path.insert(0, str(file.resolve().parent))
    return importlib.import_module(file.stem)


def _compile(jobs: set[Job], options: argparse.Namespace) -> dict[Job, Compiled]:
    start = time.perf_counter()
    results = {}
    for job, compiled in compile_jobs(sorted(jobs, key=repr), options.workers, options.cache):
        results[job] = compiled
        if len(results) % 50 == 0 or len(results) == len(jobs):
            print(f"{len(results)}/{len(jobs)} kernels compiled in {time.perf_counter() - start:.0f} s", flush=True)
    if not results:
        return results
    slowest = max(results, key=lambda job: results[job].seconds)
    print(f"slowest: {slowest.kernel} for sm_{slowest.arch} in {results[slowest].seconds:.0f} s")
    return results


def _print_maxima(compiled: dict[Job, Compiled]) -> None:
    for arch in sorted({job.arch for job in compiled}):
        codes = [result.code for job, result in compiled.items() if job.arch == arch and result.code]
        most = {key: max(getattr(code, key) for code in codes) for key in ("registers", "spill", "shared")}
        print(f"sm_{arch}: {len(codes)} kernels, at most " + ", ".join(f"{key} {x}" for key, x in most.items()))


if __name__ == "__main__":
    sys.exit(main())
