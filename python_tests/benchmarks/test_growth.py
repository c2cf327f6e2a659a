"""The benchmark of growth with image size and batch, with a tiny model in this process."""

import csv
import json

import pytest
import tiny_models
from local_workers import LocalWorker
from PIL import Image

from resshift_fast.measure import workers
from resshift_fast.models import catalog

SMALL = ("--random-weights", "--device", "cpu", "--runs", "1", "--threads", "1")


@pytest.fixture
def script(script, monkeypatch):
    """Import a benchmark as if it were run as a script; workers are local, and nano-x4 is a tiny model."""
    models = dict(catalog.MODELS)
    tiny_models.install(models)
    monkeypatch.setitem(catalog.MODELS, tiny_models.ENLARGE, models[tiny_models.ENLARGE])
    monkeypatch.setattr(workers, "Worker", LocalWorker)
    return script


def test_growth_writes_one_row_per_point_and_a_plot(script, tmp_path):
    pytest.importorskip("matplotlib")
    table, plot = tmp_path / "growth.csv", tmp_path / "growth.png"
    argv = [*SMALL, "--sizes", "16", "32", "--batches", "1", "2", "--csv", str(table), "--plot", str(plot)]
    assert script("growth").main(argv) == 0
    rows = list(csv.DictReader(table.read_text().splitlines()))
    points = [(row["provider"], row["size"], row["pictures"]) for row in rows]
    assert points == [(p, s, b) for p in ("reference", "ours") for s, b in (("16", "1"), ("32", "1"), ("16", "2"))]
    for row in rows:
        megapixels = int(row["pictures"]) * int(row["size"]) ** 2 / 1e6
        assert float(row["s/MP"]) == pytest.approx(float(row["median s"]) / megapixels)
        assert float(row["result MB"]) == pytest.approx(megapixels * 16 * 3 * 4)
    with Image.open(plot) as picture:
        assert picture.size[0] > 500


def test_shares_of_operators_other_than_convolution(script, tmp_path):
    found = tmp_path / "shares.json"
    assert script("growth").main([*SMALL, "--sizes", "16", "--shares", "--json", str(found)]) == 0
    for row in json.loads(found.read_text())["rows"]:
        assert 0 < row["not convolution %"] < 100
        assert row["not convolution s"] < row["total s"]


@pytest.mark.parametrize(
    "name, convolution",
    [
        ("aten::mkldnn_convolution", True),
        ("aten::convolution", True),
        ("mkldnn::_convolution_pointwise", True),
        ("resshift_fast::conv2d", True),
        ("resshift_fast_cpu::upsample_conv2d", True),
        ("resshift_fast_cpu::pointwise_conv2d", True),
        ("resshift_fast_cpu::group_norm", False),
        ("aten::silu", False),
    ],
)
def test_what_counts_as_convolution(script, name, convolution):
    assert bool(script("growth").CONVOLUTION.search(name)) == convolution


def test_end_to_end_writes_one_row_per_provider(script, monkeypatch, tmp_path):
    from resshift_fast.measure import end_to_end

    monkeypatch.setattr(end_to_end, "Worker", LocalWorker)
    found = tmp_path / "found.json"
    argv = ["--model", "nano-x4", "--size", "16", "--providers", "reference", "ours", "--json", str(found)]
    assert script("end_to_end").main([*argv, *SMALL]) == 0
    rows = json.loads(found.read_text())["rows"]
    assert [row["provider"] for row in rows] == ["reference", "ours"] and rows[1]["speedup_reference_float32"] > 0
