"""The operators that a network calls on a CPU, from its sizes: what they multiply, and on which images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from resshift_fast.models.sizes import (
    FEATURE_CHANNELS,
    AutoencoderConfig,
    DenoiserConfig,
    InpaintUNetConfig,
    RRDBConfig,
    SwinUNetConfig,
)

if TYPE_CHECKING:
    from resshift_fast.models.catalog import ModelSpec


@dataclass(frozen=True)
class Call:
    """One call of an operator.

    Args:
        operator: of `resshift_fast.ops`, or "strided_conv2d", "linear", "silu", "leaky_relu", "avg_pool2d",
            "interpolate" and "add" of PyTorch.
        channels, out_channels: of its image and of its result.
        side: pixels along a side of its image for one latent pixel.
        normalized: whether it normalizes its image. residual: whether it adds another one.
        hidden: channels between the two convolutions of `swin_mlp`, or the growth of `dense_block`.
        window, heads: of `window_attention`.
        entries: of the codebook of `vector_quantize`.
        taps: of a convolution by PyTorch.
    """

    operator: str
    channels: int
    out_channels: int
    side: float = 1.0
    normalized: bool = False
    residual: bool = False
    hidden: int = 0
    window: int = 0
    heads: int = 0
    entries: int = 0
    taps: int = 1

    @property
    def convolutions(self) -> list[tuple[int, int]]:
        """(channels, out_channels) of those of `dense_block`."""
        outs = [self.hidden] * 4 + [self.out_channels]
        return [(self.channels + i * self.hidden, out) for i, out in enumerate(outs)]

    @property
    def is_between_pixels(self) -> bool:
        """Whether its work grows with the square of the number of pixels."""
        return self.operator == "spatial_attention"


def of_restoration(spec: ModelSpec) -> Iterator[tuple[int, Call]]:
    """(how often, call) of all steps and both ends of the autoencoder, but for enlarging the image."""
    steps = spec.schedule.num_steps
    if isinstance(spec.first_stage, AutoencoderConfig):
        for call in (*encoder(spec.first_stage), *decoder(spec.first_stage)):
            if spec.quantize or call.operator != "vector_quantize":
                yield 1, call
    for call in condition(spec.denoiser):
        yield 1, call
    latent = spec.denoiser.out_channels
    yield 1, Call("prior_sample", latent, latent + spec.denoiser.lq_channels)
    if spec.denoiser.noise_channels:
        yield 1, Call("posterior_step", spec.denoiser.noise_channels, spec.denoiser.noise_channels)
    for call in denoiser(spec.denoiser):
        yield steps, call
    yield steps, Call("posterior_step", latent, latent + spec.denoiser.lq_channels)


def _residual(in_channels: int, out_channels: int, side: float) -> Iterator[Call]:
    same = in_channels == out_channels
    yield Call("conv2d", in_channels, out_channels, side, normalized=True)
    yield Call("conv2d", out_channels, out_channels, side, normalized=True, residual=same)
    if not same:
        yield Call("pointwise_conv2d", in_channels, out_channels, side, residual=True)


def _swin(channels: int, side: float, config: SwinUNetConfig) -> Iterator[Call]:
    width = config.swin_embed_dim
    window = min(config.window_size, int(config.image_size * side))
    yield Call("pointwise_conv2d", channels, width, side)
    for _ in range(config.swin_depth):
        yield Call("pointwise_conv2d", width, 3 * width, side, normalized=True)
        heads = width // config.num_head_channels
        yield Call("window_attention", width, width, side, window=window, heads=heads)
        yield Call("pointwise_conv2d", width, width, side, residual=True)
        yield Call("swin_mlp", width, width, side, normalized=True, hidden=int(width * config.mlp_ratio))
    yield Call("pointwise_conv2d", width, channels, side)


def condition(config: DenoiserConfig) -> Iterator[Call]:
    """Of the low-quality image's features."""
    if not isinstance(config, SwinUNetConfig):
        return
    size, channels, width = config.lq_size, 4 if config.cond_mask else 3, FEATURE_CHANNELS
    while config.cond_lq and size > config.image_size:
        side = size / config.image_size
        yield Call("conv2d", channels, width, side)
        yield Call("silu", width, width, side)
        yield Call("strided_conv2d", width, 2 * width, side, taps=9)
        size, channels, width = size // 2, 2 * width, 2 * width


def denoiser(config: DenoiserConfig) -> Iterator[Call]:
    """Of one evaluation."""
    if isinstance(config, RRDBConfig):
        yield from _rrdb(config)
    elif isinstance(config, InpaintUNetConfig):
        yield from _inpaint_unet(config)
    else:
        yield from _swin_unet(config)


