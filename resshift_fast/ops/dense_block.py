r"""The dense block of ESRGAN (arXiv 1809.00219, section 3.1): five 3×3 convolutions that read all results before them.

.. math:: x_i = f(w_i * [x_0, \dots, x_{i-1}] + b_i), \qquad y = x_0 + s\,(w_5 * [x_0, \dots, x_4] + b_5)

with f a leaky ReLU. On CPUs the transformed tiles of all images are kept, so that each is transformed once for the
convolutions that read it, and the images are never put together.
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
from resshift_fast.ops.concat import concat
from resshift_fast.ops.conv2d import conv2d
from resshift_fast.ops.conv2d_winograd import DIRECT, estimated, pack_conv2d
from resshift_fast.ops.registration import recomputed, register, takes

CONVS = 5
GROWTH = 16  # channels, of which the kernel's growth is a multiple


class Arguments(NamedTuple):
    """Arguments of the registered operator; `dense_block` describes them."""

    x: Tensor
    w1: Tensor
    w2: Tensor
    w3: Tensor
    w4: Tensor
    w5: Tensor
    b1: Tensor
    b2: Tensor
    b3: Tensor
    b4: Tensor
    b5: Tensor
    slope: float = 0.2
    scale: float = 0.2


def _layers(a: Arguments) -> list[tuple[Tensor, Tensor]]:
    """Weight and bias of each convolution."""
    return [(a.w1, a.b1), (a.w2, a.b2), (a.w3, a.b3), (a.w4, a.b4), (a.w5, a.b5)]


@checks.without_autocast
@takes(Arguments)
def reference(a: Arguments) -> Tensor:
    """The formula in plain PyTorch, in x's dtype."""
    *layers, last = [(weight.to(a.x.dtype), bias.to(a.x.dtype)) for weight, bias in _layers(a)]
    images = [a.x]
    for weight, bias in layers:
        images.append(F.leaky_relu(F.conv2d(torch.cat(images, 1), weight, bias, padding=1), a.slope))
    return a.x + a.scale * F.conv2d(torch.cat(images, 1), *last, padding=1)


@takes(Arguments)
def _plain(a: Arguments) -> Tensor:
    return reference(*a).contiguous(memory_format=torch.channels_last)


@takes(Arguments)
def _fake(a: Arguments) -> Tensor:
    return torch.empty(a.x.shape, dtype=a.x.dtype, device=a.x.device, memory_format=torch.channels_last)


def _matrix_operations(x: torch.Size, *weights: torch.Size, **__: Any) -> int:
    """Nine taps a value of each result."""
    pixels = math.prod(x) // x[1]
    return sum(2 * pixels * math.prod(weight) for weight in weights[:CONVS])


def _examples(device: torch.device, dtype: torch.dtype) -> list[tuple[Any, ...]]:
    """Several slices of channels and one; sizes that are no multiple of a tile."""
    found = []
    for channels, growth, height, width in ((64, 32, 13, 9), (32, 16, 33, 35)):
        normal = drawing.normal(device, dtype, seed=channels)
        outs = [growth] * (CONVS - 1) + [channels]
        ins = [channels + i * growth for i in range(CONVS)]
        weights = [normal(o, i, 3, 3) / (3 * i**0.5) for o, i in zip(outs, ins, strict=True)]
        x = drawing.channels_last(normal(2, channels, height, width))
        found.append(tuple(Arguments(x, *weights, *(normal(o) for o in outs))))
    return found


def _tile(x: Tensor, w1: Tensor) -> int:
    return estimated(x, w1, padding=1)


@takes(Arguments)
def _unsupported(a: Arguments) -> str | None:
    """Why the kernel can't run a call; None if it can."""
    channels, growth = a.x.shape[1], a.w1.shape[0]
    if any(isinstance(each, Tensor) and each.dtype is torch.float64 for each in a):
        return "an argument is float64"
    if growth % GROWTH or channels % growth:
        return f"the growth is {growth}, no multiple of {GROWTH} that divides {channels} channels"
    return "the image is too small for tiles" if _tile(a.x, a.w1) == DIRECT else None


def _cpu() -> Kernel:
    kernel = libraries.operator("cpu", "dense_block")

    @takes(Arguments)
    def run(a: Arguments) -> Tensor:
        weights, biases = zip(*_layers(a), strict=True)
        packed, floats = (pack_conv2d(weight) for weight in weights), (bias.float() for bias in biases)
        y: Tensor = kernel(a.x, *packed, *floats, a.slope, a.scale, _tile(a.x, a.w1))
        return y

    return Kernel(run, _unsupported)


_op = register(
    "dense_block",
    _plain,
    fake=_fake,
    examples=_examples,
    loaders={"cpu": _cpu},
    public=False,
    matrix_operations=_matrix_operations,
    **recomputed(reference),
)


def dense_block(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], *, slope: float = 0.2, scale: float = 0.2
) -> Tensor:
    """Five convolutions, each of the input and all results before it, added to the input.

    Args:
        x: [B, C, H, W], floating point.
        weights: five; the first four [G, C + i·G, 3, 3] with i = 0 … 3, the last one [C, C + 4·G, 3, 3].
        biases: five; the first four [G], the last one [C].
        slope: of the leaky ReLU, above 0, at most 1.
        scale: of what is added to x.
        Weights and biases are in x's dtype or float32.

    Returns:
        Like x, channels-last where a kernel makes it. Differentiable in every tensor. The kernel needs a growth G that
        is a multiple of 16 and divides C; others are separate convolutions, also where gradients are wanted.

    Raises:
        ValueError: for a shape, device, number of tensors or slope that does not fit.
        TypeError: for a dtype other than those named.

    Example:
        >>> weights = [torch.randn(16, 32 + 16 * i, 3, 3) / 30 for i in range(4)] + [torch.randn(32, 96, 3, 3) / 30]
        >>> biases = [torch.zeros(len(weight)) for weight in weights]
        >>> dense_block(torch.randn(2, 32, 5, 7), weights, biases).shape
        torch.Size([2, 32, 5, 7])
    """
    if len(weights) != CONVS or len(biases) != CONVS:
        raise ValueError(f"dense_block: got {len(weights)} weights and {len(biases)} biases, expected {CONVS} of each")
    x = checks.autocast(x)
    w1, w2, w3, w4, w5 = weights
    b1, b2, b3, b4, b5 = biases
    a = Arguments(x, w1, w2, w3, w4, w5, b1, b2, b3, b4, b5, slope, scale)
    _check(*a)
    if backends.fused("dense_block", x.device) and not torch.is_grad_enabled():
        y: Tensor = _op(*a)
        return y
    images = x
    for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
        images = concat(images, conv2d(images, weight, bias), slope)
    return torch.add(x, conv2d(images, weights[-1], biases[-1]), alpha=scale)


@checks.once
@takes(Arguments)
def _check(a: Arguments) -> None:
    checks.image("dense_block", "x", a.x)
    channels, growth = a.x.shape[1], a.w1.shape[0]
    for i, (weight, bias) in enumerate(_layers(a)):
        out = growth if i < CONVS - 1 else channels
        names = f"weights[{i}]", f"biases[{i}]"
        checks.shape("dense_block", names[0], weight, (out, channels + i * growth, 3, 3), "to match x and weights[0]")
        checks.shape("dense_block", names[1], bias, (out,), "to match its weight")
        checks.parameters("dense_block", a.x, **dict(zip(names, (weight, bias), strict=True)))
    if not 0 < a.slope <= 1:
        raise ValueError(f"dense_block: slope is {a.slope}, expected above 0, at most 1")
