"""Faster calls of a function of tensors: torch.compile, or CUDA graphs captured once for each set of shapes.

A replay launches all kernels of a restoration with one call; launched one by one, each costs some microseconds of CPU
time. A graph reads and writes fixed addresses, so arguments are copied in and results copied out. Kernels are verified,
compiled and autotuned in the warm-up runs before the capture, while synchronization is still allowed.

The graphs of one cache share a memory pool, so one replay has to end before the next begins, even on another stream: a
call waits, on its own stream, for the work of the previous call. Only one graph of a process is captured at a time,
since a capture synchronizes the whole device, which makes another capture fail.
"""

import warnings
from collections import OrderedDict
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from threading import Lock
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental import _config
from torch.utils._pytree import tree_leaves, tree_map

from resshift_fast.core.capturing import capture_lock
from resshift_fast.core.counters import reserved

WARMUPS = 3
MAX_GRAPHS = 8  # each holds its arguments and results; together they hold the intermediate tensors of the largest
MAX_REMEMBERED = 256  # sets of shapes that were seen once, without a graph

Replay = Callable[[], Any]


def compiled(
    function: Callable[..., Any],
    device: torch.device,
    how: str | None,
    *,
    tune: bool,
    max_graphs: int,
    options: dict[str, Any],
) -> Callable[..., Any]:
    """A faster `function`; see `Pipeline.compile` for the arguments and errors."""
    ways = ("graphs", "torch") if device.type == "cuda" else ("torch",)
    how = how or ways[0]
    if how not in ways:
        raise ValueError(f"how is {how!r}, expected {' or '.join(map(repr, ways))} on {device}")
    return GraphCache(function, max_graphs, tune=tune) if how == "graphs" else _Compiled(function, options)


class _Compiled:
    """torch.compile with dynamic shapes; if it fails, `function` itself after one warning."""

    def __init__(self, function: Callable[..., Any], options: dict[str, Any]):
        self._function = function
        self._compiled = torch.compile(function, **({"fullgraph": True, "dynamic": True} | options))

    def __call__(self, *arguments: Any) -> Any:
        try:
            # Else sizes that are equal in the first call, as those of a square photo, are one size in the graph, which
            # is then compiled again for others.
            with _config.patch(use_duck_shape=False):  # type: ignore[attr-defined]
                return self._compiled(*arguments)
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = " ".join(str(error).split())[:200]
            warnings.warn(f"torch.compile failed, running uncompiled: {reason}", RuntimeWarning, stacklevel=2)
            self._compiled = self._function
            return self._function(*arguments)


