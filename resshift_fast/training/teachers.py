"""Teachers of one-step students: which weights they have, and whether these belong to the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resshift_fast.diffusion.schedule import Schedule, schedule_from_text

if TYPE_CHECKING:
    from torch import Tensor

    from resshift_fast.models.catalog import ModelSpec
    from resshift_fast.models.sizes import SwinUNetConfig
    from resshift_fast.training.config import TrainConfig


def prepare(config: TrainConfig, spec: Any) -> tuple[TrainConfig, ModelSpec]:
    """The settings and the model of a student's training.

    The student starts from the teacher's weights, unless `init_from` names others.

    Args:
        config: of the training; the options "teacher" and "num_res_blocks" of its objective name the teacher's weights
            and the student's blocks.
        spec: the teacher.

    Raises:
        ValueError: for a model that cannot be distilled, or weights of another one.
        FileNotFoundError, OSError: if the weights cannot be read or downloaded.
    """
    from resshift_fast.models import catalog

    if not isinstance(spec, catalog.ModelSpec) or spec.schedule.num_steps < 2:
        name = getattr(spec, "name", config.model)
        raise ValueError(f"distill needs a model of several steps as its teacher, and {name} is none; name another")
    if spec.prediction_type not in ("x0", "residual"):
        raise ValueError(
            f"distill needs a teacher that predicts x0 or the residual; {spec.name} predicts {spec.prediction_type}, "
            "from which x_0 of the first step is inaccurate"
        )
    path = file_of(config.objective_options.get("teacher"), spec)
    _check_teacher(path, spec)
    student = catalog.one_step(spec)
    blocks = config.objective_options.get("num_res_blocks")
    if blocks is not None:
        student = replace(student, denoiser=_with_blocks(catalog.unet_of(student), blocks))
    return replace(config, init_from=config.init_from or str(path)), student


def of_student(student: ModelSpec, state: Mapping[str, Tensor]) -> ModelSpec:
    """The teacher of a student by the teacher's weights, which tell its residual blocks; see `catalog.teacher_of`."""
    from resshift_fast.models import catalog, depth

    spec = catalog.teacher_of(student)
    return replace(spec, denoiser=depth.of_weights(catalog.unet_of(spec), state))


def _with_blocks(sizes: SwinUNetConfig, blocks: Any) -> SwinUNetConfig:
    """The student's sizes with `blocks` residual blocks at each level, at most those of its teacher."""
    most = sizes.num_res_blocks
    fits = isinstance(blocks, list | tuple) and len(blocks) == len(most)
    if not fits or not all(type(own) is int and 1 <= own <= given for own, given in zip(blocks, most, strict=True)):
        raise ValueError(
            f"num_res_blocks is {blocks!r}, expected {len(most)} integers from 1 to the teacher's "
            f"{','.join(map(str, most))}, one for each level"
        )
    return replace(sizes, num_res_blocks=tuple(blocks))


def file_of(given: str | None, spec: ModelSpec) -> Path:
    """The teacher's weights, downloaded on first use unless a file is given.

    Args:
        given: the file; None takes the published one.
        spec: the teacher, or its student.

    Raises:
        ValueError: if none are published.
        OSError: if they cannot be downloaded.
    """
    from resshift_fast.models import catalog
    from resshift_fast.weights import download

    if given:
        return Path(given)
    name = spec.name.removesuffix(catalog.ONE_STEP)
    published = catalog.MODELS[name].weights if name in catalog.MODELS else None
    if published is None:
        raise ValueError(f"no weights of {name} are published; give --teacher FILE")
    return Path(download.fetch(published, option="teacher"))


def _check_teacher(path: Path, spec: ModelSpec) -> None:
    """Raise ValueError for weights with other input channels or another schedule than the teacher's."""
    from resshift_fast.models.loading import FIRST_CONVOLUTION
    from resshift_fast.weights.checkpoints import read_state_dict

    first = [value for key, value in read_state_dict(path).items() if key.endswith(FIRST_CONVOLUTION)]
    expected = spec.denoiser.in_channels + spec.denoiser.lq_channels
    if first and first[0].shape[1] != expected:
        student = ", and looks like a student of it" if first[0].shape[1] == expected + 1 else ""
        raise ValueError(
            f"the teacher {path} takes {first[0].shape[1]} channels, but {spec.name} takes {expected}{student}; "
            "give the teacher's weights, and its name as --model"
        )
    found = _schedule_of(path)
    if found is not None and found != spec.schedule:
        own = asdict(spec.schedule)
        differences = [
            f"{name} {value} instead of {own[name]}" for name, value in asdict(found).items() if value != own[name]
        ]
        raise ValueError(
            f"the teacher {path} was trained with another schedule than {spec.name}: {', '.join(differences)}; "
            "give its own name as --model"
        )


def _schedule_of(path: Path) -> Schedule | None:
    """The schedule that weights were trained with, by their metadata or a published name; None if it is unknown."""
    from resshift_fast.models import catalog
    from resshift_fast.weights.checkpoints import read_metadata

    metadata = read_metadata(path)
    if "schedule" in metadata:
        return schedule_from_text(metadata["schedule"])
    for spec in catalog.MODELS.values():
        if metadata.get("model") == spec.name or (spec.weights is not None and spec.weights.filename == path.name):
            return spec.schedule
    return None
