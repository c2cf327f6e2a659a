r"""A denoiser of one step: the network of ESRGAN and Real-ESRGAN (arXiv 1809.00219, section 3.1; arXiv 2107.10833).

A dense block has five 3×3 convolutions, each of which reads the block's input and all results before it:

.. math:: x_i = f(w_i * [x_0, \dots, x_{i-1}] + b_i), \qquad D(x_0) = x_0 + \tfrac15\, (w_5 * [x_0, \dots, x_4] + b_5)

with f a leaky ReLU. Three dense blocks with a residual connection of their own, again with a fifth of the sum, are a
residual-in-residual dense block. The picture is enlarged by two steps of nearest-neighbour interpolation.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resshift_fast import ops
from resshift_fast.models.layers import SLOPE, Conv3x3, UpsampleConv, leaky_relu
from resshift_fast.models.sizes import RRDBConfig

RESIDUAL = 0.2  # factor of a block's result
SCALE = 4


class DenseBlock(nn.Module):
    """Five convolutions, each of the input and all earlier results, [B, channels, H, W] to the same."""

    def __init__(self, channels: int, growth: int):
        super().__init__()
        widths = [growth] * 4 + [channels]
        self.convs = nn.ModuleList(Conv3x3(channels + i * growth, width) for i, width in enumerate(widths))

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, H, W] to the same."""
        weights, biases = ([getattr(conv, name) for conv in self.convs] for name in ("weight", "bias"))
        return ops.dense_block(x, weights, biases, slope=SLOPE, scale=RESIDUAL)


class RRDBNet(nn.Module):
    """Enlarges ×4; the convolutions are in the order in which they run.

    Args:
        channels: of the features.
        growth: of the inner convolutions of a dense block.
        blocks: residual-in-residual dense blocks.
        inputs: channels of the input.
    """

    def __init__(self, channels: int = 64, growth: int = 32, blocks: int = 23, inputs: int = 3):
        super().__init__()
        self.first = Conv3x3(inputs, channels)
        self.body = nn.ModuleList(
            nn.Sequential(*(DenseBlock(channels, growth) for _ in range(3))) for _ in range(blocks)
        )
        self.after_body = Conv3x3(channels, channels)
        self.enlarging = nn.ModuleList(UpsampleConv(channels) for _ in range(2))
        self.high = Conv3x3(channels, channels)
        self.last = Conv3x3(channels, 3)

    def forward(self, low: Tensor) -> Tensor:
        """[B, inputs, h, w] to [B, 3, 4h, 4w], nominally in [0, 1]."""
        first = self.first(low.contiguous(memory_format=torch.channels_last))
        x = first
        for block in self.body:
            x = torch.add(x, block(x), alpha=RESIDUAL)
        x = first + self.after_body(x)
        for layer in self.enlarging:
            x = leaky_relu(layer(x))
        found: Tensor = self.last(leaky_relu(self.high(x)))
        return found


class RRDBDenoiser(nn.Module):
    """`RRDBNet` as a denoiser, which predicts x_0 from x_T and the low-quality image, called as a `SwinUNet` is.

    The latent is that of a `SpaceToDepth` stage of factor 4.

    Args:
        config: sizes; see `RRDBConfig`.
    """

    noise_channels = 0

    def __init__(self, config: RRDBConfig):
        super().__init__()
        self.config = config
        inputs = config.in_channels + config.lq_channels
        self.network = RRDBNet(config.channels, config.growth, config.blocks, inputs)

    def condition(self, lq: Tensor | None, mask: Tensor | None = None, noise: Tensor | None = None) -> Tensor:
        """The low-quality image as the network takes it.

        Args:
            lq: [B, 3, h, w] in [−1, 1].
            mask, noise: None.

        Returns:
            [B, 3, h, w] in [0, 1].

        Raises:
            ValueError: if lq is missing, or mask or noise is given.
        """
        if lq is None or mask is not None or noise is not None:
            raise ValueError("RRDBDenoiser: expected the low-quality image, and neither a mask nor noise")
        return lq / 2 + 0.5

    def modulation(self, timesteps: Tensor) -> tuple[Tensor, ...]:
        """Nothing: there is one step."""
        return ()

    def denoise(self, x: Tensor, modulation: Sequence[Tensor] = ()) -> Tensor:
        """Run the network.

        Args:
            x: [B, 48 + 3, h, w], the scaled x_T followed by `condition`'s image; any sides.
            modulation: not used.

        Returns:
            The prediction of x_0, [B, 48, h, w], nominally in [−1, 1].
        """
        return F.pixel_unshuffle(self.network(x) * 2 - 1, SCALE)

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        lq: Tensor | None = None,
        mask: Tensor | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        """Predict from a scaled x_T.

        Args:
            x: [B, 48, h, w], x_T / √(κ² η_T + 1).
            timesteps: not used.
            lq, mask, noise: as in `condition`.

        Returns:
            The prediction of x_0, [B, 48, h, w].
        """
        return self.denoise(torch.cat([x, self.condition(lq, mask, noise).to(x.dtype)], dim=1))
