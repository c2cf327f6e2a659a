"""`bench report` on generated recordings with known times, of nsys and of torch.profiler."""

import ast
import csv
import importlib.util
import json
import re
from pathlib import Path

import pytest
from nsys_export import PROCESS, Export

from resshift_fast import cli
from resshift_fast.backends import OPERATORS
from resshift_fast.measure import roofline
from resshift_fast.measure.profiling import Workload
from resshift_fast.measure.report import files, names, show, tables
from resshift_fast.measure.roofline import Floor

ROOT = Path(__file__).resolve().parents[2]
RESTORATION, STAGE, OPERATOR = "resshift_fast/restoration", "resshift_fast/stage/", "resshift_fast/operator/"
CONVOLUTION = "void cutlass__5x_cudnn::Kernel<sm90_xmma_fprop_implicit_gemm>(Params)"
ELEMENTWISE = "void at::native::vectorized_elementwise_kernel<4, at::native::AddFunctor>(int)"
FLOORS = {
    "aten::convolution": Floor(100e-6, 1, 1),
    "resshift_fast::group_norm": Floor(15e-6, 2, 2),
    "aten::addmm": Floor(5e-6, 1, 1),
}


@pytest.fixture
def export(tmp_path):
    return Export(tmp_path / "profile.sqlite")


def eager(export, start=0):
    """A restoration of 1,000 µs in two steps: 510 busy, 490 idle; operators of others by kernel name."""
    t = start
    export.range(RESTORATION, t, t + 1000, registered=True)
    export.range(f"{STAGE}encode", t + 10, t + 200)
    export.range(f"{OPERATOR}group_norm", t + 20, t + 60, registered=True)
    export.kernel("group_norm_fwd_kernel", t + 100, t + 150, t + 30)
    export.kernel(CONVOLUTION, t + 150, t + 250, t + 70)
    export.range(f"{STAGE}prepare", t + 210, t + 300)
    export.range(f"{OPERATOR}prior_sample", t + 215, t + 230)
    export.kernel("prior_sample_kernel", t + 300, t + 310, t + 220)
    for step, launch, kernel in ((1, 310, 340), (2, 510, 530)):
        export.range(f"{STAGE}denoise {step}", t + launch, t + launch + 190)
        export.range(f"{OPERATOR}group_norm", t + launch + 5, t + launch + 20)
        export.kernel("group_norm_fwd_kernel", t + kernel, t + kernel + 60, t + launch + 10)
        export.range(f"{OPERATOR}posterior_step", t + launch + 100, t + launch + 130)
    export.kernel("posterior_step_kernel", t + 460, t + 470, t + 415)
    export.kernel("group_stats_kernel", t + 590, t + 600, t + 522)
    export.kernel("posterior_step_kernel", t + 640, t + 650, t + 615)
    export.range(f"{STAGE}decode", t + 710, t + 900)
    export.kernel(CONVOLUTION, t + 730, t + 900, t + 720)
    export.copy(2, t + 920, t + 950, t + 910)


def stages(report):
    """{stage: (kernels, busy µs, idle µs, longest gap in µs)}"""
    return {s.name: (s.calls, s.busy / 1000, s.gaps / 1000, s.longest / 1000) for s in report.stages}


def operators(report):
    """{operator: (kernels, µs)}"""
    return {s.name: (s.calls, s.busy / 1000) for s in report.operators}


EAGER_STAGES = {
    "encode": (2, 150, 100, 100),
    "prepare": (1, 10, 50, 50),
    "denoise 1": (2, 70, 90, 60),
    "denoise 2": (3, 80, 100, 60),
    "decode": (1, 170, 80, 80),
    "outside the stages": (1, 30, 70, 50),
}
EAGER_OPERATORS = {
    "by name: convolution": (2, 270),
    "resshift_fast::group_norm": (4, 180),
    "memory copy": (1, 30),
    "resshift_fast::posterior_step": (2, 20),
    "resshift_fast::prior_sample": (1, 10),
}


def test_time_by_stage_operator_and_kernel(export):
    eager(export)
    trace = files.read(export.close())
    report = tables.make(trace)
    assert (trace.recorder, trace.device, trace.on_cpu) == ("nsys", "NVIDIA H100 80GB HBM3", False)
    assert stages(report) == EAGER_STAGES
    assert list(stages(report)) == list(EAGER_STAGES)
    assert operators(report) == EAGER_OPERATORS
    assert (report.busy, report.idle, report.wall) == (510_000, 490_000, [1_000_000])
    first = report.kernels[0]
    assert (first.name, first.operator, first.calls, first.busy, first.longest) == (
        CONVOLUTION,
        "by name: convolution",
        2,
        270_000,
        170_000,
    )
    assert [k.busy for k in report.kernels] == [270_000, 170_000, 30_000, 20_000, 10_000, 10_000]
    assert not report.notes


