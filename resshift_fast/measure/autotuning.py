"""Autotuning: finds the fastest backend of each operator, measured on the calls that a model makes.

`Recorder` records every call of a registered operator, `autotune` times all backends on new tensors with the same
shapes, strides and dtypes, and `content` converts the result for `autotune_cache.store`. A backend whose results are
wrong is refused, however fast it is. If a kernel has several algorithms, each is timed and checked in the same way for
every shape, and the fastest counts as the kernel's time.
"""

import datetime
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import permutations
from operator import itemgetter
from statistics import median, quantiles
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from resshift_fast import __version__, backends
from resshift_fast.backends import Kernel, autotune_cache, verification
from resshift_fast.backends.autotune_cache import REFERENCE
from resshift_fast.core import accuracy, devices
from resshift_fast.diffusion.coefficients import NUM_COEFFICIENTS
from resshift_fast.measure import timing

MOST_ROUNDS = 3  # of timed runs


@dataclass(frozen=True)
class Drawn:
    """Layout and dtype of a tensor whose values are drawn for the measurement.

    Args:
        shape, stride: in elements. dtype: floating point.
    """

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    def draw(self, generator: torch.Generator, exact: bool) -> Tensor:
        """Draw normal values, or with `exact` small multiples of 1/4, whose products and sums need no rounding."""
        extent = 1 + sum((side - 1) * step for side, step in zip(self.shape, self.stride, strict=True))
        options: dict[str, Any] = {"generator": generator, "device": generator.device}
        values = torch.randint(-8, 9, (extent,), **options) / 4 if exact else torch.randn(extent, **options)
        return values.to(self.dtype).as_strided(self.shape, self.stride)


@dataclass
class Call:
    """Calls of one operator that differ only in the values of their tensors.

    Args:
        operator: its name.
        dtype: of its first argument, by which backends are chosen.
        arguments: as registered, with tensors replaced by `Drawn`, except those of `_kept`.
        exact: whether an output holds integers, such as indices, which a rounding error could change completely.
        count: number of calls.
    """

    operator: str
    dtype: torch.dtype
    arguments: tuple
    exact: bool
    count: int = 0

    def draw(self, device: torch.device) -> tuple:
        """The arguments, with the same values each time."""
        generator = torch.Generator(device).manual_seed(0)
        return tuple(x.draw(generator, self.exact) if isinstance(x, Drawn) else x for x in self.arguments)


class Recorder(TorchDispatchMode):
    """Dispatch mode that records in `calls` which registered operators are called, and how often."""

    def __init__(self):
        super().__init__()
        self._calls: dict[tuple, Call] = {}

    @property
    def calls(self) -> list[Call]:
        """The calls recorded so far."""
        return list(self._calls.values())

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if function.namespace == "resshift_fast":
            name = function.overloadpacket.__name__
            key = (name, *(_described(x) for x in args))
            if key not in self._calls:
                outputs = (result,) if isinstance(result, Tensor) else result
                exact = not all(y.is_floating_point() for y in outputs)
                self._calls[key] = Call(name, args[0].dtype, tuple(map(_kept, args)), exact)
            self._calls[key].count += 1
        return result


def _described(x: Any) -> Any:
    return Drawn(tuple(x.shape), x.stride(), x.dtype) if isinstance(x, Tensor) else x


def _kept(x: Any) -> Any:
    """Keep the values of seeds, steps, origins and coefficients; describe other tensors."""
    if isinstance(x, Tensor) and (not x.is_floating_point() or x.numel() <= NUM_COEFFICIENTS):
        return x.detach().clone()
    return _described(x)


@dataclass
class Tuning:
    """The measurements of one operator and dtype, and the order chosen.

    Args:
        operator, dtype: what was measured.
        calls: number of its calls in a sample.
        microseconds: backend to the time of all calls; the reference runs those that the backend does not take.
        order: backends, including the reference, in the order that took the least time.
        total: that time, in microseconds.
        refused: backend to what was wrong with its results.
        shapes: shape to the measurements of the kernel's algorithms, if it has several.
        spread: half the distance of the quartiles of the fastest function's times, relative to them, over all calls.
        unclear: kinds of calls of which the fastest function is not known, as the quartiles of the two fastest overlap.
    """

    operator: str
    dtype: torch.dtype
    calls: int
    microseconds: dict[str, float] = field(default_factory=dict)
    order: tuple[str, ...] = (REFERENCE,)
    total: float = 0.0
    refused: dict[str, str] = field(default_factory=dict)
    shapes: dict[str, "Shape"] = field(default_factory=dict)
    spread: float = 0.0
    unclear: int = 0


@dataclass
class Shape:
    """The measurements of a kernel's algorithms on the calls of one shape.

    Args:
        default: the algorithm that runs without a measurement.
        microseconds: algorithm to the time of all calls, the fastest first.
        refused: algorithm to what was wrong with its results.
    """

    default: str
    microseconds: dict[str, float] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)

    @property
    def choice(self) -> str:
        """The fastest algorithm."""
        return next(iter(self.microseconds), self.default)

    @property
    def gain(self) -> float:
        """Speed-up of the fastest algorithm over the default."""
        return self.microseconds[self.default] / self.microseconds[self.choice]


