r"""Group normalization with conditioning and activation.

.. math:: y = f\big(\mathrm{norm}(x)\,w + b\big)(1 + s) + h

over each group of C/G channels and all pixels of an image (Wu and He, arXiv 1803.08494); s and h are
the per-image, per-channel scale and shift of the timestep (arXiv 2105.05233, adaptive group
normalization) and the activation f(z) = z or z σ(z) comes last. Statistics are float32 whatever the input.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from resshift_fast.ops import checks

ACTIVATIONS = (None, "silu")


def _centre(x: Tensor, num_groups: int) -> Tensor:
    """About the mean of every group, [B, C, 1, 1], from every eighth row and column.

    PyTorch's CPU kernel for channels-last takes the variance as E[x²] − E[x]², which cancels where the mean is large.
    Any shift near the mean cures that, and normalization undoes it exactly.
    """
    mean = x.detach()[:, :, ::8, ::8].mean((2, 3)).unflatten(1, (num_groups, -1)).mean(2)
    return mean.repeat_interleave(x.shape[1] // num_groups, dim=1)[:, :, None, None]


def reference(
    x: Tensor,
    num_groups: int,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    scale: Tensor | None,
    shift: Tensor | None,
    activation: str | None,
) -> Tensor:
    """The formula in plain PyTorch, accumulated in float32 (float64 for float64 input)."""
    accumulate = checks.accumulation_dtype(x)
    values = x.to(accumulate)
    if values.device.type == "cpu" and not values.is_contiguous():
        values = values - _centre(values, num_groups)
    # torch.group_norm, because that of torch.nn.functional refuses a single value a group.
    y = torch.group_norm(values, num_groups, weight.to(accumulate), bias.to(accumulate), eps)
    if scale is not None:
        y = y * (1 + scale.to(accumulate)[:, :, None, None])
    if shift is not None:
        y = y + shift.to(accumulate)[:, :, None, None]
    if activation == "silu":
        y = F.silu(y)
    return y.to(x.dtype)


def group_norm(
    x: Tensor,
    num_groups: int,
    weight: Tensor,
    bias: Tensor,
    eps: float = 1e-5,
    *,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    activation: str | None = None,
) -> Tensor:
    """Group normalization, then norm · (1 + scale) + shift, then the activation.

    Args:
        x: [B, C, H, W], floating point, contiguous or channels-last; the result keeps the format.
        num_groups: a divisor of C.
        weight, bias: [C], x's dtype or float32.
        eps: added to the variance.
        scale, shift: [B, C], x's dtype or float32, or None.
        activation: None or "silu".

    Returns:
        [B, C, H, W] in x's dtype. Differentiable in every tensor.

    Raises:
        ValueError: for a shape that does not fit, another device or an unknown activation.
        TypeError: for a dtype other than those named.

    Example:
        >>> group_norm(torch.randn(2, 8, 5, 7), 4, torch.ones(8), torch.zeros(8), activation="silu").shape
        torch.Size([2, 8, 5, 7])
    """
    checks.image("group_norm", "x", x)
    channels = x.shape[1]
    if num_groups < 1 or channels % num_groups:
        raise ValueError(f"group_norm: {channels} channels do not divide into {num_groups} groups")
    for name, tensor in (("weight", weight), ("bias", bias)):
        checks.shape("group_norm", name, tensor, (channels,), "to match x's channels")
    for name, tensor in (("scale", scale), ("shift", shift)):
        checks.shape("group_norm", name, tensor, (x.shape[0], channels), "[B, C] to match x")
    checks.parameters("group_norm", x, weight=weight, bias=bias, scale=scale, shift=shift)
    if activation not in ACTIVATIONS:
        raise ValueError(f"group_norm: activation is {activation!r}, expected None or 'silu'")
    return reference(x, num_groups, weight, bias, eps, scale, shift, activation)
