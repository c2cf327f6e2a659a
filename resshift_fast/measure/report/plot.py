"""The report as a plot with four panels."""

import io
from pathlib import Path
from typing import Any

from resshift_fast.core.files import write_atomically
from resshift_fast.measure.report.show import shortened
from resshift_fast.measure.report.tables import MS, US, Report

BUSY, IDLE, FLOOR = "tab:blue", "tab:orange", "black"
ROWS = 12  # of operators and kernels


def write(report: Report, path: Path) -> None:
    """Draw the report into a PNG file.

    Raises:
        ImportError: without matplotlib.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(17, 11), layout="constrained")
    figure.suptitle(_title(report), fontsize=11)
    (stages, operators), (kernels, gaps) = figure.subplots(2, 2)
    _stages(stages, report)
    _operators(operators, report)
    _kernels(kernels, report)
    _gaps(gaps, report)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110)
    write_atomically(path, content.getvalue())


def _title(report: Report) -> str:
    device = report.settings.get("device_name") or report.trace.device
    what = report.settings.get("title") or "restorations"
    time, share = report.whole / MS / report.count, 100 * report.busy / report.whole
    return f"{what} on {device}, {report.trace.recorder}: {time:.2f} ms, busy {share:.0f} % of it"


def _bars(axis: Any, names: list[str], values: list[float], title: str, **style: Any) -> None:
    axis.barh(range(len(names)), values, **style)
    axis.set_yticks(range(len(names)), names, fontsize=8)
    axis.invert_yaxis()
    axis.set_title(title, fontsize=10)
    axis.set_xlabel("ms in a restoration")
    axis.margins(x=0.12)


def _stages(axis: Any, report: Report) -> None:
    per = MS * report.count
    busy = [stage.busy / per for stage in report.stages]
    idle = [stage.gaps / per for stage in report.stages]
    _bars(axis, [stage.name for stage in report.stages], busy, "Stages", color=BUSY, label="busy")
    axis.barh(range(len(idle)), idle, left=busy, color=IDLE, label="idle")
    for i, (one, other) in enumerate(zip(busy, idle, strict=True)):
        axis.text(one + other, i, f" {one + other:.2f}", va="center", fontsize=8)
    axis.legend(fontsize=8)


def _operators(axis: Any, report: Report) -> None:
    per = MS * report.count
    shown = report.operators[:ROWS]
    names = [share.name for share in shown]
    _bars(axis, names, [share.busy / per for share in shown], "Operators", color=BUSY, label="measured")
    floors = [(i, share.floor / MS) for i, share in enumerate(shown) if share.floor is not None]
    for i, share in enumerate(shown):
        axis.text(share.busy / per, i, f" {share.busy / per:.3g}", va="center", fontsize=8)
    if floors:
        places, values = zip(*floors, strict=True)
        label = f"projected floor on {report.settings['floor_gpu']}"
        axis.scatter(values, places, marker="|", s=220, linewidths=2, color=FLOOR, label=label, zorder=3)
        axis.legend(fontsize=8, loc="lower right")


def _kernels(axis: Any, report: Report) -> None:
    per = MS * report.count
    shown = report.kernels[:ROWS]
    title = "Operators by their own time" if report.trace.on_cpu else "Kernels"
    _bars(axis, [shortened(share.name, 44) for share in shown], [s.busy / per for s in shown], title, color=BUSY)
    for i, share in enumerate(shown):
        axis.text(share.busy / per, i, f" {share.calls / report.count:.0f}×", va="center", fontsize=8)


def _gaps(axis: Any, report: Report) -> None:
    """Idle time by the length of its gaps, which shows whether many short or few long gaps cause it."""
    lengths = [max(gap.duration / US, 0.1) for gap in report.gaps]
    edges = [10 ** (e / 4) for e in range(-4, 29)]  # 0.1 µs to 10 s
    used = [e for e in edges if lengths and min(lengths) / 2 <= e <= max(lengths) * 2] or edges
    weights = [gap.duration / MS / report.count for gap in report.gaps]
    axis.hist(lengths, bins=used, weights=weights, color=IDLE)
    axis.set_xscale("log")
    axis.set_title(f"Gaps: {len(lengths) / report.count:.0f} in a restoration", fontsize=10)
    axis.set_xlabel("length of a gap in µs")
    axis.set_ylabel("ms in a restoration")
