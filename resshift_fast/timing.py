"""Times of single calls, on the CPU and on a GPU, and of several functions that take turns."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

WARM_UP = 2
FLUSH_BYTES = 1 << 20  # at least, whatever the size of a GPU's level-2 cache

Function = Callable[[], Any]


def synchronize(device: "torch.device | None") -> None:
    """Wait for what the device was given to do."""
    if getattr(device, "type", "cpu") == "cuda":
        import torch

        torch.cuda.synchronize(device)


def seconds(function: Function, device: "torch.device | None" = None) -> tuple[float, Any]:
    """(wall-clock seconds, result) of one call."""
    synchronize(device)
    start = time.perf_counter()
    result = function()
    synchronize(device)
    return time.perf_counter() - start, result


class Clock:
    """Times single calls: CUDA events on a GPU, whose level-2 cache is overwritten first, `perf_counter` elsewhere."""

    def __init__(self, device: "torch.device"):
        self.device = device
        self._flush = None
        if device.type == "cuda":
            import torch

            size = torch.cuda.get_device_properties(device).L2_cache_size
            self._flush = torch.empty(2 * max(size, FLUSH_BYTES), dtype=torch.int8, device=device)
            self._start, self._end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def milliseconds(self, call: Function) -> float:
        """Time of one call."""
        if self._flush is None:
            return 1e3 * seconds(call, self.device)[0]
        self._flush.zero_()
        self._start.record()
        call()
        self._end.record()
        self._end.synchronize()
        return self._start.elapsed_time(self._end)


def times(prepared: dict[str, Callable[[], Function]], repeats: int, clock: Clock) -> dict[str, list[float]]:
    """Milliseconds of every run, by name, after some that warm up; all take turns, and another begins each round.

    Args:
        prepared: name to what is called before each run, and returns the function that is timed.
        repeats: timed runs of each.
    """
    names = list(prepared)
    for name in names:
        for _ in range(WARM_UP):
            clock.milliseconds(prepared[name]())
    found: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(repeats):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            found[name].append(clock.milliseconds(prepared[name]()))
    return found
