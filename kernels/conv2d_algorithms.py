"""The algorithm of a 3×3 convolution and of what is around it, chosen for each shape.

===========  ===========================================================================================================
"split"      The kernel in conv2d.py, which normalizes as it reads, and divides the sum over channels among programs.
"sums"       The kernel in conv2d_sum.py, after a normalization of its own. All sums are in its epilogue.
"summed"     Of an upsampled image: the kernel in upsample_conv2d.py with 2×2 taps, which are summed before.
"taps"       Of an upsampled image: that kernel with 3×3 taps.
"pytorch"    PyTorch's convolution, which is cuDNN's on NVIDIA GPUs. Normalizations, sums and statistics are launches,
             and an upsampled image is written.
===========  ===========================================================================================================

While kernels are measured (`tuning.measuring`), so are the algorithms of each shape, with the fastest configurations
of their kernels. The fastest is stored like a configuration, under the same rules: an algorithm whose results differ
from the default's, or from run to run, is not used, and nothing is timed while a CUDA graph is captured. Without
measurements, `RULES` and `upsample_conv2d.taps` decide. In float32 it is always PyTorch's convolution, because the
kernels here are for matrix instructions, none of which has that precision; only upsampling has less to multiply here.

The choice is made within an operator, so that torch.compile never sees it, and a captured graph keeps the one it was
captured with. cuDNN chooses by shapes alone, as long as torch.backends.cudnn.benchmark is off, as it is by default.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from resshift_fast.kernels import conv2d, conv2d_sum, group_norm, pointwise_conv2d, upsample_conv2d
from resshift_fast.kernels.plans import planned
from resshift_fast.kernels.tuning import Algorithm, Space, bucket

SPLIT, SUMS, PYTORCH = (Algorithm(name) for name in ("split", "sums", "pytorch"))
SUMMED_TAPS, TAPS = (Algorithm(name) for name in ("summed", "taps"))


class Rule(NamedTuple):
    """The algorithms for images of up to `pixels` pixels in a batch: the default, then others worth timing."""

    pixels: float
    algorithms: tuple[Algorithm, ...]


# Of residual blocks. The projections are in conv2d.py and conv2d_sum.py.
RULES = (
    # At most ten tiles of 64 pixels and 64 channels: only a divided sum gives most multiprocessors something to do.
    Rule(128, (SPLIT, PYTORCH)),
    # A block takes two launches less, each of 2 to 3 µs, than with a normalization of its own, and normalizing for each
    # tap 2 µs. From 256 pixels on, undivided sums have tens of tiles, which may be as good.
    Rule(conv2d.MAX_PIXELS, (SPLIT, SUMS, PYTORCH)),
    # From 1,024 pixels on, normalizing for each tap takes 8 µs, a normalization of its own 2 to 3. Both depend on the
    # rate of exponentials, so that other GPUs may differ.
    Rule(4 * conv2d.MAX_PIXELS, (SUMS, SPLIT, PYTORCH)),
    # Normalizing for each tap takes 10 µs and more. There are enough tiles, which cuDNN multiplies as fast, but with it
    # sums and statistics are passes over the result, of 2 to 15 µs.
    Rule(float("inf"), (SUMS, PYTORCH)),
)


def _of_block(key: tuple) -> tuple[Algorithm, ...]:
    """The algorithms for a bucket of residual blocks, the default first."""
    pixels, channels, out_channels, *_ = key
    if conv2d.unsupported(torch.bfloat16, channels, out_channels) is not None:
        return SUMS, PYTORCH
    return next(rule.algorithms for rule in RULES if pixels <= rule.pixels)


# Bucket: pixels of the batch, channels, output channels, whether two images are concatenated, whether the skip
# connection is a convolution, and whether statistics of the result are wanted.
BLOCKS = Space("residual_block", _of_block, default=lambda arch, key: _of_block(key)[0], nested=True)

# One convolution and its sums: as in the last rule.
# Bucket: pixels of the batch, channels, output channels, whether there is a residual, channels of the skip connection,
# groups of the statistics.
SUMMED = Space("conv2d_sum", candidates=lambda key: (SUMS, PYTORCH), default=lambda arch, key: SUMS, nested=True)


@planned(BLOCKS, lambda pixels, *others: (bucket(pixels), *others))
def block_algorithm(
    algorithm: Algorithm,
    pixels: int,
    channels: int,
    out_channels: int,
    concatenated: bool,
    skip: bool,
    followed: bool,
) -> Algorithm:
    """The algorithm of a residual block in 16 bit; called with the device first, and a `trial` of an algorithm."""
    return algorithm


@planned(SUMMED, lambda pixels, *others: (bucket(pixels), *others))
def _sum_algorithm(
    algorithm: Algorithm,
    pixels: int,
    channels: int,
    out_channels: int,
    residual: bool,
    skip_channels: int,
    next_groups: int,
) -> Algorithm:
    return algorithm


def convolution(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """PyTorch's 3×3 convolution with padding 1, in x's dtype; channels-last if x is."""
    bias = None if bias is None else bias.to(x.dtype)
    # As PyTorch's layers call it: stride, padding, dilation, not transposed, its padding, groups.
    options = ([1, 1], [1, 1], [1, 1], False, [0, 0], 1)
    y: Tensor = torch.ops.aten.convolution.default(x, weight.to(x.dtype), bias, *options)
    return y


def sum_forward(*args: Any) -> tuple[Tensor, Tensor]:
    """`conv2d_sum` by the algorithm of its shape; arguments and results as in `conv2d_sum.forward`."""
    a = conv2d_sum.Arguments(*args)

    def run(algorithm: Algorithm) -> tuple[Tensor, ...]:
        y, statistics = conv2d_sum.forward(*a) if algorithm == SUMS else _in_passes(a)
        return (y, statistics) if a.next_groups else (y,)

    batch, channels, height, width = a.x.shape
    skip_channels = 0 if a.skip_weight is None else a.skip_weight.shape[1]
    sizes = batch * height * width, channels, a.weight.shape[0], a.residual is not None, skip_channels, a.next_groups
    y, *following = run(_sum_algorithm(a.x.device, *sizes, trial=run))
    return y, following[0] if following else a.x.new_empty((batch, 2, 0), dtype=torch.float32)


def _in_passes(a: conv2d_sum.Arguments) -> tuple[Tensor, Tensor]:
    """`conv2d_sum` by PyTorch's convolution and passes over its result."""
    y = convolution(a.x.contiguous(memory_format=torch.channels_last), a.weight, a.bias)
    if a.residual is not None:
        y = y + a.residual
    y = y.contiguous(memory_format=torch.channels_last)
    if a.skip is not None:
        assert a.skip_weight is not None
        both = a.skip if a.other is None else torch.cat([a.skip, a.other], dim=1)
        y = pointwise_conv2d.forward(both, a.skip_weight, a.skip_bias, y, 0, None, None, a.next_eps)
    if not a.next_groups:
        return y, a.x.new_empty((a.x.shape[0], 2, 0), dtype=torch.float32)
    return y, group_norm.statistics(y, a.next_groups, a.next_eps)


