"""`restore --faces`: what is checked before, what is loaded, and what is said about the faces of each photo."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resshift_fast.cli import console
from resshift_fast.cli.options import weights_files
from resshift_fast.core.files import expand_home

if TYPE_CHECKING:
    from resshift_fast.apps.faces import FaceRestorer, Found
    from resshift_fast.models.catalog import ModelSpec
    from resshift_fast.pipeline import Pipeline


@dataclass(frozen=True)
class FaceOptions:
    """The options about faces.

    Args:
        model: of faces; None for the first whose weights are there. detector: a wheel of facenet-pytorch; None for the
            installed one. weights, autoencoder: of the model; None for the published ones.
    """

    model: str | None
    weights: Path | None
    autoencoder: Path | None
    detector: Path | None

    @property
    def given(self) -> dict[str, str]:
        """The options that were given, with the names of their files."""
        files = {"weights": self.weights, "autoencoder": self.autoencoder, "detector": self.detector}
        found = {"face-model": self.model} | {f"face-{name}": path and path.name for name, path in files.items()}
        return {name: value for name, value in found.items() if value}


def check(asked: FaceOptions, spec: ModelSpec) -> None:
    """Raise what would fail with every photo: another kind of model, or no weights of the detector."""
    from resshift_fast.apps.faces import Detector
    from resshift_fast.apps.faces.restoring import face_model

    if spec.needs_mask:
        raise ValueError(f"--faces: {spec.name} is an inpainting model; fill photos in first, and then restore faces")
    try:
        face_model(asked.model)
    except ValueError as error:
        raise ValueError(f"--face-model: {error}") from None
    Detector.from_files(asked.detector and expand_home(asked.detector))


def check_kind(asked: FaceOptions | None, source: Path, is_video: bool) -> None:
    """Raise ValueError if faces are sought in a video."""
    if is_video and asked is not None:
        raise ValueError(f"{source} is a video, and faces are restored in photos; leave --faces out for it")


def load(asked: FaceOptions, pipe: Pipeline, loading: dict[str, Any]) -> FaceRestorer:
    """The model of faces, over that of photos.

    Args:
        asked: the options. pipe: the model of photos. loading: keyword arguments of `Pipeline.from_pretrained`.
    """
    from resshift_fast.apps.faces import Detector, FaceRestorer
    from resshift_fast.apps.faces.restoring import face_model
    from resshift_fast.pipeline import Pipeline

    files = weights_files(asked.weights, asked.autoencoder)
    try:
        spec = face_model(asked.model, own_weights=any(files.values()))
        faces = Pipeline.from_pretrained(spec.name, **files, **loading, progress=not console.is_quiet())
    except (OSError, ValueError) as error:
        raise _for_faces(error) from error
    return FaceRestorer(pipe, faces, Detector.from_files(asked.detector and expand_home(asked.detector)))


def _for_faces(error: OSError | ValueError) -> OSError | ValueError:
    """An error of a pipeline whose advice names the options of the model of faces."""
    text = str(error)
    for name in ("weights", "autoencoder"):
        text = text.replace(f"{name}=FILE (--{name} FILE)", f"--face-{name} FILE")
    return error if text == str(error) else type(error)(text)


def summary(found: Sequence[Found]) -> tuple[int, str]:
    """The number of faces that were restored in a photo, or at most in a frame of an animation, and a note."""
    count = max(len(one.restored) for one in found)
    return count, found[0].text if len(found) == 1 else f"at most {count} face{'s' * (count != 1)} a frame"
