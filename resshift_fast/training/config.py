"""The settings of a training run, each documented where it is declared."""

from __future__ import annotations

import difflib
import math
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from resshift_fast.training import choices
from resshift_fast.training.data import PatchPlan
from resshift_fast.training.degradations import Mixture
from resshift_fast.training.interfaces import PatchDegradation

LOSSES = ("l1", "mse", "charbonnier", "psnr")
PRECISIONS = ("float32", "bfloat16", "float16")
LEAST_PATCH = 128  # pixels, unless another is given

# Settings that may differ between a checkpoint and the run that resumes it, because they do not change the training.
FREE_FIELDS = frozenset(
    (
        "data",
        "run",
        "val",
        "device",
        "compile",
        "workers",
        "cache_mb",
        "log_every",
        "val_every",
        "val_limit",
        "val_batch",
        "val_lq",
        "val_side",
        "val_lpips",
        "val_metrics",
        "tensorboard",
        "save_every",
        "save_minutes",
        "init_from",
        "override",
        "recompute",
        "taught.folder",
        "taught.batches",
    )
)
# Settings that name the network, with which an optimizer's state cannot be continued.
FIXED_FIELDS = frozenset(("model", "autoencoder"))
SHORT_NAMES = {"batch": "batch_size"}  # in overrides

