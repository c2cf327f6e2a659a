"""Fixtures: the backend and the number of threads."""

import pytest
import torch
from pairwise import BACKENDS

from resshift_fast import use_backend
from resshift_fast.backends import unavailable


@pytest.fixture(params=BACKENDS, scope="module")
def backend(request):
    """Run the test with plain PyTorch and with the C++ kernels."""
    if reason := unavailable(request.param):
        pytest.skip(f"the {request.param} backend {reason}")
    with use_backend(request.param):
        yield request.param


@pytest.fixture
def two_threads():
    """Run the test with two threads; all others run with one."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)
