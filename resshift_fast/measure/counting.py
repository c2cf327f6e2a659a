"""Counts dispatched operators and the bytes that they move, without running anything.

The rule: every dispatched operator that is not a view counts as one, and its bytes are those of its tensor arguments
and results. For an operator of this library its work is counted instead, so that fusing by name only gains nothing:
each kernel launch counts as one, with the bytes of its tensors times its declared passes, and each PyTorch operator
that the launcher calls counts by the rule. Networks are built from fake tensors on a fake CUDA device, and launchers
record their launches, so that the path of a GPU is counted.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, register_flop_formula

from resshift_fast import backends
from resshift_fast.models import catalog
from resshift_fast.models.catalog import ModelSpec
from resshift_fast.restoration.fake_gpu import FusedPath, fake_call, fake_restoration

PATHS = ("plain", "fused")

_aten = torch.ops.aten
_ALLOCATIONS = (_aten.empty, _aten.empty_like, _aten.empty_strided, _aten.new_empty, _aten.new_empty_strided)


@dataclass
class Row:
    """The counts of one operator.

    Attributes:
        count: dispatched operators or kernel launches. num_bytes: bytes that they move.
        matrix_operations: multiplications and additions of their matrix products and convolutions.
        calls: (bytes, matrix operations) of each, from which the least time is projected.
    """

    count: int = 0
    num_bytes: int = 0
    matrix_operations: int = 0
    calls: list[tuple[int, int]] = field(default_factory=list)

    def add(self, num_bytes: int, matrix_operations: int) -> None:
        """Count one more."""
        self.count += 1
        self.num_bytes += num_bytes
        self.matrix_operations += matrix_operations
        self.calls.append((num_bytes, matrix_operations))


class Counter(FusedPath):
    """Dispatch mode that counts by the module's rule; `rows` maps an operator's name to its `Row`.

    Args:
        backend: its launches are counted for the operators of this library; with None they count like any operator.
    """

    def __init__(self, backend: str | None = "triton"):
        def order(operator: str, dtype: torch.dtype) -> tuple[str, ...]:
            return (backend,) if backend in backends.OPERATORS[operator].loaders else ()

        super().__init__(order if backend else None)
        _register_formulas()
        self.rows: dict[str, Row] = defaultdict(Row)

    def dispatched(self, function: Any, args: tuple, kwargs: dict, result: Any) -> None:
        """Count one operator, unless it is a view."""
        if not (function.is_view or function.namespace == "prim" or self._allocates(function)):
            num_bytes = sum(_bytes(x) for x in tree_leaves((args, kwargs, result)))
            self.rows[self.inside or _name(function)].add(num_bytes, _matrix_operations(function, args, kwargs, result))

    def _allocates(self, function: Any) -> bool:
        """Whether a launcher allocates here; the launch counts the bytes of that tensor."""
        return self.inside is not None and function.overloadpacket in _ALLOCATIONS

    def launched(self, name: str, function: Any, args: tuple, result: Any, launches: list) -> None:
        """Count an operator's launches; its matrix operations are attributed to the last one."""
        operations = _matrix_operations(function, args, {}, result)
        for i, launch in enumerate(launches):
            self.rows[name].add(launch.num_bytes, operations if i == len(launches) - 1 else 0)


def total(rows: Mapping[str, Row]) -> Row:
    """All rows in one."""
    whole = Row()
    for row in rows.values():
        for call in row.calls:
            whole.add(*call)
    return whole


def _name(function: Any) -> str:
    return f"{function.namespace}::{function.overloadpacket.__name__}"


def _bytes(x: Any) -> int:
    return x.numel() * x.element_size() if isinstance(x, Tensor) else 0


@cache
def _register_formulas() -> None:
    """Register this library's operators with torch's FLOP counter."""
    for name, operator in backends.OPERATORS.items():
        if operator.matrix_operations is not None:
            register_flop_formula(getattr(torch.ops.resshift_fast, name))(operator.matrix_operations)


def _matrix_operations(function: Any, args: tuple, kwargs: dict, result: Any) -> int:
    formula = flop_registry.get(function.overloadpacket)
    return formula(*args, **kwargs, out_val=result) if formula else 0


def count_sample(
    model: str | ModelSpec,
    path: str = "fused",
    *,
    size: tuple[int, int] = (64, 64),
    batch: int = 1,
    dtype: torch.dtype = torch.bfloat16,
    arch: int = 90,
) -> dict[str, Row]:
    """Count one restoration from input pixels to output pixels.

    Args:
        model: a name of the catalogue, or a `ModelSpec`.
        path: "plain", the reference of every operator, or "fused", the Triton kernels.
        size: (height, width) of the input in pixels, multiples of the model's `pad_multiple`.
        batch: images restored at once.
        dtype: of the networks.
        arch: compute capability whose configurations the launchers choose, 90 for 9.0.

    Returns:
        Operator name to `Row`.

    Raises:
        ValueError: for an unknown model or path, or a size that the model does not take.
        ImportError: for the fused path if Triton is not installed.
    """
    spec = model if isinstance(model, ModelSpec) else catalog.get(model)
    if path not in PATHS:
        raise ValueError(f"path is {path!r}, expected one of {', '.join(PATHS)}")
    if any(side < 1 or side % spec.pad_multiple for side in size):
        raise ValueError(f"size is {size[0]}×{size[1]}, expected multiples of {spec.pad_multiple} for {spec.name}")
    preference = "reference" if path == "plain" else "auto"
    with (
        backends.use_backend(preference),
        fake_restoration(spec, dtype, arch if path == "fused" else None) as restoration,
    ):
        arguments = fake_call(restoration, size, batch)
        with Counter("triton" if path == "fused" else None) as counter:
            restoration(*arguments)
    return dict(counter.rows)
