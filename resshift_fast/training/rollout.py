"""The objective for models whose inference starts at y plus noise, with the chain's own estimates as inputs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from resshift_fast import ops
from resshift_fast.training.config import TrainConfig
from resshift_fast.training.interfaces import Batch, Draws, Loss, Parts
from resshift_fast.training.objective import target
from resshift_fast.training.pixels import upsample


def loss_between(
    prediction: Tensor, target: Tensor, kind: str, where: Tensor | None = None, *, floor: float = 1e-3
) -> Tensor:
    """Mean error of each sample of two tensors of one shape [B, ...], float32 [B].

    Args:
        prediction, target: of any floating-point dtype.
        kind: "l1", "mse", "charbonnier" (√(e² + 10⁻⁶)) or "psnr" (10·log₁₀(mse + floor), the loss of HINet,
            arXiv 2105.06086, which gives a slightly degraded image the weight of a heavily degraded one).
        where: bool, which elements the mean is over, expandable to their shape; None for all. Of none the mean is 0.
        floor: of "psnr". Images with a smaller mse weigh like that: else those without an error would outweigh others.
    """
    error = prediction.float() - target.float()
    if kind == "l1":
        error = error.abs()
    else:
        error = error.square() if kind in ("mse", "psnr") else (error.square() + 1e-6).sqrt()
    if where is None:
        mean = error.flatten(1).mean(1)
    else:
        kept = where.expand_as(error).flatten(1)
        mean = torch.where(kept, error.flatten(1), 0).sum(1) / kept.sum(1).clamp_min(1)
    return 10 * (mean + floor).log10() if kind == "psnr" else mean


@dataclass(frozen=True)
class Sample:
    """A training input of the chain and what the network makes of it.

    Attributes:
        t: int64 [B], rows of the schedule's table.
        noise: ε of x_t, [B, C, h, w].
        x_t: like it, not scaled.
        prediction: the network's, like it.
    """

    t: Tensor
    noise: Tensor
    x_t: Tensor
    prediction: Tensor


class Chain:
    """Draws inputs of the denoiser as it gets them at inference, where x_t is built from its own estimates of x_0.

    A one-step model always gets y plus noise, and its channels of noise.

    Args:
        config: `first_step_weight` and `rollout` are used.
        parts: of the training.

    Raises:
        ValueError: where rollout needs an x_0 that the model does not predict.
    """

    def __init__(self, config: TrainConfig, parts: Parts):
        kind = parts.spec.prediction_type
        if config.rollout and kind not in ("x0", "residual"):
            raise ValueError(f"rollout needs a model that predicts x0 or the residual, not {kind}; set rollout to 0")
        self.config, self.parts = config, parts
        self._last = len(parts.table) - 1
        self._noise_channels = getattr(getattr(parts.spec, "denoiser", None), "noise_channels", 0)

    def sample(self, batch: Batch, x0: Tensor, y: Tensor, draws: Draws) -> Sample:
        """Random steps and noise, and the prediction.

        Args:
            batch: the pictures.
            x0, y: latents of the high- and of the enlarged low-quality pictures, [B, C, h, w].
            draws: the random values.
        """
        t = self.draw_t(draws).to(self.parts.device)
        noise = draws.normal(*y.shape[1:])
        source = x0
        if self._last and draws.of_batch() < self.config.rollout:
            source = self._own_x0(y, batch, draws.normal(*y.shape[1:]))
        x_t = self.x_t(source, y, t, noise)
        channels = self._noise_channels
        z = (draws.normal(channels, *y.shape[2:]),) if channels else ()
        return Sample(t, noise, x_t, self.parts.predict(x_t, t, batch.low, batch.mask, *z))

    def draw_t(self, draws: Draws) -> Tensor:
        """Timesteps, int64 [B]; T − 1 with the probability `first_step_weight`."""
        if self._last == 0:
            return torch.zeros(len(draws), dtype=torch.int64)
        first = draws.uniform() < self.config.first_step_weight
        return torch.where(first, self._last, draws.integers(0, self._last))

    def x_t(self, x0: Tensor, y: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """The denoiser's input before scaling: q(x_t | x_0), but at T − 1 the start of the inference.

        At inference the chain starts at y plus noise, not at q(x_T | x_0), which still depends on x_0.
        """
        start = (t == self._last)[:, None, None, None]
        return ops.q_sample(torch.where(start, y, x0), y, t, self.parts.table, noise)

    @torch.no_grad()
    def _own_x0(self, y: Tensor, batch: Batch, noise: Tensor) -> Tensor:
        t = torch.full((len(y),), self._last, dtype=torch.int64, device=y.device)
        prediction = self.parts.predict(self.x_t(y, y, t, noise), t, batch.low, batch.mask).float()
        x0 = y - prediction if self.parts.spec.prediction_type == "residual" else prediction
        return x0.clamp(-1, 1) if self.parts.spec.clamp_x0 else x0


class Rollout:
    """Error of the prediction at a random timestep; x_t may be built from the network's own estimate of x_0.

    Args:
        config: `loss` and `loss_floor` are used, and what `Chain` uses.
        parts: of the training.

    Raises:
        ValueError: for an inpainting model, or as of `Chain`.
    """

    def __init__(self, config: TrainConfig, parts: Parts):
        if getattr(parts.spec, "needs_mask", False):
            raise ValueError(
                f"{config.model} is an inpainting model, which rollout doesn't train; use the objective perceptual, or "
                "official"
            )
        self.config, self.parts, self.chain = config, parts, Chain(config, parts)

    def __call__(self, batch: Batch, draws: Draws) -> Loss:
        parts = self.parts
        with torch.no_grad():
            x0 = parts.first_stage.encode(batch.high)
            y = parts.first_stage.encode(upsample(batch.low, parts.spec.scale))
        found = self.chain.sample(batch, x0, y, draws)
        row = parts.table[found.t].T[..., None, None, None]
        wanted = target(parts.spec.prediction_type, x0, y, found.noise, row)
        return Loss(loss_between(found.prediction, wanted, self.config.loss, floor=self.config.loss_floor), found.t)
