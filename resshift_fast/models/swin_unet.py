"""The denoiser: a U-Net whose attention layers are Swin blocks (arXiv 2403.07319, section 3.4).

State-dict keys and shapes are those of the official checkpoints. What depends only on the timestep (`modulation`) or
only on the low-quality image (`condition`) can be computed once per chain, so that a step only needs `denoise`;
`forward` does all three.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resshift_fast import ops
from resshift_fast.models.layers import (
    NUM_GROUPS,
    Conv1x1,
    Conv3x3,
    GroupNorm,
    Image,
    Measured,
    PendingMerge,
    UpsampleConv,
    following_options,
    merged,
    pointwise,
    timestep_embedding,
    zero_,
)
from resshift_fast.models.sizes import FEATURE_CHANNELS
from resshift_fast.models.sizes import SwinUNetConfig as SwinUNetConfig
from resshift_fast.ops.window_attention import relative_position_index, shift_mask

Modulation = tuple[Tensor, ...]


class ResBlock(nn.Module):
    """GroupNorm, SiLU and convolution twice, the second norm with scale and shift, plus a skip connection."""

    def __init__(self, in_channels: int, out_channels: int, emb_channels: int):
        super().__init__()
        self.in_layers = nn.Sequential(GroupNorm(in_channels), nn.SiLU(), Conv3x3(in_channels, out_channels))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb_channels, 2 * out_channels))
        self.out_layers = nn.Sequential(
            GroupNorm(out_channels), nn.SiLU(), nn.Identity(), zero_(Conv3x3(out_channels, out_channels))
        )
        same = in_channels == out_channels
        self.skip_connection = nn.Identity() if same else Conv1x1(in_channels, out_channels)

    def forward(self, x: Image, modulation: Tensor, following: GroupNorm | None = None) -> Tensor | Measured:
        """[B, in_channels, h, w] to [B, out_channels, h, w].

        Args:
            x: also with its statistics, or a pending concatenation.
            modulation: [B, 2·out_channels], scale then shift.
            following: the norm of the result, which then may have statistics for it.
        """
        scale, shift = modulation.chunk(2, dim=1)
        if ops.residual_block_is_fused(modulation.device.type):
            return self._fused(x, scale, shift, following)
        x, h = self.in_layers[2].after(self.in_layers[0], x)  # type: ignore[operator]
        norm, conv = self.out_layers[0], self.out_layers[3]
        if isinstance(self.skip_connection, Conv1x1):
            _, h = conv.after(norm, h, scale=scale, shift=shift)  # type: ignore[operator]
            return self.skip_connection(x, residual=h)
        _, h = conv.after(norm, h, scale=scale, shift=shift, residual=x)  # type: ignore[operator]
        return merged(h)

    def _fused(self, x: Image, scale: Tensor, shift: Tensor, following: GroupNorm | None) -> Tensor | Measured:
        """`forward` by one operator."""
        other = statistics = None
        if isinstance(x, PendingMerge):
            x, other = x.take()
        elif isinstance(x, Measured):
            x, statistics = x
        layers: Any = (*self.in_layers, *self.out_layers)
        norm1, _, conv1, norm2, _, _, conv2 = layers
        skip = self.skip_connection if isinstance(self.skip_connection, Conv1x1) else None
        options = following_options(following, x) if ops.conv2d_sums(x) else {}
        y = ops.residual_block(
            *(x, other, NUM_GROUPS, norm1.weight, norm1.bias, conv1.weight, conv1.bias),
            *(norm2.weight, norm2.bias, conv2.weight, conv2.bias),
            scale=scale,
            shift=shift,
            skip_weight=None if skip is None else skip.weight.flatten(1),
            skip_bias=None if skip is None else skip.bias,
            eps=norm1.eps,
            statistics=statistics,
            **options,
        )
        return Measured(*y) if isinstance(y, tuple) else y


class Downsample(nn.Module):
    """3×3 convolution with stride 2; key `op`."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.op = nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, h, w] to [B, out_channels, ⌈h/2⌉, ⌈w/2⌉]."""
        return self.op(x)


