r"""3×3 convolution with the sums of a residual block after it, and the statistics of the next normalization.

.. math:: y = w * x + b + r + W_s\,\mathrm{cat}(s, o) + b_s

with padding 1; bias b, residual r and the 1×1 convolution of the channels of s and o, the block's skip connection, may
be missing. The statistics are those of y, as norm_stats.py describes them.
"""

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from resshift_fast import backends
from resshift_fast.backends import Kernel
from resshift_fast.ops import checks, drawing, norm_stats
from resshift_fast.ops.conv2d import checked
from resshift_fast.ops.registration import recomputed, register, takes


class Arguments(NamedTuple):
    """Arguments of the registered operator; `conv2d_sum` describes them."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    residual: Tensor | None
    skip: Tensor | None
    other: Tensor | None
    skip_weight: Tensor | None
    skip_bias: Tensor | None
    next_groups: int
    next_eps: float


@takes(Arguments)
def reference(a: Arguments) -> tuple[Tensor, Tensor]:
    """The formula in plain PyTorch, in x's dtype, and the statistics of its result."""
    dtype = a.x.dtype
    y = F.conv2d(a.x, a.weight.to(dtype), None if a.bias is None else a.bias.to(dtype), padding=1)
    if a.residual is not None:
        y = a.residual + y
    if a.skip is not None:
        assert a.skip_weight is not None
        both = a.skip if a.other is None else torch.cat([a.skip, a.other], dim=1)
        bias = None if a.skip_bias is None else a.skip_bias.to(dtype)
        y = F.conv2d(both, a.skip_weight.to(dtype)[:, :, None, None], bias) + y
    if not a.next_groups:
        return y, norm_stats.fake(a.x, 0)
    return y, norm_stats.reference(y, a.next_groups, a.next_eps)


@takes(Arguments)
def _plain(a: Arguments) -> tuple[Tensor, Tensor]:
    y, statistics = reference(*a)
    return y.contiguous(memory_format=torch.channels_last), statistics


@takes(Arguments)
def _fake(a: Arguments) -> tuple[Tensor, Tensor]:
    size = (a.x.shape[0], a.weight.shape[0], *a.x.shape[2:])
    y = torch.empty(size, dtype=a.x.dtype, device=a.x.device, memory_format=torch.channels_last)
    return y, norm_stats.fake(a.x, a.next_groups)


def _matrix_operations(*args: Any, **_: Any) -> int:
    """Nine taps a value of the convolution, and the skip connection."""
    a: Any = Arguments(*args)
    (batch, channels, height, width), out_channels = a.x, a.weight[0]
    each: int = 9 * channels + (0 if a.skip_weight is None else a.skip_weight[1])
    values: int = batch * out_channels * height * width
    return 2 * values * each


def _examples(device: torch.device, dtype: torch.dtype) -> list[tuple[Any, ...]]:
    """Many pixels and few; with all sums, each alone and none; few channels; a mean far from zero."""
    normal = drawing.normal(device, dtype)

    def image(channels: int, height: int = 9, width: int = 7) -> Tensor:
        return drawing.channels_last(normal(2, channels, height, width) - 2.3)

    def weight(out_channels: int, channels: int) -> Tensor:
        return normal(out_channels, channels, 3, 3) / (3 * math.sqrt(channels))

    skip = image(24), image(40), normal(64, 64) / 8, normal(64)
    one = image(24, 33, 37), None, normal(40, 24) / 5, None
    none = (None,) * 4
    return [
        (image(96), weight(64, 96), normal(64), image(64), *skip, 32, 1e-5),
        (image(64, 33, 37), weight(40, 64), normal(40), None, *one, 8, 1e-6),
        (image(3, 33, 37), weight(64, 3), normal(64), None, *none, 32, 1e-5),
        (image(40), weight(32, 40), None, image(32), *none, 0, 1e-5),
    ]


def _triton() -> Kernel:
    from resshift_fast.kernels import conv2d_algorithms, conv2d_sum

    return Kernel(conv2d_algorithms.sum_forward, conv2d_sum.unsupported)


_op = register(
    "conv2d_sum",
    _plain,
    fake=_fake,
    examples=_examples,
    loaders={"triton": _triton},
    matrix_operations=_matrix_operations,
    public=False,
    **recomputed(reference),
)


