"""First stages: the VQGAN autoencoders of the official models and a lossless space-to-depth stage.

Every first stage has `encode(image) -> latent` and `decode(latent) -> image`, images in [−1, 1], and the
attributes `factor` (pixels a latent pixel) and `latent_channels`. The VQGAN follows arXiv 2012.09841; its
state-dict keys are those of the official checkpoints.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from resshift_fast import ops
from resshift_fast.models.derived import Derived, Preparable
from resshift_fast.models.layers import Conv1x1, Conv3x3, GroupNorm, Image, UpsampleConv, merged
from resshift_fast.models.sizes import AutoencoderConfig as AutoencoderConfig
from resshift_fast.models.sizes import SpaceToDepthConfig as SpaceToDepthConfig

EPS = 1e-6


class _ResnetBlock(nn.Module):
    """GroupNorm, SiLU and convolution twice, plus the block's input.

    That sum may be returned as a `PendingMerge` or with statistics: a norm with the same groups and epsilon follows.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.norm1 = GroupNorm(in_channels, EPS)
        self.conv1 = Conv3x3(in_channels, out_channels)
        self.norm2 = GroupNorm(out_channels, EPS)
        self.conv2 = Conv3x3(out_channels, out_channels)
        if in_channels != out_channels:
            self.nin_shortcut = Conv1x1(in_channels, out_channels)

    def forward(self, x: Image) -> Image:
        x, h = self.conv1.after(self.norm1, x, following=self.norm2)
        if not hasattr(self, "nin_shortcut"):
            return self.conv2.after(self.norm2, h, residual=x, following=self.norm1)[1]
        if ops.conv2d_sums(x):
            _, h = self.norm2.merge(h, activation="silu")
            return self.conv2.summed(h, skip=(self.nin_shortcut, x), following=self.norm1)
        _, h = self.conv2.after(self.norm2, h)
        return self.nin_shortcut.measured(x, residual=merged(h), following=self.norm1)


