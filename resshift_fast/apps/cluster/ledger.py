"""The book of a run: which photos have been handed out, and what has become of them.

It is kept beside the program that started the run, so that nothing of it is lost with a worker or its machine: what was
handed out and has no outcome when the workers have stopped is handed out again.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from resshift_fast.apps.cluster.listing import Item

ATTEMPTS = 3  # at a photo with which workers die
AHEAD = 1000  # photos that are listed before they are asked for
BLOCKS = 4  # for each worker, that are handed out
PART = 1000  # a block has at most this part of the photos so far
LARGEST_BLOCK = 64
PATIENCE = 60.0  # seconds without an outcome, after which more is handed out all the same


@dataclass
class _Given:
    """A photo that was handed out, as text, and how many workers have begun it."""

    text: str
    begun: int = 0


@dataclass(frozen=True)
class Standing:
    """How far a run is.

    Attributes:
        listed: photos that were handed out so far.
        open: those of them without an outcome.
        is_listed: no more will come.
        unusable: machine to the reason why a worker could not start there.
    """

    listed: int
    open: int
    is_listed: bool
    unusable: dict[str, str] = field(default_factory=dict)


class Ledger:
    """Hands out photos in blocks, and takes their outcomes; its calls return at once.

    Args:
        make: makes the listing: items to restore, and other remarks, which are passed on as they are.
        workers: that will restore.

    Example:
        >>> ledger = Ledger(list, workers=2)
        >>> ledger.first(2)
        0
        >>> ledger.take() is None
        True
    """

    def __init__(self, make: Callable[[], Iterable[Any]], workers: int):
        self._listed: queue.Queue[Any] = queue.Queue(AHEAD)
        self._waiting: deque[Item] = deque()
        self._is_listed = False
        self._given: dict[int, _Given] = {}
        self._again: deque[int] = deque()
        self._count, self._workers, self._starts = 0, workers, 0
        self._news: list[Any] = []
        self._unusable: dict[str, str] = {}
        self._last = time.monotonic()
        self._is_closed = False
        threading.Thread(target=self._list, args=(make,), daemon=True).start()

    def _list(self, make: Callable[[], Iterable[Any]]) -> None:
        try:
            for one in make():
                self._listed.put(one)
        except Exception as error:  # goes on in the program that has started the run
            self._listed.put(error)
        self._listed.put(None)

    def _gather(self, wait: bool) -> None:
        """Take one that is listed."""
        try:
            one = self._listed.get(timeout=0.1) if wait else self._listed.get_nowait()
        except queue.Empty:
            return
        if one is None:
            self._is_listed = True
        elif isinstance(one, Item):
            self._waiting.append(one)
        else:
            self._news.append(one)

    def first(self, most: int) -> int:
        """Wait until so many photos are listed, or all; returns how many these are, at most."""
        while len(self._waiting) < most and not self._is_listed:
            self._gather(wait=True)
        return min(most, len(self._waiting))

    def take(self) -> list[tuple[int, str]] | None:
        """A block of photos, as number and text; none yet if it is empty, and None if there are no more."""
        if self._is_closed:
            return None
        size = self._block_size()
        if self._again:
            return [(index, self._given[index].text) for index in self._numbers(size) if index in self._given]
        is_patient = time.monotonic() - self._last < PATIENCE
        # Workers that have died may hold two blocks each for good.
        most = size * (BLOCKS * self._workers + 2 * max(0, self._starts - self._workers))
        if len(self._given) >= most and is_patient:
            return []
        self._last = self._last if is_patient else time.monotonic()
        while len(self._waiting) < size and not self._is_listed and not self._listed.empty():
            self._gather(wait=False)
        if not self._waiting:
            return None if self._is_listed else []
        block = []
        for _ in range(min(size, len(self._waiting))):
            text = self._waiting.popleft().to_json()
            self._given[self._count] = _Given(text)
            block.append((self._count, text))
            self._count += 1
        return block

    def _block_size(self) -> int:
        """Small at first, so that the work is even; a block costs the program that started the run memory for good."""
        return max(1, min(LARGEST_BLOCK, self._count // PART))

    def _numbers(self, most: int) -> list[int]:
        return [self._again.popleft() for _ in range(min(most, len(self._again)))]

    def begin(self, index: int) -> bool:
        """Whether a worker should restore a photo: it is not done, and has not ended several workers."""
        given = self._given.get(index)
        if given is None:
            return False
        if given.begun >= ATTEMPTS:
            source = Item.from_json(given.text).source
            reason = f"{source}: each of {ATTEMPTS} workers died while it restored this, perhaps because memory ran out"
            self.end(index, {"status": "failed", "input": str(source), "error": reason})
            return False
        given.begun += 1
        return True

    def end(self, index: int, outcome: dict[str, Any]) -> None:
        """Note what has become of a photo; the first outcome counts."""
        if self._given.pop(index, None) is not None:
            self._news.append(outcome)
            self._last = time.monotonic()

    def news(self) -> list[Any]:
        """Outcomes, and remarks of the listing, since the last call; an exception if the listing has failed."""
        news, self._news = self._news, []
        return news

    def standing(self) -> Standing:
        """How far the run is."""
        return Standing(self._count, len(self._given), self._is_listed and not self._waiting, dict(self._unusable))

    def started(self) -> None:
        """Note that a worker has started."""
        self._starts += 1

    def unusable(self, machine: str, reason: str) -> None:
        """Note why a worker can't start on a machine."""
        self._unusable.setdefault(machine, reason)

    def repeat(self) -> None:
        """Hand out again what has no outcome; no worker is at it any more."""
        self._again = deque(sorted(self._given))
        self._starts = 0
        self._unusable = {}

    def close(self) -> None:
        """Hand out nothing more."""
        self._is_closed = True