def _of_upsampling(key: tuple) -> tuple[Algorithm, ...]:
    """The algorithms for a bucket of upsampled images, the default first."""
    pixels, _, _, element_size, given, _ = key
    kernels = SUMMED_TAPS, TAPS
    if upsample_conv2d.taps(pixels, element_size, given) == 3:
        kernels = TAPS, SUMMED_TAPS
    # In float32 PyTorch's convolution has other values where cuDNN may round to TF32, as it may by default.
    return kernels if element_size == 4 else (*kernels, PYTORCH)


# With cuDNN the upsampled image is written and read, four times as large, and it has 9/4 of the operations: projected
# to be slower for every shape by the table in upsample_conv2d.py, so that only a measurement chooses it.
# Bucket: pixels of the batch before upsampling, channels, output channels, bytes of an element, whether the caller has
# the sums of the taps, groups of the statistics.
UPSAMPLED = Space("upsample_conv2d", _of_upsampling, default=lambda arch, key: _of_upsampling(key)[0], nested=True)


@planned(UPSAMPLED, lambda pixels, *others: (bucket(pixels), *others))
def _upsample_algorithm(
    algorithm: Algorithm,
    pixels: int,
    channels: int,
    out_channels: int,
    element_size: int,
    given: bool,
    next_groups: int,
) -> Algorithm:
    return algorithm


def upsample_forward(x: Tensor, weight: Tensor, bias: Tensor | None, summed: Tensor | None = None) -> Tensor:
    """`upsample_conv2d` by the algorithm of its shape; arguments and y as in `upsample_conv2d.forward`."""
    return _upsampled(x, weight, bias, summed, 0, 0.0)[0]


def upsample_forward_with_statistics(
    x: Tensor, weight: Tensor, bias: Tensor | None, summed: Tensor | None, next_groups: int, next_eps: float
) -> tuple[Tensor, Tensor]:
    """`upsample_forward`; returns y, and the statistics of its next_groups groups, float32 [B, 2, next_groups]."""
    y, statistics = _upsampled(x, weight, bias, summed, next_groups, next_eps)
    assert statistics is not None
    return y, statistics


def _upsampled(
    x: Tensor, weight: Tensor, bias: Tensor | None, summed: Tensor | None, next_groups: int, next_eps: float
) -> tuple[Tensor, Tensor | None]:
    (batch, channels, height, width), out_channels = x.shape, weight.shape[0]

    def run(algorithm: Algorithm) -> tuple[Tensor, Tensor | None]:
        if algorithm == PYTORCH:
            rows = x.permute(0, 2, 3, 1).unsqueeze(2).unsqueeze(4).expand(-1, -1, 2, -1, 2, -1)
            upsampled = rows.reshape(batch, 2 * height, 2 * width, channels).permute(0, 3, 1, 2)
            y = convolution(upsampled, weight, bias)
            y = y.contiguous(memory_format=torch.contiguous_format if x.is_contiguous() else torch.channels_last)
            return y, group_norm.statistics(y, next_groups, next_eps) if next_groups else None
        row_taps = 2 if algorithm == SUMMED_TAPS else 3
        return upsample_conv2d.forward(x, weight, bias, summed, next_groups, next_eps, row_taps)

    sizes = batch * height * width, channels, out_channels, x.element_size(), summed is not None, next_groups
    return run(_upsample_algorithm(x.device, *sizes, trial=run))
