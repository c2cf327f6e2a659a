"""ResShift models for programs that load theirs with spandrel: `install()`, then `spandrel.ModelLoader` knows them.

The weights of a model tell its sizes, but neither its number of steps nor its autoencoder, which is a file of its own:
`install` takes both where they are not those of the newest published model that the weights fit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from resshift_fast.apps.movable import Restorer
from resshift_fast.models import catalog, depth, loading
from resshift_fast.models.catalog import ModelSpec
from resshift_fast.weights import checkpoints

try:
    from spandrel import (
        MAIN_REGISTRY,
        Architecture,
        ArchRegistry,
        ArchSupport,
        ImageModelDescriptor,
        MaskedImageModelDescriptor,
        ModelTiling,
    )
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(f"{error.name} is not installed; pip install spandrel") from error

if TYPE_CHECKING:
    from resshift_fast.restoration.inputs import Path

ID = "ResShift"
_FIRST = {loading.FIRST_CONVOLUTION, "network.first.weight"}  # of which the denoisers have one
_PREFERRED = ("realsr-x4-v3", "inpaint-imagenet")  # of the models whose denoisers have equal shapes


class ResShift(Architecture[Restorer]):
    """The architecture, as spandrel registers it.

    Args:
        model: the model that the weights belong to; None takes the newest published one that they fit.
        autoencoder: its file; None takes the published one, which is downloaded when a model is loaded.
    """

    def __init__(self, model: str | None = None, autoencoder: Path | None = None):
        super().__init__(id=ID, name="ResShift", detect=lambda state: bool(fitting(state)))
        self._model, self._autoencoder = model, autoencoder

    def load(self, state_dict: dict[str, Any]) -> ImageModelDescriptor[Restorer] | MaskedImageModelDescriptor[Restorer]:
        """The model with these weights of its denoiser.

        Raises:
            ValueError: if they are those of another model than the one that was named.
            OSError: if the autoencoder cannot be read or downloaded.
        """
        specs = fitting(state_dict)
        if self._model is not None:
            specs = [spec for spec in specs if spec.name == self._model]
            if not specs:
                names = ", ".join(spec.name for spec in fitting(state_dict)) or "no model"
                raise ValueError(f"these weights are not those of {self._model}; they fit {names}")
        spec = chosen(specs)
        denoiser = catalog.build_denoiser(spec)
        checkpoints.load_into(denoiser, state_dict, "the state dict")
        model = Restorer(spec, denoiser, loading.load_first_stage(spec, self._autoencoder))
        kind: Any = MaskedImageModelDescriptor if spec.needs_mask else ImageModelDescriptor
        return kind(
            model,
            model.state_dict(),
            architecture=self,
            purpose="Inpainting" if spec.needs_mask else "SR" if spec.scale > 1 else "FaceSR",
            tags=[spec.name, f"{spec.schedule.num_steps} steps"],
            supports_half=True,
            supports_bfloat16=True,
            scale=spec.scale,
            input_channels=3,
            output_channels=3,
            tiling=ModelTiling.INTERNAL,
            call_fn=lambda model, *images: model(*images),
        )


def install(
    model: str | None = None, autoencoder: Path | None = None, registry: ArchRegistry = MAIN_REGISTRY
) -> list[ArchSupport]:
    """Add ResShift to spandrel's architectures; a second call changes nothing.

    Args:
        model, autoencoder: as in `ResShift`. registry: spandrel's own, or another.

    Returns:
        What was added.

    Raises:
        ValueError: for an unknown model.

    Example:
        >>> install()  # doctest: +SKIP
        >>> spandrel.ModelLoader().load_from_file("nano-x4.safetensors")(image)  # doctest: +SKIP
    """
    if model is not None:
        catalog.get(model)
    return registry.add(ArchSupport.from_architecture(ResShift(model, autoencoder)), ignore_duplicates=True)


def fitting(state: Mapping[str, Any]) -> list[ModelSpec]:
    """The models of the catalogue whose denoiser has exactly these weights, by names and shapes."""
    if not _FIRST & state.keys():
        return []
    shapes = {name: tuple(x.shape) for name, x in state.items() if isinstance(x, Tensor)}
    specs = []
    for model in catalog.MODELS.values():
        specs.append(model)
        if not model.schedule.one_step:
            student = catalog.one_step(model)
            specs.append(replace(student, denoiser=depth.of_weights(catalog.unet_of(student), state)))
    return [spec for spec in specs if _shapes(spec).items() <= shapes.items()]


def chosen(specs: Sequence[ModelSpec]) -> ModelSpec:
    """Of several models with equal weights, the one that is taken if none is named."""
    return next((spec for spec in specs if spec.name in _PREFERRED), specs[0])


@cache
def _shapes(model: ModelSpec) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        denoiser = catalog.build_denoiser(model)
        return {name: tuple(parameter.shape) for name, parameter in denoiser.named_parameters()}
