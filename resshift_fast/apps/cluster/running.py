"""A run on a cluster: Ray Data streams the photos from the ledger to the workers, as often as some are left."""

from __future__ import annotations

import json
import logging
import time
import warnings
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from resshift_fast.apps.cluster.connecting import Division, division, machines
from resshift_fast.apps.cluster.ledger import Ledger, Standing
from resshift_fast.apps.cluster.listing import Wanted, listing
from resshift_fast.apps.cluster.worker import Restorer, Worker

PAUSE = 0.05  # seconds between questions for more photos
FUTILE = 3  # rounds without an outcome, after which a run is given up


class ClusterError(OSError):
    """A run can't go on; the message is one line."""


class Run:
    """Restores on the cluster that this program is connected to.

    Args:
        wanted: what to restore.
        make: loads the model in a worker's process, for a device and a number of threads; None for a GPU's.
        device, threads, workers: as of `connecting.division`.
        say: is called with what happens besides, in one line.
    """

    def __init__(
        self,
        wanted: Wanted,
        make: Callable[[str, int | None], Restorer],
        *,
        device: str | None,
        threads: int | None,
        workers: int | None,
        say: Callable[[str], None],
    ):
        self._wanted, self._make, self._say = wanted, make, say
        self._asked = (device, threads, workers)
        self._threads = threads
        self._ledger: Any = None

    def outcomes(self) -> Generator[tuple[Any, Standing], None, None]:
        """What becomes of each photo, and remarks of the listing, as they come, and how far the run is.

        Raises:
            ValueError: if no worker fits into the cluster. ClusterError: if none can start, or none succeeds.
            Exception: that of the listing.
        """
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        plan = division(machines(), *self._asked)
        actor = ray.remote(num_cpus=0, max_restarts=0, scheduling_strategy=here)(Ledger)
        self._ledger = actor.remote(partial(listing, self._wanted), plan.workers)
        futile = 0
        while True:
            photos = ray.get(self._ledger.first.remote(plan.workers))
            before = self._standing()
            photos = max(photos, min(plan.workers, before.open))
            failure = None
            if photos:
                try:
                    with _closing(self._round(plan, min(plan.workers, photos))) as blocks:
                        for _ in blocks:
                            yield from self._news()
                except ray.exceptions.RayError as error:
                    failure = error
            yield from self._news()
            after = self._standing()
            if after.is_listed and not after.open:
                return
            futile = futile + 1 if after.listed - after.open == before.listed - before.open else 0
            if after.unusable or futile >= FUTILE:
                raise ClusterError(_why(after, failure))
            self._say(f"{after.open} photos were lost with their workers and are restored again")
            ray.get(self._ledger.repeat.remote())
            time.sleep(PAUSE)
            plan = self._replanned(plan)

    def _replanned(self, plan: Division) -> Division:
        """The division of what is left of the cluster."""
        try:
            return division(machines(), *self._asked)
        except ValueError:  # machines may come back
            return plan

    def _news(self) -> Iterator[tuple[Any, Standing]]:
        import ray

        standing = self._standing()
        for one in ray.get(self._ledger.news.remote()):
            if isinstance(one, Exception):
                raise one
            yield one, standing

    def _standing(self) -> Standing:
        import ray

        found: Standing = ray.get(self._ledger.standing.remote())
        return found

    def _round(self, plan: Division, workers: int) -> Iterator[Any]:
        """Restore what the ledger hands out, without what is lost with a worker; has a next when a block is done."""
        import ray
        from ray.data import ActorPoolStrategy, DataContext

        _silence()
        context = DataContext.get_current()
        context.enable_progress_bars = False
        context.max_errored_blocks = -1
        context.target_max_block_size = 1  # bytes: each row, which has several photos, is handed on at once
        photos = ray.data.read_datasource(
            _source(self._ledger),
            override_num_blocks=1,
            num_cpus=0,
        )
        threads = plan.cpus if plan.device == "cpu" else self._threads
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the retries have no other argument up to Ray 2.63
            done = photos.map_batches(
                Worker,
                batch_size=None,
                compute=ActorPoolStrategy(min_size=1, max_size=workers, initial_size=workers),
                fn_constructor_kwargs={
                    "ledger": self._ledger,
                    "make": partial(self._make, plan.device, threads),
                    "out": self._wanted.out,
                    "skip_existing": self._wanted.skip_existing,
                },
                num_cpus=plan.cpus,
                num_gpus=plan.gpus or None,
                # A photo does not wait for its worker to come back: others may have room, and the next round has it.
                max_task_retries=0,
            )
        return done.iter_internal_ref_bundles()


@contextmanager
def _closing(blocks: Iterator[Any]) -> Iterator[Iterator[Any]]:
    """End an execution with the block."""
    try:
        yield blocks
    finally:
        close = getattr(blocks, "close", None)
        if close is not None:
            close()


def _source(ledger: Any) -> Any:
    """A source of Ray Data's for what a ledger hands out."""
    from ray.data import Datasource, ReadTask
    from ray.data.block import BlockMetadata

    class Photos(Datasource):
        """Blocks of photos' numbers and texts."""

        def estimate_inmemory_data_size(self) -> int | None:
            return None

        def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[Any]:
            metadata = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
            return [ReadTask(partial(_blocks, ledger), metadata)]

    return Photos()


def _blocks(ledger: Any) -> Iterator[Any]:
    """Tables of what a ledger hands out, as long as it does."""
    import pyarrow as pa
    import ray

    while (block := ray.get(ledger.take.remote())) is not None:
        if block:
            yield pa.table({"photos": [json.dumps(block)]})
        else:
            time.sleep(PAUSE)


def _silence() -> None:
    """Keep Ray's log to its files: what it says of lost workers is said here in a line."""
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def _why(standing: Standing, failure: Exception | None) -> str:
    if standing.unusable:
        return "; ".join(f"the worker on {machine} can't start: {why}" for machine, why in standing.unusable.items())
    reason = " ".join(str(failure).split())[-300:] if failure is not None else "no worker has had an outcome"
    return f"the run is given up with {standing.open} photos left: {reason}; run again with --skip-existing to continue"
