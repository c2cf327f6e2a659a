"""The training loop on a tiny network: it learns, resumes bit for bit, stops on signals, refuses invalid settings."""

import csv
import errno
import inspect
import os
import signal
from dataclasses import MISSING, fields, replace
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from typer.testing import CliRunner

from resshift_fast.cli.train import train
from resshift_fast.diffusion.schedule import Schedule
from resshift_fast.models.autoencoder import SpaceToDepth, SpaceToDepthConfig
from resshift_fast.models.swin_unet import SwinUNet, SwinUNetConfig
from resshift_fast.training import choices
from resshift_fast.training.config import TrainConfig
from resshift_fast.training.data import Patches, PatchPlan
from resshift_fast.training.degradations import Mixture
from resshift_fast.training.interfaces import Batch, Loss
from resshift_fast.training.optimization import learning_rate
from resshift_fast.training.photos import Photos
from resshift_fast.training.pixels import to_images, to_tensor, upsample
from resshift_fast.training.trainer import Trainer
from resshift_fast.training.validation import Validation

TINY = SwinUNetConfig(
    image_size=16,
    in_channels=48,
    out_channels=48,
    model_channels=32,
    num_res_blocks=(1,),
    attention_resolutions=(16,),
    channel_mult=(1,),
    swin_embed_dim=32,
    mlp_ratio=1.0,
    lq_size=16,
)
PLAN = PatchPlan(patch=64, degradation=Mixture(clean=1.0))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for index in range(2):
        rng = np.random.default_rng(index)
        coarse = Image.fromarray(rng.integers(0, 256, (24, 20, 3), dtype=np.uint8))
        coarse.resize((160, 192), Image.Resampling.BICUBIC).save(folder / f"{index}.png")
    return folder


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _spec(**changes):
    values = {
        "schedule": Schedule(steps=3, kappa=0.3),
        "prediction_type": "residual",
        "scale": 4,
        "clamp_x0": True,
        "needs_mask": False,
    }
    return SimpleNamespace(**(values | changes))


def _config(photos, run, **changes):
    values = {"steps": 6, "batch_size": 2, "patch": 64, "warmup": 2, "lr": 1e-3, "log_every": 1, "save_every": 3}
    values |= {"rollout": 0.0, "channels_last": False}
    return TrainConfig(data=str(photos), run=str(run), **(values | changes))


def test_the_command_and_the_settings_have_the_same_defaults():
    command = {name: parameter.default for name, parameter in inspect.signature(train).parameters.items()}
    command["compile"] = command.pop("compile_model")
    shared = [field for field in fields(TrainConfig) if field.name in command and field.default is not MISSING]
    assert len(shared) > 20
    assert {field.name: command[field.name] for field in shared} == {field.name: field.default for field in shared}
    assert command["clean"] == Mixture().clean


def _trainer(config, spec=None):
    torch.manual_seed(0)
    return Trainer(config, spec or _spec(), denoiser=SwinUNet(TINY), first_stage=SpaceToDepth(SpaceToDepthConfig()))


def _random_batch():
    return Batch(torch.rand(2, 3, 64, 64) * 2 - 1, torch.rand(2, 3, 16, 16) * 2 - 1)


def _loss(trainer, batch):
    return float(trainer.loss(batch, 0).by_sample.detach().mean())


