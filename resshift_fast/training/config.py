"""The settings of a training run, each documented where it is declared."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from resshift_fast.training import choices
from resshift_fast.training.data import PatchPlan
from resshift_fast.training.degradations import Mixture
from resshift_fast.training.interfaces import PatchDegradation

LOSSES = ("l1", "mse", "charbonnier")
PRECISIONS = ("float32", "bfloat16")
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
        "save_every",
        "save_minutes",
        "init_from",
    )
)
# Settings that may be changed when a run is resumed, for instance after its loss has become infinite.
ADJUSTABLE_FIELDS = frozenset(("lr", "min_lr", "grad_clip", "precision"))

_AT_LEAST_1 = (
    *("steps", "batch_size", "workers", "max_downscale", "log_every", "val_every", "val_limit", "val_batch"),
    "save_every",
)
_NOT_NEGATIVE = ("seed", "warmup", "weight_decay", "grad_clip", "cache_mb", "save_minutes")


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
    model: str = "nano-x4"
    """Catalogue name of the model to train."""
    init_from: str | None = None
    """Weights to start from instead of random ones: a safetensors file or a last.pt (its averaged weights)."""
    autoencoder: str | None = None
    """Weights of the model's autoencoder; required for models that have one."""
    steps: int = 10_000
    """Optimizer steps of the whole run, at whose end the learning rate reaches its minimum."""
    batch_size: int = 8
    """Patches per step."""
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
    """l1, mse or charbonnier (√(e² + 10⁻⁶)) between the prediction and its target."""
    first_step_weight: float = 0.4
    """Probability that a patch trains the chain's first step, t = T − 1, which generates most of the detail; the other
    steps are equally likely."""
    rollout: float = 1.0
    """Probability, per batch, that x_t is built from the network's own estimate of x_0 instead of the true x_0. At low
    noise a network that is trained on true x_t only learns to copy x_0 from it, but at inference x_t contains its own
    estimate (exposure bias). Such a batch costs one more forward pass."""
    precision: str = "float32"
    """float32, or bfloat16 by autocast."""
    channels_last: bool = True
    """Keep activations and weights in channels-last memory format."""
    compile: bool = False
    """Compile the denoiser with torch.compile."""
    seed: int = 0
    """Seed of weights, patches, steps and noise."""
    device: str = "cpu"
    """Device to train on."""
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
    save_every: int = 1000
    """Steps between checkpoints."""
    save_minutes: float = 10.0
    """Longest time between checkpoints, in minutes."""
    objective: str = "rollout"
    """What is minimized, a name in `choices.OBJECTIVES`."""
    objective_options: dict[str, Any] = field(default_factory=dict)
    """Settings of the objective, plain values by name."""
    degradation: str = "mixture"
    """How low-quality patches are made, a name in `choices.DEGRADATIONS`."""
    degradation_options: dict[str, Any] = field(default_factory=dict)
    """Settings of the degradation, plain values by name; those of "mixture" are in `mixture`."""
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
        choices.check(choices.OBJECTIVES, "objective", self.objective)
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
        multiple = spec.scale * getattr(spec, "pad_multiple", 1)
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

    def to_dict(self) -> dict:
        """The settings as plain values, for a checkpoint."""
        return asdict(self)

    def check_resumable(self, saved: dict) -> list[str]:
        """Compare with a checkpoint's settings; returns what was adjusted, one phrase for each setting.

        Raises:
            ValueError: naming the field, if one differs that changes the training and is not adjustable.
        """
        own = _flat(self.to_dict())
        # A checkpoint from before a setting existed was trained with its default.
        before = _flat(TrainConfig(data="", run="").to_dict()) | _flat(saved)
        adjusted = []
        for name, value in own.items():
            if name in FREE_FIELDS or before.get(name) == value:
                continue
            if name not in ADJUSTABLE_FIELDS:
                raise ValueError(
                    f"cannot resume {self.run}: {name} was {before.get(name)} and is now {value}; "
                    "give the old value, or start in another run folder"
                )
            adjusted.append(f"{name} was {before[name]} and is now {value}")
        return adjusted


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested settings to names such as mixture.clean."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
