"""Dispatch: chooses the implementation of an operator for each call.

`reference` is the plain PyTorch path that every other backend is compared with. `auto` takes, for every operator and
call, the first backend of `ORDER` that has a kernel for it, runs here, takes the call's arguments and has been
verified (`verification.py`); all other calls run the reference. If the autotune cache has an order for the operator
(`autotune_cache.py`), it replaces `ORDER`; a preferred backend replaces both.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Any

from resshift_fast.backends import descriptions, registry
from resshift_fast.backends.registry import BACKENDS, OPERATORS, Kernel, Operator, check, kernel
from resshift_fast.core import nvtx
from resshift_fast.core.devices import on

if TYPE_CHECKING:
    import torch

    from resshift_fast.kernels import tuning

VARIABLE = "RESSHIFT_FAST_BACKEND"


# A module global, which torch.compile can guard on. It is checked at its first use, so that an import with a wrong
# value in the environment doesn't fail.
_preferred = os.environ.get(VARIABLE) or "auto"


def preferred() -> str:
    """The preferred backend: that of `use_backend`, else of RESSHIFT_FAST_BACKEND, else "auto".

    Raises:
        ValueError: if the environment variable names a backend that cannot be chosen.
    """
    try:
        return check(_preferred)
    except ValueError as error:
        if _preferred == os.environ.get(VARIABLE):
            raise ValueError(f"{VARIABLE}: {error}") from None
        raise


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Prefer a backend for every operator called in the block, in all threads.

    Operators without a kernel of that backend run the reference.

    Args:
        name: "auto", "reference", "cpu", "triton" or "cuda".

    Raises:
        ValueError: for an unknown backend, or one that cannot run here, with the reason.

    Example:
        >>> with use_backend("reference"):
        ...     pass
    """
    global _preferred
    previous, _preferred = _preferred, check(name)
    _forget()
    try:
        yield
    finally:
        _preferred = previous
        _forget()


def fused(name: str, device: "torch.device", opaque: bool = False) -> bool:
    """Whether a public function should call its registered operator; if not, it runs the reference itself.

    In eager mode it should if a backend has a kernel for the device, even if the reference was measured to be faster:
    that depends on the dtype, and is decided when the operator runs. torch.compile traces the reference if there is no
    kernel, unless the operator has to stay `opaque`. torch.export keeps all operators, because the exported program may
    run where there are kernels.

    Args:
        name: the operator. device: that of its tensors.
        opaque: never trace the reference, because it is long, or depends on sizes and would be traced again for each.
    """
    import torch

    if torch.compiler.is_compiling():
        if opaque or torch.compiler.is_exporting():
            return _preferred != "reference"
        return has_kernel(name, device.type)
    known = _fused.get((name, device))  # because the type of a device is a new string every time
    if known is None:
        known = _fused[name, device] = has_kernel(name, device.type)
    return known


def has_kernel(name: str, device_type: str) -> bool:
    """Whether a usable backend has a kernel of the operator for a device type."""
    return (name, device_type) in _kernels_for


def _fused_pairs() -> frozenset[tuple[str, str]]:
    """The pairs (operator, device type) with a kernel under the current preference."""
    types = ("cpu", "cuda", "xpu")
    return frozenset((op, kind) for op in OPERATORS for kind in types if _order(op, kind))


def _order(name: str, device_type: str) -> tuple[str, ...]:
    """Backends to try for an operator on a device type, without the reference; measurements are not considered."""
    if _preferred == "auto":
        order = registry.ORDER.get(device_type, ())
    else:
        asked = BACKENDS.get(_preferred)
        order = (_preferred,) if asked is not None and asked.takes(device_type) else ()
    loaders = OPERATORS[name].loaders
    return tuple(b for b in order if b in loaders and BACKENDS[b].installed())


def _measured_order(name: str, device: "torch.device", dtype: "torch.dtype") -> tuple[str, ...]:
    """Backends to try for an operator; under "auto" in their measured order on this device model."""
    order = _order(name, device.type)
    if _preferred != "auto" or not order:
        return order
    from resshift_fast.backends import autotune_cache

    return autotune_cache.measured_order(order, name, device, dtype)


def measured_algorithms(
    name: str, device: "torch.device", dtype: "torch.dtype", allowed: tuple[str, ...]
) -> Mapping[str, str]:
    """The measured fastest algorithms of an operator's kernel: shape to name, each one `allowed`.

    Kernels call this at every call, so the result is cached; the first call reads the files.

    Args:
        name: the operator. device, dtype: of its first argument. allowed: the kernel's algorithms for this dtype.
    """
    key = (name, device, dtype)
    found = _algorithms.get(key)
    if found is None:
        from resshift_fast.backends import autotune_cache

        found = _algorithms[key] = autotune_cache.algorithms(name, device, dtype, allowed)
    return found


@dataclass(frozen=True)
class _Choice:
    """The implementations of one operator for a device and dtype: verified kernels in order, and plain PyTorch."""

    kernels: tuple[Kernel, ...]
    plain: Callable[..., Any]
    device_type: str
    index: int | None  # of a CUDA device
    current: Callable[[], int | None]  # the current CUDA device's index; None for other devices
    any_autocast: Callable[[], bool]  # on any type of device, which is quicker to ask than for one


