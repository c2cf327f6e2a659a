"""Launcher of `residual_block`: two launches of a convolution, each with all that is around it.

The first writes the statistics of its result, with which the second norm reads it only once. The second computes the
skip connection or adds the image, and writes the statistics of y if the next norm wants them. On small planes, by the
kernel in conv2d.py, they also normalize as they read; on others, by that in conv2d_sum.py, a pass of its own does. Two
images are concatenated and normalized in a launch before, and the statistics of a single image, if they are not given,
are made in one. In float32, and where it was measured to be faster, each normalization, convolution and sum is an
operation of its own; conv2d_algorithms.py chooses.
"""

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from resshift_fast.kernels import (
    add_concat_group_norm,
    conv2d,
    conv2d_algorithms,
    conv2d_sum,
    group_norm,
    group_norm_given,
    pointwise_conv2d,
)
from resshift_fast.kernels.conv2d_algorithms import PYTORCH, SPLIT, SUMS, convolution
from resshift_fast.kernels.group_norm_tiles import MAX_GROUP_CHANNELS, affine_rows
from resshift_fast.kernels.tuning import Algorithm


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


class Following(NamedTuple):
    """Groups of the statistics of y, 0 for none, and what is added to their variance."""

    groups: int
    eps: float


Result = tuple[Tensor, Tensor | None]  # y and its statistics


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
    return _launch(Arguments(*args), Following(0, 0.0))[0]


def forward_with_statistics(*args: Any) -> tuple[Tensor, Tensor]:
    """`forward`, with next_groups and next_eps as the last arguments.

    Returns:
        y, and the statistics of its groups, float32 [B, 2, next_groups].
    """
    *first, next_groups, next_eps = args
    y, statistics = _launch(Arguments(*first), Following(next_groups, next_eps))
    assert statistics is not None
    return y, statistics


def _launch(a: Arguments, following: Following) -> Result:
    if conv2d_sum.unsupported(a.x, a.weight1) is not None:
        return _separate(a, following)

    def run(algorithm: Algorithm) -> Result:
        return _BY_ALGORITHM[algorithm](a, following)

    out_channels, channels = a.weight1.shape[:2]
    batch, _, height, width = a.x.shape
    images, skip, followed = a.other is not None, a.skip_weight is not None, following.groups > 0
    sizes = batch * height * width, channels, out_channels, images, skip, followed
    return run(conv2d_algorithms.block_algorithm(a.x.device, *sizes, trial=run))


def _normalizing(a: Arguments, following: Following) -> Result:
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
    second = partial(conv2d.forward, norm=norm, next_groups=following.groups, next_eps=following.eps)
    if a.skip_weight is None:
        return second(h, a.weight2, a.bias2, residual=x)
    return second(h, a.weight2, a.bias2, skip=conv2d.Skip(x, a.skip_weight, a.skip_bias))


def _summing(a: Arguments, following: Following) -> Result:
    groups, eps, x, other = a.num_groups, a.eps, a.x, a.other
    if other is not None and a.skip_weight is not None:
        # Only the skip connection needs the concatenation, and it reads both images.
        h = add_concat_group_norm.concat_group_norm(x, other, groups, a.norm1_weight, a.norm1_bias, eps, "silu")
    else:
        (x, h), other = _merged(a), None
    h, statistics = conv2d_sum.forward(h, a.weight1, a.bias1, *(None,) * 5, groups, eps)
    h = group_norm_given.forward(h, statistics, a.norm2_weight, a.norm2_bias, a.scale, a.shift, "silu")
    skip = (x, other, a.skip_weight, a.skip_bias)
    added = (x, None, None, None, None) if a.skip_weight is None else (None, *skip)
    y, statistics = conv2d_sum.forward(h, a.weight2, a.bias2, *added, *following)
    return y, statistics if following.groups else None


def _separate(a: Arguments, following: Following) -> Result:
    x, h = _merged(a)
    h = convolution(h, a.weight1, a.bias1)
    h = group_norm.forward(h, a.num_groups, a.norm2_weight, a.norm2_bias, a.eps, a.scale, a.shift, "silu")[0]
    h = convolution(h, a.weight2, a.bias2)
    if a.skip_weight is not None:
        y = pointwise_conv2d.forward(x, a.skip_weight, a.skip_bias, h, 0, None, None, a.eps)
    else:
        y = (x + h).contiguous(memory_format=torch.channels_last)
    return y, group_norm.statistics(y, *following) if following.groups else None


def _merged(a: Arguments) -> tuple[Tensor, Tensor]:
    """The image, or the concatenation of both, and its normalization with SiLU."""
    groups, norm = a.num_groups, (a.norm1_weight, a.norm1_bias)
    if a.other is not None:
        return add_concat_group_norm.forward(a.x, a.other, groups, *norm, a.eps, "concat", None, None, "silu")
    if a.statistics is not None:
        return a.x, group_norm_given.forward(a.x, a.statistics, *norm, None, None, "silu")
    return a.x, group_norm.forward(a.x, groups, *norm, a.eps, None, None, "silu")[0]


_BY_ALGORITHM = {SPLIT: _normalizing, SUMS: _summing, PYTORCH: _separate}
