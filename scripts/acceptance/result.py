"""The result of the steps, updated while they run: one JSON, the summary, the log and a few files."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

from acceptance import running
from acceptance.steps import Step

MOST_FILES, MOST_BYTES = 8, 16 * 2**20  # limits for files that are copied back from the machine
LOG_BYTES = 8 * 2**20
STEP_LOG_BYTES = 2**19
MOST_ROWS = 20  # of a table in the summary


class Results:
    """Collects the steps' results and writes them to disk after each.

    Args:
        folder: created if needed.
        stem: name of the files without their suffix.
        machine: what the steps run on.
        budget: seconds in all.

    Raises:
        OSError: if nothing can be written.
    """

    def __init__(self, folder: Path, stem: str, machine: dict[str, Any], budget: float):
        self.folder, self.path = folder, folder / f"{stem}.json"
        self.log = self.path.with_suffix(".log")
        self.steps: dict[str, dict[str, Any]] = {}
        self.problem = ""  # why something could not be written
        self._files = {self.path, self.log}
        started = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        self._head = {"machine": machine, "budget": budget, "started": started, "ended": None}
        folder.mkdir(parents=True, exist_ok=True)
        self.log.write_bytes(b"")
        self._write()

    def put(self, name: str, result: dict[str, Any]) -> None:
        """Replace a step's result by a newer one."""
        self.steps[name] = result
        self.save()

    def save(self) -> None:
        """Write everything again; errors such as a full disk are recorded and do not end the run."""
        try:
            self._write()
        except OSError as error:
            self.problem = f"{self.path} could not be written: {error}"

    def finish(self, why: str = "") -> None:
        """Mark the result as final: every step was run, or why not."""
        self._head["ended"] = why or "every step was run"
        self.save()

    def _write(self) -> None:
        content = json.dumps(self._head | {"steps": self.steps}, indent=1, default=str) + "\n"
        beside = self.path.with_name(f".{self.path.name}.new")
        beside.write_text(content, encoding="utf-8")
        beside.replace(self.path)

    def keep_files(self, step: Step, folder: Path) -> None:
        """Add a step's output to the log, and copy its files beside the result, up to the size limit."""
        try:
            self._append(step.name, running.tail(folder / "output.txt", STEP_LOG_BYTES))
            for path in (path for pattern in step.files for path in sorted(folder.glob(pattern))):
                target = self.folder / f"{self.path.stem}-{step.name.replace(' ', '-')}-{path.name}"
                room = len(self._files | {target}) <= MOST_FILES and path.stat().st_size <= MOST_BYTES
                if room:
                    shutil.copyfile(path, target)
                    self._files.add(target)
        except OSError as error:
            self.problem = f"a file of the step {step.name} could not be kept: {error}"

    def _append(self, name: str, text: str) -> None:
        content = f"==== {name}\n{text.rstrip()}\n\n".encode()
        if self.log.stat().st_size + len(content) <= LOG_BYTES:
            with open(self.log, "ab") as file:
                file.write(content)

    @property
    def failed(self) -> list[str]:
        """Steps that failed, except those that may be cut short and those whose program is not installed."""
        fine = (running.PASSED, running.CUT, running.ABSENT)
        return [name for name, result in self.steps.items() if result["verdict"] not in fine]


def line(result: dict[str, Any]) -> str:
    """A step's result in a few words."""
    words = [result["verdict"]]
    if "seconds" in result:
        words.append(f"in {result['seconds']:.0f} of {result['allowed']:.0f} s")
    if result.get("outcomes"):
        words.append("(" + ", ".join(f"{number} {name}" for name, number in result["outcomes"].items()) + ")")
    elif count := sum(len(running.rows(*item)) for item in result.get("tables", {}).items()):
        words.append(f"({count} row{'s' * (count > 1)})")
    if result.get("problem"):
        words.append(f"- {result['problem']}")
    return " ".join(words)


def summary(steps: list[Step], results: Results) -> str:
    """A table of the steps, and of what some of them measured."""
    width = max(len(step.name) for step in steps)
    found = results.steps
    lines = [f"{s.name:<{width}}  {line(found[s.name]) if s.name in found else 'was not run'}" for s in steps]
    for step in steps:
        for name, content in found.get(step.name, {}).get("tables", {}).items():
            if step.shown and (shown := notable(running.rows(name, content))):
                lines += ["", step.name, aligned(step.shown, shown)]
    return "\n".join(lines)


def notable(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """All rows of a short table, or the first rows with a problem of a long one."""
    if len(rows) > MOST_ROWS:
        rows = [row for row in rows if row.get("problem")]
    return rows[:MOST_ROWS]


def aligned(columns: tuple[str, ...], rows: list[dict[str, Any]]) -> str:
    """Rows as a text table with headings."""
    cells = [list(columns), *([_short(row.get(name)) for name in columns] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(t.ljust(w) for t, w in zip(c, widths, strict=True)).rstrip() for c in cells)


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "-" if value in (None, "") else str(value)
