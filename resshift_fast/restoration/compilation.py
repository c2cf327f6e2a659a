"""A function of tensors made faster: by torch.compile, or by CUDA graphs captured once for each set of shapes.

A replay starts all kernels of a restoration with a single call, where each costs some microseconds of the processor
otherwise. What a graph reads and writes stays at fixed addresses: arguments are copied in, results copied out. Kernels
are verified, compiled and tuned in the runs before the capture, when waiting for the device is still allowed.

The graphs of one cache share their memory, so that one replay has to end before the next begins, on whatever streams
they are: a call waits, on its own stream, for what the last call did on its. Only one graph of a process is captured at
a time, since a capture waits for the whole device, which another one does not survive.
"""

import warnings
from collections import OrderedDict
from collections.abc import Callable
from contextlib import nullcontext
from threading import Lock
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from resshift_fast.core.capturing import capture_lock

WARMUPS = 3
MAX_GRAPHS = 8  # each keeps its arguments and results, and all together the intermediate results of the largest
MAX_REMEMBERED = 256  # sets of shapes that were met without a graph

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
    """`function` made faster; see `Pipeline.compile` for the arguments and errors."""
    ways = ("graphs", "torch") if device.type == "cuda" else ("torch",)
    how = how or ways[0]
    if how not in ways:
        raise ValueError(f"how is {how!r}, expected {' or '.join(map(repr, ways))} on {device}")
    return GraphCache(function, max_graphs, tune=tune) if how == "graphs" else _Compiled(function, options)


class _Compiled:
    """torch.compile for all sizes at once; `function` itself, after one warning, where it fails."""

    def __init__(self, function: Callable[..., Any], options: dict[str, Any]):
        self._function = function
        self._compiled = torch.compile(function, **({"fullgraph": True, "dynamic": True} | options))

    def __call__(self, *arguments: Any) -> Any:
        try:
            return self._compiled(*arguments)
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = " ".join(str(error).split())[:200]
            warnings.warn(f"torch.compile failed, going on without: {reason}", RuntimeWarning, stacklevel=2)
            self._compiled = self._function
            return self._function(*arguments)


def capture(function: Callable[..., Any], arguments: tuple, pool: Any, tune: bool) -> tuple[Replay, Any]:
    """Capture `function(*arguments)` in a CUDA graph, on the device of the arguments.

    Args:
        function: tensor operations on CUDA that wait for nothing and decide by shapes alone.
        arguments: tensors at the addresses that every replay will read.
        pool: from `torch.cuda.graph_pool_handle`, for memory that graphs share.
        tune: whether kernels choose their configurations by timing them first.

    Returns:
        (what replays the graph, the results at the addresses that every replay writes).
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
        # A stream of this device: torch's default one belongs to the device of the process's first capture. Other
        # threads may allocate meanwhile, which "global" would forbid.
        with torch.cuda.graph(graph, pool=pool, stream=side, capture_error_mode="thread_local"):
            results = function(*arguments)
    return graph.replay, results


class _Turns:
    """Has the work of each turn wait, on the device, for that of the turn before; nothing on a CPU."""

    def __init__(self, device: torch.device):
        self._event = None
        if device.type == "cuda":
            with torch.cuda.device(device):
                self._event = torch.cuda.Event()
        self._device = device

    def begin(self) -> None:
        """Have the current stream wait."""
        if self._event is not None:
            torch.cuda.current_stream(self._device).wait_event(self._event)

    def end(self) -> None:
        """What the current stream was given until now is this turn's."""
        if self._event is not None:
            self._event.record(torch.cuda.current_stream(self._device))


class GraphCache:
    """Calls `function` through CUDA graphs, the last `max_graphs` of which are kept.

    Safe to call from many threads and on any streams: calls take turns.

    Args:
        function: as in `capture`. Its arguments are tensors on one CUDA device, None, or sequences of tensors.
        max_graphs: kept at most; the one unused for longest goes first.
        tune: as in `capture`.
        capture: stands in for `capture`, for tests.

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
        self._met: OrderedDict[tuple, None] = OrderedDict()
        self._pool: Any = None
        self._turns: _Turns | None = None
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._graphs)

    def __call__(self, *arguments: Any) -> Any:
        """`function(*arguments)`; the results are the caller's own."""
        key = _key(arguments)
        with self._lock:
            if self._turns is None:
                self._turns = _Turns(_device(arguments))
            self._turns.begin()
            if key not in self._graphs:
                self._add(key, arguments)
            self._graphs.move_to_end(key)
            inputs, replay, results = self._graphs[key]
            for held, given in zip(tree_leaves(inputs), tree_leaves(arguments), strict=True):
                if held is not None:
                    held.copy_(given)
            replay()
            owned = tree_map(Tensor.clone, results)
            self._turns.end()
        return owned

    def met(self, *arguments: Any) -> bool:
        """Whether this was asked before for arguments of these shapes, whose graph is worth its capture by now."""
        key = _key(arguments)
        with self._lock:
            known = key in self._met
            self._met[key] = None
            self._met.move_to_end(key)
            while len(self._met) > MAX_REMEMBERED:
                self._met.popitem(last=False)
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
    """A function that runs through CUDA graphs from the second call of each set of shapes on.

    The first call runs as it is, since most photos are restored once and a capture takes as long as several runs.
    Where a capture fails, for want of memory say, calls go on without graphs after one warning.

    Args:
        function, max_graphs, capture: as in `GraphCache`.
    """

    def __init__(self, function: Callable[..., Any], max_graphs: int = MAX_GRAPHS, **options: Any):
        self._function, self._max_graphs = function, max_graphs
        self._cache: GraphCache | None = GraphCache(function, max_graphs, **options)

    def __reduce__(self) -> tuple:
        """A copy, in another process perhaps, captures graphs of its own."""
        return RepeatedGraphs, (self._function, self._max_graphs)

    def __call__(self, *arguments: Any, callback: Callable[..., None] | None = None) -> tuple[Any, bool]:
        """`function(*arguments)`, and whether `callback` was given to it, which a graph cannot call."""
        cache = self._cache
        if cache is not None and cache.met(*arguments):
            try:
                return cache(*arguments), False
            except (RuntimeError, torch.OutOfMemoryError) as error:
                self._cache = None
                reason = " ".join(str(error).split())[:200]
                warnings.warn(f"no CUDA graphs, going on without: {reason}", RuntimeWarning, stacklevel=2)
        return self._function(*arguments, callback), True


def _key(arguments: tuple) -> tuple:
    """What a graph is captured for: tensors like these, and the backend that was asked for."""
    from resshift_fast.backends import preferred

    return preferred(), *(_signature(x) for x in arguments)


def _signature(x: Any) -> Any:
    if isinstance(x, Tensor):
        return tuple(x.shape), x.stride(), x.dtype, x.device
    return x if x is None else tuple(_signature(y) for y in x)


def _device(arguments: tuple) -> torch.device:
    """That of the tensors."""
    return next(x.device for x in tree_leaves(arguments) if isinstance(x, Tensor))
