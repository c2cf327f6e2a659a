"""Operators dispatched and bytes moved, counted without running anything.

The rule: every dispatched operator that is not a view counts one, and its bytes are those of its tensor arguments and
results. An operator of this library counts what it really does instead: each kernel launch is one, with the bytes of
the launch's tensors times its declared passes, and each PyTorch operator that the launcher calls counts by the
rule; so nothing is gained by hiding work in one operator. Networks are built from fake tensors on a fake CUDA device,
and the launchers record what they would start there: it is the GPU's own path that is counted.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._prims_common import make_channels_last_2d_strides_for, suggest_memory_format
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, register_flop_formula

from resshift_fast import backends, catalog
from resshift_fast.catalog import ModelSpec
from resshift_fast.restoration import Restoration

PATHS = ("plain", "fused")

_aten = torch.ops.aten
_ALLOCATIONS = (_aten.empty, _aten.empty_like, _aten.empty_strided, _aten.new_empty, _aten.new_empty_strided)


@dataclass
class Row:
    """What was counted for one operator.

    Attributes:
        count: dispatched operators or kernel launches. num_bytes: bytes that they move.
        matrix_operations: multiplications and additions of their matrix products and convolutions.
        calls: (bytes, matrix operations) of each, from which a floor in time is projected.
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


class Counter(TorchDispatchMode):
    """Counts by the rule within its context; `rows` maps an operator's name to its `Row`.

    Args:
        backend: whose launches stand for the operators of this library; None counts an operator of this library as
            one like any other.
    """

    def __init__(self, backend: str | None = "triton"):
        super().__init__()
        _register_formulas()
        self.rows: dict[str, Row] = defaultdict(Row)
        self._backend = backend
        self._inside: str | None = None

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if self._backend and function.namespace == "resshift_fast":
            return self._launches(function, args)
        result = function(*args, **kwargs)
        if function is _aten.convolution.default and _is_channels_last(*args[:2]):
            # As cuDNN returns it, and as fake tensors say in a build of torch with CUDA.
            result = result.as_strided(result.shape, make_channels_last_2d_strides_for(result.shape))
        if not (function.is_view or function.namespace == "prim" or self._allocates(function)):
            num_bytes = sum(_bytes(x) for x in tree_leaves((args, kwargs, result)))
            self.rows[self._inside or _name(function)].add(
                num_bytes, _matrix_operations(function, args, kwargs, result)
            )
        return result

    def _allocates(self, function: Any) -> bool:
        """Whether this is a launcher taking memory: what it does with it is the launch's to count."""
        return self._inside is not None and function.overloadpacket in _ALLOCATIONS

    def _launches(self, function: Any, args: tuple) -> Any:
        """Count what the backend's launcher would do; the results are the operator's own fake ones."""
        from resshift_fast.kernels.launch import record

        name = _name(function)
        result = function(*args)
        operator = name.removeprefix("resshift_fast::")
        kernel = backends.kernel(operator, self._backend) if self._backend in _loaders(operator) else None
        operations = _matrix_operations(function, args, {}, result)
        outer, self._inside = self._inside, name
        try:
            with self, _Bindings(), record() as launches:
                if kernel is None or kernel.unsupported(*args) is not None:
                    backends.OPERATORS[operator].plain(*args)
                else:
                    kernel.function(*args)
        finally:
            self._inside = outer
        for i, launch in enumerate(launches):
            self.rows[name].add(launch.num_bytes, operations if i == len(launches) - 1 else 0)
        return result


def total(rows: Mapping[str, Row]) -> Row:
    """All rows in one."""
    whole = Row()
    for row in rows.values():
        for call in row.calls:
            whole.add(*call)
    return whole


