r"""A residual block with adaptive group normalization.

.. math:: y = w_2 * f\big(\mathrm{norm}_2(h)(1 + s) + t\big) + b_2 + g(x),
    \quad h = w_1 * f\big(\mathrm{norm}_1(x)\big) + b_1

with 3×3 convolutions, group normalizations, f(z) = z σ(z), and per-channel scale s and shift t from the timestep
(arXiv 2105.05233, section 3 and appendix A). The skip connection g is the identity or a 1×1 convolution. x may be the
concatenation of the channels of two images. In 16 bit, kernels compute each convolution with what is after it, and on
small images also with the normalization before it; in float32 this is a sequence of separate operations. The statistics
of the first normalization can be given, and those of y's next normalization returned with it.
"""

from typing import Any, NamedTuple, overload

import torch
import torch.nn.functional as F
from torch import Tensor

from resshift_fast import backends
from resshift_fast.backends import Kernel
from resshift_fast.ops import checks, drawing, norm_stats
from resshift_fast.ops.group_norm import reference as group_norm
from resshift_fast.ops.registration import recomputed, register, takes


class Arguments(NamedTuple):
    """Arguments of the registered operator; `residual_block` describes them."""

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
    scale: Tensor | None = None
    shift: Tensor | None = None
    skip_weight: Tensor | None = None
    skip_bias: Tensor | None = None
    eps: float = 1e-5
    statistics: Tensor | None = None


@checks.without_autocast
@takes(Arguments)
def reference(a: Arguments) -> Tensor:
    """The formula in plain PyTorch, in x's dtype."""
    x, dtype = a.x if a.other is None else torch.cat([a.x, a.other], dim=1), a.x.dtype
    if a.statistics is None:
        h = group_norm(x, a.num_groups, a.norm1_weight, a.norm1_bias, a.eps, None, None, "silu")
    else:
        h = norm_stats.normalized(x, a.statistics, a.norm1_weight, a.norm1_bias, activation="silu")
    h = F.conv2d(h, a.weight1.to(dtype), a.bias1.to(dtype), padding=1)
    h = group_norm(h, a.num_groups, a.norm2_weight, a.norm2_bias, a.eps, a.scale, a.shift, "silu")
    h = F.conv2d(h, a.weight2.to(dtype), a.bias2.to(dtype), padding=1)
    if a.skip_weight is None:
        return x + h
    bias = None if a.skip_bias is None else a.skip_bias.to(dtype)
    return F.conv2d(x, a.skip_weight.to(dtype)[:, :, None, None], bias) + h


@takes(Arguments)
def _plain(a: Arguments) -> Tensor:
    return reference(*a).contiguous(memory_format=torch.channels_last)


@takes(Arguments)
def _fake(a: Arguments) -> Tensor:
    size = (a.x.shape[0], a.weight2.shape[0], *a.x.shape[2:])
    return torch.empty(size, dtype=a.x.dtype, device=a.x.device, memory_format=torch.channels_last)


def _matrix_operations(*args: Any, **_: Any) -> int:
    """Nine taps a value of both convolutions, and the skip connection."""
    a: Any = Arguments(*args[: len(Arguments._fields)])
    (batch, _, height, width), channels, out_channels = a.x, a.norm1_weight[0], a.weight2[0]
    each: int = 9 * (channels + out_channels) + (channels if a.skip_weight is not None else 0)
    values: int = batch * out_channels * height * width
    return 2 * values * each


def _examples(device: torch.device, dtype: torch.dtype) -> list[tuple[Any, ...]]:
    """Small images and one that is not; one image and two; with and without skip convolution, scale and shift."""
    normal = drawing.normal(device, dtype)

    def parameters(channels: int, out_channels: int) -> tuple[Tensor, ...]:
        first = (normal(channels), normal(channels), normal(out_channels, channels, 3, 3) / 24, normal(out_channels))
        second = normal(out_channels, out_channels, 3, 3) / 24
        return *first, normal(out_channels), normal(out_channels), second, normal(out_channels)

    def image(channels: int, height: int = 9, width: int = 7) -> Tensor:
        return drawing.channels_last(normal(2, channels, height, width) - 2.3)

    scale, shift = normal(2, 2 * 64).chunk(2, dim=1)
    skip, rest = (normal(64, 96) / 10, normal(64)), (1e-5, None)
    return [
        (image(64), None, 32, *parameters(64, 64), scale, shift, None, None, *rest),
        (image(56), image(40), 32, *parameters(96, 64), scale, shift, *skip, *rest),
        (image(96, 5, 4), None, 32, *parameters(96, 64), None, None, *skip, *rest),
        (image(64, 33, 17), None, 32, *parameters(64, 64), scale, shift, None, None, *rest),
    ]


