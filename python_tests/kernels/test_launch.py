"""`Start` launches the same kernels, grids and arguments as Triton, and records launches without running them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import triton
import triton.language as tl
from torch._subclasses.fake_tensor import FakeTensorMode

from resshift_fast.kernels.launch import Start, record

TESTS = Path(__file__).parents[1]
BENCHMARKS = TESTS.parent / "benchmarks"  # has fake_driver.py


@pytest.fixture(scope="module")
def starts():
    """Output of starts_on_fake_driver.py."""
    env = {name: value for name, value in os.environ.items() if name not in ("TRITON_INTERPRET", "TRITON_DEBUG")}
    env["PYTHONPATH"] = os.pathsep.join([str(BENCHMARKS), *sys.path])
    script = TESTS / "kernels" / "starts_on_fake_driver.py"
    found = subprocess.run([sys.executable, script], env=env, capture_output=True, text=True, timeout=600)
    assert found.returncode == 0, found.stderr
    return json.loads(found.stdout)


@pytest.mark.slow
def test_a_start_launches_what_triton_would(starts):
    found = starts["every_kernel"]
    assert len({name.partition(" ")[0] for name in found}) >= 15
    assert not [name for name, (_, planned, by_triton) in found.items() if planned != by_triton]


def test_the_variants_are_compiled_differently(starts):
    # Otherwise the test above could not detect a kernel that was compiled for other arguments.
    found = starts["every_kernel"]
    functions = {name: by_triton[4] for name, (_, _, by_triton) in found.items()}
    kernel = "q_sample_kernel torch.float32"
    tensors = ("argument 0 is unaligned", "argument 0 is torch.float16", "argument 0 is None")
    for variant in ("argument 6 is one", "argument 6 is a multiple of 16", "argument 6 is beyond 32 bits", *tensors):
        assert functions[f"{kernel}: {variant}"] != functions[f"{kernel}: unchanged"], variant


def test_only_unaligned_tensors_go_through_triton(starts):
    slow = {name for name, (through_triton, _, _) in starts["every_kernel"].items() if through_triton}
    assert slow == {name for name in starts["every_kernel"] if name.endswith("is unaligned")}


def test_different_calls_of_a_launcher_run_their_own_kernels(starts):
    found = starts["whole_calls"]
    assert all(planned == by_triton for planned, by_triton in found.values())
    assert len({planned[4] for planned, _ in found.values()}) >= 6


def test_a_compiled_kernel_is_launched_as_by_triton(starts):
    through_triton, planned, by_triton = starts["compiled"]
    assert not through_triton and planned == by_triton


def test_every_start_enables_fp_fusion(starts):
    # Even if an environment variable turns off Triton's default.
    functions = [start[4] for _, *both in starts["every_kernel"].values() for start in both]
    assert all("'enable_fp_fusion': True" in function for function in [starts["without_a_default"], *functions])


def test_hooks_settings_and_other_devices_go_through_triton(starts):
    found = starts["goes_through_triton"]
    assert not found.pop("nothing") and not found.pop("nothing again")
    assert found and all(found.values()), found


def test_threads_launch_the_same_kernel(starts):
    assert len(starts["from_threads"]) == 1


@triton.jit
def _fill_kernel(p_x, p_y, n, value, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    if p_y is not None:
        tl.store(p_y + offsets, value, mask=offsets < n)
    tl.store(p_x + offsets, value, mask=offsets < n)


def test_a_start_can_be_launched_repeatedly(device):
    start = Start(_fill_kernel, (2,), 20, 3.0, BLOCK=16)
    for dtype in (torch.float32, torch.float16):
        for _ in range(3):
            x, y = (torch.zeros(21, dtype=dtype, device=device) for _ in range(2))
            start(x, y)
            start(x[1:], None)
            assert x.tolist() == [3.0] * 21 and y.tolist() == [3.0] * 20 + [0.0]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_cpu_tensor_is_refused():
    start = Start(_fill_kernel, (2,), 20, 3.0, BLOCK=16)
    start(torch.zeros(20, device="cuda"), None)
    with pytest.raises(ValueError, match="cpu tensor"):
        start(torch.zeros(20), None)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_start_runs_on_the_current_stream():
    start = Start(_fill_kernel, (2,), 20, 3.0, BLOCK=16)
    x = torch.zeros(20, device="cuda")
    start(x, None)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        start(x, None)
    x.zero_()
    graph.replay()
    assert x.tolist() == [3.0] * 20


def test_a_recorded_start_has_its_arguments_in_order_and_runs_nothing():
    start = Start(_fill_kernel, (2,), 20, 3.0, BLOCK=16, num_warps=2, passes={"p_x": 2})
    with FakeTensorMode():
        x = torch.empty(20, device="cuda")
        with record() as outer:
            start(x, None)
            with record() as inner:
                start(x, x)
    (launch,) = outer
    assert len(inner) == 1 and launch.arguments == (x, None, 20, 3.0) and launch.constants == {"BLOCK": 16}
    assert (launch.kernel, launch.grid, launch.num_warps, launch.num_stages) == (_fill_kernel, (2,), 2, 2)
    assert launch.num_bytes == 2 * 80


HASHES = """
import json, sys
from triton import JITFunction
from resshift_fast.kernels import group_norm, add_concat_group_norm, launch, residual_shift
functions = [f for m in (residual_shift, group_norm, add_concat_group_norm) for f in vars(m).values()]
kernels = [f for f in functions if isinstance(f, JITFunction) and f.__name__.endswith("_kernel")]
for kernel in kernels[:: int(sys.argv[1])]:
    launch.hash_callees_first(kernel)
print(json.dumps({kernel.__name__: kernel.cache_key for kernel in kernels}))
"""


@pytest.mark.slow
def test_a_kernels_hash_does_not_depend_on_what_was_compiled_before():
    """Otherwise another process would not find in the disk cache what this one compiled."""
    found = []
    for order in ("1", "-1"):
        environment = {**os.environ, "TRITON_INTERPRET": "0"}
        command = [sys.executable, "-c", HASHES, order]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        found.append(json.loads(done.stdout))
    assert found[0] == found[1] and len(found[0]) > 8
