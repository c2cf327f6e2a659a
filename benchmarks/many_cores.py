"""How a restoration would scale to many cores: the model of resshift_fast/restoration/cores.py, and a check of it.

    python benchmarks/many_cores.py
    python benchmarks/many_cores.py --model realsr-x4-v3 --side 128 --cores 8 64
    python benchmarks/many_cores.py --check --cores 1 2 8 --sides 64 128 --batches 1 4

The first two ask the kernels how they divide their work, and run nothing. --check restores tiles on one thread, while
the kernels divide their work as for more, and takes the time of every loop. Fails if a predicted ratio of times is
further from the measured one than --within.
"""

from __future__ import annotations

import argparse
import sys
import time
from itertools import product
from typing import TYPE_CHECKING, Any

import common

from resshift_fast.backends.native import Loop, recorded_loops
from resshift_fast.models import calls, catalog
from resshift_fast.restoration import cores, loops
from resshift_fast.restoration.loops import Tiles

if TYPE_CHECKING:
    from resshift_fast.models.catalog import ModelSpec
    from resshift_fast.pipeline import Pipeline


def options() -> argparse.ArgumentParser:
    """The command line."""
    made = common.parser("Predicted seconds of a tile by cores and tiles restored at once, and what limits them.")
    common.add_model_options(made)
    sizes: dict[str, Any] = {"type": common.positive, "nargs": "+"}
    common.option(made, "--sides", **sizes, default=[64], help="Sides of square tiles in input pixels.")
    common.option(made, "--cores", **sizes, default=[1, 8, 16, 32, 64], help="Numbers of cores.")
    common.option(made, "--batches", **sizes, default=list(cores.BATCHES), help="Tiles restored at once.")
    for name, value in vars(cores.SERVER).items():
        help = f"Of the processor; see cores.Processor. Default: {value:.3g}."
        made.add_argument(f"--{name.replace('_', '-')}", type=float, default=value, metavar="X", help=help)
    common.option(made, "--check", action="store_true", help="Compare with restorations on this machine.")
    common.option(made, "--runs", type=common.positive, default=3, help="Restorations, of which the least counts.")
    common.option(made, "--within", type=float, default=0.25, help="Largest relative error of a predicted ratio.")
    return made


def tiles_of(spec: ModelSpec, side: int, batch: int, dtype: str) -> Tiles:
    """Square tiles.

    Raises:
        ValueError: for a side that the model does not take.
    """
    import torch

    if side % spec.pad_multiple:
        raise ValueError(f"--sides {side}: expected multiples of {spec.pad_multiple}, as {spec.name} needs them")
    latent = int(side * spec.latent_per_input)
    return Tiles(latent, latent, batch, getattr(torch, dtype))


def predict(args: argparse.Namespace) -> common.Report:
    """The model's table."""
    spec, rows = catalog.get(args.model), []
    processor = cores.Processor(**{name: getattr(args, name) for name in vars(cores.SERVER)})
    for side in args.sides:
        alone = cores.seconds(spec, tiles_of(spec, side, 1, args.dtype), 1, processor)
        for threads in args.cores:
            default = cores.batch_size(spec, tiles_of(spec, side, max(args.batches), args.dtype), threads)
            for batch in args.batches:
                tiles = tiles_of(spec, side, batch, args.dtype)
                parts = cores.spent_by_operator(spec, tiles, threads, processor)
                seconds = sum(map(sum, parts.values()))
                rows.append(
                    {
                        "side": side,
                        "cores": threads,
                        "batch": f"{batch} *" if batch == default else str(batch),
                        "ms a tile": 1e3 * seconds / batch,
                        "speed-up": alone * batch / seconds,
                        "efficiency %": 100 * alone * batch / seconds / threads,
                        "most time lost": lost(spec, tiles, threads, processor, parts),
                    }
                )
    columns = {"side": "", "cores": "", "batch": "", "ms a tile": ".2f", "speed-up": ".1f", "efficiency %": ".0f"}
    notes = ["* is what is restored at once where no number is asked for.", "Speed-ups are those over one tile on one."]
    return common.Report(f"{spec.name} on many cores, a model", columns | {"most time lost": ""}, rows, notes)


