"""Arguments of every operator, and the calls that the operator benchmark measures: those of realsr-x4-v3's networks.

Sizes follow from the side of the latent, 64 for a photo of 64×64 restored to 256×256. Level 0 has that side, the
U-Net's levels 1 to 3 halve it one by one, the decoder's levels −1 and −2 double it. `where` says which module makes the
call; a test finds every one of them in the running networks. The launch cases of scripts/kernel_proof, whose kernels
are compiled and not run, make their arguments here too, on the meta device.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from resshift_fast import ops
from resshift_fast.models import catalog

SPEC = catalog.get("realsr-x4-v3")
NUM_GROUPS = 32
UNET_EPS, DECODER_EPS = 1e-5, 1e-6
EMBED, HIDDEN, HEADS = 192, 768, 6  # width of the Swin layers, of their feed-forward part, and heads of 32 channels
MEAN = -2.3  # of inputs to norms: far enough from 0 that a variance which cancels fails the check


@dataclass(frozen=True)
class Draw:
    """Makes the tensors of a call: normally distributed values in `dtype`, the same for every run of a case."""

    device: torch.device
    dtype: torch.dtype
    batch: int

    def normal(
        self, *shape: int, mean: float = 0.0, deviation: float = 1.0, dtype: torch.dtype | None = None
    ) -> Tensor:
        """Parameters, or latents with a `dtype` of their own."""
        return (torch.randn(shape, device=self.device) * deviation + mean).to(dtype or self.dtype)

    def image(self, channels: int, side: int, mean: float = 0.0, dtype: torch.dtype | None = None) -> Tensor:
        """[B, C, side, side], channels-last as every activation of the networks is."""
        x = self.normal(self.batch, channels, side, side, mean=mean, dtype=dtype)
        return x.contiguous(memory_format=torch.channels_last)

    def matrix(self, rows: int, columns: int) -> Tensor:
        """Weight [rows, columns] that keeps the deviation of what it is applied to."""
        return self.normal(rows, columns, deviation=columns**-0.5)

    def kernel(self, out_channels: int, in_channels: int) -> Tensor:
        """Weight of a 3×3 convolution, channels-last as in the networks."""
        w = self.normal(out_channels, in_channels, 3, 3, deviation=(9 * in_channels) ** -0.5)
        return w.contiguous(memory_format=torch.channels_last)

    def norm(self, channels: int) -> tuple[Tensor, Tensor]:
        """Weight and bias of a normalization."""
        return self.normal(channels, mean=1.0, deviation=0.2), self.normal(channels, deviation=0.2)

    def scale_shift(self, channels: int) -> tuple[Tensor, Tensor]:
        """Conditioning of a normalization, [B, C] each: the two halves of one linear layer's output."""
        scale, shift = self.normal(self.batch, 2 * channels, deviation=0.5).chunk(2, dim=1)
        return scale, shift

    def seed(self) -> Tensor:
        """A seed for every image."""
        return torch.full((self.batch,), 12345, dtype=torch.int64, device=self.device)


@dataclass(frozen=True)
class Operator:
    """An operator as the benchmark sees it; every callable takes the registered arguments by keyword.

    Args:
        name: in `resshift_fast.ops`.
        make: (draw, side, the case's sizes) to the arguments, in the registered order.
        differentiable: arguments whose gradients are measured.
        module, reference: file in `resshift_fast.ops` and the function there that is the plain PyTorch formula.
    """

    name: str
    make: Callable[..., dict[str, Any]]
    differentiable: tuple[str, ...]
    module: str
    reference: str = "reference"

    @property
    def float32_only(self) -> bool:
        """Whether its first tensor is a latent of the chain, which is float32 whatever the networks run in."""
        return self.name in ("posterior_step", "prior_sample")

    @property
    def public(self) -> Callable[..., Any]:
        """The function that users call."""
        return getattr(ops, self.name)

    @property
    def plain(self) -> Callable[..., Any]:
        """The formula in plain PyTorch. It chooses no backend, whichever is preferred."""
        return getattr(import_module(f"resshift_fast.ops.{self.module}"), self.reference)


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


