"""Checks and measures one call of an operator: error, time and memory, forward and backward.

All functions take a `Provider`'s function and a dictionary of arguments, and do not depend on the operator.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resshift_fast.core.accuracy import errors, limits
from resshift_fast.measure import timing
from resshift_fast.measure.counting import Counter, total

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # some builds of torch print two lines for every profile otherwise

import torch
from torch import Tensor

Arguments = dict[str, Any]
Function = Callable[..., Any]


@dataclass(frozen=True)
class Check:
    """The result of an equivalence check, for the tensor with the largest error relative to its limit.

    Args:
        error, allowed: relative errors against float64; None if there was nothing to compare.
        problem: what is wrong, naming the tensor; empty if nothing is.
    """

    error: float | None
    allowed: float | None
    problem: str = ""


def differentiable(arguments: Arguments, names: Sequence[str]) -> Arguments:
    """The arguments, with new leaves that require gradients for those of `names` that are given."""
    fresh = {name: arguments[name].detach().requires_grad_() for name in names if arguments[name] is not None}
    return arguments | fresh


def in_double(arguments: Arguments) -> Arguments:
    """The same values in float64, and float64 in place of a dtype argument."""

    def convert(value: Any) -> Any:
        if isinstance(value, Tensor) and value.is_floating_point():
            return value.double()
        return torch.float64 if isinstance(value, torch.dtype) else value

    return {name: convert(value) for name, value in arguments.items()}


def tensors(outputs: Any) -> list[Tensor]:
    """An operator's outputs as a list, without one that is None, or empty where a registered operator leaves it out."""
    return [y for y in ([outputs] if isinstance(outputs, Tensor) else outputs) if y is not None and y.numel()]


def output_weights(outputs: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """The gradient of every floating-point output: normal values in the precision of `dtype`."""
    torch.manual_seed(1)
    return [torch.randn_like(y, dtype=torch.float32).to(dtype).to(y.dtype) for y in _floating(outputs)]


def _floating(outputs: Sequence[Tensor]) -> list[Tensor]:
    return [y for y in outputs if y.is_floating_point()]


def gradients(outputs: Sequence[Tensor], arguments: Arguments, weights: Sequence[Tensor]) -> list[Tensor | None]:
    """Gradients of the arguments that require one; None for those that no output depends on."""
    wanted = [x for x in arguments.values() if isinstance(x, Tensor) and x.requires_grad]
    pairs = [(y, w.to(y.dtype)) for y, w in zip(_floating(outputs), weights, strict=True) if y.requires_grad]
    return list(torch.autograd.grad([y for y, _ in pairs], wanted, [w for _, w in pairs], allow_unused=True))


def results(function: Function, arguments: Arguments, names: Sequence[str], weights: Any) -> dict[str, Tensor]:
    """Outputs by name, and the gradients of `names` too unless `weights` is None."""
    if weights is None:
        with torch.no_grad():
            return {f"output {i}": y for i, y in enumerate(tensors(function(**arguments)))}
    arguments = differentiable(arguments, names)
    outputs = tensors(function(**arguments))
    found = gradients(outputs, arguments, weights)
    wanted = [name for name in names if arguments[name] is not None]
    named = {
        f"gradient of {name}": torch.zeros_like(arguments[name]) if gradient is None else gradient
        for name, gradient in zip(_in_order(arguments, wanted), found, strict=True)
    }
    return {f"output {i}": y.detach() for i, y in enumerate(outputs)} | named


def _in_order(arguments: Arguments, names: Sequence[str]) -> list[str]:
    return [name for name in arguments if name in names]


def compare(ours: dict[str, Tensor], plain: dict[str, Tensor], exact: dict[str, Tensor]) -> Check:
    """Compare a provider's results with those of the plain path in the same dtype and with float64.

    Limits are those of `resshift_fast.core.accuracy`: a fixed one for float32 tensors, twice the plain path's error for
    16-bit ones; integers must be equal. Any NaN fails.
    """
    if ours.keys() != plain.keys():
        return Check(None, None, f"returned {', '.join(ours)}; expected {', '.join(plain)}")
    worst, worst_ratio = Check(None, None), -1.0
    for name, x in ours.items():
        like = plain[name]
        if x.shape != like.shape or x.dtype != like.dtype:
            return Check(None, None, f"{name} is {x.dtype} {tuple(x.shape)}, expected {like.dtype} {tuple(like.shape)}")
        if not x.is_floating_point():
            if different := (x != exact[name]).double().mean().item():
                return Check(different, 0.0, f"{name}: {different:.1%} of its values differ")
            continue
        found = errors(x, exact[name])
        allowed = limits(x.dtype, errors(like, exact[name]))
        if problem := found.problem(allowed):
            return Check(found.relative, allowed.relative, f"{name}: {problem}")
        if found.relative / allowed.relative > worst_ratio:
            worst, worst_ratio = Check(found.relative, allowed.relative), found.relative / allowed.relative
    return worst


def ready(function: Function, arguments: Arguments, names: Sequence[str], weights: Any) -> Callable[[], Function]:
    """A function to call before each timed run; it returns the function without arguments that is timed.

    Without weights that is the forward pass, else the backward pass after an untimed forward pass. A graph is used
    once, because a compiled one may reuse the memory of its saved tensors.
    """
    if weights is None:
        return lambda: lambda: function(**arguments)
    leaves = differentiable(arguments, names)

    def prepare() -> Function:
        outputs = tensors(function(**leaves))
        return lambda: gradients(outputs, leaves, weights)

    return prepare


def work(call: Function) -> tuple[int, int]:
    """Bytes that a call moves and operations of its matrix products, as `measure.counting` counts them.

    For this package's operators those of the Triton kernels' launches are counted, whatever backend runs them.
    """
    with Counter() as counter:
        call()
    whole = total(counter.rows)
    return whole.num_bytes, whole.matrix_operations


def peak_bytes(prepare: Callable[[], Function], device: torch.device) -> int:
    """Peak memory in bytes beyond the arguments', of a forward pass, or of a forward and backward pass."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        prepare()()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True, acc_events=True) as profile:
        prepare()()
    with tempfile.TemporaryDirectory(prefix="resshift-operators-") as folder:
        path = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8", errors="replace"))["traceEvents"]
    changes = sorted((event["ts"], event["args"]["Bytes"]) for event in events if event.get("name") == "[memory]")
    held = peak = 0
    for _, change in changes:
        held += change
        peak = max(peak, held)
    return peak


def microseconds(call: Function, device: torch.device) -> float:
    """Host time of one call on an idle GPU, without waiting for its result."""
    timing.synchronize(device)
    start = time.perf_counter()
    call()
    return 1e6 * (time.perf_counter() - start)
