"""Autotuning: a kernel's configuration is the fastest measured on this GPU model, else its architecture's default.

A kernel's `Space` lists a few candidates, and a default for each architecture and bucket of shapes. The defaults were
derived from the compiled kernels' resources (registers, spills, shared memory). Candidates are timed only within
`measuring()`, during warm-up, and never while a CUDA graph is captured. A candidate is dropped if it does not compile,
does not launch, writes other values than the default does, or writes others in its next run. `config_cache` keeps the
fastest for later processes. Candidates may also be algorithms, each with kernels of its own: `Space(nested=True)`.

Results are bitwise reproducible for a given configuration. Without measurements the configuration depends on shapes
and architecture only; a measured one stays as stored. Another configuration may sum in another order: block sizes along
a sum do (keys of an attention, hidden width of `swin_mlp`, input channels of `upsample_conv2d`), and so may the number
of warps or another matrix instruction. Block sizes along pixels do not.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, lru_cache, partial
from threading import local
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from resshift_fast.core.capturing import capture_lock
from resshift_fast.core.stopwatch import Stopwatch
from resshift_fast.kernels import config_cache
from resshift_fast.kernels.launch import recording

ARCHITECTURES = (80, 86, 89, 90, 100, 120)
FALLBACK_ARCHITECTURE = 80  # of the interpreter, and of tensors without a device
RUNS = 5  # of each candidate; the median of their times counts

# Largest difference from the default's values, relative to the largest of them: both are rounded.
LIMITS = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 6e-2}

Trial = Callable[[Any], Sequence[Tensor | None]]
Timer = Callable[[Callable[[], Any]], float]


@dataclass(frozen=True)
class Config:
    """A kernel's configuration: block sizes by constexpr name, number of warps, stages of the software pipeline."""

    blocks: Mapping[str, int]
    num_warps: int = 4
    num_stages: int = 2

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments of `Start`."""
        return {**self.blocks, "num_warps": self.num_warps, "num_stages": self.num_stages}

    def __str__(self) -> str:
        return ", ".join(f"{name} {value}" for name, value in self.options.items())


@dataclass(frozen=True)
class Algorithm:
    """One of several ways to compute an operator, with kernels and configurations of its own."""

    name: str

    @property
    def options(self) -> dict[str, Any]:
        """What the cache on disk stores."""
        return {"algorithm": self.name}

    def __str__(self) -> str:
        return self.name


class Candidate(Protocol):
    """What a `Space` chooses from: `Config` or `Algorithm`."""

    @property
    def options(self) -> dict[str, Any]:
        """What the cache on disk stores; it differs between candidates."""


C = TypeVar("C", bound=Candidate)


class _Mode(local):
    """The modes that this thread is in."""

    target: int | None = None
    timer: Callable[[torch.device], Timer | None] | None = None
    enumerating: bool = False
    met: "list[Choice] | None" = None


_mode = _Mode()


_generation = 0


def generation() -> int | None:
    """A counter that increases whenever a configuration may have changed.

    A plan made with a configuration is valid as long as the counter has not moved. None within `measuring`,
    `targeting` and `enumerating`, where plans must not be reused.
    """
    special = _mode.timer is not None or _mode.target is not None or _mode.enumerating
    return None if special else _generation


def renew() -> None:
    """Invalidate the launchers' plans."""
    global _generation
    _generation += 1


@lru_cache
def _capability(index: int | None) -> int:
    major, minor = torch.cuda.get_device_capability(index)
    return 10 * major + minor


def architecture(device: torch.device) -> int:
    """Compute capability of a device, 90 for 9.0; within `targeting()`, the one given there."""
    if _mode.target is not None:
        return _mode.target
    if device.type == "cuda" and torch.cuda.is_available():
        return _capability(device.index)
    return FALLBACK_ARCHITECTURE


@contextmanager
def targeting(arch: int) -> Iterator[None]:
    """Choose defaults as on `arch` in this block and thread, to check and count kernels without that GPU."""
    previous, _mode.target = _mode.target, arch
    try:
        yield
    finally:
        _mode.target = previous


@contextmanager
def measuring(timer: Timer | None = None) -> Iterator[None]:
    """Time the candidates of every bucket that this thread meets for the first time in the block.

    Meanwhile, another thread that needs such a bucket waits if it measures too; otherwise it runs the default.

    Args:
        timer: function from a call to its milliseconds, for any device; None times with `core.stopwatch`, on GPUs only.
    """
    previous, _mode.timer = _mode.timer, _gpu_timers() if timer is None else lambda device: timer
    try:
        yield
    finally:
        _mode.timer = previous


