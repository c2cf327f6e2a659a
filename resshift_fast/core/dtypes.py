"""Floating-point formats by the names that people type."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

NAMES = ("float32", "bfloat16", "float16")
_OTHERS = {
    "fp32": "float32",
    "float": "float32",
    "full": "float32",
    "single": "float32",
    "bf16": "bfloat16",
    "fp16": "float16",
    "half": "float16",
}
_EXPECTED = f"expected one of {', '.join(NAMES)}, or fp32, bf16, fp16, half, auto"


def full_name(name: str) -> str:
    """One of `NAMES`, or "auto", for a name in any case, such as bf16, fp16 or half.

    Raises:
        ValueError: if it is none.
    """
    known = name.strip().lower().removeprefix("torch.")
    known = _OTHERS.get(known, known)
    if known not in (*NAMES, "auto"):
        raise ValueError(f"dtype is {name!r}, {_EXPECTED}")
    return known


def usable_dtype(dtype: "torch.dtype | str", device: "torch.device") -> "torch.dtype":
    """The format to run networks in.

    Args:
        dtype: torch.float32, bfloat16 or float16, a name of one (see `full_name`), or "auto": bfloat16 on a CUDA device
            of compute capability 8.0 or newer, which is much faster there, and float32 elsewhere.
        device: where the networks run.

    Raises:
        ValueError: for another one.
    """
    import torch

    if isinstance(dtype, torch.dtype) and dtype in (torch.float32, torch.bfloat16, torch.float16):
        return dtype
    if not isinstance(dtype, str):
        raise ValueError(f"dtype is {dtype!r}, {_EXPECTED}")
    name = full_name(dtype)
    if name == "auto":
        is_fast = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
        name = "bfloat16" if is_fast else "float32"
    found: torch.dtype = getattr(torch, name)
    return found
