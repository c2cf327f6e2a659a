"""Streams and CUDA graphs of a GPU, and stand-ins for a machine without one.

With the stand-ins a GPU test runs on CPU tensors. That checks the code of the test, but nothing about streams.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor

from resshift_fast.core.devices import on

DELAY = 100_000_000  # cycles, about 50 ms: longer than a call takes to launch its kernels


class Gpu:
    """One CUDA device.

    Attributes:
        threads: number of threads that may launch kernels at once.
        device: its torch.device.
    """

    threads = 4

    def __init__(self, index: int):
        self.device = torch.device("cuda", index)

    def current(self) -> AbstractContextManager:
        """Context in which this device is the current one."""
        return on(self.device)

    @contextmanager
    def stream(self) -> Iterator[None]:
        """Run the block on a new stream, after the work queued before, and wait for it."""
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            yield
        stream.synchronize()

    def delay(self) -> None:
        """Keep the current stream busy."""
        torch.cuda._sleep(DELAY)

    def capture(self, function: Callable[[], list[Tensor]]) -> tuple[Callable[[], None], list[Tensor]]:
        """Capture `function`: returns a function that replays its kernels, and the tensors that they write."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = function()
        return graph.replay, outputs


class StandIn:
    """The CPU in place of a GPU, with one thread, since Triton's interpreter supports no more."""

    threads = 1

    def __init__(self):
        self.device = torch.device("cpu")

    def current(self) -> AbstractContextManager:
        return nullcontext()

    def stream(self) -> AbstractContextManager:
        return nullcontext()

    def delay(self) -> None:
        pass

    def capture(self, function: Callable[[], list[Tensor]]) -> tuple[Callable[[], None], list[Tensor]]:
        outputs = function()

        def replay() -> None:
            for held, new in zip(outputs, function(), strict=True):
                held.copy_(new)

        return replay, outputs


def gpus() -> list[Gpu]:
    """All GPUs that torch can use."""
    return [Gpu(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
