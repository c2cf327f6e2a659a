"""The report as text, as CSV files and as a plot."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from resshift_fast.core.files import write_atomically
from resshift_fast.measure.report.tables import MS, US, Report, Share
from resshift_fast.measure.table import table

WIDTH = 72  # characters of a kernel's name in the text; CSV files have all of it


def text(report: Report, top: int) -> str:
    """All tables for a terminal.

    Args:
        report: the report.
        top: number of rows of operators, of kernels and of gaps; files have all of them.
    """
    on_cpu, restorations = report.trace.on_cpu, f"{report.count} restoration{'s' * (report.count > 1)}"
    calls = {_calls(report): ",.1f"}
    floor = {} if report.floor is None else {"floor ms": ".3f", "times floor": ".1f"}
    gaps = {"idle ms": ".3f", "% of all": ".1f", "longest gap µs": ",.1f"}
    mean = {"ms": ".3f", "% of busy": ".1f", "mean µs": ",.1f"}
    parts = [
        "\n".join(_heading(report)),
        "Stages: time in which anything ran, and in which nothing did; together the whole restoration.",
        table({"stage": ""} | calls | {"busy ms": ".3f"} | gaps, _stage_rows(report)),
        _about_operators(report),
        table({"operator": ""} | calls | {"ms": ".3f", "% of busy": ".1f"} | floor, _first_operators(report, top)),
        f"{'Operators by their own time' if on_cpu else 'Kernels'}, {_first(top, report.kernels)}:",
        table(
            {_kernel(report): "", "operator": "", "calls": ",.1f"} | mean,
            [_cut(row, WIDTH, _kernel(report)) for row in _kernel_rows(report)[:top]],
        ),
        f"Gaps, {_first(top, report.gaps)} in {restorations}:",
        table(
            {"µs": ",.1f", "stage": "", "after": "", "before": ""},
            [_cut(row, WIDTH // 2, "after", "before") for row in _gap_rows(report)[:top]],
        ),
    ]
    return "\n\n".join(parts) + "\n"


def _first(top: int, rows: Sequence[Any]) -> str:
    return f"the longest {min(top, len(rows))} of {len(rows):,}"


def _cut(row: dict[str, Any], width: int, *names: str) -> dict[str, Any]:
    return row | {name: shortened(row[name], width) for name in names}


def write_csv(report: Report, folder: Path) -> list[Path]:
    """stages.csv, operators.csv, kernels.csv and gaps.csv with all rows; returns the files."""
    tables = {
        "stages": _stage_rows(report),
        "operators": _operator_rows(report),
        "kernels": _kernel_rows(report),
        "gaps": _gap_rows(report),
    }
    paths = []
    for name, rows in tables.items():
        content = io.StringIO()
        writer = csv.DictWriter(content, list(rows[0]) if rows else [], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        paths.append(folder / f"{name}.csv")
        write_atomically(paths[-1], content.getvalue().encode())
    return paths


def shortened(name: str, width: int = WIDTH) -> str:
    """A kernel's name without the words that all names share, truncated if it is too long."""
    name = name.removeprefix("void ").replace("at::native::", "").replace("(anonymous namespace)::", "")
    return name if len(name) <= width else name[: width - 1] + "…"


def _heading(report: Report) -> list[str]:
    trace, settings = report.trace, report.settings
    device = settings.get("device_name") or trace.device or "a device without a name"
    spread = f" (from {min(report.wall) / MS:.3f} to {max(report.wall) / MS:.3f})" if report.count > 1 else ""
    whole, busy, idle = (_mean(value, report) for value in (report.whole, report.busy, report.idle))
    figures = {"time of a restoration": f"{whole:.3f} ms, the mean of {report.count}{spread}"}
    if "seconds_without_profiler" in settings:
        figures["without the profiler"] = f"{settings['seconds_without_profiler'] * 1e3:.3f} ms, a single one"
    figures["busy"] = f"{busy:.3f} ms ({100 * busy / whole:.1f} %)"
    figures["idle"] = f"{idle:.3f} ms ({100 * idle / whole:.1f} %): nothing ran, the device waited for work"
    if report.floor is not None:
        floor = report.floor / MS
        figures["projected floor"] = f"{floor:.3f} ms on {settings['floor_gpu']}; busy is {busy / floor:.1f} times that"
    return [
        f"{settings.get('title') or 'Restorations'} on {device}, recorded by {trace.recorder}",
        "",
        *(f"{label:<23} {value}" for label, value in figures.items()),
        *([""] if report.notes else []),
        *report.notes,
    ]


