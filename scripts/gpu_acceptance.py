"""Everything that only a GPU can prove, in one run of ten minutes at most; writes one JSON under benchmarks/results/.

    make gpu
    python scripts/gpu_acceptance.py --budget 600 --output benchmarks/results

Tests with the Triton and the CUDA C++ kernels on the GPU, compute-sanitizer over a few of them, benchmarks of operators
with either and of whole restorations, and a profile with nsys. Tools that are not installed are named in the result
and not counted as passed.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BENCHMARKS = ROOT / "benchmarks"
TAIL = 4000  # characters of a step's output that the result keeps

PASSED, FAILED, ABSENT, LATE = "passed", "failed", "tool not installed", "no time left"


@dataclass
class Step:
    """One proof.

    Args:
        name: in the result.
        command: what runs; "{folder}" stands for a folder that is read afterwards.
        share: of the whole time, that it may take at most.
        tool: program that has to be installed.
        tables: CSV and JSON files in the folder that go into the result.
    """

    name: str
    command: list[str]
    share: float
    tool: str | None = None
    tables: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)


def steps() -> list[Step]:
    """The proofs, the most telling first."""
    python = sys.executable
    tests = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    sanitized = ["python_tests/kernels/test_residual_shift.py", "python_tests/kernels/test_window_attention.py"]
    sanitized += ["python_tests/test_on_gpu.py"]
    return [
        Step("kernels", [*tests, "-x", "--maxfail=20", "python_tests/kernels", "--ignore-glob=*test_budgets*"], 0.35),
        Step("extension", [*tests, "python_tests/test_on_gpu.py", "python_tests/test_native.py"], 0.1),
        Step("chain", [*tests, "python_tests/test_compilation.py", "python_tests/test_backends.py"], 0.1),
        Step(
            "end to end",
            [python, str(BENCHMARKS / "end_to_end.py"), "--device", "cuda", "--dtype", "float32", "bfloat16"]
            + ["--runs", "20", "--json", "{folder}/end_to_end.json"],
            0.25,
            tables=("end_to_end.json",),
        ),
        *(
            Step(
                f"operators {backend}",
                [python, str(BENCHMARKS / "operators.py"), "--device", "cuda", "--quick", "--output", "{folder}"],
                0.2,
                tables=("*.csv",),
                environment={"RESSHIFT_FAST_BACKEND": backend},
            )
            for backend in ("cuda", "triton")
        ),
        Step(
            "tune",
            [python, "-m", "resshift_fast", "bench", "tune", "--device", "cuda", "--dtype", "bfloat16"]
            + ["--output", "{folder}/preferences.json"],
            0.1,
            tables=("preferences.json",),
        ),
        Step(
            "sanitizer",
            ["compute-sanitizer", "--error-exitcode", "9", *tests, "-x", "-k", "float16 and not bitwise", *sanitized],
            0.2,
            tool="compute-sanitizer",
            # Its allocator would hide what is out of bounds.
            environment={"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
        ),
        Step(
            "races",
            ["compute-sanitizer", "--tool", "racecheck", "--error-exitcode", "9", *tests, "-x"]
            + ["python_tests/test_on_gpu.py", "-k", "agrees"],
            0.15,
            tool="compute-sanitizer",
        ),
        Step(
            "profile",
            ["bash", "scripts/profile_nsys.sh", "--dtype", "bfloat16", "--output", "{folder}"],
            0.15,
            tool="nsys",
            tables=("*.csv", "workload.json"),
        ),
    ]


def run(step: Step, folder: Path, seconds: float) -> dict[str, Any]:
    """Run one proof and say how it went."""
    if step.tool and not shutil.which(step.tool):
        return {"verdict": ABSENT, "tool": step.tool}
    if seconds < 5:
        return {"verdict": LATE}
    command = [part.replace("{folder}", str(folder)) for part in step.command]
    start = time.monotonic()
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), **step.environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=seconds,
        )
        verdict, output = PASSED if done.returncode == 0 else FAILED, done.stdout
    except subprocess.TimeoutExpired as error:
        verdict, output = f"{FAILED}: longer than {seconds:.0f} s", error.stdout or b""
    result = {"verdict": verdict, "seconds": round(time.monotonic() - start, 1), "command": " ".join(command)}
    result["output"] = output.decode(errors="replace")[-TAIL:]
    files = [path for pattern in step.tables for path in sorted(folder.glob(pattern))]
    return result | {"tables": {path.name: _table(path) for path in files}}


def _table(path: Path) -> Any:
    if path.suffix == ".json":
        return json.loads(path.read_text(encoding="utf-8"))
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def machine() -> dict[str, Any]:
    """The GPU and what drives it."""
    import torch
    import triton

    from resshift_fast import native

    properties = torch.cuda.get_device_properties(0)
    return {
        "gpu": properties.name,
        "compute capability": f"{properties.major}.{properties.minor}",
        "memory MiB": properties.total_memory // 2**20,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": triton.__version__,
        "python": platform.python_version(),
        "cuda library": native.missing("cuda") or "loaded",
    }


def gpu_missing() -> str | None:
    """Why nothing can run here, in one line, or None."""
    try:
        import torch
        import triton  # noqa: F401
    except ImportError as error:
        return f"{error}; install torch with CUDA and Triton"
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} finds no CUDA GPU"
    return None


def main(argv: list[str] | None = None) -> int:
    """Run the proofs; 0 if all that could run passed, 1 if one failed, 2 if there is no GPU."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--budget", type=float, default=600, metavar="S", help="Seconds in all. Default: 600.")
    parser.add_argument("--output", type=Path, default=BENCHMARKS / "results", help="Default: benchmarks/results.")
    parser.add_argument("--only", nargs="+", metavar="STEP", choices=[s.name for s in steps()], help="Default: all.")
    args = parser.parse_args(argv)
    if reason := gpu_missing():
        print(f"no GPU, nothing was run: {reason}", file=sys.stderr)
        return 2
    found = machine()
    print(f"{found['gpu']}, torch {found['torch']}, triton {found['triton']}", flush=True)
    end = time.monotonic() + args.budget
    results: dict[str, Any] = {}
    for step in steps():
        if args.only and step.name not in args.only:
            continue
        with tempfile.TemporaryDirectory() as folder:
            seconds = min(step.share * args.budget, end - time.monotonic())
            results[step.name] = run(step, Path(folder), seconds)
        print(f"{step.name}: {results[step.name]['verdict']}", flush=True)
    args.output.mkdir(parents=True, exist_ok=True)
    name = "-".join(found["gpu"].lower().split())
    path = args.output / f"{name}-torch{found['torch'].split('+')[0]}-triton{found['triton']}.json"
    path.write_text(json.dumps({"machine": found, "steps": results}, indent=1) + "\n", encoding="utf-8")
    print(f"results: {path}")
    return int(any(result["verdict"].startswith(FAILED) for result in results.values()))


if __name__ == "__main__":
    sys.exit(main())
