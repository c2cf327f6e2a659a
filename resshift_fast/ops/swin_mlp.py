r"""The feed-forward half of a Swin block on images.

.. math:: y = x + W_2\,\mathrm{gelu}(W_1\,\mathrm{norm}(x) + b_1) + b_2

with group normalization, 1×1 convolutions and the erf GELU (Hendrycks and Gimpel, arXiv 1606.08415). The statistics of
the normalization can be given, and those of y's next normalization returned with it.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, overload

import torch
import torch.nn.functional as F
from torch import Tensor

from resshift_fast import backends
from resshift_fast.backends import Kernel
from resshift_fast.ops import checks, drawing, norm_stats
from resshift_fast.ops.conv2d import bias_gradient
from resshift_fast.ops.group_norm import reference as group_norm
from resshift_fast.ops.pointwise_conv2d import (
    differentiable_norm,
    normalization,
    product,
    weight_gradient,
)
from resshift_fast.ops.registration import Native, recomputed, register, takes, with_gradient


class Arguments(NamedTuple):
    """Arguments of the registered operator; `swin_mlp` describes them."""

    x: Tensor
    num_groups: int
    norm_weight: Tensor
    norm_bias: Tensor
    w1: Tensor
    b1: Tensor
    w2: Tensor
    b2: Tensor
    eps: float
    statistics: Tensor | None = None


@checks.without_autocast
@takes(Arguments)
def reference(a: Arguments) -> Tensor:
    """The formula in plain PyTorch, in x's dtype."""
    x, dtype = a.x, a.x.dtype
    if a.statistics is None:
        y = group_norm(x, a.num_groups, a.norm_weight, a.norm_bias, a.eps)
    else:
        y = norm_stats.normalized(x, a.statistics, a.norm_weight, a.norm_bias)
    y = F.conv2d(y, a.w1.to(dtype)[:, :, None, None], a.b1.to(dtype))
    y = F.conv2d(F.gelu(y), a.w2.to(dtype)[:, :, None, None], a.b2.to(dtype))
    return x + y


@takes(Arguments)
def _plain(a: Arguments) -> Tensor:
    return checks.match_memory_format(reference(*a), a.x)


@takes(Arguments)
def _fake(a: Arguments) -> Tensor:
    return torch.empty_like(a.x)


def _matrix_operations(
    x: torch.Size, num_groups: int, norm_weight: torch.Size, norm_bias: torch.Size, w1: torch.Size, *_: Any, **__: Any
) -> int:
    """Two products of every pixel with a matrix of w1's size."""
    return 4 * math.prod(x) * w1[0]


def _examples(device: torch.device, dtype: torch.dtype) -> list[tuple[Any, ...]]:
    """A width that is no power of two, a number of pixels that is no multiple of a block."""
    normal = drawing.normal(device, dtype)
    channels, hidden = 96, 384
    x = drawing.channels_last(normal(2, channels, 9, 7) - 2.3)
    norm = (normal(channels), normal(channels))
    fc1 = (normal(hidden, channels) / 10, normal(hidden))
    fc2 = (normal(channels, hidden) / 20, normal(channels))
    return [(x, 32, *norm, *fc1, *fc2, 1e-5, None)]


def _statistics_examples(device: torch.device, dtype: torch.dtype) -> list[tuple[Any, ...]]:
    """That of `_examples`, with and without given statistics."""
    ((x, *parameters, _),) = _examples(device, dtype)
    statistics = norm_stats.reference(x, 32, 1e-5)
    return [(x, *parameters, statistics, 32, 1e-5), (x, *parameters, None, 4, 1e-6)]


@takes(Arguments)
def _normalized(a: Arguments) -> tuple[Any, ...]:
    return a.x, normalization(a.x, a.num_groups, a.norm_weight, a.norm_bias, a.eps), a.w1, a.b1, a.w2, a.b2


def _triton() -> Kernel:
    from resshift_fast.kernels import swin_mlp as kernels

    return Kernel(kernels.forward, kernels.unsupported)


def _triton_with_statistics() -> Kernel:
    from resshift_fast.kernels import swin_mlp as kernels

    return Kernel(kernels.forward_with_statistics, kernels.unsupported)


def _given(*args: Any) -> str | None:
    return None if args[-1] is None else "statistics are given"


def _gradient(dy: Tensor, arguments: Sequence[Any], needed: Sequence[Any]) -> tuple[Tensor | None, ...]:
    """Products of matrices, with the hidden layer computed again."""
    a, wanted = Arguments(*arguments), Arguments(*needed)
    y, leaves = differentiable_norm(a.x, a.num_groups, a.norm_weight, a.norm_bias, a.eps, a.statistics)
    names = ["x", "norm_weight", "norm_bias", "statistics"][: len(leaves)] + ["w1", "b1"]
    leaves += [tensor.detach().requires_grad_() for tensor in (a.w1, a.b1)]
    with torch.enable_grad():
        hidden = F.gelu(product(y, *leaves[-2:]))
    found = dict(zip(names, torch.autograd.grad(hidden, leaves, product(dy, a.w2.t())), strict=True))
    found["x"] = found["x"] + dy
    if wanted.w2:
        found["w2"] = weight_gradient(dy, hidden.detach(), a.w2)
    if wanted.b2:
        found["b2"] = bias_gradient(dy, a.b2)
    return tuple(found.get(name) if getattr(wanted, name) else None for name in Arguments._fields)


