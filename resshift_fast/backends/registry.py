"""The registry of backends, operators and kernels.

A backend is one `Backend` in `descriptions.py`; an operator is one `Operator`, added by the file that registers it.
`dispatch.py` chooses between them.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Backend:
    """A way to run operators other than plain PyTorch.

    Args:
        name: its name in `use_backend`, and the key of its kernels in an operator's loaders.
        device_types: the device types on which "auto" tries it.
        takes: whether it takes tensors of a device type if it is preferred by name.
        installed: whether what it needs is installed; called often, so it should cache.
        missing: why it cannot run on this machine, or None if it can.
    """

    name: str
    device_types: tuple[str, ...]
    takes: Callable[[str], bool]
    installed: Callable[[], bool]
    missing: Callable[[], str | None]


@dataclass(frozen=True)
class Algorithms:
    """The algorithms of a kernel that has several and chooses one by the shape of a call.

    Args:
        functions: maps the dtype of the first argument to the algorithms that are accurate enough for it, by name; each
            takes the kernel's arguments.
        shape: maps the operator's arguments to the key under which measurements are stored.
        default: maps the same arguments to the name of the algorithm that runs without a measurement.
    """

    functions: "Callable[[torch.dtype], dict[str, Callable[..., Any]]]"
    shape: Callable[..., str]
    default: Callable[..., str]


@dataclass(frozen=True)
class Kernel:
    """One backend's implementation of one operator.

    Args:
        function: takes the registered operator's arguments and returns its outputs.
        unsupported: takes the same arguments; returns None if `function` can take them, else the reason in a few words.
        algorithms: those between which `function` chooses; None if it has only one.
    """

    function: Callable[..., Any]
    unsupported: Callable[..., str | None] = lambda *_: None
    algorithms: Algorithms | None = None


@dataclass(frozen=True)
class Operator:
    """A registered operator, as far as dispatch and verification need it.

    Args:
        name: as in `torch.ops.resshift_fast`.
        plain: the operator in plain PyTorch, with the registered arguments and outputs.
        examples: maps (device, dtype) to small arguments on which a backend is verified against `plain`.
        loaders: maps a backend to the function that loads its kernel.
        dtypes: the dtypes that it takes, of which a model in any other uses the first; empty for all floating-point
            dtypes.
        training: whether it is only called in training.
        public: whether `resshift_fast.ops` exports it; backward operators are not exported.
        matrix_operations: a FLOP formula of its matrix products for `torch.utils.flop_counter.register_flop_formula`:
            takes the operator's arguments, with shapes for tensors, and `out_shape`; None if there are none.
    """

    name: str
    plain: Callable[..., Any]
    examples: Callable[..., list[tuple[Any, ...]]]
    loaders: dict[str, Callable[[], Kernel]] = field(default_factory=dict)
    dtypes: "tuple[torch.dtype, ...]" = ()
    training: bool = False
    matrix_operations: Callable[..., int] | None = None
    public: bool = True


BACKENDS: dict[str, Backend] = {}
ORDER: dict[str, tuple[str, ...]] = {}  # device type to the backends that "auto" tries before the reference
OPERATORS: dict[str, Operator] = {}
on_change: list[Callable[[], None]] = []  # called after an operator was added, to invalidate cached choices


def names() -> tuple[str, ...]:
    """The names that `use_backend` takes."""
    return ("auto", "reference", *sorted(BACKENDS))


def add_backend(backend: Backend) -> Backend:
    """Register a backend; "auto" tries backends in the order of their registration."""
    BACKENDS[backend.name] = backend
    for kind in backend.device_types:
        ORDER[kind] = (*ORDER.get(kind, ()), backend.name)
    return backend


def add(operator: Operator) -> None:
    """Register an operator; it replaces an earlier one of the same name."""
    OPERATORS[operator.name] = operator
    for changed in on_change:
        changed()


def unavailable(backend: str) -> str | None:
    """Why a backend cannot run on this machine, or None if it can.

    Raises:
        ValueError: for an unknown backend.
    """
    if backend not in names():
        raise ValueError(f"unknown backend {backend!r}, expected one of {', '.join(names())}")
    if backend not in BACKENDS:
        return None
    if OPERATORS and not any(backend in operator.loaders for operator in OPERATORS.values()):
        return "has no kernels in this build; use 'auto' or 'reference'"
    return BACKENDS[backend].missing()


def check(backend: str) -> str:
    """Return `backend` if it can be chosen here.

    Raises:
        ValueError: for an unknown backend, or one that cannot run here, with the reason.
    """
    if reason := unavailable(backend):
        raise ValueError(f"backend {backend!r} {reason}")
    return backend


def kernel(name: str, backend: str) -> Kernel:
    """One backend's kernel for an operator, without verification; for checks and measurements.

    Raises:
        KeyError: if there is none.
    """
    return OPERATORS[name].loaders[backend]()


def candidates(name: str, device_type: str) -> tuple[str, ...]:
    """Usable backends with a kernel for an operator on a device type, in the order of "auto", without the reference."""
    loaders = OPERATORS[name].loaders
    return tuple(b for b in ORDER.get(device_type, ()) if b in loaders and unavailable(b) is None)
