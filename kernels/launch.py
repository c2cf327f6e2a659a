"""Launches every kernel of this package, or records the launch instead.

All launches go through `Start`. Within `record()` they are collected and not run, so that budget checks and counters
see exactly the kernels, grids, arguments and constants that the launchers choose, on meta or fake tensors.

Triton looks the compiled kernel up at every launch, from all arguments, which takes longer than many kernels run. A
`Start` has everything but the tensors. After its first launch it skips the lookup for tensors for which Triton would
find the same kernel.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from threading import local
from typing import Any, NamedTuple

from torch import Tensor
from triton import JITFunction, knobs
from triton.compiler import CompiledKernel
from triton.runtime import driver

from resshift_fast.kernels.dependents import launch_options

# Fuse a·b + c into one rounded operation, in every kernel. The default depends on the version of Triton.
FP_FUSION = True


def compiler_options(num_warps: int, num_stages: int) -> dict[str, int | bool]:
    """Triton's compiler options, as keyword arguments of a launch."""
    return {"num_warps": num_warps, "num_stages": num_stages, "enable_fp_fusion": FP_FUSION}


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel.

    Args:
        kernel: the function decorated with `triton.jit`.
        grid: number of programs along each of 1 to 3 axes.
        arguments: values of the kernel's first parameters, in order: tensors, scalars or None.
        constants: its `tl.constexpr` parameters by name.
        num_warps, num_stages: compiler options.
        passes: by parameter name, how often a tensor is moved between memory and chip; 1 if not listed.
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
        """Triton's compiler options."""
        return compiler_options(self.num_warps, self.num_stages)

    @property
    def num_bytes(self) -> int:
        """Bytes moved between memory and chip: the size of every tensor times its passes."""
        tensors = {name: x for name, x in self.parameters.items() if isinstance(x, Tensor)}
        return int(sum(x.numel() * x.element_size() * self.passes.get(name, 1) for name, x in tensors.items()))


class _Recorder(local):
    launches: list[Launch] | None = None


_recorder = _Recorder()
_device_of, _address_of = Tensor.get_device, Tensor.data_ptr  # called for every tensor of every launch: quicker unbound


class Start:
    """A launch that is prepared except for its tensors; `start(*tensors)` launches the kernel.

    Args:
        kernel, grid: as in `Launch`.
        scalars: values of the parameters after the tensors.
        num_warps, num_stages, passes, constants: as in `Launch`.
    """

    def __init__(
        self,
        kernel: Any,
        grid: tuple[int, ...],
        *scalars: float,
        num_warps: int = 4,
        num_stages: int = 2,
        passes: Mapping[str, float] | None = None,
        **constants: Any,
    ) -> None:
        self.kernel, self.grid, self.scalars = kernel, grid, scalars
        self.num_warps, self.num_stages, self.passes, self.constants = num_warps, num_stages, passes or {}, constants
        # (device, dtypes) to the direct launch for tensors whose addresses are multiples of 16. All other arguments are
        # the same in every launch, so Triton has nothing else to specialize on.
        self._direct: dict[tuple, _Direct] = {}

    def __call__(self, *tensors: Tensor | None) -> None:
        """Launch the kernel on tensors, its first parameters; within `record()`, record the launch instead."""
        if _recorder.launches is not None:
            arguments = (*tensors, *self.scalars)
            _recorder.launches.append(
                Launch(self.kernel, self.grid, arguments, self.constants, self.num_warps, self.num_stages, self.passes)
            )
            return
        if not isinstance(self.kernel, JITFunction) or _watched(self.kernel):  # not a JITFunction: interpreted
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
            if _device_of(x) != device:  # Triton checks whether the GPU can read it
                self._through_triton(tensors)
                return
            address = _address_of(x)
            bits |= address
            place.append(x.dtype)
            addresses.append(address)
        if bits % 16:
            self._through_triton(tensors)
            return
        key = tuple(place)
        direct = self._direct.get(key)
        if direct is None:
            direct = self._through_triton(tensors)
            if direct is not None:
                self._direct[key] = direct
            return
        run, grid, before, after, _ = direct
        # The end of JITFunction.run, without hooks.
        run(*grid, driver.active.get_current_stream(device), *before, *addresses, *after)

    def _through_triton(self, tensors: tuple[Tensor | None, ...]) -> "_Direct | None":
        """Launch the kernel through Triton; returns its direct launch, or None where that is not possible."""
        hash_callees_first(self.kernel)
        options = compiler_options(self.num_warps, self.num_stages)
        if isinstance(self.kernel, JITFunction):
            options |= launch_options(self.kernel, driver.active.get_current_target().arch)
        kernel = self.kernel[self.grid](*tensors, *self.scalars, **options, **self.constants)
        if not isinstance(kernel, CompiledKernel) or driver.active.get_current_target().backend != "cuda":
            return None
        others = self.kernel.params[len(tensors) + len(self.scalars) :]
        constants = [self.constants.get(p.name, p.default) for p in others]
        before = kernel.function, kernel.packed_metadata, None, None, None
        return _Direct(kernel.run, (*self.grid, 1, 1)[:3], before, (*self.scalars, *constants), kernel)


class _Direct(NamedTuple):
    """A launch without Triton's lookup.

    Args:
        run: launches the kernel. grid: as in `Launch`, with three axes.
        before, after: arguments between the stream and the tensors, and after them.
        kernel: whose code is unloaded from the GPU when nothing refers to it any more.
    """

    run: Callable[..., None]
    grid: tuple[int, ...]
    before: tuple[Any, ...]
    after: tuple[Any, ...]
    kernel: CompiledKernel


_hashed: set[int] = set()  # ids of kernels, which are never deleted


def hash_callees_first(kernel: Any) -> None:
    """Make Triton hash the functions that a kernel calls before the kernel itself; does nothing if it is interpreted.

    Triton 3.5 and 3.6 leave the constants of a callee out of the caller's hash unless the callee was hashed before. A
    kernel's name in the disk cache would then depend on what the process had compiled earlier.
    """
    if id(kernel) in _hashed or not isinstance(kernel, JITFunction):
        return
    for name in kernel.fn.__code__.co_names:
        hash_callees_first(kernel.fn.__globals__.get(name))
    kernel.cache_key  # noqa: B018  a property that is computed once
    _hashed.add(id(kernel))


def _watched(kernel: Any) -> bool:
    """Whether launch hooks are set, or Triton's settings were changed in this process."""
    runtime = knobs.runtime
    return bool(
        runtime.__dict__  # settings, including a hook set in place of the chains below
        or knobs.compilation.__dict__
        or runtime.launch_enter_hook.calls
        or runtime.launch_exit_hook.calls
        or kernel.pre_run_hooks
        or kernel.debug
    )


def recording() -> bool:
    """Whether this thread's launches are recorded and not run."""
    return _recorder.launches is not None


@contextmanager
def record() -> Iterator[list[Launch]]:
    """Collect this thread's launches in the block and run none of them; their outputs stay uninitialized.

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
