"""Counts dispatched operators and the bytes that they move, without running anything.

The rule: every dispatched operator that is not a view counts as one, and its bytes are those of its tensor arguments
and results. For an operator of this library its work is counted instead, so that fusing by name only gains nothing:
each kernel launch counts as one, with the bytes of its tensors times its declared passes, and each PyTorch operator
that the launcher calls counts by the rule. Networks are built from fake tensors on a fake CUDA device, and launchers
record their launches, so that the path of a GPU is counted. What a pipeline derives from the weights once, and not in
every restoration, is counted apart.
"""

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, register_flop_formula

from resshift_fast import backends
from resshift_fast.measure.liveness import LiveBytes
from resshift_fast.models import catalog
from resshift_fast.models.catalog import ModelSpec
from resshift_fast.restoration.fake_gpu import FusedPath, fake_call, fake_restoration

PATHS = ("plain", "fused")

_aten = torch.ops.aten
_ALLOCATIONS = (_aten.empty, _aten.empty_like, _aten.empty_strided, _aten.new_empty, _aten.new_empty_strided)


class Call(NamedTuple):
    """One dispatched operator or kernel launch.

    Args:
        num_bytes: bytes that it moves.
        matrix_operations: multiplications and additions of its matrix products and convolutions.
        kernel: the launched kernel, or the dispatched operator.
        shape: of the operator's first image or matrix, and of its result.
        blocks: thread blocks of the launch; an estimate for a dispatched operator, whose kernel a library chooses.
        estimated: whether `blocks` is an estimate.
    """

    num_bytes: int
    matrix_operations: int
    kernel: str = ""
    shape: str = ""
    blocks: int = 1
    estimated: bool = True


@dataclass
class Row:
    """The counts of one operator.

    Attributes:
        count: dispatched operators or kernel launches. num_bytes: bytes that they move.
        matrix_operations: multiplications and additions of their matrix products and convolutions.
        calls: each of them, from which the time is projected.
    """

    count: int = 0
    num_bytes: int = 0
    matrix_operations: int = 0
    calls: list[Call] = field(default_factory=list)

    def add(self, num_bytes: int, matrix_operations: int, *details: Any) -> None:
        """Count one more; `details` are the other fields of its `Call`."""
        self.count += 1
        self.num_bytes += num_bytes
        self.matrix_operations += matrix_operations
        self.calls.append(Call(num_bytes, matrix_operations, *details))


class Counter(FusedPath):
    """Dispatch mode that counts by the module's rule.

    Args:
        backend: its launches are counted for the operators of this library; with None they count like any operator.

    Attributes:
        rows: operator's name to its `Row`. live: the memory that the results take.
    """

    def __init__(self, backend: str | None = "triton"):
        def order(operator: str, dtype: torch.dtype) -> tuple[str, ...]:
            return (backend,) if backend in backends.OPERATORS[operator].loaders else ()

        super().__init__(order if backend else None)
        _register_formulas()
        self.rows: dict[str, Row] = defaultdict(Row)
        self.live = LiveBytes()
        self._by_pytorch = 0  # matrix operations of PyTorch's operators in the launcher that is running

    def dispatched(self, function: Any, args: tuple, kwargs: dict, result: Any) -> None:
        """Count one operator, unless it is a view."""
        self.live.add((args, kwargs), result)
        if not (function.is_view or function.namespace == "prim" or self._allocates(function)):
            num_bytes = sum(_bytes(x) for x in tree_leaves((args, kwargs, result)))
            operations = _matrix_operations(function, args, kwargs, result)
            details = _name(function), _shapes(args, result), _estimated_blocks(args, result, operations > 0)
            self.rows[self.inside or _name(function)].add(num_bytes, operations, *details)
            if self.inside is not None:
                self._by_pytorch += operations

    def _allocates(self, function: Any) -> bool:
        """Whether a launcher allocates here; the launch counts the bytes of that tensor."""
        return self.inside is not None and function.overloadpacket in _ALLOCATIONS

    def launched(self, name: str, function: Any, args: tuple, result: Any, launches: list) -> None:
        """Count an operator's launches; its matrix operations, without PyTorch's, are attributed to the last one."""
        operations = max(_matrix_operations(function, args, {}, result) - self._by_pytorch, 0)
        self._by_pytorch = 0
        shape = _shapes(args, result)
        for i, launch in enumerate(launches):
            last = i == len(launches) - 1
            details = launch.name, shape, math.prod(launch.grid), False
            self.rows[name].add(launch.num_bytes, operations if last else 0, *details)
        launches.clear()  # they hold the launcher's tensors
        self.live.add(args, result)


def total(rows: Mapping[str, Row]) -> Row:
    """All rows in one."""
    whole = Row()
    for row in rows.values():
        for call in row.calls:
            whole.add(*call)
    return whole


@dataclass(frozen=True)
class Launches:
    """The calls of one kernel that have the same shapes and number of blocks.

    Args:
        operator: their operator. first: one of them. count: how many. num_bytes: the bytes that all move.
    """

    operator: str
    first: Call
    count: int
    num_bytes: int

    def filled(self, multiprocessors: int) -> float:
        """Share of a GPU's multiprocessors that have a block, at most 1."""
        return min(1.0, self.first.blocks / multiprocessors)