def lost(spec: ModelSpec, tiles: Tiles, threads: int, processor: cores.Processor, parts: dict[str, Any]) -> str:
    """The two largest shares of the time that perfectly shared work would not take."""
    if threads == 1:
        return ""
    whole = sum(map(sum, parts.values()))
    alone = cores.spent_by_operator(spec, tiles, 1, processor)
    shares = {name: (spent.loops - alone[name].loops / threads) / whole for name, spent in parts.items()}
    shares["outside of loops"] = sum(spent.outside for spent in parts.values()) / whole
    largest = sorted(shares, key=shares.__getitem__, reverse=True)[:2]
    return ", ".join(f"{name} {100 * shares[name]:.0f} %" for name in largest)


class Measured:
    """Restorations of a batch on one thread, divided as for so many cores: the least time of every loop."""

    def __init__(self, pipe: Pipeline, tiles: Tiles, side: int, threads: int):
        self.pipe, self.tiles, self.side, self.threads = pipe, tiles, side, threads
        self.loops: list[Loop] = []
        self.outside = float("inf")

    def run(self, seed: int) -> None:
        """Restore once more."""
        picture = [common.photo(self.side, self.side)] * self.tiles.batch
        began = time.thread_time()
        with recorded_loops(self.threads) as found:
            self.pipe(picture, seed=seed, tile=self.side, batch_size=self.tiles.batch, progress=False)
        self.outside = min(self.outside, time.thread_time() - began - sum(loop.seconds for loop in found))
        pairs = zip(self.loops or found, found, strict=True)
        self.loops = [min(pair, key=lambda loop: loop.seconds) for pair in pairs]

    def seconds(self) -> float:
        """Of a batch on so many cores, with the loops' pieces shared evenly."""
        within = sum(
            -(-loop.pieces // self.threads) / loop.pieces * loop.seconds
            + cores.SERVER.hand_out * (min(loop.pieces, self.threads) - 1)
            for loop in self.loops
        )
        # PyTorch's operators are outside the loops, but are shared too.
        by_torch = [n * work.seconds(1, cores.SERVER) for n, work in pytorch_work(self.pipe.spec, self.tiles)]
        return within + self.outside - sum(by_torch) * (1 - 1 / self.threads)


def pytorch_work(spec: ModelSpec, tiles: Tiles) -> list[tuple[int, cores.Work]]:
    """How often, and the work of PyTorch's operators."""
    return [
        (times, work)
        for times, call in calls.of_restoration(spec)
        if not loops.of_call(call, tiles, 1)
        for work in cores.work_of(call, tiles, 1)
    ]


def check(args: argparse.Namespace) -> common.Report:
    """Time restorations, and compare ratios with the model's."""
    import torch

    pipe = common.load(args)
    rows: list[dict[str, Any]] = []
    if pipe.device.type != "cpu" or pipe.spec.needs_mask:
        raise ValueError(f"{pipe.spec.name} on {pipe.device}: expected a model without masks, on a CPU: --device cpu")
    torch.set_num_threads(1)  # PyTorch's operators; the kernels' loops are divided as they are told
    cases = [
        Measured(pipe, tiles_of(pipe.spec, side, batch, args.dtype), side, threads)
        for side, batch, threads in product(args.sides, args.batches, args.cores)
    ]
    for _ in range(args.runs):  # in turns, as other programs come and go
        for case in cases:
            case.run(args.seed)
    for case in cases:
        row = {"side": case.side, "batch": case.tiles.batch, "cores": case.threads, "s": case.seconds()}
        rows.append(row | {"predicted s": cores.seconds(pipe.spec, case.tiles, case.threads)})
    worst, problem = common.compare_ratios(rows, "s", "predicted s", args.within)
    columns = {"side": "", "batch": "", "cores": "", "s": ".4f", "predicted s": ".4f"}
    columns |= {"ratio": ".3f", "predicted": ".3f", "error %": "+.1f"}
    notes = [f"Processor's time on one thread, the least of {args.runs} runs, shared as if by so many cores."]
    return common.Report(f"Shared loops of {pipe.spec.name}", columns, rows, notes, {"worst": worst}, problem)


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    return common.run(lambda args: check(args) if args.check else predict(args), options(), argv)


if __name__ == "__main__":
    sys.exit(main())
