"""How one call of an operator is checked and measured: its error, its time and its memory, forward and backward.

Everything here works on a `Provider`'s function and a dictionary of arguments, whatever the operator.
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
    """The result of an equivalence check: the tensor nearest to its limit, or furthest beyond it.

    Args:
        error, allowed: relative errors against float64; None where there was nothing to compare.
        problem: what is wrong, naming the tensor; empty if nothing is.
    """

    error: float | None
    allowed: float | None
    problem: str = ""


def differentiable(arguments: Arguments, names: Sequence[str]) -> Arguments:
    """The arguments, with fresh leaves that want gradients for those of `names` that are given."""
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
    """An operator's outputs as a list."""
    return [outputs] if isinstance(outputs, Tensor) else list(outputs)


def output_weights(outputs: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """The gradient that arrives at every floating-point output: normal numbers that `dtype` holds."""
    torch.manual_seed(1)
    return [torch.randn_like(y, dtype=torch.float32).to(dtype).to(y.dtype) for y in _floating(outputs)]


def _floating(outputs: Sequence[Tensor]) -> list[Tensor]:
    return [y for y in outputs if y.is_floating_point()]


def gradients(outputs: Sequence[Tensor], arguments: Arguments, weights: Sequence[Tensor]) -> list[Tensor | None]:
    """Gradients of the arguments that want one; None where no output depends on it."""
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
    """Compare what a provider returned with the plain path's in the same dtype and with float64.

    The rule is that of `resshift_fast.core.accuracy`: float32 tensors have a fixed limit, 16-bit ones twice the plain
    path's error, integers must be equal. A NaN anywhere fails.
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
    """What is called before each timed run, and returns the function of no arguments that is timed.

    Without weights that is the forward pass, else the backward pass after an untimed forward one: a graph is used
    once, because a compiled one may reuse its saved tensors' memory.
    """
    if weights is None:
        return lambda: lambda: function(**arguments)
    leaves = differentiable(arguments, names)

    def prepare() -> Function:
        outputs = tensors(function(**leaves))
        return lambda: gradients(outputs, leaves, weights)

    return prepare


def work(call: Function) -> tuple[int, int]:
    """Bytes that a call moves and operations of its matrix products, as `measure.counting` counts.

    Those of this package's operators are of the Triton kernels' launches, whatever backend runs them.
    """
    with Counter() as counter:
        call()
    whole = total(counter.rows)
    return whole.num_bytes, whole.matrix_operations


def peak_bytes(prepare: Callable[[], Function], device: torch.device) -> int:
    """Most memory held at once beyond the arguments' in a forward pass, or in a forward and backward pass."""
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
    """Time that the host needs for one call, which finds a GPU idle and does not wait for it."""
    timing.synchronize(device)
    start = time.perf_counter()
    call()
    return 1e6 * (time.perf_counter() - start)
