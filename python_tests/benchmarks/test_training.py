"""The benchmark of a training step, with small patches."""

import json
import os

import pytest

from resshift_fast import cli
from resshift_fast.training.trainer import Trainer

SMALL = ("--batch", "1", "--patch", "64", "--runs", "1", "--threads", "1")


@pytest.fixture
def training(script):
    return script("training")


@pytest.mark.slow
def test_both_providers_have_the_same_first_loss(training, tmp_path):
    found = tmp_path / "training.json"
    assert training.main([*SMALL, "--json", str(found)]) == 0
    reference, ours = json.loads(found.read_text())["rows"]
    assert (reference["provider"], ours["provider"]) == ("reference", "ours")
    assert reference["speed-up"] == 1 and ours["speed-up"] == pytest.approx(reference["median s"] / ours["median s"])
    assert ours["first loss"] == pytest.approx(reference["first loss"], rel=1e-4)
    assert ours["steps/s"] == pytest.approx(1 / ours["median s"]) and ours["peak MiB"] > 100


def test_different_losses_give_no_speed_up(training, monkeypatch, tmp_path, capsys):
    for name in cli.WAITING:
        monkeypatch.setenv(name, "")  # so that it is restored at the end
        monkeypatch.delenv(name)
    losses = iter([1.0, 1.1] * 2)
    monkeypatch.setattr(training, "in_child", lambda name, argv: {"peak MiB": 1.0})
    monkeypatch.setattr(Trainer, "train_step", lambda self, batch: (next(losses), 1.0))
    found = tmp_path / "training.json"
    assert training.main([*SMALL, "--json", str(found)]) == 1
    assert all(row["speed-up"] is None for row in json.loads(found.read_text())["rows"])
    assert "the first losses differ" in capsys.readouterr().err
    assert os.environ["GOMP_SPINCOUNT"] == "1000"  # as in the program that trains


@pytest.mark.slow
def test_the_start_with_many_photos(training, tmp_path):
    found = tmp_path / "start.json"
    assert training.main([*SMALL, "--photos", "30", "--json", str(found)]) == 0
    (row,) = json.loads(found.read_text())["rows"]
    assert row["photos"] == 30 and row["CPU s"] > 0.1 and row["wall s"] > 0.1 and row["peak MiB"] > 100
