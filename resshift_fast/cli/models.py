"""`resshift-fast models`: the models that --model takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from resshift_fast.models.catalog import ModelSpec, WeightFile

_COLUMNS = "{:<17} {:>5} {:>5} {:>11}  {}"


def models() -> None:
    """List the models.

    Prints scale, steps, parameters (denoiser and autoencoder), weights files, licence and purpose of each.
    """
    from resshift_fast.core.cache import cache_dir
    from resshift_fast.models import catalog

    counts: dict[tuple, int] = {}
    print(_COLUMNS.format("MODEL", "SCALE", "STEPS", "PARAMETERS", "WEIGHTS"))
    for spec in catalog.MODELS.values():
        files = [file for file in (spec.weights, spec.autoencoder_weights) if file]
        first, *others = [_state(file) for file in files] if spec.weights else ["none published"]
        sizes = spec.denoiser, spec.first_stage  # cached, because several models share them and building takes time
        if sizes not in counts:
            counts[sizes] = _parameters(spec)
        parameters = f"{counts[sizes] / 1e6:.1f} M"
        default = "*" if spec.name == catalog.DEFAULT_MODEL else ""
        print(_COLUMNS.format(spec.name + default, f"×{spec.scale}", spec.schedule.num_steps, parameters, first))
        for other in others:
            print(_COLUMNS.format("", "", "", "", other))
        print(f"    {spec.summary}\n    licence: {spec.licence}")
    try:
        folder = str(cache_dir())
    except OSError as error:
        folder = f"unknown: {error}"
    print(f"\n* default model. Weights are downloaded on first use to {folder}")


def _state(file: WeightFile) -> str:
    """The file's name, and its size if it is here."""
    from resshift_fast.weights.download import local_path

    try:
        size = local_path(file).stat().st_size
    except OSError:
        return f"{file.filename} ({'missing: install again' if file.url is None else 'not downloaded'})"
    return f"{file.filename} ({size / 1e6:.1f} MB, {'embedded' if file.url is None else 'downloaded'})"


def _parameters(spec: ModelSpec) -> int:
    """Number of parameters of both networks, which are built without allocating memory."""
    import torch

    from resshift_fast.models import catalog

    with torch.device("meta"):
        networks = catalog.build_denoiser(spec), catalog.build_first_stage(spec)
    return sum(parameter.numel() for network in networks for parameter in network.parameters())
