"""How every kernel of this package is started, and how a start is recorded instead.

`Start` is the only way in. Within `record()` it collects what would run, so that proofs and counters see the very
kernels, grids, arguments and constants that the launchers choose, on tensors that need no memory (meta or fake).

Triton finds the compiled kernel anew at every start, from all arguments, which takes longer than many kernels run. A
`Start` knows all but the tensors: what it started once it starts again without that search, where the tensors are such
that Triton would find the same kernel.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from threading import local
from typing import Any

from torch import Tensor
from triton import JITFunction, knobs
from triton.compiler import CompiledKernel
from triton.runtime import driver

# a·b + c is rounded once, in every kernel, where the compiler finds it. Unasked, versions of Triton differ in that.
FP_FUSION = True


def compiler_options(num_warps: int, num_stages: int) -> dict[str, int | bool]:
    """How Triton is told to compile a kernel, as keyword arguments of its start."""
    return {"num_warps": num_warps, "num_stages": num_stages, "enable_fp_fusion": FP_FUSION}


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
    arguments: tuple[Any, ...]
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
    def options(self) -> dict[str, int | bool]:
        """How Triton is told to compile it."""
        return compiler_options(self.num_warps, self.num_stages)

    @property
    def num_bytes(self) -> int:
        """Bytes moved: every tensor once for each of its passes."""
        tensors = {name: x for name, x in self.parameters.items() if isinstance(x, Tensor)}
        return int(sum(x.numel() * x.element_size() * self.passes.get(name, 1) for name, x in tensors.items()))


class _Recorder(local):
    launches: list[Launch] | None = None


_recorder = _Recorder()


class Start:
    """A start of a kernel that is planned but for its tensors; `start(*tensors)` makes it, again and again.

    Args:
        kernel, grid: as in `Launch`.
        numbers: values of the parameters that follow the tensors.
        num_warps, num_stages, passes, constants: as in `Launch`.
    """

    def __init__(
        self,
        kernel: Any,
        grid: tuple[int, ...],
        *numbers: float,
        num_warps: int = 4,
        num_stages: int = 2,
        passes: Mapping[str, float] | None = None,
        **constants: Any,
    ) -> None:
        self.kernel, self.grid, self.numbers = kernel, grid, numbers
        self.num_warps, self.num_stages, self.passes, self.constants = num_warps, num_stages, passes or {}, constants
        # (device, dtypes) to the compiled kernel for tensors whose addresses are multiples of 16, its grid, and all its
        # other arguments. These are the same in every start, so nothing else of what Triton compiles for can differ.
        self._compiled: dict[tuple, tuple[CompiledKernel, tuple[int, ...], tuple]] = {}

    def __call__(self, *tensors: Tensor | None) -> None:
        """Start the kernel on tensors for its first parameters, or record the start within `record()`."""
        if _recorder.launches is not None:
            arguments = (*tensors, *self.numbers)
            _recorder.launches.append(
                Launch(self.kernel, self.grid, arguments, self.constants, self.num_warps, self.num_stages, self.passes)
            )
            return
        if not isinstance(self.kernel, JITFunction) or _watched(self.kernel):  # also the interpreter
            self._through_triton(tensors)
            return
        device = driver.active.get_current_device()
        place: list[Any] = [device]
        addresses: list[int | None] = []
        bits = 0
        for x in tensors:
            if x is None:
                place.append(None)
                addresses.append(None)
                continue
            if x.get_device() != device:  # Triton knows whether the GPU can read it, and says so if not
                self._through_triton(tensors)
                return
            address = x.data_ptr()
            bits |= address
            place.append(x.dtype)
            addresses.append(address)
        if bits % 16:
            self._through_triton(tensors)
            return
        key = tuple(place)
        compiled = self._compiled.get(key)
        if compiled is None:
            compiled = self._through_triton(tensors)
            if compiled is not None:
                self._compiled[key] = compiled
            return
        kernel, grid, rest = compiled
        stream = driver.active.get_current_stream(device)
        # As JITFunction.run does it, where no hook wants to know.
        kernel.run(*grid, stream, kernel.function, kernel.packed_metadata, None, None, None, *addresses, *rest)

    def _through_triton(
        self, tensors: tuple[Tensor | None, ...]
    ) -> tuple[CompiledKernel, tuple[int, ...], tuple] | None:
        """Start the kernel by Triton's own way; returns what to start it again with, None if only that way can."""
        hash_callees_first(self.kernel)
        options = compiler_options(self.num_warps, self.num_stages)
        kernel = self.kernel[self.grid](*tensors, *self.numbers, **options, **self.constants)
        if not isinstance(kernel, CompiledKernel) or driver.active.get_current_target().backend != "cuda":
            return None
        others = self.kernel.params[len(tensors) + len(self.numbers) :]
        constants = [self.constants.get(p.name, p.default) for p in others]
        return kernel, (*self.grid, 1, 1)[:3], (*self.numbers, *constants)


_hashed: set[int] = set()  # ids of kernels, which live as long as their modules


def hash_callees_first(kernel: Any) -> None:
    """Have Triton hash what a kernel calls before the kernel itself; does nothing for an interpreted one.

    Some versions (3.5, 3.6) leave constants of a function out of its caller's hash unless the function was hashed
    before. The name of a compiled kernel on disk would depend on what the process had compiled until then.
    """
    if id(kernel) in _hashed or not isinstance(kernel, JITFunction):
        return
    for name in kernel.fn.__code__.co_names:
        hash_callees_first(kernel.fn.__globals__.get(name))
    kernel.cache_key  # noqa: B018  a property that is computed once
    _hashed.add(id(kernel))


def _watched(kernel: Any) -> bool:
    """Whether somebody wants to see each start of a kernel, or has changed Triton's settings in this process."""
    runtime = knobs.runtime
    return bool(
        vars(runtime)  # what was set, also another hook in place of the chains of hooks below
        or vars(knobs.compilation)
        or runtime.launch_enter_hook.calls
        or runtime.launch_exit_hook.calls
        or kernel.pre_run_hooks
        or kernel.debug
    )


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
