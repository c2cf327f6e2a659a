"""Seconds of a training step: plain PyTorch against the backends chosen here, in turns.

    python benchmarks/training.py
    python benchmarks/training.py --batch 4 --patch 64 --precision bfloat16

Both train from the same weights with the same noise on a batch of random images. If the losses of the first steps do
not agree, no speed-up is shown.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from contextlib import nullcontext
from typing import TYPE_CHECKING

import common

from resshift_fast.measure import timing

if TYPE_CHECKING:
    from resshift_fast.training.trainer import Trainer

PROVIDERS = ("reference", "ours")
MOST_APART = {"float32": 1e-4, "bfloat16": 2e-2}  # relative difference of the losses of the first step
COLUMNS = {"provider": "", "median s": ".4f", "least s": ".4f", "most s": ".4f", "speed-up": ".2f", "first loss": ".6f"}


def options() -> argparse.ArgumentParser:
    """The command line."""
    made = common.parser("Seconds of a training step by plain PyTorch and by the backends chosen here.")
    common.option(made, "--model", default="nano-x4", help="A model of the catalogue without an autoencoder.")
    common.option(made, "--batch", type=common.positive, default=8, help="Patches per step.")
    common.option(made, "--patch", type=common.positive, default=128, help="Side of a high-quality patch in pixels.")
    common.option(made, "--precision", choices=list(MOST_APART), default="float32", help="As in training.")
    common.option(made, "--device", default="cpu", help="cpu, cuda, ...")
    common.option(made, "--threads", type=common.positive, help="torch's threads. Default: torch's choice.")
    common.option(made, "--runs", type=common.positive, default=9, help="Timed steps of each.")
    return made


def choice(provider: str):
    """The context in which a provider's trainer is built and runs."""
    from resshift_fast import use_backend

    return use_backend("reference") if provider == "reference" else nullcontext()


def build(provider: str, args: argparse.Namespace, folder: str) -> Trainer:
    """A trainer, from the weights that its seed gives."""
    from resshift_fast.training.config import TrainConfig
    from resshift_fast.training.trainer import Trainer

    config = TrainConfig(
        data=folder,
        run=f"{folder}/{provider}",
        model=args.model,
        batch_size=args.batch,
        patch=args.patch,
        precision=args.precision,
        device=args.device,
    )
    with choice(provider):
        return Trainer(config)


def measure(args: argparse.Namespace) -> common.Report:
    """Time the steps."""
    import torch

    from resshift_fast.training.interfaces import Batch

    if args.threads:
        torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        trainers = {provider: build(provider, args, folder) for provider in PROVIDERS}
    device, scale = trainers["ours"].device, trainers["ours"].spec.scale
    high = torch.rand(args.batch, 3, args.patch, args.patch, generator=torch.Generator().manual_seed(0)) * 2 - 1
    low = torch.nn.functional.avg_pool2d(high, scale)
    batch = Batch(high, low).to(device)

    seconds: dict[str, list[float]] = {provider: [] for provider in PROVIDERS}
    first: dict[str, float] = {}
    for run in range(args.runs + 1):  # the first one warms up
        for provider in PROVIDERS[:: 1 if run % 2 else -1]:
            with choice(provider):
                taken, (loss, _) = timing.seconds(lambda p=provider: trainers[p].train_step(batch), device)
            first.setdefault(provider, loss)
            if run:
                seconds[provider].append(taken)
    agree = abs(first["ours"] - first["reference"]) <= MOST_APART[args.precision] * abs(first["reference"])
    plain = common.median(seconds["reference"])
    rows = [
        {
            "provider": provider,
            "median s": common.median(values),
            "least s": min(values),
            "most s": max(values),
            "speed-up": plain / common.median(values) if agree else None,
            "first loss": first[provider],
        }
        for provider, values in seconds.items()
    ]
    title = f"A training step of {args.model}, {args.batch} patches of {args.patch}², {args.precision}"
    problem = "" if agree else f"the first losses differ: {first['ours']:.6g}, expected {first['reference']:.6g}"
    return common.Report(title, COLUMNS, rows, summary={"device": device}, problem=problem)


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    return common.run(measure, options(), argv)


if __name__ == "__main__":
    sys.exit(main())
