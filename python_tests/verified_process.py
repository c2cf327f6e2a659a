"""A process that calls an operator and so verifies its kernel, for tests of the mark and verdict that it stores."""

import os
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path

import torch

from resshift_fast import backends, ops
from resshift_fast.backends import OPERATORS, Kernel, native


def call_conv2d(how: str, folder: Path) -> None:
    """Call conv2d with a backend that adds a letter to `folder`/runs in each run; warnings are errors.

    Args:
        how: what the kernel does before its result: "right", "slow", "hangs" or "dies", which ends the process.
        folder: of verdicts, `runs` and the process's stderr.
    """
    os.environ["RESSHIFT_FAST_CACHE"] = str(folder)
    os.environ.pop("RESSHIFT_FAST_VERIFY", None)
    sys.stderr = (folder / f"stderr-{os.getpid()}").open("w", buffering=1)
    native.missing = lambda name: None  # the kernel here is a stand-in
    operator = OPERATORS["conv2d"]

    def kernel(*args):
        with (folder / "runs").open("a") as file:
            file.write("x")
        if how == "dies":
            os._exit(3)
        time.sleep({"slow": 0.3, "hangs": 60}.get(how, 0))
        return operator.plain(*args)

    backends.add(replace(operator, loaders={"cpu": lambda: Kernel(kernel)}))
    warnings.simplefilter("error")
    ops.conv2d(torch.ones(1, 1, 3, 3), torch.ones(1, 1, 3, 3))
