"""Seconds and peak memory of a training step: plain PyTorch against the backends chosen here.

    python benchmarks/training.py
    python benchmarks/training.py --model realsr-x4-v3 --batch 1 --patch 256 --recompute
    python benchmarks/training.py --batch 4 --patch 64 --precision bfloat16
    python benchmarks/training.py --photos 100000

Both train from the same random weights with the same noise on a batch of random images, in turns for the time and each
in a process of its own for the memory. If the losses of the first steps do not agree, no speed-up is shown.

With --photos, the time until the first step from that many photos is measured instead, the start of Python included.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import common

from resshift_fast.cli import let_threads_sleep
from resshift_fast.measure import memory, timing

if TYPE_CHECKING:
    from resshift_fast.training.interfaces import Batch
    from resshift_fast.training.trainer import Trainer

PROVIDERS = ("reference", "ours")
# Relative difference of the losses of the first step.
MOST_APART = {"float32": 1e-4, "bfloat16": 2e-2, "float16": 5e-3}
COLUMNS = {
    "provider": "",
    "median s": ".4f",
    "least s": ".4f",
    "most s": ".4f",
    "CPU s": ".3f",
    "steps/s": ".3f",
    "speed-up": ".2f",
    "by CPU s": ".2f",
    "peak MiB": ".0f",
    "first loss": ".6f",
}
STEPS_OF_CHILD = 2  # the optimizer's state exists from the first one on
STARTUP_COLUMNS = {"photos": "d", "CPU s": ".1f", "wall s": ".1f", "peak MiB": ".0f"}
DIFFERENT = 20  # photos; the others are links to them

Times = dict[str, list[tuple[float, float]]]


def options() -> argparse.ArgumentParser:
    """The command line."""
    made = common.parser("Seconds and memory of a training step by plain PyTorch and by the backends chosen here.")
    common.option(made, "--model", default="nano-x4", help="A model of the catalogue without a mask.")
    common.option(made, "--batch", type=common.positive, default=8, help="Patches per step.")
    common.option(
        made, "--patch", type=common.positive, help="Side of a high-quality patch in pixels. Default: as in training."
    )
    common.option(made, "--precision", choices=list(MOST_APART), default="float32", help="As in training.")
    common.option(made, "--recompute", action="store_true", help="Compute activations again in the backward pass.")
    common.option(made, "--accumulate", type=common.positive, default=1, help="Parts that a batch is computed in.")
    common.option(made, "--device", default="cpu", help="cpu, cuda, ...")
    common.option(made, "--threads", type=common.positive, help="torch's threads. Default: torch's choice.")
    common.option(made, "--runs", type=common.positive, default=9, help="Timed steps of each.")
    common.option(made, "--photos", type=common.positive, help="Measure the start with so many photos of 500×400.")
    common.option(made, "--child", choices=(*PROVIDERS, "startup"), help=argparse.SUPPRESS)
    common.option(made, "--folder", help=argparse.SUPPRESS)
    return made


def choice(provider: str):
    """The context in which a provider's trainer is built and runs."""
    from resshift_fast import use_backend

    return use_backend("reference") if provider == "reference" else nullcontext()


def build(provider: str, args: argparse.Namespace, folder: str) -> Trainer:
    """A trainer, from the weights that its seed gives, also in the autoencoder."""
    import torch

    from resshift_fast.models import catalog
    from resshift_fast.training.config import TrainConfig
    from resshift_fast.training.trainer import Trainer

    config = TrainConfig(
        data=folder,
        run=f"{folder}/{provider}",
        model=args.model,
        batch_size=args.batch,
        patch=args.patch,
        precision=args.precision,
        recompute=args.recompute,
        accumulate=args.accumulate,
        device=args.device,
    )
    spec = catalog.get(args.model)
    torch.manual_seed(config.seed)
    with choice(provider):
        denoiser, first_stage = catalog.build_denoiser(spec), catalog.build_first_stage(spec)
        for parameter in denoiser.parameters():  # a new network predicts zero, in which all providers agree
            parameter.data += 0.02 * torch.randn(parameter.shape)
        return Trainer(config, spec, denoiser=denoiser, first_stage=first_stage)


