"""A restoration as a GPU would run it, on fake tensors: nothing is computed, and no GPU is needed.

Networks are built from fake tensors on a fake CUDA device. Within `FusedPath` an operator of this library runs the
launchers of its kernels, and their launches are recorded instead of executed, so that counters and compilers see the
path that a GPU takes.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._prims_common import make_channels_last_2d_strides_for, suggest_memory_format
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from resshift_fast import backends
from resshift_fast.models import catalog
from resshift_fast.models.catalog import ModelSpec
from resshift_fast.models.layers import Module
from resshift_fast.restoration.model import Restoration

_aten = torch.ops.aten


class FusedPath(TorchDispatchMode):
    """Dispatch mode in which operators of this library run their kernels' launchers; see `launched`, `dispatched`.

    Args:
        order: maps (operator, dtype of its first argument) to the backends that are tried in turn, before plain
            PyTorch; with None, operators of this library run like any other.
    """

    def __init__(self, order: Callable[[str, torch.dtype], Sequence[str]] | None):
        super().__init__()
        self._order = order
        self.inside: str | None = None  # the operator of this library whose launcher is running

    def launched(self, name: str, function: Any, args: tuple, result: Any, launches: list) -> None:
        """Called with the launches of an operator of this library; only those of Triton kernels are recorded."""

    def dispatched(self, function: Any, args: tuple, kwargs: dict, result: Any) -> None:
        """Called with every other operator, including those that launchers call."""

    def plain(self, operator: str, args: tuple) -> None:
        """Called instead of a launcher if no backend takes a call; runs it in plain PyTorch."""
        backends.OPERATORS[operator].plain(*args)

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if self._order and function.namespace == "resshift_fast":
            return self._run(function, args)
        result = function(*args, **kwargs)
        if function is _aten.convolution.default and _is_channels_last(*args[:2]):
            # The layout that cuDNN returns, and fake tensors have in a build of torch with CUDA.
            result = result.as_strided(result.shape, make_channels_last_2d_strides_for(result.shape))
        self.dispatched(function, args, kwargs, result)
        return result

    def _run(self, function: Any, args: tuple) -> Any:
        """Run the launcher of the first backend that takes the call; the results are those of the operator's fake."""
        from resshift_fast.kernels.launch import record

        name = f"{function.namespace}::{function.overloadpacket.__name__}"
        result = function(*args)
        outer, self.inside = self.inside, name
        try:
            with self, Bindings(), record() as launches:
                self._launch(function.overloadpacket.__name__, args)
        finally:
            self.inside = outer
        self.launched(name, function, args, result, launches)
        return result

    def _launch(self, operator: str, args: tuple) -> None:
        assert self._order is not None
        for backend in self._order(operator, args[0].dtype):
            kernel = backends.kernel(operator, backend)
            if kernel.unsupported(*args) is None:
                if backend == "triton":  # launches of other backends cannot be recorded
                    kernel.function(*args)
                return
        self.plain(operator, args)


class Bindings(TorchFunctionMode):
    """`x[...]`, `x.contiguous()` and `x.copy_(y)` by calls of the ATen operators.

    The Python bindings check the device, so that a build of torch without CUDA refuses them on a fake CUDA tensor.
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


@contextmanager
def fake_gpu(arch: int | None = None) -> Iterator[None]:
    """Within the block tensors are fake, and "cuda" is a GPU of compute capability `arch`, 90 for 9.0.

    Without `arch` no kernel may be launched.
    """
    fake = FakeTensorMode(allow_non_fake_inputs=True)  # the networks' tensors are meta tensors before they are moved
    with fake, Bindings(), torch.no_grad():
        if arch is None:
            yield
            return
        from resshift_fast.kernels.tuning import targeting

        with targeting(arch):
            yield


@contextmanager
def fake_restoration(spec: ModelSpec, dtype: torch.dtype, arch: int | None = None) -> Iterator[Restoration]:
    """`fake_gpu` with a model whose networks are in the memory format that they have on a GPU."""
    with torch.device("meta"):
        denoiser, first_stage = catalog.build_denoiser(spec), catalog.build_first_stage(spec)
        for net in (denoiser, first_stage):
            net.to(dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    with fake_gpu(arch):
        yield Restoration(spec, _moved(denoiser), _moved(first_stage)).eval()


def _moved(net: Module) -> Module:
    """Do the same as `net.to_empty(device="cuda")`, which takes a second for a network's many parameters."""
    for module in net.modules():
        places: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for tensors in places:
            for name, x in tensors.items():
                if x is not None:
                    tensors[name] = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="cuda")
    return net


def fake_call(
    restoration: Restoration, size: tuple[int, int], batch: int
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """The arguments of a restoration: (image, seed, origin, mask).

    Args:
        restoration: from `fake_restoration`, within its block.
        size: (height, width) of the input in pixels, multiples of the model's `pad_multiple`.
        batch: images restored at once.
    """
    margin = 2 * restoration.margin
    image = torch.empty(batch, 3, size[0] + margin, size[1] + margin, device="cuda")
    seed = torch.empty(batch, dtype=torch.int64, device="cuda")
    origin = torch.empty(batch, 2, dtype=torch.int64, device="cuda")
    masked = restoration.spec.needs_mask
    return image, seed, origin, torch.empty(batch, 1, *size, dtype=torch.bool, device="cuda") if masked else None
