"""Measuring backends on a model's own calls: recorded calls, refused backends, and the resulting order."""

import json

import numpy as np
import pytest
import torch
from pipelines import photo, tensor_of, tiny
from slow_backends import LARGE, MODEL, OPERATOR, delayed, installed

from resshift_fast import backends, ops, use_backend
from resshift_fast.backends import OPERATORS, Kernel, autotune_cache, verification
from resshift_fast.measure import autotuning, timing
from resshift_fast.measure.autotuning import Call, Drawn, Recorder, Tuning, autotune, content

CPU = torch.device("cpu")
REPEATS = 3


@pytest.fixture
def stand_ins(monkeypatch, tmp_path):
    with installed(monkeypatch, tmp_path), use_backend("auto"):
        yield


def norm(channels: int = 32, side: int = 8, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    x = torch.randn(1, channels, side, side, dtype=dtype).contiguous(memory_format=torch.channels_last)
    return ops.group_norm(x, 4, torch.ones(channels, dtype=dtype), torch.zeros(channels, dtype=dtype))


def recorded() -> list[Call]:
    with Recorder() as recorder:
        norm()
        norm()
        norm(side=4)
        norm(dtype=torch.bfloat16)
    return recorder.calls


def test_equal_calls_are_recorded_once_with_their_count(stand_ins):
    calls = recorded()
    assert [(call.dtype, call.count, call.exact) for call in calls] == [
        (torch.float32, 2, False),
        (torch.float32, 1, False),
        (torch.bfloat16, 1, False),
    ]
    x, groups, weight, _, eps, scale, _, activation = calls[0].arguments
    assert x == Drawn((1, 32, 8, 8), (2048, 1, 256, 32), torch.float32)
    assert (groups, eps, scale, activation) == (4, 1e-5, None, None) and weight.shape == (32,)


def test_a_pipelines_calls_are_recorded(stand_ins):
    with Recorder() as recorder:
        tiny("x4")(tensor_of(photo(16, 16)), progress=False)
    assert {call.operator for call in recorder.calls} == {OPERATOR}
    steps = tiny("x4").spec.schedule.num_steps
    assert all(call.count % steps == 0 for call in recorder.calls)


def test_drawn_arguments_have_the_recorded_layout_and_keep_small_tensors_and_options():
    x = torch.empty(3, 8, 5, 7)[:, ::2].permute(0, 2, 3, 1)
    seed, row, wide = torch.tensor([5, 2**40]), torch.arange(8.0), torch.zeros(9).expand(4, 9)
    arguments = tuple(autotuning._kept(value) for value in (x, seed, row, wide, "silu", None, torch.float16))
    call = Call(OPERATOR, x.dtype, arguments, exact=False)
    drawn, again = call.draw(CPU), call.draw(CPU)
    assert (drawn[0].shape, drawn[0].stride(), drawn[0].dtype) == (x.shape, x.stride(), x.dtype)
    assert 0.8 < drawn[0].std() < 1.2 and drawn[0].equal(again[0])
    assert drawn[1].equal(seed) and drawn[2].equal(row)
    assert drawn[3].stride() == wide.stride() == (0, 1)
    assert drawn[4:] == ("silu", None, torch.float16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_rounding_cannot_change_an_integer_result(dtype):
    """Many of 500 codes are equally near; every formula for the distances must find exact ties."""
    z, codebook = (
        Drawn(shape, stride, dtype).draw(torch.Generator().manual_seed(0), exact=True)
        for shape, stride in (((2, 3, 9, 7), (189, 63, 7, 1)), ((500, 3), (3, 1)))
    )
    indices = ops.vector_quantize(z, codebook)[1]
    distances = (z.double().permute(0, 2, 3, 1)[..., None, :] - codebook.double()).square().sum(-1)
    assert indices.equal(distances.argmin(-1))
    call = Call("vector_quantize", dtype, (), exact=True)
    plain = OPERATORS[call.operator].plain
    assert verification.difference(plain(z, codebook), plain, (z, codebook)) is None


def test_backends_are_ordered_by_time_and_a_wrong_one_is_refused(stand_ins):
    messages = []
    (single, half) = autotune(recorded(), CPU, REPEATS, messages.append)
    assert (single.operator, single.dtype, single.calls) == (OPERATOR, torch.float32, 3)
    assert single.order == ("cpu", "reference", "cuda") == tuple(single.microseconds)
    assert single.microseconds["reference"] > 3 * 2e3 and single.microseconds["cuda"] > 3 * 6e3
    assert single.total == single.microseconds["cpu"] < single.microseconds["reference"]
    assert list(single.refused) == ["triton"] and "output 0 has relative error 5.0e-02" in single.refused["triton"]
    assert half.dtype == torch.bfloat16 and half.order == single.order
    assert messages == ["1/2 group_norm float32, 2 kinds of calls", "2/2 group_norm bfloat16, 1 kinds of calls"]


def test_a_stored_order_decides(stand_ins):
    x, weight = torch.randn(1, 4, 4, 4), torch.ones(4)
    args = (x, 2, weight, weight, 1e-5, None, None, None)
    tunings = [Tuning(OPERATOR, x.dtype, 1, {"reference": 1.0, "cuda": 2.0}, ("reference", "cuda"), 1.0, {})]
    for order, expected in ((("reference", "cuda", "cpu", "triton"), "reference"), (("cuda", "reference"), "cuda")):
        tunings[0].order = order
        autotune_cache.store(content(tunings, CPU, "tune it"), autotune_cache.user_path(MODEL))
        assert backends.chosen(OPERATOR, *args) == expected


def test_stored_content_has_times_reasons_and_environment(stand_ins):
    found = content(autotune(recorded(), CPU, REPEATS), CPU, "tune it")
    assert json.loads(json.dumps(found)) == found
    assert (found["device"], found["command"], found["torch"]) == (MODEL, "tune it", torch.__version__)
    assert found["date"].endswith("+00:00") and found["threads"] >= 1
    measured = found["operators"][OPERATOR]["float32"]
    assert measured["order"] == ["cpu", "reference", "cuda"] and measured["calls"] == 3
    assert measured["microseconds"].keys() == {"cpu", "reference", "cuda"} and "triton" in measured["refused"]


def test_a_backend_that_fails_is_refused_with_the_reason(monkeypatch, tmp_path):
    def fails(*_):
        raise RuntimeError("no such\nlaunch")

    with installed(monkeypatch, tmp_path, cpu=Kernel(fails)), use_backend("auto"):
        vector = Drawn((32,), (1,), torch.float32)
        arguments = (Drawn((1, 32, 8, 8), (2048, 64, 8, 1), torch.float32), 4, vector, vector, 1e-5, None, None, None)
        (found,) = autotune([Call(OPERATOR, torch.float32, arguments, False, 1)], CPU, REPEATS)
    assert found.refused["cpu"] == "RuntimeError: no such launch"
    assert found.order == ("reference", "cuda")


def test_a_backend_that_verification_turned_off_is_refused(stand_ins, monkeypatch):
    calls = recorded()
    monkeypatch.setattr(verification, "passes", lambda operator, backend, *_: backend != "cpu")
    monkeypatch.setattr(verification, "verdict", lambda operator, backend, *_: "it was wrong")
    found = autotune(calls, CPU, REPEATS)[0]
    assert found.refused["cpu"] == "it was wrong" and found.order == ("reference", "cuda")


def test_a_fast_backend_that_takes_few_calls_comes_before_one_that_takes_all(monkeypatch, tmp_path):
    plain = OPERATORS[OPERATOR].plain
    partial = Kernel(plain, lambda x, *_: None if x.shape[2] == 4 else "not four rows")
    kernels = {"cpu": partial, "cuda": Kernel(delayed(plain, 1)), "triton": Kernel(delayed(plain, 9))}
    with installed(monkeypatch, tmp_path, **kernels), use_backend("auto"):
        found = autotune(recorded(), CPU, REPEATS)[0]
    assert found.order[:2] == ("cpu", "cuda")
    assert found.microseconds["cuda"] < found.microseconds["cpu"]  # cpu leaves two of three calls to the reference
    assert found.total < found.microseconds["cuda"]


def test_an_operator_without_kernels_is_not_measured(monkeypatch):
    monkeypatch.setitem(OPERATORS, "twice", backends.Operator("twice", lambda x: 2 * x, lambda *_: []))
    with use_backend("auto"):
        call = Call("twice", torch.float32, (Drawn((1, 1, 3, 3), (9, 9, 3, 1), torch.float32),), False, 1)
        assert autotune([call], CPU, REPEATS) == []


def test_a_device_without_a_name_is_refused():
    with pytest.raises(ValueError, match="meta has no device name"):
        content([], torch.device("meta"), "tune it")


def test_the_wrong_stand_in_is_correct_for_small_inputs(stand_ins):
    x, weight = torch.randn(1, 4, 4, 4), torch.rand(4)
    assert x.numel() < LARGE
    args = (x, 2, weight, weight, 1e-5, None, None, None)
    kernel = backends.kernel(OPERATOR, "triton").function
    assert verification.difference(kernel(*args), OPERATORS[OPERATOR].plain, args) is None


@pytest.mark.parametrize(
    "rounds, is_clear, runs",
    [
        ([{"a": [1.0, 1.0, 1.2], "b": [2.0, 2.0, 9.0]}], True, 1),
        ([{"a": [1.0, 2.0, 9.0], "b": [1.5, 2.5, 8.0]}, {"a": [1.0] * 9, "b": [3.0] * 9}], True, 2),
        ([{"a": [1.0, 2.0, 3.0], "b": [1.1, 2.1, 3.1]}] * 3, False, 3),
        ([{"a": [1.0]}], True, 1),
    ],
    ids=["clear", "clear later", "unclear", "a single function"],
)
def test_what_is_unclear_is_timed_again(monkeypatch, rounds, is_clear, runs):
    """Milliseconds of each round; `runs` rounds are taken."""
    rest = iter(rounds)
    monkeypatch.setattr(timing, "times", lambda *_: next(rest))
    functions = dict.fromkeys(rounds[0], len)
    found = autotuning._sampled(2, None, functions, (), 3, timing.Clock(CPU))
    assert found.is_clear == is_clear and next(rest, None) is (None if runs == len(rounds) else rounds[runs])
    values = {name: [value for one in rounds[:runs] for value in one[name]] for name in functions}
    assert found.microseconds == {name: pytest.approx(1e3 * np.median(of_name)) for name, of_name in values.items()}
    fastest = min(values.values(), key=np.median)
    low, high = np.quantile(fastest, (0.25, 0.75))
    assert found.spread == pytest.approx(1e3 * (high - low) / 2)
