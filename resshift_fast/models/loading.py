"""Builds the networks of a model with their weights, which also tell whether they are a one-step student of it."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING

from torch import Tensor, nn

from resshift_fast.models import catalog, depth
from resshift_fast.models.catalog import ModelSpec
from resshift_fast.models.sizes import SwinUNetConfig
from resshift_fast.weights import checkpoints, download

if TYPE_CHECKING:
    from resshift_fast.models.autoencoder import SpaceToDepth, VQAutoencoder
    from resshift_fast.models.catalog import Network

Path = str | os.PathLike[str]

_log = logging.getLogger(__name__)
# In the metadata of Distilled-ResShift, and in the catalogue.
_CONDITIONS = {"latent": "latent", "pixel": "enlarged"}
FIRST_CONVOLUTION = "input_blocks.0.0.weight"


def build(
    spec: ModelSpec,
    *,
    weights: Path | None = None,
    autoencoder: Path | None = None,
    random_weights: bool = False,
    progress: bool = True,
) -> tuple[ModelSpec, Network, VQAutoencoder | SpaceToDepth]:
    """The networks of a model on the CPU.

    Args:
        spec: the model.
        weights, autoencoder: files to load instead of the published ones. The weights may be those of a one-step
            student of the model; see `trained_as`.
        random_weights: load nothing.
        progress: show a bar while downloading.

    Returns:
        (the model, or its one-step student; denoiser; first stage).

    Raises:
        ValueError: a model without published weights, or a file that does not fit (`checkpoints.CheckpointError`).
        FileNotFoundError, OSError: a file that cannot be read or downloaded (`download.DownloadError`).
    """
    denoiser = catalog.build_denoiser(spec)
    if random_weights:
        return spec, denoiser, catalog.build_first_stage(spec)
    state, path = _read(denoiser, spec, "weights", spec.weights, weights, progress)
    found = trained_as(spec, state, checkpoints.read_metadata(path))
    if found.denoiser != spec.denoiser:
        denoiser = catalog.build_denoiser(found)
    checkpoints.load_into(denoiser, state, path)
    return found, denoiser, load_first_stage(spec, autoencoder, progress=progress)


def load_first_stage(
    spec: ModelSpec, autoencoder: Path | None = None, *, progress: bool = True
) -> VQAutoencoder | SpaceToDepth:
    """The first stage of a model on the CPU, with its weights if it has any; arguments and errors as in `build`."""
    first_stage = catalog.build_first_stage(spec)
    if any(True for _ in first_stage.parameters()):
        state, path = _read(first_stage, spec, "autoencoder", spec.autoencoder_weights, autoencoder, progress)
        checkpoints.load_into(first_stage, state, path)
    elif autoencoder is not None:
        raise ValueError(f"{spec.name} has no autoencoder to load {autoencoder} into; leave autoencoder out")
    return first_stage


def is_here(spec: ModelSpec) -> bool:
    """Whether the published weights of a model are on this computer."""
    files = [spec.weights, spec.autoencoder_weights] if spec.autoencoder_weights else [spec.weights]
    return all(file is not None and download.local_path(file).exists() for file in files)


def trained_as(
    spec: ModelSpec, state: Mapping[str, Tensor], metadata: Mapping[str, str] = MappingProxyType({})
) -> ModelSpec:
    """The model that the weights of its denoiser belong to: itself, or its one-step student.

    A student after arXiv 2503.13358 has one more input channel, of noise. One without it (SinSR, arXiv 2311.14760) has
    the shapes of its teacher, so it is recognized only if the model is given as a student, NAME-1step. A student may
    have other numbers of residual blocks than its teacher. Those of Distilled-ResShift have metadata: `noise_mode`,
    "concat" for a channel of noise, and `cond_lq`, which condition they take.

    Args:
        spec: the model that the user named.
        state: as `checkpoints.read_state_dict` returns it.
        metadata: as `checkpoints.read_metadata` returns it.

    Raises:
        ValueError: for metadata of a kind of student that is not supported.
        CheckpointError: for weights of a U-Net and a model whose denoiser is another network.
    """
    if "noise_mode" in metadata:
        return _distilled(spec, metadata)
    first = next((tensor for key, tensor in state.items() if key.endswith(FIRST_CONVOLUTION)), None)
    if first is None or first.dim() != 4:
        return spec
    if not isinstance(spec.denoiser, SwinUNetConfig):
        raise checkpoints.CheckpointError(
            f"these weights are of a U-Net, and the denoiser of {spec.name} is none; name their model"
        )
    config = spec.denoiser
    extra = first.shape[1] - config.in_channels - config.lq_channels
    if extra == 1 and not spec.schedule.one_step:
        spec = catalog.one_step(spec)
        config = catalog.unet_of(spec)
    if extra == -1 and config.noise_channels == 1:
        config = replace(config, noise_channels=0)
    sizes = depth.of_weights(config, state) if spec.schedule.one_step else config
    return spec if sizes == spec.denoiser else replace(spec, denoiser=sizes)


def _distilled(spec: ModelSpec, metadata: Mapping[str, str]) -> ModelSpec:
    """The entry of the catalogue for a student with this metadata, of the scale of the model that the user named."""
    name = f"{catalog.DISTILLED}{spec.scale}"
    if name not in catalog.MODELS:
        known = ", ".join(model for model in catalog.MODELS if model.startswith(catalog.DISTILLED))
        raise ValueError(
            f"these weights are of a Distilled-ResShift model, and {spec.name} is none; name one of {known}"
        )
    if metadata["noise_mode"] != "concat":
        raise ValueError(
            f"these weights have noise_mode {metadata['noise_mode']!r}, and only 'concat' is supported: noise as a "
            "channel of the input; use a newer file of the same model"
        )
    condition = metadata.get("cond_lq", "latent")
    if condition not in _CONDITIONS:
        raise ValueError(f"these weights have cond_lq {condition!r}, expected one of {', '.join(_CONDITIONS)}")
    return replace(catalog.MODELS[name], condition=_CONDITIONS[condition])


def _read(
    module: nn.Module,
    spec: ModelSpec,
    option: str,
    published: catalog.WeightFile | None,
    given: Path | None,
    progress: bool,
) -> tuple[dict[str, Tensor], Path]:
    """The state dict of a network, and where it is from."""
    if given is not None:
        path = given
    elif published is not None:
        path = download.fetch(published, progress, option=option, check=partial(_check_download, module))
    else:
        raise ValueError(
            f"no {option} are published for {spec.name}; give your own with {option}=FILE (--{option} FILE)"
        )
    try:
        state = checkpoints.read_state_dict(path)
    except checkpoints.CheckpointError as error:
        if given is None and published is not None and published.url is None:
            text = f"{path} of the installed package is damaged; install resshift_fast again"
            raise checkpoints.CheckpointError(text) from error
        raise
    _log.debug("read the %s of %s from %s", option, spec.name, path)
    return state, path


def _check_download(module: nn.Module, path: Path) -> str:
    """Raise CheckpointError for a download that is damaged, or lacks a weight of the network; says what was checked."""
    sums = "the checksums in its archive, " if checkpoints.check_whole(path) else ""
    checkpoints.load_into(module, checkpoints.read_state_dict(path), path)
    return f"{sums}the names and shapes of its weights"
