"""Which backend was the fastest: orders that were measured, in a JSON file for each model of device.

`resshift-fast bench tune` measures and stores them in `autotune/` of the cache folder; this package's own are in
the folder of that name here. The user's stand over the package's, for each operator and dtype. A file is

    {"format": 1, "device": "NVIDIA H100 80GB HBM3", "date": ..., "command": ..., "torch": ..., "triton": ...,
     "operators": {"group_norm": {"bfloat16": {"order": ["triton", "cuda", "reference"],
                                               "microseconds": {"triton": 512.3, ...}, "refused": {}}}}}

where `order` alone and the names in `refused` decide, and the rest is for readers. What stands behind "reference" is
not used, nor what is refused. Where a kernel can compute in several ways, what was measured for each shape of a call
stands beside them, and `choice` decides; other shapes, and choices that the kernel does not allow, are left to it:

    "algorithms": {"128x128@256x256b1": {"choice": "winograd 6", "microseconds": {"winograd 6": 41250.2, ...},
                                         "refused": {}}}

RESSHIFT_FAST_AUTOTUNE_CACHE=0 ignores all files, and those of `kernels.config_cache` too.
"""

import contextlib
import json
import os
import platform
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resshift_fast.core.cache import cache_dir
from resshift_fast.core.files import make_folder, write_atomically

if TYPE_CHECKING:
    import torch

VARIABLE = "RESSHIFT_FAST_AUTOTUNE_CACHE"
FORMAT = 1
SHIPPED = Path(__file__).parents[1] / "autotune"
REFERENCE = "reference"


@dataclass(frozen=True)
class Measurement:
    """What was measured for one operator and dtype on one model of device.

    Args:
        order: backends, the fastest first.
        refused: backend to what was wrong with its results.
        path: the file that says so.
        algorithms: shape of a call to the fastest algorithm of the kernel that has several.
    """

    order: tuple[str, ...]
    refused: Mapping[str, str]
    path: Path
    algorithms: Mapping[str, str] = field(default_factory=dict)


def processor() -> str:
    """The model of this machine's processor."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    except OSError:
        pass
    return platform.processor() or platform.machine() or "unknown"


def device_name(device: "torch.device") -> str | None:
    """The model of a device; None for one that is not here, as fake tensors have, or has no name."""
    import torch

    if device.type == "cpu":
        return processor()
    module: Any = getattr(torch, device.type, None)
    if hasattr(module, "get_device_name") and module.is_available():
        name: str = module.get_device_name(device)
        return name
    return None


def filename(device: str) -> str:
    """The name of the file for a model of device."""
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-") + ".json"


def user_path(device: str) -> Path:
    """Where the user's file for a model of device is kept.

    Raises:
        OSError: the home folder is unknown.
    """
    return cache_dir() / "autotune" / filename(device)


def find(operator: str, device: "torch.device", dtype: "torch.dtype") -> Measurement | None:
    """What was measured for an operator on a device and in a dtype, if anything was."""
    if os.environ.get(VARIABLE) == "0":
        return None
    name = device_name(device)
    if name is None:
        return None
    return _known(name).get((operator, str(dtype).removeprefix("torch.")))


def measured_order(
    backends: tuple[str, ...], operator: str, device: "torch.device", dtype: "torch.dtype"
) -> tuple[str, ...]:
    """These backends in the order in which they were measured, without those that the reference beats.

    Those that nobody has measured come last, in the order given: they may be newer than the measurement.
    """
    found = find(operator, device, dtype)
    if found is None:
        return backends
    end = found.order.index(REFERENCE) if REFERENCE in found.order else len(found.order)
    fast = [name for name in found.order[:end] if name in backends]
    unmeasured = [name for name in backends if name not in found.order and name not in found.refused]
    return (*fast, *unmeasured)


def algorithms(
    operator: str, device: "torch.device", dtype: "torch.dtype", allowed: tuple[str, ...]
) -> Mapping[str, str]:
    """Shape of a call to the algorithm that was measured to be the fastest; those not `allowed` are left out."""
    found = find(operator, device, dtype)
    if found is None:
        return {}
    fit = {shape: choice for shape, choice in found.algorithms.items() if choice in allowed}
    for shape, choice in found.algorithms.items():
        if shape not in fit:
            where = f"{operator}, {str(dtype).removeprefix('torch.')}, algorithms, {shape}"
            reason = f"{where}: choice is {choice!r}, expected one of {', '.join(allowed)}"
            _warn("an entry of the autotune cache is ignored", found.path, reason)
            break
    return fit


def store(content: Mapping[str, Any], path: Path) -> None:
    """Write what was measured in one step, in place of what was there; choices made from now on follow it.

    Raises:
        OSError: if it cannot be written.
    """
    make_folder(path.parent)
    write_atomically(path, (json.dumps({"format": FORMAT, **content}, indent=1) + "\n").encode())
    forget()


def forget() -> None:
    """Have the files read anew."""
    _known.cache_clear()
    _warned.clear()


@cache
def _known(device: str) -> dict[tuple[str, str], Measurement]:
    """(operator, dtype) to what the files for a model of device say: the package's, and over it the user's."""
    paths = [SHIPPED / filename(device)]
    with contextlib.suppress(OSError):  # no home, no file
        paths.append(user_path(device))
    known: dict[tuple[str, str], Measurement] = {}
    for path in paths:
        try:
            known |= _read(path, device)
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            _warn("the autotune cache is ignored", path, str(error))
    return known


_warned: set[Path] = set()


def _warn(what: str, path: Path, reason: str) -> None:
    """Say once of a file what is wrong with it."""
    if path in _warned:
        return
    _warned.add(path)
    reason = " ".join(reason.split())[:200]
    warnings.warn(f"{what}: {path}: {reason}; 'resshift-fast bench tune' makes new ones", RuntimeWarning, stacklevel=3)


def _read(path: Path, device: str) -> dict[tuple[str, str], Measurement]:
    """What one file says.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is no such file, with the reason.
    """
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else None
        raise ValueError(f"its format is {found!r}, expected {FORMAT}")
    if content.get("device") != device:
        raise ValueError(f"it is for {content.get('device')!r}, expected {device!r}")
    known = {}
    for operator, of_dtypes in _object(content.get("operators"), "operators").items():
        for dtype, measured in _object(of_dtypes, operator).items():
            where = f"{operator}, {dtype}"
            order = _object(measured, where).get("order")
            if not isinstance(order, list) or not all(isinstance(name, str) for name in order):
                raise ValueError(f"{where}: order is {order!r}, expected a list of backends")
            refused = _object(measured.get("refused", {}), f"{where}: refused")
            choices = _choices(measured.get("algorithms", {}), f"{where}, algorithms")
            known[operator, dtype] = Measurement(tuple(order), refused, path, choices)
    return known


def _choices(of_shapes: Any, where: str) -> dict[str, str]:
    """Shape to the algorithm that was chosen; whether a kernel has it is not known here."""
    choices = {}
    for shape, found in _object(of_shapes, where).items():
        choice = _object(found, f"{where}, {shape}").get("choice")
        if not isinstance(choice, str):
            raise ValueError(f"{where}, {shape}: choice is {choice!r}, expected the name of an algorithm")
        choices[shape] = choice
    return choices


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{where}: found {value!r}, expected an object")
    return value
