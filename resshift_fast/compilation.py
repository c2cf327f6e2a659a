"""A function of tensors made faster: by torch.compile, or by CUDA graphs captured once for each set of shapes.

A replay starts all kernels of a restoration with a single call, where each costs some microseconds of the processor
otherwise. What a graph reads and writes stays at fixed addresses: arguments are copied in, results copied out. Kernels
are verified and tuned in the runs before the capture, when waiting for the device is still allowed.
"""

import warnings
from collections import OrderedDict
from collections.abc import Callable
from threading import Lock
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

WARMUPS = 3
MAX_GRAPHS = 8  # each keeps its intermediate results alive

Replay = Callable[[], Any]


def compiled(
    function: Callable[..., Any], device: torch.device, how: str | None, max_graphs: int, options: dict[str, Any]
) -> Callable[..., Any]:
    """`function` made faster; see `Pipeline.compile` for the arguments and errors."""
    ways = ("graphs", "torch") if device.type == "cuda" else ("torch",)
    how = how or ways[0]
    if how not in ways:
        raise ValueError(f"how is {how!r}, expected {' or '.join(map(repr, ways))} on {device}")
    return GraphCache(function, max_graphs) if how == "graphs" else _Compiled(function, options)


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


def capture(function: Callable[..., Any], arguments: tuple, pool: Any) -> tuple[Replay, Any]:
    """Capture `function(*arguments)` in a CUDA graph.

    Args:
        function: tensor operations on CUDA that wait for nothing and decide by shapes alone.
        arguments: tensors at the addresses that every replay will read.
        pool: from `torch.cuda.graph_pool_handle`, for memory that graphs share.

    Returns:
        (what replays the graph, the results at the addresses that every replay writes).
    """
    from resshift_fast.backends import measuring

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side), measuring():
        for _ in range(WARMUPS):
            function(*arguments)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    # Other threads may allocate meanwhile, which "global" would forbid.
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        results = function(*arguments)
    return graph.replay, results


class GraphCache:
    """Calls `function` through CUDA graphs, the last `max_graphs` of which are kept; safe to call from many threads.

    Args:
        function: as in `capture`. Its arguments are tensors on one CUDA device, None, or sequences of tensors.
        max_graphs: kept at most; the one unused for longest goes first.
        capture: stands in for `capture`, for tests.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        max_graphs: int = MAX_GRAPHS,
        capture: Callable[[Callable[..., Any], tuple, Any], tuple[Replay, Any]] = capture,
    ):
        if max_graphs < 1:
            raise ValueError(f"max_graphs is {max_graphs}, expected at least 1")
        self._function, self._max_graphs, self._capture = function, max_graphs, capture
        self._graphs: OrderedDict[tuple, tuple[tuple, Replay, Any]] = OrderedDict()
        self._pool: Any = None
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._graphs)

    def __call__(self, *arguments: Any) -> Any:
        """`function(*arguments)`; the results are the caller's own."""
        key = tuple(_signature(x) for x in arguments)
        with self._lock:
            if key not in self._graphs:
                self._add(key, arguments)
            self._graphs.move_to_end(key)
            inputs, replay, results = self._graphs[key]
            for held, given in zip(tree_leaves(inputs), tree_leaves(arguments), strict=True):
                if held is not None:
                    held.copy_(given)
            replay()
            return tree_map(Tensor.clone, results)

    def _add(self, key: tuple, arguments: tuple) -> None:
        while len(self._graphs) >= self._max_graphs:
            self._graphs.popitem(last=False)
        if self._pool is None and torch.cuda.is_available():
            self._pool = torch.cuda.graph_pool_handle()
        inputs = tree_map(lambda x: None if x is None else x.clone(), arguments)
        self._graphs[key] = (inputs, *self._capture(self._function, inputs, self._pool))


def _signature(x: Any) -> Any:
    """What of an argument a graph is captured for."""
    if isinstance(x, Tensor):
        return tuple(x.shape), x.stride(), x.dtype, x.device
    return x if x is None else tuple(_signature(y) for y in x)
