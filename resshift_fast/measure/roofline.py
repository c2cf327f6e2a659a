r"""The time that counted work can take on a GPU. A projection, not a measurement: it ignores the contents of caches.

`project` gives the least time: for each call bytes over bandwidth or operations over matrix rate, whichever is longer.
`expect` also has what keeps small calls from these limits, so that each of them takes

.. math:: \max\Big(\frac{\text{bytes}}{\min(W, k w)},\; \frac{\text{operations}}{R\, u},\; L\Big),
    \qquad u = \frac{b}{S \lceil b / S \rceil}

for b blocks on S multiprocessors, k = min(b, S) of them with a block; W the memory's bandwidth, w that of a
multiprocessor, R the matrix rate, and L the time from one small kernel to the next.
"""

import json
import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resshift_fast.measure.counting import Call, Row

# Bytes that a multiprocessor can read in a clock: the A100's L2 cache reads 5,120 for all 108 ("NVIDIA A100 Tensor Core
# GPU Architecture", on the L2 cache). None is published for the others, for which the same is assumed.
BYTES_A_CLOCK = 5120 / 108
# An assumption: least time from the start of a kernel in a CUDA graph to that of the next, which reads its results.
LAUNCH_SECONDS = 2e-6


@dataclass(frozen=True)
class GPU:
    """Limits of a GPU; matrix rates are dense, with float32 accumulation.

    Bandwidth and rates are from NVIDIA's data sheet of each, multiprocessors from its white papers: "NVIDIA H100 Tensor
    Core GPU Architecture", "NVIDIA A100 Tensor Core GPU Architecture" and "NVIDIA Ada GPU Architecture". The clock is
    the boost clock, at which the 16-bit rate is reached. The H200 has the H100's processor.

    Args:
        title: its full name.
        device: its name in the driver.
        arch: compute capability, 90 for 9.0.
        bandwidth: of its memory, in bytes per second.
        rate_16_bit, rate_32_bit: FLOP/s in float16 and bfloat16 (tensor cores), and in float32.
        multiprocessors: their number.
        clock: the boost clock in Hz.
    """

    title: str
    device: str
    arch: int
    bandwidth: float
    rate_16_bit: float
    rate_32_bit: float
    multiprocessors: int
    clock: float

    def rate(self, element_size: int) -> float:
        """FLOP/s of matrix products of elements of 2 or 4 bytes."""
        return self.rate_16_bit if element_size == 2 else self.rate_32_bit


GPUS = {
    "h100": GPU("NVIDIA H100 SXM", "NVIDIA H100 80GB HBM3", 90, 3.35e12, 989e12, 67e12, 132, 1.83e9),
    "h200": GPU("NVIDIA H200 SXM", "NVIDIA H200", 90, 4.8e12, 989e12, 67e12, 132, 1.83e9),
    "a100": GPU("NVIDIA A100 SXM 80 GB", "NVIDIA A100-SXM4-80GB", 80, 2.039e12, 312e12, 19.5e12, 108, 1.41e9),
    "l40s": GPU("NVIDIA L40S", "NVIDIA L40S", 89, 0.864e12, 362e12, 91.6e12, 142, 2.52e9),
    "4090": GPU("NVIDIA GeForce RTX 4090", "NVIDIA GeForce RTX 4090", 89, 1.008e12, 165e12, 82.6e12, 128, 2.52e9),
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
        times = [(num_bytes / gpu.bandwidth, operations / rate) for num_bytes, operations, *_ in row.calls]
        memory_bound = sum(moving >= computing for moving, computing in times)
        floors[name] = Floor(sum(map(max, times)), memory_bound, row.count)
    return dict(sorted(floors.items(), key=lambda item: -item[1].seconds))


LIMITS = ("bytes", "operations", "launch")


@dataclass(frozen=True)
class Expected:
    """Projected seconds of all calls of a kernel or an operator, their number, and how many each of `LIMITS` limits."""

    seconds: float
    count: int
    limited: Mapping[str, int]


def expect_call(
    call: Call, gpu: GPU, element_size: int = 2, launch_seconds: float = LAUNCH_SECONDS
) -> dict[str, float]:
    """The seconds that each of `LIMITS` takes for one call; the longest is its projected time."""
    blocks, processors = max(call.blocks, 1), gpu.multiprocessors
    bandwidth = min(gpu.bandwidth, min(blocks, processors) * BYTES_A_CLOCK * gpu.clock)
    # Blocks are taken as equally long, so that the multiprocessors with the most of them end last.
    busy = blocks / (processors * math.ceil(blocks / processors))
    rate = gpu.rate(element_size) * busy
    return dict(zip(LIMITS, (call.num_bytes / bandwidth, call.matrix_operations / rate, launch_seconds), strict=True))


def expect(
    rows: Mapping[str, Row],
    gpu: GPU,
    element_size: int = 2,
    launch_seconds: float = LAUNCH_SECONDS,
    by_kernel: bool = False,
) -> dict[str, Expected]:
    """The projected time of every counted operator, or of every kernel.

    Args:
        rows, gpu, element_size: as in `project`.
        launch_seconds: replaces `LAUNCH_SECONDS`.
        by_kernel: by kernels instead of operators.

    Returns:
        Name to `Expected`, the longest first.
    """
    calls: dict[str, list[dict[str, float]]] = defaultdict(list)
    for name, row in rows.items():
        for call in row.calls:
            calls[call.kernel if by_kernel else name].append(expect_call(call, gpu, element_size, launch_seconds))
    found = {}
    for name, times in calls.items():
        reasons = [max(time, key=time.__getitem__) for time in times]
        limited = {limit: reasons.count(limit) for limit in LIMITS}
        found[name] = Expected(sum(max(time.values()) for time in times), len(times), limited)
    return dict(sorted(found.items(), key=lambda item: -item[1].seconds))


def measured_kernels(path: Path) -> tuple[dict[str, float], dict[str, Any]]:
    """The measured times in a result of scripts/gpu_acceptance.py.

    Args:
        path: its JSON file.

    Returns:
        (kernel of this library, or operator of PyTorch, to seconds in one restoration; the workload).

    Raises:
        ValueError: for a file without a profile.
        OSError: if it cannot be read.
    """
    try:
        tables = json.loads(path.read_text(encoding="utf-8"))["steps"]["profile"]["tables"]
        seconds: dict[str, float] = defaultdict(float)
        for row in tables["kernels.csv"]:
            own = row["operator"].startswith("resshift_fast::") and row["kernel"].endswith("_kernel")
            seconds[row["kernel"] if own else row["operator"]] += float(row["ms"]) / 1e3
        return dict(seconds), dict(tables["workload.json"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} has no profile of kernels ({type(error).__name__}: {error}); expected the JSON that "
            "scripts/gpu_acceptance.py writes on a GPU, with its step 'profile'"
        ) from None
