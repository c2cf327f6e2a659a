"""Measures whole restorations by several providers and dtypes in turns: time, memory, accuracy and speed-ups.

Every case runs in its own process, so that its memory is measured separately, it compiles once, and its failure does
not affect the others. Only one of them works at a time, and each round begins with another, so that a changing load on
the machine affects all alike.
"""

import csv
import io
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from resshift_fast.backends import autotune_cache
from resshift_fast.core import devices
from resshift_fast.core.files import make_folder, write_atomically
from resshift_fast.measure.providers import STAGES, WHOLE, Case, First, Run, Runner, gemm_rate
from resshift_fast.measure.workers import Worker, WorkerError

LEAST_PSNR = {"float32": 80.0, "bfloat16": 35.0, "float16": 45.0}  # dB against the plain float32 restoration
MB = 1e6


@dataclass
class Result:
    """The measurements of a case.

    Args:
        case: what ran.
        first: its first restoration; None if it failed.
        psnr: in dB against the plain float32 restoration; see `Runner.pixels` for random weights.
        runs: the timed ones.
        problem: why the measurement ended early; empty if it did not.
        gflop: GFLOP of the plain networks by stage, and of the whole.
        gemm: GFLOP/s of large matrix products in the case's dtype.
        against_reference, against_compile: speed-up over plain float32, and over torch.compile in the same dtype; None
            if that was not measured or one of the two is not equivalent.
    """

    case: Case
    first: First | None = None
    psnr: float = math.nan
    runs: list[Run] = field(default_factory=list)
    problem: str = ""
    gflop: dict[str, float] = field(default_factory=dict)
    gemm: float = math.nan
    against_reference: float | None = None
    against_compile: float | None = None

    @property
    def timed(self) -> bool:
        """Whether all runs succeeded."""
        return bool(self.runs) and not self.problem

    @property
    def equivalent(self) -> bool:
        """Whether the result is close enough to plain float32 for a speed-up to be reported."""
        return self.psnr >= LEAST_PSNR[self.case.dtype]

    @property
    def note(self) -> str:
        """What went wrong, or why there is no speed-up."""
        if self.problem or self.equivalent:
            return self.problem
        if self.first is None:
            return "not reached"
        return f"no speed-up: {self.psnr:.1f} dB PSNR, expected at least {LEAST_PSNR[self.case.dtype]:g}"

    @property
    def stages(self) -> list[str]:
        """The stages that were timed, and the whole."""
        return [stage for stage in (*STAGES, WHOLE) if self.timed and stage in self.runs[0].seconds]

    def seconds(self, stage: str = WHOLE) -> tuple[float, float, float]:
        """(median, minimum, maximum) of the runs, in seconds."""
        values = [run.seconds[stage] for run in self.runs]
        return statistics.median(values), min(values), max(values)

    def rate(self, stage: str = WHOLE) -> float:
        """Effective GFLOP/s: the plain networks' operations divided by the median seconds."""
        return self.gflop.get(stage, math.nan) / self.seconds(stage)[0]

    @property
    def peak_mb(self) -> float | None:
        """Peak memory up to the end of the first restoration, in MB of 10⁶ bytes."""
        return None if self.first is None else self.first.peak_bytes / MB

    @property
    def running_mb(self) -> float | None:
        """Peak memory of the timed runs, weights included, in MB of 10⁶ bytes; None if that is not known."""
        peaks = [run.peak_bytes for run in self.runs if run.peak_bytes is not None]
        return max(peaks) / MB if peaks else None

    def cells(self) -> dict[str, Any]:
        """The row of a CSV file; unknown values are None."""
        found: dict[str, Any] = {"provider": self.case.provider, "dtype": self.case.dtype}
        for stage in (*STAGES, WHOLE):
            known = stage in self.stages
            for name, value in zip(
                ("median", "least", "most"), self.seconds(stage) if known else [None] * 3, strict=True
            ):
                found[f"{stage}_{name}_s"] = value
            found[f"{stage}_gflops"] = self.rate(stage) if known else None
            found[f"{stage}_share_of_gemm"] = self.rate(stage) / self.gemm if known else None
        return found | {
            "gemm_gflops": self.gemm,
            "peak_mb": self.peak_mb,
            "running_mb": self.running_mb,
            "psnr_db": self.psnr,
            "speedup_reference_float32": self.against_reference,
            "speedup_compile": self.against_compile,
            "ready_s": None if self.first is None else self.first.seconds,
            "note": self.note,
        }


@dataclass(frozen=True)
class Report:
    """All measurements.

    Args:
        results: in the order of the cases.
        gflop: GFLOP of the plain networks by stage, and of the whole.
        gemm: GFLOP/s of large matrix products, by dtype.
        device: its model. threads: torch's threads on the CPU.
    """

    results: list[Result]
    gflop: dict[str, float]
    gemm: dict[str, float]
    device: str
    threads: int


