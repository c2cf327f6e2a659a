"""A hash of what a verdict or a measurement depends on: device, driver, torch, Triton and source files."""

import contextlib
import hashlib
import os
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def fingerprint(device: "torch.device", paths: Iterable[Path], details: Iterable[str] = ()) -> str:
    """Hash of everything that the results of kernels on a device depend on, 16 hexadecimal digits.

    Args:
        device: the device that the kernels run on.
        paths: source files and libraries; their content is hashed in this order.
        details: further strings to hash.
    """
    import torch

    interpreted = os.environ.get("TRITON_INTERPRET", "")
    parts = [device.type, torch.__version__, str(torch.version.cuda), interpreted, *details]
    if device.type == "cuda" and torch.cuda.is_available():  # fake tensors may be on a CUDA device that is absent
        parts += [torch.cuda.get_device_name(device), _driver()]
    if (device.type != "cpu" or interpreted == "1") and find_spec("triton"):
        import triton  # slow, so only if its version matters

        parts.append(triton.__version__)
    digest = hashlib.sha256("\n".join(parts).encode())
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def code(*folders: Path) -> list[Path]:
    """The Python files and shared libraries directly in these folders, sorted."""
    return sorted(path for folder in folders for path in folder.iterdir() if path.suffix in (".py", ".so"))


def _driver() -> str:
    with contextlib.suppress(OSError):
        return Path("/proc/driver/nvidia/version").read_text().splitlines()[0]
    return ""
