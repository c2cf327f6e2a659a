"""Settings and fixtures that all tests share."""

import os

import pytest
import torch
from golden_data import OfficialNetworks
from hypothesis import settings

# Parallel workers share the cores instead of each taking all of them.
_WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
torch.set_num_threads(max(1, min(torch.get_num_threads(), (os.cpu_count() or 1) // _WORKERS)))

# The first call of an operator or a busy machine can take long; that is no failure.
settings.register_profile("resshift_fast", deadline=None)
settings.load_profile("resshift_fast")


@pytest.fixture
def poisoned_empty():
    """Fill fresh memory with NaN, so that an element nobody writes can't pass by luck."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.empty(64).isnan().all()
    yield
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])


@pytest.fixture(scope="module")
def official():
    """The official networks with deterministic weights, some 700 MB; freed after the module's last test."""
    networks = OfficialNetworks()
    yield networks
    networks.clear()
