"""The CPU kernels under scripts/sanitize.py, which has to report deliberate faults."""

import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import cpu_build
import pytest
import torch
from comparison import name_of

from resshift_fast.backends import OPERATORS, native, unavailable, verification

pytestmark = pytest.mark.skipif(cpu_build.KIND is None, reason="runs under scripts/sanitize.py")

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
OVERFLOW = "AddressSanitizer: heap-buffer-overflow(.|\n)*READ of size 4(.|\n)*cpu_faults.cpp"
RACE = "ThreadSanitizer: data race(.|\n)*cpu_faults.cpp"


def test_the_library_is_the_sanitized_one():
    assert unavailable("cpu") is None
    assert native.path("cpu").parent.name == f"cpu-{cpu_build.KIND}"


@pytest.mark.usefixtures("poisoned_empty")
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("name", sorted(name for name, operator in OPERATORS.items() if "cpu" in operator.loaders))
def test_every_operator_on_its_examples(name, dtype, isa):
    assert verification.compare(OPERATORS[name], "cpu", torch.device("cpu"), dtype) == verification.PASSED


# The sanitizer's run, a correct call, the same call with a fault, and the expected report.
FAULTS = {
    "tensor": ("memory", "read(torch.ones(7), 6)", "read(torch.ones(7), 7)", OVERFLOW),
    "before-tensor": ("memory", "read(torch.ones(7), 0)", "read(torch.ones(7), -1)", OVERFLOW),
    "scratch": ("memory", "read_scratch(100, 99)", "read_scratch(100, 100)", OVERFLOW),
    "overflow": ("memory", "add(2**62, 2**61)", "add(2**62, 2**62)", "runtime error: signed integer overflow"),
    "writes": ("threads", "write(torch.empty(64), 0)", "write(torch.empty(64), 1)", RACE),
    "few-writes": ("threads", "write(torch.empty(3), 0)", "write(torch.empty(3), 1)", RACE),
    "pool": ("threads", "shared_counter(64, True)", "shared_counter(64, False)", RACE),
    "write-and-read": ("threads", "read_beyond(torch.ones(64), 0)", "read_beyond(torch.ones(64), 1)", RACE),
}


def run(*calls):
    """Call functions of cpu_faults.cpp, one after the other, in a process of their own."""
    script = f"import torch\ntorch.ops.load_library({str(native.path('cpu'))!r})\n"
    script += "".join(f"torch.ops.resshift_fast_faults.{call}\nprint('returned', flush=True)\n" for call in calls)
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)


@pytest.mark.parametrize("name", [name for name, fault in FAULTS.items() if fault[0] == cpu_build.KIND])
def test_a_fault_is_reported(name):
    _, right, wrong, report = FAULTS[name]
    done = run(right, wrong)
    assert done.returncode != 0 and done.stdout == "returned\n", done.stderr
    assert re.search(report, done.stderr), done.stderr


def test_uninitialized_memory_does_not_hold_a_likely_value():
    assert unavailable("cpu") is None
    faults = torch.ops.resshift_fast_faults
    assert torch.tensor(faults.read_scratch(100, 50)).isnan()
    assert faults.read_variable(4) == 6
    if cpu_build.fills_variables():
        assert not abs(faults.read_variable(3)) < 1e30


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
@pytest.mark.parametrize("rows, grain", [(1, 1), (7, 1), (64, 3), (1000, 7)])
def test_threads_share_a_loop(rows, grain, threads):
    """Every iteration once, also of loops within it and of several callers at once."""
    assert unavailable("cpu") is None
    share = torch.ops.resshift_fast_faults.shared_sum
    with ThreadPoolExecutor(4) as pool:
        images = [torch.zeros(rows, 11) for _ in range(8)]
        sums = list(pool.map(lambda x: share(x, grain, threads), images))
    assert sums == [rows * 11] * 8 and all((x == 1).all() for x in images)


@pytest.mark.parametrize("size", [0, 1, 3 * 2**32 + 5])
@pytest.mark.parametrize("threads", [1, 2, 70])
def test_loops_of_any_size_and_number_of_threads(size, threads):
    assert unavailable("cpu") is None
    assert torch.ops.resshift_fast_faults.shared_size(size, threads) == size


@pytest.mark.parametrize("threads", [1, 4])
def test_a_failure_in_a_shared_loop_reaches_the_caller(threads):
    assert unavailable("cpu") is None
    faults = torch.ops.resshift_fast_faults
    for wrong in (0, 57, 99):
        with pytest.raises(RuntimeError, match=f"iteration {wrong} failed"):
            faults.shared_failure(100, threads, wrong)
        faults.shared_failure(100, threads, 100)
