"""A whole restoration as one file for other programs: ONNX, or a program of torch.export.

The file has PyTorch's own operations alone, so that neither this package nor its kernels are needed to run it. Noise is
an input, because a runtime's own random numbers would be others on every machine.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from resshift_fast.backends import use_backend
from resshift_fast.core.files import replacing

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from resshift_fast.models.catalog import ModelSpec
    from resshift_fast.pipeline import Pipeline

FORMATS = ("onnx", "torch")
LIMIT = 1e-5  # of the difference to the pipeline, relative to the largest value


class Exportable(nn.Module):
    """A restoration from and to images in [0, 1], without a seed.

    Args:
        pipe: the model, whose networks are shared.
    """

    def __init__(self, pipe: Pipeline):
        super().__init__()
        self.restoration = pipe.restoration

    def forward(
        self, image: Tensor, noise: Tensor, mask: Tensor | None = None, noise_channels: Tensor | None = None
    ) -> Tensor:
        """Restore a batch; see `Inputs` for the arguments. Returns float32 [B, 3, H·scale, W·scale] in [0, 1]."""
        margin = self.restoration.margin
        image = image * 2 - 1
        if margin:
            image = F.pad(image, (margin,) * 4, mode="reflect")
        seed = torch.zeros(image.shape[0], dtype=torch.int64, device=image.device)
        # The last step adds none.
        draws = [*noise.unbind(0), noise[0]] if noise_channels is None else [noise[0], noise_channels]
        pixels, _ = self.restoration(image, seed, mask=mask, noise=draws)
        return (pixels / 2 + 0.5).clamp(0, 1)


@dataclass(frozen=True)
class Inputs:
    """Shapes of an exported model's inputs.

    `image` is float32 [B, 3, H, W] in [0, 1], with H and W multiples of `unit`, at least two units: for less, PyTorch
    traces another program. `noise` is float32 [steps, B, C, h, w], standard normal: the prior's, and that of all steps
    but the last. `mask`, of models that fill in, is bool [B, 1, H, W], True where to fill in. `noise_channels`, of
    models with channels of noise, is float32 [B, N, h, w], standard normal.
    """

    spec: ModelSpec

    @property
    def unit(self) -> int:
        """What H and W are multiples of, in pixels."""
        return self.spec.pad_multiple

    @property
    def latent(self) -> int:
        """Side of the latent of an image of unit × unit pixels."""
        return self.unit * self.spec.scale // self.spec.first_stage.factor

    def example(self, batch: int, rows: int, columns: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Random inputs of an image of rows × columns units."""
        spec, height, width = self.spec, rows * self.unit, columns * self.unit
        latent = (batch, spec.denoiser.out_channels, rows * self.latent, columns * self.latent)
        found = {
            "image": torch.rand(batch, 3, height, width, generator=generator),
            "noise": torch.randn(spec.schedule.num_steps, *latent, generator=generator),
        }
        if spec.denoiser.cond_mask:
            found["mask"] = torch.rand(batch, 1, height, width, generator=generator) < 0.3
        if spec.denoiser.noise_channels:
            shape = (batch, spec.denoiser.noise_channels, *latent[2:])
            found["noise_channels"] = torch.randn(shape, generator=generator)
        return found

    def dynamic(self) -> dict[str, Any]:
        """The sizes that may change, as `torch.export.export` takes them."""
        batch, rows, columns = Dim("batch", min=1), Dim("rows", min=2), Dim("columns", min=2)
        pixels = {0: batch, 2: self.unit * rows, 3: self.unit * columns}
        latent = {0: batch, 2: self.latent * rows, 3: self.latent * columns}
        found = {"image": pixels, "noise": {1: batch, 3: self.latent * rows, 4: self.latent * columns}}
        if self.spec.denoiser.cond_mask:
            found["mask"] = pixels
        if self.spec.denoiser.noise_channels:
            found["noise_channels"] = latent
        return found


def export(pipe: Pipeline, path: str | Path, kind: str) -> float:
    """Write a model to a file that runs without this package, and compare it with the model at three sizes.

    Args:
        pipe: the model, on the CPU in float32.
        path: of the file, which is replaced. The inputs are those of `Inputs`, and the only result is `restored`,
            float32 [B, 3, H·scale, W·scale] in [0, 1].
        kind: "onnx", or "torch" for a program that `torch.export.load` reads.

    Returns:
        The largest difference to the model, relative to its largest value.

    Raises:
        ValueError: for another kind, device or dtype, or a model whose holes are filled in before.
        RuntimeError: if the difference is more than 1e-5; then nothing is written.
        OSError: if the file can't be written.
    """
    if kind not in FORMATS:
        raise ValueError(f"the format is {kind!r}, expected one of {', '.join(FORMATS)}")
    if pipe.spec.filled:  # its halvings down to one pixel are another program for each size
        raise ValueError(
            f"{pipe.spec.name} can't be exported, as its holes are filled in before; run it with this package"
        )
    if pipe.device.type != "cpu" or pipe.dtype != torch.float32:
        raise ValueError(f"a model is exported from the CPU in float32, this one is on {pipe.device} in {pipe.dtype}")
    module, inputs = Exportable(pipe).eval(), Inputs(pipe.spec)
    with replacing(path) as file:
        found = _program(module, inputs)
        if kind == "onnx":
            model = _onnx(found)
            file.write(model)
            return _compare(module, inputs, _session(model))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "No complete tensor found")  # of constants that share memory
            torch.export.save(found, file)
        return _compare(module, inputs, found.module())


@torch.no_grad()
def _program(module: Exportable, inputs: Inputs) -> ExportedProgram:
    example = inputs.example(2, 3, 4, torch.Generator().manual_seed(0))
    # What is derived from weights becomes a constant: ONNX Runtime 1.32 takes a padded weight for a padded image.
    module.restoration.prepare()
    with use_backend("reference"):
        return torch.export.export(module, (), example, dynamic_shapes=inputs.dynamic())


def _onnx(program: ExportedProgram) -> bytes:
    """A program as ONNX."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter, about itself
        made = torch.onnx.export(program, dynamo=True, output_names=["restored"], verbose=False)
    assert made is not None  # without a file to write
    return made.model_proto.SerializeToString()


def _session(model: bytes) -> Callable[..., Tensor]:
    """What runs an ONNX model."""
    import onnxruntime

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])

    def run(**values: Tensor) -> Tensor:
        (restored,) = session.run(["restored"], {name: value.numpy() for name, value in values.items()})
        return torch.from_numpy(restored)

    return run


@torch.no_grad()
def _compare(module: Exportable, inputs: Inputs, run: Callable[..., Tensor]) -> float:
    """The largest relative difference at three sizes."""
    generator, worst = torch.Generator().manual_seed(1), 0.0
    for size in ((1, 2, 2), (2, 2, 4), (1, 5, 3)):
        example: Mapping[str, Tensor] = inputs.example(*size, generator)
        with use_backend("reference"):
            expected = module(**example)
        difference = (run(**example) - expected).abs().max() / expected.abs().max()
        worst = max(worst, float(difference))
        if not worst <= LIMIT:
            raise RuntimeError(
                f"the exported model differs by {worst:.1e} for an image of {size[1] * inputs.unit} by "
                f"{size[2] * inputs.unit} pixels, expected at most {LIMIT}; nothing was written"
            )
    return worst
