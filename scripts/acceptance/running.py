"""Runs one step with a time limit, ends all processes that it started, and collects its result."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from acceptance.steps import Step

PASSED, FAILED, ABSENT, LATE, CUT = "passed", "failed", "could not run", "no time left", "cut short"
RUNNING = "running"
LEAST_SECONDS = 5.0  # with less, a step is not started
GRACE = 5.0  # seconds for a step to end by itself after SIGTERM
LAST_SECONDS = 2.0  # seconds for its processes to disappear after SIGKILL
GLANCE = 5.0  # seconds between updates of the result of a running step
TAIL = 4000  # characters at the end of a step's output that the result keeps
# pytest -v, without and with workers: "file::test PASSED [ 1%]" and "[gw0] [ 1%] PASSED file::test".
OUTCOME = re.compile(r"^(?:\S+::.* |\[gw\d+\] \[ *\d+%\] )(PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b")

Result = dict[str, Any]


def seconds_for(step: Step, later: list[Step], left: float) -> float:
    """A step's part of the seconds left, in proportion to its share among those of the steps left."""
    return left * step.share / (step.share + sum(other.share for other in later))


def run(
    step: Step,
    folder: Path,
    seconds: float,
    place: Path,
    environment: dict[str, str],
    keep: Callable[[Result], None] = lambda result: None,
) -> Result:
    """Run one step, and end all of its processes.

    Args:
        step: the step.
        folder: for its output, output.txt, and its tables.
        seconds: its time limit.
        place: the folder that it runs in.
        environment: variables besides the step's own.
        keep: called every few seconds with the result so far.

    Returns:
        verdict, seconds, allowed seconds, command, the end of the output, tables, for pytest the outcomes, and the exit
        status of what ended, below 0 if it was killed, None if it had to be ended.
    """
    command = [part.replace("{folder}", str(folder)) for part in step.command]
    result = {"verdict": RUNNING, "allowed": round(seconds, 1), "command": " ".join(command)}
    if (step.tool or command[0]) and not shutil.which(step.tool or command[0]):
        return result | {"verdict": ABSENT, "problem": f"{step.tool or command[0]} is not installed"}
    if seconds < LEAST_SECONDS:
        return result | {"verdict": LATE}
    start, output = time.monotonic(), folder / "output.txt"

    def now(**changes: Any) -> Result:
        found = {"seconds": round(time.monotonic() - start, 1), "output": tail(output), "tables": tables(step, folder)}
        return result | changes | found | ({"outcomes": outcomes(output)} if step.tests else {})

    with open(output, "wb") as file:
        process = subprocess.Popen(
            command,
            cwd=place,
            env=os.environ | environment | step.environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a new process group, which is ended as a whole
        )
        try:
            while process.poll() is None and (left := start + seconds - time.monotonic()) > 0:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(min(left, GLANCE))
                    break
                keep(now())
            code = result["status"] = process.poll()
        finally:
            end(process)
    return now(**judge(step, code, seconds, outcomes(output) if step.tests else None))


def judge(step: Step, code: int | None, seconds: float, counts: dict[str, int] | None) -> Result:
    """(verdict, problem or "").

    Args:
        step: the step.
        code: its exit status, None if it had to be ended.
        seconds: its time limit.
        counts: pytest's outcomes.
    """
    if code is None:
        fine = counts is None or (set(counts) >= {"passed"} and not {"failed", "error"} & set(counts))
        return {"verdict": CUT if step.may_be_cut and fine else FAILED, "problem": f"ended after {seconds:.0f} s"}
    if code:
        return {"verdict": FAILED, "problem": f"killed by {signal_name(-code)}" if code < 0 else f"exit status {code}"}
    if counts is not None and not counts.get("passed"):
        skipped = counts.get("skipped", 0)
        return {"verdict": FAILED, "problem": f"no test passed, {skipped} were skipped"}
    return {"verdict": PASSED}


def signal_name(number: int) -> str:
    with suppress(ValueError):
        return signal.Signals(number).name
    return f"signal {number}"


def end(process: subprocess.Popen) -> None:
    """End a process and its group, with SIGKILL for processes that do not end after SIGTERM."""
    deadline = time.monotonic() + GRACE
    told = _tell(process, signal.SIGTERM)
    while told and time.monotonic() < deadline:
        process.poll()  # reaps the process, which otherwise stays in the group as a zombie
        if not _tell(process, 0):
            return
        time.sleep(0.05)
    _tell(process, signal.SIGKILL)
    process.wait()
    # A killed process releases GPU memory a little later. Processes that no parent reaps stay in the group.
    deadline = time.monotonic() + LAST_SECONDS
    while _tell(process, 0) and time.monotonic() < deadline:
        time.sleep(0.05)


def _tell(process: subprocess.Popen, number: int) -> bool:
    """Send a signal to the process's group; returns whether any process is left."""
    try:
        os.killpg(process.pid, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def tail(path: Path, length: int = TAIL) -> str:
    """The end of a text file; empty if the file does not exist."""
    with suppress(OSError), open(path, "rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - length))
        return file.read().decode(errors="replace")
    return ""


def outcomes(path: Path) -> dict[str, int]:
    """Number of tests by outcome so far, from the output of pytest -v."""
    counts: dict[str, int] = {}
    with suppress(OSError), open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            if found := OUTCOME.match(line):
                name = found[1].lower()
                counts[name] = counts.get(name, 0) + 1
    return counts


def tables(step: Step, folder: Path) -> dict[str, Any]:
    """The step's tables so far, by file name; incomplete files are left out."""
    found = {}
    for path in (path for pattern in step.tables for path in sorted(folder.glob(pattern))):
        with suppress(OSError, ValueError, csv.Error):
            found[path.name] = table(path)
    return found


def table(path: Path) -> Any:
    """A JSON file's value, or a CSV file's rows."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        return json.loads(text)
    return list(csv.DictReader(text.splitlines()))


def rows(name: str, content: Any) -> list[dict[str, Any]]:
    """The rows of a table of either kind."""
    return content if name.endswith(".csv") else content.get("rows", []) if isinstance(content, dict) else []
