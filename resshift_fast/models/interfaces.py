"""What the chain and the training ask of a model, so that other networks than those of `models` can be used.

A model is a schedule, a first stage that makes latents of images, and a denoiser of latents. Classes need not derive
from these: it is enough that they have the attributes and methods. The networks are also `torch.nn.Module`s.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from resshift_fast.diffusion.schedule import Schedule


class Model(Protocol):
    """What is known of a model besides its networks; an entry of the catalogue, for instance.

    Further attributes are optional: `name` (for the metadata of its weights), `pad_multiple` (the sides of images must
    be multiples of it; 1 without), and `needs_mask` (for inpainting).

    Attributes:
        schedule: η and the coefficients of every step.
        prediction_type: what the denoiser predicts; one of `coefficients.PREDICTION_TYPES`.
        scale: side of a restored image / side of the low-quality one, an integer from 1 on.
        clamp_x0: clamp the estimates of x_0 to [−1, 1].
    """

    @property
    def schedule(self) -> Schedule: ...

    @property
    def prediction_type(self) -> str: ...

    @property
    def scale(self) -> int: ...

    @property
    def clamp_x0(self) -> bool: ...


class Denoiser(Protocol):
    """Predicts from x_t."""

    def __call__(self, x: Tensor, timesteps: Tensor, lq: Tensor | None, mask: Tensor | None) -> Tensor:
        """The prediction, [B, C, h, w] in any floating-point dtype.

        Args:
            x: [B, C, h, w], x_t / √(κ² η_t + 1), in the dtype of the parameters.
            timesteps: int64 [B], the schedule's indices of training steps (`Schedule.timesteps`).
            lq: [B, channels, H, W] in [−1, 1], the low-quality image at its own size, or None.
            mask: [B, 1, H, W], 1 = unknown and −1 = known, for inpainting; else None.
        """
        ...


class FirstStage(Protocol):
    """Makes latents of images and images of latents."""

    def encode(self, image: Tensor) -> Tensor:
        """[B, channels, H, W] in [−1, 1] to the latent [B, C, h, w]."""
        ...

    def decode(self, latent: Tensor) -> Tensor:
        """[B, C, h, w] to the image [B, channels, H, W], nominally in [−1, 1]."""
        ...
