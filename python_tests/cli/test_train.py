"""`resshift-fast train`."""

import pytest
import typer
from training_runs import TINY, make_photos, make_spec
from typer.testing import CliRunner

from resshift_fast.cli.train import train
from resshift_fast.models.autoencoder import SpaceToDepth, SpaceToDepthConfig
from resshift_fast.models.swin_unet import SwinUNet
from resshift_fast.training.trainer import Trainer


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return make_photos(tmp_path_factory.mktemp("photos"))


def _command(*arguments):
    app = typer.Typer()
    app.command()(train)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def tiny_model(monkeypatch):
    real = Trainer.__init__

    def tiny(self, config):
        real(self, config, make_spec(), denoiser=SwinUNet(TINY), first_stage=SpaceToDepth(SpaceToDepthConfig()))

    monkeypatch.setattr(Trainer, "__init__", tiny)


def test_the_command_trains_and_continues(photos, tmp_path, tiny_model):
    arguments = [photos, "--run", tmp_path, "--patch", 64, "--batch-size", 1, "--warmup", 1, "--steps", 2]
    result = _command(*arguments)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "best.safetensors").exists() and (tmp_path / "last.pt").exists()
    assert _command(*arguments).exit_code == 0
    refused = _command(*arguments, "--no-resume")
    assert refused.exit_code == 1 and "last.pt exists" in refused.output
    assert _command(*arguments, "--override", "steps=3", "--override", "lr=1e-4").exit_code == 0
    assert "steps was 2 and is now 3; lr was 0.0006 and is now 0.0001" in (tmp_path / "log.csv").read_text()
    unknown = _command(*arguments, "--override", "stepz=3")
    assert unknown.exit_code == 1 and "stepz cannot be overridden; did you mean steps?" in unknown.output


def test_no_threads_are_wrong_usage(tmp_path):
    result = _command(tmp_path, "--run", tmp_path / "run", "--threads", "0")
    assert result.exit_code == 2 and "--threads" in result.output


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["--steps", "0"], "error: steps must be at least 1"),
        (["--workers", "0"], "error: workers must be at least 1"),
        ([], "nothing does not exist"),
    ],
    ids=["steps", "workers", "folder"],
)
def test_the_command_reports_bad_input_in_one_line(tmp_path, tiny_model, arguments, match):
    result = _command(tmp_path / "nothing", "--run", tmp_path / "run", *arguments)
    assert result.exit_code == 1
    assert match in result.output and result.output.count("\n") == 1


def test_the_advice_for_little_memory_is_one_for_training(photos, tmp_path, tiny_model, monkeypatch):
    def fail(self):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(Trainer, "run", fail)
    result = _command(photos, "--run", tmp_path)
    assert result.exit_code == 1
    assert "not enough memory; try --accumulate, --recompute, a smaller --patch or --precision" in result.output
