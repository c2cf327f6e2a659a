"""Restoring photos on several devices: a process for each, which gets the next photo whenever it is free."""

from __future__ import annotations

import logging
import time
from collections import deque
from dataclasses import replace
from threading import Lock, Thread
from typing import TYPE_CHECKING

from resshift_fast.cli import console, reporting
from resshift_fast.cli.plan import Job, Tally
from resshift_fast.cli.request import load, prepare_process
from resshift_fast.core import claims
from resshift_fast.measure.workers import Worker, WorkerError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from resshift_fast.cli.request import Request
    from resshift_fast.images.fitting import Fitting

ATTEMPTS = 2  # at a photo with which a process dies


class Part:
    """Restores single photos on one device, in a process of its own.

    Args:
        device: its name.
        jobs: of all devices.
        request: with the threads of this process.
        fitting: how results are made to fit their formats.
        began: when the run began, in seconds of `time.time`.
        level: of the log.
    """

    def __init__(self, device: str, jobs: Sequence[Job], request: Request, fitting: Fitting, began: float, level: int):
        from resshift_fast.cli.batch import Batch

        prepare_process(request, level)
        self._tally = Tally()
        report = reporting.Report(request.as_json)
        (pipe, restorer), sharing = load(request, device), len(request.devices)
        self._batch = Batch(
            pipe, jobs, request.options, self._tally, fitting, report, restorer, sharing=sharing, began=began
        )

    def restore(self, index: int) -> Tally:
        """Restore the photo of a job; returns the counts of all so far."""
        self._batch.restore(index)
        return self._tally


class _Shared:
    """The photos that are left, and what has become of the others; for threads.

    Args:
        jobs: what to do. tally: updated after every photo. as_json: print a line of JSON about each photo.
    """

    def __init__(self, jobs: Sequence[Job], tally: Tally, as_json: bool):
        self._jobs, self._tally, self._report = jobs, tally, reporting.Report(as_json)
        self._left, self._attempts, self._lock = deque(range(len(jobs))), [0] * len(jobs), Lock()
        self._working = 0  # photos, which come back if a process dies
        self._is_ended = False
        self.errors: list[str] = []

    def next(self) -> int | None:
        """The next photo; None if there is none for now."""
        with self._lock:
            if self._is_ended or self._tally.stopped or not self._left:
                return None
            self._working += 1
            index = self._left.popleft()
            self._attempts[index] += 1
            return index

    @property
    def is_done(self) -> bool:
        """Whether no photo is left, or will come back."""
        with self._lock:
            return self._is_ended or bool(self._tally.stopped) or not (self._left or self._working)

    def end(self) -> None:
        """Begin no further photo, and say nothing of processes that are ended."""
        with self._lock:
            self._is_ended = True

    def count(self, before: Tally, after: Tally) -> None:
        """Add what has been counted in between."""
        with self._lock:
            self._working -= 1
            for name in ("restored", "failed", "skipped"):
                setattr(self._tally, name, getattr(self._tally, name) + getattr(after, name) - getattr(before, name))
            if after.stopped:
                self._tally.stopped = f"stopped with {len(self._left)} of {len(self._jobs)} not started"

    def give_back(self, index: int, device: str, error: WorkerError) -> None:
        """Leave a photo to another device; one that has ended several processes has failed."""
        with self._lock:
            self._working -= 1
            if self._is_ended:
                return
            self.errors.append(f"{device}: {error}")
            if self._attempts[index] < ATTEMPTS:
                self._left.append(index)
                console.say(f"warning: {device}: {error}; its photo is left to another device", logging.WARNING)
            else:
                self._fail(index, f"{device}: {error}")

    def _fail(self, index: int, reason: str) -> None:
        self._report.failed(self._jobs[index], ChildProcessError(reason))
        self._tally.failed += 1

    def fail_rest(self) -> None:
        """Report the photos that no device is left for."""
        for index in self._left:
            self._fail(index, f"no device is left ({'; '.join(self.errors)})")


def restore(jobs: Sequence[Job], request: Request, tally: Tally, fitting: Fitting) -> None:
    """Restore every job's photo on the devices of `request`, and count them in `tally`.

    A device that can't be used, or whose process dies, leaves its photos to the others.

    Args:
        jobs: at least one. request: with at least one device. tally, fitting: as of `batch.Batch`.

    Raises:
        ValueError: if no device can be used; the reasons are printed.
    """
    shared, workers, began = _Shared(jobs, tally, request.as_json), list[Worker](), time.time()
    level = logging.getLogger("resshift_fast").level

    def start(device: str) -> Worker | None:
        own = replace(request, threads=request.threads or _threads(request, device))
        try:
            worker = Worker(Part, device, jobs, own, fitting, began, level)
        except WorkerError as error:
            shared.errors.append(f"{device}: {error}")
            console.say(f"error: {shared.errors[-1]}", logging.ERROR)
            return None
        workers.append(worker)
        return worker

    def work(device: str, worker: Worker | None = None) -> None:
        worker = worker or start(device)
        if worker is None:
            return
        try:
            drive(device, worker)
        finally:
            worker.close()

    def drive(device: str, worker: Worker) -> None:
        before = Tally()
        while not shared.is_done:
            index = shared.next()
            if index is None:
                time.sleep(0.05)  # another device has the last photos, and may give them back
                continue
            try:
                after = worker.call("restore", index)
            except WorkerError as error:
                shared.give_back(index, device, error)
                return
            shared.count(before, after)
            before = after

    # The first one downloads weights that are missing; its errors are most likely those of the others.
    devices = deque(request.devices)
    first = None
    while first is None and devices:
        device = devices.popleft()
        first = start(device)
    if first is None:
        raise ValueError(f"none of the devices {', '.join(request.devices)} can be used")
    threads = [Thread(target=work, args=args, daemon=True) for args in [(device, first), *((one,) for one in devices)]]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    except KeyboardInterrupt:
        shared.end()
        for worker in workers:
            worker.kill()
        for folder in {job.output.parent for job in jobs}:  # which has what they had claimed and begun
            claims.remove_dead(folder)
        raise
    if not tally.stopped:
        shared.fail_rest()


def _threads(request: Request, device: str) -> int | None:
    """An equal part of the CPU for each process that computes on it; None elsewhere."""
    import torch

    sharing = sum(name == "cpu" for name in request.devices)
    return max(1, torch.get_num_threads() // sharing) if device == "cpu" and sharing > 1 else None
