"""Reader of Nsight Systems' SQLite export; the schema is in its User Guide under "SQLite Schema Reference".

The ranges of a kernel are found as follows: its `correlationId` refers to the call that launched it, in
CUPTI_ACTIVITY_KIND_RUNTIME (which has calls of the driver API too), and the call's thread and time are within ranges of
NVTX_EVENTS. A node of a CUDA graph correlates with the graph's launch, when no range was open. So its `graphNodeId` is
traced in CUDA_GRAPH_NODE_EVENTS, through the clones of the instantiation, back to the node's creation during capture,
and the ranges of that moment are used. If the creation was not recorded, only the kernel's name is known. Tables exist
only if they have rows, and columns differ between versions.
"""

import sqlite3
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from resshift_fast.core import nvtx as library
from resshift_fast.measure.report.names import without_details
from resshift_fast.measure.report.trace import (
    COPY,
    GRAPH,
    KERNEL,
    Activity,
    Range,
    Trace,
    TraceError,
    enclosing,
    index_at,
)

KERNELS = "CUPTI_ACTIVITY_KIND_KERNEL"
GRAPHS = "CUPTI_ACTIVITY_KIND_GRAPH_TRACE"
COPIES = {1: "host to device", 2: "device to host", 8: "device to device"}  # CUpti_ActivityMemcpyKind

Moment = tuple[int, int]  # (globalTid, time)


def read(path: Path) -> Trace:
    """Read an export.

    Raises:
        TraceError: if it has no GPU activity, or is not an export of Nsight Systems.
    """
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as connection:
            return _Export(connection, path).trace()
    except sqlite3.DatabaseError as error:
        raise TraceError(f"{path} is not a whole SQLite export of nsys: {error}; export it again") from error