def _group_norm(
    draw: Draw, side: int, channels: int, silu: bool = False, scale_shift: bool = False, eps: float = UNET_EPS
) -> dict[str, Any]:
    weight, bias = draw.norm(channels)
    scale, shift = draw.scale_shift(channels) if scale_shift else (None, None)
    return {
        "x": draw.image(channels, side, MEAN),
        "num_groups": NUM_GROUPS,
        "weight": weight,
        "bias": bias,
        "eps": eps,
        "scale": scale,
        "shift": shift,
        "activation": "silu" if silu else None,
    }


def _add_concat_group_norm(
    draw: Draw, side: int, channels: int, other: int, mode: str, silu: bool = False, eps: float = UNET_EPS
) -> dict[str, Any]:
    norm = _group_norm(draw, side, channels + other if mode == "concat" else channels, silu, eps=eps)
    images = {"x": draw.image(channels, side, MEAN), "other": draw.image(other, side, MEAN)}
    names = ("num_groups", "weight", "bias", "eps")
    options = {name: norm[name] for name in ("scale", "shift", "activation")}
    return images | {name: norm[name] for name in names} | {"mode": mode} | options


def _window_attention(
    draw: Draw, side: int, channels: int, shift: int, heads: int = HEADS, window: int = 8, mask: str = "resshift"
) -> dict[str, Any]:
    return {
        "qkv": draw.normal(draw.batch, side, side, 3 * channels),
        "bias_table": draw.normal((2 * window - 1) ** 2, heads),
        "num_heads": heads,
        "window_size": window,
        "shift_size": shift,
        "mask": mask,
    }


def _window_attention_proj(draw: Draw, side: int, channels: int, shift: int, **sizes: Any) -> dict[str, Any]:
    tensors = _window_attention(draw, side, channels, shift, **sizes)
    options = {name: tensors.pop(name) for name in ("num_heads", "window_size", "shift_size", "mask")}
    projection = {
        "weight": draw.matrix(channels, channels),
        "bias": draw.normal(channels),
        "residual": draw.normal(draw.batch, side, side, channels),
    }
    return tensors | projection | options


def _swin_mlp(draw: Draw, side: int, channels: int, hidden: int) -> dict[str, Any]:
    norm_weight, norm_bias = draw.norm(channels)
    return {
        "x": draw.image(channels, side, MEAN),
        "num_groups": NUM_GROUPS,
        "norm_weight": norm_weight,
        "norm_bias": norm_bias,
        "w1": draw.matrix(hidden, channels),
        "b1": draw.normal(hidden),
        "w2": draw.matrix(channels, hidden),
        "b2": draw.normal(channels),
        "eps": UNET_EPS,
    }


def _pointwise_conv2d(
    draw: Draw, side: int, channels: int, out: int, norm: bool = False, residual: bool = False
) -> dict[str, Any]:
    norm_weight, norm_bias = draw.norm(channels) if norm else (None, None)
    return {
        "x": draw.image(channels, side, MEAN if norm else 0.0),
        "weight": draw.matrix(out, channels),
        "bias": draw.normal(out),
        "residual": draw.image(out, side) if residual else None,
        "num_groups": NUM_GROUPS if norm else 0,
        "norm_weight": norm_weight,
        "norm_bias": norm_bias,
        "eps": UNET_EPS,
    }


