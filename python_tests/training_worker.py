"""A process of trainings, one after the other, which torchrun starts with photos, a folder, steps and kinds.

It saves the last gradients of each network, and then those of the auxiliary networks, in a folder of the kind's name.
"""

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from training_runs import TINY, make_autoencoder_config, make_autoencoder_trainer, make_config, make_trainer

from resshift_fast.diffusion.schedule import Schedule
from resshift_fast.models import catalog
from resshift_fast.models.swin_unet import SwinUNet
from resshift_fast.training.autoencoder import AutoencoderTrainer
from resshift_fast.training.distributed import Processes
from resshift_fast.training.trainer import Trainer
from resshift_fast.weights.checkpoints import save_safetensors


class Exact:
    """Trains in float64.

    In float32, rounding is amplified from step to step, and in the fourth puts a value on the other side of a LeakyReLU
    in the discriminator, after which the gradients of a channel differ, and of all below it.
    """

    def _batches(self, source):
        for batch in super()._batches(source):
            yield type(batch)(batch.high.double(), batch.low.double())

    def restore(self, low, mask=None):
        return super().restore(low.double(), mask).float()


class ExactTrainer(Exact, Trainer):
    """Trains a denoiser in float64."""


class ExactAutoencoderTrainer(Exact, AutoencoderTrainer):
    """Trains an autoencoder in float64."""


def make_student_trainer(photos, run, **changes):
    """Of a student of a random teacher, on patches of 16 pixels."""
    sizes = replace(TINY, image_size=4, attention_resolutions=(4,), swin_depth=1, lq_size=4)
    schedule = Schedule(steps=3, kappa=0.3)
    spec = replace(catalog.get("nano-x4"), denoiser=sizes, schedule=schedule, pad_multiple=4, weights=None)
    torch.manual_seed(1)
    teacher = SwinUNet(sizes)
    torch.nn.init.normal_(teacher.out[2].weight, std=0.02)  # it is zero in a new network
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "teacher.safetensors"
        save_safetensors(teacher, path, {})
        options = {"teacher": str(path), "fake_steps": 1, "student_timesteps": 2}
        config = make_config(photos, run, patch=16, objective="distill", objective_options=options, **changes)
        return ExactTrainer(config, spec)


def make(kind, photos, run, steps):
    """The trainer of a kind."""
    common = {"steps": steps, "lr": 1e-4, "val": photos, "val_every": 10, "val_side": 32}
    if kind == "denoiser":
        config = make_config(photos, run, rollout=0.5, batch_size=4, patch=32, **common)
        return make_trainer(config, kind=ExactTrainer)
    if kind == "student":
        return make_student_trainer(photos, run, batch_size=2, **common)
    config = make_autoencoder_config(photos, run, batch_size=2, **common | {"patch": 24})
    return make_autoencoder_trainer(config, ExactAutoencoderTrainer)


def main(photos, folder, steps, *kinds):
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    joined = Processes("cpu")
    for kind in kinds:
        run = Path(folder, kind)
        trainer = make(kind, photos, run, int(steps))
        trainer.run()
        auxiliary = getattr(trainer.objective, "networks", torch.nn.Module())
        gradients = [parameter.grad for network in (trainer.network, auxiliary) for parameter in network.parameters()]
        torch.save(gradients, run / f"gradients-{joined.rank}.pt")
    joined.leave()


if __name__ == "__main__":
    main(*sys.argv[1:])
