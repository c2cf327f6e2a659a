"""What an operator's public function adds to each eager call: argument checks and the choice of the backend.

    python benchmarks/overhead.py
    python benchmarks/overhead.py --device cuda --dtype bfloat16

Every operator is called on the tiny tensors that its backends are verified on, in two ways: through the function in
`resshift_fast.ops`, and through `torch.ops.resshift_fast`. Each alternates with what that call ends in: the launcher of
the backend that it chooses, else the plain PyTorch body. The difference is what the way in costs. Times are the host's;
nothing waits for a GPU within them.
"""

from __future__ import annotations

import inspect
import statistics
from collections.abc import Callable
from typing import Annotated, Any

import common
import operator_measure as measure
import torch
import typer
from operator_cases import OPERATORS
from operators import PLAIN, backend_of

from resshift_fast import backends, ops
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


WARM_UP = 4  # calls of each way


def bound(function: Callable[..., Any], arguments: dict[str, Any]) -> Callable[[], Any]:
    """The call with these arguments, given by position wherever the function takes them so."""
    parameters = inspect.signature(function).parameters
    by_name = {n: v for n, v in arguments.items() if parameters[n].kind is inspect.Parameter.KEYWORD_ONLY}
    by_place = [arguments[name] for name in parameters if name in arguments and name not in by_name]
    return lambda: function(*by_place, **by_name)


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
        bodies, ends = (lambda: kernel(*values),) * 2, (f"{chosen} launcher",) * 2
    public = bound(OPERATORS[name].public, arguments)
    calls = (public, lambda: overload(*values))
    ways = (f"ops.{name}", f"torch.ops.resshift_fast.{name}")
    return {(way, end): pair for way, end, *pair in zip(ways, ends, calls, bodies, strict=True)}


def measure_pair(
    call: Callable[[], Any], direct: Callable[[], Any], calls: int, device: torch.device
) -> dict[str, float]:
    """Medians over `calls` alternating calls of each, and median and quartiles of the neighbours' differences."""
    times: dict[Callable, list[float]] = {call: [], direct: []}
    for turn in range(-WARM_UP, calls):
        for function in (call, direct) if turn % 2 else (direct, call):
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


def overhead(
    dtype: Annotated[
        str, typer.Option(metavar="DTYPE", help="float32, bfloat16 or float16; latents stay float32.")
    ] = "float32",
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1, ... Default: cuda where it works, else cpu.")
    ] = None,
    calls: Annotated[int, typer.Option(min=2, help="Timed calls of each way; the two take turns.")] = 1000,
) -> None:
    """Microseconds that the way into each operator adds to an eager call without gradients, on tiny tensors."""
    if dtype not in common.DTYPES:
        raise typer.BadParameter(f"{dtype!r} is not one of {', '.join(common.DTYPES)}", param_hint="--dtype")
    console.prepare_streams()
    try:
        where = backends.usable_device(device)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--device") from None
    rows = []
    with torch.no_grad():
        for name in ops.__all__:
            kind = torch.float32 if OPERATORS[name].float32_only else getattr(torch, dtype)
            for (way, end), (call, direct) in pairs(name, where, kind).items():
                row = {"operator": name, "called": way.removesuffix(f".{name}"), "ends in": end}
                rows.append(row | measure_pair(call, direct, calls, where))
    title = f"Overhead of a call, {dtype}, medians of {calls} calls"
    print("\n".join([title, common.machine_line(common.machine(device=where)), "", common.table(SHOWN, rows)]))
    print("\nOverhead: median of the differences between neighbouring calls; from, to: their quartiles.")


app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
app.command()(overhead)

if __name__ == "__main__":
    app()
