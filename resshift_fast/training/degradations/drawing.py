"""Random parameters from uniform values, and random pixels from seeds."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import fields
from itertools import accumulate
from typing import Any, TypeVar

import torch
from torch import Tensor

Range = tuple[float, float]
_Settings = TypeVar("_Settings")


def between(u: Tensor, limits: Range) -> Tensor:
    """Uniform values in [0, 1) to uniform ones in `limits`."""
    return limits[0] + (limits[1] - limits[0]) * u


def pick(u: float, weights: Sequence[float]) -> int:
    """The index that a uniform value in [0, 1) picks, with probabilities proportional to the weights."""
    steps = list(accumulate(weights))
    return min(bisect_right(steps, u * steps[-1]), len(steps) - 1)


def picks(u: Tensor, weights: Sequence[float]) -> Tensor:
    """As `pick`, for a tensor: int64 indices like u."""
    steps = torch.tensor(list(accumulate(weights)), dtype=u.dtype, device=u.device)
    return torch.bucketize(u * steps[-1], steps, right=True).clamp_max(len(steps) - 1)


def check_share(where: str, **values: float) -> None:
    """Raise ValueError unless all values are probabilities."""
    for name, value in values.items():
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"{where}: {name} is a probability, expected 0 to 1, got {value}")


def check_range(where: str, low: float, high: float = float("inf"), **ranges: Range) -> None:
    """Raise ValueError unless all are pairs with low ≤ first ≤ second ≤ high."""
    for name, value in ranges.items():
        if len(value) != 2 or not low <= value[0] <= value[1] <= high:
            raise ValueError(f"{where}: {name} is {value}, expected two values in increasing order, {low} to {high}")


def check_weights(where: str, count: int, **weights: Sequence[float]) -> None:
    """Raise ValueError unless all are `count` non-negative values, not all 0."""
    for name, value in weights.items():
        if len(value) != count or min(value, default=0) < 0 or sum(value) <= 0:
            raise ValueError(f"{where}: {name} is {value}, expected {count} weights ≥ 0, not all 0")


def from_options(kind: type[_Settings], options: Mapping[str, Any]) -> _Settings:
    """A dataclass of settings from plain values; lists become tuples.

    Raises:
        ValueError: naming the options that it does not have, or whose value is of another kind than the default.
    """
    known = {field.name: field.default for field in fields(kind)}  # type: ignore[arg-type]
    if unknown := set(options) - known.keys():
        raise ValueError(
            f"{kind.__name__} has no setting {', '.join(sorted(unknown))}; it has {', '.join(sorted(known)) or 'none'}"
        )
    for name, value in options.items():
        if not _is_like(value, known[name]):
            raise ValueError(
                f"{kind.__name__}: {name} is {value!r}, expected {_like(known[name])}, such as {known[name]}"
            )
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in options.items()})


_KINDS = {bool: "true or false", int: "an integer", float: "a number", str: "a name"}


def _is_like(value: Any, default: Any) -> bool:
    """Whether a value may take the place of a default; any may where that is None or missing."""
    if isinstance(default, tuple):
        return isinstance(value, list | tuple) and all(_is_like(one, default[0]) for one in value)
    if type(default) not in _KINDS:
        return True
    return type(value) is type(default) or (type(default) is float and type(value) is int)


def _like(default: Any) -> str:
    """What `_is_like` expects."""
    if isinstance(default, tuple):
        return f"a list, each {_like(default[0])}"
    return _KINDS[type(default)]


class PixelNoise:
    """Random pixels of the samples of a batch, each a function of its seed, its shape and the kind of device.

    Args:
        seeds: int64 [B], at least 0.
        device: of the pixels, on which they are drawn.
    """

    def __init__(self, seeds: Tensor, device: torch.device):
        self._generators = [torch.Generator(device).manual_seed(seed) for seed in seeds.tolist()]
        self._device = device

    def normal(self, *shape: int) -> Tensor:
        """Standard normal values, float32 [B, *shape]."""
        return torch.stack([torch.randn(shape, generator=one, device=self._device) for one in self._generators])

    def poisson(self, rate: Tensor) -> Tensor:
        """Poisson counts with these rates, float32 [B, ...] like the rates."""
        return torch.stack([torch.poisson(one, generator=g) for one, g in zip(rate, self._generators, strict=True)])
