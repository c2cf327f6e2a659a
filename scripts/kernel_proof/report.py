"""What the budget commands share: updating the budgets, comparing with them, and printing the findings."""

import sys
from pathlib import Path

from .budgets import Budgets, architecture, beyond_budgets, differences


def settle(
    file: Path, new: Budgets, findings: list[tuple[str, str]], *, whole: bool, update: bool, command: str
) -> int:
    """Compare new results with a budget file, or write them into it; print the outcome and return the exit status.

    Args:
        file: the budget file.
        new: the new results.
        findings: (entry, text) of exceeded limits.
        whole: whether `new` is complete for its architectures, so that their other entries are stale.
        update: whether to accept the new results.
        command: the command that accepts them.
    """
    old = Budgets.load(file)
    if update:
        return _accept(file, old, new, findings, whole)
    if not old:
        findings.append((str(file), f"there is no such file; {command} writes it"))
    elif old.compiler != new.compiler:
        print(
            f"The budgets are for {_name(old)}, here is {_name(new)}: resources are not compared, only limits for any "
            "version."
        )
    else:
        worse = beyond_budgets(old, new, whole)
        findings += worse
        if worse:
            print(f"If the resources changed on purpose, {command} accepts them.")
    return report(findings, len(new.entries))


def _name(budgets: Budgets) -> str:
    return ", ".join(f"{key} {value}" for key, value in budgets.compiler.items())


def _accept(file: Path, old: Budgets | None, new: Budgets, findings: list[tuple[str, str]], whole: bool) -> int:
    before = old.entries if old else {}
    kept = {name: x for name, x in before.items() if not whole or architecture(name) not in new.architectures}
    if kept and old.compiler != new.compiler:
        print(f"The budgets are for {_name(old)}, here is {_name(new)}: update all of them.", file=sys.stderr)
        return 2
    new.entries = {**kept, **new.entries}
    for line in differences(before, new.entries):
        print(line)
    new.save(file)
    print(f"{len(new.entries)} budgets are in {file}")
    return report(findings, len(new.entries))


def report(findings: list[tuple[str, str]], count: int) -> int:
    """Print the findings, once if a kernel has them in several launch cases; returns the exit status."""
    if not findings:
        print(f"{count} kernels × launch cases × architectures are within their budgets")
        return 0
    entries: dict[tuple[str, str], list[str]] = {}
    for name, text in findings:
        kernel, _, case = name.partition(" ")
        entries.setdefault((kernel, text), []).append(case)
    for (kernel, text), names in entries.items():
        others = f" and {len(names) - 1} more" if len(names) > 1 else ""
        where = f" ({names[0]}{others})" if names[0] else ""
        print(f"{kernel}: {text}{where}", file=sys.stderr)
    print(f"FAILED: {len(entries)} findings", file=sys.stderr)
    return 1
