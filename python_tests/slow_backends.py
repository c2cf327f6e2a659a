"""Stand-ins for group_norm's backends on the CPU, with a known ranking."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch

from resshift_fast import backends
from resshift_fast.backends import OPERATORS, Kernel, autotune_cache, descriptions, native, registry, verification
from resshift_fast.measure import timing

OPERATOR, MODEL = "group_norm", "Test CPU"
LARGE = 1 << 10  # elements from which the wrong kernel is wrong: a fault that verification's small inputs do not show


class Time:
    """Stands in for the module `time`, so that no ranking depends on how busy the machine is.

    Every look at the clock takes a microsecond, a call of a `delayed` function its delay, and nothing else any time.
    """

    seconds = 0.0

    @classmethod
    def perf_counter(cls) -> float:
        cls.seconds += 1e-6
        return cls.seconds


def delayed(function: Callable[..., Any], milliseconds: float) -> Callable[..., Any]:
    """The function with a delay before it, on the clock of `Time`."""

    def run(*args: Any) -> Any:
        Time.seconds += milliseconds / 1e3
        return function(*args)

    return run


@contextmanager
def installed(monkeypatch: pytest.MonkeyPatch, cache: Any, **others: Kernel) -> Iterator[None]:
    """Give group_norm a fast backend "cpu", a slow "cuda" and a wrong "triton"; the reference is in between.

    Other operators have no backend, so that results do not depend on which libraries are built.

    Args:
        monkeypatch: undone at the end. cache: folder of verdicts and measurements. others: kernels to add or replace.
    """
    before = OPERATORS[OPERATOR]
    plain = before.plain

    def wrong(x: torch.Tensor, *args: Any) -> tuple:
        y, mean, rstd = plain(x, *args)
        return (y * 1.05 if x.numel() >= LARGE else y), mean, rstd

    kernels = {"cpu": Kernel(plain), "cuda": Kernel(delayed(plain, 6)), "triton": Kernel(wrong)} | others
    monkeypatch.setattr(timing, "time", Time)
    monkeypatch.setenv("RESSHIFT_FAST_CACHE", str(cache))
    monkeypatch.setenv(verification.VARIABLE, "0")
    monkeypatch.delenv(autotune_cache.VARIABLE, raising=False)
    monkeypatch.setattr(autotune_cache, "processor", lambda: MODEL)
    monkeypatch.setattr(native, "missing", lambda name: None)
    monkeypatch.setattr(registry, "unavailable", lambda backend: None)
    monkeypatch.setattr(descriptions, "has_triton", lambda: True)
    monkeypatch.setitem(registry.ORDER, "cpu", tuple(kernels))
    for name, operator in OPERATORS.items():
        monkeypatch.setitem(OPERATORS, name, replace(operator, loaders={}))
    autotune_cache.forget()
    loaders = {name: lambda kernel=kernel: kernel for name, kernel in kernels.items()}
    backends.add(replace(before, plain=delayed(plain, 2), loaders=loaders))
    try:
        yield
    finally:
        monkeypatch.undo()
        autotune_cache.forget()
        backends.add(before)
