"""How the CPU kernel of the 3×3 convolutions takes a call: where its weight lies in memory, and which tiles it uses."""

import torch
from torch import Tensor

DIRECT = 0  # PyTorch's own convolution instead of tiles

# Work for one pair of an input and an output channel, in units of one multiplication and addition of a vector: for
# each tile, and once a call for the transform of the weight. Measured with AVX-512 on planes from 8² to 256².
_WORK = {4: (2.25, 8.0), 6: (4.0, 18.0), 8: (6.25, 36.0)}
# Tiles of 8 err by 1e-5 where those of 6 err by 2e-6: nothing beside the rounding to 16 bits, but much in float32.
_EXACT_ENOUGH = {torch.float32: (4, 6)}
_DIRECT_WORK = 9 / 16  # for each pixel of the result


def pack_conv2d(weight: Tensor) -> Tensor:
    """The same weight, laid out in memory as the CPU kernel reads it: rows, columns, input, output channels.

    It is the weight itself in another order of its dimensions, so that it can take the place of a module's parameter:
    whatever changes that, an optimizer or a moving average, changes what the kernel reads.

    Args:
        weight: [O, C, 3, 3].

    Returns:
        [O, C, 3, 3] with the same values; `weight` itself if it lies like that already.

    Example:
        >>> pack_conv2d(torch.randn(6, 8, 3, 3)).stride()
        (1, 6, 144, 48)
    """
    out_channels, channels = weight.shape[:2]
    if weight.stride() == (1, out_channels, 3 * channels * out_channels, channels * out_channels):
        return weight
    taps_first = torch.empty((3, 3, channels, out_channels), dtype=weight.dtype, device=weight.device)
    return taps_first.permute(3, 2, 0, 1).copy_(weight)


def algorithm(x: Tensor, weight: Tensor, padding: int, upsample: bool = False) -> int:
    """The side of the tiles for a call, 4, 6 or 8, or `DIRECT`."""
    batch, _, height, width = x.shape
    if upsample:
        height, width = 2 * height, 2 * width
    height, width = height + 2 * padding - 2, width + 2 * padding - 2
    if weight.shape[1] < 8 and x.dtype != torch.float32 and not upsample:
        return DIRECT  # with so few channels the result's transform is all the work, and the memory's width no limit
    work = {DIRECT: _DIRECT_WORK * batch * height * width}
    for tile in _EXACT_ENOUGH.get(x.dtype, tuple(_WORK)):
        of_tile, of_weight = _WORK[tile]
        work[tile] = of_tile * batch * -(-height // tile) * -(-width // tile) + of_weight
    return min(work, key=work.__getitem__)
