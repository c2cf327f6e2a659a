"""The comparison of a one-step student with its teacher, on tiny networks."""

import json

import numpy as np
import pytest
import tiny_models
import torch
from PIL import Image
from pipelines import photo

from resshift_fast import Pipeline
from resshift_fast.models import catalog
from resshift_fast.training.metrics import psnr_y
from resshift_fast.weights.checkpoints import read_state_dict, save_safetensors


def test_the_student_is_compared_with_its_teacher(script, monkeypatch, tmp_path, capsys):
    models = dict(catalog.MODELS)
    tiny_models.install(models)
    spec = models["nano-x4"]
    monkeypatch.setitem(catalog.MODELS, "nano-x4", spec)
    teacher, student = tiny_models.save_weights("nano-x4", tmp_path), tmp_path / "student.safetensors"
    weights = read_state_dict(teacher)
    first = weights["input_blocks.0.0.weight"]
    weights["input_blocks.0.0.weight"] = torch.cat([first, torch.zeros_like(first[:, :1])], dim=1)
    save_safetensors(weights, student, {})
    high = photo(64, 64)
    for kind, side in (("lq", 16), ("gt", 64)):
        (tmp_path / kind).mkdir()
        Image.fromarray(high).resize((side, side), Image.Resampling.BICUBIC).save(tmp_path / kind / "0.png")
    arguments = [tmp_path, "--student", student, "--teacher", teacher, "--rounds", 1, "--json", tmp_path / "found.json"]
    assert script("one_step").main([*map(str, arguments), "--within", "99"]) == 0
    rows = json.loads((tmp_path / "found.json").read_text())["rows"]
    assert [(row["network"], row["evaluations"]) for row in rows] == [
        ("teacher", 4),
        ("teacher, one step", 1),
        ("student", 1),
    ]
    result = Pipeline.from_pretrained(weights=teacher)(np.asarray(Image.open(tmp_path / "lq" / "0.png")))
    expected = psnr_y(result, high)
    assert rows[0]["PSNR-Y"] == pytest.approx(expected) and rows[0]["dB to teacher"] == 0
    # The student is the teacher with weights of zero for the noise, so both do the same step.
    assert rows[2]["PSNR-Y"] == pytest.approx(rows[1]["PSNR-Y"], abs=1e-3)
    assert all(row["seconds"] > 0 for row in rows)
    within = str(min(0.0, rows[2]["dB to teacher"]) * -1 - 1)
    assert script("one_step").main([*map(str, arguments), "--within", within]) == 1
    assert "dB below its teacher, more than" in capsys.readouterr().err
