r"""Two images side by side in their channels, :math:`y = \mathrm{cat}(x, f(o))`.

A skip connection brings an image of the encoder into a U-Net's decoder so (arXiv 1505.04597), and a dense block appends
the result of a convolution so to what it was made of (arXiv 1608.06993), with f a leaky ReLU. PyTorch's own operator
shares the work by OpenMP, whose loops wait for every thread to start: beside a busy program each takes milliseconds.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from resshift_fast import backends
from resshift_fast.ops import checks, drawing
from resshift_fast.ops.registration import Native, recomputed, register


def reference(x: Tensor, other: Tensor, slope: float = 1.0) -> Tensor:
    """The formula in plain PyTorch."""
    return torch.cat([x, other if slope == 1 else F.leaky_relu(other, slope)], dim=1)


def _plain(x: Tensor, other: Tensor, slope: float) -> Tensor:
    return reference(x, other, slope).contiguous(memory_format=torch.channels_last)


def _fake(x: Tensor, other: Tensor, slope: float) -> Tensor:
    size = (x.shape[0], x.shape[1] + other.shape[1], *x.shape[2:])
    return torch.empty(size, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def _examples(device: torch.device, dtype: torch.dtype) -> list[tuple[Any, ...]]:
    """Few channels and many, of one image and of several."""
    normal = drawing.normal(device, dtype)
    return [
        (drawing.channels_last(normal(2, 7, 9, 5)), drawing.channels_last(normal(2, 3, 9, 5)), 1.0),
        (drawing.channels_last(normal(1, 64, 33, 17)), drawing.channels_last(normal(1, 96, 33, 17)), 0.2),
    ]


_op = register(
    "concat", _plain, fake=_fake, examples=_examples, loaders={"cpu": Native()}, public=False, **recomputed(reference)
)


def concat(x: Tensor, other: Tensor, slope: float = 1.0) -> Tensor:
    """Concatenate the channels of two images.

    Args:
        x: [B, C1, H, W], floating point.
        other: [B, C2, H, W] in x's dtype.
        slope: of a leaky ReLU that other goes through, above 0, at most 1; 1 for none.

    Returns:
        [B, C1 + C2, H, W] in x's dtype, channels-last where a kernel makes it. Differentiable in both.

    Raises:
        ValueError: for a shape that does not fit, another device, or a slope that is not possible.
        TypeError: for another dtype.

    Example:
        >>> concat(torch.randn(2, 8, 5, 7), torch.randn(2, 4, 5, 7)).shape
        torch.Size([2, 12, 5, 7])
    """
    _check(x, other, slope)
    if backends.fused("concat", x.device) and not torch.is_grad_enabled():
        y: Tensor = _op(x, other, slope)
        return y
    return reference(x, other, slope)


@checks.once
def _check(x: Tensor, other: Tensor, slope: float) -> None:
    checks.image("concat", "x", x)
    checks.image("concat", "other", other)
    size = (x.shape[0], other.shape[1], *x.shape[2:])
    checks.shape("concat", "other", other, size, "[B, C2, H, W] to match x")
    if other.dtype != x.dtype:
        raise TypeError(f"concat: other has dtype {other.dtype}, expected x's {x.dtype}")
    if not 0 < slope <= 1:
        raise ValueError(f"concat: slope is {slope}, expected above 0, at most 1")
    checks.devices("concat", x, other=other)