class _Export:
    def __init__(self, connection: sqlite3.Connection, path: Path):
        self._connection, self._path = connection, path
        self._tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        self._strings = dict(self._rows("StringIds", "id", "value"))
        self._notes: list[str] = []

    def trace(self) -> Trace:
        if not self._tables & {KERNELS, GRAPHS}:
            raise TraceError(
                f"{self._path} has no GPU activity: it has neither {KERNELS} nor {GRAPHS}. Record with "
                "--trace=cuda,nvtx a program that uses the GPU, within the capture range if there is one"
            )
        ranges = self._ranges()
        restorations = sorted(
            (r for of_thread in ranges.values() for r in of_thread if r.name == library.RESTORATION),
            key=lambda r: r.start,
        )
        activities = self._activities(ranges, restorations)
        if not activities:
            raise TraceError(f"{self._path} has GPU activity, but none within its {len(restorations)} restorations")
        if not restorations:
            self._notes.append("No restoration is marked as a range: the whole recording counts as one.")
            restorations = [Range(library.RESTORATION, activities[0].start, max(a.end for a in activities))]
        device = next((name for (name,) in self._rows("TARGET_INFO_GPU", "name")), "")
        return Trace("nsys", device or "", restorations, activities, self._notes)

    def _rows(self, table: str, *columns: str) -> Iterator[tuple[Any, ...]]:
        """Columns of all rows; None for columns that this export lacks, and no rows if it lacks the table."""
        if table not in self._tables:
            return
        present = {row[1] for row in self._connection.execute(f"PRAGMA table_info({table})")}
        chosen = ", ".join(f'"{column}"' if column in present else "NULL" for column in columns)
        yield from self._connection.execute(f"SELECT {chosen} FROM {table}")

    def _ranges(self) -> dict[int, list[Range]]:
        """Ranges by thread; marks and ranges that never ended are left out."""
        found: dict[int, list[Range]] = defaultdict(list)
        for start, end, text, text_id, thread in self._rows(
            "NVTX_EVENTS", "start", "end", "text", "textId", "globalTid"
        ):
            name = text if text is not None else self._strings.get(text_id)
            if end is not None and name is not None:
                found[thread].append(Range(without_details(name), start, end))
        if not found:
            self._notes.append(
                f"There are no NVTX ranges ({library.VARIABLE}=1 turns them on): operators and stages are inferred "
                "from the kernels' names."
            )
        return found

    def _activities(self, ranges: dict[int, list[Range]], restorations: list[Range]) -> list[Activity]:
        """All activities by start, without those launched outside of restorations."""
        launches = {
            (thread >> 24, correlation): (thread, start)
            for thread, correlation, start in self._rows(
                "CUPTI_ACTIVITY_KIND_RUNTIME", "globalTid", "correlationId", "start"
            )
            if thread is not None
        }
        creation = self._creations()
        kept, moments = [], []
        unlinked = lost = 0
        for kind, name, start, end, process, correlation, node in sorted(self._work(), key=lambda work: work[2]):
            # The ids of a process and its threads differ in the lowest 24 bits.
            launch = launches.get(((process or 0) >> 24, correlation))
            unlinked += launch is None
            number = index_at(restorations, start if launch is None else launch[1])
            if number is None and restorations:
                continue
            moment = launch if node is None else creation(((process or 0) >> 24, node))
            lost += node is not None and moment is None
            kept.append(Activity(name, kind, start, end, restoration=number or 0))
            moments.append(moment)
        self._say_what_is_missing(kept, unlinked, lost)
        return [a._replace(ranges=names) for a, names in zip(kept, _ranges_at(moments, ranges), strict=True)]

    def _work(self) -> Iterator[tuple[str, str, int, int, int | None, int | None, int | None]]:
        """(kind, name, start, end, globalPid, correlationId, graphNodeId) of everything that ran on the GPU."""
        shared = ("start", "end", "globalPid", "correlationId", "graphNodeId")
        for *values, name, short in self._rows(KERNELS, *shared, "demangledName", "shortName"):
            yield KERNEL, self._strings.get(name) or self._strings.get(short) or "kernel without a name", *values
        for *values, kind in self._rows("CUPTI_ACTIVITY_KIND_MEMCPY", *shared, "copyKind"):
            yield COPY, f"copy {COPIES.get(kind, 'of another kind')}", *values
        for (*values,) in self._rows("CUPTI_ACTIVITY_KIND_MEMSET", *shared):
            yield COPY, "memory set", *values
        for *values, graph in self._rows(GRAPHS, *shared, "graphId"):
            if values[1] > values[0]:  # both are 0 if the times could not be recorded
                yield GRAPH, f"CUDA graph {graph}", *values

    def _creations(self) -> Any:
        """A function from (process, node) to the time at which the node was captured, or None."""
        parents: dict[tuple[int, int], int] = {}
        moments: dict[tuple[int, int], Moment] = {}
        columns = ("start", "globalTid", "graphNodeId", "originalGraphNodeId")
        for start, thread, node, original in self._rows("CUDA_GRAPH_NODE_EVENTS", *columns):
            key = ((thread or 0) >> 24, node)
            if original is None:
                moments.setdefault(key, (thread, start))
            elif original != node:
                parents[key] = original

        def creation(key: tuple[int, int]) -> Moment | None:
            for _ in range(len(parents) + 1):  # a damaged file could have a cycle
                if key not in parents:
                    return moments.get(key)
                key = (key[0], parents[key])
            return None

        return creation

    def _say_what_is_missing(self, activities: list[Activity], unlinked: int, lost: int) -> None:
        whole = sum(activity.kind == GRAPH for activity in activities)
        if whole:
            self._notes.append(
                f"{whole} launches of CUDA graphs were recorded as a whole, without stages, operators and kernels: "
                "record with --cuda-graph-trace=node to see their nodes."
            )
        if lost:
            self._notes.append(
                f"Of {lost} nodes of CUDA graphs the capture was not recorded (no CUDA_GRAPH_NODE_EVENTS): operators "
                "and stages are inferred from the kernels' names."
            )
        if unlinked:
            self._notes.append(
                f"Of {unlinked} kernels and copies the launch was not recorded: their operators are inferred from "
                "their names and times."
            )


def _ranges_at(moments: list[Moment | None], ranges: dict[int, list[Range]]) -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = [()] * len(moments)
    by_thread: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for i, moment in enumerate(moments):
        if moment is not None:
            by_thread[moment[0]].append((i, moment[1]))
    for thread, chosen in by_thread.items():
        names = enclosing(ranges.get(thread, ()), [time for _, time in chosen])
        for (i, _), one in zip(chosen, names, strict=True):
            found[i] = one
    return found