def capture(function: Callable[..., Any], arguments: tuple, pool: Any, tune: bool) -> tuple[Replay, Any]:
    """Capture `function(*arguments)` in a CUDA graph, on the device of the arguments.

    Args:
        function: tensor operations on CUDA that never synchronize and depend on shapes, not on values.
        arguments: tensors at the addresses that every replay will read.
        pool: from `torch.cuda.graph_pool_handle`, for memory that graphs share.
        tune: whether kernels are autotuned first.

    Returns:
        (a function that replays the graph, the results at the addresses that every replay writes).
    """
    from resshift_fast.backends import measuring
    from resshift_fast.core.devices import on

    device = _device(arguments)
    with on(device):
        side = torch.cuda.Stream(device)
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side), measuring() if tune else nullcontext():
            for _ in range(WARMUPS):
                function(*arguments)
        torch.cuda.current_stream(device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # A stream of this device: torch's default one belongs to the device of the process's first capture. The mode
        # "global" would forbid other threads to allocate meanwhile.
        with (
            reserved(device) as counters,
            torch.cuda.graph(graph, pool=pool, stream=side, capture_error_mode="thread_local"),
        ):
            results = function(*arguments)
    return partial(_replay, graph, counters), results


def _replay(graph: Any, counters: Tensor) -> None:
    """Replay a graph, whose kernels count in `counters`: whoever can replay it keeps them."""
    graph.replay()


class _Serializer:
    """Makes the device run the work of consecutive calls one after the other, across streams; no effect on a CPU."""

    def __init__(self, device: torch.device):
        self._event = None
        if device.type == "cuda":
            with torch.cuda.device(device):
                self._event = torch.cuda.Event()
        self._device = device

    def begin(self) -> None:
        """Make the current stream wait for the previous call."""
        if self._event is not None:
            torch.cuda.current_stream(self._device).wait_event(self._event)

    def end(self) -> None:
        """Record that this call's work is queued on the current stream."""
        if self._event is not None:
            self._event.record(torch.cuda.current_stream(self._device))


class GraphCache:
    """Calls `function` through CUDA graphs and keeps the `max_graphs` that were used last.

    Safe to call from many threads and on any streams: calls are serialized.

    Args:
        function: as in `capture`. Its arguments are tensors on one CUDA device, None, or sequences of tensors.
        max_graphs: the most graphs kept; the least recently used one is dropped first.
        tune: as in `capture`.
        capture: replaces `capture` in tests.

    Raises:
        ValueError: for max_graphs below 1.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        max_graphs: int = MAX_GRAPHS,
        *,
        tune: bool = False,
        capture: Callable[[Callable[..., Any], tuple, Any, bool], tuple[Replay, Any]] = capture,
    ):
        if max_graphs < 1:
            raise ValueError(f"max_graphs is {max_graphs}, expected at least 1")
        self._function, self._max_graphs, self._tune, self._capture = function, max_graphs, tune, capture
        self._graphs: OrderedDict[tuple, tuple[tuple, Replay, Any]] = OrderedDict()
        self._seen: OrderedDict[tuple, None] = OrderedDict()
        self._pool: Any = None
        self._serializer: _Serializer | None = None
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._graphs)

    def __call__(self, *arguments: Any) -> Any:
        """`function(*arguments)`; the results are copies that later replays do not overwrite."""
        key = _key(arguments)
        with self._lock:
            if self._serializer is None:
                self._serializer = _Serializer(_device(arguments))
            self._serializer.begin()
            if key not in self._graphs:
                self._add(key, arguments)
            self._graphs.move_to_end(key)
            inputs, replay, results = self._graphs[key]
            for held, given in zip(tree_leaves(inputs), tree_leaves(arguments), strict=True):
                if held is not None:
                    held.copy_(given)
            replay()
            owned = tree_map(Tensor.clone, results)
            self._serializer.end()
        return owned

    def seen(self, *arguments: Any) -> bool:
        """Whether this was called before with arguments of these shapes, so that a graph is worth its capture."""
        key = _key(arguments)
        with self._lock:
            known = key in self._seen
            self._seen[key] = None
            self._seen.move_to_end(key)
            while len(self._seen) > MAX_REMEMBERED:
                self._seen.popitem(last=False)
        return known

    def _add(self, key: tuple, arguments: tuple) -> None:
        while len(self._graphs) >= self._max_graphs:
            self._graphs.popitem(last=False)
        if self._pool is None and torch.cuda.is_available():
            self._pool = torch.cuda.graph_pool_handle()
        inputs = tree_map(lambda x: None if x is None else x.clone(), arguments)
        with capture_lock:
            self._graphs[key] = (inputs, *self._capture(self._function, inputs, self._pool, self._tune))


class RepeatedGraphs:
    """A function that runs through CUDA graphs from the second call with each set of shapes on.

    The first call runs eagerly, since most photos are restored once and a capture takes as long as several runs. If a
    capture fails, for example because memory runs out, calls continue without graphs after one warning.

    Args:
        function, max_graphs, capture: as in `GraphCache`.
    """

    def __init__(self, function: Callable[..., Any], max_graphs: int = MAX_GRAPHS, **options: Any):
        self._function, self._max_graphs = function, max_graphs
        self._cache: GraphCache | None = GraphCache(function, max_graphs, **options)

    def __reduce__(self) -> tuple:
        """Pickle without the graphs: a copy captures its own."""
        return RepeatedGraphs, (self._function, self._max_graphs)

    def __call__(self, *arguments: Any, callback: Callable[..., None] | None = None) -> tuple[Any, bool]:
        """`function(*arguments)`, and whether it called `callback`, which a graph cannot do."""
        cache = self._cache
        if cache is not None and cache.seen(*arguments):
            try:
                return cache(*arguments), False
            except (RuntimeError, torch.OutOfMemoryError) as error:
                self._cache = None
                reason = " ".join(str(error).split())[:200]
                warnings.warn(f"CUDA graphs failed, running without them: {reason}", RuntimeWarning, stacklevel=2)
        return self._function(*arguments, callback), True


def _key(arguments: tuple) -> tuple:
    """Key of a graph: layout, dtype and device of the arguments, and the preferred backend."""
    from resshift_fast.backends import preferred

    return preferred(), *(_signature(x) for x in arguments)


def _signature(x: Any) -> Any:
    if isinstance(x, Tensor):
        return tuple(x.shape), x.stride(), x.dtype, x.device
    return x if x is None else tuple(_signature(y) for y in x)


def _device(arguments: tuple) -> torch.device:
    """The device of the first tensor."""
    return next(x.device for x in tree_leaves(arguments) if isinstance(x, Tensor))
