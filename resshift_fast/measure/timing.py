"""Timing of calls, on the CPU and on a GPU, and of several functions in turns."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from resshift_fast.core.stopwatch import Stopwatch

WARM_UP = 2

Function = Callable[[], Any]
Timer = Callable[[], float]


def synchronize(device: "torch.device | None") -> None:
    """Wait for the work queued on the device; no effect on a CPU."""
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
    """Times calls: by `core.stopwatch` on a GPU, by `perf_counter` elsewhere.

    Args:
        device: on which they run.
        stopwatch: replaces the device's own in tests.
    """

    def __init__(self, device: "torch.device", stopwatch: "Stopwatch | None" = None):
        self.device = device
        if stopwatch is None and device.type == "cuda":
            from resshift_fast.core.stopwatch import Stopwatch

            stopwatch = Stopwatch(device)
        self._stopwatch = stopwatch

    def timer(self, prepare: Callable[[], Function], once: bool = False) -> Timer:
        """A function that measures one run in milliseconds each time.

        Args:
            prepare: called before a run, or before many; returns the function that is timed.
            once: whether that function can run only once, and not in a CUDA graph, like a backward pass.
        """
        if self._stopwatch is None:
            return lambda: 1e3 * seconds(prepare(), self.device)[0]
        return self._stopwatch.behind_spin(prepare) if once else self._stopwatch.replays(prepare())


def times(
    prepared: dict[str, Callable[[], Function]], repeats: int, clock: Clock, once: bool = False
) -> dict[str, list[float]]:
    """Milliseconds of every run, by name, after a warm-up; functions run in turns, and each round starts with another.

    Args:
        prepared: name to the function that is called before a run and returns the one that is timed.
        repeats: timed runs of each.
        clock: measures them.
        once: as in `Clock.timer`.
    """
    names = list(prepared)
    timers = {name: clock.timer(prepare, once) for name, prepare in prepared.items()}
    for timer in timers.values():
        for _ in range(WARM_UP):
            timer()
    found: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(repeats):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            found[name].append(timers[name]())
    return found
