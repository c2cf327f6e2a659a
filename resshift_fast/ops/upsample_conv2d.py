"""Nearest-neighbour upsampling by 2, then a 3×3 convolution with padding 1."""

import math
from collections.abc import Sequence
from typing import Any, overload

import torch
import torch.nn.functional as F
from torch import Tensor

from resshift_fast import backends
from resshift_fast.backends import Kernel
from resshift_fast.backends import native as libraries
from resshift_fast.ops import checks, drawing, norm_stats
from resshift_fast.ops.conv2d import checked, examples, gradients
from resshift_fast.ops.conv2d_winograd import DIRECT, cpu_kernel, pack_conv2d
from resshift_fast.ops.registration import recomputed, register, with_gradient


def upsampled(x: Tensor) -> Tensor:
    """The image with every pixel repeated twice in both directions."""
    return F.interpolate(x, scale_factor=2, mode="nearest")


def reference(x: Tensor, weight: Tensor, bias: Tensor | None, summed: Tensor | None = None) -> Tensor:
    """The formula in plain PyTorch, in x's dtype; makes the upsampled image and does without `summed`."""
    return F.conv2d(upsampled(x), weight.to(x.dtype), None if bias is None else bias.to(x.dtype), padding=1)


def _plain(x: Tensor, weight: Tensor, bias: Tensor | None, summed: Tensor | None = None) -> Tensor:
    return checks.image_like(reference(x, weight, bias), x)


def _fake(x: Tensor, weight: Tensor, bias: Tensor | None, summed: Tensor | None = None) -> Tensor:
    batch, _, height, width = x.shape
    size = (batch, weight.shape[0], 2 * height, 2 * width)
    return torch.empty(size, dtype=x.dtype, device=x.device, memory_format=checks.image_format(x))


def _matrix_operations(x: torch.Size, weight: torch.Size, *_: Any, **__: Any) -> int:
    """Four taps a value of the result: the phase convolutions' operations, not the formula's nine."""
    return 2 * 4 * weight[0] * 4 * math.prod(x)


def _cpu() -> Kernel:
    winograd = libraries.operator("cpu", "conv2d")

    def run(tile: int, x: Tensor, weight: Tensor, bias: Tensor | None, _: Tensor | None = None) -> Tensor:
        """The convolution that reads every pixel four times."""
        if tile == DIRECT:
            return _plain(x, weight.contiguous(memory_format=torch.channels_last), bias)
        bias = None if bias is None else bias.float()
        y = winograd(x, pack_conv2d(weight), bias, 1, None, False, None, True, tile)
        return checks.image_like(y, x)

    return cpu_kernel(run, upsample=True)


def _triton() -> Kernel:
    from resshift_fast.kernels import conv2d_algorithms, upsample_conv2d

    return Kernel(conv2d_algorithms.upsample_forward, upsample_conv2d.unsupported)


def _triton_with_statistics() -> Kernel:
    from resshift_fast.kernels import conv2d_algorithms, upsample_conv2d

    return Kernel(conv2d_algorithms.upsample_forward_with_statistics, upsample_conv2d.unsupported)


def _examples(device: torch.device, dtype: torch.dtype) -> list[tuple[Any, ...]]:
    """Those of `conv2d`, and one whose taps are summed."""
    cases = [(*case, None) for case in examples(device, dtype)]
    normal = drawing.normal(device, dtype, seed=1)
    x, weight, bias = drawing.channels_last(normal(2, 16, 13, 11) - 2.3), normal(24, 16, 3, 3) / 12, normal(24)
    return [*cases, (x, weight, bias, sum_upsample_taps(weight))]


def _statistics_examples(device: torch.device, dtype: torch.dtype) -> list[tuple[Any, ...]]:
    return [(*case, 8, 1e-5) for case in _examples(device, dtype)]


def _gradient(dy: Tensor, arguments: Sequence[Any], needed: Sequence[bool]) -> tuple[Tensor | None, ...]:
    """Of the convolution of the upsampled image, which is made again; x's gradient sums each pixel's four copies."""
    x, weight, bias, _ = arguments
    dx, dweight, dbias = gradients(dy, upsampled(x), weight, bias, 1, needed)
    if dx is not None:
        dx = checks.match_memory_format(F.avg_pool2d(dx, 2, divisor_override=1), x)
    return dx, dweight, dbias, None


