"""The benchmarks of single operators: measured calls, and that a wrong result gets no speed-up."""

import contextlib
import csv
import inspect
import os
import subprocess
import sys
from dataclasses import replace
from importlib import util
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

from resshift_fast import backends, ops
from resshift_fast.measure import roofline
from resshift_fast.models import catalog
from resshift_fast.restoration.sampler import LatentChain

SCRIPTS = Path(__file__).resolve().parents[2] / "benchmarks"
CPU = torch.device("cpu")
LATENT = 64


@pytest.fixture
def operators(script):
    return script("operators")


@pytest.fixture
def cases(script):
    return script("operator_cases")


def benchmark(operators, **options):
    """A benchmark of small latents, without torch.compile."""
    settings = {"repeats": 1, "backward": True, "compiled": False, "latent": 16} | options
    return operators.Benchmark(CPU, **settings)


def first(cases, name, **sizes):
    """The first case of an operator at level 0, with the given sizes replaced."""
    case = next(case for case in cases.CASES if case.op == name)
    return replace(case, level=0, sizes=case.sizes | sizes)


# cases


def test_every_public_operator_is_measured(cases):
    assert set(cases.OPERATORS) == set(ops.__all__)
    assert {case.op for case in cases.CASES} == set(ops.__all__)


def described(name, arguments):
    """(operator, arguments) of a call: shapes instead of tensors, without those that are None or only values."""
    ignored = ("eps", "next_eps", "seed", "step", "t", "next_dtype", "coefficients")
    if "next_dtype" in arguments:  # without which the registered operator leaves the next input out
        arguments = {"next_input": arguments["next_dtype"] is not None} | arguments
        if not arguments["next_input"]:  # what it would be made of is not read
            ignored += ("lq",)
    described = {
        key: tuple(value.shape) if isinstance(value, torch.Tensor) else value
        for key, value in arguments.items()
        if key not in ignored and value is not None
    }
    return name, tuple(sorted((key, str(value)) for key, value in described.items()))


@pytest.fixture
def network_calls(monkeypatch):
    """Descriptions of all operator calls of realsr-x4-v3 for one 64×64 image, if parts are fused, and if not."""
    calls = set()

    def recording(name, function):
        def recorded(*args, **kwargs):
            call = inspect.signature(function).bind(*args, **kwargs)
            call.apply_defaults()
            calls.add(described(name, call.arguments))
            return function(*args, **kwargs)

        return recorded

    for name in ops.__all__:
        monkeypatch.setattr(ops, name, recording(name, getattr(ops, name)))
    projected = sys.modules["resshift_fast.ops.window_attention_proj"]  # which calls two others without a kernel
    for name in ("window_attention", "pointwise_conv2d"):
        monkeypatch.setattr(projected, name, getattr(ops, name))
    spec = catalog.get("realsr-x4-v3")
    with torch.device("meta"), torch.no_grad():
        image, index = torch.empty(1, 3, LATENT, LATENT), torch.empty(1, dtype=torch.int64)
        denoiser, first_stage = catalog.build_denoiser(spec), catalog.build_first_stage(spec)
        for takes_norm in (False, True):
            monkeypatch.setattr(ops, "conv2d_takes_norm", lambda _, takes_norm=takes_norm: takes_norm)
            LatentChain(denoiser, spec.schedule)(image, image, index)
            with monkeypatch.context() as fusing:
                fusing.setattr(ops, "residual_block_is_fused", lambda _: True)
                LatentChain(denoiser, spec.schedule)(image, image, index)
            first_stage.decode(image)
        ops.q_sample(image, image, index, spec.schedule.table("meta"), image)
    return calls


@pytest.mark.slow
def test_cases_are_calls_of_the_networks(cases, network_calls):
    assert len(network_calls) > 50
    for case in cases.CASES:
        arguments = case.arguments(torch.device("meta"), torch.float32, LATENT, 1)
        assert described(case.op, arguments) in network_calls, case


def test_labels_of_cases_are_unique(cases):
    labels = [(case.op, case.label(LATENT, 1)) for case in cases.CASES]
    assert len(set(labels)) == len(labels)
    assert labels[0] == ("group_norm", "B1-C160-H64-W64-silu-scale_shift")


def test_no_pixel_is_equally_near_to_two_codebook_entries(cases):
    """Otherwise the result would depend on the order of a sum, and a correct kernel could fail."""
    case = first(cases, "vector_quantize")
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        z, codebook = (x.double() for x in case.arguments(CPU, dtype, 16, 1).values())
        assert codebook.unique(dim=0).shape == (8192, 3)
        nearest = torch.cdist(z.flatten(2)[0].T, codebook).square().topk(2, largest=False).values
        assert (nearest[:, 1] - nearest[:, 0]).min() > 0.2


