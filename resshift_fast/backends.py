"""Which implementation of an operator runs: what can run here, and why not.

`reference` is the plain PyTorch path that every other backend is compared with. `auto` takes, for every operator and
call, the first backend of `ORDER` that has a kernel for it, runs here, takes the call's arguments and has been
verified (`verification.py`); the reference takes what is left. A preferred backend stands in place of `ORDER`.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from resshift_fast import native, ranges

if TYPE_CHECKING:
    import torch

BACKENDS = ("auto", "reference", "cpu", "triton", "cuda")
ORDER = {"cuda": ("cuda", "triton"), "cpu": ("cpu",), "xpu": ("triton",)}  # by device type, before the reference
VARIABLE = "RESSHIFT_FAST_BACKEND"


@dataclass(frozen=True)
class Kernel:
    """One backend's implementation of one operator.

    Args:
        function: takes the registered operator's arguments and returns its outputs.
        unsupported: takes the same arguments; returns None if `function` can take them, else why not in a few words.
    """

    function: Callable[..., Any]
    unsupported: Callable[..., str | None] = lambda *_: None


@dataclass(frozen=True)
class Operator:
    """What the choice between backends needs to know of a registered operator.

    Args:
        name: as in `torch.ops.resshift_fast`.
        plain: the operator in plain PyTorch: the registered arguments, the registered outputs.
        examples: (device, dtype) to small arguments on which a backend is verified against `plain`.
        loaders: backend to the function that loads its kernel.
        dtypes: those that it takes, the first for a model in another one; none for every floating-point dtype.
        training: whether only training calls it.
        matrix_operations: the operator's arguments, shapes for tensors, and `out_shape` to the multiplications and
            additions of its matrix products, as `torch.utils.flop_counter.register_flop_formula` wants; None for none.
    """

    name: str
    plain: Callable[..., Any]
    examples: Callable[..., list[tuple]]
    loaders: dict[str, Callable[[], Kernel]] = field(default_factory=dict)
    dtypes: "tuple[torch.dtype, ...]" = ()
    training: bool = False
    matrix_operations: Callable[..., int] | None = None


OPERATORS: dict[str, Operator] = {}


def add(operator: Operator) -> None:
    """Make an operator known; a second one of the same name takes the first one's place."""
    OPERATORS[operator.name] = operator
    _forget()


def unavailable(backend: str) -> str | None:
    """Why a backend cannot run on this machine, or None if it can.

    Raises:
        ValueError: for an unknown backend.
    """
    if backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r}, expected one of {', '.join(BACKENDS)}")
    if backend in ("auto", "reference"):
        return None
    if not any(backend in operator.loaders for operator in _operators()):
        return "has no kernels in this build; use 'auto' or 'reference'"
    if backend == "triton" and not _has_triton():
        return "needs Triton, which is not installed; pip install triton"
    if backend in native.LIBRARIES and (reason := native.missing(backend)):
        return reason
    if backend in ("triton", "cuda") and not (_has_gpu() or backend == "triton" and _interpreted()):
        return "needs a GPU that this build of torch can use; torch.cuda.is_available() is False"
    return None


def check(backend: str) -> str:
    """Return `backend` if it can be chosen here.

    Raises:
        ValueError: for an unknown backend, or one that cannot run here, with the reason.
    """
    if reason := unavailable(backend):
        raise ValueError(f"backend {backend!r} {reason}")
    return backend


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


def _is_installed(backend: str) -> bool:
    return _has_triton() if backend == "triton" else native.missing(backend) is None


@cache
def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available() or (hasattr(torch, "xpu") and torch.xpu.is_available())


def _interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels, which then take CPU tensors."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def usable_device(device: "str | torch.device | None") -> "torch.device":
    """The device, after a number was put on it and read back; None takes CUDA where it works, else the CPU.

    Raises:
        ValueError: if it cannot be used here, with the reason.
    """
    import torch

    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(device)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"device {str(device)!r} cannot be used here: {reason}; use device='cpu'") from None
    return device


# A plain global, because torch.compile guards on one; it is not checked before it is used, so that importing with a
# bad value in the environment doesn't fail.
_preferred = os.environ.get(VARIABLE) or "auto"


def preferred() -> str:
    """The backend that was asked for: by `use_backend`, else by RESSHIFT_FAST_BACKEND, else "auto".

    Raises:
        ValueError: if the environment variable names a backend that cannot be chosen.
    """
    return check(_preferred)


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Prefer a backend for every operator called in the block, in all threads.

    An operator without a kernel of that backend runs the reference.

    Args:
        name: "auto", "reference", "cpu", "triton" or "cuda".

    Raises:
        ValueError: as `check`.

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


def fused(name: str, device_type: str, opaque: bool = False) -> bool:
    """Whether a public function calls its registered operator; else it runs the reference itself.

    Eagerly that needs a backend with a kernel for the device. While torch.compile traces, the reference is traced
    instead if there is none, unless the operator is to stay `opaque`. torch.export keeps all of them, because the
    exported program may run where there are kernels.

    Args:
        name: the operator. device_type: "cuda" and so on, of its tensors.
        opaque: whether tracing the reference is to be avoided: it decides by sizes and would be traced anew for each,
            or is long.
    """
    import torch

    if torch.compiler.is_compiling() and (opaque or torch.compiler.is_exporting()):
        return _preferred != "reference"
    return (name, device_type) in _kernels_for