def _about_operators(report: Report) -> str:
    line = "Operators:"
    if report.floor is not None:
        line += " floor is the least time that bytes and matrix operations allow, a projection, not a measurement."
        if report.unmatched:
            line += f"\n{report.unmatched / MS:.3f} ms of it are of operators that have no row here."
    return line


def _calls(report: Report) -> str:
    return "calls, nested too" if report.trace.on_cpu else "kernels"


def _kernel(report: Report) -> str:
    return "innermost operator" if report.trace.on_cpu else "kernel"


def _mean(value: float, report: Report, unit: float = MS) -> float:
    return value / unit / report.count


def _stage_rows(report: Report) -> list[dict[str, Any]]:
    rows = [
        {
            "stage": stage.name,
            _calls(report): stage.calls / report.count,
            "busy ms": _mean(stage.busy, report),
            "idle ms": _mean(stage.gaps, report),
            "% of all": 100 * (stage.busy + stage.gaps) / report.whole,
            "longest gap µs": stage.longest / US,
        }
        for stage in report.stages
    ]
    return [*rows, _total(rows, "stage")]


def _operator_rows(report: Report) -> list[dict[str, Any]]:
    rows = [
        {
            "operator": share.name,
            _calls(report): share.calls / report.count,
            "ms": _mean(share.busy, report),
            "% of busy": 100 * share.busy / report.busy,
            "floor ms": None if share.floor is None else share.floor / MS,
            "times floor": _ratio(share, report),
        }
        for share in report.operators
    ]
    whole = _total(rows, "operator")
    if report.floor is not None:
        whole |= {"floor ms": report.floor / MS, "times floor": _mean(report.busy, report, 1) / report.floor}
    return [*rows, whole]


def _first_operators(report: Report, top: int) -> list[dict[str, Any]]:
    *rows, whole = _operator_rows(report)
    others = _total(rows[top:], "operator") | {"operator": f"{len(rows) - top} others"} if len(rows) > top else None
    return [*rows[:top], *([others] if others else []), whole]


def _ratio(share: Share, report: Report) -> float | None:
    # No kernel takes less than about a microsecond, even if its floor is lower.
    return None if share.floor is None or share.floor < US else _mean(share.busy, report, 1) / share.floor


def _total(rows: Sequence[dict[str, Any]], label: str) -> dict[str, Any]:
    whole: dict[str, Any] = {label: "all"}
    for name in rows[0] if rows else ():
        if name == "longest gap µs":
            whole[name] = max(row[name] for row in rows)
        elif name not in (label, "floor ms", "times floor"):
            whole[name] = sum(row[name] for row in rows)
    return whole


def _kernel_rows(report: Report) -> list[dict[str, Any]]:
    return [
        {
            _kernel(report): share.name,
            "operator": share.operator,
            "calls": share.calls / report.count,
            "ms": _mean(share.busy, report),
            "% of busy": 100 * share.busy / report.busy,
            "mean µs": share.busy / US / max(share.calls, 1),
            "longest µs": share.longest / US,
        }
        for share in report.kernels
    ]


def _gap_rows(report: Report) -> list[dict[str, Any]]:
    return [
        {"µs": gap.duration / US, "stage": gap.stage, "after": gap.before, "before": gap.after} for gap in report.gaps
    ]
