"""Random tensors for the examples on which an operator's backends are verified."""

from collections.abc import Callable

import torch
from torch import Tensor


def normal(device: torch.device, dtype: torch.dtype, seed: int = 0) -> Callable[..., Tensor]:
    """Function of a shape's sizes to a tensor of normally distributed values, the same in every run.

    Example:
        >>> draw = normal(torch.device("cpu"), torch.float16)
        >>> draw(2, 3).shape
        torch.Size([2, 3])
    """
    generator = torch.Generator(device).manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device).to(dtype)

    return draw


def channels_last(x: Tensor) -> Tensor:
    """x in the memory format of the networks' activations."""
    return x.contiguous(memory_format=torch.channels_last)