def _vector_quantize(draw: Draw, side: int, channels: int, entries: int) -> dict[str, Any]:
    """Entries on a lattice that 16 bits hold exactly, pixels clearly nearer to one than to all others.

    Between entries that are nearly as near, any order of summation may go either way, and none would be wrong.
    """
    edge = round((entries / 2) ** (1 / channels))
    place = torch.arange(entries, device=draw.device)
    place = place * 4099 % entries  # a permutation: neighbours in space are far apart in the codebook
    axes = [place // edge**axis % edge if axis < channels - 1 else place // edge**axis for axis in range(channels)]
    codebook = torch.stack(axes, dim=1).float() - edge // 2
    chosen = torch.arange(draw.batch * side**2, device=draw.device) * 31 % entries
    z = codebook[chosen] + 0.3 * (2 * torch.rand((len(chosen), channels), device=draw.device) - 1)
    z = z.view(draw.batch, side, side, channels).permute(0, 3, 1, 2).contiguous()
    return {"z": z.to(draw.dtype), "codebook": codebook.to(draw.dtype)}


def _spatial_attention(draw: Draw, side: int, channels: int) -> dict[str, Any]:
    return {name: draw.image(channels, side) for name in ("q", "k", "v")}


def _upsample_conv2d(draw: Draw, side: int, channels: int, out: int, summed: bool = False) -> dict[str, Any]:
    x, weight = draw.image(channels, side), draw.kernel(out, channels)
    sums = ops.sum_upsample_taps(weight) if summed else None
    return {"x": x, "weight": weight, "bias": draw.normal(out), "summed": sums}


def _conv2d(
    draw: Draw,
    side: int,
    channels: int,
    out: int,
    norm: bool = False,
    scale_shift: bool = False,
    residual: bool = False,
    eps: float = UNET_EPS,
) -> dict[str, Any]:
    norm_weight, norm_bias = draw.norm(channels) if norm else (None, None)
    scale, shift = draw.scale_shift(channels) if scale_shift else (None, None)
    return {
        "x": draw.image(channels, side, MEAN if norm else 0.0),
        "weight": draw.kernel(out, channels),
        "bias": draw.normal(out),
        "padding": 1,
        "residual": draw.image(out, side) if residual else None,
        "num_groups": NUM_GROUPS if norm else 0,
        "norm_weight": norm_weight,
        "norm_bias": norm_bias,
        "eps": eps,
        "scale": scale,
        "shift": shift,
        "activation": "silu" if norm else None,
    }


def _latent(draw: Draw, side: int, channels: int) -> Tensor:
    """Latents of the chain are float32 and contiguous, whatever the networks run in."""
    return draw.normal(draw.batch, channels, side, side, dtype=torch.float32)


def _origin(draw: Draw) -> Tensor:
    """Every image at the latent's corner."""
    return torch.zeros((draw.batch, 2), dtype=torch.int64, device=draw.device)


def _residual_block(
    draw: Draw, side: int, channels: int, out: int, other: int = 0, scale_shift: bool = True, eps: float = UNET_EPS
) -> dict[str, Any]:
    merged = channels + other
    arguments: dict[str, Any] = {
        "x": draw.image(channels, side, MEAN),
        "other": draw.image(other, side, MEAN) if other else None,
        "num_groups": NUM_GROUPS,
    }
    for i, width in ((1, merged), (2, out)):
        arguments[f"norm{i}_weight"], arguments[f"norm{i}_bias"] = draw.norm(width)
        arguments |= {f"weight{i}": draw.kernel(out, width), f"bias{i}": draw.normal(out)}
    arguments["scale"], arguments["shift"] = draw.scale_shift(out) if scale_shift else (None, None)
    is_identity = merged == out
    arguments["skip_weight"] = None if is_identity else draw.matrix(out, merged)
    arguments["skip_bias"] = None if is_identity else draw.normal(out)
    return arguments | {"eps": eps, "statistics": None}


def _posterior_step(
    draw: Draw,
    side: int,
    channels: int,
    last: bool = False,
    lq: bool = True,
    origin: bool = False,
    given_noise: bool = False,
) -> dict[str, Any]:
    t = 0 if last else 2
    return {
        "x_t": _latent(draw, side, channels),
        "prediction": draw.image(channels, side),
        "y": _latent(draw, side, channels),
        "coefficients": SPEC.schedule.table(draw.device)[t],
        "seed": draw.seed(),
        "step": torch.full((), SPEC.schedule.num_steps - t, dtype=torch.int64, device=draw.device),
        "origin": _origin(draw) if origin else None,
        "prediction_type": SPEC.prediction_type,
        "clamp_x0": SPEC.clamp_x0,
        "noise": _latent(draw, side, channels) if given_noise else None,
        "lq": draw.image(SPEC.denoiser.lq_channels, side) if lq else None,
        "next_dtype": draw.dtype,
        "last": last,
    }


def _prior_sample(
    draw: Draw, side: int, channels: int, origin: bool = False, given_noise: bool = False
) -> dict[str, Any]:
    return {
        "y": _latent(draw, side, channels),
        "coefficients": SPEC.schedule.table(draw.device)[SPEC.schedule.num_steps - 1],
        "seed": draw.seed(),
        "origin": _origin(draw) if origin else None,
        "noise": _latent(draw, side, channels) if given_noise else None,
        "lq": draw.image(SPEC.denoiser.lq_channels, side),
        "next_dtype": draw.dtype,
    }


def _q_sample(draw: Draw, side: int, channels: int) -> dict[str, Any]:
    x0, y, noise = (draw.normal(draw.batch, channels, side, side) for _ in range(3))
    t = torch.arange(draw.batch, device=draw.device) % SPEC.schedule.num_steps
    return {"x0": x0, "y": y, "t": t, "table": SPEC.schedule.table(draw.device), "noise": noise}


OPERATORS: dict[str, Operator] = {
    operator.name: operator
    for operator in (
        Operator("group_norm", _group_norm, ("x", "weight", "bias", "scale", "shift"), "group_norm"),
        Operator(
            "add_concat_group_norm", _add_concat_group_norm, ("x", "other", "weight", "bias"), "add_concat_group_norm"
        ),
        Operator("window_attention", _window_attention, ("qkv", "bias_table"), "window_attention"),
        Operator(
            "window_attention_proj",
            _window_attention_proj,
            ("qkv", "bias_table", "weight", "bias", "residual"),
            "window_attention_proj",
        ),
        Operator("swin_mlp", _swin_mlp, ("x", "norm_weight", "norm_bias", "w1", "b1", "w2", "b2"), "swin_mlp"),
        Operator(
            "pointwise_conv2d",
            _pointwise_conv2d,
            ("x", "weight", "bias", "residual", "norm_weight", "norm_bias"),
            "pointwise_conv2d",
        ),
        Operator("vector_quantize", _vector_quantize, ("z", "codebook"), "vector_quantize"),
        Operator("spatial_attention", _spatial_attention, ("q", "k", "v"), "spatial_attention"),
        Operator("upsample_conv2d", _upsample_conv2d, ("x", "weight", "bias"), "upsample_conv2d"),
        Operator(
            "conv2d",
            _conv2d,
            ("x", "weight", "bias", "residual", "norm_weight", "norm_bias", "scale", "shift"),
            "conv2d",
        ),
        Operator(
            "residual_block",
            _residual_block,
            ("x", "weight1", "bias1", "norm2_weight", "norm2_bias", "weight2", "bias2", "scale", "shift"),
            "residual_block",
        ),
        Operator(
            "posterior_step", _posterior_step, ("x_t", "prediction", "y"), "residual_shift", "posterior_step_reference"
        ),
        Operator("prior_sample", _prior_sample, ("y",), "residual_shift", "prior_sample_reference"),
        Operator("q_sample", _q_sample, ("x0", "y", "noise"), "residual_shift", "q_sample_reference"),
    )
}


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
    Case("posterior_step", 0, {"channels": 3, "last": True, "lq": False}, "chain, last step"),
    Case("prior_sample", 0, {"channels": 3}, "chain, start"),
    Case("q_sample", 0, {"channels": 3}, "training, forward process"),
)
