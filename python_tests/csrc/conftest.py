"""Fixtures for the emulation, which executes the CUDA kernels on the CPU."""

import os
from collections.abc import Callable, Sequence

import emulation
import pytest
import torch
from torch import Tensor

from resshift_fast.backends import native

REQUIRED = "RESSHIFT_FAST_REQUIRE_COMPILER"  # "1" where a missing compiler is a failure, as in CI


@pytest.fixture(scope="session")
def built():
    """The emulation's Python module; skips where it cannot be built, unless a compiler is required."""
    reason = emulation.missing()
    if reason:
        (pytest.fail if os.environ.get(REQUIRED) == "1" else pytest.skip)(reason)
    return emulation.module()


@pytest.fixture(scope="session")
def emulated_library(built):
    """Register `torch.ops.resshift_fast_cuda` with emulated kernels; skips where the real library is loaded."""
    if native.missing("cuda") is None:
        pytest.skip("torch.ops.resshift_fast_cuda is the real library")
    emulation.load_library()


@pytest.fixture
def emulated(built):
    """The emulation's Python module, threads in ascending order; a test may set another."""
    built.set_order(built.Order.ascending)
    yield built
    built.set_order(built.Order.ascending)


@pytest.fixture
def in_all_orders(emulated):
    """A function that calls `run` with the threads in every order and returns the results, which must not differ.

    `run` returns new tensors. A result that depends on the order in which threads run between barriers has a race.
    """

    def call(run: Callable[[], Tensor | Sequence[Tensor]]) -> Sequence[Tensor]:
        results = []
        for order in emulated.Order.__members__.values():
            emulated.set_order(order)
            outcome = run()
            results.append([outcome] if isinstance(outcome, Tensor) else list(outcome))
        emulated.set_order(emulated.Order.ascending)
        for other in results[1:]:
            for x, y in zip(results[0], other, strict=True):
                bits = (tensor.flatten().view(torch.uint8) for tensor in (x, y))
                assert torch.equal(*bits), "the result depends on the threads' order"
        return results[0]

    return call