# equivalence

SMALL = {"spatial_attention": {"channels": 64}, "upsample_conv2d": {"channels": 32, "out": 16}}


@pytest.mark.parametrize("name", ops.__all__)
def test_the_package_agrees_with_its_reference(name, operators, cases):
    found = benchmark(operators)
    found.run(first(cases, name, **SMALL.get(name, {})), torch.float32)
    assert found.failed == 0
    assert [(row["pass"], row["provider"]) for row in found.rows] == [
        ("forward", "reference"),
        ("forward", "ours"),
        ("backward", "reference"),
        ("backward", "ours"),
    ]
    for row in found.rows:
        assert row["error"] <= row["allowed"] == 1e-5 and row["median ms"] > 0 and row["peak MiB"] > 0
        assert ("speed-up" in row) == (row["provider"] == "ours")


def wrong_by(factor):
    """q_sample with result and gradients multiplied by a factor."""

    def q_sample(x0, y, t, table, noise):
        return ops.q_sample(x0, y, t, table, noise) * factor

    return q_sample


def wrong_gradient(x0, y, t, table, noise):
    """q_sample with a correct result and no gradient for the noise."""
    return ops.q_sample(x0, y, t, table, noise.detach())


def wrong_dtype(x0, y, t, table, noise):
    return ops.q_sample(x0, y, t, table, noise).double()


def not_a_number(x0, y, t, table, noise):
    x_t = ops.q_sample(x0, y, t, table, noise)
    return torch.where(torch.arange(x_t.numel()).view_as(x_t) == 7, torch.nan, x_t)


def broken(x0, y, t, table, noise):
    raise RuntimeError("no such kernel\nand more")


def replace_q_sample(monkeypatch, cases, function):
    """Replace the public q_sample by a function, for the benchmark alone."""
    operator = SimpleNamespace(**vars(cases.OPERATORS["q_sample"]), plain=cases.OPERATORS["q_sample"].plain)
    operator.public = function
    monkeypatch.setitem(cases.OPERATORS, "q_sample", operator)


@pytest.mark.parametrize(
    ("function", "dtype", "remark"),
    [
        (wrong_by(1 + 3e-5), torch.float32, "output 0: relative error 3.0e-05, allowed 1.0e-05"),
        (wrong_by(1.02), torch.bfloat16, "output 0: relative error "),
        (wrong_dtype, torch.float32, "output 0 is torch.float64"),
        (not_a_number, torch.float32, "output 0: relative error nan"),
        (broken, torch.float32, "RuntimeError: no such kernel"),
    ],
)
def test_a_wrong_provider_is_not_timed(function, dtype, remark, monkeypatch, operators, cases):
    replace_q_sample(monkeypatch, cases, function)
    found = benchmark(operators)
    found.run(first(cases, "q_sample"), dtype)
    reference, ours = found.rows[:2]
    assert ours["remark"].startswith(remark) and reference["remark"] == ""
    assert "speed-up" not in ours and "median ms" not in ours and reference["median ms"] > 0
    assert found.failed == 2


def test_a_wrong_gradient_fails_only_the_backward_pass(monkeypatch, operators, cases):
    replace_q_sample(monkeypatch, cases, wrong_gradient)
    found = benchmark(operators)
    found.run(first(cases, "q_sample"), torch.float32)
    ours = [row for row in found.rows if row["provider"] == "ours"]
    assert "speed-up" in ours[0] and "speed-up" not in ours[1]
    assert ours[1]["remark"].startswith("gradient of noise: relative error 1.0e+00")
    assert found.failed == 1


def test_16_bit_results_may_have_twice_the_plain_error(script):
    compare = script("operator_measure").compare
    exact = {"output 0": torch.ones(10, dtype=torch.float64)}
    plain = {"output 0": torch.full((10,), 1 + 2**-7, dtype=torch.bfloat16)}
    assert not compare({"output 0": torch.full((10,), 1 + 2**-6, dtype=torch.bfloat16)}, plain, exact).problem
    assert compare({"output 0": torch.full((10,), 1 + 3 * 2**-7, dtype=torch.bfloat16)}, plain, exact).problem


