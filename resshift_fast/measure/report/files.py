"""Reading a recording and what ran, and writing a report's files."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from resshift_fast.core.files import make_folder, write_atomically
from resshift_fast.measure import roofline
from resshift_fast.measure.report import nsys, plot, show, torch_trace
from resshift_fast.measure.report.tables import Report
from resshift_fast.measure.report.trace import Trace, TraceError


def read(path: Path) -> Trace:
    """Read a recording of either profiler.

    Raises:
        TraceError: for a file of another kind, or one without work in it.
        OSError: for a file that cannot be read.
    """
    with open(path, "rb") as file:
        start = file.read(16)
    if start.startswith(b"SQLite format 3"):
        return nsys.read(path)
    if path.suffix in (".nsys-rep", ".qdrep"):
        raise TraceError(f"{path} is nsys' own format; export it first: nsys export --type sqlite {path}")
    return torch_trace.read(path)


def read_settings(path: Path, required: bool) -> dict[str, Any]:
    """A workload.json; empty if there is none and none is required.

    Raises:
        ValueError: if it is no JSON. OSError: for a file that cannot be read.
    """
    if not required and not path.exists():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not a workload.json of resshift-fast profile: {error}") from error


def project(
    settings: dict[str, Any], trace: Trace, gpu: str | None
) -> tuple[Mapping[str, roofline.Floor] | None, str | None]:
    """The projection for the workload, or None and a note with the reason; adds the GPU's name to the settings."""
    if not settings:
        return None, "No projected floor: there is no workload.json that describes the run."
    device = settings.get("device_name") or trace.device
    if gpu is None:
        if trace.on_cpu:
            return None, "No projected floor: there is none for a CPU. --gpu NAME shows that of a GPU."
        gpu = next((name for name in roofline.GPUS if name in device.lower()), None)
        if gpu is None:
            known = ", ".join(roofline.GPUS)
            return None, f"No projected floor: no data sheet of {device} is known. --gpu takes one of {known}."
    from resshift_fast.measure.profiling import Workload

    chosen = roofline.get(gpu)
    try:
        floors = Workload.from_settings(settings).floors(chosen)
    except ImportError as error:
        return None, f"No projected floor: {error}."
    settings["floor_gpu"] = chosen.title
    return floors, None


def write(report: Report, folder: Path, shown: str) -> tuple[list[Path], str | None]:
    """Write report.txt, the tables as CSV and report.png; returns their paths, and why there is no plot, if so.

    Args:
        report: the report.
        folder: of the files; made if missing.
        shown: the text of report.txt.
    """
    make_folder(folder)
    written = [folder / "report.txt", *show.write_csv(report, folder)]
    write_atomically(written[0], shown.encode())
    try:
        plot.write(report, folder / "report.png")
    except ImportError:
        return written, "matplotlib is not installed; pip install 'resshift-fast[bench]'"
    return [*written, folder / "report.png"], None
