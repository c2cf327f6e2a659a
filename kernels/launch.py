"""How every kernel of this package is started, and how a start is recorded instead.

`launch` is the only way in. Within `record()` it collects what would run, so that proofs and counters see the very
kernels, grids, arguments and constants that the launchers choose, on tensors that need no memory (meta or fake).
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from threading import local
from typing import Any

import torch


@dataclass(frozen=True)
class Launch:
    """One start of a kernel.

    Args:
        kernel: the function decorated with `triton.jit`.
        grid: number of programs along each axis, 1 to 3 of them.
        arguments: values of the kernel's first parameters, in order: tensors, numbers or None.
        constants: its `tl.constexpr` parameters by name.
        num_warps, num_stages: how Triton compiles it.
        passes: how often a tensor is moved between memory and chip, by parameter name, where it is not once.
    """

    kernel: Any
    grid: tuple[int, ...]
    arguments: tuple
    constants: Mapping[str, Any]
    num_warps: int
    num_stages: int
    passes: Mapping[str, float]

    @property
    def name(self) -> str:
        """The kernel's name."""
        return self.kernel.fn.__name__

    @property
    def parameters(self) -> dict[str, Any]:
        """Arguments by parameter name."""
        return dict(zip(self.kernel.arg_names, self.arguments, strict=False))

    @property
    def num_bytes(self) -> int:
        """Bytes moved: every tensor once for each of its passes."""
        tensors = {name: x for name, x in self.parameters.items() if isinstance(x, torch.Tensor)}
        return int(sum(x.numel() * x.element_size() * self.passes.get(name, 1) for name, x in tensors.items()))


class _Recorder(local):
    launches: list[Launch] | None = None


_recorder = _Recorder()


def launch(
    kernel: Any,
    grid: tuple[int, ...],
    *arguments: Any,
    num_warps: int = 4,
    num_stages: int = 2,
    passes: Mapping[str, float] | None = None,
    **constants: Any,
) -> None:
    """Start `kernel`, or record the start within `record()`; the arguments are `Launch`'s."""
    if _recorder.launches is not None:
        _recorder.launches.append(Launch(kernel, grid, arguments, constants, num_warps, num_stages, passes or {}))
        return
    kernel[grid](*arguments, num_warps=num_warps, num_stages=num_stages, **constants)


def recording() -> bool:
    """Whether this thread's launches are recorded instead of run."""
    return _recorder.launches is not None


@contextmanager
def record() -> Iterator[list[Launch]]:
    """Collect this thread's launches in the block instead of running them; what they would write stays unwritten.

    Example:
        >>> with record() as launches:
        ...     y, *_ = group_norm.forward(torch.empty(1, 64, 8, 8, device="meta"), 32, *parameters)
        >>> launches[0].grid
    """
    previous, _recorder.launches = _recorder.launches, []
    try:
        yield _recorder.launches
    finally:
        _recorder.launches = previous
