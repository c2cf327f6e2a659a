"""The autotune cache of kernel configurations: one JSON file for each device model, software and sources.

The files are in `configurations/` of the cache folder. A file's name contains a hash of the device model, the driver,
torch, Triton and this folder's sources, so that a configuration is never used with anything it was not measured with.
RESSHIFT_FAST_AUTOTUNE_CACHE=0 neither reads nor writes them.
"""

import json
import os
import re
import secrets
import warnings
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any

import torch

from resshift_fast.core import environment
from resshift_fast.core.cache import cache_dir, read_json
from resshift_fast.core.locking import locked

VARIABLE = "RESSHIFT_FAST_AUTOTUNE_CACHE"
FORMAT = 1

Known = dict[tuple[str, tuple], Mapping[str, Any]]

_known: dict[Path | None, Known] = {None: {}}
_keeping = Lock()


def known(device: torch.device) -> Mapping[tuple[str, tuple], Mapping[str, Any]]:
    """(kernel, bucket) to its fastest launch options on this device model. The file is read once."""
    path = _path(device)
    if path is not None and path not in _known:
        _known[path] = _read(path)
    return _known[path]


def keep(device: torch.device, kernel: str, bucket: tuple, options: Mapping[str, Any]) -> None:
    """Store one choice and keep those of other processes; does nothing where the cache folder cannot be written.

    Args:
        kernel: its name. bucket: of strings and integers. options: keyword arguments of `launch`.
    """
    path = _path(device)
    if path is None:
        return
    new: Known = {(kernel, bucket): dict(options)}
    with _keeping:
        _known[path] = {**known(device), **new}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with locked(path.with_suffix(".lock")):
                # Keep what another process has stored meanwhile; this process's own choices take precedence.
                _write(path, _read(path) | new, device)
        except OSError:
            return


def forget() -> None:
    """Drop what was read; the files are read again when needed."""
    _known.clear()
    _known[None] = {}
    _path.cache_clear()


@cache
def _path(device: torch.device) -> Path | None:
    """The file for a device; None where the cache is not used."""
    absent = device.type == "cuda" and not torch.cuda.is_available()  # a fake tensor's device
    if os.environ.get(VARIABLE) == "0" or absent:
        return None
    try:
        folder = cache_dir() / "configurations"
    except OSError:
        return None
    name = re.sub(r"[^a-z0-9]+", "-", _model(device).lower()).strip("-")
    sources = environment.code(Path(__file__).parent)
    return folder / f"{name}-{environment.fingerprint(device, sources)}.json"


def _model(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _read(path: Path) -> Known:
    """A file's content; empty if there is no file, and, after a warning, if it is damaged."""
    try:
        return _parsed(read_json(path))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError) as error:
        _warn(path, " ".join(str(error).split())[:200])
        return {}


def _parsed(content: Any) -> Known:
    """The choices in a file's content; raises ValueError with the reason if `_write` did not write it."""
    if not isinstance(content, dict) or content.get("format") != FORMAT or not isinstance(content.get("choices"), list):
        raise ValueError(f"expected an object of format {FORMAT} with a list of choices")
    found: Known = {}
    for choice in content["choices"]:
        kinds = {"kernel": str, "bucket": list, "options": dict}
        if not isinstance(choice, dict) or not all(isinstance(choice.get(key), of) for key, of in kinds.items()):
            raise ValueError(f"{choice!r}: expected an object with {', '.join(kinds)}")
        if not all(isinstance(step, str | int) for step in choice["bucket"]):
            raise ValueError(f"{choice!r}: expected a bucket of strings and integers")
        found[choice["kernel"], tuple(choice["bucket"])] = choice["options"]
    return found


def _write(path: Path, choices: Known, device: torch.device) -> None:
    """Replace the file atomically."""
    content = {
        "format": FORMAT,
        "device": _model(device),
        "torch": torch.__version__,
        "choices": [
            {"kernel": kernel, "bucket": list(bucket), "options": dict(options)}
            for (kernel, bucket), options in choices.items()
        ],
    }
    part = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")
    try:
        part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


@cache
def _warn(path: Path, reason: str) -> None:
    """Warn once about a file."""
    warnings.warn(f"measured configurations are ignored: {path}: {reason}", RuntimeWarning, stacklevel=5)
