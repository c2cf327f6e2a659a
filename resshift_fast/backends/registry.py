"""What there is to choose from: backends, operators, and the kernels of the ones for the others.

A backend is one `Backend` in `descriptions.py`; an operator is one `Operator`, added by the file that registers it.
Nothing here decides which kernel runs; `dispatch.py` does.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Backend:
    """A way to run operators that is not plain PyTorch.

    Args:
        name: by which it is asked for, and by which an operator's loaders know it.
        device_types: on whose tensors "auto" tries it.
        takes: whether it takes the tensors of a type of device when it is asked for by name.
        installed: whether what it needs is installed here; asked often.
        missing: why it cannot run on this machine, or None if it can.
    """

    name: str
    device_types: tuple[str, ...]
    takes: Callable[[str], bool]
    installed: Callable[[], bool]
    missing: Callable[[], str | None]


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
        public: whether `resshift_fast.ops` has it; the gradients of others are operators too.
        matrix_operations: the operator's arguments, shapes for tensors, and `out_shape` to the multiplications and
            additions of its matrix products, as `torch.utils.flop_counter.register_flop_formula` wants; None for none.
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
ORDER: dict[str, tuple[str, ...]] = {}  # type of device to the backends that "auto" tries, before the reference
OPERATORS: dict[str, Operator] = {}
on_change: list[Callable[[], None]] = []  # called when an operator was added: choices have to be made anew


def names() -> tuple[str, ...]:
    """What `use_backend` takes."""
    return ("auto", "reference", *sorted(BACKENDS))


def add_backend(backend: Backend) -> Backend:
    """Make a backend known, after those that "auto" is to try before it."""
    BACKENDS[backend.name] = backend
    for kind in backend.device_types:
        ORDER[kind] = (*ORDER.get(kind, ()), backend.name)
    return backend


def add(operator: Operator) -> None:
    """Make an operator known; a second one of the same name takes the first one's place."""
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
    """One backend's kernel for an operator, unverified: for proofs and measurements.

    Raises:
        KeyError: if there is none.
    """
    return OPERATORS[name].loaders[backend]()


def candidates(name: str, device_type: str) -> tuple[str, ...]:
    """Backends between which "auto" chooses for an operator on a type of device, the reference left out."""
    loaders = OPERATORS[name].loaders
    return tuple(b for b in ORDER.get(device_type, ()) if b in loaders and unavailable(b) is None)
