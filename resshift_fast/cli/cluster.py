"""`restore --ray`: what restores in each worker, and what is said about the photos."""

from __future__ import annotations

import logging
import time
from collections import Counter
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from resshift_fast.apps.cluster import connecting, listing, places
from resshift_fast.apps.cluster.listing import LeftOut, Problem, Wanted
from resshift_fast.cli import console, faces, reporting
from resshift_fast.cli.plan import Job, Tally
from resshift_fast.cli.request import Request, load, prepare_process
from resshift_fast.core.files import FileSet, make_folder
from resshift_fast.core.text import visible
from resshift_fast.images.files import FORMATS, VIDEO_FORMATS

if TYPE_CHECKING:
    from resshift_fast.apps.cluster.ledger import Standing
    from resshift_fast.apps.cluster.worker import Errand
    from resshift_fast.images.fitting import Fitting


def restore(request: Request, tally: Tally, fitting: Fitting) -> None:
    """Restore on the cluster that `request.ray` names, and count the photos in `tally`.

    Raises:
        ValueError: for wrong usage. OSError: if there is no cluster, it can't be used, or results can't be written.
    """
    from resshift_fast.apps.cluster.running import Run

    assert request.ray is not None
    if request.ray:
        connecting.check_address(request.ray)
    if len(request.devices) > 1:
        raise ValueError(f"--device {','.join(request.devices)}: with --ray, name one kind, cpu or cuda")
    connecting.require()
    wanted = _wanted(request)
    listing.check(wanted)
    if wanted.out.is_local:
        make_folder(wanted.out.path)
    else:
        places.check_writable(wanted.out)
    verbose = logging.getLogger("resshift_fast").level == logging.DEBUG
    # Ray prints what it hears of lost machines, from threads of its own.
    with console.own_stdout() as stdout, connecting.connected(request.ray):
        told = _Told(stdout if request.as_json else None, tally)
        run = Run(
            wanted,
            partial(Part, request, fitting, time.time(), logging.DEBUG if verbose else logging.ERROR),
            device=request.devices[0] if request.devices else None,
            threads=request.threads,
            workers=request.ray_workers,
            say=lambda text: console.say(f"warning: {text}", logging.WARNING),
        )
        try:
            with closing(run.outcomes()) as outcomes:
                for one, standing in outcomes:
                    told.tell(one, standing)
                    if tally.stopped:
                        break
        finally:
            told.sum_up()


def _wanted(request: Request) -> Wanted:
    out = places.place_of(request.out)
    is_folder = request.out.endswith("/") or (out.is_local and Path(out.path).is_dir())
    if Path(out.path).suffix.lower() in (*FORMATS, *VIDEO_FORMATS) and not is_folder:
        raise ValueError(f"-o {request.out} names one file; with --ray, name a folder, such as {Path(out.path).stem}")
    mask = request.naming["mask"]
    return Wanted(
        # A path goes to programs that were started in other folders.
        inputs=tuple(text if places.is_uri(text) else places.place_of(text).path for text in request.patterns),
        out=out,
        recursive=request.recursive,
        suffix=request.naming["suffix"],
        compare=request.naming["compare"],
        mask=None if mask is None else places.place_of(str(mask)),
        skip_existing=request.skip_existing,
    )


class Part:
    """Restores single photos in a worker's process; a `Restorer`.

    Args:
        request: what was asked for. fitting: how results are made to fit their formats.
        began: when the run began, in seconds of `time.time`. level: of the log.
        device: to restore on. threads: of the CPU; None for torch's number.
    """

    def __init__(self, request: Request, fitting: Fitting, began: float, level: int, device: str, threads: int | None):
        prepare_process(replace(request, threads=threads), level)
        self._request, self._fitting, self._began = request, fitting, began
        self._pipe, self._restorer = load(request, device)

    def _job(self, errand: Errand) -> Job:
        from resshift_fast.apps.video.clips import is_video

        read = FileSet([one for one in (errand.source, errand.mask) if one is not None])
        compare, mask = errand.compare, errand.mask
        return Job(errand.source, errand.output, compare, mask, originals=read, is_video=is_video(errand.source))

    def restore(self, errand: Errand) -> dict[str, Any]:
        """Restore a photo; returns what `Restorer.restore` does."""
        from resshift_fast.cli.batch import Batch

        job, tally, kept = self._job(errand), Tally(), _Kept()
        try:
            faces.check_kind(self._request.faces, job.source, job.is_video)
        except ValueError as error:
            return self.failed(errand.source, error)
        options, restorer = self._request.options, self._restorer
        Batch(
            self._pipe, [job], options, tally, self._fitting, kept, restorer, began=self._began, is_numbered=False
        ).restore(0)
        return kept.outcome | ({"stopped": tally.stopped} if tally.stopped else {})

    def is_done(self, errand: Errand) -> bool:
        """Whether everything that a photo's job would write is there and whole."""
        from resshift_fast.cli.batch import is_done

        return is_done(self._job(errand), self._fitting)

    def output_of(self, errand: Errand) -> Path:
        """The output of a photo by the name that it will have."""
        from resshift_fast.cli.batch import prepare

        return prepare(self._job(errand), self._fitting).output

    def failed(self, source: Path, error: Exception) -> dict[str, Any]:
        """What `restore` returns of an error."""
        return {"status": "failed", "error": console.explain(error, str(source))}


