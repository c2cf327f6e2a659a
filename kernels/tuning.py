"""Which configuration a kernel runs in: measured on this GPU, else the default of its architecture.

A kernel's `Space` lists a few candidates and the default for each architecture and bucket of shapes. Defaults come
from the compiled kernels' resources (registers, spills, shared memory). Candidates are timed only within
`measuring()`, which warm-up uses, and never while a CUDA graph is captured.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch

ARCHITECTURES = (80, 86, 89, 90, 100, 120)
FALLBACK_ARCHITECTURE = 80  # of the interpreter, and of tensors without a device


@dataclass(frozen=True)
class Config:
    """How one kernel is compiled: block sizes by constexpr name, warps, and stages of its software pipeline."""

    blocks: Mapping[str, int]
    num_warps: int = 4
    num_stages: int = 2

    @property
    def options(self) -> dict[str, int]:
        """Keyword arguments of `launch`."""
        return {**self.blocks, "num_warps": self.num_warps, "num_stages": self.num_stages}


@lru_cache
def _capability(index: int | None) -> int:
    major, minor = torch.cuda.get_device_capability(index)
    return 10 * major + minor


_target: int | None = None


def architecture(device: torch.device) -> int:
    """Compute capability of a device, 90 for 9.0; that of `targeting()` within it."""
    if _target is not None:
        return _target
    if device.type == "cuda" and torch.cuda.is_available():
        return _capability(device.index)
    return FALLBACK_ARCHITECTURE


@contextmanager
def targeting(arch: int) -> Iterator[None]:
    """Choose configurations as on `arch` in the block, for proofs and counts without that GPU."""
    global _target
    previous, _target = _target, arch
    try:
        yield
    finally:
        _target = previous


_measuring = False


@contextmanager
def measuring() -> Iterator[None]:
    """Time the candidates of every bucket that is met for the first time in the block, and keep the fastest."""
    global _measuring
    previous, _measuring = _measuring, True
    try:
        yield
    finally:
        _measuring = previous


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
    _measured: dict[tuple, Config] = field(default_factory=dict)

    def config(self, bucket: tuple, device: torch.device, trial: Callable[[Config], Any] | None = None) -> Config:
        """The configuration for a bucket of shapes.

        Args:
            bucket: whatever the choice depends on, in few steps: dtype, powers of two of sizes.
            device: of the tensors.
            trial: runs the kernel once in a given configuration, writing nothing that is read later; None never times.
        """
        arch = architecture(device)
        key = (arch, bucket)
        if key not in self._measured:
            if not (_measuring and trial and device.type == "cuda") or torch.cuda.is_current_stream_capturing():
                return self.default(arch, bucket)
            self._measured[key] = _fastest(self.candidates(bucket), trial)
        return self._measured[key]


def _fastest(candidates: Sequence[Config], trial: Callable[[Config], Any]) -> Config:
    from triton.runtime.errors import OutOfResources
    from triton.testing import do_bench

    def milliseconds(config: Config) -> float:
        try:
            return do_bench(lambda: trial(config), warmup=5, rep=20, return_mode="median")
        except OutOfResources:
            return float("inf")

    return min(candidates, key=milliseconds)


def bucket(size: int) -> int:
    """`size` rounded up to a power of two: the steps in which configurations follow sizes."""
    return 1 << max(size - 1, 0).bit_length()