def _log(run):
    with open(run / "log.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_resuming_gives_the_uninterrupted_weights_bit_for_bit(photos, tmp_path, precision):
    options = {"rollout": 0.5, "precision": precision}
    whole = _trainer(_config(photos, tmp_path / "whole", **options))
    assert whole.run()
    assert not _trainer(_config(photos, tmp_path / "parts", **options)).run(stop_after=3)
    resumed = _trainer(_config(photos, tmp_path / "parts", **options))
    assert resumed.run()
    for mine, theirs in (
        (whole.denoiser.state_dict(), resumed.denoiser.state_dict()),
        (whole.average.state, resumed.average.state),
    ):
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    losses = [[(row["step"], row["loss"], row["lr"]) for row in _log(tmp_path / name)] for name in ("whole", "parts")]
    assert losses[0] == losses[1] and len(losses[0]) == 6
    assert any(not torch.equal(value, whole.average.state[name]) for name, value in whole.denoiser.state_dict().items())


def test_steps_logged_after_the_checkpoint_are_logged_once(photos, tmp_path):
    trainer = _trainer(_config(photos, tmp_path))
    trainer.run(stop_after=2)
    trainer.run_folder.append_log(step=3, loss="9.9")
    _trainer(_config(photos, tmp_path)).run()
    assert [row["step"] for row in _log(tmp_path)] == list("123456")


@pytest.mark.parametrize("rollout", [0.0, 1.0])
def test_the_loss_falls(photos, tmp_path, rollout):
    trainer = _trainer(_config(photos, tmp_path, lr=3e-3, steps=20, rollout=rollout))
    patches = Patches(Photos([photos], min_side=64), PLAN, 0, 1)
    batch = Batch(*(to_tensor(array) for array in patches.batch(0, [0])))
    before = _loss(trainer, batch)
    for _ in range(12):
        trainer.train_step(batch)
    assert _loss(trainer, batch) < 0.9 * before


@pytest.mark.parametrize("prediction_type", ["x0", "residual", "epsilon", "epsilon_scaled"])
def test_every_prediction_type_has_a_finite_loss_and_gradient(photos, tmp_path, prediction_type):
    trainer = _trainer(_config(photos, tmp_path), _spec(prediction_type=prediction_type))
    loss, norm = trainer.train_step(_random_batch())
    assert 0 < loss < 10 and 0 < norm < 1e3


def test_a_zero_network_has_the_residuals_own_loss(photos, tmp_path):
    trainer = _trainer(_config(photos, tmp_path))
    batch = _random_batch()
    expected = (upsample(batch.low, 4) - batch.high).abs().mean()
    assert _loss(trainer, batch) == pytest.approx(float(expected), rel=1e-5)


def test_learning_rate_warms_up_and_falls_to_the_minimum():
    config = TrainConfig(data="", run="", steps=100, warmup=10, lr=1.0, min_lr=0.1)
    rates = [learning_rate(config, step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == pytest.approx(1.0) and rates[99] == pytest.approx(0.1)
    assert all(a >= b for a, b in pairwise(rates[10:]))


def test_validation_measures_keeps_the_best_and_draws_a_sheet(photos, tmp_path):
    from safetensors import safe_open

    config = _config(photos, tmp_path, steps=2, val=str(photos), val_every=1, val_limit=2)
    trainer = _trainer(config)
    assert trainer.run()
    rows = _log(tmp_path)
    assert all(float(row["val_psnr_y_clean"]) > 5 and float(row["bicubic_psnr_y_degraded"]) > 5 for row in rows)
    with Image.open(tmp_path / "val" / "0000002.png") as sheet:
        assert sheet.size == (6 * 128, 2 * 128)
    with safe_open(tmp_path / "best.safetensors", "pt") as file:
        assert file.metadata()["model"] == config.model
        assert file.get_tensor("out.2.weight").dtype == torch.float16


def test_an_untrained_residual_network_validates_close_to_bicubic(photos, tmp_path):
    # A zero prediction gives x̂_0 = y in every step, so only 8-bit rounding separates the two.
    trainer = _trainer(_config(photos, tmp_path))
    validation = Validation(photos, 4, Mixture(), limit=2)
    result = trainer.validate(validation)
    assert result.clean == pytest.approx(result.bicubic_clean, abs=0.02)
    assert result.degraded == pytest.approx(result.bicubic_degraded, abs=0.02)
    assert result.bicubic_degraded < result.bicubic_clean


def test_validation_photos_that_are_damaged_are_skipped_by_name(photos, tmp_path):
    first = sorted(photos.iterdir())[0]
    for name in ("a.png", "c.png"):
        (tmp_path / name).write_bytes(first.read_bytes())
    (tmp_path / "b.png").write_bytes(first.read_bytes()[:500])
    (tmp_path / "._a.png").write_bytes(b"\0\5\x16\7" + bytes(60))
    Image.new("RGB", (20, 20)).save(tmp_path / "small.png")
    with pytest.warns(UserWarning, match="skipped") as caught:
        validation = Validation(tmp_path, 4, Mixture(), limit=9)
    assert len(validation.high) == 2
    texts = [str(one.message) for one in caught]
    assert (
        len(texts) == 2
        and "b.png is damaged or truncated" in texts[0]
        and "small.png: it is below 64 pixels" in texts[1]
    )
    for name in ("a.png", "c.png"):
        (tmp_path / name).unlink()
    with pytest.warns(UserWarning, match="skipped"), pytest.raises(ValueError, match="no usable photo"):
        Validation(tmp_path, 4, Mixture(), limit=9)


def test_validation_inputs_are_fixed(photos):
    first, second = (Validation(photos, 4, Mixture(), limit=2) for _ in range(2))
    for kind in ("clean", "degraded"):
        assert all(np.array_equal(a, b) for a, b in zip(first.low[kind], second.low[kind], strict=True))


def test_images_are_unchanged_after_conversion_to_tensors_and_back():
    image = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    tensor = to_tensor(image)
    assert tensor.min() == -1 and tensor.max() == 1
    assert np.array_equal(to_images(tensor), image)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"seed": 2}, "seed was 0"),
        ({"steps": 9}, "steps"),
        ({"mixture": Mixture(clean=0.5)}, "mixture.clean was 0.35"),
        ({"objective_options": {"weight": 2.0}}, "objective_options.weight was None and is now 2.0"),
    ],
    ids=["seed", "steps", "mixture", "options"],
)
def test_resuming_with_other_settings_names_the_field(photos, tmp_path, changes, field):
    config = _config(photos, tmp_path)
    _trainer(config).run(stop_after=1)
    with pytest.raises(ValueError, match=field):
        _trainer(replace(config, **changes)).run()


