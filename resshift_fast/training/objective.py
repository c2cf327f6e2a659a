r"""The objective of the published models (arXiv 2403.07319, section 3.3): squared error in the latent, and LPIPS.

.. math::
    L = E_t\big[\, a\,\mathrm{mean}\,(p - \mathrm{target})^2 + c\,\mathrm{LPIPS}(D(\hat x_0), \mathrm{image})\,\big]

p is the denoiser's prediction from x_t, drawn from q(x_t | x_0, y) at a uniform step t, also at the last one; D is the
frozen decoder. At inference the chain starts at y plus noise, which at the last step is q(x_T | x_0) but for
1 − η_T = 2 % of x_0 − y.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from resshift_fast import ops
from resshift_fast.diffusion import coefficients as columns
from resshift_fast.ops.residual_shift import x0_from_prediction
from resshift_fast.training.degradations.drawing import from_options
from resshift_fast.training.interfaces import Batch, Draws, Loss, Parts
from resshift_fast.training.pixels import upsample

if TYPE_CHECKING:
    from resshift_fast.models.interfaces import FirstStage
    from resshift_fast.training.config import TrainConfig

# Weights of LPIPS with which the published models were trained; the squared error has weight 1.
LPIPS_WEIGHTS = {
    "realsr-x4-v1": 0.0,
    "realsr-x4-v2": 0.0,
    "realsr-x4-v3": 1.0,
    "realsr-x2": 1.0,
    "bicsr-x4": 1.0,
    "inpaint-imagenet": 10.0,
    "inpaint-face": 10.0,
    "faceir": 10.0,
}


@dataclass(frozen=True)
class Options:
    """Settings of the objective."""

    mse: float = 1.0
    """Weight of the squared error."""
    lpips: float | None = None
    """Weight of LPIPS; None takes the one of the published model of this name, 0 for others."""
    vgg: str | None = None
    """Weights of torchvision's VGG16 for LPIPS; None downloads them (553 MB)."""
    lpips_weights: str | None = None
    """Linear weights of LPIPS, or a wheel of the lpips package; None takes those of the installed package."""
    quantize: bool = False
    """Quantize x̂_0 before it is decoded for LPIPS; the gradient passes the quantization unchanged."""


class Official:
    """Squared error of the prediction plus LPIPS of the decoded x̂_0.

    Args:
        parts: of the training; the first stage is frozen here.
        mse, lpips: weights a and c of the two terms.
        perceptual: the LPIPS module, on the device; needed if `lpips` is not 0.
        quantize: as in `Options`.

    Raises:
        ValueError: for a weight that is negative, both being 0, or a missing `perceptual`.

    Attributes:
        frozen: networks that are not trained, by name.
    """

    def __init__(
        self,
        parts: Parts,
        *,
        mse: float = 1.0,
        lpips: float = 0.0,
        perceptual: nn.Module | None = None,
        quantize: bool = False,
    ):
        if mse < 0 or lpips < 0 or mse + lpips == 0:
            raise ValueError(f"expected weights of the loss ≥ 0, not both 0, got mse {mse} and lpips {lpips}")
        if lpips and perceptual is None:
            raise ValueError(f"lpips has weight {lpips}, but no LPIPS module was given; pass one or set lpips to 0")
        self.parts = parts
        if isinstance(parts.first_stage, nn.Module):
            parts.first_stage.requires_grad_(False)
        self.mse, self.lpips, self.perceptual, self.quantize = mse, lpips, perceptual, quantize
        self.frozen = {"LPIPS": perceptual} if lpips else {}

    def __call__(self, batch: Batch, draws: Draws) -> Loss:
        """The loss of a batch for random steps and noise."""
        parts = self.parts
        with torch.no_grad():
            x0 = parts.first_stage.encode(batch.high)
            y = parts.first_stage.encode(upsample(batch.low, parts.spec.scale))
        t = draws.integers(0, len(parts.table))
        return Loss(self.by_sample(batch, x0, y, t, draws.normal(*x0.shape[1:])), t)

    def by_sample(self, batch: Batch, x0: Tensor, y: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """The loss for given steps and noise, [B], at least float32.

        Args:
            batch: the pictures.
            x0, y: latents of the high- and of the enlarged low-quality pictures, [B, C, h, w].
            t: int64 [B], rows of the schedule's table.
            noise: ε, like x0.
        """
        parts, kind = self.parts, self.parts.spec.prediction_type
        x_t = ops.q_sample(x0, y, t, parts.table, noise)
        prediction = parts.predict(x_t, t, batch.low, batch.mask).to(x0.dtype)
        row = parts.table[t].T[..., None, None, None]
        total = self.mse * (prediction - target(kind, x0, y, noise, row)).square().mean((1, 2, 3))
        if self.lpips:
            assert self.perceptual is not None
            estimate = x0_from_prediction(x_t, prediction, y, row, kind)
            with parts.autocast():
                pixels = decode(parts.first_stage, estimate, quantize=self.quantize)
                total = total + self.lpips * self.perceptual(pixels, batch.high)
        return total


def decode(first_stage: FirstStage, latent: Tensor, *, quantize: bool = False) -> Tensor:
    """Pixels [B, 3, H, W] of a latent, for a loss; the gradient passes a quantization unchanged."""
    from resshift_fast.models.autoencoder import VQAutoencoder

    if not isinstance(first_stage, VQAutoencoder):
        return first_stage.decode(latent)
    if quantize:
        quantized, _ = ops.vector_quantize(latent.detach(), first_stage.quantize.embedding.weight)
        latent = latent + (quantized - latent).detach()
    return first_stage.decode(latent, quantize=False)


def target(prediction_type: str, x0: Tensor, y: Tensor, noise: Tensor, row: Tensor) -> Tensor:
    """What the denoiser predicts, [B, C, h, w].

    Args:
        prediction_type: one of `coefficients.PREDICTION_TYPES`.
        x0, y, noise: [B, C, h, w].
        row: coefficients of each picture's step, [8, B, 1, 1, 1].
    """
    if prediction_type == "x0":
        return x0
    if prediction_type == "residual":
        return y - x0
    return noise if prediction_type == "epsilon" else noise * row[columns.KAPPA_SQRT_ETA]


def from_config(config: TrainConfig, parts: Parts) -> Official:
    """The objective "official" of a configuration.

    Raises:
        ValueError: for an unknown setting, weights of the loss that are not possible, or bad weights of LPIPS.
        OSError: if the weights of LPIPS are missing.
    """
    options = from_options(Options, config.objective_options)
    lpips = LPIPS_WEIGHTS.get(config.model, 0.0) if options.lpips is None else options.lpips
    perceptual = None
    if lpips > 0:
        from resshift_fast.training.lpips import LPIPS

        perceptual = LPIPS.from_files(options.vgg, options.lpips_weights).to(parts.device)
    return Official(parts, mse=options.mse, lpips=lpips, perceptual=perceptual, quantize=options.quantize)
