"""Peak memory and time for large photos, each read, restored and written in its own process.

    python benchmarks/memory.py
    python benchmarks/memory.py --sizes 500x400 1500x1000 --limit-gib 4

Nothing is subtracted from the peak. The benchmark fails if the peak of any size exceeds the limit.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

# The parent imports nothing heavy: a child's peak is at least the parent's memory when the child was started.
import common

from resshift_fast import images
from resshift_fast.measure import timing
from resshift_fast.models import catalog


def size(text: str) -> tuple[int, int]:
    """argparse type: WIDTHxHEIGHT."""
    match = re.fullmatch(r"([1-9]\d*)[x×]([1-9]\d*)", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text} is not WIDTHxHEIGHT, such as 1500x1000")
    return int(match[1]), int(match[2])


def options() -> argparse.ArgumentParser:
    """The command line."""
    made = common.parser("Peak memory and seconds for reading, restoring and writing photos of several sizes.")
    common.add_model_options(made)
    common.option(
        made,
        "--sizes",
        type=size,
        nargs="+",
        default=["500x400", "1500x1000"],
        metavar="WIDTHxHEIGHT",
        help="Input sizes; the photos are made from examples/nuthatch.jpg and its mirror images.",
    )
    common.option(made, "--limit-gib", type=float, default=4.0, help="Highest peak that passes, in GiB.")
    common.option(made, "--tile", type=common.positive, help="Tile side in input pixels. Default: the model's.")
    common.option(made, "--batch-size", type=common.positive, default=1, help="Tiles restored at once.")
    common.option(made, "--suffix", choices=(".png", ".jpg", ".tif"), default=".png", help="Format of the result.")
    common.option(made, "--child", nargs=2, type=Path, help=argparse.SUPPRESS)
    return made


def child(args: argparse.Namespace) -> dict[str, Any]:
    """Read, restore and write one photo as the command line does: peaks in MiB after each stage, and seconds."""
    source, output = args.child
    pipe = common.load(args)
    import torch

    found: dict[str, Any] = {"threads": torch.get_num_threads(), "loaded": common.peak_mib()}
    before = images.read(source)

    def restore() -> images.Photo:
        return pipe(before, seed=args.seed, tile=args.tile, batch_size=args.batch_size, progress=False)

    found["restore_seconds"], after = timing.seconds(restore, pipe.device)
    found["restored"] = common.peak_mib()
    found["write_seconds"], _ = timing.seconds(lambda: images.write(output, after))
    found["written"] = common.peak_mib()
    return found


def run_child(argv: list[str], source: Path, output: Path) -> dict[str, Any]:
    """Run `child` in a new process with the given arguments.

    Raises:
        OSError: if it fails; with the last line that it printed.
    """
    command = [sys.executable, str(Path(__file__).resolve()), *argv, "--child", str(source), str(output)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise OSError(f"restoring {source.name} failed with code {done.returncode}: {said[-1] if said else 'killed'}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def measure_size(width: int, height: int, args: argparse.Namespace, argv: list[str], folder: Path) -> dict[str, Any]:
    """The row of one size."""
    scale = catalog.get(args.model).scale
    source, output = folder / f"photo-{width}x{height}.png", folder / f"result-{width}x{height}{args.suffix}"
    images.write(source, images.Photo(common.photo(height, width)))
    found = run_child(argv, source, output)
    result = images.read(output)
    if (result.width, result.height) != (width * scale, height * scale):
        raise ValueError(f"the result is {result.width}×{result.height}, expected {width * scale}×{height * scale}")
    result_mib = result.pixels.nbytes / common.MIB
    return {
        "input": f"{width}×{height}",
        "result": f"{result.width}×{result.height}",
        "result MiB": result_mib,
        "loaded MiB": found["loaded"],
        "restored MiB": found["restored"],
        "less result MiB": found["restored"] - result_mib,
        "written MiB": found["written"],
        "restore s": found["restore_seconds"],
        "write s": found["write_seconds"],
        "threads": found["threads"],
    }


def measure(args: argparse.Namespace, argv: list[str]) -> common.Report:
    """Measure every size and compare with the limit."""
    sizes = [size(one) if isinstance(one, str) else one for one in args.sizes]
    with tempfile.TemporaryDirectory(prefix="resshift-memory-") as folder:
        rows = [measure_size(width, height, args, argv, Path(folder)) for width, height in sizes]
    args.threads = rows[0]["threads"]
    columns = {
        "input": "",
        "result": "",
        "result MiB": ".0f",
        "loaded MiB": ".0f",
        "restored MiB": ".0f",
        "less result MiB": ".0f",
        "written MiB": ".0f",
        "restore s": ".1f",
        "write s": ".1f",
    }
    notes = [
        "Peaks of the whole process so far, nothing subtracted: loaded = Python, torch and the model; restored = the",
        "result is in memory; less result = that without the result's own bytes; written = its file is written too.",
    ]
    peak = max(row["written MiB"] for row in rows) / 1024
    notes.append(f"Highest peak {peak:.2f} GiB, limit {args.limit_gib:g} GiB.")
    problem = f"the peak of {peak:.2f} GiB exceeds --limit-gib {args.limit_gib:g}" if peak > args.limit_gib else ""
    title = f"Memory of {args.model}, {common.weights_line(args)}, {args.dtype}, in a process for each photo"
    return common.Report(title, columns, rows, notes, {"peak GiB": peak, "limit GiB": args.limit_gib}, problem)


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    args = options().parse_args(argv)
    if args.child:
        print(json.dumps(child(args)))
        return 0
    return common.run(lambda args: measure(args, argv), options(), argv)


if __name__ == "__main__":
    sys.exit(main())
