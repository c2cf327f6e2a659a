"""Host time of an eager call until its kernel is launched, and its parts.

    python benchmarks/overhead.py
    python benchmarks/overhead.py --device cuda --dtype bfloat16 --output out

The first case of every operator in `operator_cases.py`, on 8×8 images, is called at four levels, in turns: the function
in `resshift_fast.ops`, `backends.run`, the launcher, and the kernel launches alone. The differences are

- checks: of the arguments, in the public function, and whether PyTorch's dispatcher can be skipped,
- dispatch: the choice of the backend,
- launcher: memory for the results, and finding the plan,
- start: from the plan to the kernel, by Triton's launcher and the CUDA driver.

On a GPU the launcher is that of the backend which the call chooses. On a CPU it is Triton's, with a fake GPU
(`fake_driver.py`): all steps run except Triton's C code and the CUDA driver. With Triton's interpreter, launches are
recorded instead. Without a launcher, the plain PyTorch body is measured. Calls are without autograd, as in `Pipeline`.
Times are host times, without synchronization. The operators are measured in turns, several rounds long. What else runs
on a machine only adds to a time, and may do so for seconds: the quietest round shows what the call takes.
"""

from __future__ import annotations

import inspect
import os
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any
from unittest import mock

import common
import operator_measure as measure
import torch
import typer
from operator_arguments import OPERATORS, Draw
from operator_cases import CASES
from operators import PLAIN, backend_of

from resshift_fast import backends, ops
from resshift_fast.backends import verification
from resshift_fast.cli import console
from resshift_fast.core import counters, devices
from resshift_fast.measure.table import table

PARTS = ("checks µs", "dispatch µs", "launcher µs", "start µs")
SHOWN = {
    "operator": "",
    "ends in": "",
    "starts": "d",
    "call µs": ".1f",
    "from": ".1f",
    "to": ".1f",
    **dict.fromkeys(PARTS, ".1f"),
    "all rounds µs": ".1f",
}

GOAL = 25.0  # µs for a call with one start
SIDE = 8  # of the images: one window
# The launcher calls PyTorch's convolution in float32, which really runs on a CPU.
FEWER = {"residual_block": {"channels": 32, "out": 32}}
WARM_UP = 20  # calls of each way in a round
NO_STARTS: list[Any] = []


def bound(function: Callable[..., Any], arguments: dict[str, Any]) -> Callable[[], Any]:
    """A call with these arguments, which are passed by position if the function allows it."""
    parameters = inspect.signature(function).parameters
    by_name = {n: v for n, v in arguments.items() if parameters[n].kind is inspect.Parameter.KEYWORD_ONLY}
    by_place = [arguments[name] for name in parameters if name in arguments and name not in by_name]
    return lambda: function(*by_place, **by_name)


def interpreted() -> bool:
    """Whether Triton's interpreter is on, so that kernels cannot be launched on a fake GPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@contextmanager
def launching() -> Iterator[list[Any]]:
    """Send CPU tensors to Triton's launchers within the block; the value is the list of their launches."""
    before = dict(backends.OPERATORS)
    for operator in before.values():
        launcher = operator.loaders.get("triton")
        backends.add(replace(operator, loaders={"cpu": launcher} if launcher else {}))
    try:
        # Verification would fail, because nothing is computed.
        unverified = mock.patch.dict(os.environ, {verification.VARIABLE: "0"})
        kept = mock.patch.object(counters, "counters", _kept_counters())
        with unverified, kept, backends.use_backend("auto"), _starts() as starts:
            yield starts
    finally:
        for operator in before.values():
            backends.add(operator)


def _kept_counters() -> Callable[[torch.Tensor, int], torch.Tensor]:
    """A substitute for `core.counters.counters` that keeps a stream's, as on a GPU, without asking the driver."""
    of_streams: dict[tuple[torch.device, int], torch.Tensor] = {}

    def kept(x: torch.Tensor, count: int) -> torch.Tensor:
        key = x.device, 0
        found = of_streams.get(key)
        if found is None or found.numel() < count:
            found = of_streams[key] = x.new_zeros(max(count, counters.COUNTERS), dtype=torch.int32)
        return found

    return kept


def _starts() -> AbstractContextManager[list[Any]]:
    """Launch kernels without executing them within the block; the value is the list of launches."""
    from fake_driver import fake_gpu

    from resshift_fast.kernels.launch import record

    return record() if interpreted() else fake_gpu()


