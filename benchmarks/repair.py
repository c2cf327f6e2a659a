"""What a model of scale 1 gains on photos that were degraded in one way or by a mixture, and takes from clean ones.

    python benchmarks/repair.py PHOTOS --config examples/photo-x1.yaml

PHOTOS are clean. Each is degraded in every way, from seeds that no training uses, and restored. The mixture is that of
the recipe, without its clean share.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import common
import numpy as np

from resshift_fast.images.search import find_images
from resshift_fast.measure.end_to_end import psnr
from resshift_fast.models.official_config import load as load_yaml
from resshift_fast.training import recipe
from resshift_fast.training.degradations import Mixture, add_noise, gaussian_blur, jpeg
from resshift_fast.training.degradations.scans import marked
from resshift_fast.training.metrics import psnr_y
from resshift_fast.training.photos import read_rgb
from resshift_fast.training.validation import changed

if TYPE_CHECKING:
    from resshift_fast.pipeline import Pipeline

Degrade = Callable[[np.ndarray, np.random.Generator], np.ndarray]
CLEAN, MIXTURE = "clean", "mixture"
SEED = 20261130  # of the degradations


def options() -> argparse.ArgumentParser:
    """The command line."""
    made = common.parser("PSNR of a model of scale 1 on degraded photos, against that of its input.")
    made.add_argument("photos", type=Path, metavar="PHOTOS", help="Folder of clean photos.")
    common.add_model_options(made, model="photo-x1")
    common.option(
        made, "--config", type=Path, metavar="FILE", help="Recipe with the mixture. Default: the trainer's mixture."
    )
    common.option(made, "--limit", type=common.positive, help="Number of photos. Default: all.")
    common.option(made, "--times", type=common.positive, default=4, help="Draws of each random degradation a photo.")
    return made


def degradations(mixture: Mixture) -> dict[str, Degrade]:
    """What is done to a clean photo, by name."""
    mixed = replace(mixture, clean=0.0)

    found: dict[str, Degrade] = {CLEAN: lambda image, rng: image}
    found |= {f"JPEG {quality}": _compressed(quality) for quality in (30, 50, 70, 90)}
    found |= {f"noise {sigma}": _noisy(sigma) for sigma in (5, 15, 25)}
    found["blur 0.8"] = lambda image, rng: gaussian_blur(image, 0.8)
    found["scan"] = lambda image, rng: jpeg(add_noise(marked(image, rng, 10), rng, 6.0, gray=True), 75)
    found[MIXTURE] = lambda image, rng: changed(mixed, image, 1, rng)
    return found


def _compressed(quality: int) -> Degrade:
    return lambda image, rng: jpeg(image, quality)


def _noisy(sigma: float) -> Degrade:
    return lambda image, rng: add_noise(image, rng, sigma)


def figures(
    pipe: Pipeline, photos: list[np.ndarray], degrade: Degrade, times: int, seed: int
) -> Iterator[tuple[float, ...]]:
    """(PSNR-Y of the input, of the result, PSNR of both) of each photo and draw."""
    for number, photo in enumerate(photos):
        for time in range(times):
            low = degrade(photo, np.random.default_rng([SEED, number, time]))
            result = pipe(low, seed=seed, progress=False)
            yield (
                psnr_y(low, photo),
                psnr_y(result, photo),
                psnr(low / 255, photo / 255),
                psnr(result / 255, photo / 255),
            )


def measure(args: argparse.Namespace) -> common.Report:
    """Degrade, restore and compare."""
    pipe = common.load(args)
    if pipe.spec.scale != 1 or pipe.spec.needs_mask:
        raise ValueError(f"{pipe.spec.name} is no model that restores without enlarging; name one of scale 1")
    settings = {} if args.config is None else recipe.read(load_yaml(args.config), str(args.config))
    photos = [read_rgb(str(path)) for path in find_images([args.photos])[: args.limit]]
    rows = []
    for name, degrade in degradations(settings.get("mixture", Mixture())).items():
        repeated = 1 if name in (CLEAN, "blur 0.8") or name.startswith("JPEG") else args.times
        before, after, before_rgb, after_rgb = np.mean(
            list(figures(pipe, photos, degrade, repeated, args.seed)), axis=0
        ).tolist()
        # A clean input has no error, over which nothing gains.
        gains = {} if name == CLEAN else {"gain-Y dB": after - before, "gain dB": after_rgb - before_rgb}
        rows.append({"input": name, "PSNR-Y": after, "PSNR": after_rgb, "of the input": before_rgb, **gains})
    columns = {
        "input": "",
        "of the input": ".2f",
        "PSNR": ".2f",
        "gain dB": "+.2f",
        "PSNR-Y": ".2f",
        "gain-Y dB": "+.2f",
    }
    notes = [f"Means over {len(photos)} photos; PSNR is that of RGB, PSNR-Y that of the luma."]
    summary = {row["input"]: row for row in rows} | {"device": pipe.device}
    return common.Report(f"Repair by {args.model}, {common.weights_line(args)}", columns, rows, notes, summary)


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    return common.run(measure, options(), argv)


if __name__ == "__main__":
    sys.exit(main())
