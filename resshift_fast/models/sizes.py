"""Sizes of the networks, as data: the catalogue lists models without loading torch."""

from dataclasses import dataclass
from typing import ClassVar

FEATURE_CHANNELS = 16  # width of the first stage of the low-quality image's feature extractor; each stage doubles it


@dataclass(frozen=True, kw_only=True)
class SwinUNetConfig:
    """Sizes of a `SwinUNet`.

    Args:
        image_size: side of the latent that shifts and buffers are configured for, in pixels.
        in_channels, out_channels: latent channels in and out.
        model_channels: width of the first level, a multiple of 32.
        num_res_blocks: residual blocks a level.
        attention_resolutions: sides of the levels, in pixels at `image_size`, that hold a Swin layer.
        channel_mult: width of each level in units of `model_channels`; the width is a multiple of 32.
        num_head_channels: width of an attention head.
        swin_depth: Swin blocks in a layer; every other one is shifted.
        swin_embed_dim: width of a Swin layer, a multiple of `num_head_channels` and of 32.
        window_size: side of an attention window in pixels, at most the configured side.
        mlp_ratio: hidden width of the Swin feed-forward part in units of `swin_embed_dim`.
        lq_size: side in pixels of the low-quality image for a latent of `image_size`; `image_size` times a power of 2.
        cond_lq, cond_mask: whether the denoiser is given the low-quality image, and a mask with it.
        noise_channels: channels of noise that it is given beside x_T, for a model of one step.
    """

    image_size: int = 64
    in_channels: int = 3
    out_channels: int = 3
    model_channels: int = 160
    num_res_blocks: tuple[int, ...] = (2, 2, 2, 2)
    attention_resolutions: tuple[int, ...] = (64, 32, 16, 8)
    channel_mult: tuple[float, ...] = (1, 2, 2, 4)
    num_head_channels: int = 32
    swin_depth: int = 2
    swin_embed_dim: int = 192
    window_size: int = 8
    mlp_ratio: float = 4.0
    lq_size: int = 64
    cond_lq: bool = True
    cond_mask: bool = False
    noise_channels: int = 0

    @property
    def lq_channels(self) -> int:
        """Channels that `SwinUNet.condition` returns."""
        if not self.cond_lq:
            return self.noise_channels
        if self.lq_size == self.image_size:
            return (4 if self.cond_mask else 3) + self.noise_channels
        return FEATURE_CHANNELS * self.lq_size // self.image_size + self.noise_channels

    @property
    def downsampling(self) -> int:
        """Factor between the latent's side and the lowest level's."""
        return 2 ** (len(self.channel_mult) - 1)


@dataclass(frozen=True, kw_only=True)
class RRDBConfig:
    """Sizes of an `RRDBDenoiser`.

    Args:
        in_channels, out_channels: latent channels in and out, those of a `SpaceToDepth` stage of factor 4.
        channels: of the features.
        growth: of the inner convolutions of a dense block.
        blocks: residual-in-residual dense blocks.
    """

    in_channels: int = 48
    out_channels: int = 48
    channels: int = 64
    growth: int = 32
    blocks: int = 8

    cond_lq: ClassVar[bool] = True
    cond_mask: ClassVar[bool] = False
    noise_channels: ClassVar[int] = 0
    lq_channels: ClassVar[int] = 3
    downsampling: ClassVar[int] = 1


@dataclass(frozen=True, kw_only=True)
class InpaintUNetConfig:
    """Sizes of an `InpaintUNet`.

    Args:
        in_channels, out_channels: latent channels in and out, those of a `SpaceToDepth` stage of factor 2.
        widths: channels of each level; a level has half the resolution of the one before.
        blocks: residual blocks of a level on the way down, and on the way up.
    """

    in_channels: int = 12
    out_channels: int = 12
    widths: tuple[int, ...] = (32, 64, 96, 128, 160)
    blocks: int = 2

    cond_lq: ClassVar[bool] = True
    cond_mask: ClassVar[bool] = True
    noise_channels: ClassVar[int] = 0
    lq_channels: ClassVar[int] = 20

    @property
    def downsampling(self) -> int:
        """Factor between the latent's side and the lowest level's."""
        return 2 ** (len(self.widths) - 1)


DenoiserConfig = SwinUNetConfig | RRDBConfig | InpaintUNetConfig


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """Sizes of a `VQAutoencoder`.

    Args:
        channels: width of the first level.
        channel_mult: width of each level in units of `channels`; every level but the last halves the image.
        num_res_blocks: residual blocks of each encoder level; decoder levels hold one more.
        latent_channels: channels of the latent and of a codebook entry.
        codebook_size: number of codebook entries.
    """

    channels: int = 128
    channel_mult: tuple[int, ...] = (1, 2, 4)
    num_res_blocks: tuple[int, ...] = (2, 2, 2)
    latent_channels: int = 3
    codebook_size: int = 8192

    @property
    def factor(self) -> int:
        """Image pixels along a side for one latent pixel."""
        return 2 ** (len(self.channel_mult) - 1)


@dataclass(frozen=True, kw_only=True)
class SpaceToDepthConfig:
    """Sizes of a `SpaceToDepth` stage: `factor` image pixels along a side for one latent pixel."""

    factor: int = 4

    @property
    def latent_channels(self) -> int:
        """Channels of the latent: three colours for every pixel of a block."""
        return 3 * self.factor**2