def test_gaps_name_the_kernels_around_them(export):
    eager(export)
    gaps = tables.make(files.read(export.close())).gaps
    assert sum(gap.duration for gap in gaps) == 490_000
    assert gaps[0] == (100_000, "encode", "the start", "group_norm_fwd_kernel")
    assert gaps[1] == (80_000, "decode", "posterior_step_kernel", CONVOLUTION)
    assert (50_000, "outside the stages", "copy device to host", "the end") in gaps


def test_only_restorations_count_and_all_of_them(export):
    export.kernel("warm_up_kernel", -500, -400, -600)
    export.kernel("late_warm_up_kernel", 20, 30, -5)  # launched before, and still running
    eager(export)
    eager(export, 2000)
    export.kernel("after_kernel", 5000, 5100, 4000)
    report = tables.make(files.read(export.close()))
    assert report.count == 2 and report.wall == [1_000_000, 1_000_000]
    assert operators(report) == {name: (2 * calls, 2 * time) for name, (calls, time) in EAGER_OPERATORS.items()}
    assert {gap.before for gap in report.gaps} >= {"the start"} and len(report.gaps) == 18


def test_another_process_has_correlation_ids_of_its_own(export):
    export.range(RESTORATION, 0, 1000)
    export.range(f"{STAGE}encode", 0, 500)
    correlation = export.launch(100)
    other = PROCESS + (1 << 24)
    export.insert(
        "CUPTI_ACTIVITY_KIND_RUNTIME", start=600_000, end=601_000, globalTid=other + 1, correlationId=correlation
    )
    export.kernel("group_norm_fwd_kernel", 700, 750, correlation=correlation)
    assert stages(tables.make(files.read(export.close())))["encode"][:2] == (1, 50)


def test_concurrent_work_counts_once_in_its_stage(export):
    export.range(RESTORATION, 0, 100)
    export.kernel(CONVOLUTION, 0, 60, 0)
    export.kernel(ELEMENTWISE, 20, 100, 5, stream=9)
    report = tables.make(files.read(export.close()))
    assert report.busy == 100_000 and report.idle == 0
    assert operators(report) == {"by name: elementwise": (1, 80), "by name: convolution": (1, 60)}
    assert any("0.040 ms a restoration ran beside other work" in note for note in report.notes)


def graph(export, *, captured):
    """The same work in a CUDA graph, captured before the restoration that replays it."""
    if captured:
        export.range("resshift_fast/capture", -5000, -4000)
        export.range(f"{STAGE}encode", -4900, -4800)
        export.range(f"{OPERATOR}group_norm", -4890, -4880)
        export.range("aten::conv2d, op_id = 12", -4870, -4850)
        export.range("aten::convolution, seq = 3, op_id = 13", -4869, -4851)
        for number, name, times in (("1", "prior_sample", (-4790, -4780)), ("2", "posterior_step", (-4690, -4680))):
            export.range(f"{STAGE}{'prepare' if number == '1' else 'denoise 1'}", times[0] - 5, times[1] + 5)
            export.range(f"{OPERATOR}{name}", *times)
        export.range(f"{STAGE}decode", -4600, -4500)
        for node, time in enumerate((-4885, -4860, -4785, -4685, -4550), start=1):
            export.node(node, time)
            export.node(100 + node, -4400, node)  # instantiation makes clones
            export.node(200 + node, -4300, 100 + node)
    export.range(RESTORATION, 0, 500)
    launch = export.launch(10, "cudaGraphLaunch_v10000")
    names = ("group_norm_fwd_kernel", CONVOLUTION, "prior_sample_kernel", "posterior_step_kernel", ELEMENTWISE)
    for node, (name, start, end) in enumerate(
        zip(names, (50, 100, 250, 300, 400), (100, 250, 300, 390, 480), strict=True), start=201
    ):
        export.kernel(name, start, end, correlation=launch, node=node)


def test_nodes_of_a_graph_count_in_the_stage_of_their_capture(export):
    graph(export, captured=True)
    report = tables.make(files.read(export.close()), FLOORS)
    assert stages(report) == {
        "encode": (2, 200, 50, 50),
        "prepare": (1, 50, 0, 0),
        "denoise 1": (1, 90, 0, 0),
        "decode": (1, 80, 10, 10),
        "outside the stages": (0, 0, 20, 20),
    }
    assert operators(report) == {
        "aten::convolution": (1, 150),
        "resshift_fast::posterior_step": (1, 90),
        "by name: elementwise": (1, 80),
        "resshift_fast::group_norm": (1, 50),
        "resshift_fast::prior_sample": (1, 50),
    }
    assert not report.notes


