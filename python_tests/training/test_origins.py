"""What a resumed training says of photos, networks and models that are not those of its checkpoint."""

import os
import shutil
from dataclasses import replace

import pytest
import torch
from torch import nn
from training_runs import (
    make_autoencoder_config,
    make_autoencoder_trainer,
    make_config,
    make_photos,
    make_spec,
    make_trainer,
    read_log,
)

from resshift_fast.diffusion.schedule import Schedule
from resshift_fast.models.autoencoder import AutoencoderConfig
from resshift_fast.training import origins
from resshift_fast.training.autoencoder import AutoencoderTrainer
from resshift_fast.training.interfaces import Batch
from resshift_fast.training.metrics import NetworkMetric
from resshift_fast.training.photos import list_photos


def _resumed(config, capsys, **options):
    """What is said when a run continues, and the notes in its log."""
    capsys.readouterr()
    trainer = make_trainer(config, **options)
    trainer.run(stop_after=0)
    return capsys.readouterr().err, [row["note"] for row in read_log(trainer.run_folder.folder) if row["note"]]


def _fingerprint(*sources):
    return origins.of_photos(sources, list_photos(sources))


def test_changed_training_photos_are_noted_once(tmp_path, capsys):
    photos = tmp_path / "photos"
    photos.mkdir()
    config = make_config(make_photos(photos), tmp_path / "run")
    make_trainer(config).run(stop_after=1)
    note = "the training photos have changed"
    said, notes = _resumed(config, capsys)
    assert "at step 1\n" in said and not notes
    shutil.copy(photos / "0.png", photos / "2.png")
    said, notes = _resumed(config, capsys)
    assert f"last.pt at step 1; {note}\n" in said and notes == [note]
    said, notes = _resumed(config, capsys)
    assert note not in said and notes == [note]
    moved = photos.rename(tmp_path / "elsewhere")
    said, notes = _resumed(replace(config, data=str(moved)), capsys)
    assert note not in said and notes == [note]


def test_every_change_of_a_set_of_photos_has_another_fingerprint(tmp_path):
    folder = tmp_path / "photos"
    (folder / "a").mkdir(parents=True)
    sizes = {"a/x.png": 5, "b.png": 6, "c.png": 7}
    for name, size in sizes.items():
        (folder / name).write_bytes(bytes(size))
    first = _fingerprint(folder)
    listed = tmp_path / "list.txt"
    listed.write_text("photos/b.png\nphotos/c.png\nphotos/none.png\n")
    found = [first, _fingerprint(folder / "a", folder / "b.png"), _fingerprint(listed)]
    listed.write_text("photos/c.png\nphotos/b.png\nphotos/none.png\n")
    found.append(_fingerprint(listed))
    (folder / "none.png").write_bytes(b"")
    found += [_fingerprint(listed), _fingerprint(folder)]
    os.rename(folder / "none.png", folder / "d.png")
    found.append(_fingerprint(folder))
    (folder / "c.png").write_bytes(bytes(8))
    found.append(_fingerprint(folder))
    assert len(set(found)) == len(found)
    (folder / "c.png").write_bytes(bytes(7))
    (folder / "d.png").unlink()
    os.utime(folder / "b.png", (0, 0))
    shutil.copytree(folder, tmp_path / "copy")
    assert _fingerprint(folder) == first == _fingerprint(tmp_path / "copy")


def test_fingerprints_of_weights_are_those_of_names_and_values():
    layer = nn.Conv2d(3, 2, 2).half()
    same = nn.Conv2d(3, 2, 2).half().to(memory_format=torch.channels_last)
    same.load_state_dict(layer.state_dict())
    assert origins.of_weights(same) == origins.of_weights(layer)
    assert origins.of_weights(nn.Sequential(layer)) != origins.of_weights(layer)
    assert origins.of_weights(nn.Conv2d(3, 2, 2)) != origins.of_weights(layer)
    with torch.no_grad():
        same.bias[1] += 1
    assert origins.of_weights(same) != origins.of_weights(layer)


class _Fixed:
    """Batches of one image."""

    def batch(self, step, indices):
        return Batch(torch.zeros(len(indices), 3, 64, 64), torch.zeros(len(indices), 3, 16, 16))


class _Scaled(nn.Module):
    """A network with one weight."""

    def __init__(self, value):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(value))

    def forward(self, image, reference):
        return self.weight * (image - reference).mean()


def test_changed_networks_are_named(photos, tmp_path, capsys):
    def run(autoencoder, metric):
        metrics = {"mine": NetworkMetric(_Scaled(metric), torch.device("cpu"))}
        trainer = make_trainer(config, data=_Fixed(), metrics=metrics)
        trainer.frozen["autoencoder"] = _Scaled(autoencoder)
        trainer.run(stop_after=0)
        return capsys.readouterr().err

    config = make_config(photos, tmp_path, val=str(photos), val_limit=1)
    run(1.0, 1.0)
    for autoencoder, metric, expected in (
        (1.0, 1.0, ""),
        (2.0, 1.0, "; the weights of the autoencoder have changed"),
        (2.0, 3.0, "; the weights of the metric mine have changed"),
    ):
        assert run(autoencoder, metric) == f"resumed {tmp_path / 'last.pt'} at step 0{expected}\n"


def test_a_trainer_knows_the_weights_of_its_autoencoder_alone(photos, tmp_path):
    trainer = make_trainer(make_config(photos, tmp_path / "a"))
    assert not trainer.frozen  # SpaceToDepth has none


def test_another_model_is_refused(photos, tmp_path):
    config = make_config(photos, tmp_path)
    make_trainer(config).run(stop_after=1)
    for changes, message in (
        ({"schedule": Schedule(steps=3, kappa=0.4)}, "schedule.kappa of the model was 0.3 and is now 0.4; give the mo"),
        ({"prediction_type": "x0"}, "prediction_type of the model was residual and is now x0"),
    ):
        with pytest.raises(ValueError, match=f"cannot resume {tmp_path}: {message}"):
            make_trainer(config, make_spec(**changes)).run()
    config = make_autoencoder_config(photos, tmp_path / "vq")
    make_autoencoder_trainer(config).run(stop_after=1)
    sizes = AutoencoderConfig(channels=32, channel_mult=(1, 2), num_res_blocks=(1, 1), latent_channels=3)
    with pytest.raises(ValueError, match=r"config.channel_mult of the model was \(1, 1\) and is now \(1, 2\)"):
        AutoencoderTrainer(config, sizes).run()
