"""Trainings of autoencoders: they learn, resume bit for bit, and give weights that models load."""

import math

import pytest
import torch
from PIL import Image
from training_runs import (
    TINY_AUTOENCODER,
    make_autoencoder_config,
    make_autoencoder_trainer,
    make_config,
    make_trainer,
    read_log,
)

from resshift_fast.models import catalog
from resshift_fast.models.autoencoder import VQAutoencoder
from resshift_fast.training import networks
from resshift_fast.training.autoencoder import AutoencoderTrainer
from resshift_fast.training.interfaces import Batch
from resshift_fast.training.pixels import to_tensor
from resshift_fast.training.validation import Validation, originals


def _state(trainer):
    parts = {"network": trainer.network, "discriminator": trainer.objective.networks}
    return {f"{name}.{key}": value for name, part in parts.items() for key, value in part.state_dict().items()}


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_resuming_gives_the_uninterrupted_weights_bit_for_bit(photos, tmp_path, precision):
    whole = make_autoencoder_trainer(make_autoencoder_config(photos, tmp_path / "whole", precision=precision))
    assert whole.run()
    config = make_autoencoder_config(photos, tmp_path / "parts", precision=precision)
    assert not make_autoencoder_trainer(config).run(stop_after=3)  # the discriminator has taken one step
    resumed = make_autoencoder_trainer(config)
    assert resumed.run()
    expected = _state(whole)
    assert all(torch.equal(value, expected[name]) for name, value in _state(resumed).items())
    assert all(torch.equal(value, whole.average.state[name]) for name, value in whole.network.state_dict().items())
    logs = [read_log(tmp_path / name) for name in ("whole", "parts")]
    for column in ("step", "loss", "l1", "codebook", "generator", "discriminator", "lambda", "perplexity", "usage"):
        values = [[row[column] for row in log] for log in logs]
        late = column in ("generator", "discriminator", "lambda")
        assert values[0] == values[1] and [bool(value) for value in values[0]] == [not late] * 2 + [True] * 4
    assert not (tmp_path / "whole" / "timesteps.csv").exists()
    with pytest.raises(ValueError, match=r"objective_options\.disc_start was 2 and is now 3"):
        make_autoencoder_trainer(make_autoencoder_config(photos, tmp_path / "parts", options={"disc_start": 3})).run()


def test_photos_are_validated_as_they_are(photos, tmp_path, capsys):
    from safetensors import safe_open

    trainer = make_autoencoder_trainer(make_autoencoder_config(photos, tmp_path, steps=1, val=str(photos)))
    assert trainer.run()
    (row,) = read_log(tmp_path)
    assert not [name for name in row if name.startswith("bicubic")]
    with safe_open(tmp_path / "best.safetensors", "pt") as file:
        assert file.metadata() == {
            "model": "tiny",
            "step": "1",
            "psnr_y_reconstructed": row["val_psnr_y_reconstructed"],
        }
        assert file.get_tensor("quantize.embedding.weight").dtype == torch.float32
    with Image.open(tmp_path / "val" / "0000001.png") as sheet:
        assert sheet.size == (2 * 160, 2 * 160)
    said = capsys.readouterr().err
    assert "reconstructed PSNR-Y" in said and "bicubic" not in said
    found = Validation(originals(photos, 4, limit=2, side=50), 1, bicubic=False)
    assert found.high[0].shape == (48, 48, 3)
    assert found.run(lambda image, mask: image).restored["reconstructed"]["psnr_y"] == math.inf


def test_the_weights_are_those_of_a_models_first_stage(photos, tmp_path):
    trainer = make_autoencoder_trainer(make_autoencoder_config(photos, tmp_path, steps=2))
    assert trainer.run()
    for name in ("best.safetensors", "last.pt"):
        loaded = VQAutoencoder(TINY_AUTOENCODER)
        networks.load_weights(loaded, tmp_path / name)
        assert all(torch.equal(value, trainer.network.state_dict()[key]) for key, value in loaded.state_dict().items())
    again = make_autoencoder_trainer(
        make_autoencoder_config(photos, tmp_path / "more", init_from=str(tmp_path / "best.safetensors"))
    )
    assert torch.equal(again.network.decoder.conv_out.weight, trainer.network.decoder.conv_out.weight)


