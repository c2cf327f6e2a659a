"""Launcher of `residual_block`: two launches of the kernel in conv2d.py on small planes, elsewhere cuDNN.

On small planes the first convolution normalizes as it reads and writes the statistics of its result, with which the
second normalizes as it reads. The second also computes the skip connection. Two images are concatenated and normalized
in a launch before, and the statistics of a single image, if they are not given, are made in one. Elsewhere, and in
float32, each normalization, convolution and sum is an operation of its own.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from resshift_fast.kernels import add_concat_group_norm, conv2d, group_norm, group_norm_given, pointwise_conv2d
from resshift_fast.kernels.group_norm_tiles import MAX_GROUP_CHANNELS, affine_rows


class Arguments(NamedTuple):
    """Arguments of the operator; `ops.residual_block` describes them."""

    x: Tensor
    other: Tensor | None
    num_groups: int
    norm1_weight: Tensor
    norm1_bias: Tensor
    weight1: Tensor
    bias1: Tensor
    norm2_weight: Tensor
    norm2_bias: Tensor
    weight2: Tensor
    bias2: Tensor
    scale: Tensor | None
    shift: Tensor | None
    skip_weight: Tensor | None
    skip_bias: Tensor | None
    eps: float
    statistics: Tensor | None


def unsupported(*args: Any) -> str | None:
    """Why the launcher can't run this call, or None."""
    a = Arguments(*args)
    if a.x.dtype == torch.float64:
        return "x is float64"
    for weight in (a.norm1_weight, a.norm2_weight):
        if weight.shape[0] // a.num_groups > MAX_GROUP_CHANNELS:
            return f"{weight.shape[0] // a.num_groups} channels a group are more than {MAX_GROUP_CHANNELS}"
    return None


def forward(*args: Any) -> Tensor:
    """Launch the kernels; returns y [B, O, H, W], channels-last."""
    a = Arguments(*args)
    out_channels, channels = a.weight1.shape[:2]
    batch, _, height, width = a.x.shape
    small = conv2d.unsupported(a.x.dtype, batch * height * width, channels, out_channels) is None
    return _small(a) if small else _large(a)


def _small(a: Arguments) -> Tensor:
    groups, eps = a.num_groups, a.eps
    if a.other is None:
        x, statistics = a.x, a.statistics
        if statistics is None:
            statistics = group_norm.statistics(x, groups, eps)
        affine, strides = affine_rows(a.norm1_weight, a.norm1_bias, None, None)
        norm = conv2d.Norm(groups, statistics.contiguous(), affine, strides, True)
        h, statistics = conv2d.forward(x, a.weight1, a.bias1, norm=norm, next_groups=groups, next_eps=eps)
    else:
        x, h = add_concat_group_norm.forward(
            a.x, a.other, groups, a.norm1_weight, a.norm1_bias, eps, "concat", None, None, "silu"
        )
        h, statistics = conv2d.forward(h, a.weight1, a.bias1, next_groups=groups, next_eps=eps)
    affine, strides = affine_rows(a.norm2_weight, a.norm2_bias, a.scale, a.shift)
    norm = conv2d.Norm(groups, statistics, affine, strides, True)
    if a.skip_weight is None:
        return conv2d.forward(h, a.weight2, a.bias2, norm=norm, residual=x)[0]
    return conv2d.forward(h, a.weight2, a.bias2, norm=norm, skip=conv2d.Skip(x, a.skip_weight, a.skip_bias))[0]


def _large(a: Arguments) -> Tensor:
    groups, eps = a.num_groups, a.eps
    if a.other is None and a.statistics is not None:
        x = a.x
        h = group_norm_given.forward(x, a.statistics, a.norm1_weight, a.norm1_bias, None, None, "silu")
    elif a.other is None:
        x = a.x
        h = group_norm.forward(x, groups, a.norm1_weight, a.norm1_bias, eps, None, None, "silu")[0]
    else:
        x, h = add_concat_group_norm.forward(
            a.x, a.other, groups, a.norm1_weight, a.norm1_bias, eps, "concat", None, None, "silu"
        )
    h = _convolution(h, a.weight1, a.bias1)
    h = group_norm.forward(h, groups, a.norm2_weight, a.norm2_bias, eps, a.scale, a.shift, "silu")[0]
    h = _convolution(h, a.weight2, a.bias2)
    if a.skip_weight is not None:
        return pointwise_conv2d.forward(x, a.skip_weight, a.skip_bias, h, 0, None, None, eps)
    return (x + h).contiguous(memory_format=torch.channels_last)


def _convolution(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    # As PyTorch's layers call it; the result is channels-last like x.
    options = (
        [1, 1],
        [1, 1],
        [1, 1],
        False,
        [0, 0],
        1,
    )  # stride, padding, dilation, not transposed, its padding, groups
    y: Tensor = torch.ops.aten.convolution.default(x, weight.to(x.dtype), bias.to(x.dtype), *options)
    return y
