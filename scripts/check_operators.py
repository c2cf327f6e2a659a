"""Check every operator on the networks' own sizes against float64, with each backend and dtype, in several processes.

    python scripts/check_operators.py --backend cuda triton --dtype bfloat16 float16 float32 --jobs 12

Nothing is timed. The processes compile kernels in parallel, which is most of the work the first time. A line is printed
and a row of the table written after each call; a process that a kernel ends or hangs is replaced. Cases and limits are
those of benchmarks/operators.py. The exit status is 1 if a kernel is wrong or fails, or a backend is missing.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from itertools import chain
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import operator_measure as measure  # noqa: E402
import torch  # noqa: E402
from operator_arguments import OPERATORS  # noqa: E402
from operator_cases import CASES, Case  # noqa: E402
from operators import SIDE_MULTIPLE, backend_of  # noqa: E402

from resshift_fast import backends  # noqa: E402
from resshift_fast.cli import console  # noqa: E402
from resshift_fast.core import devices  # noqa: E402
from resshift_fast.core.accuracy import full_float32  # noqa: E402
from resshift_fast.measure.workers import Worker, WorkerError  # noqa: E402
from resshift_fast.pipeline import DTYPES  # noqa: E402

COLUMNS = ("operator", "case", "dtype", "pass", "backend", "verdict", "error", "allowed", "problem")
RIGHT, WRONG, NONE = "right", "wrong", "no kernel takes it"


class Checker:
    """Checks single calls, in a worker process.

    Args:
        device: where. names: backends. latent, batch: side of the latent in pixels, and number of images.
    """

    def __init__(self, device: str, names: list[str], latent: int, batch: int):
        os.environ["RESSHIFT_FAST_VERIFY"] = "0"  # what verification would leave off is to be seen here
        self.device, self.names = torch.device(device), names
        self.latent, self.batch = latent, batch

    def check(self, number: int, dtype: str, backward: bool) -> list[dict[str, Any]]:
        """A row for each backend: case `number` of the table, forward, or its gradients."""
        case = CASES[number]
        operator, kind = OPERATORS[case.op], DTYPES[dtype]
        with full_float32():
            arguments = case.arguments(self.device, kind, self.latent, self.batch)
            takers = [name for name in self.names if self._takes(name, operator.name, arguments)]
            none = [{"backend": name, "verdict": NONE} for name in self.names if name not in takers]
            if not takers:
                return none
            weights = None
            if backward:
                with torch.no_grad():
                    weights = measure.output_weights(measure.tensors(operator.plain(**arguments)), kind)
            plain = measure.results(operator.plain, arguments, operator.differentiable, weights)
            exact = measure.results(operator.plain, measure.in_double(arguments), operator.differentiable, weights)
            return none + [self._row(name, operator, arguments, weights, plain, exact) for name in takers]

    def _takes(self, name: str, operator: str, arguments: dict[str, Any]) -> bool:
        """Whether a backend has a kernel that takes a call."""
        with backends.use_backend(name):
            return backend_of(operator, arguments) == name

    def _row(self, name: str, operator: Any, arguments: Any, weights: Any, plain: Any, exact: Any) -> dict[str, Any]:
        with backends.use_backend(name):
            try:
                found = measure.results(operator.public, arguments, operator.differentiable, weights)
                if self.device.type == "cuda":
                    torch.cuda.synchronize(self.device)
            except Exception as error:
                if self._broken():
                    raise
                return {"backend": name, "verdict": WRONG, "problem": f"{type(error).__name__}: {brief(error)}"}
        check = measure.compare(found, plain, exact)
        figures = {"error": check.error, "allowed": check.allowed, "problem": check.problem}
        return {"backend": name, "verdict": WRONG if check.problem else RIGHT, **figures}

    def _broken(self) -> bool:
        """Whether the CUDA context, and so this process, has become unusable."""
        try:
            return self.device.type == "cuda" and bool(torch.zeros(1, device=self.device).item())
        except RuntimeError:
            return True


def brief(error: BaseException) -> str:
    return console.one_line(error)[:300]


Task = tuple[int, str, bool]  # number of a case, dtype, and whether its gradients are checked


def tasks(cases: Iterable[Case], dtypes: list[str], backward: bool) -> list[Task]:
    """The calls, dtype by dtype; gradients of each operator's first case only."""
    found, seen = [], set()
    for dtype in dtypes:
        for case in cases:
            if OPERATORS[case.op].float32_only and dtype != "float32" and "float32" in dtypes:
                continue  # its latents are float32 in any case
            found.append((CASES.index(case), dtype, False))
            if backward and OPERATORS[case.op].differentiable and (case.op, dtype) not in seen:
                found.append((CASES.index(case), dtype, True))
            seen.add((case.op, dtype))
    return found


