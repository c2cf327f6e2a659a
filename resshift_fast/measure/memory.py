"""Peak memory of this process: resident memory on a CPU, memory allocated by torch on a GPU."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_bytes(device: "torch.device | None" = None) -> float:
    """Peak memory in bytes so far, or since `reset_peak`; NaN if the system does not report it.

    Args:
        device: for a CUDA device, the memory that torch has allocated there; otherwise the resident memory of the
            process, including Python, torch and weights.
    """
    if getattr(device, "type", "cpu") == "cuda":
        import torch

        return float(torch.cuda.max_memory_allocated(device))
    try:
        # Unlike the system's ru_maxrss, this is not inherited from the process that started this one.
        line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
        return 1024.0 * int(line.split()[1])
    except (OSError, StopIteration):
        pass
    try:
        import resource
    except ImportError:
        return float("nan")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak if sys.platform == "darwin" else 1024 * peak)


def reset_peak(device: "torch.device | None" = None) -> bool:
    """Reset the peak to the memory held now; False if the system cannot, so that the peak stays that of all time."""
    if getattr(device, "type", "cpu") == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats(device)
        return True
    try:
        _CLEAR.write_text("5")
    except OSError:
        return False
    return True
