"""Kernels run on the GPU where there is one, else in Triton's interpreter (the upper conftest.py turns it on)."""

import pytest
import torch

collect_ignore_glob: list[str] = []
try:
    import triton  # noqa: F401
except ImportError:
    collect_ignore_glob.append("test_*.py")


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where kernels run here."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True)
def new_plans():
    """Tests change constants that plans are made of."""
    from resshift_fast.kernels import tuning

    tuning.renew()
    yield
    tuning.renew()
