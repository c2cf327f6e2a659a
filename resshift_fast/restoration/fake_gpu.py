"""A restoration as a GPU would run it, on fake tensors: nothing is computed, and no GPU is needed.

Networks are built from fake tensors on a fake CUDA device. Within `FusedPath` an operator of this library does what
the launchers of its kernels would do there, whose launches are recorded instead of started: counters and compilers see
the GPU's own path.
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
    """Within its context, operators of this library go the way of their kernels; see `launched` and `dispatched`.

    Args:
        order: (operator, dtype of its first argument) to the backends that are tried in turn, plain PyTorch after all
            of them; None leaves operators of this library as they are.
    """

    def __init__(self, order: Callable[[str, torch.dtype], Sequence[str]] | None):
        super().__init__()
        self._order = order
        self.inside: str | None = None  # the operator of this library whose launcher runs

    def launched(self, name: str, function: Any, args: tuple, result: Any, launches: list) -> None:
        """Called with what an operator of this library has launched; of Triton's kernels only."""

    def dispatched(self, function: Any, args: tuple, kwargs: dict, result: Any) -> None:
        """Called with every other operator, those in launchers included."""

    def plain(self, operator: str, args: tuple) -> None:
        """Called instead of a launcher where no backend takes a call; runs it in plain PyTorch."""
        backends.OPERATORS[operator].plain(*args)

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if self._order and function.namespace == "resshift_fast":
            return self._run(function, args)
        result = function(*args, **kwargs)
        if function is _aten.convolution.default and _is_channels_last(*args[:2]):
            # As cuDNN returns it, and as fake tensors say in a build of torch with CUDA.
            result = result.as_strided(result.shape, make_channels_last_2d_strides_for(result.shape))
        self.dispatched(function, args, kwargs, result)
        return result

    def _run(self, function: Any, args: tuple) -> Any:
        """Do what the first backend's launcher would do; the results are the operator's own fake ones."""
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
                if backend == "triton":  # others' launches cannot be recorded
                    kernel.function(*args)
                return
        self.plain(operator, args)


class Bindings(TorchFunctionMode):
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


@contextmanager
def fake_gpu(arch: int | None = None) -> Iterator[None]:
    """Tensors are fake in the block, and those on "cuda" are taken to be on a GPU of compute capability `arch`.

    Without `arch` no kernel may be launched there.
    """
    fake = FakeTensorMode(allow_non_fake_inputs=True)  # the networks' tensors, until they are on the device
    with fake, Bindings(), torch.no_grad():
        if arch is None:
            yield
            return
        from resshift_fast.kernels.tuning import targeting

        with targeting(arch):
            yield


@contextmanager
def fake_restoration(spec: ModelSpec, dtype: torch.dtype, arch: int | None = None) -> Iterator[Restoration]:
    """`fake_gpu` with a model on it, its networks in the format in which a GPU has them."""
    with torch.device("meta"):
        denoiser, first_stage = catalog.build_denoiser(spec), catalog.build_first_stage(spec)
        for net in (denoiser, first_stage):
            net.to(dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    with fake_gpu(arch):
        yield Restoration(spec, _moved(denoiser), _moved(first_stage)).eval()


def _moved(net: Module) -> Module:
    """`net.to_empty(device="cuda")`, which takes a second for the many parameters of a network."""
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
