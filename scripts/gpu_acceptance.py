"""All checks and measurements that need a GPU, in at most ten minutes; writes one JSON under benchmarks/results/.

    make gpu                                   install with a network, and run it
    make gpu-offline                           the same without a network, into the current Python
    python scripts/gpu_acceptance.py --budget 600 --output benchmarks/results
    python scripts/gpu_acceptance.py --rehearse --budget 300     every step at a tiny size on the CPU

The steps, in this order: a photo with each backend, every operator against float64, whole restorations and those of
torch.compile, times of operators, a profile, sanitizers, tests, the autotuning of backends. The result is updated while
they run, so that a run which is ended early keeps it. The exit status is 0 if no step failed, 1 if one did, 2 if
nothing could be run, 130 after Ctrl-C and 143 after SIGTERM.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from acceptance import machine, result, running
from acceptance.steps import GPU, REHEARSAL, Step, steps


class Stopped(BaseException):
    """A signal that ends the run."""

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number


def stop(number: int, frame: Any) -> None:
    """Signal handler: end the run; later signals are ignored."""
    for other in (signal.SIGINT, signal.SIGTERM):
        signal.signal(other, signal.SIG_IGN)
    raise Stopped(number)


def stem(found: dict[str, Any], rehearsal: bool) -> str:
    """Name of the result's files."""
    gpu = "rehearsal" if rehearsal else "-".join(found["gpu"].lower().split())
    return f"{gpu}-torch{found['torch'].split('+')[0]}-triton{found['triton']}"


def take_turns(
    chosen: list[Step], results: result.Results, end: float, variables: dict[str, str], shared: Path, at: Path
) -> None:
    """Run the steps one after the other.

    Args:
        chosen: the steps. results: collects their results. end: of the last step, in time.monotonic().
        variables: environment of all steps. shared: a folder for the duration of the run. at: where they run.

    Each step has its own cache folder, a copy of that of the last step which ended by itself: a step that is killed
    during a verification leaves a mark in its folder.
    """
    known = None
    for number, step in enumerate(chosen):
        with tempfile.TemporaryDirectory(prefix="resshift-acceptance-", ignore_cleanup_errors=True) as folder:
            own = Path(folder, "cache")
            if known:
                shutil.copytree(known, own)
            output = Path(folder, "output")
            output.mkdir()
            seconds = running.seconds_for(step, chosen[number + 1 :], end - time.monotonic())
            try:
                results.put(step.name, {"verdict": running.RUNNING})
                print(f"{number + 1:>2}/{len(chosen)} {step.name}: ", end="", flush=True)
                found = running.run(
                    step,
                    output,
                    seconds,
                    at,
                    variables | {"RESSHIFT_FAST_CACHE": str(own)},
                    lambda so_far, name=step.name: results.put(name, so_far),
                )
            except Stopped:
                print("stopped", flush=True)
                so_far = results.steps.get(step.name, {}) | {"tables": running.tables(step, output)}
                results.put(step.name, so_far | {"verdict": "stopped"})
                results.keep_files(step, output)
                raise
            results.put(step.name, found)
            results.keep_files(step, output)
            print(result.line(found), flush=True)
            ended_by_itself = found.get("status") in (0, 1)
            if ended_by_itself and own.exists():
                known = shutil.copytree(own, shared / f"known-{number}")


def main(argv: list[str] | None = None) -> int:
    """Run the acceptance; returns the exit status."""
    args = options().parse_args(argv)
    # The budget includes the time to end the last step and to find out what is installed.
    end = time.monotonic() + args.budget - running.GRACE - running.LAST_SECONDS
    scale = REHEARSAL if args.rehearse else GPU
    chosen = [step for step in steps(scale) if not args.only or step.name in args.only]
    try:
        found = machine.probe(args.rehearse)
        folder = args.output or machine.ROOT / ("out/rehearsal" if args.rehearse else "benchmarks/results")
        results = result.Results(folder, stem(found, args.rehearse), found, args.budget)
    except machine.Unusable as error:
        print(f"nothing was run: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"nothing was run: the result cannot be written: {error}", file=sys.stderr)
        return 2
    on = "a rehearsal on the CPU" if args.rehearse else found["gpu"]
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    print(f"{on}, torch {found['torch']}, triton {found['triton']}, {args.budget:g} s", flush=True)
    status, why = 0, ""
    with tempfile.TemporaryDirectory(prefix="resshift-acceptance-", ignore_cleanup_errors=True) as shared:
        try:
            # Later steps reuse the kernels that earlier ones have compiled.
            names = ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")
            caches = {name: os.environ.get(name, str(Path(shared, name.lower()))) for name in names}
            copy = Path(shared, "place")
            copy.mkdir()
            at = machine.place(found["package"], copy)
            take_turns(chosen, results, end, scale.environment | caches, Path(shared), at)
        except Stopped as stopped:
            status, why = 128 + stopped.number, f"stopped by {signal.Signals(stopped.number).name}"
    results.finish(why)
    print("\n" + result.summary(chosen, results))
    print(f"\nresult: {results.path}")
    if results.problem:
        print(f"error: {results.problem}", file=sys.stderr)
    if results.failed:
        print(f"error: failed: {'; '.join(results.failed)}", file=sys.stderr)
    return status or int(bool(results.failed or results.problem))


def options() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--budget", type=budget, default=600, metavar="S", help="Seconds in all, from now on. Default: 600."
    )
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="Default: benchmarks/results, out/rehearsal for a rehearsal."
    )
    names = [step.name for step in steps()]
    names += [step.name for step in steps(REHEARSAL) if step.name not in names]
    parser.add_argument("--only", nargs="+", metavar="STEP", choices=names, help="Default: all.")
    parser.add_argument("--rehearse", action="store_true", help="Run every step at a tiny size on the CPU.")
    return parser


def budget(text: str) -> float:
    """argparse type: seconds, more than 0."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number of seconds above 0")
    return value


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    sys.exit(main())