@checks.once
@takes(Arguments)
def _check(a: Arguments) -> None:
    """Check all arguments but x, weight and bias, which `checked` takes."""
    op = "conv2d_sum"
    batch, _, height, width = a.x.shape
    out_channels = a.weight.shape[0]
    checks.shape(op, "residual", a.residual, (batch, out_channels, height, width), "to match the result", optional=True)
    skip_channels = 0
    for name, image in (("skip", a.skip), ("other", a.other)):
        if image is not None:
            checks.image(op, name, image)
            checks.shape(op, name, image, (batch, image.shape[1], height, width), "[B, C, H, W] to match x")
            skip_channels += image.shape[1]
    alone = a.skip is None and (a.other is not None or a.skip_bias is not None)
    if alone or (a.skip is None) != (a.skip_weight is None):
        raise ValueError(
            f"{op}: only some of skip, skip_weight, other and skip_bias are given; the first two belong "
            "together, and the others need them"
        )
    checks.shape(op, "skip_weight", a.skip_weight, (out_channels, skip_channels), "to match skip", optional=True)
    checks.shape(op, "skip_bias", a.skip_bias, (out_channels,), "to match skip_weight", optional=True)
    if a.next_groups:
        norm_stats.check_next(op, out_channels, a.next_groups)
    parameters = {"skip_weight": a.skip_weight, "skip_bias": a.skip_bias}
    checks.parameters(op, a.x, residual=a.residual, skip=a.skip, other=a.other, **parameters)


def conv2d_sum(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    residual: Tensor | None = None,
    skip: Tensor | None = None,
    other: Tensor | None = None,
    skip_weight: Tensor | None = None,
    skip_bias: Tensor | None = None,
    next_groups: int = 0,
    next_eps: float = 1e-5,
) -> tuple[Tensor, Tensor]:
    """3×3 convolution with stride 1 and padding 1, plus a residual and a 1×1 convolution of other images.

    Args:
        x: [B, C, H, W], floating point.
        weight: [O, C, 3, 3]. bias: [O] or None.
        residual: [B, O, H, W], added to the result, or None.
        skip: [B, S, H, W], whose 1×1 convolution is added, or None.
        other: [B, P, H, W], more channels of `skip`, or None.
        skip_weight: [O, S + P], with `skip`. skip_bias: [O] or None.
        next_groups: a divisor of O to return the statistics of the result in so many groups, or 0.
        next_eps: added to their variance.
        Every other tensor is in x's dtype or float32; images are cast to x's dtype.

    Returns:
        [B, O, H, W] in x's dtype, channels-last where a backend has a kernel, and its statistics, float32
        [B, 2, next_groups] (float64 for float64): mean and 1 / √(variance + next_eps). Differentiable in every tensor.

    Raises:
        ValueError: for a shape, device or number of groups that does not fit.
        TypeError: for a dtype other than those named.

    Example:
        >>> y, statistics = conv2d_sum(torch.randn(2, 8, 5, 7), torch.randn(6, 8, 3, 3), next_groups=3)
        >>> y.shape, statistics.shape
        (torch.Size([2, 6, 5, 7]), torch.Size([2, 2, 3]))
    """
    x = checked("conv2d_sum", x, weight, bias)
    arguments = (x, weight, bias, residual, skip, other, skip_weight, skip_bias, next_groups, next_eps)
    _check(*arguments)
    if any(t is not None and t.dtype != x.dtype for t in (residual, skip, other)):
        images = (None if t is None else t.to(x.dtype) for t in (residual, skip, other))
        arguments = (x, weight, bias, *images, skip_weight, skip_bias, next_groups, next_eps)  # type: ignore[assignment]
    run = _op if backends.fused("conv2d_sum", x.device) else reference
    both: tuple[Tensor, Tensor] = run(*arguments)
    return both


def conv2d_sums(x: Tensor) -> bool:
    """Whether a kernel computes `conv2d_sum` of x in one launch, and no gradient is wanted.

    Elsewhere the convolution, its sums and the statistics are operations of their own, which a caller may fuse with
    others instead. The kernel is for 16-bit images: in float32 a library's convolution is faster.
    """
    sixteen_bits = x.dtype in (torch.float16, torch.bfloat16)
    return sixteen_bits and backends.has_kernel("conv2d_sum", x.device.type) and not torch.is_grad_enabled()