def ways(name: str, device: torch.device, dtype: torch.dtype) -> tuple[str, int, list[Callable[[], Any]]]:
    """(launcher's name, number of its launches, the call at every level) of an operator's call."""
    case = next(case for case in CASES if case.op == name)
    sizes = {**case.sizes, **FEWER.get(name, {})}
    arguments = OPERATORS[name].make(Draw(device, dtype, batch=1), SIDE, **sizes)
    registered = backends.OPERATORS[name]
    values = [arguments.get(parameter) for parameter in inspect.signature(registered.plain).parameters]
    calls = [bound(OPERATORS[name].public, arguments), lambda: backends.run(name, *values)]
    chosen = backend_of(name, arguments)
    if chosen == PLAIN:
        return "plain PyTorch", 0, [*calls, lambda: registered.plain(*values)]
    kernel = backends.kernel(name, chosen).function
    starts = planned_starts(lambda: kernel(*values)) if find_spec("triton") else []

    def start() -> None:
        for planned, tensors in starts:
            planned(*tensors)

    end = f"{chosen} launcher" if device.type != "cpu" else "launcher, recorded" if interpreted() else "launcher, faked"
    return end, len(starts), [*calls, lambda: kernel(*values), *([start] if starts else [])]


def planned_starts(call: Callable[[], Any]) -> list[tuple[Callable[..., None], tuple]]:
    """The launches of a launcher's call, and their tensors."""
    from resshift_fast.kernels.launch import Start, record

    with record() as launches:
        call()
    found = []
    for launch in launches:
        tensors = tuple(x for x in launch.arguments if x is None or isinstance(x, torch.Tensor))  # numbers follow
        options = {"num_warps": launch.num_warps, "num_stages": launch.num_stages}
        numbers = launch.arguments[len(tensors) :]
        found.append((Start(launch.kernel, launch.grid, *numbers, **options, **launch.constants), tensors))
    return found


def measure_ways(
    calls: Sequence[Callable[[], Any]], repeats: int, device: torch.device, starts: list[Any] = NO_STARTS
) -> dict[str, float]:
    """Median and quartiles of the first call's time, and medians of the differences between successive levels.

    The levels run in turns, in ascending and descending order; `starts` is cleared before each call.
    """
    times: list[list[float]] = [[] for _ in calls]
    for turn in range(-WARM_UP, repeats):
        for i in range(len(calls)) if turn % 2 else reversed(range(len(calls))):
            starts.clear()
            taken = measure.microseconds(calls[i], device)
            if turn >= 0:
                times[i].append(taken)
    low, middle, high = statistics.quantiles(times[0], n=4)
    parts = [[longer - shorter for longer, shorter in zip(*both, strict=True)] for both in pairwise(times)]
    medians = map(common.median, [*parts, times[-1]])
    return {"call µs": middle, "from": low, "to": high} | dict(zip(PARTS, medians, strict=False))


def measured(names: list[str], device: torch.device, dtype: str, repeats: int, rounds: int) -> list[dict[str, Any]]:
    """A row for each operator: its quietest round, and the median over the rounds."""
    with launching() if device.type == "cpu" and find_spec("triton") else nullcontext(NO_STARTS) as made:
        found = []
        for name in names:
            kind = torch.float32 if OPERATORS[name].float32_only else getattr(torch, dtype)
            found.append((name, *ways(name, device, kind)))
        times: dict[str, list[dict[str, float]]] = {name: [] for name in names}
        for _ in range(rounds):
            for name, _, _, calls in found:
                times[name].append(measure_ways(calls, repeats, device, made))
    return [
        {"operator": name, "ends in": end, "starts": starts}
        | min(times[name], key=lambda one: one["call µs"])
        | {"all rounds µs": common.median([one["call µs"] for one in times[name]])}
        for name, end, starts, _ in found
    ]


def overhead(
    dtype: Annotated[
        str, typer.Option(metavar="DTYPE", help="float32, bfloat16 or float16; latents stay float32.")
    ] = "float32",
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1, ... Default: cuda if available, else cpu.")
    ] = None,
    calls: Annotated[int, typer.Option(min=2, help="Timed calls of each level in a round, in turns.")] = 200,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds, of which the quietest is shown.")] = 20,
    output: Annotated[
        Path | None, typer.Option(metavar="DIR", file_okay=False, help="Folder for overhead.csv. Default: none.")
    ] = None,
) -> None:
    """Host time in microseconds of an eager call without gradients until its kernel is launched, on tiny tensors."""
    if dtype not in common.DTYPES:
        raise typer.BadParameter(f"{dtype!r} is not one of {', '.join(common.DTYPES)}", param_hint="--dtype")
    console.prepare_streams()
    try:
        where = devices.usable_device(device)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--device") from None
    with torch.inference_mode():
        rows = measured(ops.__all__, where, dtype, calls, rounds)
    title = f"Host time of a call, {dtype}, medians of {calls} calls in the quietest of {rounds} rounds"
    print("\n".join([title, common.machine_line(common.machine(device=where)), "", table(SHOWN, rows)]))
    single = [row for row in rows if row["starts"] == 1]
    reached = sum(row["call µs"] <= GOAL for row in single)
    print("\nFrom, to: quartiles of the calls. The parts are medians of differences and may not add up.")
    print("All rounds: the median of their medians.")
    print(f"Goal: at most {GOAL:.0f} µs for a call with one start; {reached} of {len(single)} reach it here.")
    if output is not None:
        path = output / "overhead.csv"
        common.write_csv(path, list(SHOWN), rows)
        print(f"written: {path}")


app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
app.command()(overhead)

if __name__ == "__main__":
    app()
