"""`resshift-fast doctor`: what can run here, and why the rest cannot."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated

from resshift_fast import __version__
from resshift_fast.cli.console import one_line
from resshift_fast.cli.options import option
from resshift_fast.core import devices

if TYPE_CHECKING:
    import torch

_LABEL = "{:<14} {}"


def doctor(
    as_json: Annotated[bool, option("Print JSON instead, for programs. Default: no.", "--json")] = False,
) -> None:
    """Show what can run on this machine, and why the rest cannot.

    Prints what is installed, where weights are stored, and which kernels each operator uses and why.
    """
    checked = {label: _safely(check) for label, check in _checks().items()}
    if as_json:
        print(json.dumps(checked | {"compiled": _compiled_as_data(), "operators": _as_data()}, indent=1))
        return
    for label, text in checked.items():
        print(_LABEL.format(label, text))
    print("\n" + _safely(_operators))


def _checks() -> dict[str, Callable[[], str]]:
    """Label of each line to the function that fills it in."""
    return {
        "resshift-fast": lambda: __version__,
        "Python": lambda: f"{platform.python_version()} on {platform.platform()}",
        "CPU": _cpu,
        "torch": _torch,
        "Triton": lambda: _version_of("triton", "not installed; comes with torch's CUDA builds on Linux"),
        "CUDA driver": _driver,
        "GPU": _gpu,
        "nvcc": lambda: _tool(["nvcc"], "not found; only needed to build CUDA kernels from source"),
        "C++ compiler": _compiler,
        "CPU library": lambda: _library("cpu"),
        "CUDA library": lambda: _library("cuda"),
        "numpy": lambda: _version_of("numpy", "not installed: pip install numpy"),
        "OpenCV": lambda: _version_of("cv2", "not installed; for training: pip install 'resshift-fast[train]'"),
        "Pillow": lambda: _version_of("PIL", "not installed: pip install pillow"),
        "weights": _weights,
        "cache": _cache,
        "Triton cache": _compiled,
    }


def _safely(check: Callable[[], str]) -> str:
    """Run a check; if it fails, report that and go on with the others."""
    try:
        return check()
    except Exception as error:
        return f"could not be checked: {type(error).__name__}: {one_line(error)}"


def _version_of(module: str, absent: str) -> str:
    try:
        return str(import_module(module).__version__)
    except ModuleNotFoundError as error:
        # An installed module that fails to import one of its dependencies is a different error.
        if error.name == module:
            return absent
        raise


def _cpu() -> str:
    from resshift_fast.backends.autotune_cache import processor

    return f"{processor()}, {platform.machine()}, {devices.available_cores()} cores usable"


def _torch() -> str:
    import torch

    build = f"CUDA {torch.version.cuda} build" if torch.version.cuda else "build without CUDA"
    return (
        f"{torch.__version__} ({build}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()})"
    )


def _driver() -> str:
    """Ask the driver library itself, so that this works with a torch without CUDA."""
    name = {"win32": "nvcuda.dll", "linux": "libcuda.so.1"}.get(sys.platform)
    if name is None:
        return "none exists for this system"
    try:
        library = ctypes.CDLL(name)
    except OSError:
        return f"not found ({name} cannot be loaded): everything runs on the CPU"
    version = ctypes.c_int()
    status = library.cuDriverGetVersion(ctypes.byref(version))
    if status:
        return f"installed, but returns error {status}"
    return f"for CUDA up to {version.value // 1000}.{version.value % 1000 // 10}"


def _gpu() -> str:
    import torch

    if torch.cuda.is_available():
        found = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        return "; ".join(
            f"cuda:{i} {gpu.name}, sm_{gpu.major}{gpu.minor}, {gpu.total_memory / 2**30:.0f} GiB"
            for i, gpu in enumerate(found)
        )
    if torch.backends.mps.is_available():
        return "Apple GPU, with --device mps"
    if torch.version.cuda is None:
        return "none that this torch can use (it is built without CUDA)"
    return "none that CUDA can use"


def _compiler() -> str:
    return _tool(
        [os.environ.get("CXX", ""), "c++", "g++", "clang++"], "not found; only needed to build kernels from source"
    )


def _tool(names: list[str], absent: str) -> str:
    """Version and path of the first of these programs that is installed."""
    for name in filter(None, names):
        path = shutil.which(name)
        if path is None:
            continue
        answer = subprocess.run([path, "--version"], capture_output=True, text=True, errors="replace", timeout=20)
        lines = [line.strip() for line in answer.stdout.splitlines() if line.strip()]
        telling = next((line for line in lines if "release" in line), lines[0] if lines else "version unknown")
        return f"{telling} ({path})"
    return absent


def _library(name: str) -> str:
    from resshift_fast.backends import native

    if reason := native.missing(name):
        return reason
    return f"loaded from {native.path(name)}" + (f", runs in {native.instruction_set()}" if name == "cpu" else "")


def _weights() -> str:
    from resshift_fast.models import catalog
    from resshift_fast.weights.download import local_path

    file = catalog.get(catalog.DEFAULT_MODEL).weights
    assert file is not None
    path = local_path(file)
    if not path.is_file():
        return f"{path} is missing: the default model cannot run; install resshift-fast again"
    return f"{path} ({path.stat().st_size / 1e6:.1f} MB), the default model {catalog.DEFAULT_MODEL}"


def _cache() -> str:
    from resshift_fast.core.cache import CACHE_VARIABLE, cache_dir

    folder = cache_dir()
    how = f"set {CACHE_VARIABLE}=FOLDER to move it"
    if not folder.is_dir():
        return f"{folder} (created at the first download; {how})"
    # Only weights: there are also lock files and records of hashes.
    sizes = [path.stat().st_size for path in folder.iterdir() if path.suffix in (".pth", ".safetensors")]
    return f"{folder} ({len(sizes)} weights files, {sum(sizes) / 1e6:.1f} MB; {how})"


def _compiled() -> str:
    from resshift_fast.restoration import precompilation

    if find_spec("triton") is None:
        return "none: Triton is not installed"
    records = precompilation.records()
    current = [record for record in records if record.is_current]
    found = [f"{r.title} for sm_{r.arch} {r.present} of {r.kernels}" for r in current]
    found += [f"{len(records) - len(current)} more for other versions"] if len(records) > len(current) else []
    listed = "; ".join(found) or "none yet; the first photo on a GPU compiles them, or resshift-fast compile"
    return f"{precompilation.cache_folder()} (compiled kernels: {listed})"


def _compiled_as_data() -> list[dict[str, object]]:
    from resshift_fast.restoration import precompilation

    if find_spec("triton") is None:
        return []
    keys = ("title", "arch", "triton", "kernels", "present", "is_current")
    return [{key: getattr(record, key) for key in keys} for record in precompilation.records()]


def _operators() -> str:
    """A block of lines for each device."""
    from resshift_fast import backends, ops  # noqa: F401  operators register themselves

    refused = _refusal()
    blocks = []
    for device, name in _devices():
        decisions = backends.status(device)
        titles = [" ".join((decision.operator, *decision.dtypes)) for decision in decisions]
        width = max(map(len, titles))
        lines = [
            f"  {title:<{width}}  {decision.backend}: {decision.reason}"
            for title, decision in zip(titles, decisions, strict=True)
        ]
        blocks.append("\n".join([f"Kernels of each operator on {device} ({name}):", *refused, *lines]))
    return "\n\n".join(blocks)


def _as_data() -> dict[str, list[dict[str, object]]]:
    from resshift_fast import backends, ops  # noqa: F401  operators register themselves

    return {str(device): [asdict(decision) for decision in backends.status(device)] for device, _ in _devices()}


def _refusal() -> list[str]:
    """A line about RESSHIFT_FAST_BACKEND if that names a backend that cannot run; else no line."""
    from resshift_fast import backends

    try:
        backends.preferred()
    except ValueError as error:
        reason = one_line(error).removeprefix(f"{backends.VARIABLE}: ")
        return [f"  {backends.VARIABLE} is wrong, so nothing runs: {reason}"]
    return []


def _devices() -> list[tuple[torch.device, str]]:
    """The usable devices of this machine with their names, one of each model."""
    import torch

    from resshift_fast.backends.autotune_cache import device_name

    present = [torch.device("cpu")]
    for kind in ("cuda", "xpu"):
        module = getattr(torch, kind, None)
        if module is not None and module.is_available():
            present += [torch.device(kind, i) for i in range(module.device_count())]
    named = {device_name(device) or str(device): device for device in reversed(present)}
    return [(device, name) for name, device in reversed(named.items())]
