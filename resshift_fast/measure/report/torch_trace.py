"""Reader of torch.profiler's traces (`export_chrome_trace`), of a GPU or of a CPU.

On a GPU, `correlation` refers from a kernel to the call that launched it, and that call's thread and time are within
ranges and operators. Kernels of a CUDA graph correlate with the graph's launch, and their capture is not recorded, so
only their names are known. On a CPU the activities are the operators' self times, without the operators that they call.
"""

import gzip
import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from resshift_fast.core import nvtx as library
from resshift_fast.measure.report.trace import (
    COPY,
    CPU,
    KERNEL,
    Activity,
    Range,
    Trace,
    TraceError,
    enclosing,
    index_at,
)

WORK = {"kernel": KERNEL, "gpu_memcpy": COPY, "gpu_memset": COPY}
LAUNCHES = ("cuda_runtime", "cuda_driver")

Thread = tuple[Any, Any]


def read(path: Path) -> Trace:
    """Read a trace.

    Raises:
        TraceError: if it is not a trace, or has no activity within a restoration.
    """
    try:
        opened = gzip.open if path.suffix == ".gz" else open
        with opened(path, "rt", encoding="utf-8", errors="replace") as file:
            content = json.load(file)
        events = [e for e in content["traceEvents"] if e.get("ph") == "X"]
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise TraceError(f"{path} is not a trace of torch.profiler: {error}") from error
    annotations, operators = _host(events)
    restorations = sorted(
        (r for of_thread in annotations.values() for r in of_thread if r.name == library.RESTORATION),
        key=lambda r: r.start,
    )
    notes = [] if restorations else ["No restoration is marked as a range: the whole recording counts as one."]
    if any(e.get("cat") == "kernel" for e in events):
        activities = _device_work(events, annotations, operators, restorations, notes)
    else:
        activities = _host_work(annotations, operators, restorations)
    if not activities:
        raise TraceError(f"{path} has no activity" + (" within its restorations" if restorations else ""))
    activities.sort(key=lambda a: a.start)
    if not restorations:
        restorations = [Range(library.RESTORATION, activities[0].start, max(a.end for a in activities))]
    device = next((d.get("name", "") for d in content.get("deviceProperties", ())), "")
    return Trace("torch.profiler", device, restorations, activities, notes)


def _times(event: dict) -> tuple[int, int]:
    start = round(event["ts"] * 1000)  # microseconds, with decimals
    return start, start + round(event.get("dur", 0) * 1000)


def _host(events: list[dict]) -> tuple[dict[Thread, list[Range]], dict[Thread, list[Range]]]:
    """Ranges and operators, by thread."""
    annotations: dict[Thread, list[Range]] = defaultdict(list)
    operators: dict[Thread, list[Range]] = defaultdict(list)
    for event in events:
        kind = {"user_annotation": annotations, "cpu_op": operators}.get(event.get("cat", ""))
        if kind is not None:
            kind[event["pid"], event["tid"]].append(Range(event["name"], *_times(event)))
    return annotations, operators


def _device_work(
    events: list[dict],
    annotations: dict[Thread, list[Range]],
    operators: dict[Thread, list[Range]],
    restorations: list[Range],
    notes: list[str],
) -> list[Activity]:
    launches = {
        event["args"]["correlation"]: ((event["pid"], event["tid"]), *_times(event), event["name"])
        for event in events
        if event.get("cat") in LAUNCHES and "correlation" in event.get("args", {})
    }
    by_thread: dict[Thread | None, list[tuple[int, Activity]]] = defaultdict(list)
    in_graphs = 0
    for event in events:
        if event.get("cat") not in WORK:
            continue
        thread, launched, _, call = launches.get(event.get("args", {}).get("correlation"), (None, None, None, ""))
        start, end = _times(event)
        number = index_at(restorations, start if launched is None else launched)
        if number is None and restorations:
            continue
        if "GraphLaunch" in call:
            in_graphs, thread = in_graphs + 1, None
        activity = Activity(event["name"], WORK[event["cat"]], start, end, restoration=number or 0)
        by_thread[thread].append((launched or start, activity))
    if in_graphs:
        notes.append(
            f"{in_graphs} kernels and copies ran in CUDA graphs, whose capture torch.profiler does not record: "
            "operators and stages are inferred from their names."
        )
    return [activity for thread in by_thread for activity in _within(by_thread[thread], thread, annotations, operators)]


def _within(
    launched: list[tuple[int, Activity]],
    thread: Thread | None,
    annotations: dict[Thread, list[Range]],
    operators: dict[Thread, list[Range]],
) -> Iterator[Activity]:
    """The activities with the ranges and operators of the thread at their launch."""
    around = [] if thread is None else [*annotations.get(thread, ()), *operators.get(thread, ())]
    for (_, activity), names in zip(launched, enclosing(around, [time for time, _ in launched]), strict=True):
        yield activity._replace(ranges=names)


def _host_work(
    annotations: dict[Thread, list[Range]], operators: dict[Thread, list[Range]], restorations: list[Range]
) -> list[Activity]:
    found: list[Activity] = []
    for thread, of_thread in operators.items():
        if restorations and not any(r.name == library.RESTORATION for r in annotations.get(thread, ())):
            continue  # another thread runs in parallel, so its time would be counted twice
        launched = []
        for operator, start, end, first in _own_time(of_thread):
            number = index_at(restorations, start)
            if number is not None or not restorations:
                activity = Activity(operator.name, CPU, start, end, restoration=number or 0, calls=int(first))
                launched.append((start, activity))
        found += _within(launched, thread, annotations, operators)
    return found


def _own_time(operators: list[Range]) -> Iterator[tuple[Range, int, int, bool]]:
    """(operator, start, end, whether it is the first) of every interval of an operator's self time."""
    stack: list[list] = []  # [operator, whether it had a stretch]
    now = 0

    def stretch(until: int) -> Iterator[tuple[Range, int, int, bool]]:
        if stack and until > now:
            yield stack[-1][0], now, until, not stack[-1][1]
            stack[-1][1] = True

    for operator in sorted(operators, key=lambda r: (r.start, -r.end)):
        while stack and stack[-1][0].end <= operator.start:
            yield from stretch(stack[-1][0].end)
            now = max(now, stack.pop()[0].end)
        yield from stretch(operator.start)
        stack.append([operator, False])
        now = operator.start
    while stack:
        yield from stretch(stack[-1][0].end)
        now = max(now, stack.pop()[0].end)
