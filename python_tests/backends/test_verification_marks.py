"""The mark of an unfinished verification: it outlives its process and decides whether a later one tries again."""

import multiprocessing
import signal
import time
from multiprocessing.process import BaseProcess

import pytest
from verified_process import call_conv2d

from resshift_fast.backends import verification
from resshift_fast.backends.verification import FAILED, PASSED, RUNNING

# Processes fork from a server that has imported the package, which takes seconds, but has called no operator.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["resshift_fast.ops"])


@pytest.fixture(autouse=True)
def no_preference(monkeypatch):
    """Unset the environment's choice of a backend, which the fork server would inherit."""
    monkeypatch.delenv("RESSHIFT_FAST_BACKEND", raising=False)


def start(how: str, tmp_path) -> BaseProcess:
    """A process that calls conv2d with a backend that appends one letter per run to a file."""
    process = FORKS.Process(target=call_conv2d, args=(how, tmp_path))
    process.start()
    return process


def end(process: BaseProcess, tmp_path) -> tuple[int | None, str]:
    """Its exit code and what it wrote to stderr."""
    process.join(120)
    return process.exitcode, (tmp_path / f"stderr-{process.pid}").read_text()


def mark(tmp_path):
    (file,) = (tmp_path / "verdicts").rglob("conv2d-cpu-float32")
    return file


def runs(tmp_path) -> int:
    path = tmp_path / "runs"
    return len(path.read_text()) if path.exists() else 0


@pytest.mark.slow
def test_a_kernel_that_ends_its_process_twice_is_disabled(tmp_path):
    """The second time in a process of its own, so that the later call returns."""
    assert end(start("dies", tmp_path), tmp_path)[0] == 3
    assert mark(tmp_path).read_text() == RUNNING
    code, stderr = end(start("dies", tmp_path), tmp_path)
    assert code == 1 and runs(tmp_path) == 2
    assert "its verification ended with exit code 3" in stderr and f"remove {mark(tmp_path)} to verify it" in stderr
    assert mark(tmp_path).read_text().startswith(FAILED)
    assert end(start("right", tmp_path), tmp_path)[0] == 1 and runs(tmp_path) == 2
    mark(tmp_path).unlink()
    assert end(start("right", tmp_path), tmp_path) == (0, "")


@pytest.mark.slow
def test_a_signal_from_outside_is_not_stored(tmp_path):
    """However often: first to the process, then to the one that repeats the verification."""
    for how in ("is-killed", "is-killed", "is-killed"):
        (tmp_path / "verdicts").mkdir(exist_ok=True)
        code, stderr = end(start(how, tmp_path), tmp_path)
        if code == 1:
            assert "its verification was ended by SIGTERM" in stderr and "the next process tries again" in stderr
            assert mark(tmp_path).read_text() == ""
        else:
            assert code == -signal.SIGTERM and mark(tmp_path).read_text() == RUNNING
    assert end(start("right", tmp_path), tmp_path) == (0, "")
    assert mark(tmp_path).read_text() == PASSED


@pytest.mark.slow
def test_a_mark_of_a_killed_process_is_replaced_by_the_next_verdict(tmp_path):
    process = start("hangs", tmp_path)
    deadline = time.monotonic() + 60
    while not runs(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    assert end(process, tmp_path)[0] == -signal.SIGKILL
    assert mark(tmp_path).read_text() == RUNNING
    assert end(start("right", tmp_path), tmp_path) == (0, "")
    assert mark(tmp_path).read_text() == PASSED


@pytest.mark.slow
def test_one_of_two_processes_waits_for_the_verdict_of_the_other(tmp_path):
    both = [start("slow", tmp_path) for _ in range(2)]
    assert [end(process, tmp_path) for process in both] == [(0, "")] * 2
    examples = runs(tmp_path) - 2  # each process also makes its own call
    assert mark(tmp_path).read_text() == PASSED
    assert end(start("right", tmp_path), tmp_path) == (0, "")
    assert runs(tmp_path) == examples + 3


BELIEVED = [PASSED, RUNNING, f"{FAILED}output 0 has NaN"]
OTHERS = ["", "passed\n", "\0" * 6, "running 1", "wrong by far", f"{FAILED}\0", FAILED + 1000 * "x", "{}"]


@pytest.mark.parametrize("text", [*BELIEVED, *OTHERS])
def test_only_what_this_package_writes_is_believed(text):
    assert verification._believed(text) == (text if text in BELIEVED else "")