@dataclass
class Sample:
    """The measurements of one `Call`.

    Args:
        count: number of such calls.
        shape: the key by which its algorithm is chosen; None if no kernel that takes it has several.
        microseconds: backend or algorithm to the time of a call.
        spread: half the distance of the quartiles of the fastest one's times, in microseconds.
        is_clear: whether they lie apart from those of the next one.
    """

    count: int
    shape: str | None
    microseconds: dict[str, float]
    spread: float = 0.0
    is_clear: bool = True


def autotune(
    calls: Sequence[Call],
    device: torch.device,
    repeats: int = 20,
    progress: Callable[[str], None] = lambda _: None,
) -> list[Tuning]:
    """Time every backend that can run here on these calls.

    Each result is first compared with float64. Then the backends run in turns, and the median of `repeats` runs is
    multiplied by the number of such calls. Where the quartiles of the two fastest overlap, all run as often again, and
    once more. Kernels run in their fastest configurations.

    Args:
        calls: from `Recorder`. device: the device on which they were made.
        repeats: timed runs of each kind of call and backend.
        progress: called with a line about what is measured next.

    Returns:
        One `Tuning` for each operator and dtype that has a backend besides the reference.
    """
    device = torch.empty(0, device=device).device  # with the index that tensors on it have
    groups: dict[tuple[str, torch.dtype], list[Call]] = {}
    for call in calls:
        if backends.candidates(call.operator, device.type):
            groups.setdefault((call.operator, call.dtype), []).append(call)
    clock = timing.Clock(device)
    tunings = []
    for number, ((name, dtype), members) in enumerate(groups.items(), start=1):
        progress(f"{number}/{len(groups)} {name} {_short(dtype)}, {len(members)} kinds of calls")
        with (
            torch.inference_mode(),
            torch.autocast(device.type, enabled=False),
            devices.on(device),
            accuracy.full_float32(),
            backends.measuring(),
        ):
            tunings.append(_autotune(name, dtype, members, clock, repeats))
    return tunings


def _autotune(name: str, dtype: torch.dtype, calls: list[Call], clock: timing.Clock, repeats: int) -> Tuning:
    operator, device = backends.OPERATORS[name], clock.device
    found = Tuning(name, dtype, sum(call.count for call in calls))
    kernels = {}
    for backend in backends.candidates(name, device.type):
        if verification.passes(operator, backend, device, dtype):
            kernels[backend] = backends.kernel(name, backend)
        else:
            found.refused[backend] = verification.verdict(operator, backend, device, dtype)
    samples = []
    for call in calls:
        arguments, plain, shape = call.draw(device), _once(operator.plain), None
        functions = {REFERENCE: operator.plain}
        for backend, kernel in kernels.items():
            if backend in found.refused or kernel.unsupported(*arguments) is not None:
                continue
            if kernel.algorithms:
                shape = kernel.algorithms.shape(*arguments)
            functions |= _right(found, backend, kernel, arguments, plain)
        samples.append(_sampled(call.count, shape, functions, arguments, repeats, clock))
    for backend, kernel in kernels.items():
        if kernel.algorithms:
            _settle(found, backend, kernel.algorithms.functions(dtype), samples)
    _decide(found, [REFERENCE, *(b for b in kernels if b not in found.refused)], samples)
    fastest = sum(sample.count * min(sample.microseconds.values()) for sample in samples)
    found.spread = sum(sample.count * sample.spread for sample in samples) / fastest if fastest else 0.0
    found.unclear = sum(not sample.is_clear for sample in samples)
    return found


def _right(
    found: Tuning, backend: str, kernel: Kernel, arguments: tuple, plain: Callable[..., Any]
) -> dict[str, Callable[..., Any]]:
    """The functions with which a backend can run a call, by its name or those of its algorithms, without wrong ones.

    A wrong algorithm is refused for its shape. If it is the default, which other shapes use too, so is the backend.
    """
    if kernel.algorithms is None:
        if why := _wrong(kernel.function, plain, arguments):
            found.refused[backend] = why
            return {}
        return {backend: kernel.function}
    name, functions = kernel.algorithms.shape(*arguments), kernel.algorithms.functions(found.dtype)
    shape = found.shapes.setdefault(name, Shape(kernel.algorithms.default(*arguments)))
    wrong = {name: why for name, function in functions.items() if (why := _wrong(function, plain, arguments))}
    shape.refused |= wrong
    if shape.default in wrong:
        found.refused[backend] = f"{shape.default} for {name}: {wrong[shape.default]}"
    return {name: function for name, function in functions.items() if name not in wrong}


