"""Every kernel on a GPU: against plain PyTorch in float64, on other streams, in threads, CUDA graphs, a second device.

Without a GPU the same tests run the CPU kernels, and one Triton kernel in the interpreter, with stand-ins for streams
and graphs, so that errors in this file are found before it runs on a GPU.
"""

from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy

import pytest
import torch
from comparison import name_of
from pipelines import fresh
from streams import StandIn, gpus
from torch import Tensor
from torch.utils._pytree import tree_map_only

from resshift_fast import Pipeline, use_backend
from resshift_fast.backends import OPERATORS, chosen, kernel, native, verification

GPUS = gpus()
WHERE = GPUS[0] if GPUS else StandIn()
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def pairs() -> list:
    """(operator, backend) of every GPU kernel; without a GPU, of the kernels that run on the CPU instead."""
    if GPUS:
        found = [(name, backend) for name in OPERATORS for backend in ("cuda", "triton")]
    else:
        found = [(name, "cpu") for name in OPERATORS] + [("q_sample", "triton")]
    missing = {"triton": False} | {library: bool(native.missing(library)) for library in native.LIBRARIES}
    return [
        pytest.param(
            *pair, id="-".join(pair), marks=pytest.mark.skipif(missing[pair[1]], reason="the library is not built")
        )
        for pair in sorted(found)
        if pair[1] in OPERATORS[pair[0]].loaders
    ]


def takes(name: str, dtype: torch.dtype) -> bool:
    """Whether the operator supports a dtype; some take float32 latents only."""
    return not OPERATORS[name].dtypes or dtype in OPERATORS[name].dtypes


def with_dtypes(found: list) -> list:
    """The pairs with every dtype of their operators."""
    return [
        pytest.param(*pair.values, dtype, id=f"{pair.id}-{name_of(dtype)}", marks=pair.marks)
        for pair in found
        for dtype in DTYPES
        if takes(pair.values[0], dtype)
    ]


PAIRS = pairs()
CASES = with_dtypes(PAIRS)
if not GPUS:  # the interpreter does not round to bfloat16 as a GPU does
    CASES = [case for case in CASES if case.values[1:] != ("triton", torch.bfloat16)]


def calls(name: str, backend: str, dtype: torch.dtype) -> list[tuple]:
    """The operator's examples that the kernel supports, with every tensor cloned."""
    examples = OPERATORS[name].examples(WHERE.device, dtype)
    taken = [args for args in examples if kernel(name, backend).unsupported(*args) is None]
    assert taken, "the kernel supports none of the operator's examples"
    return [tree_map_only(Tensor, torch.clone, args) for args in taken]


def run(name: str, backend: str, args: tuple) -> list[Tensor]:
    outputs = kernel(name, backend).function(*args)
    return [outputs] if isinstance(outputs, Tensor) else list(outputs)


def changed(args: tuple, number: int = 1) -> tuple:
    """The arguments with other values: divided by number + 1, integer tensors with rounding down."""

    def smaller(x: Tensor) -> Tensor:
        return x / (number + 1) if x.dtype.is_floating_point else x // (number + 1)

    return tree_map_only(Tensor, smaller, args)


def copy_into(held: tuple, args: tuple) -> None:
    """Give the tensors of `held` the values of those in `args`."""
    for x, y in zip(held, args, strict=True):
        if isinstance(x, Tensor):
            x.copy_(y)


def assert_same(ours: list[Tensor], expected: list[Tensor]) -> None:
    for x, y in zip(ours, expected, strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize("name, backend, dtype", CASES)
def test_a_kernel_agrees_with_plain_pytorch(name, backend, dtype):
    assert calls(name, backend, dtype)
    assert verification.compare(OPERATORS[name], backend, WHERE.device, dtype) == verification.PASSED


@pytest.mark.parametrize("name, backend, dtype", CASES)
def test_results_are_the_same_from_run_to_run(name, backend, dtype):
    for args in calls(name, backend, dtype):
        first = run(name, backend, args)
        assert_same(run(name, backend, args), first)


@pytest.mark.parametrize("name, backend", PAIRS)
def test_a_kernel_waits_for_earlier_work_of_its_stream(name, backend):
    for args in calls(name, backend, torch.float32):
        expected = run(name, backend, args)
        with WHERE.stream():
            late = torch.zeros_like(args[0])
            WHERE.delay()
            late.copy_(args[0])
            ours = run(name, backend, (late, *args[1:]))
        assert_same(ours, expected)


@pytest.mark.parametrize("name, backend, dtype", CASES)
def test_a_captured_kernel_reads_new_values_at_every_replay(name, backend, dtype):
    for args in calls(name, backend, dtype):
        expected, other = run(name, backend, args), run(name, backend, changed(args))
        held = changed(args, 2)
        run(name, backend, held)  # compiled before it is captured
        replay, outputs = WHERE.capture(lambda held=held: run(name, backend, held))
        for values, results in ((args, expected), (changed(args), other), (args, expected)):
            copy_into(held, values)
            replay()
            assert_same(outputs, results)


@pytest.mark.parametrize("name, backend", PAIRS)
def test_threads_with_their_own_streams_do_not_mix_results(name, backend):
    for args in calls(name, backend, torch.float32):
        given = [changed(args, number) for number in range(4)]
        alone = [run(name, backend, args) for args in given]

        def work(number: int, given=given) -> list[list[Tensor]]:
            with WHERE.current(), WHERE.stream():
                return [run(name, backend, given[number]) for _ in range(3)]

        with ThreadPoolExecutor(WHERE.threads) as threads:
            for results, expected in zip(threads.map(work, range(4)), alone, strict=True):
                for ours in results:
                    assert_same(ours, expected)


@pytest.mark.skipif(len(GPUS) == 1, reason="there is one GPU")
@pytest.mark.parametrize("name, backend", PAIRS)
def test_tensors_of_a_second_device_while_the_first_is_current(name, backend, monkeypatch):
    monkeypatch.setenv(verification.VARIABLE, "0")
    second = GPUS[1] if GPUS else StandIn()
    operator = getattr(torch.ops.resshift_fast, name)
    for args in calls(name, backend, torch.float32):
        there = tree_map_only(Tensor, lambda x: x.to(second.device), args)
        with use_backend(backend), torch.no_grad():
            assert chosen(name, *there) == backend
            outputs = operator(*there)
        outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
        assert {x.device for x in outputs} == {second.device}
        assert_same([x.to(WHERE.device) for x in outputs], run(name, backend, args))


def test_a_pipeline_follows_weights_that_change_in_place():
    """On a GPU through CUDA graphs, which read what was derived from the weights before."""
    made = fresh("x4-vq", steps=2)
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    pipeline, eager = (
        Pipeline(
            made.spec, deepcopy(made.denoiser), deepcopy(made.first_stage), WHERE.device, made.dtype, graphs=graphs
        )
        for graphs in (True, False)
    )
    before = [pipeline(image) for _ in range(3)]
    assert before[0].allclose(before[2], atol=1e-5) and before[0].allclose(eager(image), atol=1e-5)
    for one in (pipeline, eager):
        one.denoiser.time_embed[2].bias.add_(0.5)
        one.first_stage.decoder.up[1].upsample.conv.weight.mul_(1.5)
    after = pipeline(image)
    eager.restoration.prepare(changed=True)
    assert after.allclose(eager(image), atol=1e-5) and not after.allclose(before[0], atol=1e-3)
