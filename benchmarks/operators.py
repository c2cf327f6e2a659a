"""Time and memory of every operator on the networks' own sizes, against plain PyTorch and torch.compile.

    python benchmarks/operators.py --quick
    python benchmarks/operators.py --device cuda --dtype bfloat16 --op group_norm --op window_attention

Providers: `reference` is the formula in plain PyTorch, `ours` the public function with the backend that it chooses,
`compile` torch.compile of the reference for this size. A speed-up over the reference is given only if a provider's
outputs, and gradients if they are measured, have agreed with float64 in the same process. A provider that does not
agree is not timed; its error is shown, and the exit status is 1.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import common
import operator_measure as measure
import torch
import typer
from operator_arguments import OPERATORS, SPEC
from operator_cases import CASES, Case

from resshift_fast import backends, ops
from resshift_fast.cli import console
from resshift_fast.core import devices
from resshift_fast.core.accuracy import full_float32
from resshift_fast.core.files import make_folder, write_atomically
from resshift_fast.measure import roofline, timing
from resshift_fast.measure.table import table

SHOWN = {
    "case": "",
    "dtype": "",
    "pass": "",
    "provider": "",
    "backend": "",
    "median ms": ".3f",
    "spread ms": ".3f",
    "peak MiB": ".2f",
    "bandwidth %": ".1f",
    "matrix %": ".1f",
    "error": ".1e",
    "allowed": ".1e",
    "speed-up": ".2f",
    "remark": "",
}
CSV_COLUMNS = ("operator", "where", *SHOWN, "runs")
PLAIN = "reference"
QUICK_REPEATS = 3
SIDE_MULTIPLE = 64  # the U-Net's lowest level is an eighth and holds whole windows of 8


class Benchmark:
    """Checks and measures cases, and collects rows.

    Args:
        device: where the tensors are.
        repeats: timed runs of each provider.
        backward: whether backward passes are measured too.
        compiled: whether torch.compile is a provider.
        latent, batch: side of the latent in pixels, and number of images.
    """

    def __init__(
        self, device: torch.device, *, repeats: int, backward: bool, compiled: bool, latent: int = 64, batch: int = 1
    ):
        self.device, self.repeats, self.backward, self.compiled = device, repeats, backward, compiled
        self.latent, self.batch = latent, batch
        self.clock = timing.Clock(device)
        self.gpu = roofline.of_device(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
        self.rows: list[dict[str, Any]] = []
        self.notes: list[str] = []
        self.failed = 0

    def run(self, case: Case, dtype: torch.dtype) -> None:
        """Measure one call in one dtype, forward and optionally backward."""
        operator = OPERATORS[case.op]
        arguments = case.arguments(self.device, dtype, self.latent, self.batch)
        row = {
            "operator": case.op,
            "where": case.where,
            "case": f"{case.op}-{case.label(self.latent, self.batch)}",
            "dtype": str(dtype).removeprefix("torch."),
        }
        functions = {PLAIN: operator.plain, "ours": _as_called(operator.public, arguments)}
        if self.compiled:
            functions["compile"] = compiled(operator.plain)
        chosen = {PLAIN: "plain", "ours": backend_of(case.op, arguments), "compile": "inductor"}
        for backward in (False, True)[: 1 + self.backward]:
            names = operator.differentiable
            shared = row | {"pass": "backward" if backward else "forward"}
            try:
                weights, plain, exact = self._expected(functions[PLAIN], arguments, names, dtype, backward)
            except (RuntimeError, NotImplementedError) as error:  # such as a dtype that the device's PyTorch lacks
                self.rows.append(shared | {"provider": PLAIN, "remark": f"cannot run here: {_brief(error)}"})
                continue
            rows = {name: shared | {"provider": name, "backend": chosen[name]} for name in functions}
            prepared = {}
            for name, function in functions.items():
                if self._agrees(name, rows[name], function, arguments, names, weights, plain, exact):
                    prepared[name] = measure.ready(function, arguments, names, weights)
            del plain, exact
            self._measure(prepared, rows, backward)
            if self.gpu is not None and "ours" in prepared:
                self._share(measure.work(prepared["ours"]()), dtype.itemsize, rows)
            self.rows += rows.values()

    def _expected(
        self, plain: Callable[..., Any], arguments: dict[str, Any], names: tuple[str, ...], dtype: Any, backward: bool
    ) -> tuple[Any, dict[str, Any], dict[str, Any]]:
        """Gradients of the outputs, or None; the plain path's results in `dtype` and in float64."""
        weights = None
        if backward:
            with torch.no_grad():
                weights = measure.output_weights(measure.tensors(plain(**arguments)), dtype)
        found = measure.results(plain, arguments, names, weights)
        return weights, found, measure.results(plain, measure.in_double(arguments), names, weights)

    def _agrees(
        self, provider: str, row: dict[str, Any], function: Any, arguments: Any, names: Any, *rest: Any
    ) -> bool:
        """The equivalence check of one provider; False if it failed or the provider cannot run at all."""
        weights, plain, exact = rest
        try:
            found = measure.results(function, arguments, names, weights)
        except Exception as error:  # a provider may fail in any way; the others are still measured
            row["remark"] = f"{type(error).__name__}: {_brief(error)}"
            if provider == "compile":
                row["remark"] = f"skipped, torch.compile failed: {row['remark']}"
                self._note(row["remark"])
            else:
                self.failed += 1
            return False
        check = measure.compare(found, plain, exact)
        row |= {"error": check.error, "allowed": check.allowed, "remark": check.problem}
        self.failed += bool(check.problem)
        return not check.problem

    def _measure(self, prepared: dict[str, Any], rows: dict[str, dict[str, Any]], backward: bool) -> None:
        """Times, memory and speed-ups of the providers that agreed."""
        if not prepared:
            return
        found = timing.times(prepared, self.repeats, self.clock, once=backward)
        for name, values in found.items():
            rows[name] |= {
                "runs": len(values),
                "median ms": common.median(values),
                "spread ms": common.spread(values),
                "peak MiB": measure.peak_bytes(prepared[name], self.device) / common.MIB,
            }
            if name != PLAIN and PLAIN in found:
                rows[name]["speed-up"] = common.median(found[PLAIN]) / common.median(values)

    def _share(self, work: tuple[int, int], element_size: int, rows: dict[str, dict[str, Any]]) -> None:
        """Shares of the GPU's bandwidth and matrix rate that each provider reaches if it does exactly `work`."""
        num_bytes, operations = work
        for row in rows.values():
            if "median ms" in row:
                seconds = row["median ms"] / 1e3
                row["bandwidth %"] = 100 * num_bytes / seconds / self.gpu.bandwidth
                if operations:
                    row["matrix %"] = 100 * operations / seconds / self.gpu.rate(element_size)

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """torch.compile for static sizes. The cache is reset, since after a few sizes torch.compile would run eagerly."""
    torch.compiler.reset()
    return torch.compile(function, fullgraph=True, dynamic=False)


