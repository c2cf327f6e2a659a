"""Throughput and memory of `resshift-fast serve` under load; every answer is compared with the pipeline's own.

    python benchmarks/serving.py
    python benchmarks/serving.py --requests 1000 --at-once 16 --sides 64

The service is a process of its own. It is asked one by one first, then with several requests at once. The benchmark
fails if an answer is missing or differs from the pipeline's by more than a rounding error, or the memory grows.
"""

from __future__ import annotations

import argparse
import http.client
import io
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass

import common
import numpy as np
from PIL import Image

from resshift_fast import images

_PATIENCE = 600.0  # seconds for one answer
_BATCHES, _CPU_SECONDS = "resshift_fast_batch_photos_count", "process_cpu_seconds_total"  # metrics


@dataclass(frozen=True)
class Question:
    """A picture, what is asked about it, and the pipeline's own result."""

    data: bytes
    seed: int
    expected: np.ndarray


class Client:
    """Asks a service.

    Args:
        port: of this machine.
    """

    def __init__(self, port: int):
        self._port = port

    def ask(self, question: Question) -> int:
        """The largest difference of an answer from the pipeline's result, in levels of 8 bits."""
        body = self._answer("POST", f"/restore?seed={question.seed}", question.data)
        return int(np.abs(np.asarray(Image.open(io.BytesIO(body))).astype(int) - question.expected).max())

    def metric(self, name: str) -> float:
        """A value of /metrics."""
        text = self._answer("GET", "/metrics").decode()
        return float(re.findall(rf"^{name} (\S+)$", text, re.MULTILINE)[0])

    def _answer(self, method: str, path: str, body: bytes | None = None) -> bytes:
        with closing(http.client.HTTPConnection("127.0.0.1", self._port, timeout=_PATIENCE)) as connection:
            connection.request(method, path, body)
            answer = connection.getresponse()
            content = answer.read()
        if answer.status != 200:
            raise OSError(f"the service answered {answer.status}: {content[:200]!r}")
        return content


def options() -> argparse.ArgumentParser:
    """The command line."""
    made = common.parser("Pictures a second of the service, one by one and at once, and the growth of its memory.")
    common.add_model_options(made)
    common.option(made, "--requests", type=common.positive, default=200, help="Requests in all.")
    common.option(made, "--at-once", type=common.positive, default=8, help="Requests at once.")
    common.option(made, "--batch-size", type=common.positive, default=8, help="Of the service.")
    common.option(
        made, "--sides", type=common.positive, nargs="+", default=[32, 48, 64], help="Sides of the pictures, in pixels."
    )
    common.option(made, "--growth-mib", type=float, default=32.0, help="Growth of the memory that passes, in MiB.")
    return made


def questions(args: argparse.Namespace) -> list[Question]:
    """Pictures that all differ, cut from a photo, each with its own seed."""
    pipe = common.load(args)
    whole = common.photo(300, 400)
    random = np.random.default_rng(args.seed)
    found = []
    for i in range(args.requests):
        side = args.sides[i % len(args.sides)]
        top, left = (int(random.integers(0, most - side)) for most in whole.shape[:2])
        pixels = np.ascontiguousarray(whole[top : top + side, left : left + side])
        data = images.encoded("picture.png", images.Photo(pixels))
        found.append(Question(data, i, pipe(pixels, seed=i, progress=False)))
    return found


@contextmanager
def service(args: argparse.Namespace) -> Iterator[Client]:
    """A service in a process of its own within the block, which must end when it is told to."""
    command = [sys.executable, "-m", "resshift_fast", "serve", "--port", "0", "--model", args.model]
    command += ["--batch-size", str(args.batch_size), "--dtype", args.dtype, "--queue", str(2 * args.at_once)]
    for name in ("weights", "autoencoder", "device", "threads"):
        value = getattr(args, name)
        command += [] if value is None else [f"--{name}", str(value)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, encoding="utf-8") as process:
        assert process.stderr is not None
        line = ""
        for line in process.stderr:
            if found := re.search(r"http://127\.0\.0\.1:(\d+)/", line):
                break
        else:
            raise OSError(f"the service did not start: {line.strip() or 'without a word'}")
        try:
            yield Client(int(found[1]))
        finally:
            process.send_signal(signal.SIGTERM)
            last = process.stderr.read().strip()
        if process.wait(_PATIENCE):
            raise OSError(f"the service failed: {last}")


def row(name: str, client: Client, asked: Sequence[Question], at_once: int) -> dict[str, object]:
    """Ask all, so many at once."""
    batches, used = (client.metric(name) for name in (_BATCHES, _CPU_SECONDS))
    began = time.perf_counter()
    with ThreadPoolExecutor(at_once) as pool:
        differences = list(pool.map(client.ask, asked))
    seconds = time.perf_counter() - began
    batches, used = client.metric(_BATCHES) - batches, client.metric(_CPU_SECONDS) - used
    return {
        "requests": name,
        "answers": len(differences),
        "seconds": seconds,
        "per second": len(asked) / seconds,
        "CPU s a picture": used / len(asked),
        "photos a batch": len(asked) / batches,
        "largest difference": max(differences),
        "memory MiB": client.metric("process_resident_memory_bytes") / common.MIB,
    }


def measure(args: argparse.Namespace) -> common.Report:
    """Ask one by one and at once, in four parts, and compare."""
    asked = questions(args)
    at_once = f"{args.at_once} at once"
    with service(args) as client:
        row("warm-up", client, asked[: 2 * args.at_once], args.at_once)
        alone = row("one by one", client, asked, 1)
        parts = [row(at_once, client, asked[i::4], args.at_once) for i in range(4)]
    seconds = sum(float(str(one["seconds"])) for one in parts)
    rows = [alone, *parts]
    columns = {
        "requests": "",
        "answers": "d",
        "seconds": ".1f",
        "per second": ".2f",
        "CPU s a picture": ".3f",
        "photos a batch": ".1f",
        "largest difference": "d",
        "memory MiB": ".0f",
    }
    rate = len(asked) / seconds
    gain = rate / float(str(alone["per second"]))
    growth = float(str(parts[-1]["memory MiB"])) - float(str(parts[0]["memory MiB"]))
    worst = max(int(str(one["largest difference"])) for one in rows)
    problem = ""
    if worst > 1:
        problem = f"an answer differs from the pipeline's by {worst} of 255 levels"
    elif growth > args.growth_mib:
        problem = f"the memory grew by {growth:.0f} MiB, more than --growth-mib {args.growth_mib:g}"
    notes = [
        f"{at_once}: {rate:.2f} pictures a second, {gain:.2f} times those one by one.",
        f"The memory grew by {growth:.0f} MiB from the first to the last quarter of the requests at once.",
    ]
    title = f"Service with {args.model}, {common.weights_line(args)}, pictures of {args.sides} pixels a side"
    summary = {"per second": rate, "gain": gain, "growth MiB": growth, "largest difference": worst}
    return common.Report(title, columns, rows, notes, summary, problem)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    return common.run(measure, options(), argv)


if __name__ == "__main__":
    sys.exit(main())