_op = register(
    "swin_mlp",
    _plain,
    fake=_fake,
    examples=_examples,
    loaders={"cpu": Native(_normalized, _given), "triton": _triton},
    matrix_operations=_matrix_operations,
    **with_gradient(reference, _gradient),
)
_op_with_statistics = register(
    "swin_mlp_statistics",
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
    checks.image("swin_mlp", "x", a.x)
    channels = a.x.shape[1]
    if a.num_groups < 1 or channels % a.num_groups:
        raise ValueError(f"swin_mlp: {channels} channels do not divide into {a.num_groups} groups")
    for name, tensor in (("norm_weight", a.norm_weight), ("norm_bias", a.norm_bias)):
        checks.shape("swin_mlp", name, tensor, (channels,), "to match x's channels")
    checks.tensor("swin_mlp", "w1", a.w1)
    if a.w1.dim() != 2 or a.w1.shape[1] != channels or a.w1.shape[0] < 1:
        shape = tuple(a.w1.shape)
        raise ValueError(f"swin_mlp: w1 has shape {shape}, expected (hidden, {channels}) with hidden ≥ 1 to match x")
    hidden = a.w1.shape[0]
    checks.shape("swin_mlp", "b1", a.b1, (hidden,), "to match w1")
    checks.shape("swin_mlp", "w2", a.w2, (channels, hidden), "to match w1 transposed")
    checks.shape("swin_mlp", "b2", a.b2, (channels,), "to match x's channels")
    tensors = {"norm_weight": a.norm_weight, "norm_bias": a.norm_bias, "w1": a.w1, "b1": a.b1, "w2": a.w2, "b2": a.b2}
    norm_stats.check("swin_mlp", a.statistics, a.x, a.num_groups)
    checks.parameters("swin_mlp", a.x, **tensors)


@overload
def swin_mlp(
    x: Tensor,
    num_groups: int,
    norm_weight: Tensor,
    norm_bias: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    eps: float = 1e-5,
    *,
    statistics: Tensor | None = None,
    next_groups: None = None,
) -> Tensor: ...
@overload
def swin_mlp(
    x: Tensor,
    num_groups: int,
    norm_weight: Tensor,
    norm_bias: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    eps: float = 1e-5,
    *,
    statistics: Tensor | None = None,
    next_groups: int,
    next_eps: float = 1e-5,
) -> tuple[Tensor, Tensor]: ...
def swin_mlp(
    x: Tensor,
    num_groups: int,
    norm_weight: Tensor,
    norm_bias: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    eps: float = 1e-5,
    *,
    statistics: Tensor | None = None,
    next_groups: int | None = None,
    next_eps: float = 1e-5,
) -> Tensor | tuple[Tensor, Tensor]:
    """x + fc2(gelu(fc1(group_norm(x)))).

    Args:
        x: [B, C, H, W], floating point.
        num_groups: a divisor of C.
        norm_weight, norm_bias: [C].
        w1: [hidden, C]. b1: [hidden]. w2: [C, hidden]. b2: [C].
        eps: added to the variance.
        statistics: float32 [B, 2, num_groups] (float64 for float64), mean and 1 / √(variance + eps) of x,
            as the operator that made x returned them; None computes them.
        next_groups: a divisor of C to also return the statistics of the result in so many groups, or None.
        next_eps: added to their variance.
        Every parameter is in x's dtype or float32.

    Returns:
        [B, C, H, W] in x's dtype (under autocast, the sum's); with `next_groups` a pair of that and its statistics
        [B, 2, next_groups]. Differentiable in every tensor.

    Raises:
        ValueError: for a shape or device that does not fit.
        TypeError: for a dtype other than those named.
    """
    arguments = (x, num_groups, norm_weight, norm_bias, w1, b1, w2, b2, eps, statistics)
    _check(*arguments)
    if next_groups is not None:
        norm_stats.check_next("swin_mlp", x.shape[1], next_groups)
        if backends.fused("swin_mlp_statistics", x.device):
            both: tuple[Tensor, Tensor] = _op_with_statistics(*arguments, next_groups, next_eps)
            return both
    run = _op if backends.fused("swin_mlp", x.device) else reference
    y: Tensor = run(*arguments)
    return y if next_groups is None else (y, norm_stats.reference(y, next_groups, next_eps))
