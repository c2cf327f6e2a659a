"""A tensor that is derived from weights once, where every call would otherwise compute it again."""

from collections.abc import Callable, Iterable
from threading import Lock
from typing import NamedTuple

import torch
from torch import Tensor, nn

from resshift_fast.core.devices import wait_for

_deriving = Lock()  # two threads that use one module derive its tensor once


class _Source(NamedTuple):
    """A tensor as it was when something was derived from it.

    The storage is kept, because its address could be that of another one after it is freed.
    """

    tensor: Tensor
    storage: torch.UntypedStorage
    offset: int | torch.SymInt
    version: int

    def is_unchanged(self, tensor: Tensor) -> bool:
        """Whether this is the same tensor in the same memory, which nothing has written to since."""
        return (
            tensor is self.tensor
            and tensor.untyped_storage() is self.storage
            and tensor.storage_offset() == self.offset
            and tensor._version == self.version
        )


class Preparable(nn.Module):
    """A module that can derive from its weights what every call would otherwise compute from them."""

    def prepare(self, changed: bool = False) -> None:
        """Derive it, unless it is current; `changed` as in `Derived.refresh`."""
        raise NotImplementedError


class Derived(nn.Module):
    """A tensor derived from others, its sources, with what tells whether they have changed since.

    It is empty until `refresh`, and in a copy or an unpickled module. It is no part of the state dict.

    `current` sees every change of the sources but two: a write through `.data` or a NumPy view, which PyTorch does not
    count; and, while torch.compile traces, any change. Compiled code and CUDA graphs read the tensor at its address, so
    call `refresh` before they run: it keeps the address if the size, dtype and device are the same.

    Example:
        >>> weight, square = nn.Parameter(torch.ones(2)), Derived()
        >>> square.refresh([weight], lambda: weight**2)
        >>> with torch.no_grad():
        ...     print(square.current(lambda: [weight]), square.current(lambda: [weight.add_(1)]))
        tensor([1., 1.]) None
    """

    value: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("value", None, persistent=False)
        self._sources: tuple[_Source, ...] = ()

    def current(self, sources: Callable[[], Iterable[Tensor]]) -> Tensor | None:
        """The tensor; None if it has to be computed: never derived, derived from other values, or gradients are wanted.

        Args:
            sources: returns what `refresh` was given; not called while torch.compile traces.
        """
        value = self.value
        if value is None or torch.is_grad_enabled():
            return None
        return value if torch.compiler.is_compiling() or self._is_current(tuple(sources())) else None

    def refresh(self, sources: Iterable[Tensor], derive: Callable[[], Tensor], changed: bool = False) -> None:
        """Derive the tensor again if a source has changed, and wait until the device has done so.

        Without gradient. It stays empty if PyTorch counts no writes to a source, as for tensors of inference mode.

        Args:
            sources: all tensors that it depends on.
            derive: computes it.
            changed: derive it even if no source seems to have changed.
        """
        sources = tuple(sources)
        if not changed and self._is_current(sources):
            return
        with _deriving:
            if not changed and self._is_current(sources):
                return
            if any(source.is_inference() for source in sources):
                self.value, self._sources = None, ()
                return
            # A tensor of inference mode could not be written again outside it.
            with torch.inference_mode(False), torch.no_grad():
                self._set(derive())
            self._sources = tuple(_Source(x, x.untyped_storage(), x.storage_offset(), x._version) for x in sources)

    def _set(self, value: Tensor) -> None:
        held = self.value
        if held is not None and _layout(held) == _layout(value):
            held.copy_(value)
        else:
            self.value = value
        wait_for(value)

    def _is_current(self, sources: tuple[Tensor, ...]) -> bool:
        held = self._sources
        return bool(held) and len(held) == len(sources) and all(map(_Source.is_unchanged, held, sources))

    def __deepcopy__(self, memo: dict) -> "Derived":
        return type(self)()

    def __reduce__(self) -> tuple:
        return type(self), ()


def _layout(x: Tensor) -> tuple:
    return x.shape, x.stride(), x.dtype, x.device
