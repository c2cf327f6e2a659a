"""The mark of an unfinished verification: it outlives its process and decides whether a later one tries again."""

import multiprocessing
import os
import signal
import time
from multiprocessing.process import BaseProcess

import pytest
from verified_process import call_conv2d

from resshift_fast.backends import verification
from resshift_fast.backends.verification import ATTEMPTS, PASSED, RETRY_AFTER, RUNNING

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


def make_old(file) -> None:
    os.utime(file, (time.time() - RETRY_AFTER - 60,) * 2)


@pytest.mark.slow
def test_a_kernel_that_ends_processes_is_disabled_and_tried_again_a_day_later(tmp_path):
    for attempt in range(1, ATTEMPTS + 1):
        assert end(start("dies", tmp_path), tmp_path)[0] == 3
        assert mark(tmp_path).read_text() == f"{RUNNING} {attempt}"
    code, stderr = end(start("right", tmp_path), tmp_path)
    assert code == 1 and runs(tmp_path) == ATTEMPTS
    assert f"ended {ATTEMPTS} processes; remove {mark(tmp_path)} to try again before a day has passed" in stderr
    make_old(mark(tmp_path))
    assert end(start("dies", tmp_path), tmp_path)[0] == 3
    assert mark(tmp_path).read_text() == f"{RUNNING} {ATTEMPTS + 1}"
    assert end(start("right", tmp_path), tmp_path)[0] == 1
    assert runs(tmp_path) == ATTEMPTS + 1
    mark(tmp_path).unlink()
    assert end(start("right", tmp_path), tmp_path) == (0, "")


def test_a_mark_of_a_killed_process_is_replaced_by_the_next_verdict(tmp_path):
    process = start("hangs", tmp_path)
    deadline = time.monotonic() + 60
    while not runs(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    assert end(process, tmp_path)[0] == -signal.SIGKILL
    assert mark(tmp_path).read_text() == f"{RUNNING} 1"
    assert end(start("right", tmp_path), tmp_path) == (0, "")
    assert mark(tmp_path).read_text() == PASSED


def test_one_of_two_processes_waits_for_the_verdict_of_the_other(tmp_path):
    both = [start("slow", tmp_path) for _ in range(2)]
    assert [end(process, tmp_path) for process in both] == [(0, "")] * 2
    examples = runs(tmp_path) - 2  # each process also makes its own call
    assert mark(tmp_path).read_text() == PASSED
    assert end(start("right", tmp_path), tmp_path) == (0, "")
    assert runs(tmp_path) == examples + 3


@pytest.mark.parametrize(
    "stored, attempts",
    [("", 0), (PASSED, 0), ("running late: no", 1), (RUNNING, 1), (f"{RUNNING} 1", 1), (f"{RUNNING} 12", 12)],
)
def test_attempts_are_parsed(stored, attempts):
    assert verification._attempts(stored) == attempts


@pytest.mark.parametrize("shift, settled", [(-RETRY_AFTER - 9, False), (0, True), (RETRY_AFTER + 9, False)])
def test_a_mark_expires_by_the_age_of_its_file_even_if_it_is_in_the_future(shift, settled, tmp_path):
    path = tmp_path / "mark"
    path.write_text(f"{RUNNING} {ATTEMPTS}")
    os.utime(path, (time.time() + shift,) * 2)
    assert bool(verification._settled(path.read_text(), path)) == settled
    assert verification._settled("wrong by far", path) == "wrong by far"


@pytest.mark.parametrize("path", [None, "gone"])
def test_a_mark_without_a_file_is_tried_again(path, tmp_path):
    assert verification._settled(f"{RUNNING} {ATTEMPTS}", path and tmp_path / path) == ""
