"""What an operator's way in adds to each eager call: argument checks, the dispatcher, the choice of the backend.

    python benchmarks/overhead.py
    python benchmarks/overhead.py --device cuda --dtype bfloat16 --output out

Every operator is called on the tiny tensors that its backends are verified on, through the function in
`resshift_fast.ops` and through `torch.ops.resshift_fast`, each in turns with the launcher that it ends in. On a GPU
that is the one of the backend that the call chooses. On a CPU it is Triton's, whose starts are recorded in place of
being made: that leaves out as much on either side, so that the difference holds, and "direct" is the launcher's own
time without Triton's. Where there is no launcher the plain PyTorch body takes its place. Autograd is left out, as by
`Pipeline`. Times are the host's; nothing waits for a GPU within them.
"""

from __future__ import annotations

import inspect
import os
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any
from unittest import mock

import common
import operator_measure as measure
import torch
import typer
from operator_cases import OPERATORS
from operators import PLAIN, backend_of

from resshift_fast import backends, ops, verification
from resshift_fast.cli import console

SHOWN = {
    "operator": "",
    "called": "",
    "ends in": "",
    "call µs": ".1f",
    "direct µs": ".1f",
    "overhead µs": ".1f",
    "from": ".1f",
    "to": ".1f",
}

WARM_UP = 20  # calls of each way
NO_RECORD: list[Any] = []


def bound(function: Callable[..., Any], arguments: dict[str, Any]) -> Callable[[], Any]:
    """The call with these arguments, given by position wherever the function takes them so."""
    parameters = inspect.signature(function).parameters
    by_name = {n: v for n, v in arguments.items() if parameters[n].kind is inspect.Parameter.KEYWORD_ONLY}
    by_place = [arguments[name] for name in parameters if name in arguments and name not in by_name]
    return lambda: function(*by_place, **by_name)


@contextmanager
def recording() -> Iterator[list[Any]]:
    """Context in which CPU tensors go to Triton's launchers; the list of starts that they would have made."""
    from resshift_fast.kernels.launch import record

    before = dict(backends.OPERATORS)
    for operator in before.values():
        launcher = operator.loaders.get("triton")
        backends.add(replace(operator, loaders={"cpu": launcher} if launcher else {}))
    try:
        # Nothing that is only recorded could pass a verification.
        with mock.patch.dict(os.environ, {verification.VARIABLE: "0"}), backends.use_backend("auto"):
            with record() as launches:
                yield launches
    finally:
        for operator in before.values():
            backends.add(operator)


def pairs(name: str, device: torch.device, dtype: torch.dtype) -> dict[tuple[str, str], tuple[Callable, Callable]]:
    """(way in, what it ends in) to the call through that way and the direct call, for one operator."""
    registered = backends.OPERATORS[name]
    values = registered.examples(device, dtype)[0]
    arguments = dict(zip(inspect.signature(registered.plain).parameters, values, strict=True))
    overload = getattr(torch.ops.resshift_fast, name).default
    chosen = backend_of(name, arguments)
    if chosen == PLAIN:
        bodies = (bound(OPERATORS[name].plain, arguments), bound(registered.plain, arguments))
        ends = ("reference", "plain PyTorch")
    else:
        kernel = backends.kernel(name, chosen).function
        recorded = device.type == "cpu" and find_spec("triton")
        end = "launcher, start recorded" if recorded else f"{chosen} launcher"
        bodies, ends = (lambda: kernel(*values),) * 2, (end,) * 2
    public = bound(OPERATORS[name].public, arguments)
    calls = (public, lambda: overload(*values))
    ways = (f"ops.{name}", f"torch.ops.resshift_fast.{name}")
    return {(way, end): pair for way, end, *pair in zip(ways, ends, calls, bodies, strict=True)}


def measure_pair(
    call: Callable[[], Any], direct: Callable[[], Any], calls: int, device: torch.device, record: list[Any] = NO_RECORD
) -> dict[str, float]:
    """Medians over `calls` alternating calls of each, and median and quartiles of the neighbours' differences.

    `record` is emptied before each call.
    """
    times: dict[Callable, list[float]] = {call: [], direct: []}
    for turn in range(-WARM_UP, calls):
        for function in (call, direct) if turn % 2 else (direct, call):
            record.clear()
            taken = measure.microseconds(function, device)
            if turn >= 0:
                times[function].append(taken)
    differences = [through - straight for through, straight in zip(times[call], times[direct], strict=True)]
    low, middle, high = statistics.quantiles(differences, n=4)
    return {
        "call µs": common.median(times[call]),
        "direct µs": common.median(times[direct]),
        "overhead µs": middle,
        "from": low,
        "to": high,
    }


def measured(names: list[str], device: torch.device, dtype: str, calls: int) -> list[dict[str, Any]]:
    """A row for each operator and way in."""
    rows = []
    with recording() if device.type == "cpu" and find_spec("triton") else nullcontext(NO_RECORD) as record:
        for name in names:
            kind = torch.float32 if OPERATORS[name].float32_only else getattr(torch, dtype)
            for (way, end), (call, direct) in pairs(name, device, kind).items():
                row = {"operator": name, "called": way.removesuffix(f".{name}"), "ends in": end}
                rows.append(row | measure_pair(call, direct, calls, device, record))
    return rows


def overhead(
    dtype: Annotated[
        str, typer.Option(metavar="DTYPE", help="float32, bfloat16 or float16; latents stay float32.")
    ] = "float32",
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1, ... Default: cuda where it works, else cpu.")
    ] = None,
    calls: Annotated[int, typer.Option(min=2, help="Timed calls of each way; the two take turns.")] = 1000,
    output: Annotated[
        Path | None, typer.Option(metavar="DIR", file_okay=False, help="Folder for overhead.csv. Default: none.")
    ] = None,
) -> None:
    """Microseconds that the way into each operator adds to an eager call without gradients, on tiny tensors."""
    if dtype not in common.DTYPES:
        raise typer.BadParameter(f"{dtype!r} is not one of {', '.join(common.DTYPES)}", param_hint="--dtype")
    console.prepare_streams()
    try:
        where = backends.usable_device(device)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--device") from None
    with torch.inference_mode():
        rows = measured(ops.__all__, where, dtype, calls)
    title = f"Overhead of a call, {dtype}, medians of {calls} calls"
    print("\n".join([title, common.machine_line(common.machine(device=where)), "", common.table(SHOWN, rows)]))
    print("\nOverhead: median of the differences between neighbouring calls; from, to: their quartiles.")
    if output is not None:
        path = output / "overhead.csv"
        common.write_csv(path, list(SHOWN), rows)
        print(f"written: {path}")


app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
app.command()(overhead)

if __name__ == "__main__":
    app()