def _as_called(function: Callable[..., Any], arguments: dict[str, Any]) -> Callable[..., Any]:
    """A public function as the networks call it: a step whose next input has no dtype leaves that out."""
    leaves_out = "next_dtype" in arguments and arguments["next_dtype"] is None
    return partial(function, next_input=False) if leaves_out else function


def backend_of(name: str, arguments: dict[str, Any]) -> str:
    """The backend that the public function of an operator chooses for a call."""
    return backends.chosen(name, *arguments.values())


def _brief(error: BaseException) -> str:
    return console.one_line(str(error).strip().partition("\n")[0] or error)[:120]


def write_plots(folder: Path, rows: list[dict[str, Any]], title: str) -> list[Path]:
    """Draw a PNG for each dtype, with bars of time and memory for every case and provider, if matplotlib is there."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        console.say("no plots: matplotlib is not installed; pip install matplotlib")
        return []
    paths = []
    for dtype in dict.fromkeys(row["dtype"] for row in rows):
        chosen = [row for row in rows if row["dtype"] == dtype and row.get("median ms") is not None]
        passes = list(dict.fromkeys(row["pass"] for row in chosen))
        cases = list(dict.fromkeys(row["case"] for row in chosen))
        if not cases:
            continue
        figure = Figure(figsize=(15, 2 + 0.42 * len(cases) * len(passes)), layout="constrained")
        figure.suptitle(f"{dtype}: {title}", fontsize=9)
        axes = figure.subplots(len(passes), 2, squeeze=False)
        for line, direction in zip(axes, passes, strict=True):
            of_pass = [row for row in chosen if row["pass"] == direction]
            _bars(line[0], of_pass, cases, "median ms", "spread ms", f"{direction}: time in ms")
            _bars(line[1], of_pass, cases, "peak MiB", None, f"{direction}: peak memory in MiB")
        content = io.BytesIO()
        figure.savefig(content, format="png", dpi=110)
        paths.append(folder / f"operators-{dtype}.png")
        write_atomically(paths[-1], content.getvalue())
    return paths


def _bars(axis: Any, rows: list[dict[str, Any]], cases: list[str], value: str, spread: str | None, title: str) -> None:
    providers = list(dict.fromkeys(row["provider"] for row in rows))
    height = 0.8 / len(providers)
    for i, provider in enumerate(providers):
        own = [row for row in rows if row["provider"] == provider]
        places = [cases.index(row["case"]) + (i - (len(providers) - 1) / 2) * height for row in own]
        error = [row[spread] or 0.0 for row in own] if spread else None
        axis.barh(places, [row[value] for row in own], height, xerr=error, label=provider)
    axis.set_yticks(range(len(cases)), cases, fontsize=7)
    axis.invert_yaxis()
    axis.set_xscale("log")
    axis.set_title(title, fontsize=9)
    axis.legend(fontsize=7)


def _chosen(given: list[str] | None, known: tuple[str, ...] | list[str], default: list[str], option: str) -> list[str]:
    for name in given or ():
        if name not in known:
            raise typer.BadParameter(f"{name!r} is not one of {', '.join(known)}", param_hint=option)
    return list(dict.fromkeys(given or default))


def operators(
    op: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="An operator; may be repeated. Default: all of them.")
    ] = None,
    dtype: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DTYPE",
            help="float32, bfloat16 or float16; may be repeated. Default: float32 on the CPU, all three on a GPU.",
        ),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1, ... Default: cuda if available, else cpu.")
    ] = None,
    backward: Annotated[
        bool,
        typer.Option(
            "--backward/--no-backward", show_default=False, help="Measure backward passes too. Default: --backward."
        ),
    ] = True,
    compile: Annotated[
        bool,
        typer.Option(
            "--compile/--no-compile",
            show_default=False,
            help="Measure torch.compile of the reference too, with seconds to minutes per case. Default: --compile.",
        ),
    ] = True,
    repeats: Annotated[
        int | None,
        typer.Option(min=1, help=f"Timed runs of each provider. Default: 20 runs; {QUICK_REPEATS} with --quick."),
    ] = None,
    latent: Annotated[
        int,
        typer.Option(
            min=SIDE_MULTIPLE, help="Side of the latent in pixels, a multiple of 64; a quarter of the result's side."
        ),
    ] = 64,
    batch: Annotated[int, typer.Option(min=1, help="Images.")] = 1,
    output: Annotated[
        Path, typer.Option(metavar="DIR", file_okay=False, help="Folder for operators.csv and operators-DTYPE.png.")
    ] = Path("out"),
    quick: Annotated[
        bool, typer.Option("--quick", help="One case of each operator and few runs. Default: all cases.")
    ] = False,
) -> None:
    """Time and memory of the operators on the networks' own sizes: plain PyTorch, this package, torch.compile.

    Times are in milliseconds, median and standard deviation over runs that alternate between the providers in one
    process; memory is the peak beyond the arguments in MiB. A speed-up is given only after the equivalence check of the
    same case; if one fails, its error is shown in place of it and the exit status is 1.
    """
    if latent % SIDE_MULTIPLE:
        raise typer.BadParameter(f"{latent} is not a multiple of {SIDE_MULTIPLE}", param_hint="--latent")
    names = _chosen(op, ops.__all__, list(ops.__all__), "--op")
    console.prepare_streams()
    try:
        where = devices.usable_device(device)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--device") from None
    dtypes = _chosen(dtype, common.DTYPES, list(common.DTYPES if where.type == "cuda" else ("float32",)), "--dtype")
    cases = [case for case in CASES if case.op in names]
    if quick:
        cases = list({case.op: case for case in reversed(cases)}.values())[::-1]
    benchmark = Benchmark(
        where,
        repeats=repeats or (QUICK_REPEATS if quick else 20),
        backward=backward,
        compiled=compile,
        latent=latent,
        batch=batch,
    )
    make_folder(output)
    path = output / "operators.csv"
    total = len(cases) * len(dtypes)
    with full_float32():
        for number, (name, case) in enumerate(((d, c) for d in dtypes for c in cases), start=1):
            console.say(f"{number}/{total} {case.op} {case.label(latent, batch)} {name}")
            benchmark.run(case, getattr(torch, name))
            common.write_csv(path, CSV_COLUMNS, benchmark.rows)  # after every case, so that an interruption loses none
    _report(benchmark, path)


def _report(benchmark: Benchmark, path: Path) -> None:
    """Print the table, draw the plots, and exit with 1 if a check failed."""
    line = common.machine_line(common.machine(device=benchmark.device))
    side = SPEC.first_stage.factor * benchmark.latent
    title = f"Operators of {SPEC.name} for {benchmark.batch} of {side}×{side}, {benchmark.repeats} runs"
    notes = [
        "backward: time of that pass alone, memory of it and the forward pass before it. error: of the tensor nearest "
        "to its limit, against float64.",
    ]
    if benchmark.device.type == "cuda":
        notes.append(
            "Times from replays of a CUDA graph, backward ones queued behind a spin, each call after the level-2 cache "
            "was overwritten; memory from max_memory_allocated."
        )
        sheet = "not known for this GPU" if benchmark.gpu is None else f"of {benchmark.gpu.title}"
        notes.append(
            "bandwidth, matrix: of the data sheet's, for what this package's Triton kernels move and compute, whatever "
            f"the provider does; data sheet: {sheet}."
        )
    else:
        notes.append("Times from perf_counter; memory from torch.profiler, what PyTorch's own allocator gave out.")
    if any(row["provider"] == "ours" and row.get("backend") == PLAIN for row in benchmark.rows):
        notes.append(
            "Where ours has the backend `reference` both run the same code; how far its speed-up is from 1 is noise."
        )
    print("\n".join([title, line, "", table(SHOWN, benchmark.rows), "", *notes, *benchmark.notes]))
    for written in (path, *write_plots(path.parent, benchmark.rows, line)):
        print(f"written: {written}")
    if benchmark.failed:
        count = benchmark.failed
        console.say(f"error: {count} equivalence check{'s' * (count > 1)} failed; see the remarks in the table")
        raise typer.Exit(1)


app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
app.command()(operators)

if __name__ == "__main__":
    app()
