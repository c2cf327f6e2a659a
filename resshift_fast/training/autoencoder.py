"""Training the autoencoders that are the first stages of latent models."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from resshift_fast.models import catalog
from resshift_fast.models.autoencoder import AutoencoderConfig, Reconstruction, VQAutoencoder
from resshift_fast.training import choices, origins, validation
from resshift_fast.training.config import TrainConfig
from resshift_fast.training.distributed import Processes
from resshift_fast.training.loop import Training
from resshift_fast.training.metrics import Metric
from resshift_fast.training.metrics import from_config as metrics_from_config
from resshift_fast.training.validation import Validation
from resshift_fast.training.vqgan import AutoencoderParts


class AutoencoderTrainer(Training):
    """Trains an autoencoder.

    Args:
        config: the settings; `model` is a name that `catalog.get_autoencoder` takes and `objective` one of
            `choices.AUTOENCODER_OBJECTIVES`. Those of the degradation, the timesteps and the rollout have no effect.
        sizes: of the autoencoder; None looks config.model up.
        autoencoder: module to use instead of a new one.
        metrics: further ones for the validation, by the names that they have in the log.

    Raises:
        ValueError: for an autoencoder or settings that cannot be trained, or weights that do not fit.
        OSError: if a file cannot be read or the run folder cannot be created.
    """

    weights_dtype = torch.float32  # entries of a large codebook lie close together

    def __init__(
        self,
        config: TrainConfig,
        sizes: AutoencoderConfig | None = None,
        *,
        autoencoder: VQAutoencoder | None = None,
        metrics: Mapping[str, Metric] | None = None,
    ):
        make = choices.chosen(choices.AUTOENCODER_OBJECTIVES, "objective", config.objective)
        processes = Processes(config.device)
        torch.manual_seed(config.seed)
        if autoencoder is None:
            autoencoder = VQAutoencoder(sizes or catalog.get_autoencoder(config.model))
            # Entries that lie far from the first latents would never be used.
            limit = 1 / autoencoder.config.codebook_size
            nn.init.uniform_(autoencoder.quantize.embedding.weight, -limit, limit)
        self.autoencoder = autoencoder
        super().__init__(
            config.for_multiple(autoencoder.factor), processes, autoencoder, name=config.model, scale=1, timesteps=0
        )
        self._metrics = metrics or {}
        self.described = origins.described(autoencoder, ("config",))
        parts = AutoencoderParts(
            autoencoder,
            self._reconstruct,
            self.device,
            self.autocast,
            self.optimization.scaler.get_scale,
            lambda tensor: processes.sum(tensor) / processes.count,
        )
        self.use(self.called_network(autoencoder), make(self.config, parts), None)

    def _reconstruct(self, image: Tensor) -> Reconstruction:
        if self.config.channels_last:
            image = image.contiguous(memory_format=torch.channels_last)
        with self.autocast():
            found: Reconstruction = self._called(image)
        return found

    @torch.no_grad()
    def restore(self, low: Tensor, mask: Tensor | None = None) -> Tensor:
        """Encode and decode images [B, 3, H, W] in [−1, 1]; H and W are multiples of the factor."""
        return self.autoencoder.decode(self.autoencoder.encode(low.to(self.device)))

    def held_out(self) -> Validation | None:
        """The validation that the settings describe: of reconstructed photos."""
        config = self.config
        if config.val is None:
            return None
        if config.val_lq is not None:
            raise ValueError("an autoencoder is validated on the photos themselves; leave val_lq out")
        side = config.val_side or None
        pairs = validation.originals(config.val, self.autoencoder.factor, limit=config.val_limit, side=side)
        found = {**metrics_from_config(config, self.device), **self._metrics}
        return Validation(pairs, 1, batch=config.val_batch, metrics=found, bicubic=False)
