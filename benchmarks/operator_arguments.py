"""Arguments of every operator, with the sizes of realsr-x4-v3's networks.

The launch cases of scripts/kernel_proof, whose kernels are compiled and not run, make their arguments here too, on the
meta device.
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
    origin: bool = False,
    given_noise: bool = False,
) -> dict[str, Any]:
    """The chain's last step draws no noise and writes no next input."""
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
        "lq": None if last else draw.image(SPEC.denoiser.lq_channels, side),
        "next_dtype": None if last else draw.dtype,
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
