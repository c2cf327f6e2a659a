"""The settings of a training run, each documented where it is declared."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

from resshift_fast.training.data import PatchPlan
from resshift_fast.training.degradations import Mixture

LOSSES = ("l1", "mse", "charbonnier")
PRECISIONS = ("float32", "bfloat16")

# What may differ between a checkpoint and the run that resumes it: none of it changes what is learned.
FREE_FIELDS = frozenset(
    (
        "data",
        "run",
        "val",
        "device",
        "compile",
        "workers",
        "log_every",
        "val_every",
        "val_limit",
        "val_batch",
        "save_every",
        "save_minutes",
        "init_from",
    )
)


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a training run. Raises ValueError for a value outside its range."""

    data: str
    """Folder with the training photos."""
    run: str
    """Folder for checkpoints, the log and validation pictures."""
    val: str | None = None
    """Folder with held-out pictures; without it nothing is validated and best.safetensors is the last state."""
    model: str = "nano-x4"
    """Catalogue name of the model to train."""
    init_from: str | None = None
    """Weights to start from instead of random ones: a safetensors file or a last.pt (its averaged weights)."""
    autoencoder: str | None = None
    """Weights of the model's autoencoder; needed by the models that have one."""
    steps: int = 10_000
    """Optimizer steps of the whole run; the learning rate falls to its minimum there."""
    batch_size: int = 8
    """Patches a step."""
    patch: int = 128
    """Side of a high-quality patch in pixels."""
    lr: float = 6e-4
    """Highest learning rate."""
    min_lr: float = 1e-6
    """Learning rate at the last step."""
    warmup: int = 100
    """Steps of linear warm-up."""
    betas: tuple[float, float] = (0.9, 0.99)
    """AdamW's decay rates."""
    weight_decay: float = 0.0
    """AdamW's decoupled weight decay."""
    grad_clip: float = 1.0
    """Gradients are scaled down to this norm; 0 leaves them alone."""
    ema_decay: float = 0.999
    """Decay of the averaged weights; it ramps up as (1 + n) / (10 + n)."""
    loss: str = "l1"
    """l1, mse or charbonnier (√(e² + 10⁻⁶)) between the prediction and its target."""
    first_step_weight: float = 0.4
    """Probability of the chain's first step T − 1, which has to make the detail; the others share the rest."""
    rollout: float = 1.0
    """Probability, a batch, that x_t is built from the network's own estimate of x_0 instead of the true one. At low
    noise a network that only ever saw true x_t learns to copy x_0 out of it, but at inference x_t holds its own
    estimate (exposure bias). Costs one more forward pass for such a batch."""
    precision: str = "float32"
    """float32, or bfloat16 by autocast."""
    channels_last: bool = True
    """Keep activations and weights in channels-last memory order."""
    compile: bool = False
    """Compile the denoiser with torch.compile."""
    seed: int = 0
    """Seed of weights, patches, steps and noise."""
    device: str = "cpu"
    """Device to train on."""
    workers: int = 1
    """Threads that make patches ahead of time."""
    max_megapixels: float = 500.0
    """Bound on all photos together in memory; larger photos are downscaled until they fit."""
    max_downscale: float = 4.0
    """Patches come from regions up to this many times larger, averaged down."""
    recolour: float = 0.3
    """Probability of permuted channels and a changed exposure."""
    log_every: int = 50
    """Steps between lines of the log."""
    val_every: int = 1000
    """Steps between validations."""
    val_limit: int = 16
    """Held-out pictures that are used at most."""
    val_batch: int = 4
    """Pictures that are validated at once."""
    save_every: int = 1000
    """Steps between checkpoints."""
    save_minutes: float = 10.0
    """Minutes after which a checkpoint is written anyway."""
    mixture: Mixture = field(default_factory=Mixture)
    """How low-quality pictures are made."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "patch", "log_every", "val_every", "val_limit", "val_batch", "save_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
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

    def plan(self, scale: int) -> PatchPlan:
        """The patches of a model that enlarges `scale` times. Raises ValueError when patch isn't a multiple of it."""
        if self.patch % scale:
            raise ValueError(f"patch must be a multiple of the model's scale {scale}, got {self.patch}")
        return PatchPlan(
            patch=self.patch,
            scale=scale,
            max_downscale=self.max_downscale,
            recolour=self.recolour,
            mixture=self.mixture,
        )

    def to_dict(self) -> dict:
        """The settings as plain values, for a checkpoint."""
        return asdict(self)

    def check_resumable(self, saved: dict) -> None:
        """Raise ValueError, naming the field, when a checkpoint's settings would give another training than these."""
        own = _flat(self.to_dict())
        # A setting that the checkpoint doesn't know had the value that is the usual one now.
        before = _flat(TrainConfig(data="", run="").to_dict()) | _flat(saved)
        for name, value in own.items():
            if name not in FREE_FIELDS and before[name] != value:
                raise ValueError(
                    f"cannot resume {self.run}: {name} was {before[name]} and is now {value}; "
                    "give the old value, or start in another run folder"
                )


def _flat(settings: dict) -> dict:
    """The mixture's settings beside the others, as mixture.NAME."""
    mixture = {f"mixture.{name}": value for name, value in settings.get("mixture", {}).items()}
    return {name: value for name, value in settings.items() if name != "mixture"} | mixture
