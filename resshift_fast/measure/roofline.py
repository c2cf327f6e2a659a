"""The least time that counted work can take on a GPU: bytes over bandwidth, or operations over matrix rate.

A projection, not a measurement: it ignores launch latency and caches, and assumes that every kernel reaches its limit.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from resshift_fast.measure.counting import Row


@dataclass(frozen=True)
class GPU:
    """Limits of a GPU from its data sheet; matrix rates are dense, with float32 accumulation.

    Args:
        title: its full name.
        device: its name in the driver.
        arch: compute capability, 90 for 9.0.
        bandwidth: of its memory, in bytes per second.
        rate_16_bit, rate_32_bit: FLOP/s in float16 and bfloat16 (tensor cores), and in float32.
    """

    title: str
    device: str
    arch: int
    bandwidth: float
    rate_16_bit: float
    rate_32_bit: float

    def rate(self, element_size: int) -> float:
        """FLOP/s of matrix products of elements of 2 or 4 bytes."""
        return self.rate_16_bit if element_size == 2 else self.rate_32_bit


GPUS = {
    "h100": GPU("NVIDIA H100 SXM", "NVIDIA H100 80GB HBM3", 90, 3.35e12, 989e12, 67e12),
    "h200": GPU("NVIDIA H200 SXM", "NVIDIA H200", 90, 4.8e12, 989e12, 67e12),
    "a100": GPU("NVIDIA A100 SXM 80 GB", "NVIDIA A100-SXM4-80GB", 80, 2.039e12, 312e12, 19.5e12),
    "l40s": GPU("NVIDIA L40S", "NVIDIA L40S", 89, 0.864e12, 362e12, 91.6e12),
    "4090": GPU("NVIDIA GeForce RTX 4090", "NVIDIA GeForce RTX 4090", 89, 1.008e12, 165e12, 82.6e12),
}


def get(name: str) -> GPU:
    """The GPU called `name`.

    Raises:
        ValueError: if it is not in `GPUS`.
    """
    if name.lower() not in GPUS:
        raise ValueError(f"unknown GPU {name!r}, expected one of {', '.join(GPUS)}")
    return GPUS[name.lower()]


def of_device(name: str) -> GPU | None:
    """The GPU with this name in the driver; None if it is not in `GPUS`."""
    return next((gpu for gpu in GPUS.values() if gpu.device == name), None)


@dataclass(frozen=True)
class Floor:
    """Projected least seconds of all calls of an operator, its number of calls, and how many are memory-bound."""

    seconds: float
    memory_bound: int
    count: int


def project(rows: Mapping[str, Row], gpu: GPU, element_size: int = 2) -> dict[str, Floor]:
    """The least time of every counted operator.

    Args:
        rows: from `counting.count_sample`.
        gpu: its limits are used.
        element_size: bytes of the networks' dtype, 2 or 4, which selects the matrix rate.

    Returns:
        Operator name to `Floor`, the longest first.
    """
    rate = gpu.rate(element_size)
    floors = {}
    for name, row in rows.items():
        times = [(num_bytes / gpu.bandwidth, operations / rate) for num_bytes, operations in row.calls]
        memory_bound = sum(moving >= computing for moving, computing in times)
        floors[name] = Floor(sum(map(max, times)), memory_bound, row.count)
    return dict(sorted(floors.items(), key=lambda item: -item[1].seconds))
