"""The benchmarks on small inputs: their results against known values, their files, and their error messages."""

import csv
import json
import subprocess
from contextlib import nullcontext
from itertools import count
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_models
import torch
from local_service import running
from PIL import Image
from pipelines import integers, photo

from resshift_fast import Pipeline, images
from resshift_fast.backends import native
from resshift_fast.images.tiling import plan_axis
from resshift_fast.models import catalog
from resshift_fast.training.metrics import psnr_y, ssim_y


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """Replace nano-x4 by a tiny ×4 model with tiles of 16; returns a file of weights for it, none of which is 0."""
    models = dict(catalog.MODELS)
    tiny_models.install(models)
    monkeypatch.setitem(catalog.MODELS, tiny_models.ENLARGE, models[tiny_models.ENLARGE])
    return tiny_models.save_weights(tiny_models.ENLARGE, tmp_path)


@pytest.fixture
def folder(tmp_path):
    """A folder with two pairs of images, 16×16 and 64×64."""
    made = tmp_path / "pairs"
    for kind in ("lq", "gt"):
        (made / kind).mkdir(parents=True)
    for seed in range(2):
        high = Image.fromarray(photo(64, 64, seed=seed))
        high.save(made / "gt" / f"{seed}.png")
        high.resize((16, 16), Image.Resampling.BICUBIC).save(made / "lq" / f"{seed}.png")
    return made


def run(module, tmp_path, *argv):
    """Run a benchmark, which must succeed; returns (rows, summary) of its JSON."""
    file = tmp_path / "new" / "found.json"
    assert module.main([*map(str, argv), "--json", str(file)]) == 0
    content = json.loads(file.read_text())
    assert content["machine"]["threads"] >= 1
    return content["rows"], content["summary"]


def pixels(path):
    return np.asarray(Image.open(path))


@pytest.mark.parametrize("name", ["quality", "tiling", "tile_cost", "many_cores", "memory", "speed", "serving"])
def test_help_names_options_and_defaults(name, script, capsys):
    with pytest.raises(SystemExit) as stop:
        script(name).main(["--help"])
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "--weights FILE" in text and "Default: nano-x4." in text and "Default: float32." in text


# quality


def test_a_model_that_predicts_nothing_is_as_good_as_bicubic(script, tiny, folder, tmp_path):
    rows, summary = run(script("quality"), tmp_path, folder, "--random-weights")
    assert [row["image"] for row in rows] == ["0.png", "1.png", "mean of 2"]
    for row in rows:
        assert 15 < row["PSNR-Y"] < 45 and 0.2 < row["SSIM-Y"] < 1 and row["seconds"] > 0
        assert row["PSNR-Y"] == pytest.approx(row["bicubic PSNR-Y"], abs=0.02)
        assert row["gain dB"] == pytest.approx(row["PSNR-Y"] - row["bicubic PSNR-Y"], abs=1e-9)
    assert rows[2]["PSNR-Y"] == pytest.approx((rows[0]["PSNR-Y"] + rows[1]["PSNR-Y"]) / 2)
    assert summary == {str(folder): rows[2]}


def test_quality_is_computed_from_the_pipelines_result(script, tiny, folder, tmp_path):
    rows, _ = run(script("quality"), tmp_path, folder, "--weights", tiny, "--border", 3, "--seed", 5, "--limit", 1)
    result = Pipeline.from_pretrained(weights=tiny)(pixels(folder / "lq" / "0.png"), seed=5)
    high = pixels(folder / "gt" / "0.png")
    assert len(rows) == 2
    assert rows[0]["PSNR-Y"] == pytest.approx(psnr_y(result, high, 3))
    assert rows[0]["SSIM-Y"] == pytest.approx(ssim_y(result, high, 3))


def test_pil_bicubic_is_pillows(script, tiny, folder, tmp_path):
    rows, _ = run(script("quality"), tmp_path, folder, "--random-weights", "--bicubic", "pil", "--limit", 1)
    enlarged = Image.open(folder / "lq" / "0.png").resize((64, 64), Image.Resampling.BICUBIC)
    assert rows[0]["bicubic PSNR-Y"] == pytest.approx(psnr_y(np.asarray(enlarged), pixels(folder / "gt" / "0.png")))


def test_equal_images_have_infinite_psnr(script, tiny, folder, tmp_path):
    pipe = Pipeline.from_pretrained(weights=tiny)
    Image.fromarray(pipe(pixels(folder / "lq" / "0.png"))).save(folder / "gt" / "0.png")
    rows, _ = run(script("quality"), tmp_path, folder, "--weights", tiny, "--limit", 1)
    assert rows[0]["PSNR-Y"] == "inf" and rows[0]["SSIM-Y"] == pytest.approx(1)


