"""`resshift-fast bench report`: what a recording of `resshift-fast profile` says."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from resshift_fast.cli import console
from resshift_fast.cli.options import option


def report(
    file: Annotated[
        Path,
        typer.Argument(help="SQLite export of nsys, or trace of torch.profiler (.json, .json.gz).", metavar="FILE"),
    ],
    output: Annotated[
        Path | None, option("Folder of the report. Default: FILE's own.", "--output", "-o", metavar="DIR")
    ] = None,
    workload: Annotated[
        Path | None, option("What ran. Default: workload.json beside FILE, if there is one.", metavar="FILE")
    ] = None,
    gpu: Annotated[
        str | None,
        option(
            "GPU whose least time is projected: h100, h200, a100, l40s or 4090. Default: the one that was recorded; "
            "none for a CPU.",
            metavar="NAME",
        ),
    ] = None,
    top: Annotated[int, option("Operators, kernels and gaps that are printed. Default: 15.", metavar="N", min=1)] = 15,
) -> None:
    """Report on a profile: time by stage, operator and kernel, gaps, and the ratio to the projected least time.

    `resshift-fast profile` records, with a workload.json from which the least time is computed; scripts/profile_nsys.sh
    of the repository does both under Nsight Systems. Writes report.txt, report.png, stages.csv, operators.csv,
    kernels.csv and gaps.csv. All times are of one restoration, the mean over those recorded.
    """
    from resshift_fast.measure.report import files, show, tables

    trace = files.read(file)
    settings = files.read_settings(workload or file.parent / "workload.json", required=workload is not None)
    floors, note = files.project(settings, trace, gpu)
    trace.notes += [note] if note else []
    found = tables.make(trace, floors, settings)
    shown = show.text(found, top)
    print(shown)
    written, missing = files.write(found, output or file.parent, shown)
    if missing:
        console.say(f"no plot: {missing}")
    for path in written:
        print(f"written: {path}")
