"""Which implementation of an operator runs: what can run here, and why not.

`reference` is the plain PyTorch path that every other backend is compared with. `auto` takes, for every operator and
call, the first backend of `ORDER` that has a kernel for it, runs here, takes the call's arguments and has been
verified (`verification.py`); the reference takes what is left. Where somebody has measured which is the fastest
(`preferences.py`), that order stands in place of `ORDER`, and a preferred backend in place of both.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from threading import Lock
from typing import TYPE_CHECKING, Any

from resshift_fast import native, ranges

if TYPE_CHECKING:
    import torch

    from resshift_fast.kernels import tuning

BACKENDS = ("auto", "reference", "cpu", "triton", "cuda")
ORDER = {"cuda": ("cuda", "triton"), "cpu": ("cpu",), "xpu": ("triton",)}  # by device type, before the reference
VARIABLE = "RESSHIFT_FAST_BACKEND"


@dataclass(frozen=True)
class Algorithms:
    """The ways in which a kernel can compute its results, between which it chooses by the shape of a call.

    Args:
        functions: dtype of the first argument to the ways that are exact enough for it: name to the function, which
            takes what the kernel takes.
        shape: the operator's arguments to the name by which measurements are stored.
        default: the same arguments to the way that is taken where nothing was measured.
    """

    functions: "Callable[[torch.dtype], dict[str, Callable[..., Any]]]"
    shape: Callable[..., str]
    default: Callable[..., str]


@dataclass(frozen=True)
class Kernel:
    """One backend's implementation of one operator.

    Args:
        function: takes the registered operator's arguments and returns its outputs.
        unsupported: takes the same arguments; returns None if `function` can take them, else why not in a few words.
        algorithms: between which `function` chooses by measurements; None if there is nothing to choose.
    """

    function: Callable[..., Any]
    unsupported: Callable[..., str | None] = lambda *_: None
    algorithms: Algorithms | None = None


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

    Eagerly that needs a backend with a kernel for the device, also where the reference was measured to be faster: that
    depends on the dtype, and is settled when the operator runs. While torch.compile traces, the reference is traced
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
    return has_kernel(name, device_type)


def has_kernel(name: str, device_type: str) -> bool:
    """Whether some backend has a kernel of an operator for a type of device: what it fuses is worth asking for."""
    return (name, device_type) in _kernels_for


def _fused_pairs() -> frozenset[tuple[str, str]]:
    """(operator, device type) that have a kernel under the current preference."""
    types = ("cpu", "cuda", "xpu")
    return frozenset((op, kind) for op in OPERATORS for kind in types if _order(op, kind))


def _order(name: str, device_type: str) -> tuple[str, ...]:
    """Backends to try for an operator on a type of device, unless measured otherwise, the reference left out."""
    if _preferred == "auto":
        order = ORDER.get(device_type, ())
    elif _preferred == "triton":
        order = ("triton",) if device_type != "cpu" or _interpreted() else ()
    else:
        order = (_preferred,) if _preferred == device_type else ()
    loaders = OPERATORS[name].loaders
    return tuple(b for b in order if b in loaders and _is_installed(b))


def _ranked(name: str, device: "torch.device", dtype: "torch.dtype") -> tuple[str, ...]:
    """Backends to try for an operator, as measured on this model of device where "auto" is to choose."""
    order = _order(name, device.type)
    if _preferred != "auto" or not order:
        return order
    from resshift_fast import preferences

    return preferences.ranked(order, name, device, dtype)


def measured_algorithms(
    name: str, device: "torch.device", dtype: "torch.dtype", allowed: tuple[str, ...]
) -> Mapping[str, str]:
    """The algorithms that were measured to be the fastest in an operator's kernel: shape to name, each one `allowed`.

    For a kernel, which asks at every call; files are read for the first.
    """
    key = (name, device, dtype)
    found = _algorithms.get(key)
    if found is None:
        from resshift_fast import preferences

        found = _algorithms[key] = preferences.algorithms(name, device, dtype, allowed)
    return found


def candidates(name: str, device_type: str) -> tuple[str, ...]:
    """Backends between which "auto" chooses for an operator on a type of device, the reference left out."""
    loaders = OPERATORS[name].loaders
    return tuple(b for b in ORDER.get(device_type, ()) if b in loaders and unavailable(b) is None)


@dataclass(frozen=True)
class _Choice:
    """What may run for one operator, device and dtype: verified kernels in order, and plain PyTorch."""

    kernels: tuple[Kernel, ...]
    plain: Callable[..., Any]
    device_type: str
    index: int | None  # of a CUDA device


_kernels_for: frozenset[tuple[str, str]] = frozenset()
_choices: dict[tuple, _Choice] = {}
_algorithms: dict[tuple, Mapping[str, str]] = {}


def _forget() -> None:
    """Have the choice made anew: the preference or the kernels have changed."""
    global _kernels_for
    _choices.clear()
    _algorithms.clear()
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
    if _measuring and function is not choice.plain:
        from resshift_fast import verification

        function = verification.watched(name, function, choice.plain)
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

    name, device, _ = key
    operator = OPERATORS[name]
    kernels = tuple(operator.loaders[backend]() for backend in _verified(*key))
    choice = _Choice(kernels, operator.plain, device.type, device.index if device.type == "cuda" else None)
    if not verification.forbidden():
        _choices[key] = choice
    return choice


def _verified(name: str, device: "torch.device", dtype: "torch.dtype") -> list[str]:
    """Backends to try for an operator, those left out that fail their verification."""
    from resshift_fast import verification

    return [b for b in _ranked(name, device, dtype) if verification.passes(OPERATORS[name], b, device, dtype)]


def chosen(name: str, *args: Any) -> str:
    """The backend in which `run` runs a call, "reference" if in none: for measurements."""
    found = _verified(name, args[0].device, args[0].dtype)
    return next((b for b in found if kernel(name, b).unsupported(*args) is None), "reference")


def verify(device: "torch.device", dtype: "torch.dtype") -> None:
    """Verify every kernel that a model may call on a device, in training apart, which is slow at the first time.

    Later calls only read the verdicts, also where nothing can be verified: while a CUDA graph is captured or
    torch.compile traces. Kernels are those of the preferred backend. One that fails is left off, with a warning.

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
    """The operators that `verify` looks at, each with the dtype in which it does."""
    found = [o for o in _operators() if (o.name, device.type) in _kernels_for and not o.training]
    return [(o, dtype if not o.dtypes or dtype in o.dtypes else o.dtypes[0]) for o in found]


