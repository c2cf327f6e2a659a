"""`resshift-fast train-autoencoder`, and the commands and calls that take its weights."""

import csv

import numpy as np
import pytest
import torch
from official_yaml import REALSR
from training_runs import TINY_AUTOENCODER, make_photos
from typer.testing import CliRunner

from resshift_fast import Pipeline
from resshift_fast.cli.app import app
from resshift_fast.models import catalog, official_config
from resshift_fast.weights.checkpoints import save_safetensors

pytest.importorskip("omegaconf", reason="omegaconf, which reads YAML, is not installed")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return make_photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setitem(catalog.AUTOENCODERS, "tiny", TINY_AUTOENCODER)


def run(command, *arguments):
    return CliRunner().invoke(app, [command, *map(str, arguments)])


def small(photos, run_folder):
    fast = ["--batch-size", 1, "--patch", 32, "--disc-channels", 16, "--disc-start", 1, "--lpips", 0, "--log-every", 1]
    return [photos, "-o", run_folder, *fast]


def test_the_command_trains_and_continues(photos, tmp_path):
    arguments = [*small(photos, tmp_path), "--model", "tiny"]
    first = run("train-autoencoder", *arguments, "--steps", 2, "--val", photos)
    assert first.exit_code == 0, first.output
    assert f"done: {tmp_path / 'best.safetensors'}" in first.output
    again = run("train-autoencoder", *arguments, "--steps", 2, "--override", "steps=3,lr=2e-4")
    assert again.exit_code == 0 and "steps was 2 and is now 3; lr was 0.0001 and is now 0.0002" in again.output
    rows = list(csv.DictReader((tmp_path / "log.csv").read_text().splitlines()))
    assert [row["step"] for row in rows if not row["note"]] == ["1", "2", "3"]
    assert [bool(row["discriminator"]) for row in rows if not row["note"]] == [False, True, True]
    refused = run("train-autoencoder", *arguments, "--steps", 3, "--no-resume")
    assert refused.exit_code == 1 and "last.pt exists" in refused.output


@pytest.mark.slow
def test_models_and_trainings_take_the_weights(photos, tmp_path):
    yaml = tmp_path / "mine.yaml"
    yaml.write_text(REALSR.replace("PHOTOS", str(photos)))
    found = run("train-autoencoder", *small(photos, tmp_path / "vq"), "--config", yaml, "--steps", 2)
    assert found.exit_code == 0, found.output
    weights = tmp_path / "vq" / "best.safetensors"
    save_safetensors(catalog.build_denoiser(official_config.read(yaml)), tmp_path / "unet.safetensors", {})
    for autoencoder in (weights, tmp_path / "vq" / "last.pt"):
        pipeline = Pipeline.from_config(yaml, weights=tmp_path / "unet.safetensors", autoencoder=autoencoder)
        assert pipeline(np.full((16, 16, 3), 128, np.uint8)).shape == (64, 64, 3)
    trained = run("train", "--config", yaml, "-o", tmp_path / "run", "--autoencoder", weights, "--steps", 1)
    assert trained.exit_code == 0, trained.output
    state = torch.load(tmp_path / "vq" / "last.pt", weights_only=True)
    assert state["auxiliary"]["networks"]["body.0.weight"].shape == (16, 3, 4, 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "vq-f5"], "error: unknown autoencoder 'vq-f5'; did you mean 'vq-f4'?"),
        (["--model", "nano-x4"], "error: nano-x4 has no autoencoder"),
        (["--lpips", "1", "--vgg", "no.pth"], "no.pth does not exist; check the path; --lpips 0 (lpips=0) trains"),
        (["--disc-loss", "wgan"], "error: unknown disc_loss 'wgan'; expected one of hinge, vanilla"),
        (["--disc-layers", "9"], "error: a discriminator of 9 layers needs patches of at least 1536 pixels, got 32"),
        (["--patch", "33"], "error: patch must be a multiple of 2 for this model, got 33"),
        (["--steps", "0"], "error: steps must be at least 1"),
        (["--override", "beta=1"], "error: beta cannot be overridden"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_bad_input_is_reported_in_one_line(photos, tmp_path, arguments, message):
    found = run("train-autoencoder", *small(photos, tmp_path / "run"), "--model", "tiny", *arguments)
    assert found.exit_code == 1 and message in found.output and found.output.count("\n") == 1


def test_a_file_without_an_autoencoder_is_refused(photos, tmp_path):
    start, end = REALSR.index("autoencoder:"), REALSR.index("degradation:")
    (tmp_path / "pixel.yaml").write_text(REALSR[:start] + REALSR[end:])
    found = run("train-autoencoder", *small(photos, tmp_path / "run"), "--config", tmp_path / "pixel.yaml")
    assert found.exit_code == 1 and "pixel.yaml describes no autoencoder" in found.output


def test_help_gives_defaults_and_units():
    found = run("train-autoencoder", "--help")
    text = " ".join(found.output.split())
    assert "Side of a patch in pixels. Default: 128." in text and "[default: 50000]" in text
    assert "Steps between checkpoints. [default: 1000]" in text and "in minutes. [default: 10.0]" in text
