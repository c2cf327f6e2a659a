"""Named ranges around the stages of a restoration and around operators, for profilers to show.

Off by default: an operator then pays for reading one global. RESSHIFT_FAST_NVTX=1 or `marking()` turns them on: as
NVTX ranges, which Nsight Systems shows, where there is a CUDA GPU, and in torch.profiler's traces where that runs.
Code that torch.compile traces is not marked, because nothing of a range would be left in what it makes; the operators
that it calls are.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Any

VARIABLE = "RESSHIFT_FAST_NVTX"

# What a range's name begins with; scripts/profile_report reads them.
STAGE = "resshift_fast/stage/"
OPERATOR = "resshift_fast/operator/"
RESTORATION = "resshift_fast/restoration"

on = os.environ.get(VARIABLE, "0") not in ("", "0")  # a plain global: the cheapest thing to ask

_NOTHING = nullcontext()


@contextmanager
def marking() -> Iterator[None]:
    """Mark ranges in the block, in all threads.

    Example:
        >>> with marking():
        ...     pass
    """
    global on
    before, on = on, True
    try:
        yield
    finally:
        on = before


def stage(name: str, number: int | None = None) -> AbstractContextManager[None]:
    """Range around a stage of a restoration, such as `stage("denoise", 2)`."""
    import torch

    # Asked first: code that torch.compile traces then doesn't depend on `on`, whose change would have it traced again.
    if torch.compiler.is_compiling() or not on:
        return _NOTHING
    return _Range(STAGE + (name if number is None else f"{name} {number}"))


def named(name: str) -> AbstractContextManager[None]:
    """Range of any name around what is not traced, such as RESTORATION around a whole restoration."""
    return _Range(name) if on else _NOTHING


def marked(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` in a range that bears the operator's name; to be asked for only while ranges are on."""

    def run(*args: Any) -> Any:
        with _Range(OPERATOR + name):
            return function(*args)

    return run


class _Range:
    def __init__(self, name: str):
        self._name = name
        self._record: AbstractContextManager[object] = nullcontext()

    def __enter__(self) -> None:
        import torch

        if torch.autograd._profiler_enabled():
            self._record = torch.profiler.record_function(self._name)
        if _has_nvtx():
            torch.cuda.nvtx.range_push(self._name)
        self._record.__enter__()

    def __exit__(self, *error: Any) -> None:
        import torch

        self._record.__exit__(*error)
        if _has_nvtx():
            torch.cuda.nvtx.range_pop()


@cache
def _has_nvtx() -> bool:
    import torch

    return torch.cuda.is_available()