def _statistics_examples(device: torch.device, dtype: torch.dtype) -> list[tuple[Any, ...]]:
    """Those of `_examples`, with groups that divide blocks of channels and with groups that don't."""
    groups = (32, 4, 1, 8)
    return [(*case, n, 1e-6) for case, n in zip(_examples(device, dtype), groups, strict=True)]


def _triton() -> Kernel:
    from resshift_fast.kernels import residual_block as kernels

    return Kernel(kernels.forward, kernels.unsupported)


def _triton_with_statistics() -> Kernel:
    from resshift_fast.kernels import residual_block as kernels

    return Kernel(kernels.forward_with_statistics, lambda *args: kernels.unsupported(*args[:-2]))


_op = register(
    "residual_block",
    _plain,
    fake=_fake,
    examples=_examples,
    loaders={"triton": _triton},
    matrix_operations=_matrix_operations,
    **recomputed(reference),
)
_op_with_statistics = register(
    "residual_block_statistics",
    norm_stats.with_statistics(_plain),
    fake=norm_stats.fake_with_statistics(_fake),
    examples=_statistics_examples,
    loaders={"triton": _triton_with_statistics},
    matrix_operations=_matrix_operations,
    public=False,
    **recomputed(norm_stats.with_statistics(reference)),
)


@checks.once
@takes(Arguments)
def _check(a: Arguments) -> None:
    op = "residual_block"
    channels = _check_images(a.x, a.other)
    out_channels = _check_weight("weight1", a.weight1, channels)
    if _check_weight("weight2", a.weight2, out_channels) != out_channels:
        raise ValueError(f"{op}: weight2 has shape {tuple(a.weight2.shape)}, expected as many outputs as weight1")
    if a.num_groups < 1 or channels % a.num_groups or out_channels % a.num_groups:
        raise ValueError(f"{op}: {channels} or {out_channels} channels do not divide into {a.num_groups} groups")
    vectors = {"norm1_weight": channels, "norm1_bias": channels, "bias1": out_channels, "bias2": out_channels}
    vectors |= {"norm2_weight": out_channels, "norm2_bias": out_channels}
    for name, size in vectors.items():
        checks.shape(op, name, getattr(a, name), (size,), "to match the channels")
    for name, condition in (("scale", a.scale), ("shift", a.shift)):
        checks.shape(op, name, condition, (a.x.shape[0], out_channels), "[B, O]", optional=True)
    checks.shape(op, "skip_weight", a.skip_weight, (out_channels, channels), "to match both", optional=True)
    checks.shape(op, "skip_bias", a.skip_bias, (out_channels,), "to match skip_weight", optional=True)
    if a.skip_weight is None and (channels != out_channels or a.skip_bias is not None):
        what = "skip_bias is given" if a.skip_bias is not None else f"{channels} channels become {out_channels}"
        raise ValueError(f"{op}: {what}, but skip_weight is None; pass the weight of the skip connection")
    if a.statistics is not None and a.other is not None:
        raise ValueError(f"{op}: statistics are given, but x is to be concatenated with other; pass None")
    norm_stats.check(op, a.statistics, a.x, a.num_groups)
    tensors = {name: t for name, t in a._asdict().items() if isinstance(t, Tensor) and name not in ("x", "statistics")}
    checks.parameters(op, a.x, **tensors)


