"""Fixtures for the kernels in C++: the backend, the instruction set they run in, and the number of threads."""

import pytest
import torch
from pairwise import BACKENDS, ISAS

from resshift_fast import use_backend
from resshift_fast.backends import unavailable


@pytest.fixture(params=BACKENDS, scope="module")
def backend(request):
    """Everything holds for plain PyTorch and for C++."""
    if reason := unavailable(request.param):
        pytest.skip(f"the {request.param} backend {reason}")
    with use_backend(request.param):
        yield request.param


@pytest.fixture(params=ISAS.values(), ids=ISAS)
def isa(request):
    """Each instruction set that this processor has."""
    operators = torch.ops.resshift_fast_cpu
    before = operators.isa()
    taken = operators.limit_isa(request.param)
    if taken == request.param:
        yield request.param
    operators.limit_isa(before)
    if taken != request.param:
        pytest.skip("this processor does not have it")


@pytest.fixture
def two_threads():
    """Two threads for one call, where tests else have one."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)
