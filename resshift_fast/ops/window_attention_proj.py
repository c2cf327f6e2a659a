r"""`window_attention` with the projection after it and the sum with a residual (Swin, arXiv 2103.14030).

.. math:: y = W\,\mathrm{attention}(q, k, v) + b + r

where W mixes the heads of `window_attention`; b and the residual r may be missing. The statistics of y's next group
normalization can be returned with it. Where no backend has a kernel for
all of it, or a gradient is wanted, `window_attention` and `pointwise_conv2d` are called one after the other.
"""

import math
from typing import Any, NamedTuple, overload

import torch
import torch.nn.functional as F
from torch import Tensor

from resshift_fast import backends
from resshift_fast.backends import Kernel
from resshift_fast.core.counters import counters
from resshift_fast.ops import checks, drawing, norm_stats
from resshift_fast.ops.pointwise_conv2d import pointwise_conv2d
from resshift_fast.ops.registration import Native, recomputed, register, takes
from resshift_fast.ops.window_attention import check as check_attention
from resshift_fast.ops.window_attention import indexed, not_compiled, window_attention
from resshift_fast.ops.window_attention import reference as attention_reference


class Arguments(NamedTuple):
    """Arguments of the registered operator; `window_attention_proj` describes them."""

    qkv: Tensor
    bias_table: Tensor
    weight: Tensor
    bias: Tensor | None
    residual: Tensor | None
    num_heads: int
    window_size: int
    shift_size: int
    mask: str


@checks.without_autocast
@takes(Arguments)
def reference(a: Arguments) -> Tensor:
    """The formula in plain PyTorch, in qkv's dtype."""
    dtype = a.qkv.dtype
    y = attention_reference(a.qkv, a.bias_table, a.num_heads, a.window_size, a.shift_size, a.mask)
    y = F.linear(y, a.weight.to(dtype), None if a.bias is None else a.bias.to(dtype))
    return y if a.residual is None else (a.residual + y).to(dtype)


@takes(Arguments)
def _plain(a: Arguments) -> Tensor:
    return reference(*a).contiguous()


@takes(Arguments)
def _separately(a: Arguments) -> Tensor:
    """The same by the two operators, each with its own kernels and gradient."""
    y = window_attention(
        a.qkv,
        a.bias_table,
        num_heads=a.num_heads,
        window_size=a.window_size,
        shift_size=a.shift_size,
        mask=a.mask,
    )
    residual = None if a.residual is None else a.residual.permute(0, 3, 1, 2)
    return pointwise_conv2d(y.permute(0, 3, 1, 2), a.weight, a.bias, residual=residual).permute(0, 2, 3, 1)


@takes(Arguments)
def _fake(a: Arguments) -> Tensor:
    return a.qkv.new_empty((*a.qkv.shape[:3], a.weight.shape[0]))


def _statistics(y: Tensor, next_groups: int, next_eps: float) -> Tensor:
    """Of an image [B, H, W, C]."""
    return norm_stats.reference(y.permute(0, 3, 1, 2), next_groups, next_eps)


def _matrix_operations(
    qkv: torch.Size,
    bias_table: torch.Size,
    weight: torch.Size,
    bias: torch.Size | None,
    residual: torch.Size | None,
    num_heads: int,
    window_size: int,
    *_: Any,
    **__: Any,
) -> int:
    """q kᵀ and P v, 2 · 2 · w² operations for every channel of a pixel, and one product with the weight."""
    out_channels, channels = weight
    return math.prod(qkv[:3]) * channels * (4 * window_size**2 + 2 * out_channels)


def _examples(device: torch.device, dtype: torch.dtype) -> list[tuple[Any, ...]]:
    """Several heads and one, with and without bias and residual, widths that are no multiple of a block."""
    normal = drawing.normal(device, dtype)
    return [
        (
            normal(2, 16, 8, 3 * 96) - 0.5,
            normal(225, 3),
            normal(96, 96) / 10,
            normal(96),
            normal(2, 16, 8, 96),
            *(3, 8, 4, "resshift"),
        ),
        (normal(1, 8, 12, 3 * 32), normal(49, 2), normal(40, 32) / 6, None, None, 2, 4, 2, "swin"),
    ]


def _statistics_examples(device: torch.device, dtype: torch.dtype) -> list[tuple[Any, ...]]:
    """Those of `_examples`, with groups of several channels and one, and channels of several blocks."""
    first, second = _examples(device, dtype)
    return [(*first, 32, 1e-5), (*second, 5, 1e-6)]


HEAD_DIM = 32  # of the CUDA C++ kernel: kProjHeadDim of csrc/cuda/window_attention_proj.h


def _with_counters(*args: Any) -> tuple[Any, ...]:
    """Arguments for CUDA C++, where the mask is an index, and the last are counters of the call's images."""
    return *indexed(*args[:-2]), *args[-2:], counters(args[0], args[0].shape[0])


def _not_compiled(
    qkv: Tensor, bias_table: Tensor, weight: Tensor, bias: Any, residual: Any, num_heads: int, window_size: int, *_: Any
) -> str | None:
    """Why the CUDA C++ kernel can't run a call; None if it can."""
    head_dim = weight.shape[1] // num_heads
    if head_dim != HEAD_DIM:
        return f"head size {head_dim} is not {HEAD_DIM}"
    return not_compiled(qkv, bias_table, num_heads, window_size)


