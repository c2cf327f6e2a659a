"""A recorded run in a form that does not depend on the profiler. Times are in nanoseconds."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

KERNEL, COPY, GRAPH, CPU = "kernel", "copy", "graph", "cpu"


class TraceError(ValueError):
    """A file without anything to report on; the message says why and what to do."""


class Range(NamedTuple):
    """A named interval on one thread of the host."""

    name: str
    start: int
    end: int


class Activity(NamedTuple):
    """An activity: a kernel or copy on a GPU, or an interval of an operator's self time on a CPU.

    Attributes:
        name: of the kernel, or of the innermost operator on a CPU.
        kind: KERNEL, COPY, GRAPH (a whole CUDA graph that was not recorded by node) or CPU.
        start, end: when it ran.
        ranges: names of the ranges of the library and PyTorch operators that were open when it was launched, the
            outermost first. For a node of a CUDA graph, when the graph was captured.
        restoration: index of the one that it belongs to, from 0.
        calls: 1; on a CPU 0 for the later intervals of an operator that calls others.
    """

    name: str
    kind: str
    start: int
    end: int
    ranges: tuple[str, ...] = ()
    restoration: int = 0
    calls: int = 1


@dataclass
class Trace:
    """The recording of one or more equal restorations.

    Args:
        recorder: the profiler.
        device: name of the GPU, or "" if it is not known.
        restorations: start and end of each on the host, in order.
        activities: what ran in them, by start.
        notes: remarks for readers of the report on how the figures were obtained.
    """

    recorder: str
    device: str
    restorations: list[Range]
    activities: list[Activity]
    notes: list[str] = field(default_factory=list)

    @property
    def on_cpu(self) -> bool:
        """Whether the activities are those of a CPU."""
        return any(activity.kind == CPU for activity in self.activities)


def enclosing(ranges: Iterable[Range], times: Sequence[int]) -> list[tuple[str, ...]]:
    """The names of the ranges of one thread that contain a moment, the outermost first.

    A range directly within one of the same name is counted once: two mechanisms have recorded it.
    """
    waiting = sorted(ranges, key=lambda r: (r.start, -r.end))[::-1]
    found: list[tuple[str, ...]] = [()] * len(times)
    active: list[Range] = []
    for i in sorted(range(len(times)), key=times.__getitem__):
        while waiting and waiting[-1].start <= times[i]:
            active.append(waiting.pop())
        active = [r for r in active if r.end > times[i]]
        found[i] = tuple(r.name for j, r in enumerate(active) if j == 0 or active[j - 1].name != r.name)
    return found


def index_at(ranges: Sequence[Range], time: int) -> int | None:
    """Index of the interval that contains a moment."""
    return next((i for i, r in enumerate(ranges) if r.start <= time < r.end), None)
