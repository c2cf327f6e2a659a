"""A one-step student against its teacher on pairs of images: fidelity, and time measured in turns in one process.

    python benchmarks/one_step.py FOLDER... --student FILE

Every FOLDER is as in quality.py. The teacher is also cut to one step, which costs no training. Fails if the student is
further below its teacher than --within.
"""

from __future__ import annotations

import argparse
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import common
import numpy as np
import quality

from resshift_fast.measure import timing
from resshift_fast.training.metrics import psnr_y, ssim_y

if TYPE_CHECKING:
    from resshift_fast.pipeline import Pipeline


def options() -> argparse.ArgumentParser:
    """The command line."""
    made = common.parser("PSNR-Y, SSIM-Y and time of a one-step student and of its teacher on pairs of images.")
    made.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="Has lq/ and gt/ with equal names.")
    common.option(made, "--student", type=Path, required=True, metavar="FILE", help="Weights of the student.")
    common.option(made, "--teacher", type=Path, metavar="FILE", help="Weights. Default: the published ones.")
    common.option(made, "--model", default="nano-x4", help="The teacher, a model of the catalogue.")
    common.option(made, "--autoencoder", type=Path, metavar="FILE", help="Weights. Default: the published ones.")
    common.option(made, "--device", help="cpu, cuda, ... Default: cuda if available, else cpu.")
    common.option(made, "--dtype", choices=common.DTYPES, default="float32", help="What the networks run in.")
    common.option(made, "--threads", type=common.positive, help="torch's threads on the CPU. Default: torch's choice.")
    common.option(made, "--seed", type=int, default=0, help="Seed of the noise.")
    common.option(made, "--limit", type=common.positive, help="Number of images of each folder. Default: all.")
    common.option(made, "--rounds", type=common.positive, default=3, help="Timed runs of each image and network.")
    common.option(made, "--within", type=float, default=0.2, help="Largest loss of PSNR-Y against the teacher in dB.")
    return made


def pipelines(args: argparse.Namespace) -> dict[str, Pipeline]:
    """The teacher, the teacher cut to one step, and the student."""
    import torch

    from resshift_fast.models import catalog
    from resshift_fast.pipeline import Pipeline
    from resshift_fast.training import teachers

    if args.threads:
        torch.set_num_threads(args.threads)
    teacher = teachers.file_of(args.teacher, catalog.get(args.model))
    named = {
        "teacher": (args.model, teacher),
        "teacher, one step": (args.model + catalog.ONE_STEP, teacher),
        "student": (args.model + catalog.ONE_STEP, args.student),
    }
    shared = {"autoencoder": args.autoencoder, "device": args.device, "dtype": args.dtype}
    return {name: Pipeline.from_pretrained(model, weights=path, **shared) for name, (model, path) in named.items()}


def measure_folder(
    pipes: dict[str, Pipeline], folder: Path, args: argparse.Namespace
) -> dict[str, dict[str, list[float]]]:
    """PSNR and SSIM of every image, and all times, of each network."""
    found: dict[str, dict[str, list[float]]] = {
        name: {"psnr": [], "ssim": [], "seconds": [], "cpu": []} for name in pipes
    }
    for low, high in quality.pairs(folder, args.limit):
        lq, gt = quality.read_8_bit(low), quality.read_8_bit(high)
        for number in range(args.rounds + 1):
            for name, pipe in pipes.items():
                run = partial(pipe, lq, seed=args.seed, progress=False)
                began = time.process_time()
                taken, result = timing.seconds(run, pipe.device)
                if number:
                    found[name]["seconds"].append(taken)
                    found[name]["cpu"].append(time.process_time() - began)
                else:  # the first run warms up
                    found[name]["psnr"].append(psnr_y(result, gt))
                    found[name]["ssim"].append(ssim_y(result, gt))
    return found


def rows_of(folder: Path, found: dict[str, dict[str, list[float]]], pipes: dict[str, Pipeline]) -> list[dict[str, Any]]:
    """A row of each network."""
    psnr = float(np.mean(found["teacher"]["psnr"]))
    wall, cpu = (common.median(found["teacher"][name]) for name in ("seconds", "cpu"))
    least = min(found["teacher"]["cpu"])
    return [
        {
            "folder": folder.resolve().name,
            "network": name,
            "evaluations": pipes[name].spec.schedule.num_steps,
            "PSNR-Y": float(np.mean(values["psnr"])),
            "SSIM-Y": float(np.mean(values["ssim"])),
            "dB to teacher": float(np.mean(values["psnr"])) - psnr,
            "seconds": common.median(values["seconds"]),
            "of its time": common.median(values["seconds"]) / wall,
            "CPU s": common.median(values["cpu"]),
            "of its CPU s": common.median(values["cpu"]) / cpu,
            "least CPU s": min(values["cpu"]),
            "of its least": min(values["cpu"]) / least,
        }
        for name, values in found.items()
    ]


def measure(args: argparse.Namespace) -> common.Report:
    """Restore every pair with every network."""
    pipes = pipelines(args)
    rows = [row for folder in args.folders for row in rows_of(folder, measure_folder(pipes, folder, args), pipes)]
    columns = {
        "folder": "",
        "network": "",
        "evaluations": "d",
        "PSNR-Y": ".3f",
        "SSIM-Y": ".4f",
        "dB to teacher": "+.3f",
        "seconds": ".4f",
        "of its time": ".3f",
        "CPU s": ".4f",
        "of its CPU s": ".3f",
        "least CPU s": ".4f",
        "of its least": ".3f",
    }
    worst = min(row["dB to teacher"] for row in rows if row["network"] == "student")
    problem = (
        f"the student is {-worst:.3f} dB below its teacher, more than {args.within}" if -worst > args.within else ""
    )
    notes = [
        f"Seconds are medians of {args.rounds} runs of each image after one, of all networks in turns.",
        "Least CPU s, of one run of all, are those that other work on the machine changed the least.",
    ]
    title = f"One step of {args.model}, student {args.student}, {args.dtype}, seed {args.seed}"
    return common.Report(title, columns, rows, notes, {"device": pipes["student"].device, "worst_db": worst}, problem)


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    return common.run(measure, options(), argv)


if __name__ == "__main__":
    sys.exit(main())
