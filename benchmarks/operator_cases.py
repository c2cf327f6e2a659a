"""The calls that the operator benchmark measures: those of realsr-x4-v3's networks.

Sizes follow from the side of the latent, 64 for a photo of 64×64 restored to 256×256. Level 0 has that side, the
U-Net's levels 1 to 3 halve it one by one, the decoder's levels −1 and −2 double it. `where` says which module makes the
call; a test finds every one of them in the running networks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from operator_arguments import DECODER_EPS, EMBED, HIDDEN, OPERATORS, Draw


@dataclass(frozen=True)
class Case:
    """One call: sizes for `Operator.make`, the level whose side it has, and where in the networks it comes from."""

    op: str
    level: int
    sizes: dict[str, Any]
    where: str

    def side(self, latent: int) -> int:
        """Height and width in pixels for a latent of that side."""
        return latent >> self.level if self.level >= 0 else latent << -self.level

    def label(self, latent: int, batch: int) -> str:
        """Sizes and options, such as B1-C160-H64-W64-silu."""
        side = self.side(latent)
        words = [f"B{batch}"]
        for name, value in self.sizes.items():
            if value is True:
                words.append(name)
            elif isinstance(value, str):
                words.append(value)
            elif value is not False and name != "eps":
                words.append(f"{_SHORT.get(name, name)}{value}")
        words[2:2] = [f"H{side}", f"W{side}"]
        return "-".join(words)

    def arguments(self, device: torch.device, dtype: torch.dtype, latent: int, batch: int) -> dict[str, Any]:
        """The registered arguments, the same at every call."""
        torch.manual_seed(0)
        return OPERATORS[self.op].make(Draw(device, dtype, batch), self.side(latent), **self.sizes)


_SHORT = {"channels": "C", "out": "O", "entries": "N"}


def _norm(level: int, where: str, channels: int, **sizes: Any) -> Case:
    return Case("group_norm", level, {"channels": channels, **sizes}, where)


def _merge(level: int, where: str, channels: int, other: int, mode: str, **sizes: Any) -> Case:
    sizes = {"channels": channels, "other": other, "mode": mode, **sizes}
    return Case("add_concat_group_norm", level, sizes, where)


def _attention(level: int, shift: int, where: str, op: str = "window_attention") -> Case:
    return Case(op, level, {"channels": EMBED, "shift": shift}, where)


def _mlp(level: int, where: str) -> Case:
    return Case("swin_mlp", level, {"channels": EMBED, "hidden": HIDDEN}, where)


def _pointwise(level: int, where: str, channels: int, out: int, **sizes: Any) -> Case:
    return Case("pointwise_conv2d", level, {"channels": channels, "out": out, **sizes}, where)


def _block(level: int, where: str, channels: int, out: int, **sizes: Any) -> Case:
    return Case("residual_block", level, {"channels": channels, "out": out, **sizes}, where)


def _convolution(level: int, where: str, channels: int, out: int, op: str = "conv2d", **sizes: Any) -> Case:
    return Case(op, level, {"channels": channels, "out": out, **sizes}, where)


# The same convolutions, asked to normalize what they read, as they are where a backend's kernel does.
NORM = {"norm": True}
NORM_SUM = {"norm": True, "scale_shift": True, "residual": True}
DECODER_NORM_SUM = {"norm": True, "residual": True, "eps": DECODER_EPS}


# The first case of an operator is the one that --quick measures.
CASES: tuple[Case, ...] = (
    _norm(0, "U-Net level 0, ResBlock.out_layers", 160, silu=True, scale_shift=True),
    _norm(1, "U-Net level 1, ResBlock.out_layers", 320, silu=True, scale_shift=True),
    _norm(2, "U-Net level 2, ResBlock.out_layers", 320, silu=True, scale_shift=True),
    _norm(3, "U-Net level 3 and middle, ResBlock.out_layers", 640, silu=True, scale_shift=True),
    _norm(0, "decoder middle and level 0, residual blocks", 512, silu=True, eps=DECODER_EPS),
    _norm(-1, "decoder level -1, residual blocks", 256, silu=True, eps=DECODER_EPS),
    _norm(-2, "decoder level -2, first residual block", 256, silu=True, eps=DECODER_EPS),
    _norm(-2, "decoder level -2, residual blocks and norm_out", 128, silu=True, eps=DECODER_EPS),
    _merge(0, "U-Net level 0, first ResBlock after the skip", 320, 160, "concat", silu=True),
    _merge(0, "U-Net level 0, ResBlocks after the skip", 160, 160, "concat", silu=True),
    _merge(1, "U-Net level 1, ResBlocks after the skip", 320, 320, "concat", silu=True),
    _merge(3, "U-Net level 3, ResBlocks after the skip", 640, 640, "concat", silu=True),
    _merge(
        0, "decoder middle and level 0, sum and norm1 of the next block", 512, 512, "add", silu=True, eps=DECODER_EPS
    ),
    _merge(-2, "decoder level -2, sum and norm1 of the next block", 128, 128, "add", silu=True, eps=DECODER_EPS),
    _attention(0, 4, "U-Net level 0, shifted Swin blocks"),
    _attention(0, 0, "U-Net level 0, Swin blocks"),
    _attention(1, 4, "U-Net level 1, shifted Swin blocks"),
    _attention(2, 4, "U-Net level 2, shifted Swin blocks"),
    _attention(3, 0, "U-Net level 3 and middle, one window"),
    _attention(0, 4, "U-Net level 0, shifted Swin blocks", "window_attention_proj"),
    _attention(1, 4, "U-Net level 1, shifted Swin blocks", "window_attention_proj"),
    _attention(2, 4, "U-Net level 2, shifted Swin blocks", "window_attention_proj"),
    _attention(3, 0, "U-Net level 3 and middle, one window", "window_attention_proj"),
    _mlp(0, "U-Net level 0, Swin blocks"),
    _mlp(1, "U-Net level 1, Swin blocks"),
    _mlp(2, "U-Net level 2, Swin blocks"),
    _mlp(3, "U-Net level 3 and middle, Swin blocks"),
    _pointwise(0, "U-Net level 0, norm1 and qkv of the Swin blocks", EMBED, 3 * EMBED, norm=True),
    _pointwise(0, "U-Net level 0, proj of the Swin blocks and their sum", EMBED, EMBED, residual=True),
    _pointwise(0, "U-Net level 0, patch_embed", 160, EMBED),
    _pointwise(0, "U-Net level 0, patch_unembed", EMBED, 160),
    _pointwise(0, "U-Net level 0, first skip_connection and its sum", 480, 160, residual=True),
    _pointwise(1, "U-Net level 1, skip_connection and its sum", 640, 320, residual=True),
    _pointwise(3, "U-Net level 3 and middle, norm1 and qkv", EMBED, 3 * EMBED, norm=True),
    _pointwise(3, "U-Net level 3, skip_connection and its sum", 1280, 640, residual=True),
    _pointwise(0, "decoder middle, attn_1.q, k and v", 512, 512),
    _pointwise(0, "decoder middle, proj_out and its sum", 512, 512, residual=True),
    _pointwise(-1, "decoder level -1, nin_shortcut and its sum", 512, 256, residual=True),
    _pointwise(-2, "decoder level -2, nin_shortcut and its sum", 256, 128, residual=True),
    Case("vector_quantize", 0, {"channels": 3, "entries": 8192}, "autoencoder, codebook"),
    Case("spatial_attention", 0, {"channels": 512}, "decoder middle, attn_1"),
    _convolution(1, "U-Net level 1 to 0", 320, 320, "upsample_conv2d"),
    _convolution(-1, "decoder level -1 to -2", 256, 256, "upsample_conv2d"),
    _convolution(0, "decoder level 0 to -1", 512, 512, "upsample_conv2d"),
    _convolution(2, "U-Net level 2 to 1", 320, 320, "upsample_conv2d"),
    _convolution(3, "U-Net level 3 to 2", 640, 640, "upsample_conv2d"),
    _convolution(0, "U-Net level 0, ResBlocks", 160, 160),
    _convolution(0, "U-Net, first convolution", 6, 160),
    _convolution(0, "U-Net level 0, first ResBlock after the skip", 480, 160),
    _convolution(0, "U-Net, last convolution", 160, 3),
    _convolution(1, "U-Net level 1, ResBlocks", 320, 320),
    _convolution(1, "U-Net level 1, ResBlocks after the skip", 640, 320),
    _convolution(2, "U-Net level 2, ResBlocks", 320, 320),
    _convolution(3, "U-Net level 3 and middle, ResBlocks", 640, 640),
    _convolution(3, "U-Net level 3, ResBlocks after the skip", 1280, 640),
    _convolution(0, "decoder, first convolution", 3, 512),
    _convolution(0, "decoder middle and level 0, residual blocks", 512, 512),
    _convolution(-1, "decoder level -1, residual blocks", 256, 256),
    _convolution(-2, "decoder level -2, first residual block", 256, 128),
    _convolution(-2, "decoder level -2, residual blocks", 128, 128),
    _convolution(-2, "decoder, last convolution", 128, 3),
    _convolution(0, "U-Net level 0, ResBlock.in_layers", 160, 160, **NORM),
    _convolution(0, "U-Net level 0, ResBlock.out_layers and its sum", 160, 160, **NORM_SUM),
    _convolution(3, "U-Net level 3 and middle, ResBlock.out_layers and its sum", 640, 640, **NORM_SUM),
    _convolution(0, "decoder middle and level 0, conv2 and its sum", 512, 512, **DECODER_NORM_SUM),
    _convolution(-2, "decoder level -2, conv2 and its sum", 128, 128, **DECODER_NORM_SUM),
    _block(3, "U-Net level 3 and middle, ResBlocks", 640, 640),
    _block(3, "U-Net level 3, ResBlocks after the skip", 640, 640, other=640),
    _block(2, "U-Net level 2, ResBlocks", 320, 320),
    _block(2, "U-Net level 2, ResBlocks after the skip", 320, 320, other=320),
    _block(1, "U-Net level 1, ResBlocks", 320, 320),
    _block(0, "U-Net level 0, ResBlocks", 160, 160),
    Case("posterior_step", 0, {"channels": 3}, "chain, every step but the last"),
    Case("posterior_step", 0, {"channels": 3, "last": True}, "chain, last step"),
    Case("prior_sample", 0, {"channels": 3}, "chain, start"),
    Case("q_sample", 0, {"channels": 3}, "training, forward process"),
)
