"""Types of the arguments of a restoration; imported by type checkers only."""

from collections.abc import Callable, Sequence
from os import PathLike
from typing import Any, TypedDict, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from resshift_fast.images import File, Photo

Path = str | PathLike[str]
Progress = bool | Callable[[int, int], None]

ImageOrPath = Image.Image | File
"""Inputs that give a PIL image."""
Pixels = TypeVar("Pixels", np.ndarray, Tensor, Photo)
"""Inputs whose result has the same type."""
Mask = File | Image.Image | Photo | np.ndarray | Tensor
Masks = Mask | list[Any] | tuple[Any, ...]
Seeds = int | Sequence[int] | np.ndarray | Tensor


class Options(TypedDict, total=False):
    """Keyword arguments of `Pipeline.__call__`."""

    seed: Seeds
    tile: int | None
    overlap: int | None
    batch_size: int | None
    noise: str
    layout: str | None
    progress: Progress


class SampleOptions(Options, total=False):
    """Keyword arguments of `sample`."""

    mask: Masks | None
    device: str | torch.device | None
    dtype: torch.dtype | str
    weights: Path | None
    autoencoder: Path | None
