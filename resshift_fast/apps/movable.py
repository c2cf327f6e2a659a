"""A restoration as a torch module that its owner moves and casts, as other projects do with models that they load."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from resshift_fast.pipeline import Pipeline

if TYPE_CHECKING:
    from resshift_fast.models.autoencoder import SpaceToDepth, VQAutoencoder
    from resshift_fast.models.catalog import ModelSpec, Network


class Restorer(nn.Module):
    """The networks of a model, with a pipeline wherever they are.

    Args:
        spec, denoiser, first_stage: as in `Pipeline`.

    Attributes:
        spec, denoiser, first_stage: as given.
    """

    def __init__(self, spec: ModelSpec, denoiser: Network, first_stage: VQAutoencoder | SpaceToDepth):
        super().__init__()
        self.spec = spec
        self.denoiser, self.first_stage = denoiser, first_stage
        self._pipeline: Pipeline | None = None

    def pipeline(self) -> Pipeline:
        """A pipeline on the device and in the dtype that the parameters have now."""
        parameter = next(self.denoiser.parameters())
        found = self._pipeline
        if found is None or (found.device, found.dtype) != (parameter.device, parameter.dtype):
            found = Pipeline(self.spec, self.denoiser, self.first_stage, parameter.device, parameter.dtype)
            self._pipeline = found
        return found

    def forward(self, image: Tensor, mask: Tensor | None = None, **options: Any) -> Tensor:
        """Restore images of any size, in tiles.

        Args:
            image: [B, 3, H, W]; values beyond [0, 1] are clamped.
            mask: [B, 1, H, W], at least 0.5 where to fill in, for inpainting models.
            options: as in `Pipeline.__call__`.

        Returns:
            [B, 3, H·scale, W·scale] in [0, 1], in the dtype and on the device of `image`.
        """
        arguments: dict[str, Any] = {"progress": False} | options
        with torch.no_grad():
            restored: Tensor = self.pipeline()(image.clamp(0, 1), mask, **arguments)
        return restored
