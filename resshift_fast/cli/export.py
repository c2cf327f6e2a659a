"""`resshift-fast export`: a model as a file for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from resshift_fast.apps import extras
from resshift_fast.cli import console
from resshift_fast.cli.options import Autoencoder, Model, Weights, chosen_model, option, weights_files

MODULES = {"onnx": "onnx", "onnxscript": "onnxscript", "onnxruntime": "onnxruntime"}


def export(
    kind: Annotated[
        str,
        typer.Argument(
            help="onnx; torch for a program that torch.export.load reads; kernels for the operators, as a folder for "
            "Hugging Face's kernels.",
            metavar="FORMAT",
            show_default=False,
        ),
    ],
    model: Model = None,
    weights: Weights = None,
    autoencoder: Autoencoder = None,
    output: Annotated[
        Path | None,
        option(
            "File to write, or folder. Default: MODEL.onnx, MODEL.pt2 or resshift-fast-kernels.",
            *("--output", "-o"),
            metavar="PATH",
        ),
    ] = None,
    repository: Annotated[
        str | None,
        option("Of kernels: its repository on the Hub. Default: left open.", "--repository", metavar="OWNER/NAME"),
    ] = None,
) -> None:
    """Write a model to a file that runs without this package, for images of any size that is a multiple of its unit.

    Or write its operators to a folder that kernels.get_local_kernel loads without this package.

    The file takes image, float32 [B, 3, H, W] in [0, 1], and noise, float32 [steps, B, C, h, w], standard normal;
    models that fill in take mask, bool [B, 1, H, W], True where to fill in. It gives restored, float32 in [0, 1]. The
    result is compared with the model at three sizes. This takes minutes.
    """
    if kind == "kernels":
        _export_operators(model or weights or autoencoder, output, repository)
        return
    from resshift_fast.apps import export as exporting

    if kind == "onnx":
        extras.require("onnx", MODULES)
    elif kind not in exporting.FORMATS:
        raise ValueError(f"the format is {kind!r}, expected one of {', '.join(exporting.FORMATS)}, kernels")
    if repository is not None:
        raise ValueError(f"--repository is of kernels, not of {kind}; leave it out")
    model = chosen_model(model, weights)
    path = output or Path(f"{model}.{'onnx' if kind == 'onnx' else 'pt2'}")
    _export_model(kind, model, weights_files(weights, autoencoder), path)


def _export_model(kind: str, model: str, files: dict[str, Any], path: Path) -> None:
    from resshift_fast.apps import export as exporting
    from resshift_fast.core.files import check_target
    from resshift_fast.pipeline import Pipeline

    check_target(path)
    pipe = Pipeline.from_pretrained(model, **files, device="cpu")
    console.say(f"exporting {model}, which takes minutes")
    difference = exporting.export(pipe, path, kind)
    inputs = exporting.Inputs(pipe.spec)
    print(f"written: {path} ({path.stat().st_size / 1e6:.1f} MB), within {difference:.1e} of {model} at three sizes")
    channels, side = pipe.spec.denoiser.out_channels, inputs.latent
    print(f"image [B, 3, {inputs.unit}·n, {inputs.unit}·m] in [0, 1]")
    print(f"noise [{pipe.spec.schedule.num_steps}, B, {channels}, {side}·n, {side}·m], standard normal")
    if pipe.spec.denoiser.cond_mask:
        print(f"mask [B, 1, {inputs.unit}·n, {inputs.unit}·m], true where to fill in")
    if pipe.spec.denoiser.noise_channels:
        print(f"noise_channels [B, {pipe.spec.denoiser.noise_channels}, {side}·n, {side}·m], standard normal")


def _export_operators(model: str | Path | None, output: Path | None, repository: str | None) -> None:
    if model is not None:
        raise ValueError("kernels has the operators, not a model; leave --model, --weights and --autoencoder out")
    from resshift_fast.apps.hub import folder

    path = output or Path(folder.NAME)
    builds = folder.write(path, repository)
    print(f"written: {path}, with builds for {' and '.join(builds)}")
    print(f"kernel = kernels.get_local_kernel(Path({str(path)!r}))")