def _fused_pairs() -> frozenset[tuple[str, str]]:
    """(operator, device type) that have a kernel under the current preference."""
    types = ("cpu", "cuda", "xpu")
    return frozenset((op, kind) for op in OPERATORS for kind in types if _order(op, kind))


def _order(name: str, device_type: str) -> tuple[str, ...]:
    """Backends to try for an operator on a type of device, the reference left out."""
    if _preferred == "auto":
        order = ORDER.get(device_type, ())
    elif _preferred == "triton":
        order = ("triton",) if device_type != "cpu" or _interpreted() else ()
    else:
        order = (_preferred,) if _preferred == device_type else ()
    loaders = OPERATORS[name].loaders
    return tuple(b for b in order if b in loaders and _is_installed(b))


@dataclass(frozen=True)
class _Choice:
    """What may run for one operator, device and dtype: verified kernels in order, and plain PyTorch."""

    kernels: tuple[Kernel, ...]
    plain: Callable[..., Any]
    device_type: str
    index: int | None  # of a CUDA device


_kernels_for: frozenset[tuple[str, str]] = frozenset()
_choices: dict[tuple, _Choice] = {}


def _forget() -> None:
    """Have the choice made anew: the preference or the kernels have changed."""
    global _kernels_for
    _choices.clear()
    _kernels_for = _fused_pairs()


def run(name: str, *args: Any) -> Any:
    """Run a registered operator in the first backend that takes the call: the body of every `resshift_fast::` operator.

    Args:
        name: the operator. args: its arguments; the first is a tensor, whose device and dtype decide.
    """
    import torch

    x = args[0]
    device = x.device
    key = (name, device, x.dtype)
    choice = _choices.get(key) or _choose(key)
    function = choice.plain
    for candidate in choice.kernels:
        if candidate.unsupported(*args) is None:
            function = candidate.function
            break
    if ranges.on:
        function = ranges.marked(name, function)
    # Autocast would give other dtypes than the operator promises, in plain PyTorch and where a launcher calls it.
    elsewhere = choice.index is not None and choice.index != torch.cuda.current_device()
    if elsewhere or torch.is_autocast_enabled(choice.device_type):
        with torch.autocast(choice.device_type, enabled=False), on(device):
            return function(*args)
    return function(*args)


def on(device: "torch.device") -> AbstractContextManager:
    """Context in which a CUDA device is the current one: kernels are launched there, wherever their tensors are."""
    import torch

    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _choose(key: tuple) -> _Choice:
    """The choice for (operator, device, dtype); verifies kernels met for the first time."""
    from resshift_fast import verification

    name, device, dtype = key
    operator = OPERATORS[name]
    found = [b for b in _order(name, device.type) if verification.passes(operator, b, device, dtype)]
    kernels = tuple(operator.loaders[backend]() for backend in found)
    choice = _Choice(kernels, operator.plain, device.type, device.index if device.type == "cuda" else None)
    if not verification.forbidden():
        _choices[key] = choice
    return choice


def verify(device: "torch.device", dtype: "torch.dtype") -> None:
    """Verify every kernel that a model may call on a device, in training apart, which is slow at the first time.

    Later calls only read the verdicts, also where nothing can be verified: while a CUDA graph is captured or
    torch.compile traces. Kernels are those of the preferred backend. One that fails is left off, with a warning.

    Args:
        device: of the model. dtype: of its networks; operators on latents are verified in float32.

    Example:
        >>> verify(torch.device("cuda"), torch.bfloat16)
    """
    operators = [o for o in _operators() if (o.name, device.type) in _kernels_for and not o.training]
    if not operators:
        return
    import torch

    from resshift_fast import verification

    device = torch.empty(0, device=device).device  # with the index that tensors on it have
    for operator in operators:
        kind = dtype if not operator.dtypes or dtype in operator.dtypes else operator.dtypes[0]
        for backend in _order(operator.name, device.type):
            verification.passes(operator, backend, device, kind)


def kernel(name: str, backend: str) -> Kernel:
    """One backend's kernel for an operator, unverified: for proofs and measurements.

    Raises:
        KeyError: if there is none.
    """
    return OPERATORS[name].loaders[backend]()


def measuring() -> AbstractContextManager:
    """Context in which kernels choose their configurations by timing them; nothing where there is no Triton."""
    if not _has_triton():
        return nullcontext()
    from resshift_fast.kernels import tuning

    return tuning.measuring()


def _operators() -> list[Operator]:
    from resshift_fast import ops  # noqa: F401  registers them

    return list(OPERATORS.values())


def status(device_type: str = "cpu") -> list[tuple[str, str, str]]:
    """(operator, chosen backend, why) for every public operator on a type of device, in alphabetical order."""
    from resshift_fast import ops

    rows = []
    for name in sorted(ops.__all__):
        chosen = next((b for b in _order(name, device_type) if unavailable(b) is None), "reference")
        rows.append((name, chosen, _reason(name, chosen, device_type)))
    return rows


def _reason(name: str, chosen: str, device_type: str) -> str:
    if chosen != "reference":
        return "preferred" if _preferred == chosen else f"the first that runs on {device_type}"
    if _preferred == "reference":
        return "preferred"
    loaders = OPERATORS[name].loaders
    if not loaders:
        return "PyTorch's own kernel; no other is built"
    others = [f"{b} {unavailable(b) or f'does not take {device_type} tensors'}" for b in loaders]
    return "; ".join(others)