def test_integers_must_be_equal(script):
    compare = script("operator_measure").compare
    exact, other = {"output 0": torch.arange(8)}, {"output 0": torch.arange(8) // 7 * 7}
    assert compare(exact, exact, exact).problem == ""
    assert compare(other, exact, exact).problem == "output 0: 75.0% of its values differ"


# memory, rates and torch.compile


def test_memory_on_the_cpu_is_the_peak_beyond_the_arguments(script):
    peak_bytes = script("operator_measure").peak_bytes
    x = torch.ones(1 << 20)  # 4 MiB

    def two_at_once():
        a = x + 1
        b = a * 2
        del a
        return b.sum()

    assert peak_bytes(lambda: two_at_once, CPU) == pytest.approx(8 * 2**20, rel=0.01)


@pytest.mark.parametrize("name", ["group_norm", "upsample_conv2d"])
def test_rates_relative_to_a_known_gpu(name, operators, cases):
    """Bytes and operations of the kernels' launches, divided by each provider's time."""
    gpu = roofline.get("h100")
    found = benchmark(operators, backward=False)
    case = first(cases, name, **SMALL.get(name, {}))
    found.run(case, torch.float32)
    assert all("bandwidth %" not in row for row in found.rows)
    found.gpu = gpu
    found.run(case, torch.float32)
    arguments = case.arguments(CPU, torch.float32, 16, 1)
    moved = sum(x.numel() * x.element_size() for x in arguments.values() if isinstance(x, torch.Tensor))
    for row in found.rows[2:]:
        num_bytes = row["bandwidth %"] / 100 * gpu.bandwidth * row["median ms"] / 1e3
        assert moved < num_bytes < 10 * moved
        if name == "group_norm":
            assert "matrix %" not in row
        else:
            taps = 4 if backends.has_kernel(name, "cpu") else 9  # the kernels' summed taps, or PyTorch's convolution
            operations = 2 * taps * 4 * arguments["x"].numel() * arguments["weight"].shape[0]
            assert row["matrix %"] / 100 * gpu.rate_32_bit * row["median ms"] / 1e3 == pytest.approx(operations)


def test_compile_that_fails_is_skipped_with_the_reason(monkeypatch, operators, cases):
    def no_compiler(function):
        def call(**arguments):
            raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found")

        return call

    monkeypatch.setattr(operators, "compiled", no_compiler)
    found = benchmark(operators, compiled=True, backward=False)
    found.run(first(cases, "q_sample"), torch.float32)
    assert found.rows[2]["provider"] == "compile" and "speed-up" not in found.rows[2]
    assert "skipped" in found.rows[2]["remark"] and "No working C++ compiler" in found.notes[0]
    assert found.failed == 0


# command


def run(operators, *argv):
    return CliRunner().invoke(operators.app, [*map(str, argv)])


def test_files_and_table(operators, tmp_path):
    found = run(operators, "--op", "q_sample", "--quick", "--no-compile", "--device", "cpu", "--output", tmp_path)
    assert found.exit_code == 0
    assert "q_sample-B1-C3-H64-W64" in found.stdout and "torch.profiler" in found.stdout
    with open(tmp_path / "operators.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [
        "operator",
        "where",
        "case",
        "dtype",
        "pass",
        "provider",
        "backend",
        "median ms",
        "spread ms",
        "peak MiB",
        "bandwidth %",
        "matrix %",
        "error",
        "allowed",
        "speed-up",
        "remark",
        "runs",
    ]
    assert [row["provider"] for row in rows] == ["reference", "ours"] * 2
    assert float(rows[1]["speed-up"]) == pytest.approx(float(rows[0]["median ms"]) / float(rows[1]["median ms"]))
    assert {row["runs"] for row in rows} == {"3"} and rows[0]["speed-up"] == ""
    plotted = util.find_spec("matplotlib") is not None
    assert (tmp_path / "operators-float32.png").exists() == plotted
    assert ("no plots: matplotlib is not installed" in found.stderr) == (not plotted)


def test_a_wrong_provider_makes_the_exit_status_1(monkeypatch, operators, cases, tmp_path):
    replace_q_sample(monkeypatch, cases, wrong_by(1.5))
    argv = ("--op", "q_sample", "--quick", "--no-compile", "--device", "cpu", "--output", tmp_path)
    found = run(operators, *argv, "--no-backward")
    assert found.exit_code == 1
    assert "output 0: relative error 5.0e-01, allowed 1.0e-05" in found.stdout
    assert "1 equivalence check failed" in found.stderr
    with open(tmp_path / "operators.csv", newline="") as file:
        ours = list(csv.DictReader(file))[1]
    assert ours["provider"] == "ours" and ours["speed-up"] == "" and float(ours["error"]) == pytest.approx(0.5)


def test_help_gives_defaults_and_units(operators):
    text = " ".join(run(operators, "--help").stdout.split())
    for option in ("--op", "--dtype", "--device", "--backward", "--compile", "--repeats", "--output", "--quick"):
        assert f" {option} " in text
    for phrase in ("Default: all of them.", "Default: float32 on the CPU", "in milliseconds", "in MiB", "in pixels"):
        assert phrase in text


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--op", "softmax"), "'softmax' is not one of add_concat_group_norm, conv2d"),
        (("--dtype", "int8"), "'int8' is not one of float32"),
        (("--device", "nowhere"), "nowhere"),
        (("--latent", "65"), "65 is not a multiple of 64"),
        (("--repeats", "0"), "'--repeats'"),
    ],
)
def test_bad_options_are_refused_by_name(argv, message, operators):
    found = run(operators, *argv)
    assert found.exit_code == 2 and message in " ".join(found.stderr.split())


