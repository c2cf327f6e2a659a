"""`resshift-fast bench tune`: find the fastest backend of each operator on this device, and cache the choice."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from resshift_fast.cli import console
from resshift_fast.cli.bench import DTYPES, Batch, Size
from resshift_fast.cli.options import option
from resshift_fast.core import devices

if TYPE_CHECKING:
    from resshift_fast.measure.autotuning import Tuning

BUSY = 0.5  # programs for each core, from which on others are said to run


def tune(
    model: Annotated[
        str, option("Model whose calls are measured. Default: realsr-x4-v3.", "--model", metavar="NAME")
    ] = "realsr-x4-v3",
    size: Size = 64,
    batch: Batch = 1,
    dtype: Annotated[
        list[str] | None,
        option(
            f"One of {', '.join(DTYPES)}; may be repeated. Default: all of them on a GPU, else float32.", metavar="D"
        ),
    ] = None,
    device: Annotated[
        str | None, option("cpu, cuda, cuda:1, ... Default: cuda if available, else cpu.", metavar="D")
    ] = None,
    repeats: Annotated[
        int, option("Timed runs of each kind of call and backend. Default: 20.", metavar="N", min=1)
    ] = 20,
    output: Annotated[
        Path | None,
        option(
            "File to write; only the default one is used later. Default: the device's file in the autotune cache.",
            "--output",
            "-o",
            metavar="FILE",
        ),
    ] = None,
) -> None:
    """Find the fastest backend of each operator on this device, and store it in the autotune cache.

    Restores an image with random weights, then times every backend on the calls that were made, and for convolutions on
    a CPU every algorithm on each shape; where the quartiles of the two fastest overlap, up to three times as long.
    Backends with wrong results are refused. The result replaces earlier ones and is used from then on, unless
    RESSHIFT_FAST_BACKEND names a backend; resshift-fast doctor shows it. Times are medians in microseconds for all
    calls of a restoration, and the spread is half the distance of the fastest one's quartiles.
    """
    from resshift_fast import backends
    from resshift_fast.backends import autotune_cache
    from resshift_fast.core.files import make_folder
    from resshift_fast.measure.autotuning import Recorder, autotune, content
    from resshift_fast.measure.profiling import Workload
    from resshift_fast.restoration import precompilation

    where = devices.usable_device(device)
    dtypes = dtype or (DTYPES if where.type == "cuda" else ("float32",))
    workloads = [Workload(model, size, batch, dtype=name, device=str(where)) for name in dict.fromkeys(dtypes)]
    path = output or autotune_cache.user_path(autotune_cache.device_name(where) or str(where))
    make_folder(path.parent)
    recorder = Recorder()
    with backends.use_backend("auto"):
        for workload in workloads:
            console.say(f"recording a restoration with {model} in {workload.dtype}")
            pipeline = workload.pipeline()
            shape = (workload.side, workload.side, batch)
            precompilation.prepare_restoration(pipeline.spec, where, pipeline.dtype, [shape], True, candidates=True)
            restore = workload.call(pipeline)
            with recorder:
                restore()
    load = _load()
    tunings = autotune(recorder.calls, where, repeats, console.say)
    if not tunings:
        raise ValueError(
            f"nothing to choose for {model} on {where}: only plain PyTorch runs its operators there; "
            "see resshift-fast doctor for the reason"
        )
    words = ["--model", model, "--size", size, "--batch", batch, "--device", where, "--repeats", repeats]
    words += [word for name in dtypes for word in ("--dtype", name)]
    command = shlex.join(["resshift-fast", "bench", "tune", *map(str, words)])
    autotune_cache.store(content(tunings, where, command), path)
    name = autotune_cache.device_name(where)
    print(f"{model}, {size}x{size} input, batch {batch}, on {name}; us of all calls together")
    print("\n".join([_table(tunings), *_differing(tunings), *_unclear(tunings), *_loads(load, _load())]))
    print(f"written: {path}")


def _table(tunings: list[Tuning]) -> str:
    """A table with a column for each backend, and lines about those that were refused."""
    names = list(dict.fromkeys(name for found in tunings for name in (*sorted(found.microseconds), *found.refused)))
    columns = "{:<20} {:<9} {:>7}" + " {:>13}" * len(names) + "  {:<16} {:>8} {:>7}"
    first, last = ("OPERATOR", "DTYPE", "CALLS"), ("CHOSEN", "SPEED-UP", "SPREAD")
    lines = [columns.format(*first, *(f"{n.upper()} us" for n in names), *last)]
    refused = []
    for found in tunings:
        dtype = _short(found)
        times = [f"{found.microseconds[name]:,.1f}" if name in found.microseconds else "-" for name in names]
        chosen = ", ".join(found.order[: found.order.index("reference") or 1])
        ratio = f"{found.microseconds['reference'] / found.total:.2f}x"
        spread = f"{100 * found.spread:.0f} %"
        lines.append(columns.format(found.operator, dtype, f"{found.calls:,}", *times, chosen, ratio, spread))
        refused += [f"refused: {name} for {found.operator} in {dtype}: {why}" for name, why in found.refused.items()]
        refused += _refused_algorithms(found)
    return "\n".join(lines + refused)


def _refused_algorithms(found: Tuning) -> list[str]:
    """A line for each wrong algorithm, with the first reason."""
    reasons: dict[str, str] = {}
    for name, shape in found.shapes.items():
        for algorithm, why in shape.refused.items():
            reasons.setdefault(algorithm, f"{name}: {why}")
    return [f"refused: {algorithm} of {found.operator} in {_short(found)}, {why}" for algorithm, why in reasons.items()]


def _differing(tunings: list[Tuning]) -> list[str]:
    """A line for each shape on which another algorithm is faster than the kernel's default."""
    return [
        f"{found.operator} in {_short(found)}, {name}: {shape.choice} is {shape.gain:.2f}x as fast as {shape.default}"
        for found in tunings
        for name, shape in found.shapes.items()
        if shape.choice != shape.default and shape.default in shape.microseconds
    ]


def _unclear(tunings: list[Tuning]) -> list[str]:
    """A line for each operator some of whose calls have two that are as fast."""
    return [
        f"{found.operator} in {_short(found)}: calls whose two fastest can't be told apart, in kinds: {found.unclear}"
        for found in tunings
        if found.unclear
    ]


def _load() -> float | None:
    """The programs that have run, or waited for a core, in the last minute on average; None where that isn't known."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):
        return None


def _loads(before: float | None, after: float | None) -> list[str]:
    """A line about the load, if it is known, and one of advice where other programs have run."""
    if before is None or after is None:
        return []
    cores = devices.available_cores()
    lines = [f"load average: {before:.1f} before, {after:.1f} after, on {cores} cores"]
    if before > BUSY * cores:
        lines.append("other programs have run before, and may have changed the times: repeat this without them")
    return lines


def _short(found: Tuning) -> str:
    return str(found.dtype).removeprefix("torch.")