def test_nodes_whose_capture_was_not_recorded_are_assigned_by_name(export):
    graph(export, captured=False)
    report = tables.make(files.read(export.close()))
    assert stages(report) == {
        "encode and prepare": (3, 250, 50, 50),
        "denoise 1": (1, 90, 0, 0),
        "decode": (1, 80, 10, 10),
        "outside the stages": (0, 0, 20, 20),
    }
    assert operators(report)["by name: convolution"] == (1, 150)
    assert operators(report)["resshift_fast::group_norm"] == (1, 50)
    assert ["Of 5 nodes" in report.notes[0], "prior_sample and posterior_step" in report.notes[1]] == [True, True]


def test_nodes_that_are_clones_of_one_another_are_assigned_by_name(export):
    graph(export, captured=False)
    export.node(201, -10, 301)
    export.node(301, -10, 201)
    assert "Of 5 nodes" in files.read(export.close()).notes[0]


def test_graphs_recorded_as_wholes(export):
    export.range(RESTORATION, 0, 500)
    export.range(f"{STAGE}encode", 600, 700)
    for start, end in ((50, 450), (0, 0)):
        launch = export.launch(10, "cudaGraphLaunch_v10000")
        export.insert(
            "CUPTI_ACTIVITY_KIND_GRAPH_TRACE",
            start=start * 1000,
            end=end * 1000,
            correlationId=launch,
            globalPid=PROCESS,
            graphId=3,
        )
    report = tables.make(files.read(export.close()))
    assert operators(report) == {"whole CUDA graph": (1, 400)}
    assert stages(report) == {"outside the stages": (1, 400, 100, 50)}
    assert report.kernels[0].name == "CUDA graph 3"
    assert "--cuda-graph-trace=node" in report.notes[0]


def test_a_recording_without_ranges_counts_as_one_restoration(export):
    export.kernel("group_norm_fwd_kernel", 100, 200, 50)
    export.kernel("void resshift::cuda::<unnamed>::chain_step_kernel<(bool)1>(ChainStep)", 250, 300, 60)
    export.kernel("void resshift::cuda::<unnamed>::chain_step_kernel<(bool)0>(ChainStep)", 300, 310)
    report = tables.make(files.read(export.close()))
    assert operators(report) == {
        "resshift_fast::group_norm": (1, 100),
        "resshift_fast::prior_sample": (1, 50),
        "resshift_fast::posterior_step": (1, 10),
    }
    assert report.wall == [210_000]
    notes = " ".join(report.notes)
    assert "no NVTX ranges" in notes and "RESSHIFT_FAST_NVTX=1" in notes
    assert "Of 1 kernels" in notes and "the whole recording counts as one" in notes


def test_against_the_projected_floor(export):
    eager(export)
    report = tables.make(files.read(export.close()), FLOORS, {"floor_gpu": "NVIDIA H100 SXM"})
    floors = {share.name: share.floor for share in report.operators if share.floor is not None}
    assert floors == pytest.approx({"by name: convolution": 100_000, "resshift_fast::group_norm": 15_000})
    assert (report.floor, report.unmatched) == pytest.approx((120_000, 5_000))
    text = show.text(report, 10)
    assert "projected floor         0.120 ms on NVIDIA H100 SXM; busy is 4.2 times that" in text
    assert re.search(r"^resshift_fast::group_norm +4\.0 +0\.180 +35\.3 +0\.015 +12\.0$", text, re.MULTILINE)


def test_the_printed_report(export):
    eager(export)
    eager(export, 2000)
    text = show.text(tables.make(files.read(export.close())), 2)
    lines = text.splitlines()
    assert lines[0] == "Restorations on NVIDIA H100 80GB HBM3, recorded by nsys"
    assert "time of a restoration   1.000 ms, the mean of 2 (from 1.000 to 1.000)" in lines
    assert "busy                    0.510 ms (51.0 %)" in lines
    assert re.search(r"^encode +2\.0 +0\.150 +0\.100 +25\.0 +100\.0$", text, re.MULTILINE)
    assert re.search(r"^all +10\.0 +0\.510 +0\.490 +100\.0 +100\.0$", text, re.MULTILINE)
    assert re.search(r"^3 others +4\.0 +0\.060 +11\.8$", text, re.MULTILINE)
    assert "Kernels, the longest 2 of 6:" in text and "Gaps, the longest 2 of 18 in 2 restorations:" in text
    assert all(len(line) < 160 for line in lines)


