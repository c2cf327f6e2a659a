"""Pipelines small enough for tests: real networks with few weights, and oracles whose result is known."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from golden_data import fill_
from torch import Tensor, nn

from resshift_fast import Pipeline
from resshift_fast.diffusion.schedule import Schedule
from resshift_fast.models import catalog
from resshift_fast.models.autoencoder import AutoencoderConfig, SpaceToDepth, SpaceToDepthConfig
from resshift_fast.models.catalog import ModelSpec
from resshift_fast.models.inpaint_unet import InpaintUNet
from resshift_fast.models.rrdb import RRDBDenoiser
from resshift_fast.models.sizes import InpaintUNetConfig, RRDBConfig
from resshift_fast.models.swin_unet import SwinUNetConfig

CPU = torch.device("cpu")
WHOLE = 1 << 20  # a tile that no test image exceeds


def _unet(latent: int, lq_per_latent: int, mask: bool = False) -> SwinUNetConfig:
    """Two levels and shifted windows of 8: inputs are multiples of 16 latent pixels, tiles start at even ones."""
    return SwinUNetConfig(
        image_size=32,
        in_channels=latent,
        out_channels=latent,
        model_channels=32,
        num_res_blocks=(1, 1),
        attention_resolutions=(),
        channel_mult=(1, 1),
        swin_embed_dim=32,
        mlp_ratio=1,
        lq_size=32 * lq_per_latent,
        cond_mask=mask,
    )


def _vq(*channel_mult: int) -> AutoencoderConfig:
    return AutoencoderConfig(
        channels=32, channel_mult=channel_mult, num_res_blocks=(1,) * len(channel_mult), codebook_size=64
    )


_NANO = replace(catalog.get("nano-x4"), denoiser=_unet(48, 1), tile=64)
_INPAINT = replace(catalog.get("inpaint-imagenet"), denoiser=_unet(3, 4, mask=True), pad_multiple=64, tile=128)
SPECS = {
    "x4": _NANO,
    "x4-rrdb": replace(catalog.get("photo-x4"), denoiser=RRDBConfig(channels=32, growth=16, blocks=1), tile=64),
    "x4-vq": replace(
        catalog.get("realsr-x4-v3"), denoiser=_unet(3, 1), first_stage=_vq(1, 1, 1), pad_multiple=16, tile=64
    ),
    "x2-vq": replace(
        catalog.get("realsr-x2"), denoiser=_unet(3, 2), first_stage=_vq(1, 1, 1), pad_multiple=32, tile=64
    ),
    "x1-vq-f8": replace(
        catalog.get("faceir"), denoiser=_unet(3, 8), first_stage=_vq(1, 1, 1, 1), pad_multiple=128, tile=128
    ),
    "inpaint": replace(_INPAINT, denoiser=_unet(48, 4, mask=True), first_stage=SpaceToDepthConfig()),
    "inpaint-vq": replace(_INPAINT, first_stage=_vq(1, 1, 1)),
    "inpaint-unet": replace(
        catalog.get("photo-inpaint"), denoiser=InpaintUNetConfig(widths=(16, 16, 32), blocks=1), tile=64, overlap=16
    ),
}


def fresh(name: str, dtype: torch.dtype = torch.float32, steps: int | None = None) -> Pipeline:
    """A pipeline over `SPECS[name]` with real networks and fixed weights, for a test that modifies it.

    Args:
        steps: steps of the chain; None for those of the model.
    """
    return built(replace(SPECS[name], schedule=replace(SPECS[name].schedule, respacing=steps)), dtype)


def built(spec: ModelSpec, dtype: torch.dtype = torch.float32) -> Pipeline:
    """A pipeline with real networks and fixed weights."""
    denoiser, first_stage = fill_(catalog.build_denoiser(spec)), fill_(catalog.build_first_stage(spec))
    with torch.no_grad():
        # Larger predictions would hide the picture, and with it errors in how it is processed.
        _last_layer(denoiser).weight *= 0.3
    return Pipeline(spec, denoiser, first_stage, CPU, dtype)


def _last_layer(denoiser: "catalog.Network") -> nn.Conv2d:
    if isinstance(denoiser, RRDBDenoiser):
        return denoiser.network.last
    return denoiser.last if isinstance(denoiser, InpaintUNet) else denoiser.out[2]


@cache
def tiny(name: str, dtype: torch.dtype = torch.float32) -> Pipeline:
    """`fresh`, built once and shared by the tests of a process; do not modify it."""
    return fresh(name, dtype)


class Oracle(nn.Module):
    """A denoiser whose prediction is a given function of (the noisy latent, the low-quality image at its size).

    Attributes:
        shapes: shape of the latents of every call.
    """

    def __init__(self, predict: Callable[[Tensor, Tensor], Tensor], channels: int, lq_per_latent: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))  # its dtype is that of the chain
        self._predict, self._channels, self._lq_per_latent = predict, channels, lq_per_latent
        self.shapes: list[torch.Size] = []

    def modulation(self, timesteps: Tensor) -> tuple[Tensor, ...]:
        return ()

    def condition(self, lq: Tensor, mask: Tensor | None) -> Tensor:
        return F.avg_pool2d(lq if mask is None else torch.cat([lq, mask], dim=1), self._lq_per_latent)

    def denoise(self, x: Tensor, modulation: tuple[Tensor, ...]) -> Tensor:
        latent, features = x[:, : self._channels], x[:, self._channels :]
        self.shapes.append(latent.shape)
        return self._predict(latent, features)


def zero(latent: Tensor, features: Tensor) -> Tensor:
    """The residual 0, with which the pipeline enlarges bicubically, and at scale 1 changes nothing."""
    return torch.zeros_like(latent)


def pointwise(latent: Tensor, features: Tensor) -> Tensor:
    """A residual that depends on noise and picture at the same pixel only, so that no tiling may change it."""
    return 0.3 * torch.tanh(2 * latent) + 0.2 * features.mean(dim=1, keepdim=True)


def tile_statistics(latent: Tensor, features: Tensor) -> Tensor:
    """A residual that also depends on the mean over the tile, as group norm and attention do."""
    return pointwise(latent, features) + 0.5 * features.mean(dim=(1, 2, 3), keepdim=True)


def oracle(
    predict: Callable[[Tensor, Tensor], Tensor], scale: int = 4, *, mask: bool = False, kappa: float = 1.0, **fields
) -> Pipeline:
    """A pipeline over an `Oracle` and space-to-depth; its tiles are multiples of 16 / scale · 4 input pixels.

    Args:
        predict: see `Oracle`. scale: 4, 2 or 1. mask: inpainting. kappa: noise level. fields: of the ModelSpec.
    """
    spec = ModelSpec(
        **{
            "name": f"oracle-x{scale}",
            "summary": "",
            "scale": scale,
            "denoiser": _unet(48, 4 // scale, mask),
            "first_stage": SpaceToDepthConfig(),
            "schedule": Schedule(steps=2, kappa=kappa),
            "prediction_type": "residual",
            "pad_multiple": 64 // scale,
            "tile": 256 // scale,
            "overlap": 64 // scale,
            "needs_mask": mask,
        }
        | fields
    )
    return Pipeline(spec, Oracle(predict, 48, 4 // scale), SpaceToDepth(spec.first_stage), CPU, torch.float32)


def integers(*shape: int, bits: int = 8, seed: int = 0) -> np.ndarray:
    """Random uint8 or uint16 values of the full range."""
    return np.random.default_rng(seed).integers(0, 2**bits, shape).astype(np.uint8 if bits == 8 else np.uint16)


def visible(pixels: np.ndarray) -> np.ndarray:
    """The pixels [H, W, C] with alpha, their last channel, of at least a quarter: no colour is replaced then."""
    alpha = np.maximum(pixels[..., -1:], np.iinfo(pixels.dtype).max // 4)
    return np.concatenate([pixels[..., :-1], alpha], axis=2)


def photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A smooth random picture with some texture, uint8 [height, width, 3]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, height // 12 + 2, width // 12 + 2, generator=generator)
    smooth = F.interpolate(coarse, size=(height, width), mode="bicubic")[0].clamp(0.1, 0.9)
    texture = 0.1 * (torch.rand(3, height, width, generator=generator) - 0.5)
    return ((smooth + texture) * 255).round().byte().permute(1, 2, 0).numpy()


def tensor_of(pixels: np.ndarray) -> Tensor:
    """An array [H, W, C] of integers as a float tensor [1, C, H, W] in [0, 1]."""
    return torch.from_numpy(pixels.astype(np.float32) / np.iinfo(pixels.dtype).max).permute(2, 0, 1)[None]
