r"""Group normalization with conditioning and activation.

.. math:: y = f\big((\mathrm{norm}(x)\,w + b)(1 + s) + h\big)

over each group of C/G channels and all pixels of an image (Wu and He, arXiv 1803.08494); s and h are
the per-image, per-channel scale and shift of the timestep (arXiv 2105.05233, adaptive group
normalization) and the activation f(z) = z or z σ(z) comes last. Statistics are float32 whatever the input. They can be
given if the operator that made the image has written them.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from resshift_fast import backends
from resshift_fast.backends import Kernel
from resshift_fast.ops import checks, drawing, norm_stats
from resshift_fast.ops.registration import Native, recomputed, register, takes

ACTIVATIONS = (None, "silu")


class Arguments(NamedTuple):
    """Arguments of the registered operator; `group_norm` describes them."""

    x: Tensor
    num_groups: int
    weight: Tensor
    bias: Tensor
    eps: float
    scale: Tensor | None = None
    shift: Tensor | None = None
    activation: str | None = None


class GivenArguments(NamedTuple):
    """Arguments of the registered operator with given statistics [B, 2, G]."""

    x: Tensor
    statistics: Tensor
    weight: Tensor
    bias: Tensor
    scale: Tensor | None
    shift: Tensor | None
    activation: str | None


class BackwardArguments(NamedTuple):
    """Arguments of the registered gradient: dy like x, the statistics [B, G], and the operator's own."""

    dy: Tensor
    x: Tensor
    mean: Tensor
    rstd: Tensor
    num_groups: int
    weight: Tensor
    bias: Tensor
    scale: Tensor | None
    shift: Tensor | None
    activation: str | None