@contextmanager
def enumerating() -> Iterator[None]:
    """Record the launches of all candidates in this block and thread, to compile them ahead of time.

    Example:
        >>> with launch.record() as launches, enumerating():
        ...     group_norm.forward(torch.empty(1, 64, 64, 64, device="meta"), 32, *parameters)
    """
    previous, _mode.enumerating = _mode.enumerating, True
    try:
        yield
    finally:
        _mode.enumerating = previous


@contextmanager
def watching() -> "Iterator[list[Choice]]":
    """Collect the choices that this thread makes by measuring in the block."""
    previous, _mode.met = _mode.met, []
    try:
        yield _mode.met
    finally:
        _mode.met = previous


def _gpu_timers() -> Callable[[torch.device], Timer | None]:
    """Function from a device to its timer, or None where nothing can be timed. It owns the stopwatches' memory."""
    stopwatch = cache(Stopwatch)

    def timer_of(device: torch.device) -> Timer | None:
        if device.type != "cuda" or not torch.cuda.is_available() or torch.cuda.is_current_stream_capturing():
            return None
        replays = stopwatch(device).replays

        def milliseconds(call: Callable[[], Any]) -> float:
            replay = replays(call)
            return sorted(replay() for _ in range(RUNS))[RUNS // 2]

        return milliseconds

    return timer_of


@dataclass
class Space(Generic[C]):
    """The configurations of one kernel, or the algorithms of one operator.

    Args:
        name: the kernel's or the operator's name.
        candidates: function from a bucket to the configurations worth timing, at most eight.
        default: function from (architecture, bucket) to the configuration used without a measurement.
        nested: whether candidates run kernels with a space of their own, which is measured before they are compared.
    """

    name: str
    candidates: Callable[[tuple], Sequence[C]]
    default: Callable[[int, tuple], C]
    nested: bool = False
    _chosen: dict[tuple, C] = field(default_factory=dict)

    def config(self, bucket: tuple, device: torch.device, trial: Trial | None = None) -> C:
        """The configuration for a bucket of shapes.

        Args:
            bucket: what the choice depends on, coarsely: integers such as sizes rounded up to powers of two.
            device: of the tensors.
            trial: runs the kernel once in a given configuration and returns the tensors that it writes. Previous
                contents of those that the first trial returned are restored after timing. None never times.
        """
        chosen = self._chosen.get((device, bucket)) if _mode.target is None else None
        if chosen is not None and not _mode.enumerating:
            return chosen
        default = self.default(architecture(device), bucket)
        if _mode.target is None:
            chosen = chosen or self._stored(device, bucket, default)
        if trial is not None and recording():
            if _mode.enumerating:
                for config in self._all(bucket, default):
                    trial(config)
        elif chosen is None and trial is not None and _mode.timer is not None and _mode.target is None:
            chosen = self._measured(device, bucket, trial, default)
        return chosen or default

    def _all(self, bucket: tuple, default: C) -> list[C]:
        return [default, *(config for config in self.candidates(bucket) if config != default)]

    def _stored(self, device: torch.device, bucket: tuple, default: C) -> C | None:
        """The choice in the cache on disk, if it is one of this kernel's configurations."""
        found = config_cache.known(device).get((self.name, bucket))
        if found is None:
            return None
        chosen = next((config for config in self._all(bucket, default) if config.options == found), None)
        if chosen is not None:
            self._chosen[device, bucket] = chosen
        return chosen

    def _measured(self, device: torch.device, bucket: tuple, trial: Trial, default: C) -> C | None:
        """The fastest configuration; None where nothing can be timed."""
        timer = None if _mode.timer is None else _mode.timer(device)
        if timer is None:
            return None
        with capture_lock:
            if (device, bucket) not in self._chosen:  # otherwise another thread has measured it meanwhile
                if self.nested:
                    _measure_within(self._all(bucket, default), trial)
                previous, _mode.timer = _mode.timer, None  # calls within a trial are not tuned themselves
                try:
                    chosen = _fastest(f"{self.name} {bucket}", self._all(bucket, default), trial, timer)
                finally:
                    _mode.timer = previous
                self._chosen[device, bucket] = chosen
                renew()
                config_cache.keep(device, self.name, bucket, chosen.options)
                if _mode.met is not None:
                    _mode.met.append(Choice(self, device, bucket, chosen, default))
        return self._chosen[device, bucket]


@dataclass(frozen=True)
class Choice:
    """A configuration that was measured to be the fastest, as collected by `watching`."""

    space: Space[Any]
    device: torch.device
    bucket: tuple
    config: Candidate
    default: Candidate

    def reject(self) -> None:
        """Use the default instead from now on."""
        self.space._chosen[self.device, self.bucket] = self.default
        renew()
        config_cache.keep(self.device, self.space.name, self.bucket, self.default.options)

    def __str__(self) -> str:
        return f"{self.space.name} {self.bucket} with {self.config}"


def _measure_within(candidates: Sequence[Candidate], trial: Trial) -> None:
    """Run every candidate, so that the kernels in it are measured; one that fails is dropped later."""
    for candidate in candidates:
        try:
            trial(candidate)
        except torch.OutOfMemoryError:
            raise
        except Exception:  # as in `_fastest`
            continue


def _fastest(name: str, candidates: Sequence[C], trial: Trial, timer: Timer) -> C:
    """The fastest candidate; the first one if none runs.

    A candidate that writes other values than the first one that runs, or other bits when it runs again, is not used.

    Raises:
        torch.OutOfMemoryError: memory is full, which is not the candidate's fault.
    """
    times: list[tuple[float, C]] = []
    expected: _Written | None = None
    for config in candidates:
        try:
            if expected is None:
                expected = _Written(trial, config)
            elif wrong := expected.difference(trial, config):
                warnings.warn(f"{name}: {config} is not used: {wrong}", RuntimeWarning, stacklevel=5)
                continue
            times.append((timer(partial(trial, config)), config))
        except torch.OutOfMemoryError:
            raise
        except Exception:  # compilers and drivers refuse in many ways; if all fail, launching the default says why
            continue
        finally:
            if expected is not None:
                expected.restore()
    return min(times, key=lambda item: item[0])[1] if times else candidates[0]


class _Written:
    """What a trial writes in one configuration, to compare other configurations with.

    Only elements that the kernel writes are compared: the tensors are filled with NaN (integers: the smallest value)
    beforehand. A trial that makes new tensors finds their memory filled so by the run before.
    """

    def __init__(self, trial: Trial, config: Candidate):
        self._outputs = [x for x in trial(config) if x is not None]
        self._before = [x.clone() for x in self._outputs]
        self._values = self._run(trial, config)

    def _run(self, trial: Trial, config: Candidate) -> list[Tensor]:
        _erase(self._outputs)
        written = [x for x in trial(config) if x is not None]
        values = [x.clone() for x in written]
        _erase(written)
        return values

    def difference(self, trial: Trial, config: Candidate) -> str | None:
        """How another configuration's values differ, or None if they agree and stay the same when it runs again."""
        found = self._run(trial, config)
        if wrong := self._difference(found):
            return wrong
        for i, (ours, again) in enumerate(zip(found, self._run(trial, config), strict=True)):
            if not _same(ours, again).all():
                return f"its output {i} differs from run to run"
        return None

    def _difference(self, found: Sequence[Tensor]) -> str | None:
        for i, (ours, expected) in enumerate(zip(found, self._values, strict=True)):
            same = _same(ours, expected)
            if not ours.is_floating_point():
                if not same.all():
                    return f"its output {i} differs at {int((~same).sum())} of {same.numel()} places from the default's"
                continue
            error = torch.where(same, 0.0, (ours.float() - expected.float()).abs()).amax()
            scale = torch.where(expected.isfinite(), expected, 0).float().abs().amax()
            furthest, largest = error.item(), max(scale.item(), 1e-30)
            if not furthest <= LIMITS[ours.dtype] * largest:
                return f"its output {i} differs by {furthest / largest:.1e} of the largest value from the default's"
        return None

    def restore(self) -> None:
        """Restore the tensors' contents from after the first trial."""
        for x, before in zip(self._outputs, self._before, strict=True):
            x.copy_(before)


def _erase(tensors: Sequence[Tensor]) -> None:
    """Fill tensors with what no kernel writes."""
    for x in tensors:
        x.fill_(float("nan") if x.is_floating_point() else torch.iinfo(x.dtype).min)


def _same(x: Tensor, y: Tensor) -> Tensor:
    """Where two tensors have equal elements; NaN equals NaN."""
    return (x == y) | ((x != x) & (y != y))


def bucket(size: int) -> int:
    """`size` rounded up to a power of two, the granularity at which configurations depend on sizes."""
    return 1 << max(size - 1, 0).bit_length()
