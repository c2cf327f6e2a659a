"""Counters by which the last program of a launch knows that it is the last.

A kernel that finishes in its last program counts the programs that are done, from zero, and leaves zeros behind. So
launches that run one after the other can share counters that were set to zero once. Launches on one stream do; those on
different streams may run at the same time, so every stream has its own.

A CUDA graph may be replayed on any stream, at the same time as other work, and needs counters of its own. A capture
within `reserved` uses those made there; otherwise another node of the graph sets counters to zero before each launch.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import local
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

COUNTERS = 4096  # of a stream, at least: one an image

_of_streams: "dict[tuple[torch.device, int], torch.Tensor]" = {}


class _Reserved(local):
    counters: "torch.Tensor | None" = None


_reserved = _Reserved()


def counters(x: "torch.Tensor", count: int) -> "torch.Tensor":
    """At least `count` int32 zeros for one launch on x's device and the current stream, which leaves zeros behind."""
    import torch

    device = x.device
    if device.type != "cuda":
        return x.new_zeros(count, dtype=torch.int32)
    if torch.cuda.is_current_stream_capturing():
        own = _reserved.counters
        if own is not None and own.device == device and own.numel() >= count:
            return own
        return x.new_zeros(count, dtype=torch.int32)
    # Not torch.cuda.current_stream, which takes longer to make an object than a kernel takes.
    key = device, torch._C._cuda_getCurrentRawStream(device.index)
    found = _of_streams.get(key)
    if found is None or found.numel() < count:
        found = _of_streams[key] = x.new_zeros(max(count, COUNTERS), dtype=torch.int32)
    return found


@contextmanager
def reserved(device: "torch.device") -> "Iterator[torch.Tensor]":
    """Have the capture of a CUDA graph in this block and thread use counters made here, before it begins.

    The graph reads and writes the tensor in every replay, so whoever keeps the graph must keep the tensor as long.
    """
    import torch

    previous, _reserved.counters = _reserved.counters, torch.zeros(COUNTERS, dtype=torch.int32, device=device)
    try:
        yield _reserved.counters
    finally:
        _reserved.counters = previous
