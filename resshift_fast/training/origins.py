"""What a training depends on besides its settings: photos, frozen networks, the model.

Fingerprints of them are in last.pt, so that a run that continues can say what has changed in between.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from resshift_fast.core.files import expand_home


def of_photos(sources: Sequence[str | Path], paths: Sequence[str]) -> str:
    """A fingerprint of photos that differs if one was added, removed, renamed, moved in the order or in its size.

    Names are relative to the folder or list file that they are from, which may lie elsewhere. No photo is opened.

    Args:
        sources, paths: as `photos.list_photos` takes and returns them.
    """
    folders = [one if one.is_dir() else one.parent for one in map(expand_home, sources)]
    roots = tuple(os.path.join(folder, "") for folder in folders)
    digest = hashlib.sha256()
    for path in paths:
        root = next((root for root in roots if path.startswith(root)), "")
        digest.update(os.fsencode(path[len(root) :]) + b"\0%d\n" % _size(path))
    return digest.hexdigest()


def _size(path: str) -> int:
    """In bytes; −1 for a photo that isn't there, which is left out later."""
    try:
        return os.stat(path).st_size
    except OSError:
        return -1


def of_weights(module: nn.Module) -> str:
    """A fingerprint of the names and values of a module's tensors, whatever file they are from."""
    digest = hashlib.sha256()
    for name, value in module.state_dict().items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def changes(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """A phrase for each thing, named in the plural, whose fingerprints differ."""
    return [f"the {name} have changed" for name, value in now.items() if before.get(name, value) != value]


def described(model: Any, names: Sequence[str]) -> dict[str, Any]:
    """Attributes of a model as plain values by name, a dataclass by its fields; missing ones are left out."""
    found: dict[str, Any] = {}
    for name in names:
        value = getattr(model, name, None)
        if is_dataclass(value) and not isinstance(value, type):
            found |= {f"{name}.{field}": inner for field, inner in asdict(value).items()}
        elif value is not None:
            found[name] = value
    return found
