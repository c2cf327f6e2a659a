"""Settings and fixtures that all tests share."""

import os
import random
from itertools import groupby

import pytest
import torch
from golden_data import OfficialNetworks
from hypothesis import settings
from interpreter import quicken
from pairwise import ISAS

from resshift_fast.backends import descriptions, dispatch, registry
from resshift_fast.core import devices

# Without a GPU Triton's interpreter runs the kernels. Their decorator chooses it, so this comes before their import.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
    if descriptions.has_triton():
        quicken()

# With TF32, convolutions on a GPU would round their float32 inputs to 10 bits.
torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False


def _usable_device(device, usable=devices.usable_device):
    """The CPU by default, also on a machine with a GPU: tests that need the GPU name it."""
    return usable("cpu" if device is None else device)


devices.usable_device = _usable_device

# Choices that were autotuned on this machine must not affect the tests.
os.environ["RESSHIFT_FAST_AUTOTUNE_CACHE"] = "0"

# Tests work on small tensors, which threads only slow down; pytest-xdist uses the other cores.
torch.set_num_threads(1)

# An operator's first call and calls on a busy machine take long; that is no failure.
settings.register_profile("resshift_fast", deadline=None)
settings.load_profile("resshift_fast")


def pytest_addoption(parser):
    parser.addoption("--most-cases", type=int, help="run at most this many cases of each test, a fixed random sample")
    parser.addoption("--half", type=int, choices=(0, 1), help="run the first or the second of every two cases")


def pytest_configure(config):
    if not torch.cuda.is_available() and (fault := descriptions.interpreter_fault()):
        raise pytest.UsageError(f"backend 'triton' {fault}")


def pytest_collection_modifyitems(config, items):
    """Apply --most-cases and --half before -k, and leave out the same cases every time."""
    kept = {item.nodeid for item in items}
    if (most := config.getoption("--most-cases")) is not None:
        tests = [list(cases) for _, cases in groupby(items, lambda item: item.nodeid.partition("[")[0])]
        samples = [random.Random(0).sample(cases, min(most, len(cases))) for cases in tests]
        kept = {case.nodeid for cases in samples for case in cases}
    if (half := config.getoption("--half")) is not None:
        for slow in (False, True):
            alike = [item.nodeid for item in items if (item.get_closest_marker("slow") is not None) == slow]
            kept -= set(alike[1 - half :: 2])
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid not in kept])
    items[:] = [item for item in items if item.nodeid in kept]


@pytest.fixture(autouse=True)
def choices_of_backends():
    """Fail a test that leaves other operators or backends behind, and forget the choices made with its stand-ins.

    This fixture is set up first, so it checks after `monkeypatch` has restored everything.
    """

    def registered():
        return dict(registry.OPERATORS), dict(registry.BACKENDS), dict(registry.ORDER), dispatch._preferred

    before = registered()
    yield
    assert registered() == before, "the test left operators, backends or a preference behind"
    dispatch._forget()


@pytest.fixture
def poisoned_empty():
    """Fill new tensors with NaN, so that a test fails if a kernel leaves an element unwritten."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.empty(64).isnan().all()
    yield
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])


@pytest.fixture(params=ISAS.values(), ids=ISAS)
def isa(request):
    """Limit the CPU kernels to each instruction set; skip those that this processor or the library lacks."""
    operators = torch.ops.resshift_fast_cpu
    before = operators.isa()
    taken = operators.limit_isa(request.param)
    if taken == request.param:
        yield request.param
    operators.limit_isa(before)
    if taken != request.param:
        pytest.skip("this processor or the library does not have it")


@pytest.fixture(scope="module")
def official():
    """The official networks with deterministic weights, some 700 MB; freed after the module's last test."""
    networks = OfficialNetworks()
    yield networks
    networks.clear()
