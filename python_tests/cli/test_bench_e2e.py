"""`resshift-fast bench e2e`."""

import csv

import pytest
import tiny_models
import torch
from local_workers import LocalWorker
from PIL import Image
from torch._inductor import config as inductor

from resshift_fast.measure import end_to_end, plots, providers

SMALL = ("--model", tiny_models.ENLARGE, "--random-weights", "--size", 16, "--runs", 1, "--device", "cpu")


@pytest.fixture
def e2e(program, models, monkeypatch):
    """Runs `resshift-fast bench e2e ARGUMENTS` with a tiny model, in this process and without compilation."""
    monkeypatch.setattr(end_to_end, "Worker", LocalWorker)
    monkeypatch.setattr(end_to_end, "gemm_rate", lambda dtype, device: 1e11)
    monkeypatch.setattr(torch, "compile", lambda f, **options: f)
    with inductor.patch(freezing=False):
        yield lambda *arguments: program("bench", "e2e", *SMALL, *arguments)


def test_tables_file_and_picture(e2e, tmp_path):
    pytest.importorskip("matplotlib")
    table, picture = tmp_path / "found.csv", tmp_path / "found.png"
    outcome = e2e("--csv", table, "--plot", picture)
    assert outcome.code == 0, outcome.err
    lines = outcome.out.splitlines()
    assert lines[0] == "nano-x4, 16x16 input, batch 1, random weights; medians of 1 runs"
    assert "GFLOP/s of large matrix products: float32 100, bfloat16 100" in lines[1]
    names = [f"{name} {dtype}" for dtype in ("float32", "bfloat16") for name in ("reference", "compile", "ours")]
    for name in names:
        stages = [line.split()[2] for line in lines if line.startswith(name) and "%" in line]
        assert stages == ["encode", "denoise", "decode", "whole"]
    summary = lines[lines.index("") + 1 :]
    ours = next(line for line in reversed(summary) if line.startswith("ours float32"))
    assert ours.count("x") == 2, ours  # both speed-ups
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert [f"{row['provider']} {row['dtype']}" for row in rows] == names
    assert float(rows[0]["speedup_reference_float32"]) == 1 and rows[0]["psnr_db"] == "inf"
    assert all(float(row["peak_mb"]) > 50 and float(row["whole_gflops"]) > 0 and row["note"] == "" for row in rows)
    with Image.open(picture) as drawn:
        assert drawn.size[0] > 1000


def test_a_case_that_fails_has_its_reason_in_the_table(e2e, monkeypatch):
    def fail(pipe):
        raise RuntimeError("no compiler here")

    monkeypatch.setattr(providers, "compile_stages", fail)
    outcome = e2e("--providers", "compile,ours", "--dtype", "float32")
    assert outcome.code == 0, outcome.err
    assert "failed: no compiler here" in next(line for line in outcome.out.splitlines() if line.startswith("compile"))
    assert "ours float32: ready" in outcome.err


@pytest.mark.parametrize(
    "wrong, message",
    [
        (("--providers", "reference,tensorrt"), "'tensorrt', expected one of reference, compile, openvino"),
        (("--providers", ","), "--providers is empty"),
        (("--dtype", "int8"), "dtype is 'int8', expected one of float32"),
        (("--model", "nano-x9"), "nano-x9"),
        (("--device", "tpu9"), "device 'tpu9' cannot be used here"),
    ],
)
def test_bad_options_are_one_line(e2e, wrong, message):
    outcome = e2e(*wrong)
    assert outcome.code == 1 and len(outcome.errors) == 1 and message in outcome.errors[0]


@pytest.mark.parametrize("option", ["--runs", "--size", "--batch", "--threads"])
def test_numbers_below_one_are_usage_errors(e2e, option):
    outcome = e2e(option, 0)
    assert outcome.code == 2 and option in outcome.err


def test_a_plot_without_matplotlib_names_the_extra_before_anything_runs(e2e, monkeypatch, tmp_path):
    monkeypatch.setattr(plots, "find_spec", lambda name: None)
    outcome = e2e("--plot", tmp_path / "x.png")
    assert outcome.code == 1 and outcome.errors == [
        "error: --plot needs matplotlib, which is not installed; pip install 'resshift-fast[bench]'"
    ]
    assert "building" not in outcome.err


def test_help_names_units_and_defaults(program):
    text = " ".join(program("bench", "e2e", "--help").out.split())
    for message in ("in pixels. Default: 64.", "Default: 5.", "Default: reference,compile,ours.", "float32,bfloat16."):
        assert message in text


@pytest.mark.slow
def test_cases_in_separate_processes():
    cases = [providers.Case("ours", name, "nano-x4", 16, random_weights=True) for name in ("float32", "bfloat16")]
    report = end_to_end.measure(cases, 1)
    assert all(result.timed and result.equivalent for result in report.results)
    assert 0 < report.gflop["denoise"] <= report.gflop["whole"]
