"""A recorded run in the form that the report is made from, whichever profiler recorded it. Times are nanoseconds."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

KERNEL, COPY, GRAPH, CPU = "kernel", "copy", "graph", "cpu"


class TraceError(ValueError):
    """A file that holds nothing to report on, with the reason and what to do."""


class Range(NamedTuple):
    """A named stretch of time on one thread of the host."""

    name: str
    start: int
    end: int


class Activity(NamedTuple):
    """One stretch of work: a kernel or copy on a GPU, or a stretch of an operator's own time on a CPU.

    Attributes:
        name: of the kernel, or of the innermost operator on a CPU.
        kind: KERNEL, COPY, GRAPH (a whole CUDA graph that was not recorded by node) or CPU.
        start, end: when it ran.
        ranges: names of what was going on when it was launched, the outermost first: ranges of the library and
            PyTorch's operators. For a node of a CUDA graph, when the graph was captured.
        restoration: which one it belongs to, counted from 0.
        calls: 1; on a CPU 0 for the later stretches of an operator that others interrupt.
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
    """What a profiler recorded of one or more equal restorations.

    Args:
        recorder: the profiler.
        device: name of the GPU, or "" where it is not known.
        restorations: the host's time of each, in order.
        activities: what ran in them, by start.
        notes: what a reader of the report has to know of how the numbers came about.
    """

    recorder: str
    device: str
    restorations: list[Range]
    activities: list[Activity]
    notes: list[str] = field(default_factory=list)

    @property
    def on_cpu(self) -> bool:
        """Whether the work is a CPU's."""
        return any(activity.kind == CPU for activity in self.activities)


def enclosing(ranges: Iterable[Range], times: Sequence[int]) -> list[tuple[str, ...]]:
    """For every moment the names of the ranges of one thread that it lies in, the outermost first.

    A range directly within one of the same name is the same one, told twice by two mechanisms.
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
    """Which of a few ranges a moment lies in."""
    return next((i for i, r in enumerate(ranges) if r.start <= time < r.end), None)
