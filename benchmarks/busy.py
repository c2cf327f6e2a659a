"""How long a restoration takes beside other programs that never pause, by the number of threads.

    python benchmarks/busy.py --csv busy.csv
    OMP_WAIT_POLICY=passive python benchmarks/busy.py      with torch's own threads asleep between its operators

Each other program is a process that counts. All cases run in one process, in turns: every number of programs, and
beside them every number of threads.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections import defaultdict
from contextlib import ExitStack
from typing import Any

import common

COUNT = "n = 0\nwhile True: n += 1"
COLUMNS = {
    "programs": "d",
    "threads": "d",
    "median s": ".3f",
    "least s": ".3f",
    "most s": ".3f",
    "of one thread": ".2f",
}


def options() -> argparse.ArgumentParser:
    """The command line."""
    made = common.parser("Seconds of a restoration beside busy programs, by the number of threads.")
    common.add_model_options(made)
    common.option(made, "--height", type=common.positive, default=16, help="Of the image, in input pixels.")
    common.option(made, "--width", type=common.positive, default=192, help="Of the image, in input pixels.")
    common.option(made, "--programs", type=common.natural, nargs="+", default=[0, 1, 2], help="Numbers of programs.")
    common.option(
        made,
        "--counts",
        type=common.positive,
        nargs="+",
        default=[1, 2],
        help="Numbers of threads; replaces --threads.",
    )
    common.option(made, "--runs", type=common.positive, default=5, help="Timed runs of each case in each round.")
    common.option(made, "--rounds", type=common.positive, default=2, help="Rounds over all cases.")
    return made


class Programs(ExitStack):
    """So many busy processes, which end with the block.

    Args:
        count: how many.
    """

    def __init__(self, count: int):
        super().__init__()
        self._count = count

    def __enter__(self) -> Programs:
        super().__enter__()
        for _ in range(self._count):
            process = self.enter_context(subprocess.Popen([sys.executable, "-c", COUNT]))
            self.callback(process.kill)  # before the block of Popen waits for it
        return self


def measure(args: argparse.Namespace) -> common.Report:
    """Time all cases."""
    import torch

    from resshift_fast.measure import timing

    pipe = common.load(args)
    photo = common.photo(args.height, args.width)
    taken: dict[tuple[int, int], list[float]] = defaultdict(list)
    before = torch.get_num_threads()
    try:
        for _ in range(args.rounds):
            for programs in args.programs:
                with Programs(programs):
                    for threads in args.counts:
                        torch.set_num_threads(threads)
                        pipe(photo, seed=args.seed, progress=False)
                        for _ in range(args.runs):
                            taken[programs, threads].append(
                                timing.seconds(lambda: pipe(photo, seed=args.seed, progress=False), pipe.device)[0]
                            )
    finally:
        torch.set_num_threads(before)
    rows: list[dict[str, Any]] = []
    for (programs, threads), seconds in taken.items():
        median = common.median(seconds)
        row = {"programs": programs, "threads": threads, "median s": median, "least s": min(seconds)}
        one = taken.get((programs, 1))
        rows.append(row | {"most s": max(seconds), "of one thread": median / common.median(one) if one else None})
    title = f"{args.model}, {common.weights_line(args)}, {args.dtype}, {args.width}×{args.height} pixels"
    return common.Report(title, COLUMNS, rows, summary={"device": pipe.device})


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    return common.run(measure, options(), argv)


if __name__ == "__main__":
    sys.exit(main())
