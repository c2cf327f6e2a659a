"""Kernels compiled ahead of time are those that the JIT looks up, and the processes that compile them end."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import compiled_kernels
import pytest
import torch

from resshift_fast.kernels import ahead

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).parents[1]
LAUNCHES = len(compiled_kernels.launches())


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty disk cache for Triton."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def python(*arguments, **options) -> subprocess.Popen:
    """A process in which kernels are compiled, not interpreted."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(FOLDER), os.environ.get("PYTHONPATH", "")])}
    environment.pop("TRITON_INTERPRET", None)
    return subprocess.Popen([sys.executable, *map(str, arguments)], env=environment, text=True, **options)


def found_by_the_jit() -> list[bool]:
    """For each launch whether its kernel was in the cache; a missing one is compiled into it."""
    process = python(FOLDER / "compiled_kernels.py", stdout=subprocess.PIPE)
    return json.loads(process.communicate(timeout=120)[0])


def test_every_launch_finds_the_kernel_compiled_ahead(cache):
    reported = []
    outcomes, returned = ahead.compile_jobs(
        compiled_kernels.emit_launches, workers=2, advance=lambda *counts: reported.append(counts)
    )
    assert returned == len(outcomes) == LAUNCHES  # equal jobs count once
    assert reported == [(done, LAUNCHES) for done in range(1, LAUNCHES + 1)]
    assert all(outcome.compiled and not outcome.error and outcome.seconds > 0 for outcome in outcomes.values())
    assert all((cache / outcome.file).is_file() for outcome in outcomes.values())
    assert len({outcome.file for outcome in outcomes.values()}) == LAUNCHES
    assert found_by_the_jit() == [True] * LAUNCHES


def test_the_jit_compiles_missing_kernels(cache):
    """Shows that the test above can fail, and that `compile_jobs` skips kernels that the JIT has compiled."""
    assert found_by_the_jit() == [False] * LAUNCHES
    outcomes, _ = ahead.compile_jobs(compiled_kernels.emit_launches, workers=1)
    assert len(outcomes) == LAUNCHES and not any(outcome.compiled for outcome in outcomes.values())


def test_sums_of_products_are_rounded_once_whatever_tritons_default_is(cache):
    """The default depends on Triton's version and on an environment variable."""
    default = {"TRITON_DEFAULT_FP_FUSION": "0"}
    outcomes, _ = ahead.compile_jobs(compiled_kernels.emit_launches, workers=1, environment=default)
    options = [json.loads((cache / outcome.file).read_text()) for outcome in outcomes.values()]
    assert [x["enable_fp_fusion"] for x in options] == [True] * LAUNCHES


@pytest.mark.parametrize("error", [None, AssertionError("libcuda.so cannot found!")], ids=["built", "no driver"])
def test_launchers_are_built_for_a_triton_that_needs_them(monkeypatch, error):
    """Up to Triton 3.6 the first launch of a signature compiles a launcher in C."""
    from triton.backends.nvidia import driver

    built = []

    def launcher(*arguments):
        built.append(arguments)
        if error:
            raise error

    compiled = SimpleNamespace(src="source", metadata="metadata")
    monkeypatch.setattr(driver, "CudaLauncher", launcher)
    monkeypatch.delattr(driver, "make_launcher", raising=False)
    ahead._build_launcher(compiled)
    assert built == []
    monkeypatch.setattr(driver, "make_launcher", None, raising=False)
    ahead._build_launcher(compiled)
    assert built == [("source", "metadata")]


def test_a_job_that_fails_leaves_the_others_unaffected(cache):
    outcomes, _ = ahead.compile_jobs(compiled_kernels.emit_wrong, workers=1)
    wrong, right = sorted(outcomes.values(), key=lambda outcome: not outcome.error)
    assert (wrong.kernel, wrong.file) == ("wrong_kernel", "") and "undefined_name" in wrong.error
    assert (right.kernel, right.error) == ("many_kernel", "") and right.file


@pytest.mark.parametrize(("source", "reason"), [("refuse", "ValueError: nothing to emit"), ("die", "out of patience")])
def test_an_error_is_reported_in_one_line(cache, source, reason):
    with pytest.raises(ahead.CompilationError, match=f"^{reason}$"):
        ahead.compile_jobs(getattr(compiled_kernels, source), workers=1)


def test_workers_must_be_positive_even_without_jobs():
    with pytest.raises(ValueError, match="workers is 0, expected at least 1"):
        ahead.compile_jobs(ahead.emit_all, [], workers=0)


def test_a_script_without_a_main_guard_runs_once(cache, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from resshift_fast.kernels import ahead\nprint('started')\n"
        "print(ahead.compile_jobs(ahead.emit_all, [], workers=2))\n"
    )
    assert python(script, stdout=subprocess.PIPE).communicate(timeout=120)[0] == "started\n({}, None)\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["ctrl-c", "killed"])
def test_an_interruption_ends_all_processes(cache, tmp_path, number):
    file = tmp_path / "pid"
    script = (  # a shell's background jobs ignore SIGINT, and their child processes inherit that
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "import compiled_kernels, sys; from resshift_fast.kernels import ahead; "
        "ahead.compile_jobs(compiled_kernels.wait, sys.argv[1], workers=2)"
    )
    process = python("-c", script, file, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 100
    while not (file.exists() and file.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    group = int(file.read_text())
    assert len(_living(group)) >= 3  # the source's process and two workers
    process.send_signal(number)
    assert ("KeyboardInterrupt" in process.communicate(timeout=60)[1]) == (number == signal.SIGINT)
    while _living(group) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _living(group)


def _living(group: int) -> list[str]:
    """Running processes of a group, without zombies."""
    living = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, its_group = entry.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(its_group) == group and state != "Z":
            living.append(entry.parent.name)
    return living


VALUES = (None, True, False, 0, 1, 2, 8, 16, -16, 2**31 - 1, 2**31, -(2**31) - 1, 2**63, 0.0, 1.0, 0.3)
DTYPES = (
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float64,
    torch.int32,
    torch.int64,
    torch.uint8,
    torch.bool,
)
VIEW = torch.zeros(64)[1:]


def specialized_by_triton(value, specialize_value) -> tuple[str, str | None]:
    """Triton's type of an argument, and "D" if the compiler may assume that it is a multiple of 16."""
    from triton._C import libtriton
    from triton.backends.compiler import BaseBackend
    from triton.runtime import jit

    if hasattr(libtriton, "native_specialize_impl"):
        return libtriton.native_specialize_impl(BaseBackend, value, False, specialize_value, True)
    implementation = jit.create_specialize_impl(BaseBackend.get_arg_specialization)  # up to version 3.5
    return implementation(value, specialize_value=specialize_value)


@pytest.mark.parametrize("fixed", [False, True], ids=["specialized", "do_not_specialize"])
@pytest.mark.parametrize("value", [*VALUES, *(torch.zeros(4, dtype=dtype) for dtype in DTYPES), VIEW], ids=str)
def test_arguments_are_specialized_as_triton_does(value, fixed):
    kind, key = specialized_by_triton(value, not fixed)
    parameter = SimpleNamespace(
        name="x", is_constexpr=False, do_not_specialize=fixed, do_not_specialize_on_alignment=False, annotation_type=""
    )
    assert ahead.specialize(parameter, value) == (kind, key == "D")
