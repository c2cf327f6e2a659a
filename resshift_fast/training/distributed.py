"""The processes of one training, as torchrun starts them."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from resshift_fast.core import devices

# The others wait for the process that validates and saves.
PATIENCE = timedelta(hours=2)


class Processes:
    """The processes of a training; one alone unless torchrun has started several.

    Args:
        device: to train on; "cuda" gives each process of a machine its own GPU.

    Raises:
        ValueError: if the device cannot be used here.

    Attributes:
        device: of this process.
        rank, count: its number from 0, and how many there are.
    """

    def __init__(self, device: str | torch.device):
        self.rank, self.count = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        if self.count > 1 and str(device) == "cuda":
            device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
        self.device = devices.usable_device(device)
        self._joined = self.count > 1 and not dist.is_initialized()
        if self._joined:
            if self.device.type == "cuda":
                torch.cuda.set_device(self.device)
            dist.init_process_group("nccl" if self.device.type == "cuda" else "gloo", timeout=PATIENCE)

    @property
    def is_main(self) -> bool:
        """Whether this process writes the log and the checkpoints, and validates."""
        return self.rank == 0

    def indices(self, size: int) -> range:
        """This process's samples of a whole batch of `size`, which all processes divide equally."""
        own = size // self.count
        return range(self.rank * own, (self.rank + 1) * own)

    def sum(self, values: Tensor) -> Tensor:
        """The sums over all processes of a tensor, on the training's device."""
        values = values.to(self.device)
        if self.count > 1:
            dist.all_reduce(values)
        return values

    def average_gradients(self, module: nn.Module) -> None:
        """Average the gradients of a module that is not wrapped over all processes."""
        if self.count == 1:
            return
        for parameter in module.parameters():
            if parameter.grad is not None:
                dist.all_reduce(parameter.grad)
                parameter.grad /= self.count

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module with gradients averaged over all processes."""
        if self.count == 1:
            return module
        ids = [self.device.index] if self.device.type == "cuda" else None
        parallel = nn.parallel.DistributedDataParallel
        new = "forward_sync_buffers" in inspect.signature(parallel).parameters
        options: dict[str, Any] = {"forward_sync_buffers" if new else "broadcast_buffers": False}
        return parallel(module, device_ids=ids, gradient_as_bucket_view=True, **options)

    def leave(self) -> None:
        """End the communication, if this object has begun it."""
        if self._joined and dist.is_initialized():
            dist.destroy_process_group()
            self._joined = False


def accumulating(module: nn.Module, last: bool) -> AbstractContextManager:
    """The context of a micro-batch: gradients are averaged over the processes after the last one alone."""
    if last or not isinstance(module, nn.parallel.DistributedDataParallel):
        return nullcontext()
    return module.no_sync()


def parts_of(size: int, count: int) -> Iterator[slice]:
    """`count` equal parts of `size` samples; one part where they do not divide it."""
    count = count if size % count == 0 else 1
    for part in range(count):
        yield slice(part * (size // count), (part + 1) * (size // count))
