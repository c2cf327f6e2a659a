"""`resshift-fast bench count` and `bench roofline`."""

import csv
import json

import pytest
import tiny_models

from resshift_fast.apps import extras

pytest.importorskip("triton")

SMALL = ("--model", tiny_models.ENLARGE, "--size", 16)


@pytest.fixture
def bench(program, models):
    """Runs `resshift-fast bench COMMAND ARGUMENTS` with a tiny model."""
    return lambda command, *arguments: program("bench", command, *SMALL, *arguments)


@pytest.mark.parametrize("command", ["count", "roofline"])
def test_without_triton_it_says_what_to_install(bench, command, monkeypatch):
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    outcome = bench(command)
    assert outcome.code == 1 and not outcome.out
    assert outcome.errors == ["error: bench needs another package, triton: pip install 'resshift-fast[bench]'"]


def rows_of(path):
    return list(csv.DictReader(path.read_text().splitlines()))


@pytest.mark.slow
def test_counts_of_both_paths_and_memory(bench, tmp_path):
    outcome = bench("count", "--batch", 2, "--csv", tmp_path / "found.csv")
    assert outcome.code == 0, outcome.err
    lines = outcome.out.splitlines()
    assert lines[0].startswith("nano-x4, 16x16 input, batch 2, bfloat16, 4 steps")
    assert lines[1].split() == ["OPERATOR", "PLAIN", "MB", "FUSED", "MB"]
    assert lines[-4].split()[0] == "all"
    assert lines[-2].startswith("FUSED, once for all restorations: ") and lines[-1].endswith("MB a picture")
    rows = rows_of(tmp_path / "found.csv")
    for column, place in (("plain_count", 1), ("fused_count", 3)):
        assert sum(int(row[column]) for row in rows) == int(lines[-4].split()[place].replace(",", ""))
    launches, moved = (sum(int(row[f"fused_{what}"]) for row in rows) / 2 for what in ("count", "bytes"))
    text = f"FUSED, a picture: {launches:,.1f} operators or launches that move {moved / 1e6:,.1f} MB"
    assert lines[-3] == text


def test_launches_by_shape(bench, tmp_path):
    outcome = bench("count", "--by-shape", "--csv", tmp_path / "found.csv")
    assert outcome.code == 0, outcome.err
    lines = outcome.out.splitlines()
    assert lines[1].split() == ["KERNEL", "SHAPE", "LAUNCHES", "BLOCKS", "FILLED", "MB"]
    rows = rows_of(tmp_path / "found.csv")
    assert len(rows) == len(lines) - 3
    launches = sum(int(row["launches"]) for row in rows)
    assert lines[-1].split()[:2] == ["all", f"{launches:,}"]
    (step,) = (row for row in rows if row["kernel"] == "posterior_step_kernel")
    assert step["launches"] == "4" and step["blocks_estimated"] == "False"
    assert float(step["filled_of_132"]) == pytest.approx(min(1, int(step["blocks"]) / 132))
    assert any(row["kernel"] == "aten::convolution" and row["blocks_estimated"] == "True" for row in rows)


def test_launches_of_few_blocks(bench, tmp_path):
    outcome = bench("count", "--fewer-blocks", 65, "--csv", tmp_path / "found.csv")
    assert outcome.code == 0, outcome.err
    lines = outcome.out.splitlines()
    assert lines[1] == "| kernel | reads | launches | blocks | MB | why not more |"
    rows = rows_of(tmp_path / "found.csv")
    assert len(rows) == len(lines) - 3 and all(int(row["most_blocks"]) < 65 for row in rows)
    (step,) = (line for line in lines if line.startswith("| `posterior_step` |"))
    assert step.endswith("| too little work: a launch takes longer than one multiprocessor |")
    assert bench("count", "--fewer-blocks", 0).code != 0


def test_a_projection_names_itself_and_grows_with_the_latency(bench, tmp_path):
    path = tmp_path / "found.csv"
    outcome = bench("roofline", "--csv", path)
    assert outcome.code == 0, outcome.err
    assert outcome.out.startswith("PROJECTION for NVIDIA H100 SXM, not a measurement: nano-x4")
    rows = rows_of(path)
    count = sum(int(row["count"]) for row in rows)
    floor, projected = (sum(float(row[name]) for row in rows) for name in ("floor_seconds", "projected_seconds"))
    assert floor < 2e-6 * count <= projected * 1.001
    assert sum(int(row["launch_bound_count"]) for row in rows) > count / 2
    bench("roofline", "--latency", 0, "--csv", path)
    assert floor <= sum(float(row["projected_seconds"]) for row in rows_of(path)) < projected


def test_a_projection_beside_measured_times(bench, tmp_path):
    kernels = [
        {"kernel": "posterior_step_kernel", "operator": "resshift_fast::posterior_step", "calls": "4", "ms": "0.016"},
        {"kernel": "void other", "operator": "aten::other", "calls": "1", "ms": "0.5"},
    ]
    tables = {"kernels.csv": kernels, "workload.json": {"title": "nano", "device_name": "NVIDIA H100"}}
    (tmp_path / "result.json").write_text(json.dumps({"steps": {"profile": {"tables": tables}}}))
    outcome = bench("roofline", "--measured", tmp_path / "result.json", "--csv", tmp_path / "found.csv")
    assert outcome.code == 0, outcome.err
    lines = [line.split() for line in outcome.out.splitlines()]
    assert outcome.out.splitlines()[1].startswith("MEASURED: nano on NVIDIA H100")
    assert ["posterior_step_kernel", "4", "8.0", "16.0", "2.0"] in lines
    assert ["aten::other", "0", "-", "500.0", "-"] in lines
    outcome = bench("roofline", "--measured", tmp_path / "found.csv")
    assert outcome.code == 1 and "has no profile of kernels" in outcome.errors[0]
