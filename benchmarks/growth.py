"""How time and memory grow with the size and the number of images, and the share of time that is not convolution.

    python benchmarks/growth.py --csv growth.csv --plot growth.png
    python benchmarks/growth.py --model realsr-x4-v3 --random-weights --providers reference compile ours --shares

Images are tiled with the pipeline's defaults, so seconds should be linear in pixels, and memory constant from one tile
on, apart from the images themselves. Every point runs in its own process. With --shares only the smallest image runs,
under torch.profiler.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import common

from resshift_fast.cli import console

if TYPE_CHECKING:
    from resshift_fast.measure.providers import Case

CONVOLUTION = re.compile(r"convolution|resshift_fast(_cpu|_cuda)?::(upsample_|pointwise_)?conv2d")


def options() -> argparse.ArgumentParser:
    """The command line."""
    made = common.parser("Seconds and peak memory by image size and by number of images.")
    common.add_case_options(made, model="nano-x4", providers=("reference", "ours"))
    common.option(
        made, "--sizes", type=common.positive, nargs="+", default=[64, 128, 256, 512], help="Sides in input pixels."
    )
    common.option(
        made,
        "--batches",
        type=common.positive,
        nargs="+",
        default=[1, 4, 16],
        help="Numbers of images of the smallest size.",
    )
    common.option(made, "--runs", type=common.positive, default=3, help="Timed runs of each point.")
    common.option(made, "--plot", type=Path, metavar="FILE.png", help="Also plot it; needs matplotlib.")
    common.option(made, "--shares", action="store_true", help="Instead: the share of time that is not convolution.")
    return made


def points(args: argparse.Namespace) -> list[tuple[int, int]]:
    """(size, images): every size with the fewest images, and every number of images of the smallest size."""
    sizes, batches = sorted({*args.sizes}), sorted({*args.batches})
    return [(size, batches[0]) for size in sizes] + [(sizes[0], batch) for batch in batches[1:]]


def cases(args: argparse.Namespace, points: list[tuple[int, int]]) -> list[Case]:
    """All points in every dtype by every provider."""
    return [
        common.case(args, provider, dtype, size, batch)
        for dtype in args.dtype
        for provider in args.providers
        for size, batch in points
    ]


def grow(case: Case, runs: int) -> dict[str, Any]:
    """The row of one point."""
    from resshift_fast.measure.providers import WHOLE, Runner
    from resshift_fast.measure.workers import Worker
    from resshift_fast.models import catalog

    with Worker(Runner, case) as worker:
        first = worker.call("first")
        taken = [worker.call("run") for _ in range(runs)]
    seconds = [run.seconds[WHOLE] for run in taken]
    peaks = [run.peak_bytes for run in taken if run.peak_bytes is not None]
    megapixels = case.batch * case.size**2 / 1e6
    return {
        "provider": case.provider,
        "dtype": case.dtype,
        "size": case.size,
        "pictures": case.batch,
        "median s": common.median(seconds),
        "least s": min(seconds),
        "most s": max(seconds),
        "s/MP": common.median(seconds) / megapixels,
        "peak MB": first.peak_bytes / 1e6,
        "later MB": max(peaks) / 1e6 if peaks else None,
        "result MB": megapixels * catalog.get(case.model).scale ** 2 * 3 * 4,
    }


def share(case: Case) -> dict[str, Any]:
    """Share of a restoration that is not convolution, and the operators with the largest part of it."""
    from resshift_fast.measure.providers import Runner
    from resshift_fast.measure.workers import Worker

    with Worker(Runner, case) as worker:
        worker.call("first")
        seconds = worker.call("operator_seconds")
    other = {name: taken for name, taken in seconds.items() if not CONVOLUTION.search(name)}
    most = sorted(other, key=lambda name: -other[name])[:4]
    return {
        "provider": case.provider,
        "dtype": case.dtype,
        "total s": sum(seconds.values()),
        "not convolution s": sum(other.values()),
        "not convolution %": 100 * sum(other.values()) / sum(seconds.values()),
        "most of it": ", ".join(f"{name} {other[name]:.3f}" for name in most),
    }


def plot(rows: list[dict[str, Any]], args: argparse.Namespace, title: str) -> None:
    """Plot seconds per megapixel, and memory, by megapixels: solid lines for sizes, dashed for numbers of images."""
    from resshift_fast.measure import plots

    drawn, (speed, memory) = plots.figure(2, title)
    smallest, fewest = min(args.sizes), min(args.batches)
    for name in dict.fromkeys((row["provider"], row["dtype"]) for row in rows):
        own = [row for row in rows if (row["provider"], row["dtype"]) == name]
        colour = None
        for label, style, wanted in (("sizes", "o-", ("pictures", fewest)), ("pictures", "s--", ("size", smallest))):
            line = [row for row in own if row[wanted[0]] == wanted[1]]
            x = [row["pictures"] * row["size"] ** 2 / 1e6 for row in line]
            (made,) = speed.plot(
                x, [row["s/MP"] for row in line], style, color=colour, label=f"{' '.join(name)}, {label}"
            )
            colour = made.get_color()
            memory.plot(x, [row["peak MB"] for row in line], style, color=colour)
    for axes, label in ((speed, "seconds per megapixel of input"), (memory, "peak memory, MB")):
        axes.set_xscale("log")
        axes.set_ylim(bottom=0)
        axes.set_xlabel("megapixels of input")
        axes.set_ylabel(label)
    speed.legend(fontsize=7)
    plots.save(drawn, args.plot)


def measure(args: argparse.Namespace) -> common.Report:
    """Measure every point, or the shares."""
    from resshift_fast.core import devices
    from resshift_fast.measure import plots
    from resshift_fast.measure.workers import WorkerError

    if args.plot:
        plots.check()
    rows, failed = [], []
    chosen = cases(args, points(args)[:1] if args.shares else points(args))
    for case in chosen:
        what = f"{case.name}, {case.size}×{case.size}, {case.batch} picture{'s' * (case.batch > 1)}"
        console.say(what)
        try:
            rows.append(share(case) if args.shares else grow(case, args.runs))
        except WorkerError as error:
            failed.append(f"{what}: {error}")
    title = f"{args.model}, {common.weights_line(args)}"
    if args.plot and rows and not args.shares:
        plot(rows, args, title)
    columns = SHARES if args.shares else GROWTH
    return common.Report(title, columns, rows, [], {"device": devices.usable_device(args.device)}, "; ".join(failed))


GROWTH = {"provider": "", "dtype": "", "size": "d", "pictures": "d", "median s": ".3f", "least s": ".3f"}
GROWTH |= {"most s": ".3f", "s/MP": ".2f", "peak MB": ".0f", "later MB": ".0f", "result MB": ".1f"}
SHARES = {"provider": "", "dtype": "", "total s": ".3f", "not convolution s": ".3f", "not convolution %": ".1f"}
SHARES |= {"most of it": ""}


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    return common.run(measure, options(), argv)


if __name__ == "__main__":
    sys.exit(main())
