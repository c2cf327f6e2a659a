"""The most memory that this process has held: of the system's by the CPU, of torch's own on a GPU."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_bytes(device: "torch.device | None" = None) -> float:
    """The most that was held so far, or since `reset_peak`; NaN where the system tells nothing.

    Args:
        device: a CUDA device gives what torch has allocated there; else it is the whole process's resident memory,
            Python, torch and weights included.
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
    """Have the peak begin at what is held now; False where the system cannot, and the peak stays that of all time."""
    if getattr(device, "type", "cpu") == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats(device)
        return True
    try:
        _CLEAR.write_text("5")
    except OSError:
        return False
    return True
