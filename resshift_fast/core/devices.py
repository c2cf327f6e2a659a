"""Devices: which can be used here, and which is the current one."""

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def usable_device(device: "str | torch.device | None") -> "torch.device":
    """The device, after a number was put on it and read back; None takes CUDA where it works, else the CPU.

    Raises:
        ValueError: if it cannot be used here, with the reason.
    """
    import torch

    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(device)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"device {str(device)!r} cannot be used here: {reason}; use device='cpu'") from None
    return device


def on(device: "torch.device") -> AbstractContextManager[None]:
    """Context in which a CUDA device is the current one: kernels are launched there, wherever their tensors are."""
    import torch

    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