_kernels_for: frozenset[tuple[str, str]] = frozenset()
_fused: dict[tuple[str, "torch.device"], bool] = {}
_choices: dict[tuple[Any, ...], _Choice] = {}
_algorithms: dict[tuple[Any, ...], Mapping[str, str]] = {}


def _forget() -> None:
    """Drop the cached choices, because the preference or the kernels have changed."""
    global _kernels_for
    _choices.clear()
    _fused.clear()
    _algorithms.clear()
    _kernels_for = _fused_pairs()


registry.on_change.append(_forget)


def run(name: str, *args: Any) -> Any:
    """Run a registered operator in the first backend that takes the call: the body of every `resshift_fast::` operator.

    Args:
        name: the operator. args: its arguments; the choice depends on the device and dtype of the first, a tensor.
    """
    x = args[0]
    device = x.device
    key = (name, device, x.dtype)
    choice = _choices.get(key) or _choose(key)
    function = choice.plain
    for candidate in choice.kernels:
        if candidate.unsupported(*args) is None:
            function = candidate.function
            break
    if _measuring and function is not choice.plain:
        from resshift_fast.backends import verification

        function = verification.watched(name, function, choice.plain)
    if nvtx.on:
        function = nvtx.marked(name, function)
    if choice.any_autocast() or choice.current() != choice.index:
        return _on_device_without_autocast(choice, function, *args)
    return function(*args)


def _on_device_without_autocast(choice: _Choice, function: Callable[..., Any], *args: Any) -> Any:
    """Call a function with its device as the current one, and without autocast.

    Within plain PyTorch and launchers, autocast would change dtypes that the operator's fake promises.
    """
    import torch

    if choice.current() != choice.index or torch.is_autocast_enabled(choice.device_type):
        with torch.autocast(choice.device_type, enabled=False), on(args[0].device):
            return function(*args)
    return function(*args)


def _choose(key: tuple[Any, ...]) -> _Choice:
    """Make the choice for (operator, device, dtype), verifying kernels that are used for the first time."""
    import torch

    from resshift_fast.backends import verification

    name, device, _ = key
    operator = OPERATORS[name]
    kernels = tuple(operator.loaders[backend]() for backend in _verified(*key))
    index, current = (device.index, torch.cuda.current_device) if device.type == "cuda" else (None, lambda: None)
    choice = _Choice(kernels, operator.plain, device.type, index, current, torch._C._is_any_autocast_enabled)
    if not verification.forbidden():
        _choices[key] = choice
    return choice


def _verified(name: str, device: "torch.device", dtype: "torch.dtype") -> list[str]:
    """Backends to try for an operator, without those that fail their verification."""
    from resshift_fast.backends import verification

    return [b for b in _measured_order(name, device, dtype) if verification.passes(OPERATORS[name], b, device, dtype)]


def chosen(name: str, *args: Any) -> str:
    """Name of the backend in which `run` runs a call; for measurements."""
    found = _verified(name, args[0].device, args[0].dtype)
    return next((b for b in found if kernel(name, b).unsupported(*args) is None), "reference")


def verify(device: "torch.device", dtype: "torch.dtype") -> None:
    """Verify every kernel that inference may call on a device, which is slow the first time.

    Later calls only read the verdicts, which is all that is possible while a CUDA graph is captured or torch.compile
    traces. Kernels are those of the preferred backend. One that fails is disabled, with a warning.

    Args:
        device: of the model. dtype: of its networks; operators on latents are verified in float32.

    Example:
        >>> verify(torch.device("cuda"), torch.bfloat16)
    """
    operators = verified_operators(device, dtype)
    if not operators:
        return
    import torch

    device = torch.empty(0, device=device).device  # with the index that tensors on it have
    for operator, kind in operators:
        _verified(operator.name, device, kind)


def verified_operators(device: "torch.device", dtype: "torch.dtype") -> "list[tuple[Operator, torch.dtype]]":
    """The operators that `verify` verifies, each with the dtype of its verification."""
    found = [o for o in OPERATORS.values() if (o.name, device.type) in _kernels_for and not o.training]
    return [(o, dtype if not o.dtypes or dtype in o.dtypes else o.dtypes[0]) for o in found]


def order(name: str, device: "torch.device", dtype: "torch.dtype") -> tuple[str, ...]:
    """Backends to try for an operator, without those with a verdict that they failed; nothing is verified.

    Args:
        name: the operator. device, dtype: of its first argument.
    """
    from resshift_fast.backends import verification

    sound = ("", verification.PASSED)
    measured = _measured_order(name, device, dtype)
    return tuple(b for b in measured if verification.verdict(OPERATORS[name], b, device, dtype) in sound)


_measuring = 0  # number of active `measuring` blocks, in all threads
_counting = Lock()


@contextmanager
def measuring(timer: "tuning.Timer | None" = None) -> Iterator[None]:
    """Autotune the Triton kernels that this thread calls in the block; no effect without Triton.

    Args:
        timer: as in `kernels.tuning.measuring`.
    """
    global _measuring
    if not descriptions.has_triton():
        yield
        return
    from resshift_fast.kernels import tuning

    with tuning.measuring(timer):
        with _counting:
            _measuring += 1
        try:
            yield
        finally:
            with _counting:
                _measuring -= 1


def is_measuring() -> bool:
    """Whether a thread is within `measuring`."""
    return _measuring > 0