def checked(todo: list[Task], args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The rows of all calls from `jobs` processes, in the order in which they finish."""
    own = threading.local()

    def work(task: Task) -> list[dict[str, Any]]:
        number, dtype, backward = task
        case = CASES[number]
        shared = {"operator": case.op, "case": case.label(args.latent, args.batch), "dtype": dtype}
        shared |= {"pass": "backward" if backward else "forward"}
        watch = None
        try:
            if getattr(own, "worker", None) is None:
                own.worker = Worker(Checker, args.device, args.backend, args.latent, args.batch)
                workers.append(own.worker)
            watch = threading.Timer(args.limit, own.worker.kill)
            watch.start()
            return [shared | row for row in own.worker.call("check", number, dtype, backward)]
        except WorkerError as error:
            if own.worker is not None:
                own.worker.kill()
            own.worker = None
            return [shared | {"backend": " or ".join(args.backend), "verdict": WRONG, "problem": brief(error)}]
        finally:
            if watch:
                watch.cancel()

    workers: list[Worker] = []
    with ThreadPoolExecutor(args.jobs) as pool:
        try:
            for future in as_completed([pool.submit(work, task) for task in todo]):
                yield from future.result()
        finally:
            pool.shutdown(cancel_futures=True)
            for worker in workers:
                worker.kill()


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    args = _options(argv)
    console.prepare_streams()
    try:
        args.device = str(devices.usable_device(args.device))
    except ValueError as error:
        console.report(error)
        return 1
    absent = {name: reason for name in args.backend if (reason := backends.unavailable(name))}
    args.backend = [name for name in args.backend if name not in absent]
    cases = [case for case in CASES if not args.op or case.op in args.op]
    if args.quick:
        cases = list({case.op: case for case in reversed(cases)}.values())[::-1]
    todo = tasks(cases, args.dtype, args.backward) if args.backend else []
    names = ", ".join(args.backend) or "none"
    print(f"{len(todo)} calls, backends {names}, {args.jobs} processes on {args.device}", flush=True)
    counts: dict[str, int] = {}
    with open(args.csv or os.devnull, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        missing = [{"backend": name, "verdict": WRONG, "problem": reason} for name, reason in absent.items()]
        for row in chain(missing, checked(todo, args)):
            writer.writerow(row)
            file.flush()
            counts[row["verdict"]] = counts.get(row["verdict"], 0) + 1
            print(line(row), flush=True)
    print(", ".join(f"{number} {verdict}" for verdict, number in sorted(counts.items())))
    if not counts.get(RIGHT):
        print("error: no kernel was checked", file=sys.stderr)
    return int(bool(counts.get(WRONG)) or not counts.get(RIGHT))


def line(row: dict[str, Any]) -> str:
    """A row as one line."""
    call = [f"{row['operator']}-{row['case']}", row["dtype"], row["pass"]] if "case" in row else []
    words = [*call, row["backend"] + ":", row["verdict"]]
    if row.get("error") is not None:
        words.append(f"error {row['error']:.1e} of {row['allowed']:.1e}")
    return " ".join([*words, row.get("problem") or ""]).rstrip()


def _options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", help="Default: cuda if available, else cpu.")
    parser.add_argument("--backend", nargs="+", choices=backends.names()[2:], default=["cuda", "triton"])
    parser.add_argument("--dtype", nargs="+", choices=list(DTYPES), default=["bfloat16"], help="Default: bfloat16.")
    parser.add_argument("--op", nargs="+", choices=sorted(OPERATORS), metavar="NAME", help="Default: all operators.")
    parser.add_argument("--quick", action="store_true", help="The first case of each operator only.")
    parser.add_argument("--backward", action="store_true", help="Gradients of each operator's first case too.")
    parser.add_argument("--latent", type=_side, default=64, metavar="N", help="Side of the latent. Default: 64.")
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="Images. Default: 1.")
    parser.add_argument("--jobs", type=int, default=4, metavar="N", help="Processes. Default: 4.")
    parser.add_argument("--limit", type=float, default=90, metavar="S", help="Seconds for one call. Default: 90.")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="Where the rows are written, too.")
    return parser.parse_args(argv)


def _side(text: str) -> int:
    if int(text) % SIDE_MULTIPLE or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a multiple of {SIDE_MULTIPLE}")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
