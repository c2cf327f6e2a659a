"""`resshift-fast bench`: the cost of a restoration, counted and projected; `tune` and `e2e` are in their own files."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from resshift_fast.cli.options import option

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from resshift_fast.measure.counting import Row, Sample
    from resshift_fast.measure.roofline import Expected, Floor

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
    shapes: Annotated[bool, option("Print the launches of FUSED by shape instead. Default: no.", "--by-shape")] = False,
    fewer: Annotated[
        int | None,
        option(
            "Print only launches of FUSED with fewer than N thread blocks, and why they are few. Default: no.",
            "--fewer-blocks",
            metavar="N",
            min=1,
        ),
    ] = None,
    table: Csv = None,
) -> None:
    """Count dispatched operators and bytes moved on a GPU, without a GPU and without running anything.

    PLAIN is PyTorch alone, FUSED the Triton kernels. MB are millions of bytes read and written. Views are not counted;
    for an operator of this library its kernel launches are counted. What is derived from the weights once, not in every
    restoration, is counted apart.

    With --by-shape, BLOCKS are the thread blocks of a launch, and FILLED is the share of an H100's 132 multiprocessors
    that have one; ~ marks an estimate for PyTorch's own operators, whose kernels cuDNN, cuBLAS and PyTorch choose.
    With --fewer-blocks the table is by kernel, in Markdown.
    """
    from resshift_fast.measure.counting import PATHS, measure_sample, total

    _require_triton()
    print(f"{model}, {size}x{size} input, batch {batch}, {dtype}, {_steps(model)} steps, from pixels to pixels")
    paths = ("fused",) if shapes or fewer else PATHS
    samples = {path: measure_sample(model, path, size=(size, size), batch=batch, dtype=_dtype(dtype)) for path in paths}
    if fewer:
        _print_few(samples["fused"].rows, fewer, table)
        return
    if shapes:
        _print_shapes(samples["fused"].rows, table)
        return
    plain, fused = samples["plain"].rows, samples["fused"].rows
    names = sorted(
        {*plain, *fused}, key=lambda name: -max(rows[name].num_bytes for rows in (plain, fused) if name in rows)
    )
    columns = "{:<42} {:>8} {:>10} {:>8} {:>10}"
    print(columns.format("OPERATOR", "PLAIN", "MB", "FUSED", "MB"))
    for name in [*names, None]:
        cells = [_cells(total(rows) if name is None else rows.get(name)) for rows in (plain, fused)]
        print(columns.format(name or "all", *cells[0], *cells[1]))
    _print_memory(samples["fused"], batch)
    if table is not None:
        header = ("operator", "plain_count", "plain_bytes", "fused_count", "fused_bytes")
        counts = [[value for rows in (plain, fused) for value in _counts(rows.get(name))] for name in names]
        _write(table, header, [[name, *row] for name, row in zip(names, counts, strict=True)])


def _require_triton() -> None:
    """Raises MissingExtraError without Triton, which defines the kernels that are counted."""
    from resshift_fast.apps.extras import require

    require("bench", {"triton": "triton"})


def _print_memory(sample: Sample, batch: int) -> None:
    """What a picture costs, what a prepared pipeline derives once, and the memory that a restoration takes."""
    from resshift_fast.measure.counting import total

    whole = total(sample.rows)
    launches, megabytes = whole.count / batch, whole.num_bytes / 1e6 / batch
    print(f"FUSED, a picture: {launches:,.1f} operators or launches that move {megabytes:,.1f} MB")
    once, moved = _cells(total(sample.preparation))
    weights, prepared, peak = (x / 1e6 for x in (sample.weight_bytes, sample.prepared_bytes, sample.peak_bytes))
    print(f"FUSED, once for all restorations: {once} operators that move {moved} MB derive {prepared:,.1f} MB")
    held = f"{weights:,.1f} MB of weights, {prepared:,.1f} MB derived from them"
    print(f"FUSED, memory: {held}, {peak:,.1f} MB of other tensors at once, {peak / batch:,.1f} MB a picture")


def _print_shapes(rows: Mapping[str, Row], table: Path | None) -> None:
    """The launches by kernel, shapes and blocks."""
    from resshift_fast.measure.counting import by_shape, total
    from resshift_fast.measure.roofline import GPUS

    multiprocessors = GPUS["h100"].multiprocessors
    columns = "{:<28} {:<40} {:>8} {:>9} {:>7} {:>10}"
    print(columns.format("KERNEL", "SHAPE", "LAUNCHES", "BLOCKS", "FILLED", "MB"))
    found = by_shape(rows)
    for launches in found:
        call, filled = launches.first, launches.filled(multiprocessors)
        blocks = f"{'~' if call.estimated else ''}{call.blocks:,}"
        moved = f"{launches.num_bytes / 1e6:,.1f}"
        print(columns.format(call.kernel, call.shape, launches.count, blocks, f"{filled:.0%}", moved))
    print(columns.format("all", "", *_cells(total(rows))[:1], "", "", _cells(total(rows))[1]))
    if table is not None:
        header = ("operator", "kernel", "shape", "launches", "blocks", "blocks_estimated", "filled_of_132", "bytes")
        body = [
            [x.operator, x.first.kernel, x.first.shape, x.count, x.first.blocks, x.first.estimated]
            + [x.filled(multiprocessors), x.num_bytes]
            for x in found
        ]
        _write(table, header, body)


def _print_few(rows: Mapping[str, Row], least: int, table: Path | None) -> None:
    """The kernels whose launches have fewer blocks than `least`."""
    from resshift_fast.measure import blocks

    found = blocks.few_blocks(rows, least)
    print(blocks.table(found))
    if table is not None:
        header = ("kernel", "images", "launches", "least_blocks", "most_blocks", "blocks_estimated", "bytes", "reason")
        body = [
            [x.kernel, " ".join(x.images), x.launches, *x.blocks, x.estimated, x.num_bytes, x.reason] for x in found
        ]
        _write(table, header, body)


def roofline(
    gpu: Annotated[str, option("h100, h200, a100, l40s or 4090. Default: h100.", metavar="NAME")] = "h100",
    path: Annotated[str, option("plain or fused. Default: fused.", metavar="PATH")] = "fused",
    model: Model = "realsr-x4-v3",
    size: Size = 64,
    batch: Batch = 1,
    dtype: Dtype = "bfloat16",
    latency: Annotated[
        float,
        option("Least microseconds from one kernel to the next in a CUDA graph. Default: 2.", metavar="US", min=0),
    ] = 2.0,
    measured: Annotated[
        Path | None, option("Compare with FILE, a result of scripts/gpu_acceptance.py.", metavar="FILE")
    ] = None,
    table: Csv = None,
) -> None:
    """Project the time on a GPU from its data sheet, without a GPU.

    FLOOR us is the least time in microseconds: of each call, bytes over bandwidth or operations over matrix rate.
    MEMORY-BOUND is the number of calls that bandwidth limits. PROJECTED us also has the multiprocessors that a call's
    thread blocks leave idle, and the latency of a launch, which limits the calls in LAUNCH-BOUND. MB are millions of
    bytes. With --measured the table is by kernel, and compares the projection with measured times.
    """
    from resshift_fast.measure import roofline as model_of
    from resshift_fast.measure.counting import count_sample

    if path == "fused":
        _require_triton()
    chosen = model_of.get(gpu)
    torch_dtype = _dtype(dtype)
    times = None if measured is None else model_of.measured_kernels(measured)
    rows = count_sample(model, path, size=(size, size), batch=batch, dtype=torch_dtype, arch=chosen.arch)
    case = f"{model}, {size}x{size} input, batch {batch}, {dtype}, {path}"
    print(f"PROJECTION for {chosen.title}, not a measurement: {case}")
    by_kernel = times is not None
    expected = model_of.expect(rows, chosen, torch_dtype.itemsize, latency * 1e-6, by_kernel)
    if times is not None:
        _print_comparison(expected, *times, table)
        return
    _print_projection(rows, model_of.project(rows, chosen, torch_dtype.itemsize), expected, table)


def _print_projection(
    rows: Mapping[str, Row], floors: Mapping[str, Floor], expected: Mapping[str, Expected], table: Path | None
) -> None:
    from resshift_fast.measure.counting import total

    columns = "{:<36} {:>7} {:>9} {:>9} {:>9} {:>12} {:>13} {:>12}"
    print(
        columns.format("OPERATOR", "COUNT", "MB", "GFLOP", "FLOOR us", "MEMORY-BOUND", "PROJECTED us", "LAUNCH-BOUND")
    )
    body: list[list[Any]] = []
    for name, floor in floors.items():
        row, slower = rows[name], expected[name]
        bound = slower.limited["launch"]
        cells = f"{floor.seconds * 1e6:.1f}", floor.memory_bound, f"{slower.seconds * 1e6:.1f}", bound
        print(columns.format(name, *_measures(row), *cells))
        times = [floor.seconds, floor.memory_bound, slower.seconds, bound]
        body.append([name, row.count, row.num_bytes, row.matrix_operations, *times])
    sums = [sum(row[i] for row in body) for i in range(4, 8)]
    cells = f"{sums[0] * 1e6:.1f}", sums[1], f"{sums[2] * 1e6:.1f}", sums[3]
    print(columns.format("all", *_measures(total(rows)), *cells))
    if table is not None:
        header = ("operator", "count", "bytes", "matrix_operations", "floor_seconds", "memory_bound_count")
        _write(table, (*header, "projected_seconds", "launch_bound_count"), body)


def _print_comparison(
    expected: Mapping[str, Expected], times: Mapping[str, float], workload: Mapping[str, Any], table: Path | None
) -> None:
    """Projected and measured times by kernel; a measured one without a counted kernel has no projection."""
    print(f"MEASURED: {workload.get('title')} on {workload.get('device_name')}; compare the same case only")
    columns = "{:<44} {:>8} {:>13} {:>12} {:>6}"
    print(columns.format("KERNEL", "COUNT", "PROJECTED us", "MEASURED us", "RATIO"))
    body: list[list[Any]] = []
    for name in (*expected, *sorted(times.keys() - expected.keys(), key=lambda name: -times[name])):
        projected, seconds = expected.get(name), times.get(name)
        count = 0 if projected is None else projected.count
        body.append([name, count, None if projected is None else projected.seconds, seconds])
    whole = [sum(row[i] or 0 for row in body) for i in (1, 2, 3)]
    for name, count, projected, seconds in [*body, ["all", *whole]]:
        shown = ["-" if value is None else f"{value * 1e6:.1f}" for value in (projected, seconds)]
        ratio = f"{seconds / projected:.1f}" if projected and seconds else "-"
        print(columns.format(name, count, *shown, ratio))
    if table is not None:
        _write(table, ("kernel", "count", "projected_seconds", "measured_seconds"), body)


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