def _rrdb(config: RRDBConfig) -> Iterator[Call]:
    channels, growth = config.channels, config.growth
    yield Call("conv2d", config.in_channels + config.lq_channels, channels)
    for _ in range(3 * config.blocks):
        yield Call("dense_block", channels, channels, hidden=growth)
    yield Call("conv2d", channels, channels)
    for side in (1.0, 2.0):
        yield Call("upsample_conv2d", channels, channels, side)
        yield Call("leaky_relu", channels, channels, 2 * side)
    yield Call("conv2d", channels, channels, 4.0)
    yield Call("leaky_relu", channels, channels, 4.0)
    yield Call("conv2d", channels, 3, 4.0)


def _inpaint_unet(config: InpaintUNetConfig) -> Iterator[Call]:
    def blocks(level: int) -> Iterator[Call]:
        width, side = config.widths[level], 0.5**level
        for _ in range(config.blocks):
            yield Call("conv2d", width, width, side)
            yield Call("leaky_relu", width, width, side)
            yield Call("conv2d", width, width, side, residual=True)

    levels = list(enumerate(pairwise(config.widths)))
    yield Call("conv2d", config.lq_channels, config.widths[0])
    for level, (upper, lower) in levels:
        yield from blocks(level)
        yield Call("avg_pool2d", upper, upper, 0.5**level)
        yield Call("conv2d", upper, lower, 0.5 ** (level + 1))
    yield from blocks(len(levels))
    for level, (upper, lower) in reversed(levels):
        yield Call("conv2d", lower, upper, 0.5 ** (level + 1))
        yield Call("interpolate", upper, upper, 0.5 ** (level + 1))
        yield Call("add", upper, upper, 0.5**level)
        yield from blocks(level)
    yield Call("conv2d", config.widths[0], config.out_channels)


def _swin_unet(config: SwinUNetConfig) -> Iterator[Call]:
    base = config.model_channels
    widths = [int(mult * base) for mult in config.channel_mult]
    levels = range(len(widths))
    sides = [2.0**-level for level in levels]
    # Whether the first block of a level is followed by a Swin layer.
    attends = [config.image_size // 2**level in config.attention_resolutions for level in levels]
    channels, skips = base, [base]
    yield Call("conv2d", config.in_channels + config.lq_channels, base)
    for level, width in enumerate(widths):
        for block in range(config.num_res_blocks[level]):
            yield from _residual(channels, width, sides[level])
            channels = width
            skips.append(channels)
            if attends[level] and block == 0:
                yield from _swin(channels, sides[level], config)
        if level < levels[-1]:
            yield Call("strided_conv2d", channels, channels, sides[level], taps=9)
            skips.append(channels)
    yield from _residual(channels, channels, sides[-1])
    yield from _swin(channels, sides[-1], config)
    yield from _residual(channels, channels, sides[-1])
    for level in reversed(levels):
        for block in range(config.num_res_blocks[level] + 1):
            skip = skips.pop()
            yield Call("concat", channels, channels + skip, sides[level])
            yield from _residual(channels + skip, widths[level], sides[level])
            channels = widths[level]
            if attends[level] and block == 0:
                yield from _swin(channels, sides[level], config)
        if level:
            yield Call("upsample_conv2d", channels, channels, sides[level])
    yield Call("conv2d", channels, config.out_channels, normalized=True)


def _middle(channels: int) -> Iterator[Call]:
    yield from _residual(channels, channels, 1.0)
    yield Call("group_norm", channels, channels)
    for _ in range(3):
        yield Call("pointwise_conv2d", channels, channels)
    yield Call("spatial_attention", channels, channels)
    yield Call("pointwise_conv2d", channels, channels, residual=True)
    yield from _residual(channels, channels, 1.0)


def encoder(config: AutoencoderConfig) -> Iterator[Call]:
    """Image to latent."""
    side, channels = float(config.factor), config.channels
    yield Call("conv2d", 3, channels, side)
    for level, mult in enumerate(config.channel_mult):
        width = config.channels * mult
        for _ in range(config.num_res_blocks[level]):
            yield from _residual(channels, width, side)
            channels = width
        if level < len(config.channel_mult) - 1:
            yield Call("strided_conv2d", width, width, side, taps=16)  # the 3×3 weights are padded to 4×4
            side /= 2
    yield from _middle(channels)
    yield Call("conv2d", channels, config.latent_channels, normalized=True)
    yield Call("linear", config.latent_channels, config.latent_channels)


def decoder(config: AutoencoderConfig) -> Iterator[Call]:
    """Latent to image."""
    latent, side = config.latent_channels, 1.0
    channels = config.channels * config.channel_mult[-1]
    yield Call("vector_quantize", latent, latent, entries=config.codebook_size)
    yield Call("linear", latent, latent)
    yield Call("conv2d", latent, channels)
    yield from _middle(channels)
    for level in reversed(range(len(config.channel_mult))):
        width = config.channels * config.channel_mult[level]
        for _ in range(config.num_res_blocks[level] + 1):
            yield from _residual(channels, width, side)
            channels = width
        if level:
            yield Call("upsample_conv2d", channels, channels, side)
            side *= 2
    yield Call("conv2d", channels, 3, side, normalized=True)
