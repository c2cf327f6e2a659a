"""Streams and CUDA graphs of a GPU, and what stands in for them where there is none.

With the stand-ins a test for GPUs runs on CPU tensors: that shows that it can run, and nothing about streams.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor

from resshift_fast.core.devices import on

DELAY = 100_000_000  # cycles, some 50 ms: longer than a call needs to start its kernels


class Gpu:
    """One CUDA device.

    Attributes:
        threads: how many may start kernels at once.
        device: it.
    """

    threads = 4

    def __init__(self, index: int):
        self.device = torch.device("cuda", index)

    def current(self) -> AbstractContextManager:
        """Context in which this device is the current one."""
        return on(self.device)

    @contextmanager
    def stream(self) -> Iterator[None]:
        """Have the block's work queued on a stream of its own, after what was queued before, and wait for it."""
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            yield
        stream.synchronize()

    def delay(self) -> None:
        """Keep the current stream busy."""
        torch.cuda._sleep(DELAY)

    def capture(self, function: Callable[[], list[Tensor]]) -> tuple[Callable[[], None], list[Tensor]]:
        """A replay of what `function` queues, and the tensors that it writes into."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = function()
        return graph.replay, outputs


class StandIn:
    """The CPU in the place of a GPU; Triton's interpreter runs in one thread only."""

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
    """All of them; none where torch can't use any."""
    return [Gpu(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
