"""The mark of a verification that is not over: it outlives its process, and then decides who tries again."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from resshift_fast.backends import verification
from resshift_fast.backends.verification import ATTEMPTS, PASSED, RETRY_AFTER, RUNNING

PROGRAM = textwrap.dedent("""
    import os, sys, time, warnings
    from dataclasses import replace
    from pathlib import Path
    import torch
    from resshift_fast import backends, ops
    from resshift_fast.backends import native
    from resshift_fast.backends import OPERATORS, Kernel

    native.missing = lambda name: None  # the kernel here is a stand-in
    operator = OPERATORS["conv2d"]
    runs = Path(sys.argv[2])

    def kernel(*args):
        with runs.open("a") as file:
            file.write("x")
        if sys.argv[1] == "dies":
            os._exit(3)
        time.sleep({"slow": 0.3, "hangs": 60}.get(sys.argv[1], 0))
        return operator.plain(*args)

    backends.add(replace(operator, loaders={"cpu": lambda: Kernel(kernel)}))
    warnings.simplefilter("error")
    ops.conv2d(torch.ones(1, 1, 3, 3), torch.ones(1, 1, 3, 3))
""")


def start(how: str, tmp_path) -> subprocess.Popen:
    """A process that calls conv2d with a backend that writes one letter a run into a file."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RESSHIFT_FAST_CACHE": str(tmp_path)}
    for name in ("RESSHIFT_FAST_VERIFY", "RESSHIFT_FAST_BACKEND"):
        environment.pop(name, None)
    command = [sys.executable, "-c", PROGRAM, how, str(tmp_path / "runs")]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def end(process: subprocess.Popen) -> tuple[int, str]:
    stderr = process.communicate(timeout=120)[1]
    return process.returncode, stderr


def mark(tmp_path):
    (file,) = (tmp_path / "verdicts").rglob("conv2d-cpu-float32")
    return file


def runs(tmp_path) -> int:
    path = tmp_path / "runs"
    return len(path.read_text()) if path.exists() else 0


def make_old(file) -> None:
    os.utime(file, (time.time() - RETRY_AFTER - 60,) * 2)


def test_a_kernel_that_ends_every_process_is_off_after_some_and_tried_again_a_day_later(tmp_path):
    for attempt in range(1, ATTEMPTS + 1):
        assert end(start("dies", tmp_path))[0] == 3
        assert mark(tmp_path).read_text() == f"{RUNNING} {attempt}"
    code, stderr = end(start("right", tmp_path))
    assert code == 1 and runs(tmp_path) == ATTEMPTS
    assert f"ended {ATTEMPTS} processes; remove {mark(tmp_path)} to try again before a day has passed" in stderr
    make_old(mark(tmp_path))
    assert end(start("dies", tmp_path))[0] == 3
    assert mark(tmp_path).read_text() == f"{RUNNING} {ATTEMPTS + 1}"
    assert end(start("right", tmp_path))[0] == 1
    assert runs(tmp_path) == ATTEMPTS + 1
    mark(tmp_path).unlink()
    assert end(start("right", tmp_path)) == (0, "")


def test_a_process_that_was_killed_leaves_a_mark_that_heals(tmp_path):
    process = start("hangs", tmp_path)
    deadline = time.monotonic() + 60
    while not runs(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    assert end(process)[0] == -signal.SIGKILL
    assert mark(tmp_path).read_text() == f"{RUNNING} 1"
    assert end(start("right", tmp_path)) == (0, "")
    assert mark(tmp_path).read_text() == PASSED


def test_of_two_processes_one_waits_for_the_others_verdict(tmp_path):
    both = [start("slow", tmp_path) for _ in range(2)]
    assert [end(process) for process in both] == [(0, "")] * 2
    examples = runs(tmp_path) - 2  # each process also makes its own call
    assert mark(tmp_path).read_text() == PASSED
    assert end(start("right", tmp_path)) == (0, "")
    assert runs(tmp_path) == examples + 3


@pytest.mark.parametrize(
    "stored, attempts",
    [("", 0), (PASSED, 0), ("running late: no", 1), (RUNNING, 1), (f"{RUNNING} 1", 1), (f"{RUNNING} 12", 12)],
)
def test_attempts_are_counted(stored, attempts):
    assert verification._attempts(stored) == attempts


@pytest.mark.parametrize("shift, settled", [(-RETRY_AFTER - 9, False), (0, True), (RETRY_AFTER + 9, False)])
def test_a_mark_is_as_old_as_its_file_whatever_the_clock_did(shift, settled, tmp_path):
    path = tmp_path / "mark"
    path.write_text(f"{RUNNING} {ATTEMPTS}")
    os.utime(path, (time.time() + shift,) * 2)
    assert bool(verification._settled(path.read_text(), path)) == settled
    assert verification._settled("wrong by far", path) == "wrong by far"


@pytest.mark.parametrize("path", [None, "gone"])
def test_a_mark_without_a_file_is_tried_again(path, tmp_path):
    assert verification._settled(f"{RUNNING} {ATTEMPTS}", path and tmp_path / path) == ""
