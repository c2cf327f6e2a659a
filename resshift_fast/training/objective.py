r"""The objective of the published models (arXiv 2403.07319, section 3.3): squared error in the latent, and LPIPS.

.. math::
    L = E_t\big[\, a\,\mathrm{mean}\,(p - \mathrm{target})^2 + c\,\mathrm{LPIPS}(D(\hat x_0), \mathrm{image})\,\big]

p is the denoiser's prediction from x_t, drawn from q(x_t | x_0, y) at a uniform step t, also at the last one; D is the
frozen decoder. At inference the chain starts at y plus noise, which at the last step is q(x_T | x_0) but for
1 − η_T = 2 % of x_0 − y.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from resshift_fast import ops
from resshift_fast.diffusion import schedule as columns
from resshift_fast.ops.residual_shift import x0_from_prediction
from resshift_fast.training.pixels import upsample

OBJECTIVES = ("rollout", "official")

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


class Predict(Protocol):
    """A denoiser: from x_t, its step t and the low-quality image to the prediction."""

    def __call__(self, x_t: Tensor, t: Tensor, lq: Tensor, mask: Tensor | None = None, /) -> Tensor:
        """x_t float32 [B, C, h, w], not yet scaled; t int64 [B], rows of the schedule; lq [B, 3, H, W]; mask as ±1."""


class OfficialObjective:
    """Squared error of the prediction plus LPIPS of the decoded x̂_0.

    Args:
        spec: the model, with the attributes `schedule`, `prediction_type` and `scale`.
        first_stage: encodes and decodes; frozen.
        table: the schedule's, on the device.
        mse, lpips: weights a and c of the two terms.
        perceptual: the LPIPS module, on the device; needed if `lpips` is not 0.
        quantize: quantize x̂_0 before it is decoded for LPIPS; the gradient passes the quantization unchanged.
        autocast: makes the context in which images are decoded and compared.

    Raises:
        ValueError: for a weight that is negative, both being 0, or a missing `perceptual`.
    """

    def __init__(
        self,
        spec: Any,
        first_stage: nn.Module,
        table: Tensor,
        *,
        mse: float = 1.0,
        lpips: float = 0.0,
        perceptual: nn.Module | None = None,
        quantize: bool = False,
        autocast: Callable[[], AbstractContextManager] = nullcontext,
    ):
        if mse < 0 or lpips < 0 or mse + lpips == 0:
            raise ValueError(f"expected weights of the loss ≥ 0, not both 0, got mse {mse} and lpips {lpips}")
        if lpips and perceptual is None:
            raise ValueError(f"lpips has weight {lpips}, but no LPIPS module was given; pass one or set lpips to 0")
        self.spec, self.table = spec, table
        self.first_stage: Any = first_stage.requires_grad_(False)
        self.mse, self.lpips, self.perceptual, self.quantize = mse, lpips, perceptual, quantize
        self.autocast = autocast

    def __call__(
        self, predict: Predict, high: Tensor, lq: Tensor, generator: torch.Generator, mask: Tensor | None = None
    ) -> Tensor:
        """The loss of one batch for random steps and noise.

        Args:
            predict: the denoiser.
            high: float32 [B, 3, H, W] in [−1, 1].
            lq: float32 [B, 3, H/scale, W/scale] in [−1, 1]; for inpainting −1 where the mask is 1.
            generator: on the CPU, so that every device has the same steps and noise.
            mask: for inpainting, float32 [B, 1, H, W], 1 = unknown and −1 = known.

        Returns:
            A float32 scalar.
        """
        with torch.no_grad():
            x0 = self.first_stage.encode(high)
            y = self.first_stage.encode(upsample(lq, self.spec.scale))
        t = torch.randint(0, self.spec.schedule.num_steps, (len(x0),), generator=generator).to(high.device)
        noise = torch.randn(x0.shape, generator=generator).to(x0)
        return self.loss(predict, high, x0, y, lq, t, noise, mask)

    def loss(
        self,
        predict: Predict,
        high: Tensor,
        x0: Tensor,
        y: Tensor,
        lq: Tensor,
        t: Tensor,
        noise: Tensor,
        mask: Tensor | None = None,
    ) -> Tensor:
        """The loss for given steps and noise.

        Args:
            predict, high, lq, mask: as in `__call__`.
            x0, y: latents of the high- and of the enlarged low-quality image, [B, C, h, w].
            t: int64 [B], rows of the schedule.
            noise: ε, like x0.

        Returns:
            A scalar, at least float32.
        """
        x_t = ops.q_sample(x0, y, t, self.table, noise)
        prediction = predict(x_t, t, lq, mask).to(x0.dtype)
        row = self.table[t].T[..., None, None, None]
        kind = self.spec.prediction_type
        total = self.mse * (prediction - target(kind, x0, y, noise, row)).square().mean()
        if self.lpips:
            assert self.perceptual is not None
            estimate = x0_from_prediction(x_t, prediction, y, row, kind)
            with self.autocast():
                distance = self.perceptual(self._decode(estimate), high)
            total = total + self.lpips * distance.mean()
        return total

    def _decode(self, latent: Tensor) -> Tensor:
        if not hasattr(self.first_stage, "quantize"):
            return self.first_stage.decode(latent)
        if self.quantize:
            quantized, _ = ops.vector_quantize(latent.detach(), self.first_stage.quantize.embedding.weight)
            latent = latent + (quantized - latent).detach()
        return self.first_stage.decode(latent, quantize=False)


def target(prediction_type: str, x0: Tensor, y: Tensor, noise: Tensor, row: Tensor) -> Tensor:
    """What the denoiser predicts, [B, C, h, w].

    Args:
        prediction_type: one of `schedule.PREDICTION_TYPES`.
        x0, y, noise: [B, C, h, w].
        row: coefficients of each picture's step, [8, B, 1, 1, 1].
    """
    if prediction_type == "x0":
        return x0
    if prediction_type == "residual":
        return y - x0
    return noise if prediction_type == "epsilon" else noise * row[columns.KAPPA_SQRT_ETA]
