"""A model from input pixels to output pixels as one module of tensor operations.

It never synchronizes and depends on shapes, not on values, so that it can be compiled, counted, and captured in a CUDA
graph.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resshift_fast.core import nvtx
from resshift_fast.models.autoencoder import SpaceToDepth, VQAutoencoder
from resshift_fast.models.catalog import ModelSpec
from resshift_fast.models.derived import Preparable
from resshift_fast.restoration import enlarging
from resshift_fast.restoration.sampler import LatentChain

if TYPE_CHECKING:
    from resshift_fast.models.catalog import Network


class Restoration(nn.Module):
    """Bicubic upsampling, encoder, reverse chain and decoder.

    Args:
        spec: the model's entry in the catalogue.
        denoiser, first_stage: its networks, on one device; their dtypes may differ.

    Attributes:
        margin: extra input pixels that `forward` needs on every side of those that it restores.
    """

    filters: Tensor

    def __init__(self, spec: ModelSpec, denoiser: Network, first_stage: VQAutoencoder | SpaceToDepth):
        super().__init__()
        self.spec = spec
        self.margin = enlarging.MARGIN if spec.scale > 1 else 0
        self.register_buffer("filters", enlarging.phase_filters(spec.scale), persistent=False)
        self.first_stage = first_stage
        self.chain = LatentChain(denoiser, spec.schedule, prediction_type=spec.prediction_type, clamp_x0=spec.clamp_x0)
        self._preparable = [part for part in self.modules() if isinstance(part, Preparable)]

    def prepare(self, changed: bool = False) -> None:
        """Derive from the weights what every call would otherwise compute from them, unless it is current.

        Call it again before compiled or captured calls whose weights may have changed; eager calls notice that
        themselves.

        Args:
            changed: derive it even if no weight seems to have changed, because one was written to through `.data`.
        """
        for part in self._preparable:
            part.prepare(changed)

    def forward(
        self,
        image: Tensor,
        seed: Tensor,
        origin: Tensor | None = None,
        mask: Tensor | None = None,
        noise: Sequence[Tensor] | None = None,
        callback: Callable[[int, Tensor], None] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Restore a batch.

        Args:
            image: float32 [B, 3, H + 2·margin, W + 2·margin] in [−1, 1]; H and W are multiples of `spec.pad_multiple`.
            seed: int64 [B], each in [0, 2⁶³).
            origin: int64 [B, 2], each tile's (row, column) in the whole latent; None means (0, 0).
            mask: bool [B, 1, H, W], True where to fill in, for inpainting. Where `spec.filled`, these pixels are filled
                in smoothly already: the whole photo is, since a hole may be larger than a tile.
            noise: num_steps + 1 tensors like the latent, instead of the noise field; see `sampler.torch_noise`.
            callback: called with (t, x_{t−1}) after every step.

        Returns:
            (pixels float32 [B, 3, H·scale, W·scale], nominally in [−1, 1], not clamped; bool [], whether latents and
            pixels are all finite).
        """
        spec = self.spec
        mask_channel = None
        if mask is not None:
            if not spec.filled:
                image = torch.where(mask, -1.0, image)
            mask_channel = mask.float() * 2 - 1
        dtype = next((p.dtype for p in self.first_stage.parameters()), torch.float32)
        with nvtx.stage("encode"):
            y = self.encode(image, dtype)
            lq = self._condition(image, y) if spec.denoiser.cond_lq else None
        x0 = self.chain(y, lq, seed, mask_channel, origin, noise, callback)
        with nvtx.stage("decode"):
            pixels = self.decode(x0.to(dtype)).float()
        # A sum is finite only if all its terms are. The latent is checked too: quantization turns NaN into a finite
        # value. `isfinite` would launch four kernels.
        finite = (x0.sum() + pixels.sum()).abs() < math.inf
        return pixels, finite

    def encode(self, image: Tensor, dtype: torch.dtype) -> Tensor:
        """The latent, float32, of the enlarged image, with its margins; `dtype` is the first stage's."""
        stage, scale = self.first_stage, self.spec.scale
        if image.device.type == "cpu" and isinstance(stage, SpaceToDepth) and stage.factor == scale > 1:
            return enlarging.phases(image, self.filters)  # whose blocks need not be put together and taken apart
        return stage.encode((self._enlarged(image) if scale > 1 else image).to(dtype)).float()

    def _condition(self, image: Tensor, y: Tensor) -> Tensor:
        """What the denoiser is given of the image; see `ModelSpec`'s `condition`."""
        if self.spec.condition == "latent":
            return y
        if self.spec.condition == "enlarged":
            enlarged = self._enlarged(image) if self.spec.scale > 1 else image
            return F.interpolate(enlarged, size=y.shape[2:], mode="bicubic").clamp(-1, 1)
        margin = self.margin
        return image[:, :, margin:-margin, margin:-margin] if margin else image

    def decode(self, latent: Tensor) -> Tensor:
        """Pixels of a latent, of the first stage's dtype."""
        stage = self.first_stage
        if isinstance(stage, VQAutoencoder) and not self.spec.quantize:
            return stage.decode(latent, quantize=False)
        return stage.decode(latent)

    def _enlarged(self, image: Tensor) -> Tensor:
        if image.device.type == "cpu":
            return enlarging.enlarge(image, self.filters)
        border = self.margin * self.spec.scale
        enlarged = F.interpolate(image, scale_factor=self.spec.scale, mode="bicubic")
        return enlarged[:, :, border:-border, border:-border]
