r"""3×3 convolution with stride 1, with the group normalization before it and the sum after it.

.. math:: y = w * f\big(\mathrm{norm}(x)(1 + s) + h\big) + b + r

where norm, s, h and the activation f are those of `group_norm` or, with `num_groups` 0, nothing; the bias b and the
residual r may be missing. On CPUs it is Winograd's convolution (Lavin and Gray, arXiv 1509.09308), which normalizes
pixels as it reads them; conv2d_winograd.py chooses its tiles.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from resshift_fast import backends
from resshift_fast.backends import Kernel
from resshift_fast.backends import native as libraries
from resshift_fast.ops import checks, drawing
from resshift_fast.ops.conv2d_winograd import DIRECT, cpu_kernel, pack_conv2d
from resshift_fast.ops.group_norm import ACTIVATIONS, group_norm
from resshift_fast.ops.group_norm import reference as group_norm_reference
from resshift_fast.ops.registration import Native, recomputed, register, takes

MAX_PADDING = 1 << 20  # sizes of results then stay far below 2⁶³


class Arguments(NamedTuple):
    """Arguments of the registered operator; `conv2d` describes them."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    padding: int
    residual: Tensor | None = None
    num_groups: int = 0
    norm_weight: Tensor | None = None
    norm_bias: Tensor | None = None
    eps: float = 1e-5
    scale: Tensor | None = None
    shift: Tensor | None = None
    activation: str | None = None


@takes(Arguments)
def reference(a: Arguments) -> Tensor:
    """The formula in plain PyTorch, in x's dtype."""
    x = a.x
    if a.num_groups:
        assert a.norm_weight is not None and a.norm_bias is not None
        options = (a.eps, a.scale, a.shift, a.activation)
        x = group_norm_reference(x, a.num_groups, a.norm_weight, a.norm_bias, *options)
    y = F.conv2d(x, a.weight.to(x.dtype), None if a.bias is None else a.bias.to(x.dtype), padding=a.padding)
    return y if a.residual is None else a.residual + y


@takes(Arguments)
def _plain(a: Arguments) -> Tensor:
    return reference(*a).contiguous(memory_format=torch.channels_last)


@takes(Arguments)
def _fake(a: Arguments) -> Tensor:
    batch, _, height, width = a.x.shape
    size = (batch, a.weight.shape[0], height + 2 * a.padding - 2, width + 2 * a.padding - 2)
    return torch.empty(size, dtype=a.x.dtype, device=a.x.device, memory_format=torch.channels_last)


def _matrix_operations(
    x: torch.Size, weight: torch.Size, bias: torch.Size | None, padding: int, *_: Any, out_shape: torch.Size, **__: Any
) -> int:
    """Nine taps a value of the result."""
    return 2 * 9 * weight[1] * math.prod(out_shape)


def examples(device: torch.device, dtype: torch.dtype) -> list[tuple[Any, ...]]:
    """(x, weight, bias) in both memory formats, with and without bias."""
    normal = drawing.normal(device, dtype)
    x, weight, bias = normal(2, 32, 9, 7), normal(48, 32, 3, 3) / 16, normal(48)
    return [(drawing.channels_last(x), weight, bias), (x, weight, None)]


def _examples(device: torch.device, dtype: torch.dtype) -> list[tuple[Any, ...]]:
    """Those of `examples`, for small tiles, and one for large tiles with a normalization about a mean far from zero."""
    normal = drawing.normal(device, dtype, seed=1)
    cases: list[tuple[Any, ...]] = [Arguments(x, weight, bias, 1) for x, weight, bias in examples(device, dtype)]
    x = drawing.channels_last(normal(2, 64, 41, 35) - 2.3)
    norm = (32, normal(64), normal(64), 1e-5, normal(2, 64), normal(2, 64), "silu")
    return [*cases, (x, normal(40, 64, 3, 3) / 24, normal(40), 1, normal(2, 40, 41, 35), *norm)]


def _normalized(a: Arguments) -> Tensor:
    """What the convolution reads where it does not normalize: `group_norm` of x."""
    assert a.norm_weight is not None and a.norm_bias is not None
    norm = (a.x, a.num_groups, a.norm_weight, a.norm_bias, a.eps)
    return group_norm(*norm, scale=a.scale, shift=a.shift, activation=a.activation)


def _cpu() -> Kernel:
    winograd = libraries.operator("cpu", "conv2d")
    affine = libraries.operator("cpu", "group_norm_affine")

    def run(tile: int, *args: Any) -> Tensor:
        a = Arguments(*args)
        if tile == DIRECT:
            x = _normalized(a) if a.num_groups else a.x
            # PyTorch sums in another order where the weight has other strides; results must not depend on that.
            weight = a.weight.contiguous(memory_format=torch.channels_last)
            return _plain(x, weight, a.bias, a.padding, a.residual)
        norm = None
        if a.num_groups:
            norm = affine(a.x, a.num_groups, a.norm_weight, a.norm_bias, a.eps, a.scale, a.shift)
        bias = None if a.bias is None else a.bias.float()
        silu = a.activation == "silu"
        y: Tensor = winograd(a.x, pack_conv2d(a.weight), bias, a.padding, norm, silu, a.residual, False, tile)
        return y

    return cpu_kernel(run)


