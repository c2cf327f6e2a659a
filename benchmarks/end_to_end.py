"""`resshift-fast bench e2e` with the providers for a GPU, and its table, machine and settings as JSON.

python benchmarks/end_to_end.py --device cuda --dtype float32 bfloat16 --json found.json
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

import common

from resshift_fast.cli import console

if TYPE_CHECKING:
    from resshift_fast.measure.end_to_end import Result

PROVIDERS = ("reference", "compile", "ours", "ours-compiled")


def options() -> argparse.ArgumentParser:
    """The command line."""
    made = common.parser("Seconds, memory and agreement of a whole restoration by several providers.")
    common.add_case_options(made, model="realsr-x4-v3", providers=PROVIDERS)
    made.set_defaults(random_weights=True)  # this runs where nothing can be downloaded
    common.option(made, "--size", type=common.positive, default=64, help="Side of the square input in pixels.")
    common.option(made, "--batch", type=common.positive, default=1, help="Pictures restored at once.")
    common.option(made, "--runs", type=common.positive, default=7, help="Timed runs of each provider.")
    return made


def measure(args: argparse.Namespace) -> common.Report:
    """Measure every provider in every dtype."""
    from resshift_fast.core import devices
    from resshift_fast.measure.end_to_end import measure as measure_cases

    cases = [
        common.case(args, provider, dtype, args.size, args.batch, batch_size=args.batch)
        for dtype in args.dtype
        for provider in args.providers
    ]
    device = devices.usable_device(args.device)
    machine = common.machine(args.threads, device)

    def keep(results: list[Result]) -> None:
        """Write the results so far, for a run that may be ended early."""
        common.write(args, "end_to_end", common.Report("", {}, [result.cells() for result in results]), machine)

    found = measure_cases(cases, args.runs, console.say, keep)
    rows = [result.cells() for result in found.results]
    columns = {"provider": "", "dtype": "", "whole_median_s": ".4f", "whole_least_s": ".4f", "whole_most_s": ".4f"}
    columns |= {"psnr_db": ".1f", "peak_mb": ".0f", "running_mb": ".0f"}
    columns |= {"speedup_reference_float32": ".2f", "speedup_compile": ".2f", "note": ""}
    title = f"{args.model}, {args.size}×{args.size}, batch {args.batch}, {common.weights_line(args)}, {args.runs} runs"
    wrong = [result.case.name for result in found.results if result.note]
    problem = f"not measured, or too far from the float32 reference: {', '.join(wrong)}" if wrong else ""
    summary = {"device": device, "gemm": found.gemm, "gflop": found.gflop}
    return common.Report(title, columns, rows, [], summary, problem)


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    return common.run(measure, options(), argv)


if __name__ == "__main__":
    sys.exit(main())
