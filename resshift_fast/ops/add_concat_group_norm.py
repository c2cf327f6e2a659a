r"""Two images merged into one, and its group normalization with conditioning and activation.

.. math:: j = x + o \;\text{ or }\; j = \mathrm{cat}(x, o), \quad y = f\big((\mathrm{norm}(j)\,w + b)(1 + s) + h\big)

The sum ends a residual block; the concatenation of channels brings a skip connection into a U-Net's decoder (arXiv
1505.04597). A normalization usually follows, here that of `group_norm`. j is rounded to x's dtype before it is
normalized, so that both results equal those of two separate operations.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from resshift_fast import backends
from resshift_fast.backends import Kernel
from resshift_fast.ops import checks, drawing
from resshift_fast.ops.group_norm import ACTIVATIONS, group_norm
from resshift_fast.ops.group_norm import reference as group_norm_reference
from resshift_fast.ops.registration import Native, recomputed, register, takes

MODES = ("add", "concat")


class Arguments(NamedTuple):
    """Arguments of the registered operator; `add_concat_group_norm` describes them."""

    x: Tensor
    other: Tensor
    num_groups: int
    weight: Tensor
    bias: Tensor
    eps: float
    mode: str
    scale: Tensor | None = None
    shift: Tensor | None = None
    activation: str | None = None


def _merge(x: Tensor, other: Tensor, mode: str) -> Tensor:
    return x + other if mode == "add" else torch.cat([x, other], dim=1)


@takes(Arguments)
def reference(a: Arguments) -> tuple[Tensor, Tensor]:
    """The formula in plain PyTorch: the merged image and its normalization."""
    merged = _merge(a.x, a.other, a.mode)
    y = group_norm_reference(merged, a.num_groups, a.weight, a.bias, a.eps, a.scale, a.shift, a.activation)
    return merged, y


@takes(Arguments)
def _plain(a: Arguments) -> tuple[Tensor, Tensor]:
    merged, y = reference(*a)
    return merged.contiguous(memory_format=torch.channels_last), y.contiguous(memory_format=torch.channels_last)


@takes(Arguments)
def _fake(a: Arguments) -> tuple[Tensor, Tensor]:
    size = (a.x.shape[0], a.weight.shape[0], *a.x.shape[2:])
    merged = torch.empty(size, dtype=a.x.dtype, device=a.x.device, memory_format=torch.channels_last)
    return merged, torch.empty_like(merged)


def _examples(device: torch.device, dtype: torch.dtype) -> list[tuple[Any, ...]]:
    """Both modes; groups with channels of both images; one launch and, in the last, two; scale and shift as views."""
    normal = drawing.normal(device, dtype)

    def image(channels: int, height: int, width: int) -> Tensor:
        return drawing.channels_last(normal(2, channels, height, width) - 2.3)

    scale, shift = normal(2, 2 * 64).chunk(2, dim=1)
    return [
        (image(64, 9, 7), image(64, 9, 7), 32, normal(64), normal(64), 1e-5, "add", scale, shift, None),
        (image(56, 9, 7), image(40, 9, 7), 32, normal(96), normal(96), 1e-5, "concat", None, None, "silu"),
        (image(14, 33, 33), image(10, 33, 33), 2, normal(24), normal(24), 1e-5, "concat", None, None, "silu"),
    ]


@takes(Arguments)
def _indexed(a: Arguments) -> tuple[Any, ...]:
    """Arguments for C++, where a mode and an activation are indices."""
    options = MODES.index(a.mode), a.scale, a.shift, ACTIVATIONS.index(a.activation)
    return a.x, a.other, a.num_groups, a.weight, a.bias, a.eps, *options


def _triton() -> Kernel:
    from resshift_fast.kernels import add_concat_group_norm as kernels

    return Kernel(kernels.forward, kernels.unsupported)


_op = register(
    "add_concat_group_norm",
    _plain,
    fake=_fake,
    examples=_examples,
    loaders={"cpu": Native(_indexed), "triton": _triton},
    **recomputed(reference),
)


@checks.once
@takes(Arguments)
def _check(a: Arguments) -> None:
    op = "add_concat_group_norm"
    channels = _check_images(a.x, a.other, a.mode)
    if a.num_groups < 1 or channels % a.num_groups:
        raise ValueError(f"{op}: {channels} channels do not divide into {a.num_groups} groups")
    for name, tensor in (("weight", a.weight), ("bias", a.bias)):
        checks.shape(op, name, tensor, (channels,), "to match the merged channels")
    for name, condition in (("scale", a.scale), ("shift", a.shift)):
        size = (a.x.shape[0], channels)
        checks.shape(op, name, condition, size, "[B, C] to match the merged image", optional=True)
    checks.parameters(op, a.x, weight=a.weight, bias=a.bias, scale=a.scale, shift=a.shift)
    if a.activation not in ACTIVATIONS:
        raise ValueError(f"{op}: activation is {a.activation!r}, expected None or 'silu'")


def add_concat_group_norm(
    x: Tensor,
    other: Tensor,
    num_groups: int,
    weight: Tensor,
    bias: Tensor,
    eps: float = 1e-5,
    *,
    mode: str = "add",
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    activation: str | None = None,
) -> tuple[Tensor, Tensor]:
    """The sum or concatenation of two images, and `group_norm` of it.

    Args:
        x: [B, C1, H, W], floating point.
        other: in x's dtype, like x for a sum, [B, C2, H, W] for a concatenation.
        num_groups: a divisor of C: C1 for a sum, C1 + C2 for a concatenation.
        weight, bias: [C], x's dtype or float32.
        eps: added to the variance.
        mode: "add" or "concat".
        scale, shift: [B, C], x's dtype or float32, or None.
        activation: None or "silu".

    Returns:
        The merged image and its normalization, [B, C, H, W] in x's dtype, channels-last where one kernel makes both.
        Differentiable in every tensor.

    Raises:
        ValueError: for a shape that does not fit, another device, an unknown mode or activation.
        TypeError: for a dtype other than those named.

    Example:
        >>> x, skip = torch.randn(2, 8, 5, 7), torch.randn(2, 4, 5, 7)
        >>> weight, bias = torch.ones(12), torch.zeros(12)
        >>> merged, y = add_concat_group_norm(x, skip, 4, weight, bias, mode="concat", activation="silu")
        >>> merged.shape, y.shape
        (torch.Size([2, 12, 5, 7]), torch.Size([2, 12, 5, 7]))
    """
    arguments = (x, other, num_groups, weight, bias, eps, mode, scale, shift, activation)
    _check(*arguments)
    if backends.fused("add_concat_group_norm", x.device) and not torch.is_grad_enabled():
        both: tuple[Tensor, Tensor] = _op(*arguments)
        return both
    # Separately: the normalization has a kernel for its gradient, and may have a backend that the two together lack.
    merged = _merge(x, other, mode)
    return merged, group_norm(merged, num_groups, weight, bias, eps, scale=scale, shift=shift, activation=activation)


def _check_images(x: Tensor, other: Tensor, mode: str) -> int:
    """Check that both are images that can be merged; return the number of merged channels."""
    checks.image("add_concat_group_norm", "x", x)
    checks.image("add_concat_group_norm", "other", other)
    if mode not in MODES:
        raise ValueError(f"add_concat_group_norm: mode is {mode!r}, expected 'add' or 'concat'")
    if mode == "add":
        checks.like("add_concat_group_norm", "other", other, x, "x")
        return x.shape[1]
    size = (x.shape[0], other.shape[1], *x.shape[2:])
    checks.shape("add_concat_group_norm", "other", other, size, "[B, C2, H, W] to match x")
    if other.dtype != x.dtype:
        raise TypeError(f"add_concat_group_norm: other has dtype {other.dtype}, expected x's {x.dtype}")
    checks.devices("add_concat_group_norm", x, other=other)
    return x.shape[1] + other.shape[1]
