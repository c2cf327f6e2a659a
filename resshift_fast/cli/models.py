"""`resshift-fast models`: the models that --model takes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

from resshift_fast.cli.options import option

if TYPE_CHECKING:
    from resshift_fast.models.catalog import ModelSpec, WeightFile

_COLUMNS = "{:<17} {:>5} {:>5} {:>11}  {}"
_BYTES_PER_PARAMETER = 4  # the published files hold float32


def models(
    as_json: Annotated[bool, option("Print JSON instead, for programs. Default: no.", "--json")] = False,
    pins: Annotated[
        list[str] | None,
        option(
            "Demand a SHA-256, and a size in bytes, of a weights file; another file is refused. FILE alone takes those "
            "of the file that has been downloaded. May be repeated. Default: whatever was downloaded first.",
            "--pin",
            metavar="FILE[=SHA256[,BYTES]]",
        ),
    ] = None,
) -> None:
    """List the models, or pin the hashes of their weights.

    Prints scale, steps, parameters (denoiser and autoencoder), weights files with their sizes, licence and purpose of
    each.
    """
    from resshift_fast.models import catalog

    if pins:
        for text in pins:
            _pin(text)
        return
    if as_json:
        print(json.dumps([_as_data(spec) for spec in catalog.MODELS.values()], indent=1))
        return
    print(_COLUMNS.format("MODEL", "SCALE", "STEPS", "PARAMETERS", "WEIGHTS"))
    for spec in catalog.MODELS.values():
        first, *others = [_in_words(*one) for one in _files(spec)] or ["none published"]
        counts = _parameters(spec)
        known = "unknown" if counts is None else f"{counts / 1e6:.1f} M"
        default = "*" if spec.name == catalog.DEFAULT_MODEL else ""
        print(_COLUMNS.format(spec.name + default, f"×{spec.scale}", spec.schedule.num_steps, known, first))
        for other in others:
            print(_COLUMNS.format("", "", "", "", other))
        print(f"    {spec.summary}\n    licence: {spec.licence}")
    print(f"\n* default model. Weights are downloaded on first use to {_folder()}")


def _pin(text: str) -> None:
    """Pin what FILE[=SHA256[,BYTES]] says, and print it in that form, for other machines."""
    from resshift_fast.models import catalog
    from resshift_fast.weights import pins

    name, _, wanted = text.partition("=")
    sha256, _, size = wanted.partition(",")
    files = {file.filename: file for spec in catalog.MODELS.values() for file, _ in _files(spec) if file.url}
    if name not in files:
        raise ValueError(f"{name!r} is no published weights file; expected one of {', '.join(files)}")
    if size and not size.isdecimal():
        raise ValueError(f"the size of {name} is {size!r}, expected a number of bytes")
    record = pins.pin(files[name], sha256 or None, int(size) if size else None)
    print(f"{name}={record.sha256}{'' if record.size is None else f',{record.size}'}")


def _as_data(spec: ModelSpec) -> dict[str, object]:
    from resshift_fast.models import catalog

    files = []
    for file, parameters in _files(spec):
        size, state = _size(file, parameters)
        files.append({"file": file.filename, "state": state, "bytes": size, "url": file.url, "licence": file.licence})
    return {
        "name": spec.name,
        "default": spec.name == catalog.DEFAULT_MODEL,
        "summary": spec.summary,
        "scale": spec.scale,
        "steps": spec.schedule.num_steps,
        "parameters": _parameters(spec),
        "needs_mask": spec.needs_mask,
        "licence": spec.licence,
        "weights": files,
    }


def _files(spec: ModelSpec) -> list[tuple[WeightFile, int | None]]:
    """The model's files with the number of parameters in each; none if it cannot be used without own weights."""
    from resshift_fast.models import catalog

    if spec.weights is None:
        return []
    found = [(spec.weights, catalog.parameters(spec.denoiser))]
    if spec.autoencoder_weights is not None:
        found.append((spec.autoencoder_weights, catalog.parameters(spec.first_stage)))
    return found


def _size(file: WeightFile, parameters: int | None) -> tuple[int | None, str]:
    """The file's bytes, those of the download about, and what it is: embedded, missing, downloaded or not."""
    from resshift_fast.weights.download import local_path

    try:
        return local_path(file).stat().st_size, "embedded" if file.url is None else "downloaded"
    except OSError:
        pass
    if file.url is None:
        return None, "missing"
    return file.size or (parameters and parameters * _BYTES_PER_PARAMETER), "not downloaded"


def _in_words(file: WeightFile, parameters: int | None) -> str:
    size, state = _size(file, parameters)
    if state == "missing":
        return f"{file.filename} (missing: install again)"
    if state == "not downloaded":
        return f"{file.filename} (not downloaded{'' if size is None else f', about {size / 1e6:.0f} MB'})"
    return f"{file.filename} ({(size or 0) / 1e6:.1f} MB, {state})"


def _folder() -> str:
    from resshift_fast.core.cache import cache_dir

    try:
        return str(cache_dir())
    except OSError as error:
        return f"unknown: {error}"


def _parameters(spec: ModelSpec) -> int | None:
    """Number of parameters of both networks."""
    from resshift_fast.models import catalog

    counts = [catalog.parameters(sizes) for sizes in (spec.denoiser, spec.first_stage)]
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None
