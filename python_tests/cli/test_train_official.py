"""`train` with the official objective, other degradations and --config."""

import csv
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from official_yaml import REALSR, of_type
from PIL import Image
from safetensors import safe_open
from typer.testing import CliRunner

from resshift_fast.cli.app import app
from resshift_fast.models import catalog, official_config
from resshift_fast.models.catalog import build_first_stage
from resshift_fast.training.degradations.masks import Masks

pytest.importorskip("omegaconf", reason="omegaconf, which reads YAML, is not installed")


@pytest.fixture
def folder(tmp_path):
    """Two photos, a YAML file and weights of its autoencoder."""
    (tmp_path / "photos").mkdir()
    for index in range(2):
        pixels = np.random.default_rng(index).integers(0, 256, (12, 10, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((80, 68), Image.Resampling.BICUBIC).save(tmp_path / "photos" / f"{index}.png")
    (tmp_path / "realsr.yaml").write_text(REALSR.replace("PHOTOS", str(tmp_path / "photos")))
    torch.manual_seed(0)
    first_stage = build_first_stage(official_config.read(tmp_path / "realsr.yaml"))
    torch.save(first_stage.state_dict(), tmp_path / "vq.pth")
    return tmp_path


def run(*arguments):
    return CliRunner().invoke(app, ["train", *map(str, arguments)])


@pytest.fixture
def made(monkeypatch):
    """The configuration and the model of each Trainer that the command makes, none of which trains."""
    calls = []

    class Recorder:
        def __init__(self, config, spec=None):
            calls.append((config, spec))
            self.processes = SimpleNamespace(leave=lambda: None)

        def run(self):
            return True

    monkeypatch.setattr("resshift_fast.training.trainer.Trainer", Recorder)
    return calls


def test_a_realsr_file_trains_and_continues(folder):
    arguments = ["--config", folder / "realsr.yaml", "-o", folder / "run", "--autoencoder", folder / "vq.pth"]
    first = run(*arguments, "--steps", 2, "--log-every", 1)
    assert first.exit_code == 0, first.output
    assert "without effect here: " in first.output and "train.prefetch_factor" in first.output
    with safe_open(folder / "run" / "best.safetensors", "pt") as weights:
        assert weights.metadata()["model"] == "realsr" and "input_blocks.0.0.weight" in weights.keys()  # noqa: SIM118
    rows = list(csv.DictReader((folder / "run" / "log.csv").read_text().splitlines()))
    assert [row["step"] for row in rows] == ["1", "2"] and all(0 < float(row["loss"]) < 100 for row in rows)


@pytest.mark.parametrize("kind, params", [("face", "{gt_size: 32}"), ("inpainting", "{gt_size: 32}")])
def test_other_degradations_train(kind, params, folder):
    text = of_type(kind, params).replace("lq_size: 8", "lq_size: 32")
    if kind == "inpainting":
        text = text.replace("cond_lq: True", "cond_lq: True\n    cond_mask: True")
    (folder / "other.yaml").write_text(text)
    found = run(folder / "photos", "--config", folder / "other.yaml", "-o", folder / "run", "--steps", 1,
                "--autoencoder", folder / "vq.pth")  # fmt: skip
    assert found.exit_code == 0, found.output


def test_options_come_before_the_file(folder, made):
    found = run(folder / "photos", "--config", folder / "realsr.yaml", "-o", folder / "run", "--lr", "1e-4",
                "--degradation", "bicubic", "--lpips", "2")  # fmt: skip
    assert found.exit_code == 0, found.output
    config, spec = made[0]
    assert (config.lr, config.min_lr, config.steps) == (1e-4, 2e-5, 500_000)
    assert config.degradation == "bicubic" and config.degradation_options == {}
    assert config.objective_options == {"mse": 1.0, "lpips": 2.0}
    assert spec.name == "realsr" and config.data == (str(folder / "photos"),)


def test_another_model_trains_as_the_file_says(folder):
    found = run("--config", folder / "realsr.yaml", "--model", "nano-x4", "-o", folder / "run", "--steps", 1,
                "--patch", 64)  # fmt: skip
    assert found.exit_code == 0, found.output
    assert "without effect here: autoencoder, diffusion, model, " in " ".join(found.output.split())
    with safe_open(folder / "run" / "best.safetensors", "pt") as weights:
        assert weights.metadata()["model"] == "nano-x4"


def test_objective_and_degradation_need_no_file(folder, made):
    found = run(folder / "photos", "-o", folder / "run", "--objective", "official", "--degradation", "second_order",
                "--lpips", "1", "--vgg", folder / "vgg.pth")  # fmt: skip
    assert found.exit_code == 0, found.output
    config, spec = made[0]
    assert spec is None and (config.objective, config.degradation) == ("official", "second_order")
    assert config.objective_options == {"lpips": 1.0, "vgg": str(folder / "vgg.pth")}


def test_the_projects_file_trains_the_embedded_model(folder, made):
    file = Path(__file__).parents[2] / "examples" / "nano-realsr.yaml"
    options = ["-o", folder / "run", "--model", "nano-x4", "--config", file, "--batch-size", 6]
    found = run(folder / "photos", *options)
    assert found.exit_code == 0, found.output
    assert "without effect" not in found.output
    config, spec = made[0]
    assert spec is None and config.model == "nano-x4" and config.degradation == "second_order"
    assert (config.batch_size, config.patch, config.steps, config.precision) == (6, 128, 4000, "float32")


def test_a_recipe_sets_what_no_option_gives(folder, made):
    file = Path(__file__).parents[2] / "examples" / "photo-x4.yaml"
    found = run(folder / "photos", "-o", folder / "run", "--config", file, "--batch-size", 6, "--init-from", "mine.pth")
    assert found.exit_code == 0, found.output
    config, spec = made[0]
    assert spec is None and config.model == "photo-x4" and config.objective == "perceptual"
    assert (config.batch_size, config.patch, config.init_from, config.betas) == (6, 192, "mine.pth", (0.9, 0.99))
    assert config.objective_options["features"] > 0 and config.taught["folder"] == "runs/taught"
    assert config.degradation == "second_order" and config.degradation_options == {"gt_size": 128}
    (folder / "mixed.yaml").write_text("settings: {loss: mse, mixture: {clean: 0.9}, betas: [0.5, 0.9]}")
    assert run(folder / "photos", "-o", folder / "run", "--config", folder / "mixed.yaml").exit_code == 0
    config, _ = made[1]
    assert (config.loss, config.mixture.clean, config.betas) == ("mse", 0.9, (0.5, 0.9))


@pytest.mark.parametrize(
    ("model", "degradation", "patch"), [("photo-x1", "mixture", 64), ("photo-inpaint", "masks", 128)]
)
def test_the_recipes_without_enlarging(folder, made, model, degradation, patch):
    file = Path(__file__).parents[2] / "examples" / f"{model}.yaml"
    found = run(folder / "photos", "-o", folder / "run", "--config", file)
    assert found.exit_code == 0, found.output
    config, spec = made[0]
    assert spec is None and (config.model, config.degradation) == (model, degradation)
    assert config.for_model(catalog.get(model)).patch == patch
    Masks(**config.degradation_options)
    assert config.mixture.marks == (0.2 if model == "photo-x1" else 0.0)


@pytest.mark.parametrize(
    "text, message",
    [
        ("settings: {objectiv: rollout}", "unknown name objectiv; did you mean objective?"),
        ("settings: {run: here}", "unknown name run"),
        ("settings: {steps: many}", "steps is 'many', expected an integer"),
        ("settings: {lr: -1.0}", "lr > 0"),
        ("{settings: {}, train: {}}", "a recipe has one section, settings, with settings by name; got settings, train"),
    ],
)
def test_a_bad_recipe_is_refused(folder, text, message):
    (folder / "bad.yaml").write_text(text)
    found = run(folder / "photos", "-o", folder / "run", "--config", folder / "bad.yaml")
    assert found.exit_code == 1 and message in " ".join(found.output.split()), found.output


def test_a_list_that_is_none_is_refused(folder, made):
    found = run(folder / "photos", "-o", folder / "run", "--objective", "distill", "--num-res-blocks", "1;1")
    assert found.exit_code == 2 and not made
    assert "expected integers separated by commas, such as 1,1, got '1;1'" in " ".join(
        found.output.replace("│", "").split()
    )


def test_distillation_has_its_own_settings(folder, made):
    found = run(folder / "photos", "-o", folder / "run", "--objective", "distill", "--teacher", folder / "vgg.pth",
                "--fake-steps", "3", "--mse", "0.5", "--adversarial", "0.1", "--student-timesteps", "2",
                "--no-normalize", "--num-res-blocks", "1,1")  # fmt: skip
    assert found.exit_code == 0, found.output
    config, spec = made[0]
    assert spec is None and config.objective == "distill" and config.betas == (0.9, 0.95)
    expected = {"teacher": str(folder / "vgg.pth"), "fake_steps": 3, "mse": 0.5, "adversarial": 0.1}
    assert config.objective_options == expected | {
        "student_timesteps": 2,
        "normalize": False,
        "num_res_blocks": [1, 1],
    }
    found = run(folder / "photos", "-o", folder / "run", "--config", folder / "realsr.yaml", "--objective", "distill")
    assert found.exit_code == 0, found.output
    config, spec = made[1]
    assert spec is not None and config.objective == "distill" and config.objective_options == {}


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("PHOTOS", "--lpips", "1"), "--lpips needs --objective official or distill"),
        (("PHOTOS", "--teacher", "x.pth", "--objective", "official"), "--teacher needs --objective distill"),
        (("PHOTOS", "--fake-steps", "1"), "--fake-steps needs --objective distill"),
        (("PHOTOS", "--no-normalize", "--objective", "official"), "--normalize needs --objective distill"),
        ((), "no training photos"),
        (("PHOTOS", "--degradation", "rain"), "unknown degradation 'rain'; expected one of mixture, second_order"),
    ],
)
def test_contradictions_are_refused(arguments, message, folder, made):
    found = run(*(folder / "photos" if word == "PHOTOS" else word for word in arguments), "-o", folder / "run")
    assert found.exit_code == 1 and not made and not Path(folder / "run").exists()

    assert re.search(message, " ".join(found.output.split()))