class WindowAttention(nn.Module):
    """qkv projection, then `ops.window_attention_proj`."""

    def __init__(self, channels: int, num_heads: int, window_size: int, shift_size: int):
        super().__init__()
        self.num_heads, self.window_size, self.shift_size = num_heads, window_size, shift_size
        table = torch.empty((2 * window_size - 1) ** 2, num_heads)
        nn.init.trunc_normal_(table, std=0.02)  # its result is not used: loaders replace it by a function without one
        self.relative_position_bias_table = nn.Parameter(table)
        # For compatibility with the checkpoints only; the operator derives it from the window's size.
        self.register_buffer("relative_position_index", relative_position_index(window_size).clone())
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)

    def forward(
        self, x: Tensor, norm: GroupNorm, statistics: Tensor | None, following: GroupNorm | None
    ) -> tuple[Tensor, Tensor | None]:
        """x + attention(norm(x)) of x [B, C, H, W], and its statistics.

        `statistics` and `following` are as in `pointwise`.
        """
        qkv, _ = pointwise(x, self.qkv.weight, self.qkv.bias, norm=norm, statistics=statistics)
        y = ops.window_attention_proj(
            qkv.permute(0, 2, 3, 1),
            self.relative_position_bias_table,
            self.proj.weight,
            self.proj.bias,
            x.permute(0, 2, 3, 1),
            num_heads=self.num_heads,
            window_size=self.window_size,
            shift_size=self.shift_size,
            mask="resshift",
            **following_options(following, x),
        )
        y, of_y = y if isinstance(y, tuple) else (y, None)
        return y.permute(0, 3, 1, 2), of_y


class Mlp(nn.Module):
    """Parameters of the feed-forward part as 1×1 convolutions; keys `fc1`, `fc2`. `SwinBlock` runs it."""

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Conv2d(channels, hidden, 1)
        self.fc2 = nn.Conv2d(hidden, channels, 1)


class SwinBlock(nn.Module):
    """x + attention(norm1(x)), then x + mlp(norm2(x)), on [B, C, H, W].

    Statistics travel with the image, so that no norm has to read it for them: `statistics` are those of x for `norm1`,
    `following` is the norm of the result, whose statistics are returned; both may be None.
    """

    def __init__(self, channels: int, resolution: int, num_heads: int, window_size: int, shift_size: int, hidden: int):
        super().__init__()
        self.norm1 = GroupNorm(channels)
        self.attn = WindowAttention(channels, num_heads, window_size, shift_size)
        self.norm2 = GroupNorm(channels)
        self.mlp = Mlp(channels, hidden)
        # For compatibility with the checkpoints only; the operator makes the mask for the actual size of its input.
        mask = shift_mask(resolution, resolution, window_size, shift_size, "resshift") if shift_size else None
        self.register_buffer("attn_mask", None if mask is None else mask.clone())

    def forward(
        self, x: Tensor, statistics: Tensor | None = None, following: GroupNorm | None = None
    ) -> tuple[Tensor, Tensor | None]:
        x, statistics = self.attn(x, self.norm1, statistics, self.norm2)
        norm, fc1, fc2 = self.norm2, self.mlp.fc1, self.mlp.fc2
        assert fc1.bias is not None and fc2.bias is not None
        w1, w2 = fc1.weight.flatten(1), fc2.weight.flatten(1)
        parameters = norm.weight, norm.bias, w1, fc1.bias, w2, fc2.bias
        options = following_options(following, x)
        if statistics is not None:
            options["statistics"] = statistics
        y = ops.swin_mlp(x, NUM_GROUPS, *parameters, norm.eps, **options)
        return y if isinstance(y, tuple) else (y, None)