# overhead


def overhead_rows(path):
    with open(path / "overhead.csv", newline="") as file:
        return {row["operator"]: row for row in csv.DictReader(file)}


def test_overhead_measures_every_operator_up_to_its_launch(script, tmp_path):
    pytest.importorskip("triton")
    argv = ["--calls", "2", "--rounds", "2", "--device", "cpu", "--output", str(tmp_path)]
    registered = dict(backends.OPERATORS)
    found = CliRunner().invoke(script("overhead").app, argv)
    assert found.exit_code == 0 and registered == backends.OPERATORS
    rows = overhead_rows(tmp_path)
    assert list(rows) == ops.__all__
    assert rows.pop("conv2d")["ends in"] == "plain PyTorch"
    recorded = "launcher, recorded" if script("overhead").interpreted() else "launcher, faked"
    two = {"pointwise_conv2d", "residual_block", "swin_mlp"}
    assert {row["ends in"] for row in rows.values()} == {recorded}
    assert {name for name, row in rows.items() if int(row["starts"]) == 2} == two
    assert all(float(row[part]) > 0 for row in rows.values() for part in ("call µs", "start µs"))


@pytest.mark.slow
def test_overhead_includes_tritons_launch_on_a_fake_gpu(tmp_path):
    pytest.importorskip("triton")
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    env["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    argv = [sys.executable, Path(SCRIPTS) / "overhead.py", "--calls", "2", "--rounds", "1", "--device", "cpu"]
    argv += ["--output", tmp_path]
    found = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=600)
    assert found.returncode == 0, found.stderr
    rows = overhead_rows(tmp_path)
    assert rows.pop("conv2d")["start µs"] == ""
    assert {row["ends in"] for row in rows.values()} == {"launcher, faked"}
    assert "of 10 reach it here" in found.stdout


def test_parts_of_a_call_are_differences_of_measured_times(monkeypatch, script):
    overhead = script("overhead")
    monkeypatch.setattr(overhead.measure, "microseconds", lambda call, device: call())
    calls = [lambda: 20.0, lambda: 15.0, lambda: 8.0, lambda: 3.0]
    measured = overhead.measure_ways(calls, 5, CPU)
    parts = {"checks µs": 5.0, "dispatch µs": 7.0, "launcher µs": 5.0, "start µs": 3.0}
    assert measured == {"call µs": 20.0, "from": 20.0, "to": 20.0} | parts
    assert "start µs" not in overhead.measure_ways(calls[:2], 5, CPU)


def test_the_quietest_round_is_shown_beside_the_median_of_all(monkeypatch, script):
    overhead = script("overhead")
    taken = iter([30.0, 9.0, 20.0, 7.0, 25.0, 8.0])  # of two operators, in turns
    monkeypatch.setattr(overhead, "ways", lambda name, *_: ("launcher", 1, []))
    monkeypatch.setattr(overhead, "measure_ways", lambda *_: {"call µs": next(taken)})
    monkeypatch.setattr(overhead, "launching", contextlib.nullcontext)
    first, second = overhead.measured(["group_norm", "swin_mlp"], CPU, "float32", 2, 3)
    assert (first["operator"], first["call µs"], first["all rounds µs"]) == ("group_norm", 20.0, 25.0)
    assert (second["operator"], second["call µs"], second["all rounds µs"]) == ("swin_mlp", 7.0, 8.0)


def test_arguments_are_passed_by_position_if_possible(script):
    def function(a, b, *, c):
        return a, b, c

    assert script("overhead").bound(function, {"c": 3, "b": 2, "a": 1})() == (1, 2, 3)
