"""Resource limits of kernels: the budget file, hard limits, and the comparison of a compiled kernel with them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from resshift_fast.kernels.ahead import Job

from .compilation import Compiled
from .machine_code import SHARED_LIMIT, MachineCode


@dataclass(frozen=True)
class Exemption:
    """An exemption of some budget entries from a limit.

    Args:
        pattern: of the entries' names, with shell wildcards.
        limit: "spill", "narrow" (no 128-bit access), "address", "tf32" or "matrix".
        reason: why.
        text: part of the finding's text, such as the line of source that an address comes from.
    """

    pattern: str
    limit: str
    reason: str
    text: str = ""

    def covers(self, entry: str, limit: str, text: str) -> bool:
        """Whether an entry is exempt from a limit."""
        return limit == self.limit and self.text in text and fnmatchcase(entry, self.pattern)


@dataclass
class Budgets:
    """A budget file: resources of kernels compiled by one version of a compiler.

    Args:
        compiler: what the resources depend on, by name: {"triton": "3.9.0", "fp_fusion": True}.
        entries: "kernel case sm_90" to the resources, by name.
    """

    compiler: dict[str, str | bool]
    entries: dict[str, dict[str, int | str]] = field(default_factory=dict)

    @property
    def architectures(self) -> set[int]:
        """The architectures that have entries."""
        return {architecture(name) for name in self.entries}

    @classmethod
    def load(cls, file: Path) -> "Budgets | None":
        """Read a budget file; None if it does not exist."""
        if not file.exists():
            return None
        content = json.loads(file.read_text())
        return cls(entries=content.pop("entries"), compiler=content)

    def save(self, file: Path) -> None:
        """Write the file, one line per entry, in an order that does not depend on that of the launch cases."""
        head = "".join(f" {json.dumps(key)}: {json.dumps(value)},\n" for key, value in self.compiler.items())
        names = sorted(self.entries, key=lambda name: (*name.split()[:2], architecture(name)))
        lines = [f"  {json.dumps(name)}: {json.dumps(self.entries[name])}" for name in names]
        file.write_text("{\n" + head + ' "entries": {\n' + ",\n".join(lines) + "\n }\n}\n")


def architecture(entry: str) -> int:
    """The architecture of an entry: 90 of "kernel case sm_90"."""
    return int(entry.rsplit("_", 1)[1])


def budget_file(folder: Path, triton: str, update: bool) -> Path:
    """The file of a version of Triton; if there is none, and none is to be written, the newest version's.

    Args:
        folder: with files like triton-3.9.json. triton: a version such as "3.9.0". update: whether to write it.
    """

    def version(text: str) -> list[int]:
        return [int(part) for part in text.split(".")[:2]]

    major, minor = version(triton)
    file = folder / f"triton-{major}.{minor}.json"
    if update or file.exists():
        return file
    return max(folder.glob("triton-*.json"), key=lambda path: version(path.stem.removeprefix("triton-")))


def resources(job: Job, compiled: Compiled) -> dict[str, int | str]:
    """A compiled kernel's budget entry."""
    return {"warps": job.num_warps, "stages": job.num_stages, **asdict(compiled.code)}


def beyond_limits(
    jobs: Mapping[str, Job], compiled: Mapping[Job, Compiled], exemptions: Sequence[Exemption], whole: bool
) -> list[tuple[str, str]]:
    """(entry, what is wrong) for the limits of all versions of Triton.

    Args:
        jobs: by entry.
        compiled: their results.
        exemptions: from these limits.
        whole: whether these are all jobs; an exemption that none of them needs is then reported too.
    """
    broken = {}
    for name, job in jobs.items():
        code = compiled[job].code
        broken[name] = [*compiled[job].violations, *(limits_broken(code, job.arch) if code else [])]
    return not_exempt(broken, exemptions, whole)


def not_exempt(
    broken: Mapping[str, Sequence[tuple[str, str]]], exemptions: Sequence[Exemption], whole: bool
) -> list[tuple[str, str]]:
    """(entry, what is wrong) of entries that are not exempt and, if `whole`, of exemptions that no entry needs.

    Args:
        broken: entry to (limit, what is wrong). exemptions, whole: as in `beyond_limits`.
    """
    findings, needed = [], set()
    for name, found in broken.items():
        for limit, text in found:
            covering = [exemption for exemption in exemptions if exemption.covers(name, limit, text)]
            needed.update(covering)
            if not covering:
                findings.append((name, text))
    idle = [x for x in exemptions if whole and x not in needed]
    return findings + [(x.pattern, f"does not need its exemption from {x.limit!r} any more") for x in idle]


def limits_broken(code: MachineCode, arch: int) -> list[tuple[str, str]]:
    """(limit, what is wrong) of one compiled kernel's resources."""
    found = []
    if code.spill:
        found.append(("spill", f"{code.spill} bytes of a thread's registers spill into local memory"))
    if not code.loads_128 + code.stores_128:
        found.append(("narrow", "no access to global memory moves 128 bits"))
    if code.shared > (limit := SHARED_LIMIT[arch]):
        found.append(("shared", f"{code.shared} bytes of shared memory are needed, a block has {limit}"))
    return found


def beyond_budgets(old: Budgets, new: Budgets, whole: bool) -> list[tuple[str, str]]:
    """(entry, text) of entries that exceed their budget or have none, for the architectures that both have.

    If `new` is complete for these architectures, stale entries are reported too.
    """
    common = old.architectures & new.architectures
    findings = [
        (name, text)
        for name, ours in new.entries.items()
        if architecture(name) in common
        for text in _over_budget(ours, old.entries.get(name))
    ]
    if whole:
        stale = sorted(name for name in old.entries.keys() - new.entries if architecture(name) in common)
        findings += [(name, "nothing compiles to this entry any more") for name in stale]
    return findings


def _over_budget(ours: Mapping[str, int | str], budget: Mapping[str, int | str] | None) -> list[str]:
    """The resources in which an entry exceeds its budget, as text."""
    if budget is None:
        return ["has no entry in the budget file"]
    found = [
        f"{ours.get(key)} {unit} instead of {budget.get(key)}"
        for key, unit in (("warps", "warps"), ("stages", "stages of the pipeline"), ("matrix", "as matrix instruction"))
        if ours.get(key) != budget.get(key)
    ]
    found += [
        f"{ours[key]} {unit} where the budget is {budget[key]}"
        for key, unit in (
            ("registers", "registers"),
            ("spill", "bytes of spills"),
            ("shared", "bytes of shared memory"),
        )
        if ours[key] > budget[key]
    ]
    found += [
        f"no 128-bit {unit} any more, where {budget[key]} are expected"
        for key, unit in (("loads_128", "loads"), ("stores_128", "stores"))
        if budget[key] and not ours[key]
    ]
    return found


def differences(old: Mapping[str, Mapping], new: Mapping[str, Mapping]) -> list[str]:
    """What an update changes, one line per entry."""
    lines = []
    for name in sorted({*old, *new}):
        before, after = old.get(name), new.get(name)
        if before is None:
            lines.append(f"+ {name}: {_line(after)}")
        elif after is None:
            lines.append(f"- {name}: {_line(before)}")
        elif before != after:
            changed = (f"{key} {before.get(key)} → {after.get(key)}" for key in after if before.get(key) != after[key])
            lines.append(f"~ {name}: {', '.join(changed)}")
    return lines


def _line(entry: Mapping) -> str:
    return ", ".join(f"{key} {value}" for key, value in entry.items())
