"""Reads the YAML files of the official training code, for models that were trained with it.

Only sizes and conventions are read; the class paths in the file are ignored.
"""

from os import PathLike
from pathlib import Path
from typing import Any

from resshift_fast.diffusion.schedule import Schedule
from resshift_fast.models.autoencoder import AutoencoderConfig, SpaceToDepthConfig
from resshift_fast.models.catalog import ModelSpec
from resshift_fast.models.swin_unet import SwinUNetConfig

PREDICTION_TYPES = {
    "xstart": "x0",
    "epsilon": "epsilon",
    "epsilon_scale": "epsilon_scaled",
    "residual": "residual",
}

# Settings with one supported value, which is also the default of a missing entry.
FIXED = {
    "model.params.dims": 2,
    "model.params.use_scale_shift_norm": True,
    "model.params.resblock_updown": False,
    "model.params.conv_resample": True,
    "model.params.patch_norm": False,
    "diffusion.params.schedule_name": "exponential",
    "diffusion.params.scale_factor": 1.0,
    "diffusion.params.normalize_input": True,
    "autoencoder.params.ddconfig.double_z": False,
    "autoencoder.params.ddconfig.in_channels": 3,
    "autoencoder.params.ddconfig.out_ch": 3,
    "autoencoder.params.ddconfig.attn_resolutions": [],
    "autoencoder.params.ddconfig.padding_mode": "zeros",
}


def read(path: str | PathLike) -> ModelSpec:
    """The model that an official YAML file describes; its name is the file's stem, and it has no weight files.

    Args:
        path: a file with the sections `model`, `diffusion` and, for latent models, `autoencoder`.

    Raises:
        FileNotFoundError, OSError: if it cannot be read.
        ImportError: if omegaconf is not installed.
        ValueError: if it is not YAML, a needed entry is missing or of another type, or a setting is not supported.
    """
    tree = load(Path(path))
    for key, value in FIXED.items():
        found = _get(tree, key, default=value)
        if found is not None and found != value:
            raise ValueError(f"{path}: {key} is {found!r}; only {value!r} is supported")
    try:
        return _spec(Path(path), tree)
    except (TypeError, KeyError) as error:
        raise ValueError(f"{path}: not an official configuration: {error}") from None


def load(path: Path) -> dict[str, Any]:
    """The file as nested dictionaries, references between its entries resolved.

    Raises:
        FileNotFoundError, OSError: if it cannot be read.
        ImportError: if omegaconf is not installed.
        ValueError: if it is not YAML, has no sections, or refers to an entry that it lacks.
    """
    try:
        from omegaconf import OmegaConf
        from omegaconf.errors import OmegaConfBaseException
        from yaml import YAMLError
    except ImportError as error:
        raise ImportError(f"{path}: reading YAML needs {error.name}, not installed; pip install omegaconf") from None
    try:
        tree: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except (YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a YAML file: {str(error).splitlines()[0]}") from None
    except OmegaConfBaseException as error:
        raise ValueError(f"{path}: {str(error).splitlines()[0]}") from None
    if not isinstance(tree, dict):
        raise ValueError(f"{path}: expected sections model, diffusion and autoencoder, found none")
    return tree


_REQUIRED = object()


def _get(tree: dict[str, Any], key: str, default: Any = _REQUIRED) -> Any:
    node: Any = tree
    for part in key.split("."):
        if not isinstance(node, dict) or part not in node:
            if default is _REQUIRED:
                raise KeyError(f"{key} is missing")
            return default
        node = node[part]
    return node


def _spec(path: Path, tree: dict[str, Any]) -> ModelSpec:
    denoiser = _denoiser(_get(tree, "model.params"))
    first_stage = _first_stage(tree)
    scale = int(_get(tree, "diffusion.params.sf"))
    prediction = _get(tree, "diffusion.params.predict_type", "xstart")
    if prediction not in PREDICTION_TYPES:
        raise ValueError(f"{path}: predict_type is {prediction!r}, expected one of {', '.join(PREDICTION_TYPES)}")
    window = min(denoiser.window_size, denoiser.image_size // denoiser.downsampling)
    multiple = window * denoiser.downsampling * first_stage.factor // scale
    return ModelSpec(
        name=path.stem,
        summary=f"described by {path.name}",
        scale=scale,
        denoiser=denoiser,
        first_stage=first_stage,
        schedule=_schedule(_get(tree, "diffusion.params")),
        prediction_type=PREDICTION_TYPES[prediction],
        clamp_x0=isinstance(first_stage, SpaceToDepthConfig),
        pad_multiple=multiple,
        tile=max(multiple, 256 // multiple * multiple),
        overlap=32,
        needs_mask=denoiser.cond_mask,
    )


def _denoiser(params: dict[str, Any]) -> SwinUNetConfig:
    chosen: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in params.items()
        if name in SwinUNetConfig.__dataclass_fields__
    }
    levels = len(_get(params, "channel_mult"))
    if isinstance(chosen.get("num_res_blocks"), int):
        chosen["num_res_blocks"] = (chosen["num_res_blocks"],) * levels
    chosen.setdefault("cond_lq", False)
    return SwinUNetConfig(**chosen)


def _first_stage(tree: dict[str, Any]) -> AutoencoderConfig | SpaceToDepthConfig:
    if _get(tree, "autoencoder", None) is None:
        return SpaceToDepthConfig(factor=1)
    params = _get(tree, "autoencoder.params")
    sizes = _get(params, "ddconfig")
    mult = tuple(_get(sizes, "ch_mult"))
    blocks = _get(sizes, "num_res_blocks")
    if _get(sizes, "z_channels") != _get(params, "embed_dim"):
        raise ValueError("autoencoder.params: z_channels and embed_dim differ; only equal ones are supported")
    return AutoencoderConfig(
        channels=_get(sizes, "ch"),
        channel_mult=mult,
        num_res_blocks=(blocks,) * len(mult) if isinstance(blocks, int) else tuple(blocks),
        latent_channels=_get(params, "embed_dim"),
        codebook_size=_get(params, "n_embed"),
    )


def _schedule(params: dict[str, Any]) -> Schedule:
    respacing = _get(params, "timestep_respacing", None)
    return Schedule(
        steps=int(_get(params, "steps")),
        kappa=float(_get(params, "kappa")),
        power=float(_get(params, "schedule_kwargs.power")),
        min_noise_level=float(_get(params, "min_noise_level")),
        etas_end=float(_get(params, "etas_end")),
        respacing=None if respacing is None else int(respacing),
    )
