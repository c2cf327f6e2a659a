"""The CUDA C++ kernels on a GPU: against plain PyTorch in float64, on other streams, and in CUDA graphs."""

import pytest
import torch

from resshift_fast import native, verification
from resshift_fast.backends import OPERATORS, kernel, on

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
    pytest.mark.skipif(torch.cuda.is_available() and bool(native.missing("cuda")), reason="the library is not built"),
]
BOUND = sorted(name for name, operator in OPERATORS.items() if "cuda" in operator.loaders)
DTYPES = ("float32", "float16", "bfloat16")
DEVICES = [f"cuda:{i}" for i in range(torch.cuda.device_count())] or ["cuda:0"]


def calls(name: str, dtype: str, device: str = "cuda:0") -> list[tuple]:
    """Arguments of an operator's examples that its kernel takes."""
    examples = OPERATORS[name].examples(torch.device(device), getattr(torch, dtype))
    return [args for args in examples if kernel(name, "cuda").unsupported(*args) is None]


def run(name: str, args: tuple) -> list[torch.Tensor]:
    outputs = kernel(name, "cuda").function(*args)
    return [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)


def assert_same(ours: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    for x, y in zip(ours, expected, strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", BOUND)
def test_each_agrees_with_plain_pytorch(name, dtype, device):
    where = torch.device(device)
    with on(where):
        assert verification.compare(OPERATORS[name], "cuda", where, getattr(torch, dtype)) == verification.PASSED


@pytest.mark.parametrize("name", BOUND)
def test_results_are_the_same_from_run_to_run(name):
    for args in calls(name, "float16"):
        assert_same(run(name, args), run(name, args))


@pytest.mark.parametrize("name", BOUND)
def test_a_kernel_waits_for_what_its_stream_does_before(name):
    for args in calls(name, "float32"):
        expected = run(name, args)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            late = torch.zeros_like(args[0])
            torch.cuda._sleep(50_000_000)
            late.copy_(args[0])
            ours = run(name, (late, *args[1:]))
        stream.synchronize()
        assert_same(ours, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", BOUND)
def test_a_captured_kernel_reads_new_values_at_every_replay(name, dtype):
    for args in calls(name, dtype):
        x = torch.zeros_like(args[0])
        run(name, (x, *args[1:]))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = run(name, (x, *args[1:]))
        x.copy_(args[0])
        graph.replay()
        assert_same(outputs, run(name, args))
