"""Photos a second of `resshift-fast restore --ray local` with 1 and more workers, of one thread each.

    python benchmarks/cluster.py --workers 1,2 --photos 60 --side 64 --runs 3

Runs alternate. The first photos of a run, in which workers start, are not counted: two for each worker.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image


def rate(photos: Path, workers: int, threads: int) -> float:
    """Photos a second of one run."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "resshift_fast", "restore", "--ray", "local", str(photos), "-o", out, "--json"]
        options = ["--ray-workers", str(workers), "--threads", str(threads), "--quiet"]
        # Ray gives workers a low priority, which on a machine with other work would measure that.
        environment = {**os.environ, "RAY_worker_niceness": "0"}
        with subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True, env=environment) as program:
            assert program.stdout is not None
            ends = [time.monotonic() for line in program.stdout if json.loads(line)["status"] == "restored"]
        if program.returncode:
            raise SystemExit(f"the run ended with exit code {program.returncode}")
    start = 2 * workers
    return (len(ends) - 1 - start) / (ends[-1] - ends[start])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workers", default="1,2", help="numbers of workers; default: 1,2")
    parser.add_argument("--threads", type=int, default=1, help="of each; default: 1")
    parser.add_argument("--photos", type=int, default=60, help="of each run; default: 60")
    parser.add_argument("--side", type=int, default=64, help="of the photos, in pixels; default: 64")
    parser.add_argument("--runs", type=int, default=3, help="with each number of workers; default: 3")
    asked = parser.parse_args()
    numbers = [int(number) for number in asked.workers.split(",")]
    rates: dict[int, list[float]] = {number: [] for number in numbers}
    with tempfile.TemporaryDirectory() as folder:
        for i in range(asked.photos):
            pixels = np.random.default_rng(i).integers(0, 256, (asked.side, asked.side, 3), np.uint8)
            Image.fromarray(pixels).save(Path(folder) / f"{i}.png")
        for _ in range(asked.runs):
            for number in numbers:
                rates[number].append(rate(Path(folder), number, asked.threads))
    for number, found in rates.items():
        spread = ", ".join(f"{one:.2f}" for one in sorted(found))
        print(f"{number} workers: {statistics.median(found):.2f} photos/s (runs: {spread})")


if __name__ == "__main__":
    main()
