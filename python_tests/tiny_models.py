"""Models of a few thousand parameters under the catalogue's names, for tests of the code around the networks."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from resshift_fast.models import catalog
from resshift_fast.models.autoencoder import SpaceToDepthConfig
from resshift_fast.models.swin_unet import SwinUNetConfig
from resshift_fast.weights import checkpoints

ENLARGE = "nano-x4"
INPAINT = "inpaint-imagenet"

_SIZES = {
    "image_size": 8,
    "in_channels": 48,
    "out_channels": 48,
    "model_channels": 32,
    "num_res_blocks": (1,),
    "channel_mult": (1,),
    "swin_embed_dim": 32,
    "swin_depth": 1,
    "mlp_ratio": 1.0,
}


def install(models: dict[str, catalog.ModelSpec] = catalog.MODELS) -> None:
    """Put the tiny models into the catalogue in place of the two of their names; tiles are 16 and 32 pixels."""
    models[ENLARGE] = replace(
        models[ENLARGE],
        denoiser=SwinUNetConfig(**_SIZES, attention_resolutions=(8,), lq_size=8),
        pad_multiple=8,
        tile=16,
        overlap=4,
    )
    models[INPAINT] = replace(
        models[INPAINT],
        denoiser=SwinUNetConfig(**_SIZES, attention_resolutions=(), lq_size=32, cond_mask=True),
        first_stage=SpaceToDepthConfig(),
        pad_multiple=32,
        tile=32,
        overlap=8,
        autoencoder_weights=None,
    )


def save_weights(name: str, folder: Path) -> Path:
    """Write weights for a tiny model, none of them zero, and return the file."""
    generator = torch.Generator().manual_seed(1)
    denoiser = catalog.build_denoiser(catalog.get(name))
    for parameter in denoiser.parameters():
        nn.init.trunc_normal_(parameter, std=0.02, generator=generator)
    path = folder / f"{name}.safetensors"
    checkpoints.save_safetensors(denoiser, path, {"model": name})
    return path
