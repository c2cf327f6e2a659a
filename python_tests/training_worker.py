"""A process of a training, which torchrun starts with its kind, photos, run folder and steps.

It saves the last gradients of its network, and then those of the auxiliary networks.
"""

import sys
from pathlib import Path

import torch
from training_runs import make_autoencoder_config, make_autoencoder_trainer, make_config, make_trainer

from resshift_fast.training.autoencoder import AutoencoderTrainer


class ExactTrainer(AutoencoderTrainer):
    """Trains in float64.

    In float32, rounding puts a value on the other side of a LeakyReLU in the fourth step, and the gradients of a
    channel of the discriminator differ from then on, and of all below it.
    """

    def _batches(self, source):
        for batch in super()._batches(source):
            yield type(batch)(batch.high.double(), batch.low.double())

    def restore(self, low, mask=None):
        return super().restore(low.double(), mask).float()


def main(kind, photos, run, steps):
    torch.set_num_threads(1)
    common = {"steps": int(steps), "lr": 1e-4, "val": photos, "val_every": 10, "val_side": 64}
    if kind == "denoiser":
        trainer = make_trainer(make_config(photos, run, rollout=0.5, batch_size=4, **common))
    else:
        torch.set_default_dtype(torch.float64)
        config = make_autoencoder_config(photos, run, batch_size=2, **common | {"patch": 24})
        trainer = make_autoencoder_trainer(config, ExactTrainer)
    trainer.run()
    parameters = [
        *trainer.network.parameters(),
        *getattr(trainer.objective, "networks", torch.nn.Module()).parameters(),
    ]
    gradients = [parameter.grad for parameter in parameters]
    torch.save(gradients, Path(run) / f"gradients-{trainer.processes.rank}.pt")
    trainer.processes.leave()


if __name__ == "__main__":
    main(*sys.argv[1:])