class _Kept(reporting.Report):
    """Keeps what is to be said about one photo."""

    def __init__(self) -> None:
        super().__init__(as_json=False)
        self.outcome: dict[str, Any] = {}

    def restored(self, job: Job, line: str, **fields: object) -> None:
        self.outcome = {"status": "restored", "text": line, **fields}

    def skipped(self, job: Job, line: str, reason: str) -> None:
        self.outcome = {"status": "skipped", "text": line, "reason": reason}

    def failed(self, job: Job, error: Exception, tile: int | None = None) -> None:
        self.outcome = {"status": "failed", "error": console.explain(error, str(job.source), tile)}


class _Told:
    """Says what has become of each photo, and at the end what failed and what is left out.

    Args:
        lines: a line of JSON about each is printed there; None for none. tally: is updated.
    """

    def __init__(self, lines: TextIO | None, tally: Tally):
        self._lines, self._tally = lines, tally
        self._left_out: Counter[str] = Counter()
        self._names: dict[str, list[str]] = {}
        self._failures: list[str] = []

    def tell(self, one: Any, standing: Standing) -> None:
        """Say what came of a photo, or what the listing remarks."""
        tally = self._tally
        tally.total = standing.listed
        if isinstance(one, LeftOut):
            self._left_out[one.reason] += 1
            names = self._names.setdefault(one.reason, [])
            if len(names) < reporting.MOST_NAMES:
                names.append(str(one.place))
            self._print(input=str(one.place), status="left out", reason=one.reason)
        elif isinstance(one, Problem):
            self._fail(one.text)
            self._print(status="failed", error=one.text)
        else:
            self._tell_outcome(one, standing)

    def _tell_outcome(self, outcome: dict[str, Any], standing: Standing) -> None:
        tally, status = self._tally, outcome["status"]
        if status == "failed":
            self._fail(outcome["error"])
        else:
            setattr(tally, status, getattr(tally, status) + 1)
            done = tally.restored + tally.failed + tally.skipped
            total = f"/{standing.listed}" if standing.is_listed else ""
            is_brief = outcome["text"] == outcome.get("reason")
            text = f"{Path(outcome['input']).name}: {outcome['text']}" if is_brief else outcome["text"]
            console.say(f"[{done}{total}] {visible(text)}")
        tally.stopped = outcome.get("stopped", "") or tally.stopped
        first = {"input": outcome["input"], "status": status}
        self._print(**first | {name: value for name, value in outcome.items() if name not in ("text", "stopped")})

    def _fail(self, text: str) -> None:
        self._tally.failed += 1
        self._failures = [*self._failures, text][: reporting.MOST_NAMES]
        console.say(f"error: {text}", logging.ERROR)

    def _print(self, **fields: object) -> None:
        if self._lines is not None:
            reporting.print_json(self._lines, **fields)

    def sum_up(self) -> None:
        """Name what is left out and what failed: the first of each, if there are many."""
        for reason, count in self._left_out.items():
            console.say(reporting.left_out(count, self._names[reason], reason))
        if self._failures:
            others = self._tally.failed - len(self._failures)
            console.say(f"{self._tally.failed} failed:", logging.ERROR)
            for text in [*self._failures, *([f"and {others} more"] if others else [])]:
                console.say(f"  {text}", logging.ERROR)
