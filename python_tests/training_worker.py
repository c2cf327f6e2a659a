"""A process of a training, which torchrun starts with its kind, photos, run folder and steps.

It saves the last gradients of its network, and then those of the auxiliary networks.
"""

import sys
from pathlib import Path

import torch
from training_runs import make_autoencoder_config, make_autoencoder_trainer, make_config, make_trainer


def main(kind, photos, run, steps):
    torch.set_num_threads(1)
    common = {"steps": int(steps), "batch_size": 4, "lr": 1e-4, "val": photos, "val_every": 10}
    if kind == "denoiser":
        trainer = make_trainer(make_config(photos, run, rollout=0.5, **common))
    else:
        trainer = make_autoencoder_trainer(make_autoencoder_config(photos, run, **common))
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