class _AttentionBlock(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.norm = GroupNorm(channels, EPS)
        self.q = Conv1x1(channels, channels)
        self.k = Conv1x1(channels, channels)
        self.v = Conv1x1(channels, channels)
        self.proj_out = Conv1x1(channels, channels)

    def forward(self, x: Image) -> Image:
        x, h = self.norm.merge(x)
        attended = ops.spatial_attention(self.q(h), self.k(h), self.v(h))
        return self.proj_out.measured(attended, residual=x, following=self.norm)


# Whose activations a training may compute again.
BLOCKS = (_ResnetBlock, _AttentionBlock)


class _Middle(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.block_1 = _ResnetBlock(channels, channels)
        self.attn_1 = _AttentionBlock(channels)
        self.block_2 = _ResnetBlock(channels, channels)

    def forward(self, x: Image) -> Image:
        return self.block_2(self.attn_1(self.block_1(x)))


class _Downsample(Preparable):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)
        self.padded = Derived()

    def prepare(self, changed: bool = False) -> None:
        """Pad the weight."""
        self.padded.refresh([self.conv.weight], self._padded_weight, changed)

    def _padded_weight(self) -> Tensor:
        return F.pad(self.conv.weight, (1, 0, 1, 0))

    def forward(self, x: Tensor) -> Tensor:
        """The convolution of x padded on the right and at the bottom only.

        `F.conv2d` can only pad all sides. With a row of zeros above the weight and a column at its left, that gives the
        same result, without a padded copy of x.
        """
        weight = self.padded.current(lambda: [self.conv.weight])
        weight = self._padded_weight() if weight is None else weight
        return F.conv2d(x, weight, self.conv.bias, stride=2, padding=1)


class _Level(nn.Module):
    """Residual blocks of one resolution, then the change to the next; `_run` runs them."""

    def __init__(
        self, blocks: list[_ResnetBlock], downsample: nn.Module | None = None, upsample: nn.Module | None = None
    ):
        super().__init__()
        self.block = nn.ModuleList(blocks)
        if downsample is not None:
            self.downsample = downsample
        if upsample is not None:
            self.upsample = upsample

    @property
    def resample(self) -> nn.Module | None:
        """The change to the next resolution."""
        return getattr(self, "downsample", None) or getattr(self, "upsample", None)


def _run(levels: Iterable[nn.Module], x: Image) -> Image:
    """Run all levels in one loop: a level's own forward would keep its input, the largest tensor, until it returns."""
    for level in levels:
        assert isinstance(level, _Level)
        for block in level.block:
            x = block(x)
        if isinstance(level.resample, UpsampleConv):
            # Every norm has these groups and this epsilon.
            x = level.resample.measured(merged(x), following=level.block[0].norm1)  # type: ignore[arg-type]
        elif level.resample is not None:
            x = level.resample(merged(x))
    return x


def _resnet_blocks(in_channels: int, out_channels: int, count: int) -> list[_ResnetBlock]:
    return [_ResnetBlock(in_channels if i == 0 else out_channels, out_channels) for i in range(count)]


class Encoder(nn.Module):
    """Image to latent before quantization."""

    def __init__(self, config: AutoencoderConfig):
        super().__init__()
        widths = [config.channels * mult for mult in config.channel_mult]
        self.conv_in = Conv3x3(3, config.channels)
        self.down = nn.ModuleList()
        channels = config.channels
        for level, width in enumerate(widths):
            last = level == len(widths) - 1
            blocks = _resnet_blocks(channels, width, config.num_res_blocks[level])
            self.down.append(_Level(blocks, downsample=None if last else _Downsample(width)))
            channels = width
        self.mid = _Middle(channels)
        self.norm_out = GroupNorm(channels, EPS)
        self.conv_out = Conv3x3(channels, config.latent_channels)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] in [−1, 1] to [B, latent_channels, H/factor, W/factor]."""
        y = _run(self.down, self.conv_in.measured(x, following=self.norm_out))
        return merged(self.conv_out.after(self.norm_out, self.mid(y))[1])


class Decoder(nn.Module):
    """Latent to image."""

    def __init__(self, config: AutoencoderConfig):
        super().__init__()
        widths = [config.channels * mult for mult in config.channel_mult]
        channels = widths[-1]
        self.conv_in = Conv3x3(config.latent_channels, channels)
        self.mid = _Middle(channels)
        levels = []
        for level in reversed(range(len(widths))):
            blocks = _resnet_blocks(channels, widths[level], config.num_res_blocks[level] + 1)
            channels = widths[level]
            levels.append(_Level(blocks, upsample=UpsampleConv(channels) if level else None))
        self.up = nn.ModuleList(reversed(levels))
        self.norm_out = GroupNorm(channels, EPS)
        self.conv_out = Conv3x3(channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        """[B, latent_channels, h, w] to [B, 3, h·factor, w·factor], not clamped."""
        y = _run(reversed(self.up), self.mid(self.conv_in.measured(x, following=self.norm_out)))
        return merged(self.conv_out.after(self.norm_out, y)[1])


class Reconstruction(NamedTuple):
    """A reconstructed image with its latent.

    Attributes:
        image: [B, 3, H, W], not clamped. Its gradient reaches the encoder as if nothing were quantized, and not the
            codebook.
        latent: before quantization, [B, latent_channels, h, w].
        entries: the nearest codebook entry of every pixel, like `latent`, in the codebook's dtype and with a gradient
            to the codebook.
        indices: of the entries, int64 [B, h, w].
    """

    image: Tensor
    latent: Tensor
    entries: Tensor
    indices: Tensor


class _Codebook(nn.Module):
    def __init__(self, config: AutoencoderConfig):
        super().__init__()
        self.embedding = nn.Embedding(config.codebook_size, config.latent_channels)


class VQAutoencoder(nn.Module):
    """VQGAN whose latent is quantized at decoding.

    Args:
        config: sizes; see `AutoencoderConfig`.
    """

    def __init__(self, config: AutoencoderConfig):
        super().__init__()
        self.config = config
        self.factor, self.latent_channels = config.factor, config.latent_channels
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quantize = _Codebook(config)
        self.quant_conv = nn.Conv2d(config.latent_channels, config.latent_channels, 1)
        self.post_quant_conv = nn.Conv2d(config.latent_channels, config.latent_channels, 1)

    def encode(self, image: Tensor) -> Tensor:
        """[B, 3, H, W] in [−1, 1] to the unquantized latent [B, latent_channels, H/factor, W/factor]."""
        return self.quant_conv(self.encoder(image))

    def decode(self, latent: Tensor, quantize: bool = True) -> Tensor:
        """Latent [B, latent_channels, h, w] to the image [B, 3, h·factor, w·factor]; not clamped.

        Args:
            latent: any floating dtype.
            quantize: first replace every vector by its nearest codebook entry.
        """
        if quantize:
            latent, _ = ops.vector_quantize(latent, self.quantize.embedding.weight)
        return self.decoder(self.post_quant_conv(latent))

    def forward(self, image: Tensor) -> Reconstruction:
        """Reconstruct an image [B, 3, H, W] in [−1, 1], with what its training needs."""
        codebook = self.quantize.embedding.weight
        latent = self.encode(image)
        quantized, indices = ops.vector_quantize(latent, codebook.detach())
        entries = F.embedding(indices, codebook).permute(0, 3, 1, 2)
        return Reconstruction(self.decoder(self.post_quant_conv(quantized)), latent, entries, indices)


class SpaceToDepth(nn.Module):
    """Lossless first stage: every block of factor × factor pixels becomes the channels of one latent pixel.

    Args:
        config: sizes; see `SpaceToDepthConfig`.
    """

    def __init__(self, config: SpaceToDepthConfig):
        super().__init__()
        self.config = config
        self.factor, self.latent_channels = config.factor, config.latent_channels

    def encode(self, image: Tensor) -> Tensor:
        """[B, 3, H, W] to [B, 3·factor², H/factor, W/factor]."""
        return F.pixel_unshuffle(image, self.factor)

    def decode(self, latent: Tensor) -> Tensor:
        """Inverse of `encode`, exactly."""
        return F.pixel_shuffle(latent, self.factor)
