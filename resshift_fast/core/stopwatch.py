"""GPU time of a call, without the time of Python and with a cold level-2 cache.

An eager call keeps the host busy for tens of microseconds, longer than most kernels run, so events around it would
measure Python. Instead, a CUDA graph holds several repetitions of the call, each after a flush of the level-2 cache,
and the time of a graph with the flushes alone is subtracted. A call only has to be capturable: its inputs are not
copied, and there are no events inside the graph, whose own time is not known. The resolution is a fraction of a
microsecond, because the granularity of the events and the noise of a replay are divided by the number of repetitions.
The cache is flushed by reading: written lines would have to be written back to memory during the call.

A call that cannot be captured is queued behind a kernel that spins until the host is done.
"""

import math
from collections.abc import Callable
from statistics import median
from typing import Any, Protocol

import torch

from resshift_fast.core.capturing import capture_lock

CAPTURED_MS = 0.4  # total time of the calls in one graph, unless that takes more than MOST_CALLS
MOST_CALLS = 20
ESTIMATES = 3  # replays of a single call, from which the number of calls is chosen
REPLAY_SPIN_MS = 0.1  # hides the launch of a graph
SPINS_MS = (0.3, 1.2, 5.0, 20.0)  # tried in turn until the host finishes first
SPIN_CYCLES = 2_000_000  # about a millisecond at the highest clock
FLUSH_BYTES = 1 << 20  # lower bound for the size of a GPU's level-2 cache

Call = Callable[[], Any]


class Device(Protocol):
    """Operations of a device that a `Stopwatch` needs."""

    def flush(self) -> None:
        """Evict a call's tensors from the level-2 cache."""

    def capture(self, call: Call) -> Call:
        """Capture the work that `call` queues, and return a function that replays it.

        Raises:
            RuntimeError: if it cannot be captured.
        """

    def elapsed(self, call: Call, spin: float) -> tuple[float, bool]:
        """Milliseconds of the work that `call` queues, and whether all of it was queued before the device started it.

        Args:
            spin: milliseconds for which the device is kept busy beforehand.
        """


class Stopwatch:
    """Times calls on a GPU.

    Args:
        device: a CUDA device, or a substitute with the methods of `Device`.
    """

    def __init__(self, device: "torch.device | Device"):
        self._device: Device = _Cuda(device) if isinstance(device, torch.device) else device
        self._flushes: dict[int, Call] = {}

    def replays(self, call: Call) -> Callable[[], float]:
        """A function that measures `call` in milliseconds each time.

        The call runs once eagerly and is then captured; if it cannot be captured, it runs eagerly each time. Its
        tensors must stay alive while it is measured.
        """
        call()
        try:
            return self._captured(call)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:  # such as a call that synchronizes with the device
            return self.behind_spin(lambda: call)

    def behind_spin(self, prepare: Callable[[], Call]) -> Callable[[], float]:
        """A function that measures, in milliseconds, a call that is queued while the device is busy.

        If the call synchronizes with the device, the time includes that of the host.

        Args:
            prepare: called before each run; returns the call that is measured.
        """
        chosen = 0

        def milliseconds() -> float:
            nonlocal chosen
            while True:
                call = prepare()
                self._device.flush()
                taken, queued = self._device.elapsed(call, SPINS_MS[chosen])
                if queued or chosen == len(SPINS_MS) - 1:
                    return taken
                chosen += 1

        return milliseconds

    def _captured(self, call: Call) -> Callable[[], float]:
        one = self._difference(call, 1)
        estimate = median(one() for _ in range(ESTIMATES))
        count = min(math.ceil(CAPTURED_MS / max(estimate, CAPTURED_MS / MOST_CALLS)), MOST_CALLS)
        return one if count == 1 else self._difference(call, count)

    def _difference(self, call: Call, count: int) -> Callable[[], float]:
        """A function that measures one of `count` calls: the time of flushes and calls less that of flushes alone."""

        def flush_and_call() -> None:
            for _ in range(count):
                self._device.flush()
                call()

        def flush() -> None:
            for _ in range(count):
                self._device.flush()

        if count not in self._flushes:
            self._flushes[count] = self._device.capture(flush)
        graphs = self._device.capture(flush_and_call), self._flushes[count]

        def milliseconds() -> float:
            whole, flushes = (self._device.elapsed(graph, REPLAY_SPIN_MS)[0] for graph in graphs)
            return max(whole - flushes, 0.0) / count

        return milliseconds


class _Cuda:
    """A CUDA device."""

    def __init__(self, device: torch.device):
        self.device = device
        size = 2 * max(torch.cuda.get_device_properties(device).L2_cache_size, FLUSH_BYTES)
        with torch.inference_mode(False):  # a tensor made in inference mode cannot be written to outside it
            self._memory = torch.zeros(1024, size // 4096, device=device)
            self._sums = torch.empty(1024, device=device)
        with torch.cuda.device(device):
            self._start, self._end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            self._stream = torch.cuda.Stream()

    def flush(self) -> None:
        torch.sum(self._memory, dim=1, out=self._sums)

    def capture(self, call: Call) -> Call:
        with capture_lock, torch.cuda.device(self.device):
            graph = torch.cuda.CUDAGraph()
            torch.cuda.synchronize()
            # "global" would forbid other threads to allocate meanwhile, and `torch.cuda.graph` would empty the
            # allocator's cache each time.
            with torch.cuda.stream(self._stream):
                graph.capture_begin(capture_error_mode="thread_local")
                try:
                    call()
                finally:
                    graph.capture_end()
        return graph.replay

    def elapsed(self, call: Call, spin: float) -> tuple[float, bool]:
        with torch.cuda.device(self.device):
            torch.cuda._sleep(int(spin * SPIN_CYCLES))
            self._start.record()
            call()
            self._end.record()
            queued = not self._start.query()
            self._end.synchronize()
        return self._start.elapsed_time(self._end), queued