def _triton() -> Kernel:
    from resshift_fast.kernels import window_attention_proj as kernels

    return Kernel(kernels.forward, kernels.unsupported)


def _triton_with_statistics() -> Kernel:
    from resshift_fast.kernels import window_attention_proj as kernels

    return Kernel(kernels.forward_with_statistics, lambda *args: kernels.unsupported(*args[:-2]))


_op = register(
    "window_attention_proj",
    _plain,
    fake=_fake,
    examples=_examples,
    loaders={"cuda": Native(indexed, _not_compiled), "triton": _triton},
    matrix_operations=_matrix_operations,
    **recomputed(_separately),
)
_op_with_statistics = register(
    "window_attention_proj_statistics",
    norm_stats.with_statistics(_plain, _statistics),
    fake=norm_stats.with_statistics(_fake, lambda y, groups, _: norm_stats.fake(y.permute(0, 3, 1, 2), groups)),
    examples=_statistics_examples,
    loaders={"cuda": Native(_with_counters, _not_compiled), "triton": _triton_with_statistics},
    matrix_operations=_matrix_operations,
    public=False,
    **recomputed(norm_stats.with_statistics(_separately, _statistics)),
)


@checks.once
@takes(Arguments)
def _check(a: Arguments) -> None:
    op = "window_attention_proj"
    check_attention(op, a.qkv, a.bias_table, a.num_heads, a.window_size, a.shift_size, a.mask)
    channels = a.qkv.shape[3] // 3
    checks.tensor(op, "weight", a.weight)
    if a.weight.dim() != 2 or a.weight.shape[1] != channels or a.weight.shape[0] < 1:
        shape = tuple(a.weight.shape)
        raise ValueError(f"{op}: weight has shape {shape}, expected (O, {channels}) with O ≥ 1 to match qkv")
    out_channels = a.weight.shape[0]
    checks.shape(op, "bias", a.bias, (out_channels,), "to match weight's output channels", optional=True)
    size = (*a.qkv.shape[:3], out_channels)
    checks.shape(op, "residual", a.residual, size, "to match qkv and weight", optional=True)
    checks.parameters(op, a.qkv, weight=a.weight, bias=a.bias, residual=a.residual)


@overload
def window_attention_proj(
    qkv: Tensor,
    bias_table: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    num_heads: int,
    window_size: int,
    shift_size: int = 0,
    mask: str = "resshift",
    next_groups: None = None,
) -> Tensor: ...
@overload
def window_attention_proj(
    qkv: Tensor,
    bias_table: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    num_heads: int,
    window_size: int,
    shift_size: int = 0,
    mask: str = "resshift",
    next_groups: int,
    next_eps: float = 1e-5,
) -> tuple[Tensor, Tensor]: ...
def window_attention_proj(
    qkv: Tensor,
    bias_table: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    num_heads: int,
    window_size: int,
    shift_size: int = 0,
    mask: str = "resshift",
    next_groups: int | None = None,
    next_eps: float = 1e-5,
) -> Tensor | tuple[Tensor, Tensor]:
    """`window_attention`, a linear projection of its result, plus a residual.

    Args:
        qkv: [B, H, W, 3C], floating point, last dimension ordered (q | k | v, head, head_dim); H and W are
            multiples of the window.
        bias_table: [(2 · window_size − 1)², num_heads].
        weight: [O, C]. bias: [O] or None.
        residual: [B, H, W, O], added to the result, or None.
        num_heads: a divisor of C.
        window_size: side of a window in pixels.
        shift_size: cyclic shift in pixels, 0 ≤ shift_size < window_size; 0 means no shift and no mask.
        mask: "resshift" (what the ResShift weights expect) or "swin" (the standard mask).
        next_groups: a divisor of O to also return the statistics of the result in so many groups, or None.
        next_eps: added to their variance.
        Every tensor is in qkv's dtype or float32.

    Returns:
        [B, H, W, O] in qkv's dtype; with `next_groups` a pair of that and mean and 1 / √(variance + eps) of its groups,
        float32 [B, 2, next_groups]. Differentiable in every tensor.

    Raises:
        ValueError: for a shape, size, device or mask that does not fit.
        TypeError: for a dtype other than those named.

    Example:
        >>> qkv, table, weight = torch.randn(1, 16, 24, 3 * 64), torch.zeros(225, 2), torch.randn(64, 64)
        >>> window_attention_proj(qkv, table, weight, num_heads=2, window_size=8).shape
        torch.Size([1, 16, 24, 64])
    """
    arguments = (qkv, bias_table, weight, bias, residual, num_heads, window_size, shift_size, mask)
    _check(*arguments)
    if next_groups is not None:
        norm_stats.check_next("window_attention_proj", weight.shape[0], next_groups)
    # Separately for gradients: the attention has a kernel for its own.
    fused = backends.has_kernel("window_attention_proj", qkv.device.type) and not torch.is_grad_enabled()
    if fused and next_groups is not None:
        both: tuple[Tensor, Tensor] = _op_with_statistics(*arguments, next_groups, next_eps)
        return both
    y: Tensor = (_op if fused else _separately)(*arguments)
    return y if next_groups is None else (y, _statistics(y, next_groups, next_eps))
