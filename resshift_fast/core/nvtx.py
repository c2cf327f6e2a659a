"""Named ranges around the stages of a restoration and around operators, for profilers to show.

Off by default, at the cost of reading one global per operator. RESSHIFT_FAST_NVTX=1 or `marking()` turns them on: as
NVTX ranges, which Nsight Systems shows, if there is a CUDA GPU, and in the traces of torch.profiler while that runs.
Code that torch.compile traces is not marked, because compiled code would not contain the ranges; the operators that it
calls are marked.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Any

VARIABLE = "RESSHIFT_FAST_NVTX"

# Prefixes of the ranges' names; measure/report reads them.
STAGE = "resshift_fast/stage/"
OPERATOR = "resshift_fast/operator/"
RESTORATION = "resshift_fast/restoration"

on = os.environ.get(VARIABLE, "0") not in ("", "0")  # a module global, because it is read at every operator call

_NOTHING = nullcontext()


@contextmanager
def marking() -> Iterator[None]:
    """Turn ranges on within the block, in all threads.

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

    # is_compiling comes first: traced code then has no guard on `on`, and is not compiled again when it changes.
    if torch.compiler.is_compiling() or not on:
        return _NOTHING
    return _Range(STAGE + (name if number is None else f"{name} {number}"))


def named(name: str) -> AbstractContextManager[None]:
    """Range with any name, around code that is never traced, such as RESTORATION around a whole restoration."""
    return _Range(name) if on else _NOTHING


def marked(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap `function` in a range with the operator's name; call this only while ranges are on."""

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