def _sampled_means(x: Tensor, num_groups: int) -> Tensor:
    """Roughly the mean of every group, [B, C, 1, 1], from eight rows and columns spread over the image.

    PyTorch's CPU kernel for channels-last computes the variance as E[x²] − E[x]², which cancels where the mean is
    large. Subtracting a value near the mean avoids that and does not change the result. The number of samples is fixed:
    one that depends on the image's size would be 1 for small images, for which torch.compile traces anew.
    """
    eighths = torch.arange(8, device=x.device)
    rows, columns = eighths * x.shape[2] // 8, eighths * x.shape[3] // 8
    samples = x.detach().permute(0, 2, 3, 1)[:, rows[:, None], columns]  # [B, 8, 8, C]
    mean: Tensor = samples.mean((1, 2)).unflatten(1, (num_groups, -1)).mean(2)
    return mean[:, :, None].expand(-1, -1, x.shape[1] // num_groups).flatten(1)[:, :, None, None]


@takes(Arguments)
def reference(a: Arguments) -> Tensor:
    """The formula in plain PyTorch, accumulated in float32 (float64 for float64 input)."""
    accumulate = checks.accumulation_dtype(a.x)
    values = a.x.to(accumulate)
    if values.device.type == "cpu" and not values.is_contiguous():
        # A copy is as exact, and fewer operations in an exported program.
        exporting = torch.compiler.is_exporting()
        values = values.contiguous() if exporting else values - _sampled_means(values, a.num_groups)
    # torch.group_norm, because torch.nn.functional.group_norm refuses groups of a single element.
    y = torch.group_norm(values, a.num_groups, a.weight.to(accumulate), a.bias.to(accumulate), a.eps)
    if a.scale is not None:
        y = y * (1 + a.scale.to(accumulate)[:, :, None, None])
    if a.shift is not None:
        y = y + a.shift.to(accumulate)[:, :, None, None]
    if a.activation == "silu":
        y = F.silu(y)
    return y.to(a.x.dtype)


@takes(Arguments)
def _plain(a: Arguments) -> tuple[Tensor, Tensor, Tensor]:
    """The reference, and the statistics that the backward needs: mean and 1/deviation, [B, G]."""
    groups = a.x.to(checks.accumulation_dtype(a.x)).reshape(a.x.shape[0], a.num_groups, -1)
    variance, mean = torch.var_mean(groups, dim=2, correction=0)
    return checks.match_memory_format(reference(*a), a.x), mean, (variance + a.eps).rsqrt()


@takes(Arguments)
def _fake(a: Arguments) -> tuple[Tensor, Tensor, Tensor]:
    statistics = a.x.new_empty((a.x.shape[0], a.num_groups), dtype=checks.accumulation_dtype(a.x))
    return torch.empty_like(a.x), statistics, torch.empty_like(statistics)


@takes(GivenArguments)
def _plain_given(a: GivenArguments) -> Tensor:
    return checks.match_memory_format(norm_stats.normalized(*a), a.x)


@takes(GivenArguments)
def _fake_given(a: GivenArguments) -> Tensor:
    return torch.empty_like(a.x)


@takes(BackwardArguments)
def _plain_backward(a: BackwardArguments) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, of weight and bias [C], of scale and shift [B, C]; the last four in the dtype of accumulation."""
    batch, channels = a.x.shape[:2]
    grouped = (batch, a.num_groups, -1)
    accumulate = a.mean.dtype
    normalized = (a.x.to(accumulate).reshape(grouped) - a.mean[..., None]) * a.rstd[..., None]
    normalized = normalized.reshape(batch, channels, -1)
    dz = a.dy.to(accumulate).reshape(normalized.shape)
    gain = 1 if a.scale is None else 1 + a.scale.to(accumulate)
    w, b = a.weight.to(accumulate), a.bias.to(accumulate)
    if a.activation == "silu":
        offset = b * gain + (0 if a.shift is None else a.shift.to(accumulate))
        z = normalized * (w * gain)[..., None] + offset[..., None]
        sigmoid = z.sigmoid()
        dz = dz * sigmoid * (1 + z * (1 - sigmoid))
    dshift, dz_normalized = dz.sum(2), (dz * normalized).sum(2)  # [B, C]
    dscale = w * dz_normalized + b * dshift
    dnormalized = (dz * (w * gain)[..., None]).reshape(grouped)
    normalized = normalized.reshape(grouped)
    mean_d = dnormalized.mean(2, keepdim=True)
    mean_dn = (dnormalized * normalized).mean(2, keepdim=True)
    dx = ((dnormalized - mean_d - normalized * mean_dn) * a.rstd[..., None]).reshape(a.x.shape).to(a.x.dtype)
    return checks.match_memory_format(dx, a.x), (gain * dz_normalized).sum(0), (gain * dshift).sum(0), dscale, dshift


@takes(BackwardArguments)
def _fake_backward(a: BackwardArguments) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    per_channel = a.weight.new_empty((a.x.shape[1],), dtype=a.mean.dtype)
    per_image = a.x.new_empty((a.x.shape[0], a.x.shape[1]), dtype=a.mean.dtype)
    return torch.empty_like(a.x), per_channel, torch.empty_like(per_channel), per_image, torch.empty_like(per_image)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, ctx.num_groups, weight, bias, _, scale, shift, ctx.activation = inputs
    _, mean, rstd = output
    ctx.save_for_backward(x, mean, rstd, weight, bias, scale, shift)


def _backward(ctx: Any, dy: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    x, mean, rstd, weight, bias, scale, shift = ctx.saved_tensors
    dx, dweight, dbias, dscale, dshift = _backward_op(
        dy, x, mean, rstd, ctx.num_groups, weight, bias, scale, shift, ctx.activation
    )
    dscale = None if scale is None else dscale.to(scale.dtype)
    dshift = None if shift is None else dshift.to(shift.dtype)
    return dx, None, dweight.to(weight.dtype), dbias.to(bias.dtype), None, dscale, dshift, None


def _examples(device: torch.device, dtype: torch.dtype) -> list[tuple[Any, ...]]:
    """Both memory formats, with and without conditioning, a mean far from zero, groups of 1 to 10 channels."""
    normal = drawing.normal(device, dtype)
    cases = []
    for channels, groups, conditioned in ((320, 32, True), (32, 32, False), (80, 16, True)):
        for memory_format in (torch.contiguous_format, torch.channels_last):
            x = (normal(2, channels, 9, 7) - 2.3).contiguous(memory_format=memory_format)
            scale, shift = (normal(2, channels), normal(2, channels)) if conditioned else (None, None)
            activation = "silu" if conditioned else None
            cases.append((x, groups, normal(channels), normal(channels), 1e-5, scale, shift, activation))
    return cases


def _given_examples(device: torch.device, dtype: torch.dtype) -> list[tuple[Any, ...]]:
    return [
        (x, norm_stats.reference(x, groups, eps), weight, bias, *options)
        for x, groups, weight, bias, eps, *options in _examples(device, dtype)
    ]


def _backward_examples(device: torch.device, dtype: torch.dtype) -> list[tuple[Any, ...]]:
    cases = []
    for x, groups, weight, bias, eps, *options in _examples(device, dtype):
        _, mean, rstd = _plain(x, groups, weight, bias, eps, *options)
        dy = torch.linspace(-1, 2, x.numel(), device=device).view_as(x).to(dtype)
        cases.append((dy, x, mean, rstd, groups, weight, bias, *options))
    return cases


def _indexed(*args: Any) -> tuple[Any, ...]:
    """Arguments for C++, where the activation, which is the last, is an index."""
    return *args[:-1], ACTIVATIONS.index(args[-1])


def _triton() -> Kernel:
    from resshift_fast.kernels import group_norm as kernels

    return Kernel(kernels.forward, kernels.unsupported)


def _triton_backward() -> Kernel:
    from resshift_fast.kernels import group_norm as kernels

    return Kernel(kernels.backward, kernels.unsupported_backward)


def _triton_given() -> Kernel:
    from resshift_fast.kernels import group_norm_given as kernels

    return Kernel(kernels.forward, kernels.unsupported)


_backward_op = register(
    "group_norm_backward",
    _plain_backward,
    fake=_fake_backward,
    examples=_backward_examples,
    loaders={
        "cpu": Native(_indexed),
        "cuda": Native(_indexed),
        "triton": _triton_backward,
    },
    training=True,
    public=False,
)
_op = register(
    "group_norm",
    _plain,
    fake=_fake,
    examples=_examples,
    loaders={
        "cpu": Native(_indexed),
        "cuda": Native(_indexed),
        "triton": _triton,
    },
    backward=_backward,
    setup_context=_setup_context,
)


_given_op = register(
    "group_norm_given",
    _plain_given,
    fake=_fake_given,
    examples=_given_examples,
    loaders={"triton": _triton_given},
    public=False,
    **recomputed(norm_stats.normalized),
)


@checks.once
@takes(Arguments)
def _check(a: Arguments) -> None:
    checks.image("group_norm", "x", a.x)
    channels = a.x.shape[1]
    if a.num_groups < 1 or channels % a.num_groups:
        raise ValueError(f"group_norm: {channels} channels do not divide into {a.num_groups} groups")
    for name, tensor in (("weight", a.weight), ("bias", a.bias)):
        checks.shape("group_norm", name, tensor, (channels,), "to match x's channels")
    for name, condition in (("scale", a.scale), ("shift", a.shift)):
        checks.shape("group_norm", name, condition, (a.x.shape[0], channels), "[B, C] to match x", optional=True)
    checks.parameters("group_norm", a.x, weight=a.weight, bias=a.bias, scale=a.scale, shift=a.shift)
    if a.activation not in ACTIVATIONS:
        raise ValueError(f"group_norm: activation is {a.activation!r}, expected None or 'silu'")


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
    statistics: Tensor | None = None,
) -> Tensor:
    """Group normalization, then norm · (1 + scale) + shift, then the activation.

    Args:
        x: [B, C, H, W], floating point, contiguous or channels-last; the result has the same format.
        num_groups: a divisor of C.
        weight, bias: [C], x's dtype or float32.
        eps: added to the variance.
        scale, shift: [B, C], x's dtype or float32, or None.
        activation: None or "silu".
        statistics: float32 [B, 2, num_groups] (float64 for float64), mean and 1 / √(variance + eps) of x,
            as the operator that made x returned them; None computes them.

    Returns:
        [B, C, H, W] in x's dtype. Differentiable in every tensor.

    Raises:
        ValueError: for a shape that does not fit, another device or an unknown activation.
        TypeError: for a dtype other than those named.

    Example:
        >>> group_norm(torch.randn(2, 8, 5, 7), 4, torch.ones(8), torch.zeros(8), activation="silu").shape
        torch.Size([2, 8, 5, 7])
    """
    arguments = (x, num_groups, weight, bias, eps, scale, shift, activation)
    _check(*arguments)
    y: Tensor
    if statistics is not None:
        norm_stats.check("group_norm", statistics, x, num_groups)
        given = (x, statistics, weight, bias, scale, shift, activation)
        y = (_given_op if backends.fused("group_norm_given", x.device) else norm_stats.normalized)(*given)
        return y
    if backends.fused("group_norm", x.device):
        y = _op(*arguments)[0]
        return y
    return reference(*arguments)
