"""A process that calls an operator and so verifies its kernel, for tests of the mark and verdict that it stores."""

import os
import signal
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path

import torch

from resshift_fast import backends, ops
from resshift_fast.backends import OPERATORS, Kernel, native, trial, verification


def call_conv2d(how: str, folder: Path) -> None:
    """Call conv2d with a backend that adds a letter to `folder`/runs in each run; warnings are errors.

    Args:
        how: what the kernel does before its result: "right", "slow", "hangs", "dies", which ends the process, or
            "is-killed", as if by SIGTERM from outside.
        folder: of verdicts, `runs` and the process's stderr.
    """
    sys.stderr = (folder / f"stderr-{os.getpid()}").open("w", buffering=1)
    _install(how, folder)
    path, call = str(Path(__file__).parent), f"verified_process.print_verdict({how!r}, {str(folder)!r})"
    trial.CODE = f"import sys; sys.path.insert(0, {path!r}); import verified_process; {call}"
    warnings.simplefilter("error")
    ops.conv2d(torch.ones(1, 1, 3, 3), torch.ones(1, 1, 3, 3))


def print_verdict(how: str, folder: str) -> None:
    """Verify the same backend, in the process that repeats a verification."""
    _install(how, Path(folder))
    print("verdict:", verification.compare(OPERATORS["conv2d"], "cpu", torch.device("cpu"), torch.float32))


def _install(how: str, folder: Path) -> None:
    os.environ["RESSHIFT_FAST_CACHE"] = str(folder)
    os.environ.pop("RESSHIFT_FAST_VERIFY", None)
    native.missing = lambda name: None  # the kernel here is a stand-in
    operator = OPERATORS["conv2d"]

    def kernel(*args):
        with (folder / "runs").open("a") as file:
            file.write("x")
        if how == "dies":
            os._exit(3)
        if how == "is-killed":
            os.kill(os.getpid(), signal.SIGTERM)
        time.sleep({"slow": 0.3, "hangs": 60}.get(how, 0))
        return operator.plain(*args)

    backends.add(replace(operator, loaders={"cpu": lambda: Kernel(kernel)}))
