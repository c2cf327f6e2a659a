"""NVTX ranges: none while off, nested by stage and operator while on, and no effect on torch.compile."""

import subprocess
import sys

import pytest
import torch
from pipelines import fresh, tiny

from resshift_fast import backends
from resshift_fast.core import nvtx

CHAIN = ["prepare", "denoise 1", "denoise 2", "denoise 3", "denoise 4"]


@pytest.fixture
def pushed(monkeypatch):
    """Record calls of NVTX as "name" and "pop", also on machines without it."""
    calls = []
    monkeypatch.setattr(nvtx, "_has_nvtx", lambda: True)
    monkeypatch.setattr(torch.cuda.nvtx, "range_push", calls.append)
    monkeypatch.setattr(torch.cuda.nvtx, "range_pop", lambda: calls.append("pop"))
    return calls


@pytest.fixture
def plain_operator(monkeypatch):
    """An operator without kernels."""
    monkeypatch.setitem(backends.OPERATORS, "twice", backends.Operator("twice", lambda x: 2 * x, lambda *_: []))
    return "twice"


def restore(pipeline):
    return pipeline(torch.rand(1, 3, 16, 16), progress=False)


def test_no_range_is_created_while_off(monkeypatch, plain_operator):
    def refuse(*_):
        raise AssertionError("a range was created")

    monkeypatch.setattr(nvtx, "_Range", refuse)
    monkeypatch.setattr(nvtx, "marked", refuse)
    restore(tiny("x4"))
    assert backends.run(plain_operator, torch.ones(2)).tolist() == [2, 2]
    assert nvtx.stage("encode") is nvtx.stage("denoise", 1) is nvtx.named("x")


def test_stages_of_a_restoration_in_order(pushed):
    with nvtx.marking():
        restore(tiny("x4"))
    stages = [nvtx.STAGE + name for name in ("encode", *CHAIN, "decode")]
    assert [name for name in pushed if name in stages] == stages
    depth = 0
    for name in pushed:
        depth += -1 if name == "pop" else 1
        assert depth >= 0
    assert depth == 0 and not nvtx.on


def test_operators_are_ranges(pushed, plain_operator):
    with nvtx.marking():
        assert backends.run(plain_operator, torch.ones(2)).tolist() == [2, 2]
    assert pushed == [nvtx.OPERATOR + "twice", "pop"]


def test_a_range_ends_with_an_exception(pushed):
    with pytest.raises(ZeroDivisionError), nvtx.marking(), nvtx.stage("encode"):
        raise ZeroDivisionError
    assert pushed == [nvtx.STAGE + "encode", "pop"] and not nvtx.on


def test_torch_profiler_records_ranges(plain_operator):
    activities = [torch.profiler.ProfilerActivity.CPU]
    with nvtx.marking(), torch.profiler.profile(activities=activities) as profile, nvtx.stage("denoise", 2):
        backends.run(plain_operator, torch.ones(2))
    spans = {event.name: event.time_range for event in profile.events()}
    outer, inner = spans[nvtx.STAGE + "denoise 2"], spans[nvtx.OPERATOR + "twice"]
    assert outer.start <= inner.start <= inner.end <= outer.end


@pytest.mark.slow
def test_torch_compile_traces_once_whether_on_or_off(pushed):
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    pipeline = fresh("x4", steps=2)  # each further step is traced too; symbolic sizes take longer
    chain = torch.compile(pipeline.restoration, fullgraph=True, dynamic=False, backend=backend)
    image = torch.rand(2, 3, 20, 36)
    seed = torch.zeros(2, dtype=torch.int64)
    with torch.no_grad():
        expected, _ = pipeline.restoration(image, seed)
        found = [chain(image, seed)[0]]
        with nvtx.marking():
            found.append(chain(image, seed)[0])
        found.append(chain(image, seed)[0])
    assert len(graphs) == 1
    assert not [name for name in pushed if name.startswith(nvtx.STAGE)]
    for one in found:
        torch.testing.assert_close(one, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("value, on", [("1", "True"), ("0", "False"), ("", "False")])
def test_the_environment_variable_turns_ranges_on(value, on):
    program = "from resshift_fast.core import nvtx; import sys; print(nvtx.on, 'torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], env={nvtx.VARIABLE: value, "PATH": ""}, capture_output=True, text=True
    )
    assert done.stdout.split() == [on, "False"], done.stderr
