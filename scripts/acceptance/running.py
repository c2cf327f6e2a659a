"""How one step is run: for so long, with all the processes that it starts, and what is known of it afterwards."""

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
LEAST_SECONDS = 5.0  # with less, a step is not begun
GRACE = 5.0  # seconds that a step has to end by itself, once asked to
LAST_SECONDS = 2.0  # that its processes have to be gone, once killed
GLANCE = 5.0  # seconds between two looks at what a running step has written
TAIL = 4000  # characters of a step's output that the result keeps
# pytest -v, by itself and with workers: "file::test PASSED [ 1%]" and "[gw0] [ 1%] PASSED file::test".
OUTCOME = re.compile(r"^(?:\S+::.* |\[gw\d+\] \[ *\d+%\] )(PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b")

Result = dict[str, Any]


def seconds_for(step: Step, later: list[Step], left: float) -> float:
    """What a step may take of the seconds that are left, in proportion to the shares of those that come later."""
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
        step: which.
        folder: for its output, output.txt, and its tables.
        seconds: after which it is ended.
        place: where it runs.
        environment: beside the step's own variables.
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
            start_new_session=True,  # a group of its own, which is ended as a whole
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
    """The verdict, and what is the matter if anything is.

    Args:
        step: which.
        code: its exit status, None if it had to be ended.
        seconds: that it had.
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
    """End a process and everything of its group, at once what does not end when asked."""
    deadline = time.monotonic() + GRACE
    told = _tell(process, signal.SIGTERM)
    while told and time.monotonic() < deadline:
        process.poll()  # its parent has to know of its end, or it stays in the group
        if not _tell(process, 0):
            return
        time.sleep(0.05)
    _tell(process, signal.SIGKILL)
    process.wait()
    # What is killed gives back a GPU's memory a little later. Where nobody asks for its end it stays in the group.
    deadline = time.monotonic() + LAST_SECONDS
    while _tell(process, 0) and time.monotonic() < deadline:
        time.sleep(0.05)


def _tell(process: subprocess.Popen, number: int) -> bool:
    """Send a signal to the process's group; whether there is any of it left."""
    try:
        os.killpg(process.pid, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def tail(path: Path, length: int = TAIL) -> str:
    """The end of a text file, empty where there is none."""
    with suppress(OSError), open(path, "rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - length))
        return file.read().decode(errors="replace")
    return ""


def outcomes(path: Path) -> dict[str, int]:
    """How many tests passed, failed and so on so far, by the output of pytest -v."""
    counts: dict[str, int] = {}
    with suppress(OSError), open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            if found := OUTCOME.match(line):
                name = found[1].lower()
                counts[name] = counts.get(name, 0) + 1
    return counts


def tables(step: Step, folder: Path) -> dict[str, Any]:
    """What the step has written so far, by file name; a file that is not whole yet is left out."""
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
