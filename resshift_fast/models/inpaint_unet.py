r"""A denoiser of one step that fills holes in: a U-Net (arXiv 1505.04597) of 3×3 convolutions on local contrast.

It is given a picture y whose hole is filled in smoothly, and predicts y − x_0. With the mean μ and the standard
deviation σ of a pixel's surroundings,

.. math:: y - x_0 = \tfrac{3}{10}\,\sigma\,f\!\left(\frac{y - \mu}{\sigma},\ \mu,\ \log\sigma,\ \mathrm{mask}\right)

so that the same edge is the same to the network in a dark and in a bright picture, and nothing is added to a smooth
surface. σ is that of known pixels only, continued into the hole by `filling.fill`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resshift_fast import ops
from resshift_fast.models.filling import fill
from resshift_fast.models.layers import Conv3x3, leaky_relu, zero_
from resshift_fast.models.sizes import InpaintUNetConfig
from resshift_fast.ops.registration import NAMESPACE

FACTOR = 2  # side of a latent pixel's block in pixels
OUTPUT = 0.3  # of the network's output, in standard deviations
BLOCK = (
    8  # side in pixels of the squares whose mean and deviation are computed; a pixel's surroundings are three by three
)
LEVELS = 9  # halvings of these squares by which deviations are continued into holes: enough for 4096 pixels
NOISE = 0.01  # the smallest standard deviation; of 8 bits it is a little over one level


class Residual(nn.Module):
    """x plus two convolutions of it, [B, channels, H, W] to the same."""

    def __init__(self, channels: int):
        super().__init__()
        self.convs = nn.ModuleList(Conv3x3(channels, channels) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, H, W] to the same."""
        first, second = (cast("Conv3x3", conv) for conv in self.convs)
        return ops.conv2d(leaky_relu(first(x)), second.weight, second.bias, residual=x)


@torch.library.custom_op(f"{NAMESPACE}::surroundings", mutates_args=())
def surroundings(image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each pixel's surroundings.

    It is one node to torch.compile, which takes minutes for its halvings of any size.

    Args:
        image: float32 [B, 3, H, W], whose hole is filled in smoothly; the sides are multiples of 8.
        mask: [B, 1, H, W], 1 where pixels are unknown and −1 where they are known.

    Returns:
        (mean [B, 3, H, W], of all pixels; deviation [B, 1, H, W], of known ones, over the three colours), contiguous.
    """

    def pooled(x: Tensor) -> Tensor:
        return F.avg_pool2d(F.avg_pool2d(x, BLOCK), 3, 1, 1, count_include_pad=False)

    def enlarged(x: Tensor) -> Tensor:
        return F.interpolate(x, size=image.shape[2:], mode="bilinear", align_corners=False)

    mean = enlarged(pooled(image))
    known = (mask < 0).to(image.dtype)
    share = pooled(known)
    squares = (image - mean).square().mean(1, keepdim=True)
    variance = fill(pooled(squares * known) / share.clamp_min(1e-6), share == 0, levels=LEVELS, relaxations=0)
    return mean.contiguous(), (enlarged(variance) + NOISE**2).sqrt().contiguous()


@surroundings.register_fake
def _(image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    return image.new_empty(image.shape), image.new_empty(mask.shape)


class InpaintUNet(nn.Module):
    """The network as a denoiser, called as a `SwinUNet` is.

    The latent is that of a `SpaceToDepth` stage of factor 2. Since y − x_0 is predicted, and x_T is y but for a little
    noise, the network is not given x_T.

    Args:
        config: sizes; see `InpaintUNetConfig`.
    """

    noise_channels = 0

    def __init__(self, config: InpaintUNetConfig):
        super().__init__()
        self.config = config
        widths = config.widths
        levels = list(pairwise(widths))

        def blocks(width: int) -> nn.Sequential:
            return nn.Sequential(*(Residual(width) for _ in range(config.blocks)))

        self.first = Conv3x3(config.lq_channels, widths[0])
        self.down = nn.ModuleList(blocks(width) for width in widths)
        self.narrowing = nn.ModuleList(Conv3x3(upper, lower) for upper, lower in levels)
        self.enlarging = nn.ModuleList(Conv3x3(lower, upper) for upper, lower in levels)
        self.up = nn.ModuleList(blocks(width) for width in widths[:-1])
        self.last = zero_(Conv3x3(widths[0], config.out_channels))

    def condition(self, lq: Tensor | None, mask: Tensor | None = None, noise: Tensor | None = None) -> Tensor:
        """What the network takes of the picture.

        Args:
            lq: [B, 3, H, W] in [−1, 1], whose hole is filled in smoothly; the sides are multiples of 32.
            mask: [B, 1, H, W], 1 where pixels are unknown and −1 where they are known.
            noise: None.

        Returns:
            float32 [B, 20, H/2, W/2].

        Raises:
            ValueError: if lq or mask is missing, or noise is given.
        """
        if lq is None or mask is None or noise is not None:
            raise ValueError("InpaintUNet: expected the filled-in image and its mask, and no noise")
        image, mask = lq.float(), mask.float()
        mean, deviation = surroundings(image, mask)
        parts = [F.pixel_unshuffle(each, FACTOR) for each in ((image - mean) / deviation, mask)]
        parts += [F.avg_pool2d(each, FACTOR) for each in (mean, deviation.log())]
        return torch.cat(parts, dim=1)

    def modulation(self, timesteps: Tensor) -> tuple[Tensor, ...]:
        """Nothing: there is one step."""
        return ()

    def denoise(self, x: Tensor, modulation: Sequence[Tensor] = ()) -> Tensor:
        """Run the network.

        Args:
            x: [B, 12 + 20, h, w], the scaled x_T, which is not used, followed by `condition`'s; the sides are multiples
                of 16.
            modulation: not used.

        Returns:
            The prediction of y − x_0, [B, 12, h, w].
        """
        given = x[:, self.config.in_channels :].contiguous(memory_format=torch.channels_last)
        found = self.first(given)
        skips = []
        for blocks, narrowing in zip(self.down, self.narrowing, strict=False):
            found = blocks(found)
            skips.append(found)
            found = narrowing(F.avg_pool2d(found, 2))
        found = self.down[-1](found)
        for blocks, enlarging in zip(reversed(self.up), reversed(self.enlarging), strict=True):
            skip = skips.pop()
            larger = F.interpolate(enlarging(found), size=skip.shape[2:], mode="bilinear", align_corners=False)
            found = blocks(skip + larger)
        return self.last(found) * (OUTPUT * given[:, -1:].exp())

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        lq: Tensor | None = None,
        mask: Tensor | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        """Predict y − x_0.

        Args:
            x: [B, 12, h, w], x_T / √(κ² η_T + 1).
            timesteps: not used.
            lq, mask, noise: as in `condition`.

        Returns:
            The prediction, [B, 12, h, w].
        """
        return self.denoise(torch.cat([x, self.condition(lq, mask, noise).to(x.dtype)], dim=1))