def _sampled(
    count: int,
    shape: str | None,
    functions: dict[str, Callable[..., Any]],
    arguments: tuple,
    repeats: int,
    clock: timing.Clock,
) -> Sample:
    """Time these functions in turns, `MOST_ROUNDS` times as long as it is unclear which is the fastest."""
    prepared = {name: _prepared(function, arguments) for name, function in functions.items()}
    runs: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(MOST_ROUNDS):
        for name, values in timing.times(prepared, repeats, clock).items():
            runs[name] += values
        low, _, high = zip(*sorted((_quartiles(values) for values in runs.values()), key=itemgetter(1)), strict=True)
        is_clear = len(runs) == 1 or high[0] < low[1]
        if is_clear:
            break
    medians = {name: 1e3 * median(values) for name, values in runs.items()}
    return Sample(count, shape, medians, 1e3 * (high[0] - low[0]) / 2, is_clear)


def _quartiles(values: list[float]) -> tuple[float, float, float]:
    """The quartiles of these values, of which there may be a single one."""
    low, middle, high = quantiles(values, n=4, method="inclusive") if len(values) > 1 else 3 * values
    return low, middle, high


def _prepared(function: Callable[..., Any], arguments: tuple) -> Callable[[], Callable[[], Any]]:
    """Adapt a call to `timing.times`; there is nothing to prepare for a run."""
    return lambda: lambda: function(*arguments)


def _settle(found: Tuning, backend: str, names: Iterable[str], samples: list[Sample]) -> None:
    """Fill in the times of these algorithms for each shape, and their backend's time, that of the fastest."""
    for of_shape, shape in found.shapes.items():
        members = [sample for sample in samples if sample.shape == of_shape]
        totals = {
            name: sum(sample.count * sample.microseconds[name] for sample in members)
            for name in names
            if name not in shape.refused
        }
        shape.microseconds = dict(sorted(totals.items(), key=lambda item: item[1]))
        for sample in members:
            if totals:
                sample.microseconds[backend] = sample.microseconds[shape.choice]


def _once(plain: Callable[..., Any]) -> Callable[..., Any]:
    """Cache the results of an operator in plain PyTorch by the dtypes of its arguments, whose values are the same."""
    results: dict[tuple, Any] = {}

    def run(*arguments: Any) -> Any:
        key = tuple(x.dtype for x in arguments if isinstance(x, Tensor))
        if key not in results:
            results[key] = plain(*arguments)
        return results[key]

    return run


def _wrong(function: Callable[..., Any], plain: Callable[..., Any], arguments: tuple) -> str | None:
    """What is wrong with a backend's results for a call, or None."""
    try:
        return verification.difference(function(*arguments), plain, arguments)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a kernel raises, the others are still measured
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _decide(found: Tuning, names: list[str], samples: list[Sample]) -> None:
    """Fill in the backends' times and the best order from the samples."""

    def total(order: Sequence[str]) -> float:
        """Time of all calls when each goes to the first backend of the order that takes it."""
        return sum(s.count * next(s.microseconds[b] for b in order if b in s.microseconds) for s in samples)

    alone = {name: total((name, REFERENCE)) for name in names}
    found.microseconds = dict(sorted(alone.items(), key=lambda item: item[1]))
    # All orders are compared, because a fast backend that takes few calls belongs before one that takes them all. Ties
    # go to the first permutation, which is sorted by the time of each backend alone.
    found.order = min(permutations(found.microseconds), key=total)
    found.total = total(found.order)


def content(tunings: Sequence[Tuning], device: torch.device, command: str) -> dict[str, Any]:
    """The measurements in the form that `autotune_cache.store` takes.

    Args:
        tunings: from `autotune`. device: the device that was measured. command: the command that measured it.

    Raises:
        ValueError: if the device has no name, which its file is named after.
    """
    name = autotune_cache.device_name(device)
    if name is None:
        raise ValueError(f"{device} has no device name, so the autotune cache cannot store anything for it")
    operators: dict[str, dict[str, Any]] = {}
    for found in tunings:
        operators.setdefault(found.operator, {})[_short(found.dtype)] = {
            "order": list(found.order),
            "microseconds": _rounded(found.microseconds),
            "calls": found.calls,
            "spread": round(found.spread, 4),
            "unclear": found.unclear,
            "refused": found.refused,
        }
        if found.shapes:
            operators[found.operator][_short(found.dtype)]["algorithms"] = {
                name: {"choice": shape.choice, "microseconds": _rounded(shape.microseconds), "refused": shape.refused}
                for name, shape in found.shapes.items()
            }
    return {
        "device": name,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": command,
        "resshift_fast": __version__,
        "torch": torch.__version__,
        "triton": _triton_version(),
        "threads": torch.get_num_threads() if device.type == "cpu" else None,
        "operators": operators,
    }


def _rounded(microseconds: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 1) for name, value in microseconds.items()}


def _triton_version() -> str | None:
    try:
        import triton
    except ImportError:
        return None
    return triton.__version__


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