_op = register(
    "upsample_conv2d",
    _plain,
    fake=_fake,
    examples=_examples,
    loaders={"cpu": _cpu, "triton": _triton},
    matrix_operations=_matrix_operations,
    **with_gradient(reference, _gradient),
)
_op_with_statistics = register(
    "upsample_conv2d_statistics",
    norm_stats.with_statistics(_plain),
    fake=norm_stats.fake_with_statistics(_fake),
    examples=_statistics_examples,
    loaders={"triton": _triton_with_statistics},
    matrix_operations=_matrix_operations,
    public=False,
    **recomputed(norm_stats.with_statistics(reference)),
)


def sum_upsample_taps(weight: Tensor) -> Tensor:
    """The four 2×2 kernels of `upsample_conv2d`, one for each parity of the result's rows and columns.

    Each pixel is repeated twice, so that two of a kernel's three rows read the same one, and likewise columns.

    Args:
        weight: [O, C, 3, 3], floating point.

    Returns:
        [4, O, 4, C] in weight's dtype, summed in float32 at least: 2·(row's parity) + column's parity, and
        2·row + column of the 2×2 kernel. Without gradient.

    Raises:
        ValueError: for another shape.

    Example:
        >>> sum_upsample_taps(torch.ones(1, 1, 3, 3)).view(4, 4)[0]
        tensor([1., 2., 2., 4.])
    """
    if weight.dim() != 4 or weight.shape[2:] != (3, 3):
        raise ValueError(f"sum_upsample_taps: weight has shape {tuple(weight.shape)}, expected (O, C, 3, 3)")
    out_channels, channels = weight.shape[:2]
    summed = weight.detach().to(checks.accumulation_dtype(weight))
    for dim in (3, 2):
        first, second, third = summed.unbind(dim)
        summed = torch.stack([first, second + third, first + second, third], dim)  # 2 · parity + tap
    phases = summed.reshape(out_channels, channels, 2, 2, 2, 2).permute(2, 4, 0, 3, 5, 1)
    return phases.reshape(4, out_channels, 4, channels).to(weight.dtype)


@overload
def upsample_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, summed: Tensor | None = None, next_groups: None = None
) -> Tensor: ...
@overload
def upsample_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    summed: Tensor | None = None,
    next_groups: int,
    next_eps: float = 1e-5,
) -> tuple[Tensor, Tensor]: ...
def upsample_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    summed: Tensor | None = None,
    next_groups: int | None = None,
    next_eps: float = 1e-5,
) -> Tensor | tuple[Tensor, Tensor]:
    """conv2d(nearest ×2 (x), weight, bias, padding=1).

    Args:
        x: [B, C, H, W], floating point.
        weight: [O, C, 3, 3], x's dtype or float32.
        bias: [O], x's dtype or float32, or None.
        summed: `sum_upsample_taps(weight)`, which a kernel may read instead of the weight; else it sums the taps in
            every call. Not read where gradients are wanted, or if its dtype is not that of x.
        next_groups: a divisor of O to also return the statistics of the result in so many groups, or None.
        next_eps: added to their variance.

    Returns:
        [B, O, 2H, 2W] in x's dtype; with `next_groups` a pair of that and its statistics [B, 2, next_groups].
        Differentiable in x, weight and bias. Under autocast x is taken in autocast's dtype, as by PyTorch's
        convolution.

    Raises:
        ValueError: for a shape, device or number of groups that does not fit.
        TypeError: for a dtype other than those named.
    """
    x = checked("upsample_conv2d", x, weight, bias)
    if summed is not None:
        _check_summed(x, weight, summed)
        if summed.dtype != x.dtype or torch.is_grad_enabled():
            summed = None
    if next_groups is not None:
        norm_stats.check_next("upsample_conv2d", weight.shape[0], next_groups)
        if backends.fused("upsample_conv2d_statistics", x.device):
            both: tuple[Tensor, Tensor] = _op_with_statistics(x, weight, bias, summed, next_groups, next_eps)
            return both
    run = _op if backends.fused("upsample_conv2d", x.device) else reference
    y: Tensor = run(x, weight, bias, summed)
    return y if next_groups is None else (y, norm_stats.reference(y, next_groups, next_eps))


@checks.once
def _check_summed(x: Tensor, weight: Tensor, summed: Tensor) -> None:
    expected = (4, weight.shape[0], 4, weight.shape[1])
    checks.shape("upsample_conv2d", "summed", summed, expected, "to match weight")
    checks.devices("upsample_conv2d", x, summed=summed)
