"""Pairwise test cases: every pair of values of two axes is in some case, with far fewer cases than the full product."""

import os
import platform
import random
from collections.abc import Callable, Iterable, Mapping
from itertools import combinations, product
from math import comb
from typing import Any

import pytest
import torch
from comparison import name_of

BACKENDS = ("reference", "cpu")  # of all tests in ops/
ARM64 = platform.machine() in ("aarch64", "arm64") or "RESSHIFT_FAST_TEST_ARM64" in os.environ  # the latter: arm.py
X86_ISAS = {"portable": 0, "avx2": 1, "avx512": 2, "avx512_bf16": 3}
ISAS = {"neon": 4} if ARM64 else X86_ISAS  # instruction sets, as the fixture `isa` takes them

# For tests of what happens before a backend is chosen.
once = pytest.mark.parametrize("backend", BACKENDS[:1], indirect=True)

Axis = Mapping[str, Any] | Iterable[Any]


def pairwise(
    *, strength: int = 2, allowed: Callable[[dict[str, Any]], bool] | None = None, **axes: Axis
) -> pytest.MarkDecorator:
    """Parametrize a test with few cases, the same ones every time.

    Args:
        strength: number of axes of which every combination of values is in some case: 2 for pairs.
        allowed: whether a case, {axis: value}, is valid; None if all are.
        axes: the values of each argument, or a mapping from their ids to them. Those of `isa` and `backend` are
            parameters of the fixtures.
    """
    named = [list(_named(axis)) for axis in axes.values()]
    cases = [
        case
        for case in product(*map(range, map(len, named)))
        if allowed is None or allowed({name: axis[i][1] for name, axis, i in zip(axes, named, case, strict=True)})
    ]
    parameters = []
    for case in _covering(cases, min(strength, len(axes))):
        ids, values = zip(*(axis[i] for axis, i in zip(named, case, strict=True)), strict=True)
        parameters.append(pytest.param(*values, id="-".join(ids)))
    return pytest.mark.parametrize(
        ", ".join(axes), parameters, indirect=[name for name in axes if name in ("isa", "backend")]
    )


def _covering(cases: list[tuple[int, ...]], strength: int) -> list[tuple[int, ...]]:
    """A subset of the cases that has every combination of values, chosen greedily by the number of new ones."""
    shuffled = random.Random(0).sample(cases, len(cases))
    held = [set(combinations(enumerate(case), strength)) for case in shuffled]
    missing = set().union(*held)
    chosen = []
    for least in range(comb(len(cases[0]), strength), 0, -1):
        for case, combined in zip(shuffled, held, strict=True):
            if len(combined & missing) >= least:
                chosen.append(case)
                missing -= combined
    return sorted(chosen)


def _named(axis: Axis) -> Iterable[tuple[str, Any]]:
    """(id, value) of every value of an axis."""
    return axis.items() if isinstance(axis, Mapping) else ((_name(value), value) for value in axis)


def _name(value: Any) -> str:
    if isinstance(value, torch.dtype):
        return name_of(value)
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)
