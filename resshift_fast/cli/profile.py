"""`resshift-fast profile`: run a restoration while a profiler records it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from resshift_fast.cli.bench import Batch, Dtype, Size


def profile(
    model: Annotated[
        str, typer.Option("--model", metavar="NAME", help="Model to run. Default: realsr-x4-v3.")
    ] = "realsr-x4-v3",
    size: Size = 64,
    batch: Batch = 1,
    steps: Annotated[
        int | None, typer.Option(metavar="N", help="Denoiser evaluations. Default: the model's own number.", min=1)
    ] = None,
    dtype: Dtype = "bfloat16",
    device: Annotated[
        str | None, typer.Option(metavar="D", help="cpu, cuda, cuda:1, ... Default: cuda where it works, else cpu.")
    ] = None,
    how: Annotated[
        str | None,
        typer.Option(
            metavar="WAY",
            help="eager, graphs (CUDA graphs) or torch (torch.compile). Default: graphs on CUDA, else eager.",
        ),
    ] = None,
    warmup: Annotated[
        int, typer.Option(metavar="N", help="Restorations before the recorded ones. Default: 2.", min=1)
    ] = 2,
    runs: Annotated[int, typer.Option(metavar="N", help="Restorations that are recorded. Default: 3.", min=1)] = 3,
    tool: Annotated[
        str,
        typer.Option(
            metavar="TOOL",
            help="torch records with torch.profiler; nsys only marks what nsys, which runs this command, is to record. "
            "Default: torch.",
        ),
    ] = "torch",
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="DIR", help="Folder for the recording. Default: out/profile."),
    ] = Path("out/profile"),
) -> None:
    """Run a restoration with random weights, warmed up first, while a profiler records it.

    Writes workload.json, which says what ran, and with torch.profiler trace.json. scripts/profile_nsys.sh of the
    repository runs this command under Nsight Systems and makes tables and a picture of what either tool recorded.
    """
    from resshift_fast.measure.profiling import Workload, record

    found = record(Workload(model, size, batch, steps, dtype, device, how, warmup, runs), output, tool)
    print(f"{found['title']} on {found['device_name']}")
    print(
        f"{found['seconds'] * 1e3:.1f} ms a restoration while recorded, "
        f"{found['seconds_without_profiler'] * 1e3:.1f} ms without"
    )
    recorded = ["trace.json"] if tool == "torch" else []
    for name in (*recorded, "workload.json"):
        print(f"written: {output / name}")
    if recorded:
        print(f"tables and a picture of it: python scripts/nsys_report.py {output / 'trace.json'}")
