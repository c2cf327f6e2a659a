r"""Two images side by side in their channels, :math:`y = \mathrm{cat}(x, o)`.

A skip connection brings an image of the encoder into a U-Net's decoder so (arXiv 1505.04597). PyTorch's own operator
shares the work by OpenMP, whose loops wait for every thread to start: beside a busy program each takes milliseconds.
"""

import torch
from torch import Tensor

from resshift_fast import backends
from resshift_fast.ops import checks, drawing
from resshift_fast.ops.registration import Native, recomputed, register


def reference(x: Tensor, other: Tensor) -> Tensor:
    """The formula in plain PyTorch."""
    return torch.cat([x, other], dim=1)


def _plain(x: Tensor, other: Tensor) -> Tensor:
    return reference(x, other).contiguous(memory_format=torch.channels_last)


def _fake(x: Tensor, other: Tensor) -> Tensor:
    size = (x.shape[0], x.shape[1] + other.shape[1], *x.shape[2:])
    return torch.empty(size, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def _examples(device: torch.device, dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
    """Few channels and many, of one image and of several."""
    normal = drawing.normal(device, dtype)
    return [
        (drawing.channels_last(normal(2, 7, 9, 5)), drawing.channels_last(normal(2, 3, 9, 5))),
        (drawing.channels_last(normal(1, 64, 33, 17)), drawing.channels_last(normal(1, 96, 33, 17))),
    ]


_op = register(
    "concat", _plain, fake=_fake, examples=_examples, loaders={"cpu": Native()}, public=False, **recomputed(reference)
)


def concat(x: Tensor, other: Tensor) -> Tensor:
    """Concatenate the channels of two images.

    Args:
        x: [B, C1, H, W], floating point.
        other: [B, C2, H, W] in x's dtype.

    Returns:
        [B, C1 + C2, H, W] in x's dtype, channels-last where a kernel makes it. Differentiable in both.

    Raises:
        ValueError: for a shape that does not fit, or another device.
        TypeError: for another dtype.

    Example:
        >>> concat(torch.randn(2, 8, 5, 7), torch.randn(2, 4, 5, 7)).shape
        torch.Size([2, 12, 5, 7])
    """
    _check(x, other)
    if backends.fused("concat", x.device) and not torch.is_grad_enabled():
        y: Tensor = _op(x, other)
        return y
    return reference(x, other)


@checks.once
def _check(x: Tensor, other: Tensor) -> None:
    checks.image("concat", "x", x)
    checks.image("concat", "other", other)
    size = (x.shape[0], other.shape[1], *x.shape[2:])
    checks.shape("concat", "other", other, size, "[B, C2, H, W] to match x")
    if other.dtype != x.dtype:
        raise TypeError(f"concat: other has dtype {other.dtype}, expected x's {x.dtype}")
    checks.devices("concat", x, other=other)