def test_a_diverged_run_resumes_as_its_error_says(photos, tmp_path, capsys):
    config = _config(photos, tmp_path)
    trainer = _trainer(config)
    trainer.run(stop_after=1)
    with pytest.raises(FloatingPointError, match="lower --lr or --grad-clip, or with --precision float32"):
        trainer.train_step(Batch(torch.full((1, 3, 64, 64), float("nan")), torch.zeros(1, 3, 16, 16)))
    again = _trainer(replace(config, lr=1e-4, min_lr=1e-7, grad_clip=0.1, precision="bfloat16"))
    assert again.run()
    assert "at step 1; lr was 0.001 and is now 0.0001" in capsys.readouterr().err
    assert float(_log(tmp_path)[-1]["lr"]) <= 1e-4


class _Darker:
    """A degradation of whole batches that also changes the high-quality side."""

    def degrade_batch(self, high, scale, draws):
        shift = draws.uniform()[:, None, None, None]
        return Batch(high - shift, torch.nn.functional.avg_pool2d(high, scale) - shift)


class _MeanError:
    """An objective that ignores the network but for its gradient."""

    def __init__(self, config, parts):
        self.weight, self.parts = config.objective_options["weight"], parts

    def __call__(self, batch, draws):
        t = torch.zeros(len(batch), dtype=torch.int64)
        prediction = self.parts.predict(self.parts.first_stage.encode(batch.high), t, batch.low, None)
        return Loss(self.weight * (1 + prediction.flatten(1).square().mean(1)), t)


def test_objectives_and_degradations_can_be_registered(photos, tmp_path, monkeypatch):
    monkeypatch.setitem(choices.OBJECTIVES, "mean", _MeanError)
    monkeypatch.setitem(choices.DEGRADATIONS, "darker", lambda config, spec: _Darker())
    options = {"objective": "mean", "objective_options": {"weight": 3.0}, "degradation": "darker", "val": str(photos)}
    trainer = _trainer(_config(photos, tmp_path, steps=1, **options))
    seen = []
    trainer.train_step = lambda batch, step=trainer.train_step: (seen.append(batch), step(batch))[1]
    assert trainer.run()
    assert float(_log(tmp_path)[0]["loss"]) == pytest.approx(3.0)
    # The same patches and draws again: a batch is a function of seed and step.
    low, high = seen[0].low, seen[0].high
    assert torch.allclose(torch.nn.functional.avg_pool2d(high, 4), low, atol=1e-5) and float(low.min()) < -1


def test_settings_that_change_nothing_may_differ(photos, tmp_path):
    config = _config(photos, tmp_path)
    _trainer(config).run(stop_after=1)
    assert _trainer(replace(config, workers=2, log_every=2, save_every=1, val=str(photos))).run()


def test_a_device_that_is_not_here_is_one_clear_error(photos, tmp_path):
    with pytest.raises(ValueError, match="device 'meta' cannot be used here: .*; use device='cpu'"):
        _trainer(_config(photos, tmp_path, device="meta"))