def random_batch(trainer: Trainer) -> Batch:
    """Images of random values on the trainer's device."""
    import torch

    from resshift_fast.training.interfaces import Batch

    size, patch = trainer.config.batch_size, trainer.config.patch
    assert patch is not None
    high = torch.rand(size, 3, patch, patch, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return Batch(high, torch.nn.functional.avg_pool2d(high, trainer.spec.scale)).to(trainer.device)


def child(args: argparse.Namespace) -> dict[str, float]:
    """Peak memory of some steps of one provider in this process, in MiB."""
    _set_threads(args)
    with tempfile.TemporaryDirectory() as folder:
        trainer = build(args.child, args, folder)
    batch = random_batch(trainer)
    with choice(args.child):
        for _ in range(STEPS_OF_CHILD):
            trainer.train_step(batch)
    return {"peak MiB": memory.peak_bytes(trainer.device) / common.MIB}


def make_photos(folder: Path, count: int) -> None:
    """Write JPEG files of 500×400 pixels, all but the first `DIFFERENT` as hard links."""
    import numpy as np
    from PIL import Image

    for number in range(min(count, DIFFERENT)):
        pixels = np.random.default_rng(number).integers(0, 256, (50, 63, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((500, 400), Image.Resampling.BICUBIC).save(folder / f"{number:07d}.jpg")
    for number in range(DIFFERENT, count):
        (folder / f"{number:07d}.jpg").hardlink_to(folder / f"{number % DIFFERENT:07d}.jpg")


def startup_child(args: argparse.Namespace) -> dict[str, float]:
    """Train from the photos in `args.folder`: CPU seconds of this process until the first step, peak after five."""
    from resshift_fast.training.config import TrainConfig
    from resshift_fast.training.trainer import Trainer

    _set_threads(args)
    with tempfile.TemporaryDirectory() as run:
        trainer = Trainer(
            TrainConfig(data=args.folder, run=run, model=args.model, batch_size=args.batch, patch=args.patch)
        )
        trainer.run(stop_after=1)
        spent = os.times()
        trainer.run(stop_after=4)
    return {"CPU s": spent.user + spent.system, "peak MiB": memory.peak_bytes(trainer.device) / common.MIB}


def measure_startup(args: argparse.Namespace, argv: list[str]) -> common.Report:
    """Make the photos, and train from them in a new process."""
    with tempfile.TemporaryDirectory() as folder:
        make_photos(Path(folder), args.photos)
        began = time.monotonic()
        row = {"photos": args.photos, **in_child("startup", [*argv, "--folder", folder])}
        row["wall s"] = time.monotonic() - began
    notes = ["CPU seconds until the end of the first step, wall seconds and peak of the process after five steps."]
    title = f"Start of a training of {args.model} from photos of 500×400"
    return common.Report(title, STARTUP_COLUMNS, [row], notes)


def in_child(name: str, argv: list[str]) -> dict[str, float]:
    """Run `child` or `startup_child` in a new process with the given arguments.

    Raises:
        OSError: if it fails; with the last line that it printed.
    """
    command = [sys.executable, str(Path(__file__).resolve()), *argv, "--child", name]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise OSError(f"{name} failed with code {done.returncode}: {said[-1] if said else 'killed'}")
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def time_steps(args: argparse.Namespace) -> tuple[Times, dict[str, float], Trainer]:
    """Time the steps of both, in turns.

    Returns:
        (wall and CPU seconds of each step by provider, loss of the first step by provider, one of the trainers).
    """
    with tempfile.TemporaryDirectory() as folder:
        trainers = {provider: build(provider, args, folder) for provider in PROVIDERS}
    device = trainers["ours"].device
    batch = random_batch(trainers["ours"])
    seconds: Times = {provider: [] for provider in PROVIDERS}
    first: dict[str, float] = {}
    for run in range(args.runs + 1):  # the first one warms up
        for provider in PROVIDERS[:: 1 if run % 2 else -1]:
            began = time.process_time()
            with choice(provider):
                taken, (loss, _) = timing.seconds(lambda p=provider: trainers[p].train_step(batch), device)
            first.setdefault(provider, loss)
            if run:
                seconds[provider].append((taken, time.process_time() - began))
    return seconds, first, trainers["ours"]


def measure(args: argparse.Namespace, argv: list[str]) -> common.Report:
    """Time the steps, then measure the memory."""
    _set_threads(args)
    seconds, first, trainer = time_steps(args)
    device, patch = trainer.device, trainer.config.patch
    del trainer  # the others need its memory
    agree = abs(first["ours"] - first["reference"]) <= MOST_APART[args.precision] * abs(first["reference"])
    medians = {
        provider: [common.median(values) for values in zip(*steps, strict=True)] for provider, steps in seconds.items()
    }
    rows: list[dict[str, Any]] = []
    for provider, (wall, cpu) in medians.items():
        taken = [one for one, _ in seconds[provider]]
        plain_wall, plain_cpu = medians["reference"]
        rows.append(
            {
                "provider": provider,
                "median s": wall,
                "least s": min(taken),
                "most s": max(taken),
                "CPU s": cpu,
                "steps/s": 1.0 / wall,
                "speed-up": plain_wall / wall if agree else None,
                "by CPU s": plain_cpu / cpu if agree else None,
                "peak MiB": in_child(provider, argv)["peak MiB"],
                "first loss": first[provider],
            }
        )
    title = f"A training step of {args.model}, {args.batch} patches of {patch}², {args.precision}"
    problem = "" if agree else f"the first losses differ: {first['ours']:.6g}, expected {first['reference']:.6g}"
    notes = [
        f"Peaks of whole processes after {STEPS_OF_CHILD} steps; on a GPU, of the memory that torch allocated.",
        "CPU s are those of all threads, which other work on the machine changes less than wall time.",
    ]
    return common.Report(title, COLUMNS, rows, notes, summary={"device": device}, problem=problem)


def _set_threads(args: argparse.Namespace) -> None:
    import torch

    if args.threads:
        torch.set_num_threads(args.threads)


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    let_threads_sleep()
    argv = sys.argv[1:] if argv is None else argv
    args = options().parse_args(argv)
    if args.child:
        print(json.dumps(startup_child(args) if args.child == "startup" else child(args)))
        return 0
    return common.run(lambda args: (measure_startup if args.photos else measure)(args, argv), options(), argv)


if __name__ == "__main__":
    sys.exit(main())
