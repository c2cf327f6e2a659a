"""Seconds for one image, by part of the program.

    python benchmarks/speed.py
    python benchmarks/speed.py --model realsr-x4-v3 --random-weights --dtype float32 bfloat16

Denoise is the U-Net; noise and shift are prior_sample and posterior_step; the rest is everything around the chain.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import common
import numpy as np

from resshift_fast.measure import timing

if TYPE_CHECKING:
    from resshift_fast.pipeline import Pipeline

PARTS = ("encode", "condition", "denoise", "noise and shift", "decode")


def options() -> argparse.ArgumentParser:
    """The command line."""
    made = common.parser("Seconds for one image, by part: medians of several runs after a warm-up.")
    common.add_model_options(made, several_dtypes=True)
    common.option(made, "--size", type=common.positive, default=64, help="Side of the square input in pixels.")
    common.option(made, "--tile", type=common.positive, help="Tile side in input pixels. Default: the model's.")
    common.option(made, "--runs", type=common.positive, default=7, help="Timed runs.")
    common.option(made, "--warm-up", type=common.natural, default=1, help="Runs before them.")
    return made


class Stopwatch:
    """Adds up the time spent in chosen functions, by label."""

    def __init__(self, device: Any):
        self._device = device
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def on(self, places: list[tuple[Any, str, str]]) -> Iterator[None]:
        """Time functions while the block runs.

        Args:
            places: (owner, name, label) of every function; the owner is a module or an object.
        """
        before = [(owner, name, name in vars(owner), getattr(owner, name)) for owner, name, _ in places]
        for (owner, name, label), (*_, function) in zip(places, before, strict=True):
            setattr(owner, name, self._timed(function, label))
        try:
            yield
        finally:
            for owner, name, own, function in before:
                setattr(owner, name, function) if own else delattr(owner, name)

    def _timed(self, function: Any, label: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            taken, result = timing.seconds(lambda: function(*args, **kwargs), self._device)
            self.seconds[label] += taken
            return result

        return call


def measure_runs(pipe: Pipeline, args: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of every timed run: the parts, and "total"."""
    from resshift_fast import ops

    picture = common.photo(args.size, args.size)
    if pipe.spec.needs_mask:
        mask = np.zeros((args.size, args.size), dtype=bool)
        mask[args.size // 4 : -(args.size // 4) or None, args.size // 4 : -(args.size // 4) or None] = True
    else:
        mask = None
    places = [
        (pipe.first_stage, "encode", "encode"),
        (pipe.denoiser, "condition", "condition"),
        (pipe.denoiser, "denoise", "denoise"),
        (ops, "prior_sample", "noise and shift"),
        (ops, "posterior_step", "noise and shift"),
        (pipe.first_stage, "decode", "decode"),
    ]

    def restore() -> Any:
        return pipe(picture, mask, seed=args.seed, tile=args.tile, progress=False)

    for _ in range(args.warm_up):
        restore()
    runs: dict[str, list[float]] = defaultdict(list)
    for _ in range(args.runs):
        watch = Stopwatch(pipe.device)
        with watch.on(places):
            total, _ = timing.seconds(restore, pipe.device)
        for part in PARTS:
            runs[part].append(watch.seconds[part])
        runs["rest"].append(total - sum(watch.seconds.values()))
        runs["total"].append(total)
    return runs


def noise_seconds(pipe: Pipeline, args: argparse.Namespace) -> float:
    """Median seconds of all draws from the noise field for one image, without the rest of the chain."""
    import torch

    from resshift_fast.diffusion.noise import noise_field

    spec = pipe.spec
    side = int(-(-args.size // spec.pad_multiple) * spec.pad_multiple * spec.latent_per_input)
    seed = torch.tensor([args.seed], device=pipe.device)

    def draw() -> None:
        for step in range(spec.schedule.num_steps):
            noise_field(seed, torch.tensor(step, device=pipe.device), spec.first_stage.latent_channels, side, side)

    draw()
    return common.median([timing.seconds(draw, pipe.device)[0] for _ in range(args.runs)])


def rows_of(runs: dict[str, list[float]], dtype: str, steps: int, noise: float) -> list[dict[str, Any]]:
    """The table of one dtype."""
    total = common.median(runs["total"])
    names = {"denoise": f"denoise, {steps} steps", "rest": "rest: bicubic, tiles, pixels"}

    def row(part: str, values: list[float]) -> dict[str, Any]:
        middle = common.median(values)
        return {
            "dtype": dtype,
            "part": part,
            "median s": middle,
            "least s": min(values),
            "most s": max(values),
            "share %": 100 * middle / total,
        }

    rows = [row(names.get(part, part), runs[part]) for part in (*PARTS, "rest", "total")]
    per_step = [value / steps for value in runs["denoise"]]
    rows.insert(PARTS.index("denoise") + 1, row("  a step", per_step))
    of_which = {"dtype": dtype, "part": "  of which noise field", "median s": noise, "share %": 100 * noise / total}
    rows.insert(PARTS.index("noise and shift") + 2, of_which)
    return rows


def measure(args: argparse.Namespace) -> common.Report:
    """Time every dtype."""
    rows, summary = [], {}
    for dtype in args.dtype:
        pipe = common.load(args, dtype)
        runs = measure_runs(pipe, args)
        rows += rows_of(runs, dtype, pipe.spec.schedule.num_steps, noise_seconds(pipe, args))
        summary[dtype] = {
            "median seconds": common.median(runs["total"]),
            "standard deviation": common.spread(runs["total"]),
        }
    scale = pipe.spec.scale
    size = f"{args.size}×{args.size} → {args.size * scale}×{args.size * scale}"
    title = f"Speed of {args.model}, {size}, {common.weights_line(args)}, {args.runs} runs after {args.warm_up}"
    columns = {"dtype": "", "part": "", "median s": ".4f", "least s": ".4f", "most s": ".4f", "share %": ".1f"}
    notes = [f"Peak memory of this process: {common.peak_mib():.0f} MiB."]
    return common.Report(title, columns, rows, notes, summary | {"device": pipe.device})


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    return common.run(measure, options(), argv)


if __name__ == "__main__":
    sys.exit(main())