def test_spread_over_seeds(script, tiny, folder, tmp_path):
    rows, _ = run(script("quality"), tmp_path, folder, "--weights", tiny, "--seeds", 3, "--limit", 1)
    pipe = Pipeline.from_pretrained(weights=tiny)
    low, high = (pixels(folder / kind / "0.png") for kind in ("lq", "gt"))
    expected = [psnr_y(pipe(low, seed=seed), high) for seed in range(3)]
    assert np.std(expected) > 0
    assert rows[0]["PSNR-Y"] == pytest.approx(np.mean(expected))
    assert rows[0]["± PSNR"] == pytest.approx(np.std(expected, ddof=1))


def test_csv_has_the_tables_rows(script, tiny, folder, tmp_path, capsys):
    file = tmp_path / "found.csv"
    assert script("quality").main([str(folder), "--random-weights", "--csv", str(file)]) == 0
    with file.open() as text:
        rows = list(csv.DictReader(text))
    assert len(rows) == 3 and list(rows[0])[:4] == ["folder", "image", "PSNR-Y", "SSIM-Y"]
    assert "± PSNR" not in rows[0]
    shown = capsys.readouterr().out
    assert f"{float(rows[2]['PSNR-Y']):.2f}" in shown and f"torch {torch.__version__}" in shown


def _no_gt(folder):
    (folder / "gt" / "1.png").unlink()


def _wrong_size(folder):
    Image.fromarray(integers(48, 48, 3)).save(folder / "gt" / "1.png")


def _no_lq(folder):
    (folder / "lq").rename(folder / "low")


@pytest.mark.parametrize(
    ("damage", "message"),
    [(_no_gt, "give both images the same name"), (_wrong_size, "48×48, expected 64×64"), (_no_lq, "lq does not exist")],
    ids=["no-gt", "wrong-size", "no-lq"],
)
def test_quality_reports_a_bad_folder(damage, message, script, tiny, folder, capsys):
    damage(folder)
    assert script("quality").main([str(folder), "--random-weights"]) == 1
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ") and message in error and "\n" not in error


# tiling

TILES = ("--size", 40, 24, "--tile", 16, "--overlap", 4, "--other-tile", 24, "--other-overlap", 8)


def test_tiles_share_the_noise_field_but_not_torchs_noise(script, tiny, tmp_path):
    maps = tmp_path / "maps.png"
    rows, summary = run(script("tiling"), tmp_path, *TILES, "--weights", tiny, "--out", maps)
    assert [row["noise σ"] for row in rows[:2]] == [0, 0]
    assert all(row["noise σ"] > 2 for row in rows[2:])
    assert summary["noise difference of two tilings"] == 0
    assert all(row["tiles"] > 1 and 0 < row["RMS"] < 128 for row in rows)
    with Image.open(maps) as image:
        assert image.size == (160, 5 * 96)


def test_a_model_that_predicts_nothing_has_no_seams(script, tiny, tmp_path):
    rows, _ = run(script("tiling"), tmp_path, *TILES, "--random-weights")
    assert rows[0]["RMS"] < 1e-3 and abs(rows[0]["seam energy"]) < 1e-6
    # Tiles restored as separate images repeat their border pixels, so bicubic interpolation differs there.
    assert rows[3]["RMS"] > 10 * rows[0]["RMS"] and rows[3]["seam energy"] > 1e-3
    assert rows[3]["inside RMS"] < 1e-3


def test_uniform_weights_sum_to_one(script):
    tiling = script("tiling")
    axis = plan_axis(40, 16, 4, 8, 2)
    weights = tiling.uniform(axis, 2)
    total = np.zeros(axis.padded * 2)
    for start, weight in zip(axis.starts, weights, strict=True):
        total[start * 2 : start * 2 + 32] += weight
    assert total == pytest.approx(np.ones_like(total))
    assert set(np.unique(weights)) == {0.5, 1.0}


def test_seam_energy_of_a_step(script):
    tiling = script("tiling")
    axis = plan_axis(28, 16, 4, 8, 2)
    assert axis.starts == (0, 12) and tiling.borders(axis) == [12, 16]
    difference = np.zeros((3, 8, 28 * 4))
    difference[:, :, 12 * 4 :] += 3
    difference[:, :, 16 * 4 :] -= 2
    at_borders, nearby = tiling.seam_energy(difference, axis, 2, scale=4, block=4)
    assert at_borders == [9, 4] and len(nearby) == 7 and not any(nearby)
    inside = tiling.interior(axis, 4, 4)
    assert inside.sum() == 28 * 4 - 12 * 4 and not inside[8 * 4 : 20 * 4].any()