_AT_LEAST_1 = (
    *(
        "steps",
        "batch_size",
        "accumulate",
        "workers",
        "max_downscale",
        "log_every",
        "val_every",
        "val_limit",
        "val_batch",
    ),
    "save_every",
)
_NOT_NEGATIVE = ("seed", "val_side", "warmup", "weight_decay", "grad_clip", "cache_mb", "save_minutes")


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a training run.

    Raises:
        ValueError: for a value outside its range.
    """

    data: str | tuple[str, ...]
    """Training photos: a folder or list file, or several; see `photos.list_photos`."""
    run: str
    """Folder for checkpoints, the log and validation sheets."""
    val: str | None = None
    """Validation photos: a folder or list file; without it, best.safetensors holds the last averaged weights."""
    val_lq: str | None = None
    """Low-quality versions of the validation photos, instead of those that are made."""
    model: str = "nano-x4"
    """Catalogue name of the model to train."""
    init_from: str | None = None
    """Weights to start from instead of random ones: any file that `restore` loads, a last.pt (its averages), or a
    catalogue name (its published weights)."""
    autoencoder: str | None = None
    """Weights of the model's autoencoder, if it has one; None: the published ones."""
    steps: int = 10_000
    """Optimizer steps of the whole run, at whose end the learning rate reaches its minimum."""
    batch_size: int = 8
    """Patches per step, of all processes together."""
    accumulate: int = 1
    """Parts of a process's patches whose gradients are computed one after the other, for less memory."""
    patch: int | None = None
    """Side of a high-quality patch in pixels, a multiple of what the model needs; None: the first such from 128 on."""
    lr: float = 6e-4
    """Peak learning rate."""
    min_lr: float = 1e-6
    """Learning rate at the last step."""
    warmup: int = 100
    """Steps of linear warm-up."""
    betas: tuple[float, float] = (0.9, 0.99)
    """AdamW's decay rates."""
    weight_decay: float = 0.0
    """AdamW's decoupled weight decay."""
    grad_clip: float = 1.0
    """Gradients are clipped to this norm; 0 disables clipping."""
    ema_decay: float = 0.999
    """Decay of the exponential moving average of the weights; at step n it is at most (1 + n) / (10 + n)."""
    loss: str = "l1"
    """l1, mse, charbonnier (√(e² + 10⁻⁶)) or psnr (in dB) between the prediction and its target."""
    loss_floor: float = 1e-3
    """Mean squared error of values in [−1, 1] that is added to that of an image before psnr takes its logarithm."""
    first_step_weight: float = 0.4
    """Probability that a patch trains the chain's first step, t = T − 1, which generates most of the detail; the other
    steps are equally likely."""
    rollout: float = 1.0
    """Probability, per batch, that x_t is built from the network's own estimate of x_0 instead of the true x_0. At low
    noise a network that is trained on true x_t only learns to copy x_0 from it, but at inference x_t contains its own
    estimate (exposure bias). Such a batch costs one more forward pass."""
    precision: str = "float32"
    """float32, or bfloat16 or float16 by autocast; with float16 the loss is scaled, and steps that overflow skipped."""
    channels_last: bool = True
    """Keep activations and weights in channels-last memory format."""
    compile: bool = False
    """Compile the denoiser with torch.compile."""
    recompute: bool = False
    """Compute activations again in the backward pass instead of keeping them: less memory, a third more time."""
    seed: int = 0
    """Seed of weights, patches, steps and noise."""
    device: str = "cpu"
    """Device to train on; with several processes "cuda" is a GPU for each."""
    workers: int = 1
    """Threads that prepare patches."""
    cache_mb: int = 500
    """Memory of each process for photos that may be needed again, in MB; 0 reads them every time."""
    max_downscale: float = 4.0
    """Largest factor by which a region of a photo is downscaled to a patch."""
    recolour: float = 0.3
    """Probability of permuted channels and a changed exposure."""
    log_every: int = 50
    """Steps between rows of the log."""
    val_every: int = 1000
    """Steps between validations."""
    val_limit: int = 16
    """Largest number of validation photos."""
    val_batch: int = 4
    """Photos that are validated at once."""
    val_side: int = 256
    """Side of the central squares of validation photos in pixels; 0 takes whole photos."""
    val_lpips: str | None = None
    """VGG16 weights in torchvision's format, with which LPIPS is measured too."""
    val_metrics: tuple[str, ...] = ()
    """Further metrics by their names in pyiqa, which must be installed."""
    tensorboard: bool = True
    """Also write the log for TensorBoard, where it is installed."""
    save_every: int = 1000
    """Steps between checkpoints."""
    save_minutes: float = 10.0
    """Longest time between checkpoints, in minutes."""
    objective: str = "rollout"
    """What is minimized, a name in `choices.OBJECTIVES` or, for an autoencoder, in `choices.AUTOENCODER_OBJECTIVES`."""
    objective_options: dict[str, Any] = field(default_factory=dict)
    """Settings of the objective, plain values by name."""
    degradation: str = "mixture"
    """How low-quality patches are made, a name in `choices.DEGRADATIONS`."""
    degradation_options: dict[str, Any] = field(default_factory=dict)
    """Settings of the degradation, plain values by name; those of "mixture" are in `mixture`."""
    taught: dict[str, Any] = field(default_factory=dict)
    """Settings of batches with a teacher's pictures by name, see `taught.Options`; empty: no teacher."""
    override: tuple[str, ...] = ()
    """Settings that may differ from those of the run that is resumed; see `overridden`."""
    mixture: Mixture = field(default_factory=Mixture)
    """Settings of the degradation "mixture"."""

    def __post_init__(self) -> None:
        for name, value in _flat(self.to_dict()).items():
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{name} must be a number, got {value}")
        for names, least in (_AT_LEAST_1, 1), (_NOT_NEGATIVE, 0):
            for name in names:
                if getattr(self, name) < least:
                    raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if not 0 < self.loss_floor < math.inf:
            raise ValueError(f"loss_floor must be above 0, got {self.loss_floor}")
        for name in ("first_step_weight", "rollout", "recolour"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} is a probability, expected 0 to 1, got {getattr(self, name)}")
        if not 0.0 <= self.ema_decay < 1.0:
            raise ValueError(f"ema_decay must be at least 0 and below 1, got {self.ema_decay}")
        if self.lr <= 0.0 or not 0.0 <= self.min_lr <= self.lr:
            raise ValueError(f"expected 0 ≤ min_lr ≤ lr and lr > 0, got min_lr {self.min_lr} and lr {self.lr}")
        for name, allowed in (("loss", LOSSES), ("precision", PRECISIONS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"unknown {name} {getattr(self, name)!r}; expected one of {', '.join(allowed)}")
        if self.val_lq is not None and self.val is None:
            raise ValueError("val_lq needs val, the high-quality photos to compare with")
        choices.check(choices.OBJECTIVES | choices.AUTOENCODER_OBJECTIVES, "objective", self.objective)
        choices.check(choices.DEGRADATIONS, "degradation", self.degradation)

    @property
    def sources(self) -> tuple[str, ...]:
        """`data` as a tuple."""
        return (self.data,) if isinstance(self.data, str) else tuple(self.data)

    def for_model(self, spec: Any) -> TrainConfig:
        """The same with `patch` chosen for a model.

        Raises:
            ValueError: if it was given and the model cannot be trained with it.
        """
        return self.for_multiple(spec.scale * getattr(spec, "pad_multiple", 1))

    def for_multiple(self, multiple: int) -> TrainConfig:
        """The same with `patch` chosen for a network that takes multiples of so many pixels; raises as `for_model`."""
        if self.patch is None:
            return replace(self, patch=-(-LEAST_PATCH // multiple) * multiple)
        if self.patch < 1 or self.patch % multiple:
            raise ValueError(
                f"patch must be a multiple of {multiple} for this model, got {self.patch}; "
                f"give {max(1, round(self.patch / multiple)) * multiple}, for instance"
            )
        return self

    def plan(self, scale: int, degradation: PatchDegradation | None) -> PatchPlan:
        """The patches for a model with this scale; `patch` must be known."""
        assert self.patch is not None
        return PatchPlan(
            patch=self.patch,
            scale=scale,
            max_downscale=self.max_downscale,
            recolour=self.recolour,
            degradation=degradation,
        )

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain values, for a checkpoint."""
        return asdict(self)

    def overridden(self, text: str) -> TrainConfig:
        """The same with other values, with which a run may be resumed.

        Args:
            text: such as "lr=1e-4,steps=20000,batch=16,precision=float32". `min_lr` follows a lower `lr`.

        Raises:
            ValueError: for a name that is no such setting, or a value outside its range.
        """
        changes: dict[str, Any] = {}
        for part in filter(None, (part.strip() for part in text.split(","))):
            name, equals, value = (piece.strip() for piece in part.partition("="))
            name = SHORT_NAMES.get(name, name)
            if not equals:
                raise ValueError(f"override {part!r} has no value; write {part}=VALUE")
            changes[name] = _value(name, value)
        if "lr" in changes and "min_lr" not in changes and changes["lr"] < self.min_lr:
            changes["min_lr"] = changes["lr"]
        return replace(self, **changes, override=(*self.override, *changes))

    def check_resumable(self, saved: dict[str, Any]) -> list[str]:
        """Compare with a checkpoint's settings; returns what was overridden, one phrase for each setting.

        Raises:
            ValueError: naming the field, if one differs that changes the training and is not in `override`.
        """
        own = _flat(self.to_dict())
        # A checkpoint from before a setting existed was trained with its default.
        before = _flat(TrainConfig(data="", run="").to_dict()) | _flat(saved)
        changed = []
        options = {name: None for name in before if "." in name}  # those that are not set any more
        for name, value in (options | own).items():
            if name in FREE_FIELDS or before.get(name) == value:
                continue
            if name not in self.override:
                way = (
                    f"give --override {name}={value} to change it, or the old value"
                    if name in overridable()
                    else ("give the old value")
                )
                raise ValueError(
                    f"cannot resume {self.run}: {name} was {before.get(name)} and is now {value}; "
                    f"{way}, or start in another run folder"
                )
            changed.append(f"{name} was {before.get(name)} and is now {value}")
        return changed


def overridable() -> dict[str, type]:
    """The settings that `TrainConfig.overridden` takes, with the types of their values."""
    types = {"int": int, "int | None": int, "float": float, "str": str, "bool": bool}
    return {
        one.name: types[str(one.type)]
        for one in fields(TrainConfig)
        if one.type in types and one.name not in FREE_FIELDS | FIXED_FIELDS
    }


def _value(name: str, text: str) -> Any:
    known = overridable()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ValueError(f"{name} cannot be overridden; {hint}settings: {', '.join(known)}")
    if known[name] is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError(f"override {name}={text}: expected true or false")
        return text.lower() == "true"
    try:
        return known[name](text)
    except ValueError:
        kind = "an integer" if known[name] is int else "a number"
        raise ValueError(f"override {name}={text}: expected {kind}") from None


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested settings to names such as mixture.clean."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
