"""Devices: check that one can be used, make one current, and wait for one."""

import os
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def usable_device(device: "str | torch.device | None") -> "torch.device":
    """The device, checked by writing and reading an element; None and "auto" take CUDA if it is there, else the CPU.

    "gpu" is another name of "cuda".

    Raises:
        ValueError: if it cannot be used here, with the reason.
    """
    import torch

    if isinstance(device, str):
        device = {"auto": None, "gpu": "cuda"}.get(device.lower(), device)
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(device)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"device {str(device)!r} cannot be used here: {reason}; use device='cpu'") from None
    return device


def available_cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def on(device: "torch.device") -> AbstractContextManager[None]:
    """Make a CUDA device current within the block: kernels are launched on the current device, not the tensors'."""
    import torch

    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def wait_for(x: "torch.Tensor") -> None:
    """Wait until a tensor made on the current stream has its values, so that other streams can read it."""
    import torch

    if x.is_cuda and torch.cuda.is_available():  # fake tensors on CUDA exist without it
        torch.cuda.current_stream(x.device).synchronize()
