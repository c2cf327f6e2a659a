"""The workload that profilers record: what it runs, and the files that it writes for the report."""

import json
from contextlib import contextmanager

import pytest
import tiny_models
import torch

from resshift_fast.core import nvtx
from resshift_fast.measure import profiling, roofline
from resshift_fast.measure.counting import Row
from resshift_fast.measure.profiling import Workload, record
from resshift_fast.models import catalog

TINY = {"model": tiny_models.ENLARGE, "size": 16, "dtype": "float32", "device": "cpu", "warmup": 1, "runs": 2}


@pytest.fixture(autouse=True)
def models(monkeypatch):
    monkeypatch.setattr(catalog, "MODELS", dict(catalog.MODELS))
    tiny_models.install(catalog.MODELS)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"size": 0}, "size is 0, expected at least 1"),
        ({"runs": 0}, "runs is 0"),
        ({"dtype": "int8"}, "dtype is 'int8'"),
        ({"how": "faster"}, "how is 'faster', expected one of eager, graphs, torch"),
        ({"model": "nano-x5"}, "nano-x5"),
        ({"steps": 99}, "respacing is 99"),
    ],
)
def test_bad_settings_are_refused_at_construction(wrong, message):
    with pytest.raises(ValueError, match=message):
        Workload(**wrong)


@pytest.mark.parametrize("steps, evaluations", [(None, 4), (2, 2)])
def test_steps_are_those_of_the_chain(steps, evaluations):
    workload = Workload(**TINY, steps=steps)
    pipeline = workload.pipeline()
    assert pipeline.restoration.chain.num_steps == workload.spec.schedule.num_steps == evaluations
    assert workload.call(pipeline)().shape == (1, 3, 64, 64)


def test_inpainting_has_a_mask():
    workload = Workload(**TINY | {"model": tiny_models.INPAINT, "size": 20, "batch": 2})
    assert workload.side == 32
    assert workload.call(workload.pipeline())().shape == (2, 3, 20, 20)


def test_the_workload_is_written_to_a_file(tmp_path):
    workload = Workload(**TINY, steps=1)
    found = record(workload, tmp_path / "new")
    written = json.loads((tmp_path / "new" / "workload.json").read_text())
    assert written == found
    assert Workload.from_settings(written) == Workload(**TINY, steps=1, how="eager")
    assert written["title"] == "nano-x4, 16x16 input, batch 1, 1 steps, float32, eager"
    assert written["seconds"] > 0 and written["seconds_without_profiler"] > 0


def test_the_trace_has_the_recorded_restorations_and_their_stages(tmp_path):
    record(Workload(**TINY, steps=2), tmp_path)
    events = json.loads((tmp_path / "trace.json").read_text(errors="replace"))["traceEvents"]
    names = [e["name"] for e in events if e.get("cat") == "user_annotation"]
    assert names.count(nvtx.RESTORATION) == 2
    for stage in ("encode", "prepare", "denoise 1", "denoise 2", "decode"):
        assert names.count(nvtx.STAGE + stage) >= 2
    assert not nvtx.on


def test_nsys_needs_a_gpu(tmp_path):
    with pytest.raises(ValueError, match="nsys records what a CUDA GPU does, and the device is cpu"):
        record(Workload(**TINY), tmp_path, "nsys")


def test_an_unknown_tool_is_refused(tmp_path):
    with pytest.raises(ValueError, match="tool is 'perf', expected one of torch, nsys"):
        record(Workload(**TINY), tmp_path, "perf")


def test_graphs_are_captured_while_nsys_records_but_outside_a_restoration(monkeypatch, tmp_path):
    """Tuning, warm-up, and within nsys's range: capture, one unnamed run, the restorations; then those without nsys."""
    order = []

    @contextmanager
    def noted(name):
        order.append(f"{name} begins")
        yield
        order.append(f"{name} ends")

    class Pipeline:
        def compile(self, how, tune):
            order.append(f"compile {how}{' and tune' if tune else ''}")

    monkeypatch.setattr(profiling.devices, "usable_device", lambda device: torch.device("cuda"))
    monkeypatch.setattr(profiling.backends, "measuring", lambda: noted("tuning"))
    monkeypatch.setattr(Workload, "pipeline", lambda self: Pipeline())
    monkeypatch.setattr(Workload, "call", lambda self, pipeline: lambda: order.append("run"))
    monkeypatch.setattr(profiling, "_cuda_range", lambda: noted("recording"))
    monkeypatch.setattr(torch.autograd.profiler, "emit_nvtx", lambda: noted("names"))
    monkeypatch.setattr(nvtx, "named", lambda name: noted(name.rpartition("/")[2]))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100")
    found = record(Workload(**TINY | {"device": None, "runs": 1}), tmp_path, "nsys")
    capture = ["compile graphs", "capture begins", "names begins", "run", "names ends", "capture ends"]
    restoration = ["restoration begins", "run", "restoration ends"]
    tuning = ["tuning begins", "run", "tuning ends"]
    assert order == [*tuning, "run", "recording begins", *capture, "run", *restoration, "recording ends", *restoration]
    assert (found["how"], found["device_name"]) == ("graphs", "NVIDIA H100")


def test_floors_are_for_the_padded_size_and_the_given_steps(monkeypatch):
    options_seen = {}

    def count(spec, **options):
        options_seen.update(options, steps=spec.schedule.num_steps)
        return {"aten::add": Row(1, 335, 0, [(335, 0)])}

    monkeypatch.setattr("resshift_fast.measure.counting.count_sample", count)
    floors = Workload(**TINY | {"size": 17, "steps": 3, "dtype": "bfloat16"}).floors(roofline.GPUS["h100"])
    assert options_seen == {"size": (24, 24), "batch": 1, "dtype": torch.bfloat16, "arch": 90, "steps": 3}
    assert floors["aten::add"].seconds == pytest.approx(1e-10)
