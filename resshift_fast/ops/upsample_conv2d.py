"""Nearest-neighbour upsampling by 2, then a 3×3 convolution with padding 1."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from resshift_fast import backends
from resshift_fast.backends import Kernel
from resshift_fast.backends import native as libraries
from resshift_fast.ops import checks
from resshift_fast.ops.conv2d import checked, examples
from resshift_fast.ops.conv2d_winograd import DIRECT, cpu_kernel, pack_conv2d
from resshift_fast.ops.registration import recomputed, register


def reference(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The formula in plain PyTorch, in x's dtype; makes the upsampled image."""
    upsampled = F.interpolate(x, scale_factor=2, mode="nearest")
    return F.conv2d(upsampled, weight.to(x.dtype), None if bias is None else bias.to(x.dtype), padding=1)


def _plain(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return checks.image_like(reference(x, weight, bias), x)


def _fake(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    batch, _, height, width = x.shape
    size = (batch, weight.shape[0], 2 * height, 2 * width)
    return torch.empty(size, dtype=x.dtype, device=x.device, memory_format=checks.image_format(x))


def _matrix_operations(
    x: torch.Size, weight: torch.Size, bias: torch.Size | None, *, out_shape: torch.Size, **_: Any
) -> int:
    """Four taps a value of the result: the phase convolutions' operations, not the formula's nine."""
    return 2 * 4 * weight[1] * math.prod(out_shape)


def _cpu() -> Kernel:
    winograd = libraries.operator("cpu", "conv2d")

    def run(tile: int, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The convolution that reads every pixel four times."""
        if tile == DIRECT:
            return _plain(x, weight.contiguous(memory_format=torch.channels_last), bias)
        bias = None if bias is None else bias.float()
        y = winograd(x, pack_conv2d(weight), bias, 1, None, False, None, True, tile)
        return checks.image_like(y, x)

    return cpu_kernel(run, upsample=True)


def _triton() -> Kernel:
    from resshift_fast.kernels import upsample_conv2d as kernels

    return Kernel(kernels.forward, kernels.unsupported)


_op = register(
    "upsample_conv2d",
    _plain,
    fake=_fake,
    examples=examples,
    loaders={"cpu": _cpu, "triton": _triton},
    matrix_operations=_matrix_operations,
    **recomputed(reference),
)


def upsample_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """conv2d(nearest ×2 (x), weight, bias, padding=1).

    Args:
        x: [B, C, H, W], floating point.
        weight: [O, C, 3, 3], x's dtype or float32.
        bias: [O], x's dtype or float32, or None.

    Returns:
        [B, O, 2H, 2W] in x's dtype. Differentiable in every tensor. Under autocast x is taken in autocast's dtype, as
        by PyTorch's convolution.

    Raises:
        ValueError: for a shape or device that does not fit.
        TypeError: for a dtype other than those named.
    """
    x = checked("upsample_conv2d", x, weight, bias)
    run = _op if backends.fused("upsample_conv2d", x.device) else reference
    return run(x, weight, bias)
