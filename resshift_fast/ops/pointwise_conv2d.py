r"""1×1 convolution of an image, with the group normalization before it and the sum after it.

.. math:: y = W\,\mathrm{norm}(x) + b + r

where norm is group normalization (Wu and He, arXiv 1803.08494) or, with `num_groups` 0, nothing; b and the residual r
may be missing. The statistics of norm can be given, and those of y's next normalization returned with it.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, overload

import torch
import torch.nn.functional as F
from torch import Tensor

from resshift_fast import backends
from resshift_fast.backends import Kernel
from resshift_fast.core.counters import counters
from resshift_fast.ops import checks, drawing, norm_stats
from resshift_fast.ops.conv2d import bias_gradient
from resshift_fast.ops.group_norm import group_norm
from resshift_fast.ops.group_norm import reference as group_norm_reference
from resshift_fast.ops.registration import Native, recomputed, register, takes, with_gradient


class Arguments(NamedTuple):
    """Arguments of the registered operator; `pointwise_conv2d` describes them."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None = None
    residual: Tensor | None = None
    num_groups: int = 0
    norm_weight: Tensor | None = None
    norm_bias: Tensor | None = None
    eps: float = 1e-5
    statistics: Tensor | None = None


@checks.without_autocast
@takes(Arguments)
def reference(a: Arguments) -> Tensor:
    """The formula in plain PyTorch, in x's dtype."""
    y, dtype = a.x, a.x.dtype
    if a.num_groups:
        assert a.norm_weight is not None and a.norm_bias is not None
        if a.statistics is None:
            y = group_norm_reference(y, a.num_groups, a.norm_weight, a.norm_bias, a.eps)
        else:
            y = norm_stats.normalized(y, a.statistics, a.norm_weight, a.norm_bias)
    y = F.conv2d(y, a.weight.to(dtype)[:, :, None, None], None if a.bias is None else a.bias.to(dtype))
    return y if a.residual is None else (a.residual + y).to(dtype)


@takes(Arguments)
def _plain(a: Arguments) -> Tensor:
    return reference(*a).contiguous(memory_format=torch.channels_last)


@takes(Arguments)
def _fake(a: Arguments) -> Tensor:
    size = (a.x.shape[0], a.weight.shape[0], *a.x.shape[2:])
    return torch.empty(size, dtype=a.x.dtype, device=a.x.device, memory_format=torch.channels_last)


def _matrix_operations(x: torch.Size, weight: torch.Size, *_: Any, **__: Any) -> int:
    """One product of every pixel with the weight."""
    return 2 * math.prod(x) * weight[0]


def _examples(device: torch.device, dtype: torch.dtype) -> list[tuple[Any, ...]]:
    """With normalization and residual, and without; both memory formats; sizes that are no multiple of a block."""
    normal = drawing.normal(device, dtype)
    x, residual = normal(2, 96, 9, 7) - 2.3, normal(2, 40, 9, 7)
    weight, bias, norm_weight, norm_bias = normal(40, 96) / 10, normal(40), normal(96), normal(96)
    return [
        (drawing.channels_last(x), weight, bias, residual, 32, norm_weight, norm_bias, 1e-5, None),
        Arguments(x, weight),
    ]


def _statistics_examples(device: torch.device, dtype: torch.dtype) -> list[tuple[Any, ...]]:
    """Those of `_examples`; also with given statistics, and groups with channels of several blocks."""
    (x, weight, bias, residual, *norm), (plain, plain_weight, *_) = _examples(device, dtype)
    statistics = norm_stats.reference(x, 32, 1e-5)
    wide = drawing.normal(device, dtype)(6 * 32, 96) / 10
    return [
        (x, weight, bias, residual, *norm, 8, 1e-6),
        (x, wide, None, None, *norm[:-1], statistics, 32, 1e-5),
        (plain, plain_weight, None, None, 0, None, None, 1e-5, None, 1, 1e-5),
    ]