@pytest.fixture
def run(monkeypatch):
    """Runs `resshift-fast bench report ARGUMENTS` in this process; returns the exit status."""

    def call(*arguments):
        monkeypatch.setattr("sys.argv", ["resshift-fast", "bench", "report", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return end.value.code or 0

    return call


def test_files_of_a_report(run, export, tmp_path, capsys):
    eager(export)
    file = export.close()
    assert run(file, "--output", tmp_path / "report") == 0
    printed = capsys.readouterr().out
    with open(tmp_path / "report" / "stages.csv", newline="", encoding="utf-8") as opened:
        rows = list(csv.DictReader(opened))
    assert [row["stage"] for row in rows] == [*EAGER_STAGES, "all"]
    assert float(rows[0]["busy ms"]) == 0.15 and float(rows[-1]["idle ms"]) == pytest.approx(0.49)
    with open(tmp_path / "report" / "kernels.csv", newline="", encoding="utf-8") as opened:
        assert next(csv.DictReader(opened))["kernel"] == CONVOLUTION
    for name in ("operators.csv", "gaps.csv", "report.txt"):
        assert (tmp_path / "report" / name).stat().st_size > 100
    assert "No projected floor: there is no workload.json" in printed
    plotted = importlib.util.find_spec("matplotlib") is not None
    assert (tmp_path / "report" / "report.png").exists() == plotted


def test_the_floor_is_that_of_the_recorded_workload(run, export, tmp_path, capsys, monkeypatch):
    eager(export)
    requested = []
    monkeypatch.setattr(Workload, "floors", lambda self, gpu: requested.append((self, gpu)) or FLOORS)
    settings = {"model": "nano-x4", "steps": 2, "size": 32, "device_name": "NVIDIA H100 80GB HBM3", "title": "nano"}
    (tmp_path / "workload.json").write_text(json.dumps(settings))
    assert run(export.close()) == 0
    assert requested == [(Workload("nano-x4", size=32, steps=2), roofline.GPUS["h100"])]
    assert "busy is 4.2 times that" in capsys.readouterr().out


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "No such file"),
        (b"SQLite format 3\0 and then nothing", "not a whole SQLite export of nsys"),
        (b"neither of them", "is not a trace of torch.profiler"),
        (b'{"traceEvents": []}', "has no activity"),
        (
            b'{"traceEvents": [{"ph": "X", "cat": "user_annotation", "name": "x", "pid": 1, "tid": 1, "ts": 1}]}',
            "no activity",
        ),
    ],
    ids=["missing", "cut-off", "foreign", "empty", "only-ranges"],
)
def test_a_bad_file_is_one_line(run, tmp_path, capsys, content, message):
    path = tmp_path / "profile.bin"
    if content is not None:
        path.write_bytes(content)
    assert run(path) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error and "profile.bin" in error


def test_nsys_own_format_must_be_exported_first(run, tmp_path, capsys):
    path = tmp_path / "profile.nsys-rep"
    path.write_bytes(b"whatever it holds")
    assert run(path) == 1
    assert f"nsys export --type sqlite {path}" in capsys.readouterr().err


def test_an_export_without_work_of_a_gpu(run, export, capsys):
    export.range(RESTORATION, 0, 100)
    export.copy(1, 10, 20, 5)
    assert run(export.close()) == 1
    error = capsys.readouterr().err
    assert "has neither CUPTI_ACTIVITY_KIND_KERNEL nor CUPTI_ACTIVITY_KIND_GRAPH_TRACE" in error
    assert "--trace=cuda,nvtx" in error


def test_an_export_with_work_outside_of_restorations_only(run, export, capsys):
    export.range(RESTORATION, 0, 100)
    export.kernel("group_norm_fwd_kernel", 300, 400, 200)
    assert run(export.close()) == 1
    assert "none within its 1 restorations" in capsys.readouterr().err


# names