_recomputed = recomputed(reference)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    _recomputed["setup_context"](ctx, inputs, output)
    a = Arguments(*inputs)
    ctx.padding = a.padding
    ctx.alone = a.residual is None and a.num_groups == 0 and a.padding <= 2


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    """For a convolution alone x's gradient is itself a convolution: of dy, with the weight rotated by 180°."""
    if not ctx.alone:
        together: tuple[Tensor | None, ...] = _recomputed["backward"](ctx, dy)
        return together
    x, weight, *bias = ctx.saved_tensors
    found = gradients(dy, x, weight, bias[0] if bias else None, ctx.padding, ctx.needs_input_grad)
    return *found, *[None] * (len(Arguments._fields) - 3)


def gradients(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, padding: int, wanted: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of x, weight and bias of a convolution alone, with padding up to 2; None for those not wanted."""
    dx = None
    if wanted[0]:
        rotated = weight.flip(2, 3).transpose(0, 1)
        # The operator ignores autocast, which may be on where the gradient is asked for.
        dx = _op(*Arguments(dy, rotated, bias=None, padding=2 - padding))
        dx = checks.match_memory_format(dx, x)
    dweight = _weight_gradient(dy, x, weight, padding) if wanted[1] else None
    dbias = bias_gradient(dy, bias) if wanted[2] and bias is not None else None
    return dx, dweight, dbias


def bias_gradient(dy: Tensor, bias: Tensor) -> Tensor:
    """Gradient of a convolution's bias [O], from that of its result [B, O, H, W], in the bias's dtype."""
    return dy.sum((0, 2, 3), dtype=checks.accumulation_dtype(dy)).to(bias.dtype)


def _plain_weight_gradient(dy: Tensor, x: Tensor, padding: int) -> Tensor:
    """Gradient of the weight of a convolution alone, [3, 3, C, O] in the dtype of accumulation."""
    weight = dy.new_zeros(()).expand(dy.shape[1], x.shape[1], 3, 3)
    mask = [False, True, False]
    _, gradient, _ = torch.ops.aten.convolution_backward(
        dy, x, weight, None, [1, 1], [padding] * 2, [1, 1], False, [0, 0], 1, mask
    )
    taps_first: Tensor = gradient.permute(2, 3, 1, 0)
    return taps_first.to(checks.accumulation_dtype(x)).contiguous()


def _fake_weight_gradient(dy: Tensor, x: Tensor, padding: int) -> Tensor:
    return x.new_empty((3, 3, x.shape[1], dy.shape[1]), dtype=checks.accumulation_dtype(x))


def _weight_gradient_examples(device: torch.device, dtype: torch.dtype) -> list[tuple[Any, ...]]:
    cases = [(x, weight, 1) for x, weight, _ in examples(device, dtype)]
    return [(reference(x, weight, None, padding), x, padding) for x, weight, padding in cases]


_weight_gradient_op = register(
    "conv2d_weight_gradient",
    _plain_weight_gradient,
    fake=_fake_weight_gradient,
    examples=_weight_gradient_examples,
    loaders={"cpu": Native()},
    training=True,
    public=False,
    matrix_operations=lambda dy, x, *_, **__: 2 * 9 * math.prod(dy) * x[1],
)


def _weight_gradient(dy: Tensor, x: Tensor, weight: Tensor, padding: int) -> Tensor:
    """In the weight's strides, because an optimizer's step reads both together."""
    gradient: Tensor = _weight_gradient_op(dy, x, padding).permute(3, 2, 0, 1)
    if (gradient.stride(), gradient.dtype) == (weight.stride(), weight.dtype):
        return gradient
    return torch.empty_like(weight).copy_(gradient)


_op = register(
    "conv2d",
    _plain,
    fake=_fake,
    examples=_examples,
    loaders={"cpu": _cpu},
    matrix_operations=_matrix_operations,
    backward=_backward,
    setup_context=_setup_context,
)


def checked(op: str, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Check x, weight [O, C, 3, 3] with O ≥ 1 and bias [O] or None; return x in autocast's dtype."""
    checks.floating(op, "x", x)
    x = checks.autocast(x)
    _check(op, x, weight, bias)
    return x


@checks.once
def _check(op: str, x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    checks.image(op, "x", x)
    checks.tensor(op, "weight", weight)
    channels = x.shape[1]
    if weight.dim() != 4 or weight.shape[1:] != (channels, 3, 3) or weight.shape[0] < 1:
        shape = tuple(weight.shape)
        raise ValueError(f"{op}: weight has shape {shape}, expected (O, {channels}, 3, 3) with O ≥ 1 to match x")
    checks.shape(op, "bias", bias, (weight.shape[0],), "to match weight's output channels", optional=True)
    checks.parameters(op, x, weight=weight, bias=bias)


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    padding: int = 1,
    residual: Tensor | None = None,
    num_groups: int = 0,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    eps: float = 1e-5,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    activation: str | None = None,
) -> Tensor:
    """3×3 convolution, stride 1, of x or of group_norm(x), plus a residual.

    Args:
        x: [B, C, H, W], floating point, contiguous or channels-last.
        weight: [O, C, 3, 3], x's dtype or float32; `pack_conv2d` gives it the strides that the CPU kernel reads.
        bias: [O], x's dtype or float32, or None.
        padding: zeros added on every side, after the normalization, 0 to 2²⁰; with 0 the image must be at least 3×3.
        residual: like the result, added to it, or None.
        num_groups: a divisor of C to normalize x first, or 0.
        norm_weight, norm_bias, eps, scale, shift, activation: as in `group_norm`; None without `num_groups`.

    Returns:
        [B, O, H + 2·padding − 2, W + 2·padding − 2] in x's dtype, channels-last where a backend has a kernel.
        Differentiable in every tensor. Under autocast x is cast to autocast's dtype, as by PyTorch's convolution.

    Raises:
        ValueError: for a shape, device, padding or number of groups that does not fit, or an unknown activation.
        TypeError: for a dtype other than those named.

    Example:
        >>> conv2d(torch.randn(2, 8, 5, 7), torch.randn(6, 8, 3, 3), torch.zeros(6)).shape
        torch.Size([2, 6, 5, 7])
    """
    x = checked("conv2d", x, weight, bias)
    a = Arguments(x, weight, bias, padding, residual, num_groups, norm_weight, norm_bias, eps, scale, shift, activation)
    _check_options(*a)
    if residual is not None and residual.dtype != x.dtype:
        a = a._replace(residual=residual.to(x.dtype))
    if not backends.fused("conv2d", x.device):
        return reference(*a)
    if (num_groups or residual is not None) and not conv2d_takes_norm(x.device.type):
        # Separately: each has a gradient of its own, while the gradient of all in one would compute them again.
        y: Tensor = _op(*Arguments(_normalized(a) if num_groups else x, weight, bias, padding))
        return y if a.residual is None else a.residual + y
    y = _op(*a)
    return y


def conv2d_takes_norm(device_type: str) -> bool:
    """Whether `conv2d` normalizes its input and adds the residual in the pass of the convolution.

    That needs a backend with a kernel, and that no gradient is wanted. Elsewhere these are separate operations, which a
    caller may fuse with others instead.
    """
    return conv2d_reads_packed(device_type) and not torch.is_grad_enabled()


def conv2d_reads_packed(device_type: str) -> bool:
    """Whether a backend has a kernel for a type of device; it reads weights with the strides of `pack_conv2d`."""
    return backends.has_kernel("conv2d", device_type)


@checks.once
@takes(Arguments)
def _check_options(a: Arguments) -> None:
    """Check all arguments but x, weight and bias, which `checked` takes."""
    if not 0 <= a.padding <= MAX_PADDING:
        raise ValueError(f"conv2d: padding is {a.padding}, expected 0 to {MAX_PADDING}")
    batch, _, height, width = a.x.shape
    if min(height, width) + 2 * a.padding < 3:
        image = f"{height}×{width}"
        raise ValueError(f"conv2d: image {image} with padding={a.padding} is smaller than the 3×3 kernel; pad it more")
    if a.residual is not None:
        size = (batch, a.weight.shape[0], height + 2 * a.padding - 2, width + 2 * a.padding - 2)
        checks.shape("conv2d", "residual", a.residual, size, "to match the result")
        checks.parameters("conv2d", a.x, residual=a.residual)
    _check_norm(a)


def _check_norm(a: Arguments) -> None:
    """Check that num_groups divides the channels and has both parameters, or is 0 and nothing else is given."""
    batch, channels = a.x.shape[:2]
    tensors = {"norm_weight": a.norm_weight, "norm_bias": a.norm_bias, "scale": a.scale, "shift": a.shift}
    if a.num_groups < 0 or (a.num_groups and channels % a.num_groups):
        raise ValueError(f"conv2d: {channels} channels do not divide into {a.num_groups} groups")
    if a.activation not in ACTIVATIONS:
        raise ValueError(f"conv2d: activation is {a.activation!r}, expected None or 'silu'")
    for name, tensor in tensors.items():
        if not a.num_groups and tensor is not None:
            raise ValueError(f"conv2d: {name} is given, but num_groups is 0; pass the number of groups")
        if a.num_groups:
            per_image = name in ("scale", "shift")
            size = (batch, channels) if per_image else (channels,)
            checks.shape("conv2d", name, tensor, size, "to match x", optional=per_image)
    if not a.num_groups and a.activation is not None:
        raise ValueError("conv2d: activation is given, but num_groups is 0; pass the number of groups")
    checks.parameters("conv2d", a.x, **tensors)
