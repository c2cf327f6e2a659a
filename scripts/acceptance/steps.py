"""The checks and measurements on a GPU, the most important first, and the share of the time for each step."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Step:
    """One program of the acceptance.

    Args:
        name: in the result.
        share: of the whole time; all shares add up to 1. Time that a step does not use goes to the later ones.
        command: what runs; "{folder}" is replaced by a folder that is read while it runs and afterwards.
        tables: CSV and JSON files in the folder that go into the result.
        files: other files in the folder that are kept beside the result.
        shown: columns of the tables that the summary prints; of long tables only rows with a problem.
        tool: program that has to be installed.
        tests: whether it runs pytest; at least one test has to pass.
        may_be_cut: whether it may exceed its time; what it has written is used, and no test may have failed.
        environment: additional variables.
    """

    name: str
    share: float
    command: tuple[str, ...]
    tables: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    shown: tuple[str, ...] = ()
    tool: str | None = None
    tests: bool = False
    may_be_cut: bool = False
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Scale:
    """The extent of the steps: complete on a GPU, or minimal for a rehearsal.

    Args:
        device, backends, model, dtype: what runs. photo: side of the first step's photo in pixels, which is restored
            with the backends of `restored`.
        sizes: (side, images) of the whole restorations. providers, compiled: those of these restorations, and those
            that have separate steps.
        runs: timed runs of each.
        jobs: processes that check operators, and that run tests.
        checked, timed: options of scripts/check_operators.py and benchmarks/operators.py.
        profiled: options of scripts/profile_nsys.sh. tuned: those of bench tune.
        sanitizer: the program. tests: options of pytest.
    """

    device: str
    backends: tuple[str, ...]
    restored: tuple[str, ...]
    model: str
    dtype: str
    photo: int
    sizes: tuple[tuple[int, int], ...]
    providers: tuple[str, ...]
    compiled: str
    runs: int
    jobs: int
    checked: tuple[str, ...]
    timed: tuple[str, ...]
    profiled: tuple[str, ...]
    tuned: tuple[str, ...]
    sanitizer: tuple[str, ...]
    tests: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)


# Warnings are shown but do not fail a test: some may appear only on a GPU.
PYTEST = (sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", "-W", "default")
MODEL = "realsr-x4-v3"
GPU = Scale(
    device="cuda",
    backends=("cuda", "triton"),
    restored=("cuda", "triton"),
    model=MODEL,
    dtype="bfloat16",
    photo=64,
    sizes=((64, 1), (64, 16), (128, 1)),
    providers=("reference", "ours", "ours-compiled"),
    compiled="compile",
    runs=20,
    jobs=12,
    checked=("--dtype", "bfloat16", "float16", "float32", "--backward"),
    timed=("--dtype", "bfloat16", "--no-backward", "--no-compile"),
    profiled=("--dtype", "bfloat16"),
    tuned=("--dtype", "bfloat16"),
    sanitizer=("compute-sanitizer",),
    tests=("-n", "8"),
)
# As little as possible, on a CPU: a rehearsal tests that the steps work together.
_ONE_OPERATOR = ("--op", "posterior_step")
REHEARSAL = Scale(
    device="cpu",
    backends=("cpu", "triton"),
    restored=("cpu",),  # Triton's interpreter would take minutes
    model="nano-x4",
    dtype="float32",
    photo=8,
    sizes=((8, 1), (8, 2), (16, 1)),
    providers=("reference", "ours"),  # compiling takes a minute on a CPU
    compiled="reference",
    runs=1,
    jobs=2,
    checked=("--dtype", "float32", "float16", *_ONE_OPERATOR, "--quick"),
    timed=("--dtype", "float32", "--no-backward", "--no-compile", *_ONE_OPERATOR, "--quick"),
    profiled=("--model", "nano-x4", "--size", "8", "--dtype", "float32", "--steps", "1", "--warmup", "1"),
    tuned=("--model", "nano-x4", "--size", "8", "--repeats", "1"),
    sanitizer=(sys.executable, "scripts/acceptance/stand_in.py"),
    tests=(),
    environment={"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "RESSHIFT_FAST_AUTOTUNE_CACHE": "0"},
)

ON_GPU = "python_tests/test_on_gpu.py"
KERNELS = "python_tests/kernels"
# torch's caching allocator is off, because it would hide accesses out of bounds; captures need it.
SANITIZED = ("-k", "float16 and not bfloat16 and not bitwise and not captured and not graph")
# On a CPU the tests of the first file are skipped, which would count as a failure.
TESTED = {
    "cuda": {
        "memcheck": (ON_GPU, f"{KERNELS}/test_residual_shift.py", f"{KERNELS}/test_window_attention.py")
        + (f"{KERNELS}/test_window_attention_proj.py", *SANITIZED),
        "racecheck": (ON_GPU, "-k", "agrees and float16 and not bfloat16"),
        "tests": (ON_GPU, KERNELS, "--ignore-glob=*test_budgets*", "python_tests/restoration/test_compilation.py")
        + ("python_tests/backends/test_dispatch.py", "python_tests/backends/test_native.py"),
    },
    "cpu": {
        "memcheck": (f"{KERNELS}/test_residual_shift.py", "-k", "float16", "--most-cases=2"),
        "racecheck": ("python_tests/backends/test_native.py", "--most-cases=2"),
        "tests": ("python_tests/backends/test_dispatch.py", "--most-cases=2"),
    },
}


def restoration(scale: Scale, name: str, share: float, size: tuple[int, int], *providers: str, **options) -> Step:
    """A step that measures whole restorations."""
    side, batch = map(str, size)
    return Step(
        name,
        share,
        (sys.executable, "benchmarks/end_to_end.py", "--model", scale.model, "--device", scale.device)
        + ("--dtype", scale.dtype, "--size", side, "--batch", batch, "--runs", str(scale.runs))
        + ("--providers", *providers, "--json", "{folder}/restorations.json"),
        tables=("restorations.json",),
        shown=("provider", "dtype", "whole_median_s", "psnr_db", "running_mb", "note"),
        **options,
    )


def steps(scale: Scale = GPU) -> list[Step]:
    """All steps, in order."""
    python, tests = sys.executable, TESTED[scale.device]
    backends = ("--backend", *scale.backends)
    whole = [f"restorations {size}x{size}, batch {batch}" for size, batch in scale.sizes]
    sanitizer = scale.sanitizer[0] if scale.device == "cuda" else None
    return [
        Step(
            "smoke",
            0.07,
            (python, "scripts/acceptance/smoke.py", "--device", scale.device, "--dtype", scale.dtype)
            + ("--size", str(scale.photo), "--backend", *scale.restored, "--csv", "{folder}/smoke.csv"),
            tables=("smoke.csv",),
            shown=("backend", "kernels", "first s", "again s", "psnr dB", "problem"),
        ),
        Step(
            "operators",
            0.17,
            (python, "scripts/check_operators.py", "--device", scale.device, *backends, *scale.checked)
            + ("--jobs", str(scale.jobs), "--csv", "{folder}/operators.csv"),
            tables=("operators.csv",),
            shown=("operator", "case", "dtype", "pass", "backend", "verdict", "problem"),
        ),
        restoration(scale, whole[0], 0.11, scale.sizes[0], *scale.providers),
        restoration(scale, whole[1], 0.07, scale.sizes[1], *scale.providers),
        restoration(scale, whole[2], 0.07, scale.sizes[2], *scale.providers),
        restoration(scale, "torch.compile", 0.11, scale.sizes[0], scale.compiled, may_be_cut=True),
        Step(
            "times of operators",
            0.09,
            (python, "benchmarks/operators.py", "--device", scale.device, *scale.timed, "--output", "{folder}"),
            tables=("operators.csv",),
            may_be_cut=True,
        ),
        Step(
            "profile",
            0.05,
            ("bash", "scripts/profile_nsys.sh", "--device", scale.device, *scale.profiled, "--output", "{folder}"),
            tables=("stages.csv", "operators.csv", "kernels.csv", "workload.json"),
            files=("report.txt", "report.png"),
            environment={"PYTHON": python},
        ),
        Step(
            "memory errors",
            0.07,
            (*scale.sanitizer, "--error-exitcode", "9", *PYTEST, "-x", *tests["memcheck"]),
            tool=sanitizer,
            tests=True,
            environment={"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
        ),
        Step(
            "races",
            0.03,
            (*scale.sanitizer, "--tool", "racecheck", "--error-exitcode", "9", *PYTEST, "-x", *tests["racecheck"]),
            tool=sanitizer,
            tests=True,
        ),
        Step("tests", 0.08, (*PYTEST, *scale.tests, *tests["tests"]), tests=True, may_be_cut=True),
        Step(
            "tune",
            0.03,
            (python, "-m", "resshift_fast", "bench", "tune", "--device", scale.device, *scale.tuned)
            + ("--output", "{folder}/autotune.json"),
            tables=("autotune.json",),
        ),
        restoration(
            scale,
            "torch.compile, max-autotune",
            0.05,
            scale.sizes[0],
            scale.compiled,
            may_be_cut=True,
            environment={"TORCHINDUCTOR_MAX_AUTOTUNE": "1", "TORCHINDUCTOR_COORDINATE_DESCENT_TUNING": "1"},
        ),
    ]
