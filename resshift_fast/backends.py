"""Which implementation of an operator runs: what can run here, and why not.

`reference` is the plain PyTorch path that every other backend is compared with.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

BACKENDS = ("auto", "reference", "cpu", "triton", "cuda")
AVAILABLE = ("auto", "reference")
VARIABLE = "RESSHIFT_FAST_BACKEND"


def check(name: str) -> str:
    """Return `name` if that backend can be chosen here.

    Raises:
        ValueError: for an unknown backend, or for one that this build has no kernels for.
    """
    if name not in BACKENDS:
        raise ValueError(f"unknown backend {name!r}, expected one of {', '.join(BACKENDS)}")
    if name not in AVAILABLE:
        raise ValueError(f"backend {name!r} has no kernels in this build; use 'auto' or 'reference'")
    return name


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


_preferred = "auto"


def preferred() -> str:
    """The backend that was asked for: by `use_backend`, else by RESSHIFT_FAST_BACKEND, else "auto".

    Raises:
        ValueError: if the environment variable names a backend that cannot be chosen.
    """
    if _preferred != "auto":
        return _preferred
    return check(os.environ.get(VARIABLE) or "auto")


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Prefer a backend for every operator called in the block.

    Args:
        name: "auto" or "reference".

    Raises:
        ValueError: as `check`.

    Example:
        >>> with use_backend("reference"):
        ...     pass
    """
    global _preferred
    previous, _preferred = _preferred, check(name)
    try:
        yield
    finally:
        _preferred = previous


def status() -> list[tuple[str, str, str]]:
    """(operator, chosen backend, why) for every operator, in alphabetical order."""
    from resshift_fast import ops

    return [(name, "reference", "the only backend in this build") for name in sorted(ops.__all__)]