def test_tiling_refuses_models_that_need_a_mask(script, capsys):
    tiling = script("tiling")
    stand_in = SimpleNamespace(spec=catalog.get("inpaint-imagenet"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiling.common, "load", lambda args: stand_in)
        assert tiling.main([]) == 1
    assert "needs a mask" in capsys.readouterr().err


# memory


@pytest.mark.slow
def test_memory_of_a_small_image(script, tmp_path):
    rows, summary = run(script("memory"), tmp_path, "--sizes", "20x12", "--random-weights", "--threads", 1, "--seed", 3)
    (row,) = rows
    assert (row["input"], row["result"]) == ("20×12", "80×48")
    assert 50 < row["loaded MiB"] <= row["restored MiB"] <= row["written MiB"] < 4096
    assert row["less result MiB"] == pytest.approx(row["restored MiB"] - 80 * 48 * 3 / 2**20)
    assert summary["peak GiB"] == pytest.approx(row["written MiB"] / 1024)


def _child_of(peaks):
    def run_child(argv, source, output):
        before = images.read(source)
        images.write(output, images.Photo(np.zeros((before.height * 4, before.width * 4, 3), np.uint8)))
        return {"loaded": 100, "restored": 200, "restore_seconds": 1, "write_seconds": 1, "threads": 1} | peaks

    return run_child


@pytest.mark.parametrize(("peak", "code"), [(2047, 0), (2049, 1)], ids=["below", "above"])
def test_memory_fails_above_the_limit(peak, code, script, monkeypatch, capsys):
    memory = script("memory")
    monkeypatch.setattr(memory, "run_child", _child_of({"written": peak}))
    assert memory.main(["--sizes", "8x8", "16x8", "--limit-gib", "2"]) == code
    assert ("exceeds --limit-gib 2" in capsys.readouterr().err) == bool(code)


def test_memory_reports_a_child_that_fails(script, monkeypatch, capsys):
    memory = script("memory")
    failed = subprocess.CompletedProcess([], 1, "", "Traceback\nFileNotFoundError: a.safetensors does not exist\n")
    monkeypatch.setattr(memory.subprocess, "run", lambda *_, **__: failed)
    assert memory.main(["--sizes", "8x8"]) == 1
    error = capsys.readouterr().err.strip()
    assert "photo-8x8.png failed with code 1" in error and "a.safetensors does not exist" in error and "\n" not in error


# speed


def test_parts_of_speed_sum_to_the_total(script, tiny, tmp_path):
    rows, summary = run(
        script("speed"), tmp_path, "--random-weights", "--size", 16, "--runs", 1, "--dtype", "float32", "bfloat16"
    )
    for dtype in ("float32", "bfloat16"):
        parts = {row["part"]: row["median s"] for row in rows if row["dtype"] == dtype}
        total = parts.pop("total")
        assert 0 < parts["denoise, 4 steps"] < total and parts["  a step"] == pytest.approx(
            parts["denoise, 4 steps"] / 4
        )
        assert parts["  of which noise field"] > 0
        assert sum(seconds for part, seconds in parts.items() if part[0] != " ") == pytest.approx(total)
        assert summary[dtype]["median seconds"] == total


def test_stopwatch_restores_functions(script):
    speed = script("speed")

    class Thing:
        def act(self):
            return 7

    thing, module = Thing(), SimpleNamespace(act=lambda: 8)
    function = module.act
    watch = speed.Stopwatch(None)
    with watch.on([(thing, "act", "a"), (module, "act", "b")]):
        assert (thing.act(), module.act()) == (7, 8)
    assert watch.seconds["a"] > 0 and watch.seconds["b"] > 0
    assert vars(thing) == {} and module.act is function


# common


def test_table_aligns_values_and_marks_missing_ones(script):
    text = script("common").table({"name": "", "value": ".1f"}, [{"name": "a", "value": 12.345}, {"name": "bcdef"}])
    assert text.splitlines() == ["name   value", "─────  ─────", "a       12.3", "bcdef      –"]


def test_photo_is_extended_by_reflection(script, tmp_path):
    source = integers(3, 4, 3)
    Image.fromarray(source).save(tmp_path / "a.png")
    made = script("common").photo(5, 6, tmp_path / "a.png")
    assert (made == source[[0, 1, 2, 1, 0]][:, [0, 1, 2, 3, 2, 1]]).all()


# serving


@pytest.mark.slow
def test_serving_compares_every_answer(script, tiny, tmp_path, monkeypatch, capsys):
    serving = script("serving")
    pipe = Pipeline.from_pretrained("nano-x4", weights=tiny, device="cpu")
    with running(pipe) as service:
        monkeypatch.setattr(serving, "service", lambda args: nullcontext(serving.Client(service.address[1])))
        options = ("--weights", tiny, "--requests", 8, "--at-once", 4, "--sides", 8, 9)
        rows, summary = run(serving, tmp_path, *options)
        assert [row["answers"] for row in rows] == [8, 2, 2, 2, 2]
        assert summary["largest difference"] <= 1 and summary["per second"] > 0
        values = count(1, 100 * 2**20)
        with monkeypatch.context() as patch:
            patch.setattr(serving.Client, "metric", lambda self, name: next(values))
            assert serving.main([*map(str, options)]) == 1
        assert "the memory grew by" in capsys.readouterr().err
        asked = serving.questions(serving.options().parse_args([*map(str, options)]))
        wrong = serving.Question(asked[2].data, asked[0].seed, asked[0].expected)
        assert serving.Client(service.address[1]).ask(wrong) > 1


def test_serving_reports_a_service_that_does_not_start(script, capsys, monkeypatch):
    serving = script("serving")
    monkeypatch.setattr(serving, "questions", lambda args: [])
    monkeypatch.setattr(serving.sys, "executable", "false")
    assert serving.main([]) == 1
    assert "the service did not start" in capsys.readouterr().err


# flicker


def test_flicker_of_a_still_clip(script, tiny, tmp_path):
    pytest.importorskip("av", reason="the extra `video` is not installed")
    rows, summary = run(script("flicker"), tmp_path, "--weights", tiny, "--size", 12, "--frames", 3)
    same, written, other = (row["variance"] for row in rows)
    assert same == 0 and 0 <= written < 0.5 and other > 0
    assert summary["frames of a seed each"] == other


# tile_cost


def test_tiles_are_timed_and_compared_with_their_predicted_cost(script, tiny, tmp_path):
    arguments = ("--random-weights", "--sides", 8, 16, "--photo", 20, 12, "--runs", 1, "--within", 1000)
    rows, summary = run(script("tile_cost"), tmp_path, *arguments)
    assert [row["tiles"] for row in rows] == ["1 of 8×8", "1 of 16×16", "2 of 16×16", "2 of 16×16"]
    assert rows[0]["ratio"] == rows[0]["predicted"] == 1 and all(row["CPU s"] > 0 for row in rows)
    assert summary["worst"] == max(abs(row["error %"]) for row in rows) / 100


def test_tiles_that_a_model_cannot_have_are_an_error(script, tiny, capsys):
    assert script("tile_cost").main(["--random-weights", "--sides", "12"]) == 1
    assert "--sides 12: expected multiples of 8" in capsys.readouterr().err


# many_cores


@pytest.fixture
def kernels():
    """The library whose kernels tell how they divide their work."""
    if reason := native.missing("cpu"):
        pytest.skip(f"the C++ library {reason}")


def test_many_cores_are_predicted(script, tiny, kernels, tmp_path):
    rows, _ = run(script("many_cores"), tmp_path, "--sides", 16, "--cores", 1, 32, "--batches", 1, 4)
    assert [(row["cores"], row["batch"].rstrip(" *")) for row in rows] == [(1, "1"), (1, "4"), (32, "1"), (32, "4")]
    assert rows[0]["speed-up"] == 1 and rows[0]["batch"] == "1 *"
    alone, together = rows[2], rows[3]
    assert 1 < alone["speed-up"] < together["speed-up"] < 32
    assert together["efficiency %"] == pytest.approx(100 * together["speed-up"] / 32)
    assert "outside of loops" in alone["most time lost"] and not rows[0]["most time lost"]


def test_predictions_depend_on_the_processor(script, tiny, kernels, tmp_path):
    arguments = "--sides", 16, "--cores", 8, "--batches", 1
    slow, _ = run(script("many_cores"), tmp_path, *arguments, "--call", 1)
    fast, _ = run(script("many_cores"), tmp_path, *arguments, "--call", 0)
    assert slow[0]["ms a tile"] > 1000 > fast[0]["ms a tile"]


def test_predictions_are_compared_with_loops_that_ran(script, tiny, kernels, tmp_path):
    arguments = "--check", "--random-weights", "--sides", 16, "--cores", 1, 8, "--batches", 1, "--runs", 1
    rows, summary = run(script("many_cores"), tmp_path, *arguments, "--within", 1000)
    assert [row["cores"] for row in rows] == [1, 8] and all(row["s"] > 0 for row in rows)
    assert rows[0]["ratio"] == rows[0]["predicted"] == 1
    assert summary["worst"] == max(abs(row["error %"]) for row in rows) / 100


def test_a_side_that_a_model_cannot_have_is_an_error(script, tiny, kernels, capsys):
    assert script("many_cores").main(["--sides", "12"]) == 1
    assert "--sides 12: expected multiples of 8" in capsys.readouterr().err
