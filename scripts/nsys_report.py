"""Report on a profile: time by stage, operator and kernel, gaps, and the ratio to the projected least time.

    scripts/profile_nsys.sh                          record and report
    python scripts/nsys_report.py profile.sqlite     a SQLite export of nsys
    python scripts/nsys_report.py trace.json         a trace of torch.profiler

`resshift-fast profile` writes a workload.json beside its recording, which the least time is computed from.
Writes report.txt, report.png, stages.csv, operators.csv, kernels.csv and gaps.csv. All times are of one restoration,
the mean over those recorded.
"""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from profile_report import nsys, plot, show, tables, torch_trace  # noqa: E402
from profile_report.trace import Trace, TraceError  # noqa: E402

from resshift_fast.cli import console  # noqa: E402
from resshift_fast.core.files import make_folder, write_atomically  # noqa: E402
from resshift_fast.measure import roofline  # noqa: E402


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    args = _options(argv)
    console.prepare_streams()
    try:
        trace = read(args.file)
        settings = _settings(args.workload or args.file.parent / "workload.json", required=args.workload is not None)
        floors, note = _floors(settings, trace, args.gpu)
        trace.notes += [note] if note else []
        report = tables.make(trace, floors, settings)
        folder = args.output or args.file.parent
        make_folder(folder)
        _write(report, folder, args.top)
    except (OSError, ValueError) as error:
        console.report(error)
        return 1
    return 0


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


def _settings(path: Path, required: bool) -> dict[str, Any]:
    if not required and not path.exists():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not a workload.json of resshift-fast profile: {error}") from error


def _floors(
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


def _write(report: tables.Report, folder: Path, top: int) -> None:
    shown = show.text(report, top)
    print(shown)
    written = [folder / "report.txt", *show.write_csv(report, folder)]
    write_atomically(written[0], shown.encode())
    try:
        plot.write(report, folder / "report.png")
        written.append(folder / "report.png")
    except ImportError:
        console.say("no plot: matplotlib is not installed; pip install matplotlib")
    for path in written:
        print(f"written: {path}")


def _options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, help="SQLite export of nsys, or trace of torch.profiler (.json, .json.gz).")
    parser.add_argument("--output", type=Path, metavar="DIR", help="Folder of the report. Default: the file's own.")
    parser.add_argument(
        "--workload", type=Path, metavar="FILE", help="What ran. Default: workload.json beside the file, if any."
    )
    parser.add_argument(
        "--gpu",
        choices=list(roofline.GPUS),
        help="GPU whose floor is projected. Default: the one that was recorded; none for a CPU.",
    )
    parser.add_argument("--top", type=int, default=15, metavar="N", help="Kernels and gaps shown. Default: 15.")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
