"""Plots of measurements. matplotlib, from the extra `bench`, is imported only here."""

import io
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from resshift_fast.core.files import make_folder, write_atomically
from resshift_fast.measure.end_to_end import Report, Result
from resshift_fast.measure.providers import STAGES, WHOLE

COLOURS = dict(zip((*STAGES, "rest"), ("#4477aa", "#ee6677", "#228833", "#bbbbbb"), strict=True))


def check() -> None:
    """Check that a plot can be drawn, before hours of measurements.

    Raises:
        ValueError: if matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise ValueError("--plot needs matplotlib, which is not installed; pip install 'resshift-fast[bench]'")


def figure(columns: int, title: str) -> tuple[Any, Any]:
    """(figure, axes of each column), without a window."""
    from matplotlib.figure import Figure

    made = Figure(figsize=(4.6 * columns, 3.8), layout="constrained")
    made.suptitle(title, fontsize=11)
    return made, made.subplots(1, columns)


def save(drawn: Any, path: Path) -> None:
    """Write a figure as PNG; creates the folder.

    Raises:
        OSError: if it cannot be written.
    """
    data = io.BytesIO()
    drawn.savefig(data, format="png", dpi=150)
    make_folder(path.parent)
    write_atomically(path, data.getvalue())


def end_to_end(report: Report, title: str, path: Path) -> None:
    """Plot seconds by stage, peak memory and effective GFLOP/s of every timed case, as PNG."""
    results = [result for result in report.results if result.timed]
    drawn, (seconds, memory, rate) = figure(3, title)
    names = [f"{result.case.provider}\n{result.case.dtype}" for result in results]
    places = range(len(results))
    _stack_seconds(seconds, results)
    width = 0.4
    for shift, label, values in (
        (-width / 2, "with build and first run", [result.peak_mb for result in results]),
        (width / 2, "later runs", [result.running_mb or 0 for result in results]),
    ):
        memory.bar([place + shift for place in places], values, width, label=label)
    memory.set_ylabel("peak memory, MB")
    rate.bar(places, [result.rate() for result in results], color="#66ccee")
    for dtype, gemm in report.gemm.items():
        rate.axhline(gemm, linestyle="--", color="black", linewidth=0.8)
        rate.annotate(f"{dtype} GEMM", (0.01, gemm), xycoords=("axes fraction", "data"), va="bottom", fontsize=7)
    rate.set_ylabel("effective GFLOP/s")
    for axes in (seconds, memory, rate):
        axes.set_xticks(list(places), names, fontsize=7)
        axes.set_ylim(bottom=0)
    seconds.legend(fontsize=7)
    memory.legend(fontsize=7)
    save(drawn, path)


def _stack_seconds(axes: Any, results: list[Result]) -> None:
    """Bars of the median seconds, stacked by stage, with the spread of the whole."""
    whole = [result.seconds() for result in results]
    base = [0.0] * len(results)
    for stage in (*STAGES, "rest"):
        if stage == "rest":
            heights = [max(0.0, median - below) for (median, *_), below in zip(whole, base, strict=True)]
        else:
            heights = [result.seconds(stage)[0] if stage in result.stages else 0.0 for result in results]
        axes.bar(range(len(results)), heights, bottom=base, label=stage, color=COLOURS[stage])
        base = [below + height for below, height in zip(base, heights, strict=True)]
    spread = [[median - least for median, least, _ in whole], [most - median for median, _, most in whole]]
    tops = [median for median, *_ in whole]
    axes.errorbar(range(len(results)), tops, yerr=spread, fmt="none", color="black", capsize=3)
    axes.set_ylabel(f"seconds ({WHOLE}: median, min, max)")
