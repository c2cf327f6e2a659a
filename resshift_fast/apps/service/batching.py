"""Photos that wait, restored in batches of one shape by a thread of its own."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from resshift_fast.images import Photo
from resshift_fast.pipeline import Pipeline

_SMOOTHING = 0.2  # share of the last batch in the mean time of a photo


class _AbandonedError(Exception):
    """Nobody waits for a batch any more."""


@dataclass(eq=False)
class Work:
    """A photo to restore.

    Attributes:
        photo, seed: as for the pipeline. mask: bool [H, W], for inpainting models.
        shape: (height, width, number) of its tiles.
        future: its result, a Photo.
    """

    photo: Photo
    mask: np.ndarray | None
    seed: int
    shape: tuple[int, int, int]
    future: Future[Photo] = field(default_factory=Future)
    is_abandoned: bool = False

    def abandon(self) -> None:
        """Nobody waits for the result any more: it is not begun, or is ended if all of its batch are abandoned."""
        self.is_abandoned = True
        self.future.cancel()


class Batcher:
    """Restores photos in the order of their arrival, and with each those of its shape that wait too.

    The results are those of single calls, since the noise depends on the seed and the position alone. The first photo
    is begun at once: nothing waits for a batch to fill.

    Args:
        pipe: the model. batch_size: tiles that are restored at once, and photos, if they have one tile each.
        on_batch: called after each batch with the number of its photos and its seconds.
    """

    def __init__(self, pipe: Pipeline, batch_size: int, on_batch: Callable[[int, float], None] = lambda *_: None):
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}, expected at least 1")
        self._pipe, self._batch_size, self._on_batch = pipe, batch_size, on_batch
        self._waiting: deque[Work] = deque()
        self._changed = threading.Condition()
        self._is_closing = False
        self.seconds_per_photo = 0.0
        self._thread = threading.Thread(target=self._run, name="resshift-fast-batches", daemon=True)
        self._thread.start()

    def submit(self, photo: Photo, mask: np.ndarray | None, seed: int) -> Work:
        """Append a photo to those that wait.

        Raises:
            RuntimeError: after `close`.
        """
        rows, columns = self._pipe.plan_tiles(photo.height, photo.width)
        shape = (rows.tile, columns.tile, len(rows.starts) * len(columns.starts))
        work = Work(photo, mask, seed, shape)
        with self._changed:
            if self._is_closing:
                raise RuntimeError("the batcher is closed")
            self._waiting.append(work)
            self._changed.notify()
        return work

    @property
    def is_alive(self) -> bool:
        """Whether its thread runs."""
        return self._thread.is_alive()

    def close(self) -> None:
        """Restore what waits, and end the thread."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while batch := self._next():
            self._restore(batch)
            del batch  # and with it pixels, while nothing is to be done

    def _next(self) -> list[Work]:
        """The oldest photo, and others of its shape; empty at the end."""
        with self._changed:
            while True:
                while self._waiting:
                    batch = self._taken()
                    # From here on a future can't be cancelled any more.
                    batch = [work for work in batch if work.future.set_running_or_notify_cancel()]
                    if batch:
                        return batch
                if self._is_closing:
                    return []
                self._changed.wait()

    def _taken(self) -> list[Work]:
        first = self._waiting.popleft()
        most = max(1, self._batch_size // first.shape[2])
        batch, others = [first], deque[Work]()
        for work in self._waiting:
            (batch if work.shape == first.shape and len(batch) < most else others).append(work)
        self._waiting = others
        return batch

    def _restore(self, batch: Sequence[Work]) -> None:
        began = time.monotonic()

        def progress(done: int, total: int) -> None:
            if all(work.is_abandoned for work in batch):
                raise _AbandonedError

        masks: Any = [work.mask for work in batch] if self._pipe.spec.needs_mask else None
        try:
            results = self._pipe(
                [work.photo for work in batch],
                masks,
                seed=[work.seed for work in batch],
                batch_size=self._batch_size,
                progress=progress,
            )
        except _AbandonedError as error:
            for work in batch:
                work.future.set_exception(error)
        except Exception as error:
            if len(batch) == 1:
                batch[0].future.set_exception(error)
                return
            for work in batch:  # the fault of one, or too many for the memory
                self._restore([work])
        else:
            seconds = time.monotonic() - began
            latest = seconds / len(batch)
            before = self.seconds_per_photo or latest
            self.seconds_per_photo = before + _SMOOTHING * (latest - before)
            self._on_batch(len(batch), seconds)
            for work, result in zip(batch, results, strict=True):
                work.future.set_result(result)