def test_a_run_folder_that_is_a_file_is_one_clear_error(photos, tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(NotADirectoryError, match="is, or lies under, a file; choose another name"):
        _trainer(_config(photos, tmp_path / "run"))


def test_a_damaged_checkpoint_is_one_clear_error(photos, tmp_path):
    config = _config(photos, tmp_path)
    (tmp_path / "last.pt").write_bytes(b"PK nothing")
    with pytest.raises(ValueError, match=r"last\.pt cannot be read"):
        _trainer(config).run()


def test_a_failed_write_keeps_the_previous_checkpoint(photos, tmp_path, monkeypatch):
    trainer = _trainer(_config(photos, tmp_path))
    trainer.run(stop_after=1)
    before = (tmp_path / "last.pt").read_bytes()

    def full(_state, file):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="no space"):
        trainer.save()
    assert (tmp_path / "last.pt").read_bytes() == before
    assert not list(tmp_path.glob("*.part")) and not list(tmp_path.glob(".*.part"))


def test_a_signal_ends_after_the_step_and_the_run_continues(photos, tmp_path):
    config = _config(photos, tmp_path)
    trainer = _trainer(config)
    step = trainer.train_step

    def interrupted(batch):
        if trainer.step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(batch)

    trainer.train_step = interrupted
    before = signal.getsignal(signal.SIGTERM)
    assert trainer.run() is False
    assert trainer.step == 2 and signal.getsignal(signal.SIGTERM) is before
    assert _trainer(config).run() is True


def test_a_loss_that_is_not_finite_stops_before_the_weights_change(photos, tmp_path):
    trainer = _trainer(_config(photos, tmp_path))
    before = {name: value.clone() for name, value in trainer.denoiser.state_dict().items()}
    with pytest.raises(FloatingPointError, match="step 0"):
        trainer.train_step(Batch(torch.full((1, 3, 64, 64), float("nan")), torch.zeros(1, 3, 16, 16)))
    assert all(torch.equal(value, before[name]) for name, value in trainer.denoiser.state_dict().items())


def test_training_can_start_from_saved_weights(photos, tmp_path):
    first = _trainer(_config(photos, tmp_path / "first", steps=2))
    first.run()
    second = _trainer(_config(photos, tmp_path / "second", init_from=str(tmp_path / "first" / "last.pt")))
    assert all(torch.equal(value, first.average.state[name]) for name, value in second.denoiser.state_dict().items())
    assert second.step == 0


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"loss": "l3"}, "l3.*l1, mse"),
        ({"precision": "float16"}, "float16"),
        ({"rollout": 1.5}, "rollout"),
        ({"steps": 0}, "steps"),
        ({"lr": 0.0}, "lr"),
        ({"ema_decay": 1.0}, "ema_decay"),
        ({"workers": 0}, "workers must be at least 1"),
        ({"warmup": -1}, "warmup must be at least 0"),
        ({"cache_mb": -1}, "cache_mb must be at least 0"),
        ({"grad_clip": float("nan")}, "grad_clip must be a number"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"objective": "none"}, "unknown objective 'none'; expected one of rollout"),
        ({"degradation": "none"}, "unknown degradation 'none'; expected one of mixture"),
    ],
    ids=[
        "loss",
        "precision",
        "rollout",
        "steps",
        "lr",
        "ema",
        "workers",
        "warmup",
        "cache",
        "nan",
        "seed",
        "objective",
        "degradation",
    ],
)
def test_settings_out_of_range_are_refused(changes, match):
    with pytest.raises(ValueError, match=match):
        TrainConfig(data="", run="", **changes)


def test_rollout_and_masks_are_refused_where_they_cannot_work(photos, tmp_path):
    with pytest.raises(ValueError, match="rollout"):
        _trainer(_config(photos, tmp_path, rollout=0.5), _spec(prediction_type="epsilon"))
    with pytest.raises(ValueError, match="mask"):
        _trainer(_config(photos, tmp_path), _spec(needs_mask=True))
    with pytest.raises(ValueError, match="multiple"):
        _trainer(_config(photos, tmp_path, patch=62)).run()


def _command(*arguments):
    app = typer.Typer()
    app.command()(train)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def tiny_model(monkeypatch):
    real = Trainer.__init__

    def tiny(self, config):
        real(self, config, _spec(), denoiser=SwinUNet(TINY), first_stage=SpaceToDepth(SpaceToDepthConfig()))

    monkeypatch.setattr(Trainer, "__init__", tiny)


def test_the_command_trains_and_continues(photos, tmp_path, tiny_model):
    arguments = [photos, "--run", tmp_path, "--patch", 64, "--batch-size", 1, "--warmup", 1, "--steps", 2]
    result = _command(*arguments)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "best.safetensors").exists() and (tmp_path / "last.pt").exists()
    assert _command(*arguments).exit_code == 0
    refused = _command(*arguments, "--no-resume")
    assert refused.exit_code == 1 and "last.pt exists" in refused.output


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
