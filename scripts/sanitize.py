"""Run tests of the native kernels under sanitizers.

    python scripts/sanitize.py                                  all of them, in three runs
    python scripts/sanitize.py threads -x -k conv2d             one run, with options of pytest
    python scripts/sanitize.py emulation python_tests/csrc/test_emulation.py
    python scripts/sanitize.py --most-cases=10                  all runs, at most so many cases of each test
    python scripts/sanitize.py --update                         and keep a record of those that passed
    python scripts/sanitize.py --known SEED                     leave out runs that have not changed since, but for one

The runs, to be named first:

    emulation   the CUDA kernels, executed on the CPU, under AddressSanitizer and UndefinedBehaviorSanitizer
    memory      the kernels for CPUs under the same, portable and with the best instruction set that this processor has
    threads     the kernels for CPUs under ThreadSanitizer, with that instruction set

Other arguments go to pytest, and the status is that of the first run that fails. An index out of bounds, also in shared
memory, a misaligned access, an overflow or a data race ends a run with a report.

The record is python_tests/csrc/sanitized.json: for each run a hash of the sources, of its tests and of what both are
built and called with, and how many cases of each test passed (null: those of a run without --most-cases). SEED, a
commit for instance, chooses the run that is repeated.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
RECORD = ROOT / "python_tests/csrc/sanitized.json"
COMPILER = os.environ.get("CXX", "g++")
# No leak checks: Python frees much memory only at exit, and a kernel that is stopped midway leaks.
ADDRESS_OPTIONS = "detect_leaks=0:allocator_may_return_null=1:strict_string_checks=1"
UNDEFINED_OPTIONS = "print_stacktrace=1:halt_on_error=1"
# ThreadSanitizer sees only part of the accesses and of the synchronization in torch and Python.
THREAD_OPTIONS = "ignore_noninstrumented_modules=1:halt_on_error=1:exitcode=66"


@dataclass
class Run:
    """Some tests, and the environment in which Python can load what was built for them.

    Args:
        tests: files and folders.
        libraries: of the compiler, preloaded. libstdc++ is needed with libasan, because AddressSanitizer looks up the
            functions that throw exceptions when it starts.
        options: variables that sanitizers read. variables: those that tests read.
        selection: options of pytest that come first, so that the caller's -k and --most-cases take precedence.
        sources: what the result depends on besides the tests, files and folders.
    """

    tests: list[str]
    libraries: list[str]
    options: dict[str, str]
    variables: dict[str, str] = field(default_factory=dict)
    selection: list[str] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)


def selected(cases: str) -> list[str]:
    """Options of pytest for a few cases of the tests that fit this expression."""
    return ["-k", cases, "--most-cases=30"]


MEMORY = {"ASAN_OPTIONS": ADDRESS_OPTIONS, "UBSAN_OPTIONS": UNDEFINED_OPTIONS}
# The operators' tests of these kernels: files with their name, and tests with the backend as a parameter.
CPU_TESTS = [
    *(str(path) for path in sorted((ROOT / "python_tests/ops").glob("test_*_cpu.py"))),
    *("python_tests/ops/test_residual_shift.py", "python_tests/backends/test_native.py"),
    "python_tests/csrc/test_cpu_sanitizers.py",
]
# A few cases of each test, and no traces, which run much other code and little of the kernels'. An earlier call leaves
# nothing here, where every call has scratch memory of its own.
CPU_CASES = "(cpu or native) and not program and not compile and not earlier_call"
# These call kernels from many threads, or with many: half of the time, for accesses that other tests have too.
MEMORY_CASES = f"{CPU_CASES} and not at_once and not threads"
ASAN = ["libasan.so", "libstdc++.so"]
HELPERS = [f"python_tests/{name}.py" for name in ("comparison", "conftest", "golden_data", "pairwise")]
CALLERS = ["resshift_fast/ops", "scripts/sanitize.py", *HELPERS]
OF_EMULATION = ["csrc/common", "csrc/cuda", "csrc/emulation", "csrc/bindings", "python_tests/emulation.py", *CALLERS]
OF_CPU = [
    "csrc/common",
    "csrc/cpu",
    "csrc/bindings",
    "python_tests/ops",
    "python_tests/cpu_build.py",
    "setup.py",
    *CALLERS,
]
RUNS = {
    "emulation": Run(["python_tests/csrc"], ASAN, MEMORY, {"RESSHIFT_FAST_SANITIZE": "1"}, sources=OF_EMULATION),
    "memory": Run(CPU_TESTS, ASAN, MEMORY, selection=selected(MEMORY_CASES), sources=OF_CPU),
    "threads": Run(
        CPU_TESTS, ["libtsan.so"], {"TSAN_OPTIONS": THREAD_OPTIONS}, selection=selected(CPU_CASES), sources=OF_CPU
    ),
}


def library(name: str) -> str | None:
    """Path of the compiler's library of this name, or None."""
    found = subprocess.run([COMPILER, f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    path = found.stdout.strip()
    return path if os.path.isabs(path) else None


def environment(name: str) -> dict[str, str] | None:
    """The environment of a run, after building its library if it needs one; None without a compiler."""
    if shutil.which(COMPILER) is None:
        return None
    run = RUNS[name]
    libraries = [library(file) for file in run.libraries]
    if None in libraries:
        return None
    variables = os.environ | {"RESSHIFT_FAST_REQUIRE_COMPILER": "1"} | run.options | run.variables
    if name != "emulation":
        sys.path.append(str(ROOT / "python_tests"))
        import cpu_build

        variables["RESSHIFT_FAST_CPU_LIBRARY"] = str(cpu_build.build(name))
        variables["RESSHIFT_FAST_SANITIZED_CPU"] = name
        # A stored verdict on this library would otherwise be used for the installed one.
        variables["RESSHIFT_FAST_VERIFY"] = "0"
    return variables | {"LD_PRELOAD": " ".join(libraries)}


def prefix() -> list[str]:
    """Command prefix that disables address randomization, which older versions of ThreadSanitizer need."""
    setarch = ["setarch", "-R"]
    allowed = shutil.which("setarch") and subprocess.run([*setarch, "true"], capture_output=True).returncode == 0
    return setarch if allowed else []


def execute(name: str, arguments: list[str]) -> int:
    """Do one run; returns pytest's exit status, or 2 if nothing was run."""
    variables = environment(name)
    if variables is None:
        files = " and ".join(RUNS[name].libraries)
        print(f"nothing was run: {COMPILER} with its {files} is not here; install g++ or name a compiler with CXX")
        return 2
    if "-k" not in arguments:
        arguments = [*RUNS[name].selection, *arguments]
    if not any(_exists(argument) for argument in arguments):
        arguments = [*(str(ROOT / path) for path in RUNS[name].tests), *arguments]
    # No capture: sanitizers write reports outside of Python, and captured output is lost when the process ends.
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--capture=sys", *arguments]
    print(f"sanitize: {name}", flush=True)
    return subprocess.run([*prefix(), *command], env=variables, cwd=ROOT).returncode


def digest(run: Run) -> str:
    """A hash of the files that the result of a run depends on, with their names."""
    hashed = hashlib.sha256()
    for path in sorted({file for name in (*run.tests, *run.sources) for file in _files(ROOT / name)}):
        for part in (path.relative_to(ROOT).as_posix().encode(), path.read_bytes()):
            hashed.update(len(part).to_bytes(8, "little") + part)
    return hashed.hexdigest()


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
    else:
        yield from (file for file in path.rglob("*") if file.suffix in (".py", ".h", ".cpp", ".cu"))


def recorded() -> dict[str, dict[str, object]]:
    """The record: digest and number of cases (None: all) by run."""
    found: dict[str, dict[str, object]] = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    return found


def passed_before(name: str, cases: int | None) -> bool:
    """Whether the record has this run, with at least so many cases, of the files as they are."""
    record = recorded().get(name, {})
    before = record.get("cases", 0)
    enough = before is None or (isinstance(before, int) and cases is not None and cases <= before)
    return enough and record.get("digest") == digest(RUNS[name])


def left(named: list[str], seed: str, cases: int | None) -> list[str]:
    """Of the named runs those that are not recorded, and the one that the seed chooses."""
    chosen = named[zlib.crc32(seed.encode()) % len(named)]
    return [name for name in named if name == chosen or not passed_before(name, cases)]


def _selects(argument: str) -> bool:
    """Whether pytest runs not all tests with this argument."""
    return argument.startswith(("-k", "-m", "--deselect", "--ignore")) or _exists(argument)


def _exists(argument: str) -> bool:
    return os.path.exists(argument.partition("::")[0])


def main(argv: list[str] | None = None) -> int:
    """Do the named runs; returns the first exit status that is not 0."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--update", action="store_true", help="record the runs that pass")
    parser.add_argument("--known", metavar="SEED", help="leave out recorded runs that have not changed, but for one")
    parser.add_argument("--most-cases", type=int, metavar="N", help="of each test. Default: 30, all of the emulation's")
    options, arguments = parser.parse_known_args(argv)
    named = []
    while arguments and arguments[0] in RUNS:
        named.append(arguments.pop(0))
    named = named or list(RUNS)
    if options.update and any(_selects(argument) for argument in arguments):
        parser.error("--update records whole runs; leave out -k, -m and names of tests")
    if options.known:
        changed = left(named, options.known, options.most_cases)
        if unchanged := " and ".join(name for name in named if name not in changed):
            print(f"sanitize: {unchanged} passed before, and nothing has changed since", flush=True)
        named = changed
    if options.most_cases is not None:
        arguments.append(f"--most-cases={options.most_cases}")
    results = {name: execute(name, arguments) for name in named}
    if options.update:
        passed = {
            name: {"digest": digest(RUNS[name]), "cases": options.most_cases} for name in named if not results[name]
        }
        RECORD.write_text(json.dumps(dict(sorted((recorded() | passed).items())), indent=2) + "\n")
    return next(filter(None, results.values()), 0)


if __name__ == "__main__":
    sys.exit(main())