@overload
def residual_block(
    x: Tensor,
    other: Tensor | None,
    num_groups: int,
    norm1_weight: Tensor,
    norm1_bias: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    norm2_weight: Tensor,
    norm2_bias: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    *,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    skip_weight: Tensor | None = None,
    skip_bias: Tensor | None = None,
    eps: float = 1e-5,
    statistics: Tensor | None = None,
    next_groups: None = None,
) -> Tensor: ...
@overload
def residual_block(
    x: Tensor,
    other: Tensor | None,
    num_groups: int,
    norm1_weight: Tensor,
    norm1_bias: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    norm2_weight: Tensor,
    norm2_bias: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    *,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    skip_weight: Tensor | None = None,
    skip_bias: Tensor | None = None,
    eps: float = 1e-5,
    statistics: Tensor | None = None,
    next_groups: int,
    next_eps: float = 1e-5,
) -> tuple[Tensor, Tensor]: ...
def residual_block(
    x: Tensor,
    other: Tensor | None,
    num_groups: int,
    norm1_weight: Tensor,
    norm1_bias: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    norm2_weight: Tensor,
    norm2_bias: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    *,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    skip_weight: Tensor | None = None,
    skip_bias: Tensor | None = None,
    eps: float = 1e-5,
    statistics: Tensor | None = None,
    next_groups: int | None = None,
    next_eps: float = 1e-5,
) -> Tensor | tuple[Tensor, Tensor]:
    """conv(silu(norm(conv(silu(norm(x)))) · (1 + scale) + shift)), plus x or a 1×1 convolution of it.

    Args:
        x: [B, C, H, W], floating point.
        other: None, or [B, C2, H, W] in x's dtype to concatenate to x's channels first; C is then the sum.
        num_groups: a divisor of C and O.
        norm1_weight, norm1_bias: [C]. weight1: [O, C, 3, 3]. bias1: [O].
        norm2_weight, norm2_bias: [O]. weight2: [O, O, 3, 3]. bias2: [O].
        scale, shift: [B, O], or None.
        skip_weight, skip_bias: [O, C] and [O] of the skip connection; None for the identity, where C is O.
        eps: added to the variances.
        statistics: float32 [B, 2, num_groups] (float64 for float64), mean and 1 / √(variance + eps) of x, as the
            operator that made x returned them; None computes them.
        next_groups: a divisor of O to also return the statistics of the result in so many groups, or None.
        next_eps: added to their variance.
        Every other tensor is in x's dtype or float32.

    Returns:
        [B, O, H, W] in x's dtype, channels-last where a backend has a kernel; with `next_groups` a pair of that and its
        statistics [B, 2, next_groups]. Differentiable in every tensor.

    Raises:
        ValueError: for a shape, device or number of groups that does not fit, or a missing skip_weight.
        TypeError: for a dtype other than those named.

    Example:
        >>> norm, weight = (torch.ones(8), torch.zeros(8)), torch.randn(8, 8, 3, 3)
        >>> x, bias = torch.randn(2, 8, 5, 7), torch.zeros(8)
        >>> residual_block(x, None, 4, *norm, weight, bias, *norm, weight, bias).shape
        torch.Size([2, 8, 5, 7])
    """
    first = x, other, num_groups, norm1_weight, norm1_bias, weight1, bias1, norm2_weight, norm2_bias, weight2, bias2
    arguments = (*first, scale, shift, skip_weight, skip_bias, eps, statistics)
    _check(*arguments)
    if next_groups is not None:
        norm_stats.check_next("residual_block", weight2.shape[0], next_groups)
        if backends.fused("residual_block_statistics", x.device):
            both: tuple[Tensor, Tensor] = _op_with_statistics(*arguments, next_groups, next_eps)
            return both
    run = _op if backends.fused("residual_block", x.device) else reference
    y: Tensor = run(*arguments)
    return y if next_groups is None else (y, norm_stats.reference(y, next_groups, next_eps))


def residual_block_is_fused(device_type: str) -> bool:
    """Whether a backend has a kernel for a type of device, and no gradient is wanted.

    Elsewhere the separate operators have kernels, and gradients, of their own.
    """
    return backends.has_kernel("residual_block", device_type) and not torch.is_grad_enabled()


def _check_images(x: Tensor, other: Tensor | None) -> int:
    """Check the images; return the number of their channels."""
    op = "residual_block"
    checks.image(op, "x", x)
    if other is None:
        return x.shape[1]
    checks.image(op, "other", other)
    checks.shape(op, "other", other, (x.shape[0], other.shape[1], *x.shape[2:]), "[B, C2, H, W] to match x")
    if other.dtype != x.dtype:
        raise TypeError(f"{op}: other has dtype {other.dtype}, expected x's {x.dtype}")
    return x.shape[1] + other.shape[1]


def _check_weight(name: str, weight: Tensor, channels: int) -> int:
    """Check the weight of a 3×3 convolution; return its output channels."""
    checks.tensor("residual_block", name, weight)
    if weight.dim() != 4 or weight.shape[1:] != (channels, 3, 3) or weight.shape[0] < 1:
        shape = tuple(weight.shape)
        raise ValueError(f"residual_block: {name} has shape {shape}, expected (O, {channels}, 3, 3) with O ≥ 1")
    return weight.shape[0]