def order(name: str, device: "torch.device", dtype: "torch.dtype") -> tuple[str, ...]:
    """Backends to try for an operator, those left out that are known to have failed; none is run for it."""
    from resshift_fast import verification

    sound = ("", verification.PASSED)
    ranked = _ranked(name, device, dtype)
    return tuple(b for b in ranked if verification.verdict(OPERATORS[name], b, device, dtype) in sound)


def kernel(name: str, backend: str) -> Kernel:
    """One backend's kernel for an operator, unverified: for proofs and measurements.

    Raises:
        KeyError: if there is none.
    """
    return OPERATORS[name].loaders[backend]()


_measuring = 0  # blocks that threads are in, whose calls are watched
_counting = Lock()


@contextmanager
def measuring(timer: "tuning.Timer | None" = None) -> Iterator[None]:
    """Have this thread's kernels choose their configurations by timing them; nothing where there is no Triton.

    Args:
        timer: as in `kernels.tuning.measuring`.
    """
    global _measuring
    if not _has_triton():
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


def _operators() -> list[Operator]:
    from resshift_fast import ops  # noqa: F401  registers them

    return list(OPERATORS.values())


@dataclass(frozen=True)
class Decision:
    """Which backend runs an operator, and why, in words.

    Args:
        operator: its name. backend: the first that is tried; others may take calls that it doesn't.
        reason: why that one, and what keeps others from running.
        dtypes: for which dtypes of the first argument this holds; none where it does for all.
    """

    operator: str
    backend: str
    reason: str
    dtypes: tuple[str, ...] = ()


def status(device: "str | torch.device" = "cpu") -> list[Decision]:
    """What is decided for every public operator on a device, in alphabetical order; nothing is run for it."""
    import torch

    from resshift_fast import ops

    device, decisions = torch.device(device), []
    for name in sorted(ops.__all__):
        found: dict[tuple[str, str], list[str]] = {}
        usual = (torch.float32, torch.bfloat16, torch.float16)
        dtypes = [d for d in OPERATORS[name].dtypes if d != torch.float64] or usual
        for dtype in dtypes:
            found.setdefault(_decided(name, device, dtype), []).append(str(dtype).removeprefix("torch."))
        decisions += [Decision(name, *how, tuple(of) if len(found) > 1 else ()) for how, of in found.items()]
    return decisions


def _decided(name: str, device: "torch.device", dtype: "torch.dtype") -> tuple[str, str]:
    """(backend, reason) for an operator, device and dtype."""
    from resshift_fast import preferences, verification

    operator, off = OPERATORS[name], {}
    tried = [b for b in _ranked(name, device, dtype) if unavailable(b) is None]
    for backend in tried:
        verdict = verification.verdict(operator, backend, device, dtype)
        if verdict not in ("", verification.PASSED):
            off[backend] = f"off: verification failed: {verdict}"
    backend = next((b for b in tried if b not in off), "reference")
    measured = preferences.find(name, device, dtype) if _preferred == "auto" and operator.loaders else None
    if measured is not None:
        off = {b: f"refused when measured: {why}" for b, why in measured.refused.items()} | off
    if measured is not None and backend in measured.order:
        reason = f"fastest of {', '.join(measured.order)} as measured ({measured.path})"
        others = [b for b in ORDER.get(device.type, ()) if b in operator.loaders and b not in measured.order]
    else:
        reason = _reason(backend, operator, device.type)
        others = list(operator.loaders) if backend == "reference" else ORDER.get(device.type, ())
        others = [b for b in others if b in operator.loaders and _preferred in ("auto", b)]
    why = {b: unavailable(b) or (b not in tried and f"does not take {device.type} tensors") for b in others}
    why = {b: words for b, words in why.items() if words} | off
    return backend, "; ".join(filter(None, (reason, *(f"{b} {words}" for b, words in why.items()))))


def _reason(backend: str, operator: Operator, device_type: str) -> str:
    """Why a backend is chosen that nobody has measured; empty if only because no other can run."""
    if _preferred == backend:
        return f"preferred by {VARIABLE}" if os.environ.get(VARIABLE) == backend else "preferred by use_backend"
    if backend != "reference":
        return f"the first that runs on {device_type}"
    if not operator.loaders:
        return "PyTorch's own kernel; no other is built"
    return "" if _preferred in ("auto", *operator.loaders) else f"has no kernel in the preferred backend {_preferred}"
