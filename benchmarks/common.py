"""What all benchmarks share: options, timing, a description of the machine, tables, CSV and JSON files."""

from __future__ import annotations

import argparse
import csv
import io
import json
import math
import os
import platform
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from resshift_fast import images
from resshift_fast.backends.autotune_cache import processor
from resshift_fast.cli import console
from resshift_fast.core.devices import available_cores
from resshift_fast.core.files import make_folder, write_atomically
from resshift_fast.images.tiling import reflect
from resshift_fast.measure import memory
from resshift_fast.measure.table import table

if TYPE_CHECKING:
    from resshift_fast.measure.providers import Case
    from resshift_fast.pipeline import Pipeline

PHOTO = Path(__file__).resolve().parent.parent / "examples" / "nuthatch.jpg"
DTYPES = ("float32", "bfloat16", "float16")
MIB = 2**20


@dataclass
class Report:
    """The result of a benchmark.

    Args:
        title: one line.
        columns: heading and format of each column, such as {"seconds": ".3f"}.
        rows: values by heading; missing values and None are shown as a dash.
        notes: lines below the table.
        summary: the main figures by name.
        problem: why the benchmark fails, if it does.
    """

    title: str
    columns: dict[str, str]
    rows: list[dict[str, Any]]
    notes: list[str] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    problem: str = ""


def parser(description: str) -> argparse.ArgumentParser:
    """A parser with the options that every benchmark has."""
    made = argparse.ArgumentParser(description=description)
    option(made, "--csv", type=Path, metavar="FILE", help="Also write the table as CSV.")
    option(made, "--json", type=Path, metavar="FILE", help="Also write table, summary, settings and machine as JSON.")
    return made


def option(to: argparse.ArgumentParser, *names: str, help: str, **settings: Any) -> None:
    """Add an option whose help ends with its default, if that is a value."""
    default = settings.get("default")
    if default is not None and not isinstance(default, bool):
        shown = " ".join(map(str, default)) if isinstance(default, list | tuple) else default
        help = f"{help} Default: {shown}."
    to.add_argument(*names, help=help.replace("%", "%%"), **settings)


def add_model_options(to: argparse.ArgumentParser, *, several_dtypes: bool = False, model: str = "nano-x4") -> None:
    """The options that `load` takes; with `several_dtypes` --dtype gives a list."""
    option(to, "--model", default=model, help="A model of the catalogue.")
    option(to, "--weights", type=Path, metavar="FILE", help="Weights of the denoiser. Default: the published ones.")
    option(
        to, "--autoencoder", type=Path, metavar="FILE", help="Weights of the autoencoder. Default: the published ones."
    )
    option(to, "--random-weights", action="store_true", help="Use random weights: for time and memory only.")
    option(to, "--device", help="cpu, cuda, ... Default: cuda if available, else cpu.")
    if several_dtypes:
        option(to, "--dtype", nargs="+", choices=DTYPES, default=["float32"], help="What the networks run in.")
    else:
        option(to, "--dtype", choices=DTYPES, default="float32", help="What the networks run in.")
    option(to, "--threads", type=positive, help="torch's threads on the CPU. Default: torch's choice.")
    option(to, "--seed", type=int, default=0, help="Seed of the noise.")


def add_case_options(to: argparse.ArgumentParser, *, model: str, providers: Sequence[str]) -> None:
    """The options that `case` takes, with these defaults."""
    add_model_options(to, several_dtypes=True, model=model)
    known = ("reference", "compile", "ours", "ours-compiled")
    option(to, "--providers", nargs="+", choices=known, default=list(providers), help="What is measured.")


def case(
    args: argparse.Namespace, provider: str, dtype: str, size: int, batch: int, batch_size: int | None = None
) -> Case:
    """The case of the options of `add_case_options`; see `providers.Case`."""
    from resshift_fast.measure.providers import Case

    files = {name: path and str(path) for name, path in (("weights", args.weights), ("autoencoder", args.autoencoder))}
    others = {"random_weights": args.random_weights, "device": args.device, "threads": args.threads, **files}
    return Case(provider, dtype, args.model, size, batch, batch_size, **others)


def positive(text: str) -> int:
    """argparse type: an integer of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is below 1")
    return value


def natural(text: str) -> int:
    """argparse type: an integer of at least 0."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{value} is below 0")
    return value


def load(args: argparse.Namespace, dtype: str | None = None) -> Pipeline:
    """The pipeline of the model options; sets torch's threads.

    Args:
        args: parsed options of `add_model_options`.
        dtype: instead of `args.dtype`.

    Raises:
        ValueError, OSError: as `Pipeline.from_pretrained`.
    """
    import torch

    from resshift_fast.pipeline import Pipeline

    if args.threads:
        torch.set_num_threads(args.threads)
    return Pipeline.from_pretrained(
        args.model,
        weights=args.weights,
        autoencoder=args.autoencoder,
        random_weights=args.random_weights,
        device=args.device,
        dtype=dtype or args.dtype,
    )


