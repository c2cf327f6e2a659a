"""What a tile costs on a CPU, from the sizes of the networks: multiplications, weighted by how fast each kind is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from resshift_fast.models.sizes import FEATURE_CHANNELS, AutoencoderConfig, SwinUNetConfig

if TYPE_CHECKING:
    from resshift_fast.models.catalog import ModelSpec

# Time of a multiplication relative to one of a 1×1 convolution, fitted to benchmarks/tile_cost.py. A 3×3 convolution
# is a Winograd product with a quarter to two fifths of the multiplications.
CONV3X3 = 0.4
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
    linear = sum(_condition(spec.denoiser)) + spec.schedule.num_steps * sum(_denoiser(spec.denoiser))
    quadratic = 0.0
    if isinstance(spec.first_stage, AutoencoderConfig):
        sizes = spec.first_stage
        linear += sum(_autoencoder(sizes))
        # q·k and the weighted sum of v, in the encoder and in the decoder.
        quadratic = ATTENTION * 2 * 2 * sizes.channels * sizes.channel_mult[-1]
    return Cost(EVALUATION * spec.schedule.num_steps, linear, quadratic)


def _conv3x3(in_channels: int, out_channels: int) -> float:
    return CONV3X3 * 9 * in_channels * out_channels


def _halving(in_channels: int, out_channels: int) -> float:
    """Of a convolution with stride 2, which is no Winograd product, for a pixel of its result."""
    return 9 * in_channels * out_channels


def _doubling(channels: int) -> float:
    """Of an upsampling convolution, for a pixel of its input: four results of 2×2 sums of the weights each."""
    return 16 * channels**2


def _residual(in_channels: int, out_channels: int) -> float:
    shortcut = in_channels * out_channels if in_channels != out_channels else 0
    return _conv3x3(in_channels, out_channels) + _conv3x3(out_channels, out_channels) + shortcut


def _swin(channels: int, config: SwinUNetConfig) -> float:
    width = config.swin_embed_dim
    tokens = config.window_size**2
    block = 4 * width**2 + 2 * width * int(width * config.mlp_ratio) + ATTENTION * 2 * tokens * width
    return 2 * channels * width + config.swin_depth * block


def _condition(config: SwinUNetConfig) -> Iterator[float]:
    """Of the low-quality image's features, for a latent pixel."""
    side, channels, width = config.lq_size, 4 if config.cond_mask else 3, FEATURE_CHANNELS
    while config.cond_lq and side > config.image_size:
        area = (side / config.image_size) ** 2
        yield area * _conv3x3(channels, width) + area / 4 * _halving(width, 2 * width)
        side, channels, width = side // 2, 2 * width, 2 * width


def _denoiser(config: SwinUNetConfig) -> Iterator[float]:
    """Of the parts of one evaluation, for a latent pixel."""
    base = config.model_channels
    widths = [int(mult * base) for mult in config.channel_mult]
    levels = range(len(widths))
    # Pixels of each level for a latent pixel, and whether its first block is followed by a Swin layer.
    area = [4.0**-level for level in levels]
    attends = [config.image_size // 2**level in config.attention_resolutions for level in levels]
    channels, skips = base, [base]
    yield _conv3x3(config.in_channels + config.lq_channels, base)
    for level, width in enumerate(widths):
        for _ in range(config.num_res_blocks[level]):
            yield area[level] * _residual(channels, width)
            channels = width
            skips.append(channels)
        yield area[level] * attends[level] * _swin(channels, config)
        if level < levels[-1]:
            yield area[level + 1] * _halving(channels, channels)
            skips.append(channels)
    yield area[-1] * (2 * _residual(channels, channels) + _swin(channels, config))
    for level in reversed(levels):
        for _ in range(config.num_res_blocks[level] + 1):
            yield area[level] * _residual(channels + skips.pop(), widths[level])
            channels = widths[level]
        yield area[level] * attends[level] * _swin(channels, config)
        if level:
            yield area[level] * _doubling(channels)
    yield _conv3x3(channels, config.out_channels)


def _autoencoder(config: AutoencoderConfig) -> Iterator[float]:
    """Of the parts of both ends but for the products of attention, for a latent pixel."""
    widths = [config.channels * mult for mult in config.channel_mult]
    levels, lowest = range(len(widths)), widths[-1]
    area = [float(config.factor**2) / 4**level for level in levels]
    channels = config.channels
    yield area[0] * (_conv3x3(3, channels) + _conv3x3(widths[0], 3))
    for level, width in enumerate(widths):
        for _ in range(config.num_res_blocks[level]):
            yield area[level] * _residual(channels, width)
            channels = width
        if level < levels[-1]:
            yield area[level + 1] * 16 * width**2  # the 3×3 weights are padded to 4×4
    yield 2 * (2 * _residual(lowest, lowest) + 4 * lowest**2) + 2 * _conv3x3(lowest, config.latent_channels)
    yield (config.codebook_size + 2 * config.latent_channels) * config.latent_channels
    for level in reversed(levels):
        for _ in range(config.num_res_blocks[level] + 1):
            yield area[level] * _residual(channels, widths[level])
            channels = widths[level]
        if level:
            yield area[level] * _doubling(channels)
