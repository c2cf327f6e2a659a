"""The report of `resshift-fast doctor`: which backend runs each operator here, and why."""

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from resshift_fast.backends import autotune_cache, dispatch, registry, verification
from resshift_fast.backends.registry import OPERATORS, Operator

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Decision:
    """Which backend runs an operator, and why.

    Args:
        operator: its name. backend: the first that is tried; others may take calls that it doesn't.
        reason: why it is chosen, and why others cannot run.
        dtypes: the dtypes of the first argument for which this holds; empty for all.
    """

    operator: str
    backend: str
    reason: str
    dtypes: tuple[str, ...] = ()


def status(device: "str | torch.device" = "cpu") -> list[Decision]:
    """The decisions for all public operators on a device, in alphabetical order; no kernel is run."""
    import torch

    device, decisions = torch.device(device), []
    for name in sorted(name for name, operator in OPERATORS.items() if operator.public):
        found: dict[tuple[str, str], list[str]] = {}
        usual = (torch.float32, torch.bfloat16, torch.float16)
        dtypes = [d for d in OPERATORS[name].dtypes if d != torch.float64] or usual
        for dtype in dtypes:
            found.setdefault(_decided(name, device, dtype), []).append(str(dtype).removeprefix("torch."))
        decisions += [Decision(name, *how, tuple(of) if len(found) > 1 else ()) for how, of in found.items()]
    return decisions


def _decided(name: str, device: "torch.device", dtype: "torch.dtype") -> tuple[str, str]:
    """(backend, reason) for an operator, device and dtype."""
    operator, off = OPERATORS[name], {}
    tried = [b for b in dispatch._measured_order(name, device, dtype) if registry.unavailable(b) is None]
    for backend in tried:
        verdict = verification.verdict(operator, backend, device, dtype)
        if verdict not in ("", verification.PASSED):
            off[backend] = f"off: verification failed: {verdict}"
    backend = next((b for b in tried if b not in off), "reference")
    measured = autotune_cache.find(name, device, dtype) if dispatch._preferred == "auto" and operator.loaders else None
    if measured is not None:
        off = {b: f"refused when measured: {why}" for b, why in measured.refused.items()} | off
    if measured is not None and backend in measured.order:
        reason = f"fastest of {', '.join(measured.order)} as measured ({measured.path})"
        others = [b for b in registry.ORDER.get(device.type, ()) if b in operator.loaders and b not in measured.order]
    else:
        reason = _reason(backend, operator, device.type)
        known = tuple(operator.loaders) if backend == "reference" else registry.ORDER.get(device.type, ())
        others = [b for b in known if b in operator.loaders and dispatch._preferred in ("auto", b)]
    reasons = {
        b: registry.unavailable(b) or (b not in tried and f"does not take {device.type} tensors") for b in others
    }
    why = {b: words for b, words in reasons.items() if words} | off
    return backend, "; ".join(filter(None, (reason, *(f"{b} {words}" for b, words in why.items()))))


def _reason(backend: str, operator: Operator, device_type: str) -> str:
    """Why a backend without a measurement is chosen; empty if no other can run."""
    asked = dispatch._preferred
    if asked == backend:
        by_environment = os.environ.get(dispatch.VARIABLE) == backend
        return f"preferred by {dispatch.VARIABLE}" if by_environment else "preferred by use_backend"
    if backend != "reference":
        return f"the first that runs on {device_type}"
    if not operator.loaders:
        return "PyTorch's own kernel; no other is built"
    return "" if asked in ("auto", *operator.loaders) else f"has no kernel in the preferred backend {asked}"