def by_shape(rows: Mapping[str, Row]) -> list[Launches]:
    """All calls by kernel, shapes and number of blocks, those of the most bytes first."""
    groups: dict[tuple, list[tuple[str, Call]]] = defaultdict(list)
    for name, row in rows.items():
        for call in row.calls:
            groups[name, call.kernel, call.shape, call.blocks].append((name, call))
    found = [Launches(*g[0], len(g), sum(call.num_bytes for _, call in g)) for g in groups.values()]
    return sorted(found, key=lambda launches: -launches.num_bytes)


def _name(function: Any) -> str:
    return f"{function.namespace}::{function.overloadpacket.__name__}"


def _bytes(x: Any) -> int:
    return x.numel() * x.element_size() if isinstance(x, Tensor) else 0


def _largest_dim(values: Any) -> Tensor | None:
    """The first of the tensors with the most dimensions."""
    return max((x for x in tree_leaves(values) if isinstance(x, Tensor)), key=Tensor.dim, default=None)


def _shapes(args: Any, result: Any) -> str:
    """The shapes of the first image or matrix and of the result: "1x160x64x64 -> 1x320x32x32"."""
    tensors = (_largest_dim(args), _largest_dim(result))
    return " -> ".join("x".join(map(str, x.shape)) or "scalar" for x in tensors if x is not None)


# What a block of a library's kernel computes: a tile of a matrix product, and values of an elementwise operation.
LIBRARY_TILE = 128
LIBRARY_VALUES = 512


def _estimated_blocks(args: Any, result: Any, is_product: bool) -> int:
    """Blocks of a kernel that a library chooses, without a split of the sums."""
    y = _largest_dim(result)
    if y is None or y.dim() == 0:
        y = _largest_dim(args)
    if y is None or y.dim() == 0:
        return 1
    if not is_product:
        return -(-y.numel() // LIBRARY_VALUES) or 1
    columns = y.shape[1] if y.dim() == 4 else y.shape[-1]
    return -(-y.numel() // columns // LIBRARY_TILE) * -(-columns // LIBRARY_TILE) or 1


@cache
def _register_formulas() -> None:
    """Register this library's operators with torch's FLOP counter."""
    for name, operator in backends.OPERATORS.items():
        if operator.matrix_operations is not None:
            register_flop_formula(getattr(torch.ops.resshift_fast, name))(operator.matrix_operations)


def _matrix_operations(function: Any, args: tuple, kwargs: dict, result: Any) -> int:
    formula = flop_registry.get(function.overloadpacket)
    return formula(*args, **kwargs, out_val=result) if formula else 0


@dataclass
class Sample:
    """What one restoration costs.

    Attributes:
        rows: operator's name to its counts.
        preparation: the same for what is derived from the weights once, not in every restoration.
        weight_bytes: memory of the networks' parameters.
        prepared_bytes: memory of what is derived from them.
        peak_bytes: most memory that the other tensors take at once, without an allocator's rounding and a library's
            work spaces.
    """

    rows: dict[str, Row]
    preparation: dict[str, Row]
    weight_bytes: int
    prepared_bytes: int
    peak_bytes: int


def measure_sample(
    model: str | ModelSpec,
    path: str = "fused",
    *,
    size: tuple[int, int] = (64, 64),
    batch: int = 1,
    dtype: torch.dtype = torch.bfloat16,
    arch: int = 90,
) -> Sample:
    """Count one restoration from input pixels to output pixels.

    Args:
        model: a name of the catalogue, or a `ModelSpec`.
        path: "plain", the reference of every operator, or "fused", the Triton kernels of a prepared pipeline.
        size: (height, width) of the input in pixels, multiples of the model's `pad_multiple`.
        batch: images restored at once.
        dtype: of the networks.
        arch: compute capability whose configurations the launchers choose, 90 for 9.0.

    Raises:
        ValueError: for an unknown model or path, or a size that the model does not take.
        ImportError: for the fused path if Triton is not installed.
    """
    spec = model if isinstance(model, ModelSpec) else catalog.get(model)
    if path not in PATHS:
        raise ValueError(f"path is {path!r}, expected one of {', '.join(PATHS)}")
    if any(side < 1 or side % spec.pad_multiple for side in size):
        raise ValueError(f"size is {size[0]}×{size[1]}, expected multiples of {spec.pad_multiple} for {spec.name}")
    fused = path == "fused"
    backend = "triton" if fused else None
    with (
        backends.use_backend("auto" if fused else "reference"),
        fake_restoration(spec, dtype, arch if fused else None) as restoration,
    ):
        arguments = fake_call(restoration, size, batch)
        weight_bytes = sum(map(_bytes, restoration.parameters()))
        held = sum(map(_bytes, restoration.buffers()))
        with Counter(backend) as preparing:
            if fused:
                restoration.prepare()
        prepared_bytes = sum(map(_bytes, restoration.buffers())) - held
        with Counter(backend) as counter:
            restoration(*arguments)
    return Sample(dict(counter.rows), dict(preparing.rows), weight_bytes, prepared_bytes, counter.live.peak)


def count_sample(model: str | ModelSpec, path: str = "fused", **options: Any) -> dict[str, Row]:
    """Operator's name to its `Row`, for one restoration; arguments and errors as in `measure_sample`."""
    return measure_sample(model, path, **options).rows
