"""`resshift-fast bench e2e`: measure whole restorations by plain PyTorch, torch.compile and this library."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from resshift_fast.cli import console
from resshift_fast.cli.options import option

if TYPE_CHECKING:
    from resshift_fast.measure.end_to_end import Report

PROVIDERS, DTYPES = "reference,compile,ours", "float32,bfloat16"


def e2e(
    model: Annotated[str, option("Model to run. Default: realsr-x4-v3.", "--model", metavar="NAME")] = "realsr-x4-v3",
    weights: Annotated[
        Path | None, option("Weights of the denoiser. Default: the published ones.", metavar="FILE")
    ] = None,
    autoencoder: Annotated[
        Path | None, option("Weights of the autoencoder. Default: the published ones.", metavar="FILE")
    ] = None,
    random_weights: Annotated[
        bool,
        option("Use random weights; times do not depend on them. Default: no.", "--random-weights"),
    ] = False,
    providers: Annotated[
        str,
        option(
            "Of reference (plain PyTorch), compile (plain PyTorch through torch.compile, for one size, with frozen "
            "weights on a CPU and CUDA graphs on a GPU), openvino (plain PyTorch's networks in OpenVINO, on a CPU in "
            "float32 or bfloat16; needs resshift-fast[bench]), ours (this library, eager), ours-compiled (this library "
            f"after Pipeline.compile()). Default: {PROVIDERS}.",
            metavar="NAME,...",
        ),
    ] = PROVIDERS,
    dtype: Annotated[str, option(f"Of float32, bfloat16, float16. Default: {DTYPES}.", metavar="D,...")] = DTYPES,
    size: Annotated[int, option("Side of the square input, in pixels. Default: 64.", metavar="N", min=1)] = 64,
    batch: Annotated[int, option("Images restored at once. Default: 1.", metavar="N", min=1)] = 1,
    runs: Annotated[int, option("Timed runs of each case. Default: 5.", metavar="N", min=1)] = 5,
    threads: Annotated[
        int | None, option("torch's threads on the CPU. Default: torch's choice.", metavar="N", min=1)
    ] = None,
    device: Annotated[
        str | None, option("cpu, cuda, cuda:1, ... Default: cuda if available, else cpu.", metavar="D")
    ] = None,
    table: Annotated[
        Path | None,
        option(
            "Also write one row per case to FILE, in seconds, GFLOP/s, MB and dB. Default: no.", "--csv", metavar="FILE"
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        option("Also plot it; needs matplotlib, from resshift-fast[bench]. Default: no.", metavar="FILE.png"),
    ] = None,
) -> None:
    """Measure whole restorations by several providers and dtypes in turns.

    Every case runs in its own process, where the first restoration includes compilation: minutes for torch.compile.
    PEAK MB is the peak memory up to the end of the first restoration, LATER MB that of the timed runs, in millions of
    bytes; both include Python, torch and the weights (on a GPU: what torch has allocated there). PSNR is against plain
    float32; with random weights it is taken without quantization, because a random decoder would amplify rounding
    errors. No speed-up is printed if the PSNR is too low. GFLOP/s are the operations of the plain networks divided by
    the median seconds, even if a provider computes fewer; OF GEMM is their share of the rate of large matrix products,
    measured in the same run.
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
    print(f"{title}; medians of {runs} runs")
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
    """Two tables: seconds by stage, and the summary of each case."""
    gemm = ", ".join(f"{dtype} {rate:,.0f}" for dtype, rate in report.gemm.items())
    count = ", ".join(f"{stage} {gflop:,.1f}" for stage, gflop in report.gflop.items())
    lines = [f"on {report.device}, {report.threads} threads; GFLOP/s of large matrix products: {gemm}"]
    lines += [f"GFLOP of the plain networks: {count}", ""]
    columns = "{:<23} {:<8} {:>9} {:>9} {:>9} {:>9} {:>8}"
    lines.append(columns.format("CASE", "STAGE", "MEDIAN s", "MIN s", "MAX s", "GFLOP/s", "OF GEMM"))
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
        ratios = [_cell(ratio, ".2f", "x") for ratio in (result.against_reference, result.against_compile)]
        memory = [_cell(value, ",.0f") for value in (result.peak_mb, result.running_mb)]
        psnr = _cell(result.psnr if result.first else None, ".1f")
        cells = (result.case.name, median, psnr, *memory, *ratios, result.note)
        lines.append(columns.format(*cells).rstrip())
    return "\n".join([*lines, "VS REFERENCE: speed-up over plain float32. VS COMPILE: over compile in the same dtype."])


def _cell(value: float | None, form: str, unit: str = "") -> str:
    return "-" if value is None else format(value, form) + unit
