"""3×3 convolution with stride 1: y = w ∗ x + b."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from resshift_fast import backends
from resshift_fast.ops import checks
from resshift_fast.ops.registration import recomputed, register


def reference(x: Tensor, weight: Tensor, bias: Tensor | None, padding: int) -> Tensor:
    """The formula in plain PyTorch, in x's dtype."""
    return F.conv2d(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype), padding=padding)


def _plain(x: Tensor, weight: Tensor, bias: Tensor | None, padding: int) -> Tensor:
    return checks.image_like(reference(x, weight, bias, padding), x)


def _fake(x, weight, bias, padding):
    batch, _, height, width = x.shape
    size = (batch, weight.shape[0], height + 2 * padding - 2, width + 2 * padding - 2)
    return torch.empty(size, dtype=x.dtype, device=x.device, memory_format=checks.image_format(x))


def _matrix_operations(x, weight, bias, padding, *, out_shape, **_):
    """Nine taps a value of the result."""
    return 2 * 9 * weight[1] * math.prod(out_shape)


def examples(device: torch.device, dtype: torch.dtype, *options: int) -> list[tuple]:
    """Both memory formats, with and without bias; `options` end each call."""
    generator = torch.Generator(device).manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=generator, device=device).to(dtype)

    x, weight, bias = normal(2, 32, 9, 7), normal(48, 32, 3, 3) / 16, normal(48)
    return [(x.contiguous(memory_format=torch.channels_last), weight, bias, *options), (x, weight, None, *options)]


_op = register(
    "conv2d",
    _plain,
    fake=_fake,
    examples=lambda device, dtype: examples(device, dtype, 1),
    matrix_operations=_matrix_operations,
    **recomputed(reference),
)


def check_weight(op: str, x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """weight is [O, C, 3, 3] for x's C and O ≥ 1, bias [O] or None, on x's device."""
    checks.image(op, "x", x)
    checks.tensor(op, "weight", weight)
    channels = x.shape[1]
    if weight.dim() != 4 or weight.shape[1:] != (channels, 3, 3) or weight.shape[0] < 1:
        shape = tuple(weight.shape)
        raise ValueError(f"{op}: weight has shape {shape}, expected (O, {channels}, 3, 3) with O ≥ 1 to match x")
    checks.shape(op, "bias", bias, (weight.shape[0],), "to match weight's output channels", optional=True)
    checks.parameters(op, x, weight=weight, bias=bias)


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, padding: int = 1) -> Tensor:
    """3×3 convolution, stride 1.

    Args:
        x: [B, C, H, W], floating point, contiguous or channels-last.
        weight: [O, C, 3, 3], x's dtype or float32.
        bias: [O], x's dtype or float32, or None.
        padding: zeros added on every side, ≥ 0; with 0 the image must be at least 3×3.

    Returns:
        [B, O, H + 2·padding − 2, W + 2·padding − 2] in x's dtype. Differentiable in every tensor.

    Raises:
        ValueError: for a shape, device or padding that does not fit.
        TypeError: for a dtype other than those named.
    """
    check_weight("conv2d", x, weight, bias)
    if padding < 0:
        raise ValueError(f"conv2d: padding is {padding}, expected 0 or more")
    if min(x.shape[2:]) + 2 * padding < 3:
        size = f"{x.shape[2]}×{x.shape[3]}"
        raise ValueError(f"conv2d: image {size} with padding={padding} is smaller than the 3×3 kernel; pad it more")
    run = _op if backends.fused("conv2d", x.device.type) else reference
    return run(x, weight, bias, padding)