def psnr(result: np.ndarray, exact: np.ndarray) -> float:
    """Peak signal-to-noise ratio of images in [0, 1], in dB; NaN if shapes differ."""
    if result.shape != exact.shape:
        return math.nan
    error = float(np.mean((result.astype(np.float64) - exact) ** 2))
    return math.inf if error == 0 else -10 * math.log10(error)


def measure(
    cases: Sequence[Case],
    runs: int,
    say: Callable[[str], None] = lambda text: None,
    keep: Callable[[list[Result]], None] = lambda results: None,
) -> Report:
    """Measure cases that differ in provider and dtype only.

    Args:
        cases: at least one.
        runs: timed runs of each.
        say: called with a line about every step.
        keep: called with the results so far, whenever one of them has changed.

    Raises:
        ValueError: for bad arguments, or if the plain float32 restoration fails, which all are compared with.
    """
    if runs < 1:
        raise ValueError(f"runs is {runs}, expected at least 1")
    names = [case.name for case in cases]
    if not names or len({*names}) < len(names):
        raise ValueError(f"expected cases that differ, got {', '.join(names) or 'none'}")
    device = devices.usable_device(cases[0].device)
    results = {case.name: Result(case) for case in cases}
    with ExitStack() as stack, _threads(cases[0].threads) as threads:
        exact, gflop = _exact(replace(cases[0], provider="reference", dtype="float32"), say)
        workers: dict[str, Worker] = {}
        for result in results.values():
            _begin(result, exact, workers, stack, say)
            keep(list(results.values()))
        gemm = _take_turns(results, workers, runs, device, say, lambda: keep(list(results.values())))
    for result in results.values():
        result.gflop, result.gemm = gflop, gemm[result.case.dtype]
    _compare(results)
    return Report(list(results.values()), gflop, gemm, autotune_cache.device_name(device) or str(device), threads)


@contextmanager
def _threads(wanted: int | None) -> Iterator[int]:
    """Set torch's threads to those of the workers within the block; the value is their number."""
    before = torch.get_num_threads()
    torch.set_num_threads(wanted or before)
    try:
        yield wanted or before
    finally:
        torch.set_num_threads(before)


def _exact(case: Case, say: Callable) -> tuple[np.ndarray, dict[str, float]]:
    """(pixels, GFLOP by stage) of the plain float32 restoration, from a separate worker."""
    say("plain float32 restoration, which all are compared with")
    try:
        with Worker(Runner, case) as worker:
            return worker.call("pixels"), {stage: number / 1e9 for stage, number in worker.call("operations").items()}
    except WorkerError as error:
        raise ValueError(f"the plain float32 restoration, which all are compared with, failed: {error}") from None


def _begin(result: Result, exact: np.ndarray, workers: dict[str, Worker], stack: ExitStack, say: Callable) -> None:
    """Start a case's worker and run its first restoration."""
    name = result.case.name
    say(f"{name}: building and restoring for the first time")
    try:
        workers[name] = Worker(Runner, result.case)
        stack.callback(workers[name].close)
        result.first = workers[name].call("first")
        result.psnr = psnr(workers[name].call("pixels"), exact)
    except WorkerError as error:
        result.problem = f"failed: {error}"
        say(f"{name} {result.problem}")
        if name in workers:
            workers[name].close()
        return
    say(f"{name}: ready after {result.first.seconds:.1f} s, {result.psnr:.1f} dB PSNR, peak {result.peak_mb:,.0f} MB")


def _take_turns(
    results: dict[str, Result],
    workers: dict[str, Worker],
    runs: int,
    device: torch.device,
    say: Callable,
    after_round: Callable[[], None],
) -> dict[str, float]:
    """Time all cases in turns; returns the GFLOP/s of matrix products, by dtype."""
    gemm = {result.case.dtype: 0.0 for result in results.values()}
    order = list(results)
    for turn in range(runs):
        say(f"round {turn + 1} of {runs}")
        for dtype in gemm:
            gemm[dtype] = max(gemm[dtype], gemm_rate(dtype, device) / 1e9)
        first = turn % len(order)
        for name in order[first:] + order[:first]:
            result = results[name]
            if result.problem:
                continue
            try:
                result.runs.append(workers[name].call("run"))
            except WorkerError as error:
                result.problem = f"failed in round {turn + 1}: {error}"
                workers[name].close()
                say(f"{name} {result.problem}")
        after_round()
    return gemm


def _compare(results: dict[str, Result]) -> None:
    """Fill in the speed-ups."""
    usable = {name: result.seconds()[0] for name, result in results.items() if result.timed and result.equivalent}
    for name, taken in usable.items():
        result = results[name]
        plain, compiled = usable.get("reference float32"), usable.get(f"compile {result.case.dtype}")
        result.against_reference = plain and plain / taken
        result.against_compile = compiled and compiled / taken


def write_csv(report: Report, path: Path) -> None:
    """Write one row per case, with empty cells for unknown values; creates the folder.

    Raises:
        OSError: if it cannot be written.
    """
    rows = [result.cells() for result in report.results]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    make_folder(path.parent)
    write_atomically(path, text.getvalue().encode())
