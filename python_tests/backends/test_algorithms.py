"""The algorithms of the CPU convolution: measured per shape, stored, selected, and refused if their result is wrong."""

import json
import re
import warnings

import pytest
import slow_algorithms
import torch
from slow_algorithms import fast, slow, wrong

from resshift_fast import ops, use_backend
from resshift_fast.backends import OPERATORS, autotune_cache, dispatch, native, verification
from resshift_fast.measure import autotuning
from resshift_fast.measure.autotuning import Call, Recorder, Tuning, autotune, content
from resshift_fast.ops import conv2d_winograd as winograd
from resshift_fast.ops.conv2d_winograd import DIRECT, algorithm, estimated

pytestmark = pytest.mark.skipif(native.missing("cpu") is not None, reason="the CPU library is not built")

CPU = torch.device("cpu")
MODEL = "Test CPU"
HALF = torch.bfloat16
SHAPE = "16x24@16x16b1"
X, WEIGHT = torch.randn(1, 16, 16, 16), torch.randn(24, 16, 3, 3) / 12
ARGUMENTS = (X, WEIGHT, None, 1, None, 0, None, None, 1e-5, None, None, None)


@pytest.fixture(autouse=True)
def empty_cache(monkeypatch, tmp_path):
    """The autotune cache is enabled and empty."""
    monkeypatch.setenv("RESSHIFT_FAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv(verification.VARIABLE, "0")
    monkeypatch.delenv(autotune_cache.VARIABLE)
    monkeypatch.setattr(autotune_cache, "SHIPPED", tmp_path / "shipped")
    monkeypatch.setattr(autotune_cache, "processor", lambda: MODEL)
    autotune_cache.forget()
    with use_backend("auto"):
        yield
    monkeypatch.undo()
    autotune_cache.forget()
    dispatch._forget()


def measured(choice, operator: str = "conv2d", dtype: str = "float32", shape: str = SHAPE) -> dict:
    """The content of a cache file with one choice."""
    algorithms = {shape: {"choice": choice, "microseconds": {}, "refused": {}}}
    return {"device": MODEL, "operators": {operator: {dtype: {"order": ["cpu"], "algorithms": algorithms}}}}


def store(found: dict) -> None:
    autotune_cache.store(found, autotune_cache.user_path(MODEL))
    dispatch._forget()


def tuned() -> Tuning:
    arguments = tuple(map(autotuning._kept, ARGUMENTS))
    (found,) = autotune([Call("conv2d", X.dtype, arguments, exact=False, count=3)], CPU, 5)
    return found


@pytest.mark.parametrize("upsample", [False, True], ids=["conv2d", "upsample_conv2d"])
@pytest.mark.parametrize(
    "dtype, allowed", [(torch.float32, (4, 6, DIRECT)), (HALF, (4, 6, 8, DIRECT)), (torch.float16, (4, 6, 8, DIRECT))]
)
def test_a_stored_choice_applies_to_its_shape_operator_and_dtype(upsample, dtype, allowed):
    operator, x, weight = "upsample_conv2d" if upsample else "conv2d", X.to(dtype), WEIGHT.to(dtype)
    for choice in allowed:
        name = "direct" if choice == DIRECT else f"winograd {choice}"
        store(measured(name, operator, str(dtype).removeprefix("torch.")))
        assert algorithm(x, weight, 1, upsample) == choice
        other = torch.cat([x, x])
        assert algorithm(other, weight, 1, upsample) == estimated(other, weight, 1, upsample)
        assert algorithm(x, weight, 1, not upsample) == estimated(x, weight, 1, not upsample)


@pytest.mark.parametrize("choice", [4, 6, DIRECT])
@pytest.mark.parametrize("operator", ["conv2d", "upsample_conv2d"])
def test_every_choice_gives_the_right_result(operator, choice):
    store(measured("direct" if choice == DIRECT else f"winograd {choice}", operator))
    function = getattr(ops, operator)
    assert algorithm(X, WEIGHT, 1, operator == "upsample_conv2d") == choice
    arguments = (X, WEIGHT, None) if operator == "upsample_conv2d" else ARGUMENTS
    expected = OPERATORS[operator].plain(X.double(), WEIGHT.double(), *arguments[2:])
    assert (function(X, WEIGHT, None) - expected).norm() < 1e-5 * expected.norm()


@pytest.mark.parametrize("choice", ["winograd 8", "winograd 2", "fast", ""])
def test_a_choice_that_is_not_allowed_is_ignored_with_one_warning(choice):
    """Tiles of 8 are not exact enough for float32."""
    found = measured(choice)
    others = found["operators"]["conv2d"]["float32"]["algorithms"]
    others["16x24@8x8b1"] = {"choice": "direct"}
    others["16x24@4x4b1"] = {"choice": "nothing"}
    found["operators"]["upsample_conv2d"] = {"float32": {"order": ["cpu"], "algorithms": {SHAPE: {"choice": "x"}}}}
    store(found)
    with pytest.warns(RuntimeWarning) as caught:
        assert algorithm(X, WEIGHT, 1) == estimated(X, WEIGHT, 1) != 8
        assert algorithm(X, WEIGHT, 1, True) == estimated(X, WEIGHT, 1, True)
        assert algorithm(X[:, :, :8, :8], WEIGHT, 1) == DIRECT
        dispatch._forget()
        assert algorithm(X, WEIGHT, 1) == estimated(X, WEIGHT, 1)
    (warning,) = caught
    assert str(warning.message).startswith(
        f"an entry of the autotune cache is ignored: {autotune_cache.user_path(MODEL)}: "
        f"conv2d, float32, algorithms, {SHAPE}: choice is {choice!r}, expected one of winograd 4, winograd 6, direct;"
    )


@pytest.mark.parametrize(
    "algorithms, reason",
    [
        ([], "conv2d, float32, algorithms: found [], expected an object"),
        ({SHAPE: "direct"}, f"algorithms, {SHAPE}: found 'direct', expected an object"),
        ({SHAPE: {}}, f"algorithms, {SHAPE}: choice is None, expected the name"),
        ({SHAPE: {"choice": 6}}, f"algorithms, {SHAPE}: choice is 6, expected the name"),
    ],
)
def test_a_broken_file_is_ignored(algorithms, reason):
    found = measured("direct")
    found["operators"]["conv2d"]["float32"]["algorithms"] = algorithms
    store(found)
    with pytest.warns(RuntimeWarning, match=re.escape(reason)) as caught:
        assert algorithm(X, WEIGHT, 1) == estimated(X, WEIGHT, 1)
    assert len(caught) == 1


def test_a_file_without_algorithms_is_valid():
    found = measured("direct")
    del found["operators"]["conv2d"]["float32"]["algorithms"]
    store(found)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert algorithm(X, WEIGHT, 1) == estimated(X, WEIGHT, 1)
    assert autotune_cache.find("conv2d", CPU, torch.float32).order == ("cpu",)


def test_the_cache_can_be_disabled(monkeypatch):
    assert estimated(X, WEIGHT, 1) != DIRECT
    store(measured("direct"))
    monkeypatch.setenv(autotune_cache.VARIABLE, "0")
    assert algorithm(X, WEIGHT, 1) == estimated(X, WEIGHT, 1)


def test_a_choice_is_looked_up_once(monkeypatch):
    store(measured("direct"))
    assert algorithm(X, WEIGHT, 1) == DIRECT
    monkeypatch.setattr(autotune_cache, "find", lambda *_: pytest.fail("looked up again"))
    assert algorithm(X, WEIGHT, 1) == DIRECT


@pytest.mark.parametrize("dtype", [torch.float32, HALF], ids=str)
def test_every_algorithm_is_measured_on_every_shape(dtype):
    x, weight = X.to(dtype), winograd.pack_conv2d(WEIGHT).to(dtype)
    with torch.no_grad(), Recorder() as recorder:
        ops.conv2d(x, weight)
        ops.conv2d(x, weight, num_groups=4, norm_weight=x[0, :, 0, 0], norm_bias=x[0, :, 0, 0], activation="silu")
        ops.conv2d(x[:, :, :5, :7], weight)
        ops.upsample_conv2d(x, weight, None)
    assert [call.operator for call in recorder.calls] == ["conv2d"] * 3 + ["upsample_conv2d"]
    found = {each.operator: each for each in autotune(recorder.calls, CPU, 2)}
    assert found["conv2d"].shapes.keys() == {SHAPE, "16x24@5x7b1"}
    assert found["upsample_conv2d"].shapes.keys() == {SHAPE}
    names = {"winograd 4", "winograd 6", "direct"} | ({"winograd 8"} if dtype == HALF else set())
    for each in (*found["conv2d"].shapes.values(), *found["upsample_conv2d"].shapes.values()):
        assert each.microseconds.keys() == names and not each.refused and each.gain >= 1
    stored = content(list(found.values()), CPU, "tune it")
    assert json.loads(json.dumps(stored)) == stored
    store(stored)
    of_shape = stored["operators"]["conv2d"][str(dtype).removeprefix("torch.")]["algorithms"][SHAPE]
    assert of_shape["choice"] == min(of_shape["microseconds"], key=of_shape["microseconds"].get)
    assert winograd._NAMES[algorithm(x, weight, 1)] == of_shape["choice"]


def test_the_fastest_is_chosen_and_a_wrong_one_refused(monkeypatch):
    slow_algorithms.install(monkeypatch, slow=slow, fast=fast, wrong=wrong)
    found = tuned()
    (shape,) = found.shapes.values()
    assert (shape.default, shape.choice, list(shape.microseconds)) == ("slow", "fast", ["fast", "slow"])
    assert shape.gain > 2 and "output 0 has relative error" in shape.refused["wrong"]
    assert found.microseconds["cpu"] < shape.microseconds["slow"]  # timed with the chosen algorithm
    of_shape = content([found], CPU, "tune it")["operators"]["conv2d"]["float32"]["algorithms"][SHAPE]
    assert of_shape["choice"] == "fast" and of_shape["microseconds"].keys() == {"fast", "slow"}
    assert of_shape["refused"] == shape.refused


def test_a_backend_whose_default_is_wrong_is_refused(monkeypatch):
    slow_algorithms.install(monkeypatch, wrong=wrong, fast=fast)
    found = tuned()
    assert found.refused["cpu"].startswith(f"wrong for {SHAPE}: output 0 has relative error")
    assert found.order == ("reference",) and found.shapes[SHAPE].choice == "fast"


def test_nothing_is_chosen_where_all_are_wrong(monkeypatch):
    slow_algorithms.install(monkeypatch, wrong=wrong)
    found = tuned()
    assert "cpu" in found.refused and found.shapes[SHAPE].microseconds == {}
