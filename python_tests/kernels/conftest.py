"""Kernels run on the GPU if there is one, else in Triton's interpreter, which the parent conftest.py selects."""

import pytest
import torch

collect_ignore_glob: list[str] = []
try:
    import triton  # noqa: F401
except ImportError:
    collect_ignore_glob.append("test_*.py")


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The device on which kernels run."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True)
def new_plans():
    """Discard cached plans: tests change the constants from which plans are made."""
    from resshift_fast.kernels import tuning

    tuning.renew()
    yield
    tuning.renew()
