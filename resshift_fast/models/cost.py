"""What a tile costs on a CPU, from the sizes of the networks: multiplications, weighted by how fast each kind is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from resshift_fast.models import calls

if TYPE_CHECKING:
    from resshift_fast.models.catalog import ModelSpec

# Time of a multiplication relative to one of a 1×1 convolution, fitted to benchmarks/tile_cost.py. A 3×3 convolution
# is a Winograd product with a quarter to two fifths of the multiplications, and one of an upsampled image has four
# results for each pixel, of 2×2 sums of the weights.
CONV3X3 = 0.4
UPSAMPLED = 4 / 9
ATTENTION = 0.85
# What one evaluation of a denoiser takes however small the tile is, in multiplications.
EVALUATION = 3.5e8


@dataclass(frozen=True)
class Cost:
    """Weighted multiplications of restoring a tile of n latent pixels: `fixed` + `linear` · n + `quadratic` · n².

    Args:
        fixed: whatever the size.
        linear: of the convolutions and of attention in windows, for a latent pixel.
        quadratic: of the autoencoder's attention, for every pair of latent pixels.
    """

    fixed: float
    linear: float
    quadratic: float

    def of_tile(self, pixels: float) -> float:
        """Of a tile of so many latent pixels."""
        return self.fixed + self.linear * pixels + self.quadratic * pixels**2


@cache
def of_model(spec: ModelSpec) -> Cost:
    """Of all steps and both ends of the autoencoder."""
    found = {False: 0.0, True: 0.0}
    for times, call in calls.of_restoration(spec):
        found[call.is_between_pixels] += times * multiplications(call)
    return Cost(EVALUATION * spec.schedule.num_steps, found[False], found[True])


def multiplications(call: calls.Call) -> float:
    """Weighted multiplications of a call for a latent pixel, or for a pair of them where it is between pixels."""
    area, weights = call.side**2, call.channels * call.out_channels
    if call.operator == "conv2d":
        return CONV3X3 * 9 * weights * area
    if call.operator == "dense_block":
        return CONV3X3 * 9 * sum(math.prod(each) for each in call.convolutions) * area
    if call.operator == "upsample_conv2d":
        return UPSAMPLED * 4 * 9 * weights * area
    if call.operator == "strided_conv2d":  # no Winograd product; one result for four pixels
        return call.taps * weights * area / 4
    if call.operator in ("pointwise_conv2d", "linear"):
        return weights * area
    if call.operator == "swin_mlp":
        return 2 * call.channels * call.hidden * area
    if call.operator == "window_attention":
        return ATTENTION * 2 * call.window**2 * call.channels * area
    if call.operator == "spatial_attention":  # q·k and the weighted sum of v
        return ATTENTION * 2 * call.channels
    return call.entries * call.channels  # of vector_quantize; others multiply next to nothing
