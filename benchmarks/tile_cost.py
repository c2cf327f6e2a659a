"""The cost model of tiles against measured times, on a CPU.

    python benchmarks/tile_cost.py
    python benchmarks/tile_cost.py --model realsr-x4-v3 --random-weights --sides 64 128 192
    python benchmarks/tile_cost.py --model realsr-x4-v3 --random-weights --sides 64 128 --photo 300 200

The model, resshift_fast/models/cost.py, tells which tiles a photo is divided into where none are asked for. Fails if a
predicted ratio of times is further from the measured one than --within.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import common

if TYPE_CHECKING:
    from resshift_fast.pipeline import Pipeline


def options() -> argparse.ArgumentParser:
    """The command line."""
    made = common.parser(
        "CPU seconds of one tile of several sizes, and of a photo in the tiles that are predicted best."
    )
    common.add_model_options(made)
    common.option(
        made,
        "--sides",
        type=common.positive,
        nargs="+",
        default=[64, 96, 128, 192],
        help="Sides of square tiles in input pixels, multiples of what the model needs.",
    )
    common.option(
        made,
        "--photo",
        type=common.positive,
        nargs=2,
        metavar=("WIDTH", "HEIGHT"),
        help="Also restore a photo of this size, in the largest tiles and in those that are chosen. Default: none.",
    )
    common.option(made, "--runs", type=common.positive, default=3, help="Runs, of which the least counts.")
    common.option(made, "--within", type=float, default=0.25, help="Largest relative error of a predicted ratio.")
    return made


@dataclass
class Case:
    """A photo and its largest tile, None for those that are chosen."""

    height: int
    width: int
    tile: int | None

    def row(self, pipe: Pipeline, args: argparse.Namespace) -> dict[str, Any]:
        """Its tiles, the least CPU seconds of restoring it, and the model's prediction in multiplications."""
        rows, columns = pipe.plan_tiles(self.height, self.width, self.tile)
        picture, taken = common.photo(self.height, self.width), []
        for _ in range(args.runs):
            began = time.process_time()
            pipe(picture, seed=args.seed, tile=self.tile, progress=False)
            taken.append(time.process_time() - began)
        return {
            "photo": f"{self.width}×{self.height}",
            "tiles": f"{len(rows.starts) * len(columns.starts)} of {columns.tile}×{rows.tile}",
            "CPU s": min(taken),
            "multiplications": pipe.spec.cost_of(rows, columns),
        }


def cases(pipe: Pipeline, args: argparse.Namespace) -> list[Case]:
    """One tile of every side, and the photo in its largest tiles and in those that are chosen.

    Raises:
        ValueError: if the model enlarges nothing, cannot be given such a tile, or runs elsewhere than on a CPU.
    """
    spec = pipe.spec
    if pipe.device.type != "cpu":
        raise ValueError(f"the model is on {pipe.device}, and the costs are those of a CPU; give --device cpu")
    if spec.needs_mask:
        raise ValueError(f"{spec.name} needs a mask; measure a model that enlarges")
    if wrong := [side for side in args.sides if side % spec.pad_multiple]:
        raise ValueError(f"--sides {wrong[0]}: expected multiples of {spec.pad_multiple}, as {spec.name} needs them")
    width, height = args.photo or (0, 0)
    photos = [Case(height, width, tile) for tile in (spec.tile, None) if args.photo]
    return [*(Case(side, side, side) for side in args.sides), *photos]


def measure(args: argparse.Namespace) -> common.Report:
    """Time every case."""
    pipe = common.load(args)
    measured = cases(pipe, args)
    least = pipe.spec.pad_multiple
    pipe(common.photo(least, least), progress=False)  # which derives once what depends on the weights alone
    rows = [case.row(pipe, args) for case in measured]
    worst, problem = common.compare_ratios(rows, "CPU s", "multiplications", args.within)
    columns = {"photo": "", "tiles": "", "CPU s": ".3f", "ratio": ".3f", "predicted": ".3f", "error %": "+.1f"}
    notes = [f"Ratios are those to the first row. CPU seconds are the least of {args.runs} runs."]
    return common.Report(f"Cost of tiles of {pipe.spec.name}", columns, rows, notes, {"worst": worst}, problem)


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    return common.run(measure, options(), argv)


if __name__ == "__main__":
    sys.exit(main())
