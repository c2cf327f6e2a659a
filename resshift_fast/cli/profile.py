"""`resshift-fast profile`: run a restoration while a profiler records it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from resshift_fast.cli.bench import Batch, Dtype, Size
from resshift_fast.cli.options import option


def profile(
    model: Annotated[str, option("Model to run. Default: realsr-x4-v3.", "--model", metavar="NAME")] = "realsr-x4-v3",
    size: Size = 64,
    batch: Batch = 1,
    steps: Annotated[
        int | None, option("Denoiser evaluations. Default: the model's number.", metavar="N", min=1)
    ] = None,
    dtype: Dtype = "bfloat16",
    device: Annotated[
        str | None, option("cpu, cuda, cuda:1, ... Default: cuda if available, else cpu.", metavar="D")
    ] = None,
    how: Annotated[
        str | None,
        option(
            "eager, graphs (CUDA graphs) or torch (torch.compile). Default: graphs on CUDA, else eager.", metavar="WAY"
        ),
    ] = None,
    warmup: Annotated[int, option("Restorations before the recorded ones. Default: 2.", metavar="N", min=1)] = 2,
    runs: Annotated[int, option("Restorations that are recorded. Default: 3.", metavar="N", min=1)] = 3,
    tool: Annotated[
        str,
        option(
            "torch records with torch.profiler; nsys only marks the section to record, for a command that runs "
            "under Nsight Systems. Default: torch.",
            metavar="TOOL",
        ),
    ] = "torch",
    output: Annotated[
        Path,
        option("Folder for the recording. Default: out/profile.", "--output", "-o", metavar="DIR"),
    ] = Path("out/profile"),
) -> None:
    """Profile a restoration with random weights after a warm-up.

    Writes workload.json, which describes the run, and with torch.profiler trace.json. `bench report` makes tables and a
    plot of the recording. scripts/profile_nsys.sh of the repository runs both commands with Nsight Systems.
    """
    from resshift_fast.measure.profiling import Workload, record

    found = record(Workload(model, size, batch, steps, dtype, device, how, warmup, runs), output, tool)
    print(f"{found['title']} on {found['device_name']}")
    print(
        f"{found['seconds'] * 1e3:.1f} ms per restoration while recorded, "
        f"{found['seconds_without_profiler'] * 1e3:.1f} ms without the profiler"
    )
    recorded = ["trace.json"] if tool == "torch" else []
    for name in (*recorded, "workload.json"):
        print(f"written: {output / name}")
    if recorded:
        print(f"for tables and a plot: resshift-fast bench report {output / 'trace.json'}")
