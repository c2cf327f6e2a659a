"""The time of work on a GPU, without that of Python, and from memory rather than from the level-2 cache.

A call keeps the host busy for tens of microseconds, longer than most kernels run, so that events around an eager call
measure Python. Here the calls are captured in a CUDA graph a few times over, each after the cache was overwritten, and
what the same graph without the calls takes is subtracted. That needs nothing of a call but that it can be captured: no
copies of its inputs, and no events inside the graph, whose own time is not known. It resolves a fraction of a
microsecond, as the timer's grain and the noise of a replay are divided by the number of calls. The cache is overwritten
by reading: written lines would have to go to memory during the call.

A call that cannot be captured is queued behind a kernel that spins until the host is done.
"""

import math
from collections.abc import Callable
from statistics import median
from typing import Any, Protocol

import torch

from resshift_fast.core.capturing import alone

CAPTURED_MS = 0.4  # of the calls in one graph together, if so many are not more than
MOST_CALLS = 20
ESTIMATES = 3  # replays of a single call, by which the number of calls is chosen
REPLAY_SPIN_MS = 0.1  # hides the start of a graph
SPINS_MS = (0.3, 1.2, 5.0, 20.0)  # tried in turn until the host is faster
SPIN_CYCLES = 2_000_000  # a millisecond at the highest clock
FLUSH_BYTES = 1 << 20  # at least, whatever the size of a GPU's level-2 cache

Call = Callable[[], Any]


class Device(Protocol):
    """What a `Stopwatch` asks of a device."""

    def flush(self) -> None:
        """Have the level-2 cache hold nothing of a call's tensors."""

    def capture(self, call: Call) -> Call:
        """What replays the work that `call` gives to the device.

        Raises:
            RuntimeError: if it cannot be captured.
        """

    def elapsed(self, call: Call, spin: float) -> tuple[float, bool]:
        """Milliseconds of the work that `call` gives, and whether all was given before the device began with it.

        Args:
            spin: milliseconds for which the device is kept busy beforehand.
        """


class Stopwatch:
    """Times calls on a GPU.

    Args:
        device: a CUDA device, or what stands in for one.
    """

    def __init__(self, device: "torch.device | Device"):
        self._device: Device = _Cuda(device) if isinstance(device, torch.device) else device
        self._flushes: dict[int, Call] = {}

    def replays(self, call: Call) -> Callable[[], float]:
        """What measures the milliseconds of `call` whenever it is called.

        The call runs once by itself and is then captured, or is run anew each time where that is impossible. Its
        tensors must stay as long as it is measured.
        """
        call()
        try:
            return self._captured(call)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:  # such as a call that waits for the device
            return self.behind_spin(lambda: call)

    def behind_spin(self, prepare: Callable[[], Call]) -> Callable[[], float]:
        """What measures the milliseconds of a call that is queued while the device is busy.

        A call that waits for the device is measured with the host's part.

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
        """What measures one of `count` calls, each after a flush, by a graph with them and one without."""

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
        with torch.inference_mode(False):  # within which the first use may be, and a later one may not
            self._memory = torch.zeros(1024, size // 4096, device=device)
            self._sums = torch.empty(1024, device=device)
        with torch.cuda.device(device):
            self._start, self._end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            self._stream = torch.cuda.Stream()

    def flush(self) -> None:
        torch.sum(self._memory, dim=1, out=self._sums)

    def capture(self, call: Call) -> Call:
        with alone, torch.cuda.device(self.device):
            graph = torch.cuda.CUDAGraph()
            torch.cuda.synchronize()
            # Other threads may allocate meanwhile, which "global" would forbid. `torch.cuda.graph` would empty the
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
