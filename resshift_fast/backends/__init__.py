"""The choice of an operator's implementation: registry, dispatch, verification, autotune cache and report.

This package imports no operator: each one registers itself when `resshift_fast.ops` is imported.
"""

from resshift_fast.backends.dispatch import (
    VARIABLE,
    chosen,
    fused,
    has_kernel,
    is_measuring,
    measured_algorithms,
    measuring,
    order,
    preferred,
    run,
    use_backend,
    verified_operators,
    verify,
)
from resshift_fast.backends.registry import (
    OPERATORS,
    Algorithms,
    Backend,
    Kernel,
    Operator,
    add,
    candidates,
    check,
    kernel,
    names,
    unavailable,
)
from resshift_fast.backends.report import Decision, status

__all__ = [
    "OPERATORS",
    "VARIABLE",
    "Algorithms",
    "Backend",
    "Decision",
    "Kernel",
    "Operator",
    "add",
    "candidates",
    "check",
    "chosen",
    "fused",
    "has_kernel",
    "is_measuring",
    "kernel",
    "measured_algorithms",
    "measuring",
    "names",
    "order",
    "preferred",
    "run",
    "status",
    "unavailable",
    "use_backend",
    "verified_operators",
    "verify",
]
