"""The backends, in the order in which "auto" tries them on a device type.

A new backend needs an `add_backend` here, and a loader under its name for each operator that it has a kernel for.
"""

import os
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from resshift_fast.backends import native
from resshift_fast.backends.registry import Backend, add_backend


@cache
def has_triton() -> bool:
    """Whether Triton is installed."""
    return find_spec("triton") is not None


@cache
def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available() or (hasattr(torch, "xpu") and torch.xpu.is_available())


def _interpreted() -> bool:
    """Whether Triton kernels run in its interpreter, and so take CPU tensors."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def _triton_missing() -> str | None:
    if not has_triton():
        return "needs Triton, which is not installed; pip install triton"
    if _interpreted():
        return interpreter_fault()
    return None if _has_gpu() else _NO_GPU


def interpreter_fault() -> str | None:
    """Why Triton's interpreter can't run the kernels here; None if it can, or if the versions are unknown."""
    try:
        triton, numpy = (tuple(int(x) for x in version(p).split(".")[:2]) for p in ("triton", "numpy"))
    except (PackageNotFoundError, ValueError):
        return None
    # Up to Triton 3.6 the interpreter converts loop bounds to int in a way that NumPy supported up to version 2.3.
    if triton < (3, 7) and numpy >= (2, 4):
        return "needs a NumPy before 2.4, for the interpreter of Triton before 3.7; pip install 'numpy<2.4'"
    return None


_NO_GPU = "needs a GPU that this build of torch can use; torch.cuda.is_available() is False"

CUDA = add_backend(
    Backend(
        "cuda",
        device_types=("cuda",),
        takes=lambda device_type: device_type == "cuda",
        installed=lambda: native.missing("cuda") is None,
        missing=lambda: native.missing("cuda") or (None if _has_gpu() else _NO_GPU),
    )
)
TRITON = add_backend(
    Backend(
        "triton",
        device_types=("cuda", "xpu"),
        takes=lambda device_type: device_type != "cpu" or _interpreted(),
        installed=lambda: has_triton(),
        missing=_triton_missing,
    )
)
CPU = add_backend(
    Backend(
        "cpu",
        device_types=("cpu",),
        takes=lambda device_type: device_type == "cpu",
        installed=lambda: native.missing("cpu") is None,
        missing=lambda: native.missing("cpu"),
    )
)