def normalization(x: Tensor, num_groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """(mean, multiplier, offset) with which CPU kernels normalize x as they read it, float32 [B, 3, C]."""
    norm: Tensor = torch.ops.resshift_fast_cpu.group_norm_affine(x, num_groups, weight, bias, eps, None, None)
    return norm


@takes(Arguments)
def _normalized(a: Arguments) -> tuple[Any, ...]:
    norm = None
    if a.num_groups:
        assert a.norm_weight is not None and a.norm_bias is not None
        norm = normalization(a.x, a.num_groups, a.norm_weight, a.norm_bias, a.eps)
    return a.x, a.weight, a.bias, a.residual, norm


MOST_NORMALIZED = 2048  # channels that the CUDA C++ kernel normalizes: kMostNormalized of csrc/cuda/pointwise_conv2d.h


@takes(Arguments)
def _not_compiled(a: Arguments) -> str | None:
    """Why the CUDA C++ kernel can't run a call; None if it can."""
    if not a.num_groups:
        return None
    if a.statistics is None:
        return "statistics are not given"
    channels = a.x.shape[1]
    return f"{channels} normalized channels are more than {MOST_NORMALIZED}" if channels > MOST_NORMALIZED else None


def _with_counters(*args: Any) -> tuple[Any, ...]:
    """Arguments for CUDA C++, where the last are counters of the call's images."""
    return *args, counters(args[0], args[0].shape[0])


def _triton() -> Kernel:
    from resshift_fast.kernels import pointwise_conv2d as kernels

    return Kernel(kernels.forward, kernels.unsupported)


def _triton_with_statistics() -> Kernel:
    from resshift_fast.kernels import pointwise_conv2d as kernels

    return Kernel(kernels.forward_with_statistics, kernels.unsupported)


def _given(*args: Any) -> str | None:
    return None if args[-1] is None else "statistics are given"


@checks.without_autocast
def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The convolution alone, as one product of matrices: of images [B, C, H, W] and [O, C], in x's dtype.

    PyTorch's 1×1 convolution takes several times as long on a CPU, and its gradient even more.
    """
    dtype = x.dtype
    y = F.linear(x.permute(0, 2, 3, 1), weight.to(dtype), None if bias is None else bias.to(dtype))
    return y.permute(0, 3, 1, 2)


@checks.without_autocast
def weight_gradient(dy: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """Gradient of the weight of `product`, in the weight's dtype."""
    pixels, gradients = (image.permute(0, 2, 3, 1).flatten(0, 2) for image in (x, dy))
    return (gradients.t() @ pixels).to(weight.dtype)


def differentiable_norm(
    x: Tensor, num_groups: int, weight: Tensor, bias: Tensor, eps: float, statistics: Tensor | None
) -> tuple[Tensor, list[Tensor]]:
    """Group normalization, computed again with a graph, and the tensors that its gradients are of."""
    given = [x, weight, bias] if statistics is None else [x, weight, bias, statistics]
    leaves = [tensor.detach().requires_grad_() for tensor in given]
    x, weight, bias, *_ = leaves
    with torch.enable_grad():
        if statistics is None:
            return group_norm(x, num_groups, weight, bias, eps), leaves
        return norm_stats.normalized(x, leaves[3], weight, bias), leaves


def _gradient(dy: Tensor, arguments: Sequence[Any], needed: Sequence[Any]) -> tuple[Tensor | None, ...]:
    """Of products of matrices, and of the normalization computed again."""
    a, wanted = Arguments(*arguments), Arguments(*needed)
    found: dict[str, Tensor] = {}
    x = a.x
    if a.num_groups:
        assert a.norm_weight is not None and a.norm_bias is not None
        x, leaves = differentiable_norm(x, a.num_groups, a.norm_weight, a.norm_bias, a.eps, a.statistics)
        names = ("x", "norm_weight", "norm_bias", "statistics")[: len(leaves)]
        if any(getattr(wanted, name) for name in names):
            found = dict(zip(names, torch.autograd.grad(x, leaves, product(dy, a.weight.t())), strict=True))
    elif wanted.x:
        found["x"] = product(dy, a.weight.t())
    if wanted.weight:
        found["weight"] = weight_gradient(dy, x.detach(), a.weight)
    if wanted.bias and a.bias is not None:
        found["bias"] = bias_gradient(dy, a.bias)
    if wanted.residual:
        found["residual"] = dy
    return tuple(found.get(name) if getattr(wanted, name) else None for name in Arguments._fields)


_op = register(
    "pointwise_conv2d",
    _plain,
    fake=_fake,
    examples=_examples,
    loaders={"cpu": Native(_normalized, _given), "cuda": Native(None, _not_compiled), "triton": _triton},
    matrix_operations=_matrix_operations,
    **with_gradient(reference, _gradient),
)
_op_with_statistics = register(
    "pointwise_conv2d_statistics",
    norm_stats.with_statistics(_plain),
    fake=norm_stats.fake_with_statistics(_fake),
    examples=_statistics_examples,
    loaders={
        "cuda": Native(_with_counters, lambda *args: _not_compiled(*args[:-2])),
        "triton": _triton_with_statistics,
    },
    matrix_operations=_matrix_operations,
    public=False,
    **recomputed(norm_stats.with_statistics(reference)),
)


@checks.once
@takes(Arguments)
def _check(a: Arguments) -> None:
    op = "pointwise_conv2d"
    checks.image(op, "x", a.x)
    batch, channels, height, width = a.x.shape
    checks.tensor(op, "weight", a.weight)
    if a.weight.dim() != 2 or a.weight.shape[1] != channels or a.weight.shape[0] < 1:
        shape = tuple(a.weight.shape)
        raise ValueError(f"{op}: weight has shape {shape}, expected (O, {channels}) with O ≥ 1 to match x")
    out_channels = a.weight.shape[0]
    checks.shape(op, "bias", a.bias, (out_channels,), "to match weight's output channels", optional=True)
    size = (batch, out_channels, height, width)
    checks.shape(op, "residual", a.residual, size, "to match x and weight", optional=True)
    norm = {"norm_weight": a.norm_weight, "norm_bias": a.norm_bias}
    _check_norm(channels, a.num_groups, **norm)
    norm_stats.check(op, a.statistics, a.x, a.num_groups)
    checks.parameters(op, a.x, weight=a.weight, bias=a.bias, residual=a.residual, **norm)


@overload
def pointwise_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    residual: Tensor | None = None,
    num_groups: int = 0,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    eps: float = 1e-5,
    statistics: Tensor | None = None,
    next_groups: None = None,
) -> Tensor: ...
@overload
def pointwise_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    residual: Tensor | None = None,
    num_groups: int = 0,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    eps: float = 1e-5,
    statistics: Tensor | None = None,
    next_groups: int,
    next_eps: float = 1e-5,
) -> tuple[Tensor, Tensor]: ...
def pointwise_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    residual: Tensor | None = None,
    num_groups: int = 0,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    eps: float = 1e-5,
    statistics: Tensor | None = None,
    next_groups: int | None = None,
    next_eps: float = 1e-5,
) -> Tensor | tuple[Tensor, Tensor]:
    """1×1 convolution of x, or of group_norm(x), plus a residual.

    Args:
        x: [B, C, H, W], floating point.
        weight: [O, C]. bias: [O] or None.
        residual: [B, O, H, W], added to the result, or None.
        num_groups: a divisor of C to normalize x first, or 0.
        norm_weight, norm_bias: [C] with `num_groups`, None without.
        eps: added to the variance.
        statistics: float32 [B, 2, num_groups] (float64 for float64), mean and 1 / √(variance + eps) of x,
            as the operator that made x returned them; None computes them.
        next_groups: a divisor of O to also return the statistics of the result in so many groups, or None.
        next_eps: added to their variance.
        Every other tensor is in x's dtype or float32.

    Returns:
        [B, O, H, W] in x's dtype, channels-last where a backend has a kernel; with `next_groups` a pair of that and its
        statistics [B, 2, next_groups]. Differentiable in every tensor.

    Raises:
        ValueError: for a shape, device or number of groups that does not fit.
        TypeError: for a dtype other than those named.

    Example:
        >>> pointwise_conv2d(torch.randn(2, 8, 5, 7), torch.randn(6, 8), torch.zeros(6)).shape
        torch.Size([2, 6, 5, 7])
    """
    arguments = (x, weight, bias, residual, num_groups, norm_weight, norm_bias, eps, statistics)
    _check(*arguments)
    if next_groups is not None:
        norm_stats.check_next("pointwise_conv2d", weight.shape[0], next_groups)
        if backends.fused("pointwise_conv2d_statistics", x.device):
            both: tuple[Tensor, Tensor] = _op_with_statistics(*arguments, next_groups, next_eps)
            return both
    run = _op if backends.fused("pointwise_conv2d", x.device) else reference
    y: Tensor = run(*arguments)
    return y if next_groups is None else (y, norm_stats.reference(y, next_groups, next_eps))


def _check_norm(channels: int, num_groups: int, norm_weight: Tensor | None, norm_bias: Tensor | None) -> None:
    """Check that num_groups divides the channels and both parameters are given, or that it is 0 and neither is."""
    if num_groups < 0 or (num_groups and channels % num_groups):
        raise ValueError(f"pointwise_conv2d: {channels} channels do not divide into {num_groups} groups")
    for name, tensor in (("norm_weight", norm_weight), ("norm_bias", norm_bias)):
        if num_groups and tensor is None:
            raise ValueError(f"pointwise_conv2d: {name} is None, expected shape ({channels},) for {num_groups} groups")
        if not num_groups and tensor is not None:
            raise ValueError(f"pointwise_conv2d: {name} is given, but num_groups is 0; pass the number of groups")
        checks.shape("pointwise_conv2d", name, tensor, (channels,), "to match x's channels", optional=True)
