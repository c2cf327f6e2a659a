"""Which configuration a kernel runs in: measured on this model of GPU, else the default of its architecture.

A kernel's `Space` lists a few candidates and the default for each architecture and bucket of shapes. Defaults come
from the compiled kernels' resources (registers, spills, shared memory). Candidates are timed only within
`measuring()`, which warm-up uses, and never while a CUDA graph is captured. One that does not compile, does not start
or does not write what the default writes is dropped. The fastest is kept in `configurations/` of the cache folder, and
read from there in every later process; RESSHIFT_FAST_PREFERENCES=0 neither reads nor writes it.

Results are the same bit for bit from run to run with the same configurations: by default these follow from shapes and
architecture alone, and what was once measured stays as it is stored. Another configuration may add in another order.
Blocks along a sum do (keys of an attention, hidden width of `swin_mlp`, input channels of `upsample_conv2d`), and on a
GPU also another number of warps or another matrix instruction. Blocks of pixels alone do not.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, lru_cache, partial
from threading import local
from typing import Any

import torch
from torch import Tensor

from resshift_fast.core.capturing import alone
from resshift_fast.core.stopwatch import Stopwatch
from resshift_fast.kernels import choices
from resshift_fast.kernels.launch import recording

ARCHITECTURES = (80, 86, 89, 90, 100, 120)
FALLBACK_ARCHITECTURE = 80  # of the interpreter, and of tensors without a device
RUNS = 5  # of each candidate, of whose times the median counts

# Largest difference from what the default writes, by the largest value: both have rounded.
LIMITS = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 6e-2}

Trial = Callable[["Config"], Sequence[Tensor | None]]
Timer = Callable[[Callable[[], Any]], float]


@dataclass(frozen=True)
class Config:
    """How one kernel is compiled: block sizes by constexpr name, warps, and stages of its software pipeline."""

    blocks: Mapping[str, int]
    num_warps: int = 4
    num_stages: int = 2

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments of `Start`."""
        return {**self.blocks, "num_warps": self.num_warps, "num_stages": self.num_stages}

    def __str__(self) -> str:
        return ", ".join(f"{name} {value}" for name, value in self.options.items())


class _Mode(local):
    """What this thread was told."""

    target: int | None = None
    timer: Callable[[torch.device], Timer | None] | None = None
    enumerating: bool = False
    met: "list[Choice] | None" = None


_mode = _Mode()


_generation = 0


def generation() -> int | None:
    """A number that changes whenever a configuration may have become another one.

    What was planned with a configuration holds as long as the number stays. None within `measuring`, `targeting` and
    `enumerating`, where nothing is to be planned for later.
    """
    special = _mode.timer is not None or _mode.target is not None or _mode.enumerating
    return None if special else _generation


def renew() -> None:
    """Have launchers make their plans anew."""
    global _generation
    _generation += 1


@lru_cache
def _capability(index: int | None) -> int:
    major, minor = torch.cuda.get_device_capability(index)
    return 10 * major + minor


def architecture(device: torch.device) -> int:
    """Compute capability of a device, 90 for 9.0; that of `targeting()` within it."""
    if _mode.target is not None:
        return _mode.target
    if device.type == "cuda" and torch.cuda.is_available():
        return _capability(device.index)
    return FALLBACK_ARCHITECTURE


@contextmanager
def targeting(arch: int) -> Iterator[None]:
    """Have this thread choose defaults as on `arch` in the block, for proofs and counts without that GPU."""
    previous, _mode.target = _mode.target, arch
    try:
        yield
    finally:
        _mode.target = previous


@contextmanager
def measuring(timer: Timer | None = None) -> Iterator[None]:
    """Have this thread time the candidates of every bucket that is met for the first time in the block.

    Other threads that ask for such a bucket meanwhile wait if they measure too, else run the default.

    Args:
        timer: a call to its milliseconds, on any device; None takes `core.stopwatch`, on GPUs alone.
    """
    previous, _mode.timer = _mode.timer, _gpu_timers() if timer is None else lambda device: timer
    try:
        yield
    finally:
        _mode.timer = previous


