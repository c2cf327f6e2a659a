"""Which implementation of an operator runs: what can run here, and why not.

`reference` is the plain PyTorch path that every other backend is compared with.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

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