class _PointwiseProjection(nn.Module):
    """1×1 convolution; key `proj`."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.proj = Conv1x1(in_channels, out_channels)

    def forward(self, x: Tensor, following: GroupNorm | None = None) -> tuple[Tensor, Tensor | None]:
        return self.proj.before(following, x)


class SwinLayer(nn.Module):
    """Project to the Swin width, run the blocks, project back."""

    def __init__(self, channels: int, resolution: int, config: SwinUNetConfig):
        super().__init__()
        width = config.swin_embed_dim
        window_size = min(config.window_size, resolution)
        shifts = [window_size // 2 if i % 2 and resolution > window_size else 0 for i in range(config.swin_depth)]
        self.patch_embed = _PointwiseProjection(channels, width)
        self.blocks = nn.ModuleList(
            SwinBlock(
                width, resolution, width // config.num_head_channels, window_size, shift, int(width * config.mlp_ratio)
            )
            for shift in shifts
        )
        self.patch_unembed = _PointwiseProjection(width, channels)

    def forward(self, x: Tensor, following: GroupNorm | None = None) -> Tensor | Measured:
        """[B, C, h, w] to the same shape; h and w are multiples of the window's side.

        `following` is the norm of the result, which then may have statistics for it.
        """
        norms = [block.norm1 for block in self.blocks]
        x, statistics = self.patch_embed(x, norms[0])
        for block, next_norm in zip(self.blocks, [*norms[1:], None], strict=True):
            x, statistics = block(x, statistics, next_norm)
        return self.patch_unembed.proj.measured(x, following=following)


class Stage(nn.Sequential):
    """Layers in sequence; each residual block takes the next modulation, and the first may take a `PendingMerge`.

    `following` is the norm of the result, or None; the result may be returned with statistics for that norm.
    """

    def forward(  # type: ignore[override]
        self, x: Image, modulations: Iterator[Tensor], following: GroupNorm | None = None
    ) -> Tensor | Measured:
        y: Any = x  # a tensor after the first layer, which merges it
        layers: list[nn.Module] = list(self)
        for layer, next_layer in zip(layers, [*layers[1:], None], strict=True):
            norm = following if next_layer is None else first_norm(next_layer)
            if isinstance(layer, ResBlock):
                y = layer(y, next(modulations), norm)
            elif isinstance(layer, SwinLayer):
                y = layer(y, norm)
            elif isinstance(layer, Conv3x3 | UpsampleConv):
                y = layer.measured(y, following=norm)
            else:
                y = layer(y)
        return y


def first_norm(layer: nn.Module | None) -> GroupNorm | None:
    """The norm with which a layer or stage begins, or None if it begins with something else."""
    first = layer[0] if isinstance(layer, Stage) else layer
    return first.in_layers[0] if isinstance(first, ResBlock) else None  # type: ignore[return-value]


class SwinUNet(nn.Module):
    """The residual-shift denoiser.

    Args:
        config: sizes; see `SwinUNetConfig`.
    """

    def __init__(self, config: SwinUNetConfig):
        super().__init__()
        self.config = config
        self.noise_channels = config.noise_channels
        emb_channels = 4 * config.model_channels
        self.time_embed = nn.Sequential(
            nn.Linear(config.model_channels, emb_channels), nn.SiLU(), nn.Linear(emb_channels, emb_channels)
        )
        if config.cond_lq and config.lq_size != config.image_size:
            self.feature_extractor = _feature_extractor(config)
        widths = self._build_encoder(emb_channels)
        channels = widths[-1]
        resolution = config.image_size // config.downsampling
        self.middle_block = Stage(
            ResBlock(channels, channels, emb_channels),
            SwinLayer(channels, resolution, config),
            ResBlock(channels, channels, emb_channels),
        )
        channels = self._build_decoder(widths, emb_channels)
        self.out = nn.Sequential(GroupNorm(channels), nn.SiLU(), zero_(Conv3x3(channels, config.out_channels)))

    def _build_encoder(self, emb_channels: int) -> list[int]:
        config = self.config
        channels = config.model_channels
        widths = [channels]
        self.input_blocks = nn.ModuleList([Stage(Conv3x3(config.in_channels + config.lq_channels, channels))])
        resolution = config.image_size
        for level, mult in enumerate(config.channel_mult):
            width = int(mult * config.model_channels)
            for i in range(config.num_res_blocks[level]):
                layers: list[nn.Module] = [ResBlock(channels, width, emb_channels)]
                channels = width
                if i == 0 and resolution in config.attention_resolutions:
                    layers.append(SwinLayer(channels, resolution, config))
                self.input_blocks.append(Stage(*layers))
                widths.append(channels)
            if level < len(config.channel_mult) - 1:
                self.input_blocks.append(Stage(Downsample(channels, channels)))
                widths.append(channels)
                resolution //= 2
        return widths

    def _build_decoder(self, widths: list[int], emb_channels: int) -> int:
        config = self.config
        channels, widths = widths[-1], list(widths)
        resolution = config.image_size // config.downsampling
        self.output_blocks = nn.ModuleList()
        for level in reversed(range(len(config.channel_mult))):
            width = int(config.channel_mult[level] * config.model_channels)
            for i in range(config.num_res_blocks[level] + 1):
                layers: list[nn.Module] = [ResBlock(channels + widths.pop(), width, emb_channels)]
                channels = width
                if i == 0 and resolution in config.attention_resolutions:
                    layers.append(SwinLayer(channels, resolution, config))
                if level and i == config.num_res_blocks[level]:
                    layers.append(UpsampleConv(channels))
                    resolution *= 2
                self.output_blocks.append(Stage(*layers))
        return channels

    def condition(self, lq: Tensor | None, mask: Tensor | None = None, noise: Tensor | None = None) -> Tensor | None:
        """Features of the low-quality image, then the channels of noise; they are the same at every step.

        Args:
            lq: [B, 3, H, W] in [−1, 1], or None for a denoiser without it.
            mask: [B, 1, H, W], 1 = unknown and −1 = known, for inpainting.
            noise: [B, noise_channels, h, w] at the latent's size, or None for a denoiser without it.

        Returns:
            [B, lq_channels, h, w] at the latent's size, or None.

        Raises:
            ValueError: if lq, mask or noise is missing, or given to a denoiser without it.
        """
        config = self.config
        if (lq is not None) != config.cond_lq:
            raise ValueError(f"SwinUNet: lq must be {'given' if config.cond_lq else 'None'} for this denoiser")
        if (mask is not None) != config.cond_mask:
            raise ValueError(f"SwinUNet: mask must be {'given' if config.cond_mask else 'None'} for this denoiser")
        if (noise is not None) != (config.noise_channels > 0):
            raise ValueError(
                f"SwinUNet: noise must be {'given' if config.noise_channels else 'None'} for this denoiser"
            )
        if lq is None:
            return noise
        features = lq if mask is None else torch.cat([lq, mask], dim=1)
        if config.lq_size != config.image_size:
            features = self.feature_extractor(features)
        return features if noise is None else torch.cat([features, noise.to(features.dtype)], dim=1)

    def modulation(self, timesteps: Tensor) -> Modulation:
        """Scale and shift of every residual block for each timestep.

        Args:
            timesteps: [N], the raw step indices.

        Returns:
            One [N, 2·C] tensor (scale, then shift) per residual block, in the order in which they run.
        """
        dtype = next(self.time_embed.parameters()).dtype
        emb = self.time_embed(timestep_embedding(timesteps, self.config.model_channels).to(dtype))
        emb = F.silu(emb)
        return tuple(layer(emb) for layer in self.modulation_layers())

    def modulation_layers(self) -> list[nn.Linear]:
        """The last layer of `modulation` for each residual block, in the order in which they run."""
        return [block.emb_layers[1] for block in self._res_blocks()]  # type: ignore[misc]

    def modulation_parameters(self) -> Iterator[nn.Parameter]:
        """All parameters that `modulation` depends on."""
        for layer in (self.time_embed, *self.modulation_layers()):
            yield from layer.parameters()

    def denoise(self, x: Tensor, modulation: Modulation) -> Tensor:
        """Run the U-Net.

        Args:
            x: [B, in_channels + lq_channels, h, w]: the scaled x_t followed by `condition`'s features; h and w are
                multiples of `window_size · downsampling` (64 for the official models).
            modulation: from `modulation`, with B rows.

        Returns:
            The prediction, [B, out_channels, h, w].
        """
        modulations = iter(modulation)
        middle, skips = self._encoded(x, modulations)
        y: Any = middle
        norm, _, conv = self.out
        # The norms of all blocks but the last are of concatenations, whose groups may have channels of both images.
        for block, following in zip(self.output_blocks, [*[None] * (len(self.output_blocks) - 1), norm], strict=True):
            y = block(PendingMerge(y, skips.pop(), "concat"), modulations, following)
        return conv.after(norm, y)[1]  # type: ignore[operator]

    def _encoded(self, x: Tensor, modulations: Iterator[Tensor]) -> tuple[Tensor | Measured, list[Tensor]]:
        """(the image in the middle of the U-Net, those that the second half takes again)."""
        skips = []
        y: Any = x
        for block, next_block in zip(self.input_blocks, [*self.input_blocks[1:], self.middle_block], strict=True):
            y = block(y, modulations, first_norm(next_block))
            skips.append(merged(y))
        return self.middle_block(y, modulations), skips

    def bottleneck(self, x: Tensor, timesteps: Tensor, lq: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """The image in the middle, [B, C, h / downsampling, w / downsampling]; arguments as in `forward`."""
        y, _ = self._encoded(self._input(x, lq, mask, None), iter(self.modulation(timesteps)))
        return merged(y)

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        lq: Tensor | None = None,
        mask: Tensor | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        """Predict from a scaled x_t.

        Args:
            x: [B, in_channels, h, w], x_t / √(κ² η_t + 1).
            timesteps: int64 [B].
            lq, mask, noise: as in `condition`.

        Returns:
            The prediction, [B, out_channels, h, w].
        """
        return self.denoise(self._input(x, lq, mask, noise), self.modulation(timesteps))

    def _input(self, x: Tensor, lq: Tensor | None, mask: Tensor | None, noise: Tensor | None) -> Tensor:
        features = self.condition(lq, mask, noise)
        return x if features is None else torch.cat([x, features.to(x.dtype)], dim=1)

    def _res_blocks(self) -> Iterator[ResBlock]:
        for stage in (*self.input_blocks, self.middle_block, *self.output_blocks):
            yield from (layer for layer in stage if isinstance(layer, ResBlock))


def _feature_extractor(config: SwinUNetConfig) -> nn.Sequential:
    """Convolution, SiLU and a stride-2 convolution for each halving from lq_size to image_size."""
    layers: list[nn.Module] = []
    channels = 4 if config.cond_mask else 3
    width = FEATURE_CHANNELS
    for _ in range(int(math.log2(config.lq_size // config.image_size))):
        layers += [Conv3x3(channels, width), nn.SiLU(), Downsample(width, 2 * width)]
        channels = width = 2 * width
    return nn.Sequential(*layers)
