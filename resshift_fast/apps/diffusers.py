"""ResShift as a pipeline of diffusers, which saves a model to a folder and loads it from there.

from resshift_fast.apps.diffusers import ResShiftPipeline

pipe = ResShiftPipeline.from_model("realsr-x4-v3").to("cuda")
pipe.save_pretrained("folder")
images = ResShiftPipeline.from_pretrained("folder")(image).images
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from resshift_fast import images
from resshift_fast.apps.movable import Restorer
from resshift_fast.diffusion.schedule import Schedule
from resshift_fast.images.sources import sources_of
from resshift_fast.models import catalog, loading
from resshift_fast.models.catalog import ModelSpec, WeightFile
from resshift_fast.models.sizes import (
    AutoencoderConfig,
    InpaintUNetConfig,
    RRDBConfig,
    SpaceToDepthConfig,
    SwinUNetConfig,
)

try:
    from diffusers import ConfigMixin, DiffusionPipeline, ImagePipelineOutput, ModelMixin
    from diffusers.configuration_utils import register_to_config
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(f"{error.name} is not installed; pip install diffusers") from error

if TYPE_CHECKING:
    from resshift_fast.restoration.inputs import Path

OUTPUT_TYPES = ("pil", "np", "pt")


class ResShiftModel(ModelMixin, ConfigMixin):
    """Both networks of a model.

    Args:
        spec: the model's entry in the catalogue as plain data, as `to_data` gives it.
    """

    @register_to_config
    def __init__(self, spec: dict[str, Any]):
        super().__init__()
        model = from_data(spec)
        self.restorer = Restorer(model, catalog.build_denoiser(model), catalog.build_first_stage(model))

    def forward(self, image: torch.Tensor, mask: torch.Tensor | None = None, **options: Any) -> torch.Tensor:
        """As `Restorer.forward`."""
        restored: torch.Tensor = self.restorer(image, mask, **options)
        return restored


class ResShiftPipeline(DiffusionPipeline):
    """Restores images with a `ResShiftModel`.

    Args:
        model: the networks; their device and dtype are those of the restoration.
    """

    def __init__(self, model: ResShiftModel):
        super().__init__()
        self.register_modules(model=model)

    @classmethod
    def from_model(
        cls,
        name: str | None = None,
        *,
        weights: Path | None = None,
        autoencoder: Path | None = None,
        random_weights: bool = False,
    ) -> ResShiftPipeline:
        """The pipeline of a model of the catalogue, on the CPU in float32.

        Args and Raises as in `resshift_fast.Pipeline.from_pretrained`.
        """
        chosen = catalog.get(catalog.default_model(weights=weights) if name is None else name)
        spec, denoiser, first_stage = loading.build(
            chosen, weights=weights, autoencoder=autoencoder, random_weights=random_weights
        )
        model = ResShiftModel(to_data(spec))
        model.restorer.denoiser.load_state_dict(denoiser.state_dict())
        model.restorer.first_stage.load_state_dict(first_stage.state_dict())
        return cls(model.eval())

    def __call__(
        self,
        image: Any,
        mask_image: Any = None,
        *,
        generator: torch.Generator | None = None,
        seed: int | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        **options: Any,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Restore an image or a list of images.

        Args:
            image: a PIL image, path, array or tensor as in `resshift_fast.Pipeline.__call__`, or a list of these.
            mask_image: as `mask` there, for inpainting models.
            generator: draws the seed; not with `seed`.
            seed: of the noise, in [0, 2⁶³). Default: 0.
            output_type: "pil" for a list of PIL images, "np" for an array [B, H, W, C] and "pt" for a tensor
                [B, C, H, W], float32 in [0, 1]; for these two the images have one size.
            return_dict: return an `ImagePipelineOutput` with `images`, not a tuple.
            options: tile, overlap, batch_size, noise, layout and progress as there.

        Raises:
            ValueError, TypeError: for an argument that does not fit.
        """
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type is {output_type!r}, expected one of {', '.join(OUTPUT_TYPES)}")
        if generator is not None and seed is not None:
            raise ValueError("give a seed or a generator, not both")
        if generator is not None:
            seed = int(torch.randint(2**63 - 1, (), generator=generator, device=generator.device))
        restored = self.model.restorer.pipeline()(image, mask_image, seed=seed or 0, **options)
        found = _converted(restored, output_type, options.get("layout"))
        return ImagePipelineOutput(images=found) if return_dict else (found,)


def _converted(restored: Any, output_type: str, layout: str | None) -> Any:
    """Results of `Pipeline.__call__` as the output type wants them."""
    listed = list(restored) if isinstance(restored, list | tuple) else [restored]
    if output_type == "pil" and all(isinstance(one, Image.Image) for one in listed):
        return listed
    pixels = []
    for source in sources_of(listed, layout)[0]:
        source.begin(1)
        pixels.append(source.crop(np.arange(source.height), np.arange(source.width)) / 2 + 0.5)
    if output_type == "pil":
        return [images.to_pil(images.Photo(images.from_float(one.permute(1, 2, 0).numpy()))) for one in pixels]
    if len({one.shape for one in pixels}) > 1:
        raise ValueError(f"the images have several sizes, which output_type={output_type!r} cannot hold; use 'pil'")
    batch = torch.stack(pixels)
    return batch if output_type == "pt" else batch.permute(0, 2, 3, 1).numpy()


def to_data(spec: ModelSpec) -> dict[str, Any]:
    """A model's entry as dicts, lists and plain values, for JSON."""
    return asdict(spec)


def from_data(data: dict[str, Any]) -> ModelSpec:
    """The inverse of `to_data`, also after JSON, which turns tuples into lists.

    Raises:
        ValueError, TypeError: if the data are not those of a model.
    """
    parts = dict(data)
    sizes = {key: _tuples(parts.pop(key)) for key in ("denoiser", "first_stage", "schedule")}
    for key in ("weights", "autoencoder_weights"):
        if parts.get(key) is not None:
            parts[key] = WeightFile(**parts[key])
    first_stage = AutoencoderConfig if "codebook_size" in sizes["first_stage"] else SpaceToDepthConfig
    denoiser = next(
        kind
        for key, kind in (("growth", RRDBConfig), ("widths", InpaintUNetConfig), ("image_size", SwinUNetConfig))
        if key in sizes["denoiser"]
    )
    return ModelSpec(
        denoiser=denoiser(**sizes["denoiser"]),
        first_stage=first_stage(**sizes["first_stage"]),
        schedule=Schedule(**sizes["schedule"]),
        **parts,
    )


def _tuples(sizes: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list | tuple) else value for key, value in sizes.items()}
