"""The report's tables: a trace's time by stage, by operator and by kernel, its gaps, and the projected least time."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from resshift_fast.measure.report.names import OUTSIDE, operator_of, stages_of
from resshift_fast.measure.report.trace import Activity, Trace
from resshift_fast.measure.roofline import Floor

MS, US = 1e6, 1e3  # nanoseconds


class Gap(NamedTuple):
    """An interval of a restoration in which nothing ran; `before` and `after` are the activities around it."""

    duration: int
    stage: str
    before: str
    after: str


@dataclass
class Share:
    """The times of a stage, an operator or a kernel, as sums over all restorations.

    Attributes:
        name: its name. operator: that of a kernel. calls: number of kernels; on a CPU of operators, nested ones too.
        busy: nanoseconds in which it ran; gaps: nanoseconds of a stage's gaps, in which nothing ran.
        longest: the longest call, or the longest gap of a stage, in nanoseconds.
        floor: projected least nanoseconds of one restoration, for an operator, if there is a projection.
    """

    name: str
    operator: str = ""
    calls: int = 0
    busy: int = 0
    gaps: int = 0
    longest: int = 0
    floor: float | None = None


@dataclass
class Report:
    """The tables of a trace; times are in nanoseconds.

    Attributes:
        trace: the trace. count: number of restorations that all times are sums over.
        wall: the time of each restoration.
        stages: in the order of the chain. operators, kernels: the longest first. gaps: the longest first.
        floor: projected least time of one restoration, and unmatched, the part of it without a row; None without a
            projection.
        settings: the workload, by name.
    """

    trace: Trace
    count: int
    wall: list[int]
    stages: list[Share]
    operators: list[Share]
    kernels: list[Share]
    gaps: list[Gap]
    floor: float | None = None
    unmatched: float = 0.0
    notes: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def whole(self) -> int:
        """Time of all restorations."""
        return self.busy + self.idle

    @property
    def busy(self) -> int:
        """Time in which anything ran, of all restorations."""
        return sum(stage.busy for stage in self.stages)

    @property
    def idle(self) -> int:
        """Time in which nothing ran, of all restorations."""
        return sum(stage.gaps for stage in self.stages)


def make(trace: Trace, floors: Mapping[str, Floor] | None = None, settings: Mapping[str, Any] | None = None) -> Report:
    """The report on a trace.

    Args:
        trace: the recording.
        floors: from `roofline.project`, for one restoration of the same workload; None without a projection.
        settings: the workload, by name; see `profiling.Workload`.
    """
    operators = [operator_of(activity, floors or ()) for activity in trace.activities]
    stages, guessed = stages_of(trace.activities, operators)
    notes = list(trace.notes)
    if guessed:
        notes.append("Stages have no ranges here; they are inferred from prior_sample and posterior_step.")
    by_stage, gaps = _timeline(trace, stages)
    by_operator, by_kernel = _sums(trace.activities, operators)
    report = Report(
        trace,
        len(trace.restorations),
        [r.end - r.start for r in trace.restorations],
        by_stage,
        by_operator,
        by_kernel,
        gaps,
        notes=notes,
        settings=dict(settings or {}),
    )
    if floors is not None:
        _set_floors(report, floors)
    overlap = sum(operator.busy for operator in by_operator) - report.busy
    if overlap > 0.001 * report.busy:
        notes.append(
            f"{overlap / MS / report.count:.3f} ms a restoration ran beside other work on another stream: it counts "
            "for its operator and kernel, but not again for its stage."
        )
    return report


def _timeline(trace: Trace, stages: Sequence[str]) -> tuple[list[Share], list[Gap]]:
    """Time of every stage and the gaps, which add up to the time of the restorations.

    A gap belongs to the stage of the activity that ends it; the time after the last activity is outside the stages.
    """
    shares: dict[str, Share] = {}
    gaps: list[Gap] = []
    ends = [(restoration.start, "the start") for restoration in trace.restorations]  # where each was busy last
    for activity, stage in zip(trace.activities, stages, strict=True):
        reached, last = ends[activity.restoration]
        share = shares.setdefault(stage, Share(stage))
        share.calls += activity.calls
        if activity.start > reached:
            gaps.append(Gap(activity.start - reached, stage, last, activity.name))
        share.busy += max(0, activity.end - max(activity.start, reached))
        ends[activity.restoration] = max(reached, activity.end), activity.name
    for restoration, (reached, last) in zip(trace.restorations, ends, strict=True):
        if restoration.end > reached:
            gaps.append(Gap(restoration.end - reached, OUTSIDE, last, "the end"))
    for gap in gaps:
        share = shares.setdefault(gap.stage, Share(gap.stage))
        share.gaps += gap.duration
        share.longest = max(share.longest, gap.duration)
    if OUTSIDE in shares:
        shares[OUTSIDE] = shares.pop(OUTSIDE)  # comes last
    return list(shares.values()), sorted(gaps, key=lambda gap: -gap.duration)


def _sums(activities: Sequence[Activity], operators: Sequence[str]) -> tuple[list[Share], list[Share]]:
    by_operator: dict[str, Share] = {}
    by_kernel: dict[tuple[str, str], Share] = {}
    for activity, operator in zip(activities, operators, strict=True):
        shares = (
            by_operator.setdefault(operator, Share(operator)),
            by_kernel.setdefault((activity.name, operator), Share(activity.name, operator)),
        )
        for share in shares:
            share.calls += activity.calls
            share.busy += activity.end - activity.start
            share.longest = max(share.longest, activity.end - activity.start)
    return _longest_first(by_operator.values()), _longest_first(by_kernel.values())


def _longest_first(shares: Collection[Share]) -> list[Share]:
    return sorted(shares, key=lambda share: -share.busy)


def _set_floors(report: Report, floors: Mapping[str, Floor]) -> None:
    measured = {share.name: share for share in report.operators}
    for name, floor in floors.items():
        if name in measured:
            measured[name].floor = floor.seconds * 1e9
        elif f"by name: {name.removeprefix('aten::')}" in measured:
            measured[f"by name: {name.removeprefix('aten::')}"].floor = floor.seconds * 1e9
        else:
            report.unmatched += floor.seconds * 1e9
    report.floor = sum(floor.seconds for floor in floors.values()) * 1e9