class _Bindings(TorchFunctionMode):
    """`x[...]`, `x.contiguous()` and `x.copy_(y)` by the operators that they stand for, without a look at the device.

    A build of torch without CUDA refuses them on a fake CUDA tensor.
    """

    def __torch_function__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if function is Tensor.__getitem__:
            return _index(*args)
        if function is Tensor.contiguous:
            memory_format = kwargs.get("memory_format", torch.contiguous_format)
            same = args[0].is_contiguous(memory_format=memory_format)
            return args[0] if same else args[0].clone(memory_format=memory_format)
        if function is Tensor.copy_:
            return _aten.copy_(*args, **kwargs)
        return function(*args, **kwargs)


def _index(x: Tensor, index: Any) -> Tensor:
    index = index if isinstance(index, tuple) else (index,)
    dim = 0
    for i, item in enumerate(index):
        if item is Ellipsis:
            dim = x.dim() - sum(other is not None for other in index[i + 1 :])
        elif item is None:
            x, dim = x.unsqueeze(dim), dim + 1
        elif isinstance(item, slice):
            x, dim = _aten.slice(x, dim, item.start, item.stop, item.step or 1), dim + 1
        elif isinstance(item, Tensor):
            x, dim = _aten.index(x, [None] * dim + [item]), dim + item.dim()
        else:
            x = x.select(dim, item)
    return x


def _is_channels_last(*tensors: Tensor) -> bool:
    return any(suggest_memory_format(x) == torch.channels_last for x in tensors)


def _loaders(operator: str) -> dict:
    return backends.OPERATORS[operator].loaders


def _name(function: Any) -> str:
    return f"{function.namespace}::{function.overloadpacket.__name__}"


def _bytes(x: Any) -> int:
    return x.numel() * x.element_size() if isinstance(x, Tensor) else 0


@cache
def _register_formulas() -> None:
    """Make this library's operators known to torch's own counter of operations."""
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
        model: a name of the catalogue, or an entry like its own.
        path: "plain", the reference of every operator, or "fused", the Triton kernels.
        size: (height, width) of the input in pixels, multiples of the model's `pad_multiple`.
        batch: images restored at once.
        dtype: of the networks.
        arch: compute capability whose configurations the launchers choose, 90 for 9.0.

    Returns:
        Operator name to `Row`.

    Raises:
        ValueError: for an unknown model or path, or a size that the model does not take.
        ImportError: for the fused path where Triton is not installed.
    """
    spec = model if isinstance(model, ModelSpec) else catalog.get(model)
    if path not in PATHS:
        raise ValueError(f"path is {path!r}, expected one of {', '.join(PATHS)}")
    if any(side < 1 or side % spec.pad_multiple for side in size):
        raise ValueError(f"size is {size[0]}×{size[1]}, expected multiples of {spec.pad_multiple} for {spec.name}")
    preference = "reference" if path == "plain" else "auto"
    with torch.device("meta"):
        networks = (catalog.build_denoiser(spec), catalog.build_first_stage(spec))
        networks = [net.to(dtype=dtype, memory_format=torch.channels_last) for net in networks]
    fake = FakeTensorMode(allow_non_fake_inputs=True)  # the networks' tensors, until they are on the device
    with fake, _Bindings(), torch.no_grad(), backends.use_backend(preference), _targeting(arch, path):
        restoration = Restoration(spec, *(net.to_empty(device="cuda") for net in networks)).eval()
        margin = 2 * restoration.margin
        image = torch.empty(batch, 3, size[0] + margin, size[1] + margin, device="cuda")
        hole = torch.empty(batch, 1, *size, dtype=torch.bool, device="cuda") if spec.needs_mask else None
        seed = torch.empty(batch, dtype=torch.int64, device="cuda")
        origin = torch.empty(batch, 2, dtype=torch.int64, device="cuda")
        with Counter("triton" if path == "fused" else None) as counter:
            restoration(image, seed, origin, hole)
    return dict(counter.rows)


@contextmanager
def _targeting(arch: int, path: str) -> Iterator[None]:
    if path == "plain":
        yield
        return
    from resshift_fast.kernels.tuning import targeting

    with targeting(arch):
        yield
