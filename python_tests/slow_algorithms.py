"""Stand-ins for the algorithms of conv2d's CPU kernel, with a known ranking."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from slow_backends import Time, delayed

from resshift_fast import backends
from resshift_fast.backends import OPERATORS, Algorithms, Kernel
from resshift_fast.measure import timing


def fast(*arguments: Any) -> torch.Tensor:
    return OPERATORS["conv2d"].plain(*arguments)


slow = delayed(fast, 5)


def wrong(*arguments: Any) -> torch.Tensor:
    return torch.ones_like(fast(*arguments))


def install(monkeypatch: pytest.MonkeyPatch, **functions: Any) -> None:
    """Give the kernel these algorithms, on the clock of `Time`; the first is its default."""
    algorithms = Algorithms(
        functions=lambda dtype: functions,
        shape=backends.kernel("conv2d", "cpu").algorithms.shape,
        default=lambda *_: next(iter(functions)),
    )
    kernel = Kernel(next(iter(functions.values())), algorithms=algorithms)
    monkeypatch.setattr(timing, "time", Time)
    monkeypatch.setitem(OPERATORS, "conv2d", replace(OPERATORS["conv2d"], loaders={"cpu": lambda: kernel}))
