"""What `restore` says about each photo: a line on stderr, and one of JSON on stdout for programs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from resshift_fast.cli import console

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TextIO

    from resshift_fast.cli.plan import Job


MOST_NAMES = 20  # that are named of photos that failed, and of files that are left out for one reason


def left_out(count: int, names: Sequence[str], reason: str) -> str:
    """The line about files that are left out for one reason; the names are the first of them."""
    others = f" and {count - len(names)} more" if count > len(names) else ""
    return f"left out {count}: {', '.join(names)}{others}: {reason}"


def print_json(stream: TextIO | None = None, /, **fields: object) -> None:
    """Print one line of JSON on a stream, by default stdout."""
    print(json.dumps(fields), file=stream, flush=True)


class Report:
    """Says how photos ended.

    Args:
        as_json: print a line of JSON about each, too.
    """

    def __init__(self, as_json: bool):
        self._as_json = as_json

    def restored(self, job: Job, line: str, **fields: object) -> None:
        """A photo whose result was written; the fields say what it is."""
        console.say(line)
        self._print(job, "restored", **fields)

    def skipped(self, job: Job, line: str, reason: str) -> None:
        """A photo that was left alone."""
        console.say(line)
        self._print(job, "skipped", reason=reason)

    def failed(self, job: Job, error: Exception, tile: int | None = None) -> None:
        """A photo that could not be restored; the tile is for the advice when memory runs out."""
        console.report(error, str(job.source), tile)
        self._print(job, "failed", error=console.explain(error, str(job.source), tile))

    def _print(self, job: Job, status: str, **fields: object) -> None:
        if self._as_json:
            print_json(input=str(job.source), status=status, **fields)
