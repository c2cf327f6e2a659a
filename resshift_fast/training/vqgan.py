r"""The objective of VQGAN autoencoders (arXiv 2012.09841, section 3.1).

.. math::
    L = \underbrace{|x - \hat x| + c\,\mathrm{LPIPS}(x, \hat x)}_{L_\mathrm{rec}}
      + \lVert \mathrm{sg}[z] - e \rVert^2 + \beta\,\lVert \mathrm{sg}[e] - z \rVert^2
      + \lambda\,w\,L_\mathrm{GAN}, \qquad
    \lambda = \frac{\lVert\nabla L_\mathrm{rec}\rVert}{\lVert\nabla L_\mathrm{GAN}\rVert + \delta}

z is the latent, e its nearest codebook entries and x̂ the image decoded from e, whose gradient passes to z as it is
(straight-through); sg stops the gradient. The gradients of λ are those with respect to the weight of the decoder's last
convolution, for the whole batch. The discriminator is trained on the reconstructions of the same batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from resshift_fast.models.autoencoder import Reconstruction, VQAutoencoder
from resshift_fast.training import discriminator
from resshift_fast.training.degradations.drawing import from_options
from resshift_fast.training.discriminator import PatchDiscriminator
from resshift_fast.training.interfaces import Batch, Draws, Loss
from resshift_fast.training.means import Means
from resshift_fast.training.optimization import adamw

if TYPE_CHECKING:
    from resshift_fast.training.config import TrainConfig

DELTA = 1e-6
LARGEST_WEIGHT = 1e4  # of λ, where the adversarial gradient vanishes
SCALE_STEP = 256.0
MEANS = ("l1", "lpips", "codebook", "generator", "discriminator", "lambda")  # columns that are means of the samples


@dataclass(frozen=True)
class Options:
    """Settings of the objective."""

    lpips: float = 1.0
    """Weight c of LPIPS; 0 needs no weights of LPIPS."""
    vgg: str | None = None
    """Weights of torchvision's VGG16 for LPIPS; None downloads them (553 MB)."""
    lpips_weights: str | None = None
    """Linear weights of LPIPS, or a wheel of the lpips package; None takes those of the installed package."""
    beta: float = 0.25
    """Weight β of the commitment, which keeps the latent near its entries."""
    disc_weight: float = 1.0
    """Factor w of the adaptive weight of the adversarial loss; 0 trains without a discriminator."""
    disc_start: int = 10_000
    """Step from which the discriminator is trained and used."""
    disc_loss: str = "hinge"
    """Loss of the discriminator, hinge or vanilla."""
    disc_norm: str = "group"
    """Norm of the discriminator, group or batch."""
    disc_channels: int = 64
    """Channels of the discriminator's first layer."""
    disc_layers: int = 3
    """Layers of the discriminator that halve the image."""
    disc_lr: float | None = None
    """Peak learning rate of the discriminator; None takes the autoencoder's."""

    def __post_init__(self) -> None:
        for name in ("lpips", "beta", "disc_weight", "disc_start"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        if self.disc_lr is not None and not 0 < self.disc_lr < float("inf"):
            raise ValueError(f"disc_lr must be above 0, got {self.disc_lr}")
        if self.disc_loss not in discriminator.LOSSES:
            expected = ", ".join(discriminator.LOSSES)
            raise ValueError(f"unknown disc_loss {self.disc_loss!r}; expected one of {expected}")


@dataclass(frozen=True)
class AutoencoderParts:
    """What an objective for autoencoders works with.

    Attributes:
        autoencoder: that is trained, on the device.
        reconstruct: images [B, 3, H, W] in [−1, 1] to their reconstruction, in the configured precision.
        device: of the training.
        autocast: the context in which other networks run in the configured precision.
        loss_scale: factor with which the gradients of a loss do not vanish in float16; 1 in other precisions.
        average: the mean of a tensor over all processes.
    """

    autoencoder: VQAutoencoder
    reconstruct: Callable[[Tensor], Reconstruction]
    device: torch.device
    autocast: Callable[[], AbstractContextManager]
    loss_scale: Callable[[], float] = field(default=lambda: 1.0)
    average: Callable[[Tensor], Tensor] = field(default=lambda tensor: tensor)


class VQGAN:
    """L1, LPIPS, codebook and adversarial loss of a reconstruction, with the discriminator and its optimizer.

    Args:
        parts: of the training.
        options: settings.
        config: `lr`, `betas`, `weight_decay` and `patch` are used.
        perceptual: the LPIPS module, on the device; needed if `options.lpips` is not 0.

    Raises:
        ValueError: for a missing `perceptual`, or a discriminator that is not possible or too deep for the patches.

    Attributes:
        networks: the discriminator; `Auxiliary` and `Reporting` say what else this is.
        frozen: networks that are not trained, by name.
    """

    columns = (*MEANS, "perplexity", "usage")

    def __init__(
        self, parts: AutoencoderParts, options: Options, config: TrainConfig, perceptual: nn.Module | None = None
    ):
        if options.lpips and perceptual is None:
            raise ValueError(
                f"lpips has weight {options.lpips}, but no LPIPS module was given; pass one or set it to 0"
            )
        self.parts, self.options, self.perceptual = parts, options, perceptual
        self.frozen = {"LPIPS": perceptual} if options.lpips else {}
        found = PatchDiscriminator(options.disc_channels, options.disc_layers, options.disc_norm)
        if options.disc_weight:
            found.check_patch(config.patch)
        self.networks: nn.Module = found.to(parts.device)
        self.optimizer: torch.optim.Optimizer = adamw(self.networks.parameters(), config, options.disc_lr)
        entries = parts.autoencoder.config.codebook_size
        self._means = Means(MEANS, parts.device)
        self._codes = torch.zeros(entries, dtype=torch.int64, device=parts.device)  # how often each entry was used

    # ---- the autoencoder

    def __call__(self, batch: Batch, draws: Draws) -> Loss:
        """The loss of the reconstructions of a batch."""
        image, options = batch.high, self.options
        found = self.parts.reconstruct(image)
        l1 = (found.image.float() - image).abs().mean((1, 2, 3))
        self._means.count("l1", l1)
        reconstruction = l1
        if options.lpips:
            assert self.perceptual is not None
            with self.parts.autocast():
                distance = self.perceptual(found.image, image)
            self._means.count("lpips", distance)
            reconstruction = l1 + options.lpips * distance
        codebook = codebook_loss(found.latent, found.entries, options.beta)
        self._means.count("codebook", codebook)
        used = found.indices.flatten()
        self._codes.scatter_add_(0, used, torch.ones_like(used))
        total = reconstruction + codebook
        if self.auxiliary_steps(draws.step):
            with self.parts.autocast():
                generator = discriminator.generator_loss(self.networks(found.image))
            weight = self._adaptive_weight(reconstruction, generator)
            self._means.count("generator", generator)
            self._means.count("lambda", weight.expand(len(image)))
            total = total + options.disc_weight * weight * generator
        return Loss(total)

    def _adaptive_weight(self, reconstruction: Tensor, generator: Tensor) -> Tensor:
        last = self.parts.autoencoder.decoder.conv_out.weight
        return adaptive_weight(*(self._gradient(loss.mean(), last) for loss in (reconstruction, generator)))

    def _gradient(self, loss: Tensor, weight: Tensor) -> Tensor:
        """Gradient of the whole batch's loss at a weight, with the largest scale that does not overflow."""
        parts, scale = self.parts, self.parts.loss_scale()
        while True:
            (gradient,) = torch.autograd.grad(scale * loss, weight, retain_graph=True)
            gradient = parts.average(gradient.float()) / scale
            if scale <= 1 or bool(gradient.isfinite().all()):
                return gradient
            scale = max(1.0, scale / SCALE_STEP)

    # ---- the discriminator

    def auxiliary_steps(self, step: int) -> int:
        """1 from `disc_start` on."""
        return int(self.options.disc_weight > 0 and step >= self.options.disc_start)

    def auxiliary_loss(self, batch: Batch, draws: Draws) -> Tensor:
        """Loss of the discriminator on a batch and its reconstructions, float32 [B]."""
        with torch.no_grad():
            reconstruction = self.parts.reconstruct(batch.high).image
        with self.parts.autocast():
            real, fake = self.networks(batch.high), self.networks(reconstruction)
        loss = discriminator.discriminator_loss(real, fake, self.options.disc_loss)
        self._means.count("discriminator", loss)
        return loss

    # ---- the log

    def report(self, total: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Means since the last call, and the perplexity and the share of the codebook that was used."""
        found = self._means.report(total)
        found |= codebook_usage(total(self._codes).cpu())
        self._codes = torch.zeros_like(self._codes)
        return found


def codebook_loss(latent: Tensor, entries: Tensor, beta: float) -> Tensor:
    """Both terms of the codebook loss, their means over each sample's values, float32 [B].

    Args:
        latent: z, [B, C, h, w].
        entries: e, like it, with a gradient to the codebook.
        beta: weight of the commitment, the second term.
    """
    latent, entries = latent.float(), entries.float()
    moved = (latent.detach() - entries).square() + beta * (latent - entries.detach()).square()
    return moved.mean((1, 2, 3))


def adaptive_weight(reconstruction: Tensor, generator: Tensor) -> Tensor:
    """λ, a float32 scalar without gradient, from the gradients of both losses at one weight; at most 10⁴."""
    weight = reconstruction.norm() / (generator.norm() + DELTA)
    # Two infinite gradients, which are possible in float16, give NaN.
    return weight.nan_to_num(nan=0.0).clamp(0.0, LARGEST_WEIGHT).detach()


def codebook_usage(counts: Tensor) -> Mapping[str, float]:
    """The perplexity exp(−Σ p log p) of a codebook, 1 to its size, and the share of entries that was used, 0 to 1.

    Args:
        counts: how often each entry was used, [N].
    """
    share = counts.double() / counts.sum().clamp(min=1)
    entropy = -torch.special.xlogy(share, share).sum()
    return {"perplexity": float(entropy.exp()), "usage": float((counts > 0).double().mean())}


def from_config(config: TrainConfig, parts: AutoencoderParts) -> VQGAN:
    """The objective "vqgan" of a configuration.

    Raises:
        ValueError: for an unknown setting, a value that is not possible, or bad weights of LPIPS.
        OSError: if the weights of LPIPS are missing; the message names the options.
    """
    options = from_options(Options, config.objective_options)
    perceptual = None
    if options.lpips > 0:
        from resshift_fast.training.lpips import LPIPS

        try:
            perceptual = LPIPS.from_files(options.vgg, options.lpips_weights).to(parts.device)
        except OSError as error:
            raise OSError(f"{error}; --lpips 0 (lpips=0) trains without LPIPS") from error
    return VQGAN(parts, options, config, perceptual)
