"""A process of a training, which torchrun starts with photos, run folder and steps; it saves its last gradients."""

import sys
from pathlib import Path

import torch
from training_runs import make_config, make_trainer


def main(photos, run, steps):
    torch.set_num_threads(1)
    config = make_config(photos, run, steps=int(steps), batch_size=4, rollout=0.5, lr=1e-4, val=photos, val_every=10)
    trainer = make_trainer(config)
    trainer.run()
    gradients = [parameter.grad for parameter in trainer.denoiser.parameters()]
    torch.save(gradients, Path(run) / f"gradients-{trainer.processes.rank}.pt")
    trainer.processes.leave()


if __name__ == "__main__":
    main(*sys.argv[1:])