def weights_line(args: argparse.Namespace) -> str:
    """A description of the weights, with the training step in a safetensors file's metadata."""
    if args.random_weights:
        return "random weights"
    if args.weights is None:
        return "published weights"
    step = None
    if args.weights.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(args.weights, "pt") as file:
            step = (file.metadata() or {}).get("step")
    return f"{args.weights}" + (f" (step {step})" if step else "")


def photo(height: int, width: int, path: Path = PHOTO) -> np.ndarray:
    """Extend an image to any size by reflection, uint8 or uint16 [height, width, 3].

    This keeps natural detail sharp, which enlarging would blur.
    """
    pixels = images.read(path).pixels
    rows, columns = reflect(0, height, pixels.shape[0]), reflect(0, width, pixels.shape[1])
    return np.ascontiguousarray(pixels[rows[:, None], columns[None, :]])


def median(values: Sequence[float]) -> float:
    """The median of at least one value."""
    return float(statistics.median(values))


def spread(values: Sequence[float]) -> float | None:
    """The sample standard deviation; None for a single value."""
    return float(statistics.stdev(values)) if len(values) > 1 else None


def compare_ratios(rows: Sequence[dict[str, Any]], seconds: str, prediction: str, within: float) -> tuple[float, str]:
    """Add "ratio", "predicted" and "error %" to rows: their ratios to the first one, as measured and as predicted.

    Args:
        rows: with `seconds` and `prediction`, the headings of what was measured and of what a model says.
        within: the largest relative error.

    Returns:
        (the largest relative error, why the benchmark fails, or "").
    """
    first, first_predicted = rows[0][seconds], rows[0][prediction]
    for row in rows:
        row["ratio"] = row[seconds] / first
        row["predicted"] = row[prediction] / first_predicted
        row["error %"] = 100 * (row["predicted"] / row["ratio"] - 1)
    worst = max(abs(row["error %"]) for row in rows) / 100
    return worst, f"a ratio is predicted {worst:.0%} off, more than {within:.0%}" if worst > within else ""


def peak_mib() -> float:
    """Peak resident memory of this process so far, in MiB; NaN if the system does not report it."""
    return memory.peak_bytes() / MIB


def machine(threads: int | None = None, device: Any = None) -> dict[str, Any]:
    """The machine and versions that measurements depend on.

    Args:
        threads: torch's threads; None takes them from torch, which imports it.
        device: a torch device; the name of a GPU is added.
    """
    found: dict[str, Any] = {"cpu": processor(), "cores": available_cores()}
    if hasattr(os, "getloadavg"):
        found["load"] = round(os.getloadavg()[0], 2)
    if threads is None:
        import torch

        threads = torch.get_num_threads()
    if getattr(device, "type", "cpu") == "cuda":
        import torch

        found["gpu"] = torch.cuda.get_device_name(device)
    found["threads"] = threads
    return found | {
        "torch": metadata.version("torch"),
        "python": platform.python_version(),
        "system": platform.platform(terse=True),
    }


def machine_line(found: dict[str, Any]) -> str:
    """`machine` in one line."""
    parts = [f"{found['cpu']}, {found['cores']} cores"]
    if "gpu" in found:
        parts.append(found["gpu"])
    parts += [
        f"torch {found['torch']}",
        f"{found['threads']} thread{'s' * (found['threads'] > 1)}",
        f"Python {found['python']}",
    ]
    if "load" in found:
        parts.append(f"load average {found['load']:.2f}")
    return "; ".join(parts)


def run(measure: Callable[[argparse.Namespace], Report], options: argparse.ArgumentParser, argv: Any = None) -> int:
    """Parse, measure, print and write; returns the exit code.

    Args:
        measure: the benchmark.
        options: its parser.
        argv: arguments; None takes the process's.
    """
    args = options.parse_args(argv)
    console.prepare_streams()
    try:
        report = measure(args)
        found = machine(args.threads, report.summary.get("device"))
        report.summary.pop("device", None)
        print("\n".join([report.title, machine_line(found), "", table(report.columns, report.rows)]))
        if report.notes:
            print("\n" + "\n".join(report.notes))
        write(args, options.prog, report, found)
    except (ValueError, TypeError, OSError) as error:
        console.report(error)
        return 1
    if report.problem:
        console.say(f"error: {report.problem}")
        return 1
    return 0


def write_csv(path: Path, columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> None:
    """Write these columns of every row; missing values are empty. Creates the folder."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    make_folder(path.parent)
    write_atomically(path, text.getvalue().encode())


def write(args: argparse.Namespace, name: str, report: Report, found: dict[str, Any]) -> None:
    """Write the files of the options: the rows as CSV, and as JSON with the result of `machine`."""
    if args.csv:
        write_csv(args.csv, list(report.columns), report.rows)
    if args.json:
        settings = {key: value for key, value in vars(args).items() if key not in ("csv", "json")}
        content = {
            "benchmark": Path(name).stem,
            "machine": found,
            "settings": settings,
            "summary": report.summary,
            "rows": report.rows,
        }
        make_folder(args.json.parent)
        write_atomically(args.json, (json.dumps(_plain(content), indent=1) + "\n").encode())


def _plain(value: Any) -> Any:
    """Replace infinities and NaN, which JSON does not have, by text."""
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
