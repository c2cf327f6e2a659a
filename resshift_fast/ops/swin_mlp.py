r"""The feed-forward half of a Swin block on images.

.. math:: y = x + W_2\,\mathrm{gelu}(W_1\,\mathrm{norm}(x) + b_1) + b_2

with group normalization, 1×1 convolutions and the erf GELU (Hendrycks and Gimpel, arXiv 1606.08415).
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from resshift_fast import backends
from resshift_fast.backends import Kernel
from resshift_fast.ops import checks
from resshift_fast.ops.group_norm import reference as group_norm
from resshift_fast.ops.pointwise_conv2d import normalization
from resshift_fast.ops.registration import Native, recomputed, register


def reference(
    x: Tensor,
    num_groups: int,
    norm_weight: Tensor,
    norm_bias: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    eps: float,
) -> Tensor:
    """The formula in plain PyTorch, in x's dtype."""
    y = group_norm(x, num_groups, norm_weight, norm_bias, eps, None, None, None)
    y = F.conv2d(y, w1.to(x.dtype)[:, :, None, None], b1.to(x.dtype))
    y = F.conv2d(F.gelu(y), w2.to(x.dtype)[:, :, None, None], b2.to(x.dtype))
    return x + y


def _plain(
    x: Tensor,
    num_groups: int,
    norm_weight: Tensor,
    norm_bias: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    eps: float,
) -> Tensor:
    return checks.match_memory_format(reference(x, num_groups, norm_weight, norm_bias, w1, b1, w2, b2, eps), x)


def _fake(
    x: Tensor,
    num_groups: int,
    norm_weight: Tensor,
    norm_bias: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    eps: float,
) -> Tensor:
    return torch.empty_like(x)


def _matrix_operations(
    x: torch.Size, num_groups: int, norm_weight: torch.Size, norm_bias: torch.Size, w1: torch.Size, *_: Any, **__: Any
) -> int:
    """Two products of every pixel with a matrix of w1's size."""
    return 4 * math.prod(x) * w1[0]


def _examples(device: torch.device, dtype: torch.dtype) -> list[tuple[Any, ...]]:
    """A width that is no power of two, pixels that fill no block."""
    generator = torch.Generator(device).manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device)

    channels, hidden = 96, 384
    x = (normal(2, channels, 9, 7) - 2.3).to(dtype).contiguous(memory_format=torch.channels_last)
    parameters = [normal(channels), normal(channels), normal(hidden, channels) / 10, normal(hidden)]
    parameters += [normal(channels, hidden) / 20, normal(channels)]
    return [(x, 32, *(parameter.to(dtype) for parameter in parameters), 1e-5)]


def _normalized(
    x: Tensor,
    num_groups: int,
    norm_weight: Tensor,
    norm_bias: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    eps: float,
) -> tuple[Any, ...]:
    return x, normalization(x, num_groups, norm_weight, norm_bias, eps), w1, b1, w2, b2


def _triton() -> Kernel:
    from resshift_fast.kernels import swin_mlp as kernels

    return Kernel(kernels.forward, kernels.unsupported)


_op = register(
    "swin_mlp",
    _plain,
    fake=_fake,
    examples=_examples,
    loaders={"cpu": Native(_normalized), "triton": _triton},
    matrix_operations=_matrix_operations,
    **recomputed(reference),
)


@checks.once
def _check(
    x: Tensor,
    num_groups: int,
    norm_weight: Tensor,
    norm_bias: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
) -> None:
    checks.image("swin_mlp", "x", x)
    channels = x.shape[1]
    if num_groups < 1 or channels % num_groups:
        raise ValueError(f"swin_mlp: {channels} channels do not divide into {num_groups} groups")
    for name, tensor in (("norm_weight", norm_weight), ("norm_bias", norm_bias)):
        checks.shape("swin_mlp", name, tensor, (channels,), "to match x's channels")
    checks.tensor("swin_mlp", "w1", w1)
    if w1.dim() != 2 or w1.shape[1] != channels or w1.shape[0] < 1:
        shape = tuple(w1.shape)
        raise ValueError(f"swin_mlp: w1 has shape {shape}, expected (hidden, {channels}) with hidden ≥ 1 to match x")
    hidden = w1.shape[0]
    checks.shape("swin_mlp", "b1", b1, (hidden,), "to match w1")
    checks.shape("swin_mlp", "w2", w2, (channels, hidden), "to match w1 transposed")
    checks.shape("swin_mlp", "b2", b2, (channels,), "to match x's channels")
    tensors = {"norm_weight": norm_weight, "norm_bias": norm_bias, "w1": w1, "b1": b1, "w2": w2, "b2": b2}
    checks.parameters("swin_mlp", x, **tensors)


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
) -> Tensor:
    """x + fc2(gelu(fc1(group_norm(x)))).

    Args:
        x: [B, C, H, W], floating point.
        num_groups: a divisor of C.
        norm_weight, norm_bias: [C].
        w1: [hidden, C]. b1: [hidden]. w2: [C, hidden]. b2: [C].
        eps: added to the variance.
        Every parameter is in x's dtype or float32.

    Returns:
        [B, C, H, W] in x's dtype (under autocast, the sum's). Differentiable in every tensor.

    Raises:
        ValueError: for a shape or device that does not fit.
        TypeError: for a dtype other than those named.
    """
    _check(x, num_groups, norm_weight, norm_bias, w1, b1, w2, b2)
    run = _op if backends.fused("swin_mlp", x.device.type) else reference
    return run(x, num_groups, norm_weight, norm_bias, w1, b1, w2, b2, eps)