def triton_kernels():
    """Names of the Triton kernels in kernels/."""
    for path in sorted((ROOT / "kernels").glob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and node.decorator_list and node.name.endswith("_kernel"):
                yield node.name


def cuda_kernels():
    """Kernels of csrc/cuda/, as CUPTI spells them."""
    for path in sorted((ROOT / "csrc" / "cuda").glob("*.cu")):
        source = path.read_text(encoding="utf-8")
        for name, call in re.findall(r"__global__[^;{]*?(\w+_kernel)\(const __grid_constant__ (\w+)", source):
            yield f"void resshift::cuda::<unnamed>::{name}<float, (int)3>(resshift::cuda::{call}, int)"


def test_every_kernel_of_the_library_is_known_by_name():
    found = {name: names.own_operator(name) for name in [*triton_kernels(), *cuda_kernels()]}
    assert len(found) > 20
    unknown = [name for name, operator in found.items() if operator not in OPERATORS]
    assert not unknown, "say in measure/report/names.py, _OWN_STEMS, which operator they belong to"


@pytest.mark.parametrize(
    "kernel, operator",
    [
        ("group_norm_fwd_kernel", "group_norm"),
        ("add_concat_group_norm_kernel", "add_concat_group_norm"),
        ("upsample_conv2d_kernel", "upsample_conv2d"),
        ("window_attention_bwd_kv_kernel", "window_attention_backward"),
        ("void resshift::cuda::<unnamed>::chain_step_rows_kernel<float, (int)3, (bool)1>(ChainStep)", "prior_sample"),
        (
            "void resshift::cuda::(anonymous namespace)::dx_kernel<int>(GroupNormBackward, Partition)",
            "group_norm_backward",
        ),
        ("void at::native::(anonymous namespace)::group_norm_kernel<float>(int)", None),
        (CONVOLUTION, None),
        ("", None),
    ],
)
def test_own_operators(kernel, operator):
    assert names.own_operator(kernel) == operator


# torch.profiler


def event(category, name, start, duration, thread=1, **args):
    return {
        "ph": "X",
        "cat": category,
        "name": name,
        "ts": start,
        "dur": duration,
        "pid": 1,
        "tid": thread,
        "args": args,
    }


def write_trace(path, *events, **content):
    path.write_text(json.dumps({"traceEvents": events} | content))
    return path


def test_a_gpu_recorded_by_torch(tmp_path):
    path = write_trace(
        tmp_path / "trace.json",
        event("user_annotation", RESTORATION, 0.5, 999.5),
        event("user_annotation", f"{STAGE}encode", 10, 300),
        event("cpu_op", "resshift_fast::group_norm", 18, 40),
        event("user_annotation", f"{OPERATOR}group_norm", 20, 30),
        event("cuda_driver", "cuLaunchKernelEx", 25, 5, correlation=1),
        event("kernel", "anything", 100, 50.25, thread=7, correlation=1),
        event("gpu_user_annotation", f"{STAGE}encode", 100, 200, thread=7),
        event("cpu_op", "aten::conv2d", 70, 50),
        event("cpu_op", "aten::convolution", 71, 48),
        event("cuda_runtime", "cudaLaunchKernel", 80, 5, correlation=2),
        event("kernel", CONVOLUTION, 160, 40, thread=7, correlation=2),
        event("cuda_runtime", "cudaGraphLaunch", 400, 5, correlation=3),
        event("kernel", "swin_mlp_kernel", 500, 100, thread=7, correlation=3),
        event("gpu_memcpy", "Memcpy DtoH", 700, 10, thread=7),
        deviceProperties=[{"id": 0, "name": "NVIDIA L40S"}],
    )
    trace = files.read(path)
    report = tables.make(trace, FLOORS)
    assert (trace.recorder, trace.device, trace.on_cpu) == ("torch.profiler", "NVIDIA L40S", False)
    assert operators(report) == {
        "resshift_fast::swin_mlp": (1, 100),
        "resshift_fast::group_norm": (1, 50.25),
        "aten::convolution": (1, 40),
        "memory copy": (1, 10),
    }
    assert stages(report)["encode"] == (2, 90.25, 109.25, 99.5)
    assert "1 kernels and copies ran in CUDA graphs" in report.notes[0]


def test_a_cpu_recorded_by_torch(tmp_path):
    path = write_trace(
        tmp_path / "trace.json",
        event("user_annotation", RESTORATION, 0, 200),
        event("user_annotation", f"{STAGE}encode", 10, 150),
        event("cpu_op", "aten::conv2d", 20, 60),
        event("cpu_op", "aten::convolution", 25, 50),
        event("cpu_op", "aten::add", 100, 30),
        event("cpu_op", "aten::add", 20, 500, thread=2),
        event("cpu_op", "aten::late", 400, 30),
    )
    report = tables.make(files.read(path))
    assert report.trace.on_cpu
    assert operators(report) == {"aten::conv2d": (2, 60), "aten::add": (1, 30)}
    assert {k.name: (k.calls, k.busy / 1000) for k in report.kernels} == {
        "aten::convolution": (1, 50),
        "aten::conv2d": (1, 10),
        "aten::add": (1, 30),
    }
    assert stages(report) == {"encode": (3, 90, 40, 20), "outside the stages": (0, 0, 70, 70)}
