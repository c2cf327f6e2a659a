"""The autotune cache: the fastest order of backends for each operator and dtype, in a JSON file per device model.

`resshift-fast bench tune` measures and stores them in `autotune/` of the cache folder; files that come with this
package are in its own folder of that name. For each operator and dtype the user's file takes precedence. A file is

    {"format": 1, "device": "NVIDIA H100 80GB HBM3", "date": ..., "command": ..., "torch": ..., "triton": ...,
     "operators": {"group_norm": {"bfloat16": {"order": ["triton", "cuda", "reference"],
                                               "microseconds": {"triton": 512.3, ...}, "refused": {}}}}}

where only `order` and the names in `refused` are used; the rest is for readers. Backends after "reference" are not
used, nor those that were refused. If a kernel has several algorithms, there is an entry for each shape of a call, of
which only `choice` is used; for other shapes, and for a choice that it does not allow, the kernel takes its default:

    "algorithms": {"128x128@256x256b1": {"choice": "winograd 6", "microseconds": {"winograd 6": 41250.2, ...},
                                         "refused": {}}}

RESSHIFT_FAST_AUTOTUNE_CACHE=0 ignores all files, and those of `kernels.config_cache` too.
"""

import contextlib
import ctypes
import json
import os
import platform
import re
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resshift_fast.core.cache import cache_dir, read_json
from resshift_fast.core.files import make_folder, write_atomically

if TYPE_CHECKING:
    import torch

VARIABLE = "RESSHIFT_FAST_AUTOTUNE_CACHE"
FORMAT = 1
SHIPPED = Path(__file__).parents[1] / "autotune"
REFERENCE = "reference"


@dataclass(frozen=True)
class Measurement:
    """The measurement of one operator and dtype on one device model.

    Args:
        order: backends, the fastest first.
        refused: backend to what was wrong with its results.
        path: the file that it was read from.
        algorithms: shape of a call to the kernel's fastest algorithm, if it has several.
    """

    order: tuple[str, ...]
    refused: Mapping[str, str]
    path: Path
    algorithms: Mapping[str, str] = field(default_factory=dict)


def processor() -> str:
    """The model name of this machine's processor."""
    parts: dict[str, str] = {}
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
            parts[key.strip()] = value.strip()
    except OSError:
        pass
    if "CPU part" in parts:  # Linux on arm64, which knows processors by numbers
        return f"arm64 implementer {parts.get('CPU implementer', 'unknown')} part {parts['CPU part']}"
    return _apple_model() or platform.processor() or platform.machine() or "unknown"


def _apple_model() -> str | None:
    """The model name on macOS, such as "Apple M1"."""
    if sys.platform != "darwin":
        return None
    text, size = ctypes.create_string_buffer(256), ctypes.c_size_t(256)
    failed = ctypes.CDLL(None).sysctlbyname(b"machdep.cpu.brand_string", text, ctypes.byref(size), None, 0)
    return None if failed else text.value.decode(errors="replace").strip() or None


def device_name(device: "torch.device") -> str | None:
    """The model name of a device; None if it has none or is absent, as the device of fake tensors may be."""
    import torch

    if device.type == "cpu":
        return processor()
    module: Any = getattr(torch, device.type, None)
    if hasattr(module, "get_device_name") and module.is_available():
        name: str = module.get_device_name(device)
        return name
    return None


def filename(device: str) -> str:
    """The name of the file for a device model."""
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-") + ".json"


def user_path(device: str) -> Path:
    """The path of the user's file for a device model.

    Raises:
        OSError: the home folder is unknown.
    """
    return cache_dir() / "autotune" / filename(device)


def find(operator: str, device: "torch.device", dtype: "torch.dtype") -> Measurement | None:
    """The measurement of an operator on a device and in a dtype, or None.

    Args:
        operator: its name. device: its model is looked up. dtype: of the operator's first argument.
    """
    if os.environ.get(VARIABLE) == "0":
        return None
    name = device_name(device)
    if name is None:
        return None
    return _known(name).get((operator, str(dtype).removeprefix("torch.")))


def measured_order(
    backends: tuple[str, ...], operator: str, device: "torch.device", dtype: "torch.dtype"
) -> tuple[str, ...]:
    """Sort backends by their measured speed, without those that are slower than the reference.

    Backends without a measurement come last, in the order given: they may be newer than the measurement.

    Args:
        backends: their names. operator, device, dtype: as in `find`.
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
    """Shape of a call to its fastest algorithm; algorithms that are not `allowed` are left out, with a warning.

    Args:
        operator, device, dtype: as in `find`. allowed: names of the kernel's algorithms for this dtype.
    """
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
    """Replace a file atomically by new measurements, which later choices use.

    Args:
        content: from `measure.autotuning.content`. path: the file; its folder is created.

    Raises:
        OSError: if it cannot be written.
    """
    make_folder(path.parent)
    write_atomically(path, (json.dumps({"format": FORMAT, **content}, indent=1) + "\n").encode())
    forget()


def forget() -> None:
    """Drop what was read, so that the files are read again."""
    _known.cache_clear()
    _warned.clear()


@cache
def _known(device: str) -> dict[tuple[str, str], Measurement]:
    """(operator, dtype) to its measurement, from the package's file for a device model, overridden by the user's."""
    paths = [SHIPPED / filename(device)]
    with contextlib.suppress(OSError):  # the home folder is unknown
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
    """Warn about a file, once."""
    if path in _warned:
        return
    _warned.add(path)
    reason = " ".join(reason.split())[:200]
    warnings.warn(f"{what}: {path}: {reason}; run 'resshift-fast bench tune' again", RuntimeWarning, stacklevel=3)


def _read(path: Path, device: str) -> dict[tuple[str, str], Measurement]:
    """Read one file: (operator, dtype) to its measurement.

    Raises:
        OSError: if it cannot be read.
        ValueError: if its format or device is wrong, with the reason.
    """
    content = read_json(path)
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
    """Shape to the chosen algorithm, whose name is checked later, against those of the kernel."""
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