@contextmanager
def enumerating() -> Iterator[None]:
    """Have this thread's recorded launches be those of all candidates in the block, for compiling them beforehand.

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
    """Collect the choices that this thread measures in the block."""
    previous, _mode.met = _mode.met, []
    try:
        yield _mode.met
    finally:
        _mode.met = previous


def _gpu_timers() -> Callable[[torch.device], Timer | None]:
    """Device to its timer, None where nothing can be timed; what stopwatches take of its memory is free with it."""
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
class Space:
    """The configurations of one kernel.

    Args:
        name: the kernel's name.
        candidates: bucket to the configurations worth timing, at most eight.
        default: (architecture, bucket) to the configuration used unmeasured.
    """

    name: str
    candidates: Callable[[tuple], Sequence[Config]]
    default: Callable[[int, tuple], Config]
    _chosen: dict[tuple, Config] = field(default_factory=dict)

    def config(self, bucket: tuple, device: torch.device, trial: Trial | None = None) -> Config:
        """The configuration for a bucket of shapes.

        Args:
            bucket: whatever the choice depends on, in few steps: integers such as powers of two of sizes.
            device: of the tensors.
            trial: runs the kernel once in a given configuration and returns the tensors that it writes, which hold
                afterwards what they held before; None never times.
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

    def _all(self, bucket: tuple, default: Config) -> list[Config]:
        return [default, *(config for config in self.candidates(bucket) if config != default)]

    def _stored(self, device: torch.device, bucket: tuple, default: Config) -> Config | None:
        """The choice that is kept on disk, if there is one that this kernel has."""
        found = choices.known(device).get((self.name, bucket))
        if found is None:
            return None
        chosen = next((config for config in self._all(bucket, default) if config.options == found), None)
        if chosen is not None:
            self._chosen[device, bucket] = chosen
        return chosen

    def _measured(self, device: torch.device, bucket: tuple, trial: Trial, default: Config) -> Config | None:
        """The fastest configuration; None where nothing can be timed."""
        timer = None if _mode.timer is None else _mode.timer(device)
        if timer is None:
            return None
        with alone:
            if (device, bucket) not in self._chosen:  # else another thread has measured it meanwhile
                previous, _mode.timer = _mode.timer, None  # a trial's own calls are not timed within it
                try:
                    chosen = _fastest(f"{self.name} {bucket}", self._all(bucket, default), trial, timer)
                finally:
                    _mode.timer = previous
                self._chosen[device, bucket] = chosen
                renew()
                choices.keep(device, self.name, bucket, chosen.options)
                if _mode.met is not None:
                    _mode.met.append(Choice(self, device, bucket, chosen, default))
        return self._chosen[device, bucket]


@dataclass(frozen=True)
class Choice:
    """A configuration that was measured, for the first time, to be the fastest; see `watching`."""

    space: Space
    device: torch.device
    bucket: tuple
    config: Config
    default: Config

    def reject(self) -> None:
        """Take the default in place of it from now on."""
        self.space._chosen[self.device, self.bucket] = self.default
        renew()
        choices.keep(self.device, self.space.name, self.bucket, self.default.options)

    def __str__(self) -> str:
        return f"{self.space.name} {self.bucket} with {self.config}"


def _fastest(name: str, candidates: Sequence[Config], trial: Trial, timer: Timer) -> Config:
    """The fastest of the candidates that run and write what the first of them that runs does; the first if none runs.

    Raises:
        torch.OutOfMemoryError: memory is full, which says nothing of a candidate.
    """
    times: list[tuple[float, Config]] = []
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
        except Exception:  # a compiler or driver refuses in many ways; if all fail, the default's own launch says why
            continue
        finally:
            if expected is not None:
                expected.restore()
    return min(times, key=lambda item: item[0])[1] if times else candidates[0]


class _Written:
    """What a trial writes in one configuration, by which other ones are judged.

    Every element that it writes counts, and no other: tensors are filled beforehand with what no kernel writes.
    """

    def __init__(self, trial: Trial, config: Config):
        self._outputs = [x for x in trial(config) if x is not None]
        self._before = [x.clone() for x in self._outputs]
        self._values = self._run(trial, config)

    def _run(self, trial: Trial, config: Config) -> list[Tensor]:
        for x in self._outputs:
            x.fill_(float("nan") if x.is_floating_point() else torch.iinfo(x.dtype).min)
        trial(config)
        return [x.clone() for x in self._outputs]

    def difference(self, trial: Trial, config: Config) -> str | None:
        """What is wrong with what another configuration writes, or None."""
        for i, (ours, expected) in enumerate(zip(self._run(trial, config), self._values, strict=True)):
            same = (ours == expected) | ((ours != ours) & (expected != expected))
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
        """Have the tensors hold what they held after the first trial."""
        for x, before in zip(self._outputs, self._before, strict=True):
            x.copy_(before)


def bucket(size: int) -> int:
    """`size` rounded up to a power of two: the steps in which configurations follow sizes."""
    return 1 << max(size - 1, 0).bit_length()
