"""ComfyUI's nodes: one loads a model, one restores images [B, H, W, 3] of floats in [0, 1].

Weights of one's own are offered from ComfyUI's folder `models/resshift`, so that a workflow can name no other file.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from torch import Tensor

from resshift_fast.core import dtypes
from resshift_fast.diffusion.noise import MAX_SEED
from resshift_fast.models import catalog
from resshift_fast.pipeline import Pipeline

FOLDER = "resshift"
PUBLISHED = "published"
CATEGORY = "image/restoration"


def _optional(name: str) -> Any:
    """A module of ComfyUI, or None outside of it."""
    try:
        return import_module(name)
    except ModuleNotFoundError:
        return None


def _own_files() -> list[str]:
    """Names of the weights in ComfyUI's folder for them."""
    paths = _optional("folder_paths")
    if paths is None:
        return []
    if FOLDER not in paths.folder_names_and_paths:
        paths.add_model_folder_path(FOLDER, f"{paths.models_dir}/{FOLDER}")
    return list(paths.get_filename_list(FOLDER))


def _path(name: str) -> str | None:
    if name == PUBLISHED:
        return None
    if name not in _own_files():
        raise ValueError(f"{name} is not in ComfyUI's folder models/{FOLDER}; put it there, or choose {PUBLISHED!r}")
    return str(_optional("folder_paths").get_full_path(FOLDER, name))


class ResShiftLoader:
    """Loads a model."""

    CATEGORY = CATEGORY
    FUNCTION = "load"
    RETURN_TYPES = ("RESSHIFT_MODEL",)
    RETURN_NAMES = ("model",)
    DESCRIPTION = "Loads a ResShift model; published weights are downloaded on first use."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802  ComfyUI's name
        """The node's inputs, as ComfyUI asks for them."""
        files = [PUBLISHED, *_own_files()]
        return {
            "required": {
                "name": (list(catalog.MODELS), {"default": catalog.DEFAULT_MODEL}),
                "device": (["auto", "cuda", "cpu"], {"default": "auto"}),
                "dtype": (["auto", *dtypes.NAMES], {"default": "auto"}),
            },
            "optional": {
                "weights": (files, {"default": PUBLISHED}),
                "autoencoder": (files, {"default": PUBLISHED}),
            },
        }

    def load(
        self, name: str, device: str, dtype: str, weights: str = PUBLISHED, autoencoder: str = PUBLISHED
    ) -> tuple[Pipeline]:
        """Raises ValueError or OSError as `Pipeline.from_pretrained` does."""
        own, second = _path(weights), _path(autoencoder)
        return (Pipeline.from_pretrained(name, weights=own, autoencoder=second, device=device, dtype=dtype),)


class ResShiftRestore:
    """Restores images."""

    CATEGORY = CATEGORY
    FUNCTION = "restore"
    RETURN_TYPES = ("IMAGE",)
    DESCRIPTION = "Restores images with a ResShift model, in tiles; inpainting models need a mask."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802  ComfyUI's name
        """The node's inputs, as ComfyUI asks for them."""
        size = {"default": 0, "min": 0, "max": 1 << 14}
        return {
            "required": {
                "model": ("RESSHIFT_MODEL",),
                "image": ("IMAGE",),
                "seed": ("INT", {"default": 0, "min": 0, "max": MAX_SEED, "control_after_generate": True}),
                "tile": ("INT", size | {"tooltip": "Largest side of a tile in input pixels. 0: the model's."}),
                "overlap": ("INT", size | {"tooltip": "Input pixels that neighbours share. 0: the model's."}),
                "batch_size": ("INT", size | {"max": 256, "tooltip": "Tiles restored at once. 0: the device's."}),
            },
            "optional": {"mask": ("MASK",)},
        }

    def restore(
        self,
        model: Pipeline,
        image: Tensor,
        seed: int,
        tile: int,
        overlap: int,
        batch_size: int,
        mask: Tensor | None = None,
    ) -> tuple[Tensor]:
        """Restore a batch.

        Args:
            image: float32 [B, H, W, 3] in [0, 1].
            mask: [B, H, W] or [H, W], at least 0.5 where to fill in; one mask serves the whole batch.

        Returns:
            (float32 [B, H·scale, W·scale, 3],).
        """
        if mask is not None:
            mask = mask.reshape(-1, *mask.shape[-2:]).expand(len(image), -1, -1)
        restored = model(
            image.float().clamp(0, 1),
            mask,
            seed=seed,
            tile=tile or None,
            overlap=overlap or None,
            batch_size=batch_size or None,
            layout="BHWC",
            progress=_progress(),
        )
        return (restored.cpu(),)


def _progress() -> Any:
    """Shows progress in ComfyUI and ends the restoration where the user interrupts it; False outside of it."""
    utils, management = _optional("comfy.utils"), _optional("comfy.model_management")
    if utils is None or management is None:
        return False
    bar = None

    def advance(done: int, total: int) -> None:
        nonlocal bar
        management.throw_exception_if_processing_interrupted()
        bar = bar or utils.ProgressBar(total)
        bar.update_absolute(done, total)

    return advance


NODE_CLASS_MAPPINGS = {"ResShiftLoader": ResShiftLoader, "ResShiftRestore": ResShiftRestore}
NODE_DISPLAY_NAME_MAPPINGS = {"ResShiftLoader": "Load ResShift model", "ResShiftRestore": "Restore with ResShift"}
