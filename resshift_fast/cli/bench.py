"""`resshift-fast bench`: the cost of a restoration, counted and projected; `tune` and `e2e` are in their own files."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from resshift_fast.cli.options import option

if TYPE_CHECKING:
    import torch

    from resshift_fast.measure.counting import Row

app = typer.Typer(name="bench", rich_markup_mode=None, no_args_is_help=True)

DTYPES = ("bfloat16", "float16", "float32")

Model = Annotated[str, option("Model to count. Default: realsr-x4-v3.", "--model", metavar="NAME")]
Size = Annotated[int, option("Side of the square input, in pixels. Default: 64.", metavar="N")]
Batch = Annotated[int, option("Images restored at once. Default: 1.", metavar="N", min=1)]
Dtype = Annotated[str, option(f"One of {', '.join(DTYPES)}. Default: bfloat16.", metavar="D")]
Csv = Annotated[Path | None, option("Also write the table to FILE. Default: no.", "--csv", metavar="FILE")]


@app.callback()
def bench() -> None:
    """Count, project or measure the cost of a restoration, or autotune the choice of kernels."""


def count(
    model: Model = "realsr-x4-v3",
    size: Size = 64,
    batch: Batch = 1,
    dtype: Dtype = "bfloat16",
    table: Csv = None,
) -> None:
    """Count dispatched operators and bytes moved on a GPU, without a GPU and without running anything.

    PLAIN is PyTorch alone, FUSED the Triton kernels. MB are millions of bytes read and written. Views are not counted;
    for an operator of this library its kernel launches are counted.
    """
    from resshift_fast.measure.counting import PATHS, count_sample, total

    counted = {path: count_sample(model, path, size=(size, size), batch=batch, dtype=_dtype(dtype)) for path in PATHS}
    plain, fused = counted["plain"], counted["fused"]
    names = sorted(
        {*plain, *fused}, key=lambda name: -max(rows[name].num_bytes for rows in (plain, fused) if name in rows)
    )
    columns = "{:<42} {:>8} {:>10} {:>8} {:>10}"
    print(f"{model}, {size}x{size} input, batch {batch}, {dtype}, {_steps(model)} steps, from pixels to pixels")
    print(columns.format("OPERATOR", "PLAIN", "MB", "FUSED", "MB"))
    for name in [*names, None]:
        cells = [_cells(total(rows) if name is None else rows.get(name)) for rows in (plain, fused)]
        print(columns.format(name or "all", *cells[0], *cells[1]))
    if table is not None:
        header = ("operator", "plain_count", "plain_bytes", "fused_count", "fused_bytes")
        counts = [[value for rows in (plain, fused) for value in _counts(rows.get(name))] for name in names]
        _write(table, header, [[name, *row] for name, row in zip(names, counts, strict=True)])


def roofline(
    gpu: Annotated[str, option("h100, h200, a100, l40s or 4090. Default: h100.", metavar="NAME")] = "h100",
    path: Annotated[str, option("plain or fused. Default: fused.", metavar="PATH")] = "fused",
    model: Model = "realsr-x4-v3",
    size: Size = 64,
    batch: Batch = 1,
    dtype: Dtype = "bfloat16",
    table: Csv = None,
) -> None:
    """Project the least time on a GPU from its data sheet: bytes over bandwidth, or operations over matrix rate.

    Nothing is measured. MB are millions of bytes, FLOOR us is the projected least time in microseconds, and
    MEMORY-BOUND is the number of calls that bandwidth limits.
    """
    from resshift_fast.measure import roofline as model_of
    from resshift_fast.measure.counting import count_sample, total

    chosen = model_of.get(gpu)
    torch_dtype = _dtype(dtype)
    rows = count_sample(model, path, size=(size, size), batch=batch, dtype=torch_dtype, arch=chosen.arch)
    floors = model_of.project(rows, chosen, torch_dtype.itemsize)
    case = f"{model}, {size}x{size} input, batch {batch}, {dtype}, {path}"
    print(f"PROJECTION for {chosen.title}, not a measurement: {case}")
    columns = "{:<42} {:>8} {:>10} {:>10} {:>10} {:>14}"
    print(columns.format("OPERATOR", "COUNT", "MB", "GFLOP", "FLOOR us", "MEMORY-BOUND"))
    for name, floor in floors.items():
        print(columns.format(name, *_measures(rows[name]), f"{floor.seconds * 1e6:.1f}", floor.memory_bound))
    seconds = sum(floor.seconds for floor in floors.values())
    bound = sum(floor.memory_bound for floor in floors.values())
    print(columns.format("all", *_measures(total(rows)), f"{seconds * 1e6:.1f}", bound))
    if table is not None:
        header = ("operator", "count", "bytes", "matrix_operations", "floor_seconds", "memory_bound_count")
        body = [
            [
                name,
                rows[name].count,
                rows[name].num_bytes,
                rows[name].matrix_operations,
                floor.seconds,
                floor.memory_bound,
            ]
            for name, floor in floors.items()
        ]
        _write(table, header, body)


def _dtype(name: str) -> torch.dtype:
    import torch

    if name not in DTYPES:
        raise ValueError(f"dtype is {name!r}, expected one of {', '.join(DTYPES)}")
    return getattr(torch, name)


def _steps(model: str) -> int:
    from resshift_fast.models import catalog

    return catalog.get(model).schedule.num_steps


def _cells(row: Row | None) -> tuple[str, str]:
    return ("-", "-") if row is None else (f"{row.count:,}", f"{row.num_bytes / 1e6:,.1f}")


def _counts(row: Row | None) -> tuple[int, int]:
    return (0, 0) if row is None else (row.count, row.num_bytes)


def _measures(row: Row) -> tuple[str, str, str]:
    return f"{row.count:,}", f"{row.num_bytes / 1e6:,.1f}", f"{row.matrix_operations / 1e9:,.1f}"


def _write(path: Path, header: tuple, rows: list[list]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
