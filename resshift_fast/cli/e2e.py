"""`resshift-fast bench e2e`: measure whole restorations, plain, compiled and by this library."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from resshift_fast.cli import console

if TYPE_CHECKING:
    from resshift_fast.measure.end_to_end import Report

PROVIDERS, DTYPES = "reference,compile,ours", "float32,bfloat16"


def e2e(
    model: Annotated[
        str, typer.Option("--model", metavar="NAME", help="Model to run. Default: realsr-x4-v3.")
    ] = "realsr-x4-v3",
    weights: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Weights of the denoiser. Default: the published ones.")
    ] = None,
    autoencoder: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Weights of the autoencoder. Default: the published ones.")
    ] = None,
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="Load no weights; no time depends on them. Default: off.")
    ] = False,
    providers: Annotated[
        str,
        typer.Option(
            metavar="NAME,...",
            help="reference (plain PyTorch), compile (that through torch.compile, for one size, with frozen weights on "
            "a CPU and CUDA graphs on a GPU), ours (this library as it comes), ours-compiled (after "
            f"Pipeline.compile()). Default: {PROVIDERS}.",
        ),
    ] = PROVIDERS,
    dtype: Annotated[
        str, typer.Option(metavar="D,...", help=f"Of float32, bfloat16, float16. Default: {DTYPES}.")
    ] = DTYPES,
    size: Annotated[
        int, typer.Option(metavar="N", help="Side of the square input, in pixels. Default: 64.", min=1)
    ] = 64,
    batch: Annotated[int, typer.Option(metavar="N", help="Images restored at once. Default: 1.", min=1)] = 1,
    runs: Annotated[int, typer.Option(metavar="N", help="Timed runs of each case. Default: 5.", min=1)] = 5,
    threads: Annotated[
        int | None, typer.Option(metavar="N", help="Threads on the CPU. Default: as many as torch takes.", min=1)
    ] = None,
    device: Annotated[
        str | None, typer.Option(metavar="D", help="cpu, cuda, cuda:1, ... Default: cuda where it works, else cpu.")
    ] = None,
    table: Annotated[
        Path | None,
        typer.Option(
            "--csv", metavar="FILE", help="Also write a row a case there, in seconds, GFLOP/s, MB and dB. Default: no."
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.png", help="Also draw it; needs matplotlib, from resshift-fast[bench]. Default: no."
        ),
    ] = None,
) -> None:
    """Measure whole restorations by several providers and dtypes in turns: seconds, memory, agreement, speed-ups.

    Every case is built in a process of its own, where its first restoration also compiles: minutes for torch.compile.
    Peak memory is the most up to there, later memory that of the timed runs; both hold Python, torch and the weights
    (on a GPU what torch has allocated there). PSNR is against plain float32 (with random weights before rounding to the
    codebook, where a random decoder would make much of nothing); where it is too low, there is no speed-up.
    Effective GFLOP/s are the operations of the plain networks over the seconds, whatever was really calculated; their
    share is of the fastest large matrix products in the same run.
    """
    from resshift_fast.measure import plots
    from resshift_fast.measure.end_to_end import measure, write_csv
    from resshift_fast.measure.providers import Case

    if plot is not None:
        plots.check()
    shared: dict[str, Any] = {
        "model": model,
        "size": size,
        "batch": batch,
        "batch_size": batch,
        "weights": weights and str(weights),
        "autoencoder": autoencoder and str(autoencoder),
        "random_weights": random_weights,
        "device": device,
        "threads": threads,
    }
    kinds, names = _listed("--dtype", dtype), _listed("--providers", providers)
    report = measure([Case(name, kind, **shared) for kind in kinds for name in names], runs, console.say)
    what = "random weights" if random_weights else f"weights {weights}" if weights else "published weights"
    title = f"{model}, {size}x{size} input, batch {batch}, {what}"
    print(f"{title}; medians of {runs} runs in turns")
    print(render(report))
    if table is not None:
        write_csv(report, table)
    if plot is not None:
        plots.end_to_end(report, f"{title}, {report.device}", plot)


def _listed(option: str, text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise ValueError(f"{option} is empty, expected names with commas between them")
    return list(dict.fromkeys(names))


def render(report: Report) -> str:
    """Two tables: seconds by stage, then what each case comes to."""
    gemm = ", ".join(f"{dtype} {rate:,.0f}" for dtype, rate in report.gemm.items())
    count = ", ".join(f"{stage} {gflop:,.1f}" for stage, gflop in report.gflop.items())
    lines = [f"on {report.device}, {report.threads} threads; GFLOP/s of large matrix products: {gemm}"]
    lines += [f"GFLOP of the plain networks: {count}", ""]
    columns = "{:<23} {:<8} {:>9} {:>9} {:>9} {:>9} {:>8}"
    lines.append(columns.format("CASE", "STAGE", "MEDIAN s", "LEAST s", "MOST s", "GFLOP/s", "OF GEMM"))
    for result in report.results:
        for stage in result.stages:
            taken = [f"{seconds:.4f}" for seconds in result.seconds(stage)]
            rate = result.rate(stage)
            lines.append(columns.format(result.case.name, stage, *taken, f"{rate:,.1f}", f"{rate / result.gemm:.0%}"))
    columns = "{:<23} {:>9} {:>8} {:>9} {:>9} {:>13} {:>11}  {}"
    heads = ("CASE", "SECONDS", "PSNR dB", "PEAK MB", "LATER MB", "VS REFERENCE", "VS COMPILE", "")
    lines += ["", columns.format(*heads).rstrip()]
    for result in report.results:
        median = f"{result.seconds()[0]:.4f}" if result.timed else "-"
        ratios = [_number(ratio, ".2f", "x") for ratio in (result.against_reference, result.against_compile)]
        memory = [_number(value, ",.0f") for value in (result.peak_mb, result.running_mb)]
        agreement = _number(result.psnr if result.first else None, ".1f")
        cells = (result.case.name, median, agreement, *memory, *ratios, result.note)
        lines.append(columns.format(*cells).rstrip())
    return "\n".join([*lines, "VS REFERENCE: against plain float32. VS COMPILE: against compile in the same dtype."])


def _number(value: float | None, form: str, unit: str = "") -> str:
    return "-" if value is None else format(value, form) + unit
