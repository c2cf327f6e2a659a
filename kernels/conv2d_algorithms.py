"""The algorithm of a 3×3 convolution and of what is around it, chosen for each shape.

===========  ===========================================================================================================
"split"      The kernel in conv2d.py, which normalizes as it reads, and divides the sum over channels among programs.
"sums"       The kernel in conv2d_sum.py, after a normalization of its own. All sums are in its epilogue.
"pytorch"    PyTorch's convolution, which is cuDNN's on NVIDIA GPUs. Normalizations, sums and statistics are launches.
===========  ===========================================================================================================

While kernels are measured (`tuning.measuring`), so are the algorithms of each shape, with the fastest configurations
of their kernels. The fastest is stored like a configuration, under the same rules: an algorithm whose results differ
from the default's, or from run to run, is not used, and nothing is timed while a CUDA graph is captured. Without
measurements, `RULES` decide. In float32 it is always PyTorch's convolution, because the kernels here are for matrix
instructions, none of which has that precision.

The choice is made within an operator, so that torch.compile never sees it, and a captured graph keeps the one it was
captured with. cuDNN chooses by shapes alone, as long as torch.backends.cudnn.benchmark is off, as it is by default.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from resshift_fast.kernels import conv2d, conv2d_sum, group_norm, pointwise_conv2d
from resshift_fast.kernels.plans import planned
from resshift_fast.kernels.tuning import Algorithm, Space, bucket

SPLIT, SUMS, PYTORCH = (Algorithm(name) for name in ("split", "sums", "pytorch"))


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


def sum_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None = None,
    skip: Tensor | None = None,
    other: Tensor | None = None,
    skip_weight: Tensor | None = None,
    skip_bias: Tensor | None = None,
    next_groups: int = 0,
    next_eps: float = 1e-5,
) -> tuple[Tensor, Tensor]:
    """`conv2d_sum` by the algorithm of its shape; arguments and results as in `conv2d_sum.forward`."""
    arguments = (x, weight, bias, residual, skip, other, skip_weight, skip_bias, next_groups, next_eps)

    def run(algorithm: Algorithm) -> tuple[Tensor, ...]:
        y, statistics = (conv2d_sum.forward if algorithm == SUMS else _in_passes)(*arguments)
        return (y, statistics) if next_groups else (y,)

    batch, channels, height, width = x.shape
    skip_channels = 0 if skip_weight is None else skip_weight.shape[1]
    sizes = batch * height * width, channels, weight.shape[0], residual is not None, skip_channels, next_groups
    y, *following = run(_sum_algorithm(x.device, *sizes, trial=run))
    return y, following[0] if following else x.new_empty((batch, 2, 0), dtype=torch.float32)


def _in_passes(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    skip: Tensor | None,
    other: Tensor | None,
    skip_weight: Tensor | None,
    skip_bias: Tensor | None,
    next_groups: int,
    next_eps: float,
) -> tuple[Tensor, Tensor]:
    """`conv2d_sum` by PyTorch's convolution and passes over its result."""
    y = convolution(x.contiguous(memory_format=torch.channels_last), weight, bias)
    if residual is not None:
        y = y + residual
    y = y.contiguous(memory_format=torch.channels_last)
    if skip is not None:
        assert skip_weight is not None
        both = skip if other is None else torch.cat([skip, other], dim=1)
        y = pointwise_conv2d.forward(both, skip_weight, skip_bias, y, 0, None, None, next_eps)
    if not next_groups:
        return y, x.new_empty((x.shape[0], 2, 0), dtype=torch.float32)
    return y, group_norm.statistics(y, next_groups, next_eps)
