"""Settings and fixtures that all tests share."""

import os
import random
from itertools import groupby

import pytest
import torch
from golden_data import OfficialNetworks
from hypothesis import settings

from resshift_fast.backends import descriptions, dispatch, registry
from resshift_fast.core import devices

# Without a GPU Triton's interpreter runs the kernels; it is chosen when they are decorated, so before their import.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

# Float32 is to mean float32: on a GPU, convolutions would round what they read to 10 bits.
torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False


def _usable_device(device, usable=devices.usable_device):
    """The CPU for whoever names no device, as where there is no GPU: what needs one names it."""
    return usable("cpu" if device is None else device)


devices.usable_device = _usable_device

# What somebody measured on this machine decides nothing here.
os.environ["RESSHIFT_FAST_AUTOTUNE_CACHE"] = "0"

# Tests work on small tensors, which threads only slow down; pytest-xdist uses the other cores.
torch.set_num_threads(1)

# The first call of an operator or a busy machine can take long; that is no failure.
settings.register_profile("resshift_fast", deadline=None)
settings.load_profile("resshift_fast")


def pytest_addoption(parser):
    parser.addoption("--most-cases", type=int, help="of a test with more cases than that, run as many, drawn by lot")


def pytest_configure(config):
    if not torch.cuda.is_available() and (fault := descriptions.interpreter_fault()):
        raise pytest.UsageError(f"backend 'triton' {fault}")


def pytest_collection_modifyitems(config, items):
    """Leave out cases, the same ones every time, before -k selects."""
    if (most := config.getoption("--most-cases")) is None:
        return
    tests = [list(cases) for _, cases in groupby(items, lambda item: item.nodeid.partition("[")[0])]
    drawn = [random.Random(0).sample(cases, min(most, len(cases))) for cases in tests]
    kept = {case.nodeid for cases in drawn for case in cases}
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid not in kept])
    items[:] = [item for item in items if item.nodeid in kept]


@pytest.fixture(autouse=True)
def choices_of_backends():
    """After each test, operators and backends must be as before; choices made with a test's stand-ins are dropped.

    It is requested first, so it ends after `monkeypatch` has put everything back.
    """

    def registered():
        return dict(registry.OPERATORS), dict(registry.BACKENDS), dict(registry.ORDER), dispatch._preferred

    before = registered()
    yield
    assert registered() == before, "the test left operators, backends or a preference behind"
    dispatch._forget()


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
