"""Trainings described by YAML files in the layout of the official code.

Every entry is mapped to a setting of this trainer, or has a value that changes nothing here, or is refused by its name.
The model itself is read by `models.official_config`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from os import PathLike
from pathlib import Path
from typing import Any

from resshift_fast.models import official_config
from resshift_fast.models.catalog import ModelSpec
from resshift_fast.models.swin_unet import SwinUNetConfig
from resshift_fast.training.degradations.drawing import from_options
from resshift_fast.training.degradations.face import Face
from resshift_fast.training.degradations.masks import Masks
from resshift_fast.training.degradations.second_order import SecondOrder

# Names of `data.train.type` to degradations.
TYPES = {
    "realesrgan": "second_order",
    "bicubic": "bicubic",
    "gfpgan": "face",
    "face": "face",
    "inpaint": "masks",
    "inpainting": "masks",
}

# Entries that change nothing here: class paths, logging, loading, and what this trainer always does in its own way.
_UNUSED = {
    "trainer": "target",
    "model": "target",
    "model.params": "use_fp16 use_checkpoint",
    "diffusion": "target",
    "diffusion.params": "latent_flag",
    "autoencoder": "target use_fp16",
    "autoencoder.params.ddconfig": "resolution dropout",
    "data.train.params": "im_exts io_backend.type length need_path recursive mean std transform_type "
    "transform_kwargs.mean transform_kwargs.std use_hflip use_rot rescale_gt crop_pad_size matlab_mode sf",
    "degradation": "queue_size",
    "lpips": "net target",
    "train": "prefetch_factor local_logging tf_logging use_ema_val val_y_channel val_resolution "
    "val_padding_mode global_seeding compile.mode use_fp16",
}
WITHOUT_EFFECT = frozenset(f"{section}.{name}" for section, names in _UNUSED.items() for name in names.split())

# Entries of the model with one possible value beside those of `models.official_config`.
FIXED = {"model.params.dropout": (0, 0.0), "diffusion.params.weighted_mse": (False,)}

# Entries that the model is read from.
_MODEL = frozenset(
    (
        *official_config.FIXED,
        *(f"model.params.{name}" for name in SwinUNetConfig.__dataclass_fields__),
        *(f"diffusion.params.{name}" for name in ("sf", "schedule_kwargs.power", "etas_end", "steps", "kappa")),
        *(f"diffusion.params.{name}" for name in ("min_noise_level", "predict_type", "timestep_respacing")),
        *("autoencoder.params.embed_dim", "autoencoder.params.n_embed", "autoencoder.params.ddconfig.z_channels"),
        *(f"autoencoder.params.ddconfig.{name}" for name in ("ch", "ch_mult", "num_res_blocks")),
    )
)

_PARAMS = "data.train.params."


@dataclass(frozen=True)
class OfficialTraining:
    """A training that a file describes.

    Attributes:
        spec: the model, or None if the caller has named one.
        settings: fields of `TrainConfig`, without those that the file leaves open.
        without_effect: names of sections and entries that change nothing here.
    """

    spec: ModelSpec | None
    settings: dict[str, Any]
    without_effect: tuple[str, ...]


def read(path: str | PathLike[str], model: str | None = None, batch_size: int | None = None) -> OfficialTraining:
    """The training that an official YAML file describes.

    Folders and files in it that do not exist, such as its author's, are left out of the settings.

    Args:
        path: a file with the sections of the model and of the training: `train`, `data` and, for Real-ESRGAN's
            degradation, `degradation`.
        model: name of the model to train instead of the file's, whose sections `model`, `diffusion` and `autoencoder`
            are then without effect. Default: the file's.
        batch_size: patches per step instead of the file's; `train.microbatch` divides them.

    Raises:
        FileNotFoundError, OSError, ImportError: as of `models.official_config.read`.
        ValueError: naming the entry, if one is unknown, missing or has a value that is not supported.
    """
    path = Path(path)
    spec = official_config.read(path) if model is None else None
    tree = official_config.load(path)
    replaced = [] if model is None else sorted(tree.keys() & {"model", "diffusion", "autoencoder"})
    entries = _flat({name: section for name, section in tree.items() if name not in replaced})
    used: set[str] = set(_MODEL)
    settings: dict[str, Any] = {"model": model or path.stem, "objective": "official", "grad_clip": 0.0}
    settings |= {"recolour": 0.0, "max_downscale": 1.0, "betas": (0.9, 0.999)}
    try:
        for entry, allowed in FIXED.items():
            used.add(entry)
            if entries.get(entry, allowed[0]) not in allowed:
                raise ValueError(f"{entry} is {entries[entry]!r}; only {allowed[0]!r} is supported")
        if batch_size is not None:
            entries["train.batch"] = batch_size
        for part in (_training, _data, _degradation):
            settings |= part(entries, used)
        files = {"autoencoder": "autoencoder.ckpt_path", "init_from": "model.ckpt_path"}
        for setting, entry in files.items():
            used.add(entry)
            if entries.get(entry) and Path(entries[entry]).is_file():
                settings[setting] = str(entries[entry])
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None
    ignored = {entry for entry in entries if entry in WITHOUT_EFFECT or entry.startswith("data.val.")} - used
    unknown = sorted(entries.keys() - used - ignored)
    if unknown:
        raise ValueError(f"{path}: unknown entries {', '.join(unknown)}; remove them if the training can do without")
    return OfficialTraining(spec, settings, (*replaced, *sorted(ignored)))


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, the names joined by dots. An empty one, or a section without content, is left out."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return {name: value for name, value in flat.items() if value is not None or "." in name}


def _training(entries: dict[str, Any], used: set[str]) -> dict[str, Any]:
    """Settings of the section `train`."""

    def first(value: Any) -> int:
        return int(value[0] if isinstance(value, list) else value)

    direct: dict[str, tuple[str, Callable[[Any], Any]]] = {
        "lr": ("lr", float),
        "warmup_iterations": ("warmup", int),
        "batch": ("batch_size", first),
        "num_workers": ("workers", lambda count: max(1, int(count))),
        "weight_decay": ("weight_decay", float),
        "ema_rate": ("ema_decay", float),
        "iterations": ("steps", int),
        "save_freq": ("save_every", int),
        "log_freq": ("log_every", first),
        "val_freq": ("val_every", int),
        "seed": ("seed", int),
        "compile.flag": ("compile", bool),
        "use_amp": ("precision", lambda flag: "bfloat16" if flag else "float32"),
    }
    settings: dict[str, Any] = {"warmup": 0}
    for name, (setting, convert) in direct.items():
        used.add(f"train.{name}")
        if (value := entries.get(f"train.{name}")) is not None:
            settings[setting] = _converted(f"train.{name}", value, convert)
    for name in ("lr", "iterations", "batch"):
        if entries.get(f"train.{name}") is None:
            raise ValueError(f"train.{name} is missing")
    if entries.get("train.microbatch"):
        settings["accumulate"] = _parts(
            settings["batch_size"], _converted("train.microbatch", entries["train.microbatch"], int)
        )
    used.update({"train.microbatch", "train.lr_schedule", "train.lr_min", "train.loss_coef"})
    schedule = entries.get("train.lr_schedule")
    if schedule not in (None, "cosin", "cosine"):
        raise ValueError(f"train.lr_schedule is {schedule!r}, expected nothing (constant) or cosin")
    least = _converted("train.lr_min", entries.get("train.lr_min") or 0.0, float)
    settings["min_lr"] = settings["lr"] if schedule is None else least
    weights = entries.get("train.loss_coef") or [1.0, 0.0]
    if not isinstance(weights, list) or len(weights) != 2:
        raise ValueError(f"train.loss_coef is {weights!r}, expected the weights of the squared error and of LPIPS")
    mse, lpips = (_converted("train.loss_coef", weight, float) for weight in weights)
    settings["objective_options"] = {"mse": mse, "lpips": lpips}
    return settings


def _converted(name: str, value: Any, convert: Callable[[Any], Any]) -> Any:
    """The value of an entry as a number, or by another conversion.

    Raises:
        ValueError: naming the entry, if it is impossible.
    """
    try:
        return convert(value)
    except (TypeError, ValueError, IndexError):
        raise ValueError(f"{name} is {value!r}, expected a number") from None


def _parts(batch_size: int, microbatch: int) -> int:
    """The least number of equal parts of at most `microbatch` patches."""
    if min(batch_size, microbatch) < 1:
        raise ValueError(f"train.batch {batch_size} and train.microbatch {microbatch} must be at least 1")
    fitting = (parts for parts in range(1, batch_size + 1) if batch_size <= parts * microbatch)
    return next(parts for parts in fitting if batch_size % parts == 0)


def _data(entries: dict[str, Any], used: set[str]) -> dict[str, Any]:
    """Photos of the section `data`: folders and list files that exist."""
    settings: dict[str, Any] = {}
    found: list[str] = []
    for name in ("dir_path", "dir_paths", "txt_file_path"):
        used.add(_PARAMS + name)
        value = entries.get(_PARAMS + name) or []
        found += [str(one) for one in (value if isinstance(value, list) else [value])]
    if found := [one for one in found if Path(one).exists()]:
        settings["data"] = tuple(found)
    for name in ("extra_dir_path", "dir_path"):
        folder = entries.get(f"data.val.params.{name}")
        if folder and Path(folder).is_dir():
            used.add(f"data.val.params.{name}")
            settings["val"] = str(folder)
            break
    return settings


def _degradation(entries: dict[str, Any], used: set[str]) -> dict[str, Any]:
    """The degradation that `data.train.type` names, with its settings, and the size of patches."""
    used.update({"data.train.type", _PARAMS + "gt_size", "degradation.gt_size"})
    kind = entries.get("data.train.type")
    if kind not in TYPES:
        raise ValueError(f"data.train.type is {kind!r}, expected one of {', '.join(TYPES)}")
    settings: dict[str, Any] = {"degradation": TYPES[kind]}
    if TYPES[kind] == "second_order":
        names = {field.name for field in fields(SecondOrder)} - {"gt_size"}
        options = _taken(entries, used, {f"degradation.{name}": name for name in names})
        options |= _taken(entries, used, {_PARAMS + name: name for name in names - {"sf"}})
        from_options(SecondOrder, options)  # refuses bad values before the training
    elif TYPES[kind] == "face":
        options = {}
        for place in ("degradation.", _PARAMS, _PARAMS + "degradation."):
            options |= _taken(entries, used, {place + field.name: field.name for field in fields(Face)})
        from_options(Face, options)
    elif TYPES[kind] == "masks":
        options = _masks(entries, used)
        from_options(Masks, options)
    else:
        options = {}
    settings["degradation_options"] = options
    size = entries.get("degradation.gt_size", entries.get(_PARAMS + "gt_size"))
    return settings | ({} if size is None else {"patch": _converted("gt_size", size, int)})


def _taken(entries: dict[str, Any], used: set[str], names: Mapping[str, str]) -> dict[str, Any]:
    """The entries among these, under their new names."""
    used.update(names)
    return {new: entries[name] for name, new in names.items() if entries.get(name) is not None}


def _masks(entries: dict[str, Any], used: set[str]) -> dict[str, Any]:
    """Settings of `Masks` from LaMa's names."""

    def take(name: str, default: Any) -> Any:
        entry = f"{_PARAMS}mask_kwargs.{name}"
        used.add(entry)
        value = entries.get(entry, default)
        _converted(entry, value, float)
        return value

    kinds = (("irregular", 1 / 3), ("box", 1 / 3), ("segm", 0.0), ("superres", 0.0))
    return {
        "weights": [float(take(f"{kind}_proba", share)) for kind, share in kinds],
        "strokes": [max(1, take("irregular_kwargs.min_times", 1)), take("irregular_kwargs.max_times", 5)],
        "stroke_length": [10.0, 10.0 + take("irregular_kwargs.max_len", 190)],
        "stroke_width": [5.0, 5.0 + take("irregular_kwargs.max_width", 95)],
        "boxes": [max(1, take("box_kwargs.min_times", 1)), take("box_kwargs.max_times", 4)],
        "box_side": [float(take("box_kwargs.bbox_min_size", 30)), float(take("box_kwargs.bbox_max_size", 150))],
        "margin": float(take("box_kwargs.margin", 10)),
        "grid_period": [take("superres_kwargs.min_step", 2), take("superres_kwargs.max_step", 4)],
    }