def _gradients(photos, run, batch, **changes):
    config = make_autoencoder_config(photos, run, batch_size=4, grad_clip=0.0, options={"disc_start": 9}, **changes)
    trainer = make_autoencoder_trainer(config)
    trainer.train_step(batch)
    return [parameter.grad.clone() for parameter in trainer.network.parameters()]


def test_ways_to_save_memory_and_time_keep_the_gradients(photos, tmp_path):
    high = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    plain, *others = (
        _gradients(photos, tmp_path / str(number), Batch(high, high), **changes)
        for number, changes in enumerate([{}, {"accumulate": 2}, {"recompute": True}, {"channels_last": True}])
    )
    largest = max(float(gradient.abs().max()) for gradient in plain)
    for other in others:
        for ours, reference in zip(other, plain, strict=True):
            assert float((ours - reference).abs().max()) <= 1e-5 * largest


def test_recomputed_blocks_keep_less_for_the_backward_pass(photos, tmp_path):
    def kept(**changes):
        trainer, sizes = make_autoencoder_trainer(make_autoencoder_config(photos, tmp_path, **changes)), {}

        def note(tensor):
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        high = torch.rand(2, 3, 64, 64)
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            loss = trainer.loss(Batch(high, high), 0)
        del loss
        return sum(sizes.values())

    assert kept(recompute=True) < 0.6 * kept()


def test_what_cannot_be_trained_is_refused(photos, tmp_path):
    with pytest.raises(ValueError, match="unknown objective 'rollout'; expected one of vqgan"):
        make_autoencoder_trainer(make_config(photos, tmp_path))
    with pytest.raises(ValueError, match="unknown objective 'vqgan'; expected one of rollout, official"):
        make_trainer(make_config(photos, tmp_path, objective="vqgan"))
    with pytest.raises(ValueError, match="patch must be a multiple of 2 for this model, got 33; give 32"):
        make_autoencoder_trainer(make_autoencoder_config(photos, tmp_path, patch=33))
    with pytest.raises(ValueError, match="unknown autoencoder 'vq-f5'; did you mean 'vq-f4'"):
        AutoencoderTrainer(make_autoencoder_config(photos, tmp_path, model="vq-f5"))
    with pytest.raises(ValueError, match="nano-x4 has no autoencoder; autoencoders: vq-f4, vq-f8-face, vq-f4-nano"):
        AutoencoderTrainer(make_autoencoder_config(photos, tmp_path, model="nano-x4"))
    config = make_autoencoder_config(photos, tmp_path, val=str(photos), val_lq=str(photos))
    with pytest.raises(ValueError, match="leave val_lq out"):
        make_autoencoder_trainer(config).run()


def test_a_models_name_stands_for_its_autoencoder():
    assert catalog.get_autoencoder("faceir") == catalog.get_autoencoder("vq-f8-face") == catalog.VQ_F8_FACE
    assert catalog.get_autoencoder("vq-f4-nano").factor == catalog.VQ_F4.factor


@pytest.mark.slow
def test_training_reduces_the_reconstruction_error(photos, tmp_path):
    config = make_autoencoder_config(photos, tmp_path, steps=101, lr=2e-3, warmup=5, options={"disc_start": 60})
    trainer = make_autoencoder_trainer(config)
    truth = torch.cat([to_tensor(pair.high[None]) for pair in originals(photos, 4, limit=2, side=48)])

    def error():
        return float((trainer.restore(truth) - truth).abs().mean())

    before = error()
    for _ in range(100):
        trainer.train_step(Batch(truth, truth))
    after = error()
    print(f"mean absolute error {before:.4f} before and {after:.4f} after 100 steps")
    assert after < 0.5 * before
