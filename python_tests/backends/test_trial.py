"""Verification in a process of its own: its verdict, and what each way to end it says about the kernel."""

import sys

import pytest
import torch

from resshift_fast.backends import trial, unavailable, verification

CALL = ("conv2d", "cpu", torch.device("cpu"), torch.float32)
KILL = "import os, signal; os.kill(os.getpid(), signal.{})"
ENDS = {
    "verdict": ("print('loading ...'); print('verdict: output 0 has 2 NaN')", "output 0 has 2 NaN", True),
    "SIGSEGV": (KILL.format("SIGSEGV"), "its verification was ended by SIGSEGV", True),
    "SIGILL": (KILL.format("SIGILL"), "its verification was ended by SIGILL", True),
    "abort": ("import os; os.abort()", "its verification was ended by SIGABRT", True),
    "exit": (
        "import os, sys; print('device lost', file=sys.stderr, flush=True); os._exit(3)",
        "its verification ended with exit code 3: device lost",
        True,
    ),
    "SIGKILL": (KILL.format("SIGKILL"), "its verification was ended by SIGKILL", False),
    "SIGTERM": (KILL.format("SIGTERM"), "its verification was ended by SIGTERM", False),
    "exception": ("raise MemoryError('full')", "its verification ended with exit code 1: MemoryError: full", False),
    "silence": ("", "its verification ended with exit code 0: no output", False),
}


@pytest.mark.parametrize("code, reason, certain", ENDS.values(), ids=ENDS)
def test_the_end_of_the_process_decides(code, reason, certain, monkeypatch):
    monkeypatch.setattr(trial, "CODE", code)
    assert trial.run(*CALL) == (reason, certain)


def test_a_kernel_that_hangs_has_failed(monkeypatch):
    monkeypatch.setattr(trial, "CODE", "import time; time.sleep(100)")
    monkeypatch.setattr(trial, "SECONDS", 0.5)
    verdict, certain = trial.run(*CALL)
    assert "takes longer than" in verdict and certain


def test_a_program_without_an_interpreter_starts_nothing(monkeypatch):
    monkeypatch.setattr(trial.subprocess, "run", lambda *_, **__: pytest.fail("started a process"))
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    verdict, certain = trial.run(*CALL)
    assert "cannot be repeated in this program" in verdict and not certain


@pytest.mark.slow
@pytest.mark.skipif(bool(unavailable("cpu")), reason=f"the cpu backend {unavailable('cpu')}")
def test_a_kernel_of_the_package_passes():
    assert trial.run(*CALL) == (verification.PASSED, True)
