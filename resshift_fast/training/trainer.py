"""Training the denoisers of residual-shift models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from resshift_fast.diffusion import coefficients as columns
from resshift_fast.diffusion.schedule import schedule_text
from resshift_fast.training import choices, networks, origins, validation
from resshift_fast.training.config import TrainConfig
from resshift_fast.training.distributed import Processes
from resshift_fast.training.interfaces import Data, Measuring, Parts
from resshift_fast.training.loop import Training
from resshift_fast.training.metrics import Metric
from resshift_fast.training.metrics import from_config as metrics_from_config
from resshift_fast.training.validation import Pair, Validation

if TYPE_CHECKING:
    from resshift_fast.models.interfaces import FirstStage

__all__ = ["TrainConfig", "Trainer"]


class Trainer(Training):
    """Trains the denoiser of a model.

    Args:
        config: the settings.
        spec: the model, an entry of the catalogue or another object with the attributes of `models.interfaces.Model`;
            None looks config.model up.
        denoiser, first_stage: modules to use instead of new ones, as `models.interfaces` has them.
        data: where batches come from instead of the photos of config.data, which then only names it.
        pairs: for the validation, instead of the photos of config.val.
        metrics: further ones for the validation, by the names that they have in the log.

    Raises:
        ValueError: for a model or settings that cannot be trained, or weights that do not fit.
        OSError: if a file cannot be read or the run folder cannot be created.
    """

    def __init__(
        self,
        config: TrainConfig,
        spec: Any = None,
        *,
        denoiser: nn.Module | None = None,
        first_stage: nn.Module | None = None,
        data: Data | None = None,
        pairs: Sequence[Pair] | None = None,
        metrics: Mapping[str, Metric] | None = None,
    ):
        processes = Processes(config.device)
        torch.manual_seed(config.seed)
        if spec is None:
            from resshift_fast.models import catalog

            spec = catalog.get(config.model)
        if config.objective in choices.PREPARATIONS:
            config, spec = choices.chosen(choices.PREPARATIONS, "objective", config.objective)(config, spec)
        if denoiser is None or first_stage is None:
            from resshift_fast.models import catalog

            denoiser = denoiser or catalog.build_denoiser(spec)
            first_stage = first_stage or networks.build_first_stage(config, spec)
        if getattr(spec, "condition", "image") != "image":
            raise ValueError(
                f"{spec.name} is not trained here: it is given the {spec.condition} of the low-quality image; "
                "--objective distill trains one-step students of other models"
            )
        self.spec, self.schedule, self.denoiser = spec, spec.schedule, denoiser
        super().__init__(
            config.for_model(spec),
            processes,
            denoiser,
            name=getattr(spec, "name", config.model),
            scale=spec.scale,
            timesteps=len(self.schedule.timesteps),
        )
        self.data = data
        self.first_stage = cast("FirstStage", first_stage.to(self.device).eval().requires_grad_(False))
        self.table = self.schedule.table(self.device)
        self.timesteps = torch.as_tensor(self.schedule.timesteps, dtype=torch.int64, device=self.device)
        self._pairs, self._metrics = pairs, metrics or {}
        self.metadata["schedule"] = schedule_text(self.schedule)
        self.described = origins.described(spec, ("schedule", "prediction_type", "scale", "clamp_x0", "denoiser"))
        if any(True for _ in first_stage.parameters()):
            self.frozen["autoencoder"] = first_stage
        config = self.config
        parts = Parts(spec, self.first_stage, self.table, self._predict, self.autocast, self.device, self._denoise)
        self.use(
            self.called_network(denoiser),
            choices.chosen(choices.OBJECTIVES, "objective", config.objective)(config, parts),
            choices.chosen(choices.DEGRADATIONS, "degradation", config.degradation)(config, spec),
        )

    def _predict(self, x_t: Tensor, t: Tensor, low: Tensor, mask: Tensor | None, *noise: Tensor) -> Tensor:
        scaled = x_t * self.table[t, columns.INPUT_SCALE][:, None, None, None]
        return self._denoise(scaled, self.timesteps[t], low, mask, *noise)

    def _denoise(self, x: Tensor, timesteps: Tensor, low: Tensor, mask: Tensor | None, *noise: Tensor) -> Tensor:
        if self.config.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        with self.autocast():
            prediction: Tensor = self._called(x, timesteps, low, mask, *noise)
        return prediction

    def restore(self, low: Tensor, mask: Tensor | None = None) -> Tensor:
        """Run the whole chain with the current weights and seed 0; arguments and result as in `networks.restore`."""
        mask = None if mask is None else mask.to(self.device)
        return networks.restore(self.spec, self.denoiser, self.first_stage, low.to(self.device), mask)

    def held_out(self) -> Validation | None:
        """The validation that the settings describe: given pairs, or photos with the low-quality versions made here."""
        config, scale = self.config, self.scale
        side = config.val_side or None
        if self._pairs is not None:
            pairs = list(self._pairs)
        elif config.val is None:
            return None
        elif config.val_lq is not None:
            pairs = validation.from_pairs(config.val, config.val_lq, scale, limit=config.val_limit, side=side)
        else:
            assert self.degradation is not None
            pairs = validation.from_photos(config.val, scale, self.degradation, limit=config.val_limit, side=side)
        own, best = (
            (self.objective.metrics, self.objective.best)
            if isinstance(self.objective, Measuring)
            else ({}, validation.BEST)
        )
        found = {**metrics_from_config(config, self.device), **own, **self._metrics}
        return Validation(pairs, scale, batch=config.val_batch, metrics=found, best=best)
