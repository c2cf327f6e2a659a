r"""The patch discriminator (PatchGAN, arXiv 1611.07004, section 3.2 and appendix 6.1.2) and its losses.

D gives one value for each patch of an image, 70×70 pixels with three layers. For real images x and reconstructions x̂:

.. math::
    L_\mathrm{hinge} = \tfrac12 \mathrm{mean}\,(1 - D(x))_+ + \tfrac12 \mathrm{mean}\,(1 + D(\hat x))_+ \qquad
    L_\mathrm{vanilla} = \tfrac12 \mathrm{mean}\,\log(1 + e^{-D(x)}) + \tfrac12 \mathrm{mean}\,\log(1 + e^{D(\hat x)})

The generator minimizes −mean D(x̂) with both. `FeatureHead` is another discriminator, of a network's features.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resshift_fast.models.layers import NUM_GROUPS, GroupNorm

LOSSES = ("hinge", "vanilla")
NORMS = ("group", "batch")
WIDEST = 8  # a layer, in units of the first one's channels
SLOPE = 0.2  # of LeakyReLU


class PatchDiscriminator(nn.Module):
    """4×4 convolutions, the first `layers` of which halve the image; all but the first and the last are normalized.

    Args:
        channels: of the first convolution, a multiple of 16 for group norm; each further one doubles them, up to ×8.
        layers: convolutions with stride 2; two with stride 1 follow.
        norm: "group", with 32 groups, or "batch", whose statistics are those of the images that are computed together.

    Raises:
        ValueError: for a value that is not possible.
    """

    def __init__(self, channels: int = 64, layers: int = 3, norm: str = "group"):
        super().__init__()
        if norm not in NORMS:
            raise ValueError(f"unknown norm {norm!r} of the discriminator; expected one of {', '.join(NORMS)}")
        multiple = NUM_GROUPS // 2 if norm == "group" else 1
        if channels < 1 or channels % multiple:
            raise ValueError(f"channels of the discriminator must be a multiple of {multiple}, got {channels}")
        if layers < 1:
            raise ValueError(f"the discriminator needs at least 1 layer, got {layers}")
        self.layers = layers
        widths = [channels * min(2**number, WIDEST) for number in range(layers + 1)]
        found: list[nn.Module] = [nn.Conv2d(3, channels, 4, stride=2, padding=1), nn.LeakyReLU(SLOPE)]
        for number in range(1, layers + 1):
            stride, width = 2 if number < layers else 1, widths[number]
            # The norm's shift replaces the bias.
            found.append(nn.Conv2d(widths[number - 1], width, 4, stride=stride, padding=1, bias=False))
            found += [GroupNorm(width) if norm == "group" else _BatchNorm(width), nn.LeakyReLU(SLOPE)]
        self.body = nn.Sequential(*found, nn.Conv2d(widths[-1], 1, 4, padding=1))
        self._initialize()

    def _initialize(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)
            elif isinstance(module, GroupNorm | nn.BatchNorm2d):
                nn.init.normal_(module.weight, 1.0, 0.02)

    @property
    def least_side(self) -> int:
        """Smallest side of an image in pixels."""
        return 3 * 2**self.layers

    def check_patch(self, side: int | None) -> None:
        """Raise ValueError for patches whose sides, in pixels, are too short; None stands for the model's default."""
        if side is not None and side < self.least_side:
            raise ValueError(
                f"a discriminator of {self.layers} layers needs patches of at least {self.least_side} pixels, "
                f"got {side}; use fewer layers or a larger patch"
            )

    def forward(self, image: Tensor) -> Tensor:
        """[B, 3, H, W] in [−1, 1] to values [B, 1, H/2^layers − 2, W/2^layers − 2], large for real patches."""
        found: Tensor = self.body(image)
        return found


class FeatureHead(nn.Module):
    """A small discriminator of features: two convolutions, normalized, and one value at each place.

    Args:
        channels: of the features, a multiple of 32.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv2d(channels, channels, 3, stride=2, padding=1), GroupNorm(channels), nn.SiLU()),
            *(nn.Conv2d(channels, channels, 3, padding=1), GroupNorm(channels), nn.SiLU()),
            nn.Conv2d(channels, 1, 1),
        )

    def forward(self, features: Tensor) -> Tensor:
        """[B, channels, h, w] to values [B, 1, ⌈h/2⌉, ⌈w/2⌉], the logits that the image is real."""
        found: Tensor = self.body(features)
        return found


class _BatchNorm(nn.BatchNorm2d):
    """Without running statistics, since a discriminator is never evaluated."""

    def __init__(self, channels: int):
        super().__init__(channels, track_running_stats=False)


def discriminator_loss(real: Tensor, fake: Tensor, kind: str) -> Tensor:
    """Loss of the discriminator for each sample, float32 [B].

    Args:
        real, fake: its values [B, 1, h, w] for images and for their reconstructions.
        kind: "hinge" or "vanilla".
    """
    if kind == "hinge":
        parts = F.relu(1 - real.float()), F.relu(1 + fake.float())
    else:
        parts = F.softplus(-real.float()), F.softplus(fake.float())
    return 0.5 * torch.stack([part.flatten(1).mean(1) for part in parts]).sum(0)


def generator_loss(fake: Tensor) -> Tensor:
    """Loss of the generator for each sample, float32 [B], from the discriminator's values [B, 1, h, w]."""
    return -fake.float().flatten(1).mean(1)


def logistic_generator_loss(fake: Tensor) -> Tensor:
    """−log of the probability that the discriminator gives, from its logits [B, 1, h, w]; float32 [B]."""
    return F.softplus(-fake.float()).flatten(1).mean(1)
