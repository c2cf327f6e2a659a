"""The training loop on a tiny network: it learns, saves memory, and refuses what it cannot train."""

import pytest
import torch
from training_runs import PLAN, loss_of, make_config, make_spec, make_trainer, random_batch, read_log

from resshift_fast.diffusion.schedule import schedule_from_text
from resshift_fast.training import choices
from resshift_fast.training.data import Patches
from resshift_fast.training.interfaces import Batch, Loss
from resshift_fast.training.photos import Photos
from resshift_fast.training.pixels import to_tensor, upsample


@pytest.mark.parametrize("rollout", [0.0, 1.0])
def test_the_loss_falls(photos, tmp_path, rollout):
    trainer = make_trainer(make_config(photos, tmp_path, lr=3e-3, steps=20, rollout=rollout))
    patches = Patches(Photos([photos], min_side=64), PLAN, 0, 1)
    batch = Batch(*(to_tensor(array) for array in patches.batch(0, [0])))
    before = loss_of(trainer, batch)
    for _ in range(12):
        trainer.train_step(batch)
    assert loss_of(trainer, batch) < 0.9 * before


@pytest.mark.parametrize("prediction_type", ["x0", "residual", "epsilon", "epsilon_scaled"])
def test_every_prediction_type_has_a_finite_loss_and_gradient(photos, tmp_path, prediction_type):
    trainer = make_trainer(make_config(photos, tmp_path), make_spec(prediction_type=prediction_type))
    loss, norm = trainer.train_step(random_batch())
    assert 0 < loss < 10 and 0 < norm < 1e3


def test_a_zero_network_has_the_residuals_own_loss(photos, tmp_path):
    trainer = make_trainer(make_config(photos, tmp_path))
    batch = random_batch()
    expected = (upsample(batch.low, 4) - batch.high).abs().mean()
    assert loss_of(trainer, batch) == pytest.approx(float(expected), rel=1e-5)


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
    trainer = make_trainer(make_config(photos, tmp_path, steps=1, **options))
    seen = []
    trainer.train_step = lambda batch, step=trainer.train_step: (seen.append(batch), step(batch))[1]
    assert trainer.run()
    assert float(read_log(tmp_path)[0]["loss"]) == pytest.approx(3.0)
    # The same patches and draws again: a batch is a function of seed and step.
    low, high = seen[0].low, seen[0].high
    assert torch.allclose(torch.nn.functional.avg_pool2d(high, 4), low, atol=1e-5) and float(low.min()) < -1


def test_a_device_that_is_not_here_is_one_clear_error(photos, tmp_path):
    with pytest.raises(ValueError, match="device 'meta' cannot be used here: .*; use device='cpu'"):
        make_trainer(make_config(photos, tmp_path, device="meta"))


def test_a_run_folder_that_is_a_file_is_one_clear_error(photos, tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(NotADirectoryError, match="is, or lies under, a file; choose another name"):
        make_trainer(make_config(photos, tmp_path / "run"))


def test_metadata_name_the_model_that_was_trained(photos, tmp_path):
    from safetensors import safe_open

    assert make_trainer(make_config(photos, tmp_path, steps=1), make_spec(name="mine-x4")).run()
    with safe_open(tmp_path / "best.safetensors", "pt") as file:
        metadata = file.metadata()
    assert (metadata.pop("model"), metadata.pop("step")) == ("mine-x4", "1")
    assert schedule_from_text(metadata.pop("schedule")) == make_spec().schedule and not metadata


def _gradients(photos, run, batch, **changes):
    trainer = make_trainer(make_config(photos, run, batch_size=4, grad_clip=0.0, **changes))
    for number, parameter in enumerate(trainer.denoiser.parameters()):  # the last layer of a new network is zero
        values = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
        parameter.data += 0.02 * values.to(parameter.dtype)
    trainer.train_step(batch)
    return [parameter.grad.clone() for parameter in trainer.denoiser.parameters()]


@pytest.mark.parametrize("changes", [{"accumulate": 2}, {"recompute": True}, {"channels_last": True}], ids=str)
def test_ways_to_save_memory_and_time_keep_the_gradients(photos, tmp_path, changes):
    generator = torch.Generator().manual_seed(0)
    high = torch.rand(4, 3, 64, 64, generator=generator) * 2 - 1
    batch = Batch(high, torch.nn.functional.avg_pool2d(high, 4))
    plain = _gradients(photos, tmp_path / "plain", batch, rollout=1.0)
    other = _gradients(photos, tmp_path / "other", batch, rollout=1.0, **changes)
    largest = max(float(gradient.abs().max()) for gradient in plain)
    for ours, reference in zip(other, plain, strict=True):
        assert float((ours - reference).abs().max()) <= 1e-5 * largest


def test_recomputed_layers_keep_less_for_the_backward_pass(photos, tmp_path):
    def kept(**changes):
        trainer, sizes = make_trainer(make_config(photos, tmp_path, **changes)), {}

        def note(tensor):
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            loss = trainer.loss(random_batch(), 0)
        del loss
        return sum(sizes.values())

    assert kept(recompute=True) < 0.6 * kept()


def test_parts_must_divide_the_batch(photos, tmp_path):
    with pytest.raises(
        ValueError, match="batch_size is 2, but 1 processes × 3 accumulated parts .* give --batch-size 3"
    ):
        make_trainer(make_config(photos, tmp_path, accumulate=3))


def test_rollout_and_masks_are_refused_where_they_cannot_work(photos, tmp_path):
    with pytest.raises(ValueError, match="rollout"):
        make_trainer(make_config(photos, tmp_path, rollout=0.5), make_spec(prediction_type="epsilon"))
    with pytest.raises(ValueError, match="inpainting"):
        make_trainer(make_config(photos, tmp_path), make_spec(needs_mask=True))
    with pytest.raises(ValueError, match="multiple"):
        make_trainer(make_config(photos, tmp_path, patch=62)).run()
