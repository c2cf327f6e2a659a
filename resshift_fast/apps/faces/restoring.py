"""A picture restored by one model, and the faces in it by another one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from resshift_fast import images
from resshift_fast.apps.faces.alignment import enlargement, fit
from resshift_fast.apps.faces.detection import Detector, Face
from resshift_fast.apps.faces.pasting import STRIP, Patch, aligned, paste
from resshift_fast.images.sources import Source, sources_of
from resshift_fast.models import catalog, loading
from resshift_fast.models.catalog import ModelSpec
from resshift_fast.pipeline import Pipeline

FACE_MODELS = ("faceir", "photo-x1")  # of the catalogue, the preferred one first; the last one is embedded
LEAST_EYES = 10.0  # pixels between the eyes, from which a face is restored
MOST_FACES = 100  # of one picture that are restored
DETECTED_SIDE = 2048  # of the picture in which faces are sought, at most


@dataclass(frozen=True)
class Found:
    """The faces of one picture, each kind from the largest to the smallest.

    Attributes:
        restored: the faces that were restored.
        tiny: those whose eyes are nearer to each other than `least_eyes` pixels, which were left alone.
        others: those beyond the limit on their number, which were left alone.
        least_eyes: of the restorer.
    """

    restored: tuple[Face, ...]
    tiny: tuple[Face, ...] = ()
    others: tuple[Face, ...] = ()
    least_eyes: float = LEAST_EYES

    @property
    def text(self) -> str:
        """How many there are, and what was left alone and why."""
        found = [_faces(len(self.restored))] if self.restored else []
        if self.tiny:
            nearest = max(face.eye_distance for face in self.tiny)
            eyes = f"eyes are {'at most ' * (len(self.tiny) > 1)}{nearest:.0f} pixels apart"
            found.append(f"{_faces(len(self.tiny))} left alone ({eyes}, at least {self.least_eyes:g} are needed)")
        if self.others:
            found.append(f"{_faces(len(self.others))} left alone beyond the {len(self.restored)} largest")
        return ", ".join(found) or "no face"


def _faces(count: int) -> str:
    return f"{count} face{'s' * (count != 1)}"


def face_model(name: str | None = None, *, own_weights: bool = False) -> ModelSpec:
    """The model that restores faces: the one named, or the first of `FACE_MODELS` whose weights are on this computer.

    If there is none, it is the first of them, whose weights `Pipeline.from_pretrained` downloads.

    Args:
        name: of the catalogue, or None.
        own_weights: whether the user gives a file of weights, which is one for the first of them unless a name says
            otherwise.

    Raises:
        ValueError: if there is no such model, or it enlarges or needs a mask.
    """
    if name is not None:
        return _checked(catalog.get(name))
    specs = [catalog.get(known) for known in FACE_MODELS]
    return next((spec for spec in specs if own_weights or loading.is_here(spec)), specs[0])


def _checked(spec: ModelSpec) -> ModelSpec:
    if spec.scale != 1:
        raise ValueError(
            f"{spec.name} enlarges {spec.scale} times; aligned faces are restored by a model of scale 1, such as "
            f"{FACE_MODELS[0]}"
        )
    if spec.needs_mask:
        raise ValueError(f"{spec.name} is an inpainting model; faces are restored by one such as {FACE_MODELS[0]}")
    return spec


class FaceRestorer:
    """Restores pictures with one model and the faces in them with another one; may be called as a `Pipeline`.

    The faces are found in the picture as it is given, turned and enlarged to those of FFHQ of 512 × 512 pixels,
    restored, and pasted with feathered masks into the restored picture.

    Args:
        pipe: restores the picture; a model without masks.
        face_pipe: restores faces; a model of scale 1, such as faceir.
        detector: finds the faces; None takes MTCNN with the weights of the package facenet-pytorch.
        least_eyes: pixels between the eyes from which a face is restored.
        most: faces of one picture that are restored, the largest ones.

    Raises:
        ValueError: for another kind of model, or a limit that is negative.
        FileNotFoundError: without the weights of the detector.

    Example:
        >>> pipe = Pipeline.from_pretrained("realsr-x4-v3")  # doctest: +SKIP
        >>> faces = FaceRestorer(pipe, Pipeline.from_pretrained("faceir"))  # doctest: +SKIP
        >>> faces("group.jpg").save("restored.png")  # doctest: +SKIP
    """

    def __init__(
        self,
        pipe: Pipeline,
        face_pipe: Pipeline,
        detector: Callable[[Tensor], list[Face]] | None = None,
        *,
        least_eyes: float = LEAST_EYES,
        most: int = MOST_FACES,
    ):
        if pipe.spec.needs_mask:
            raise ValueError(f"{pipe.spec.name} is an inpainting model; fill the picture in first, and then its faces")
        if not least_eyes >= 0 or not most >= 0:
            raise ValueError(f"least_eyes and most are {least_eyes} and {most}, expected at least 0")
        _checked(face_pipe.spec)
        self.pipe, self.face_pipe = pipe, face_pipe
        self._detector = Detector.from_files() if detector is None else detector
        self._least_eyes, self._most = least_eyes, most

    def __call__(
        self,
        image: Any,
        *,
        seed: Any = 0,
        layout: str | None = None,
        progress: bool | Callable[[int, int], None] = True,
        on_found: Callable[[Found], None] | None = None,
        **options: Any,
    ) -> Any:
        """Restore an image, or a list of images of any sizes, with their faces.

        Args:
            image: as of `Pipeline.__call__`, with which also the results have in common all but the faces.
            seed: of the noise, as of `Pipeline.__call__`; that of a picture is also that of its faces.
            layout, progress: as of `Pipeline.__call__`.
            on_found: called with the faces of each picture, in order, before they are restored.
            options: further arguments of `Pipeline.__call__`. tile and overlap are of the picture; batch_size also
                counts faces; noise is of both models.

        Raises:
            TypeError, ValueError, OSError: as `Pipeline.__call__`.
        """
        if isinstance(image, list | tuple):
            seeds = _each(seed, len(image))
            results = [
                self(one, seed=its_seed, layout=layout, progress=progress, on_found=on_found, **options)
                for one, its_seed in zip(image, seeds, strict=True)
            ]
            return type(image)(results)
        if images.is_file(image) or hasattr(image, "getbands"):
            photo = images.read(image) if images.is_file(image) else images.from_pil(image)
            restored = self(photo, seed=seed, layout=layout, progress=progress, on_found=on_found, **options)
            return images.to_pil(restored)
        before, _ = sources_of(image, layout)
        seeds = _each(seed, len(before))
        found = [self.find(source) for source in before]
        for one in found:
            if on_found is not None:
                on_found(one)
        stages = _Stages(progress, sum(len(one.restored) for one in found))
        result = self.pipe(image, seed=seed, layout=layout, progress=stages.first(), **options)
        if not any(one.restored for one in found):
            return result
        after, gather = sources_of(result, layout)
        for source, target, one, its_seed in zip(before, after, found, seeds, strict=True):
            target.begin(1)
            paste(target, self._restored(source, one.restored, its_seed, stages, options))
        return gather([target.result() for target in after])

    def find(self, source: Source) -> Found:
        """The faces of a picture, and which of them are to be restored; begins the source at scale 1."""
        source.begin(1)
        reduction = -(-max(source.height, source.width) // DETECTED_SIDE)
        faces = [face.moved(enlargement(reduction)) for face in self._detector(_reduced(source, reduction))]
        large = [face for face in faces if face.eye_distance >= self._least_eyes]
        tiny = [face for face in faces if not face.eye_distance >= self._least_eyes]
        return Found(tuple(large[: self._most]), tuple(tiny), tuple(large[self._most :]), self._least_eyes)

    def _restored(
        self, source: Source, faces: Sequence[Face], seed: int, stages: _Stages, options: dict[str, Any]
    ) -> list[Patch]:
        """The faces of a picture, aligned and restored, with their places in the restored picture."""
        if not faces:
            return []
        places = [fit(face.points) for face in faces]
        of_faces = {name: value for name, value in options.items() if name not in ("tile", "overlap")}
        crops = torch.stack([aligned(source, place) for place in places])
        restored = self.face_pipe(crops, seed=seed, progress=stages.faces(len(faces)), **of_faces)
        back = enlargement(1 / self.pipe.spec.scale)
        return [Patch(face, place.after(back)) for face, place in zip(restored, places, strict=True)]


def _each(seed: Any, count: int) -> list[Any]:
    """A seed for each of some pictures; a wrong number of them is left for the pipeline to refuse."""
    if isinstance(seed, np.ndarray | Tensor):
        seed = seed.tolist()
    if isinstance(seed, Sequence) and not isinstance(seed, str):
        if len(seed) != count:
            raise ValueError(f"{len(seed)} seeds for {count} images; give one for all, or one for each")
        return list(seed)
    return [seed] * count


def _reduced(source: Source, factor: int) -> Tensor:
    """The pixels of a picture as means over squares, float32 [3, ⌈H / factor⌉, ⌈W / factor⌉] in [0, 1]."""
    columns, parts = np.arange(source.width), []
    for top in range(0, source.height, STRIP * factor):
        rows = np.arange(top, min(top + STRIP * factor, source.height))
        strip = (source.crop(rows, columns) + 1) / 2
        # The last squares may be cut off; their means are of what there is.
        parts.append(F.avg_pool2d(strip[None], factor, ceil_mode=True, count_include_pad=False)[0])
    return torch.cat(parts, 1)


class _Stages:
    """Joins the progress of the picture's and the faces' restoration, each of which counts evaluations.

    Args:
        progress: as of `Pipeline.__call__`. faces: number of faces that will be restored.
    """

    def __init__(self, progress: bool | Callable[[int, int], None], faces: int):
        self._progress, self._faces = progress, faces
        self._done = self._total = 0  # of the picture; each face counts as its share of it

    def first(self) -> bool | Callable[[int, int], None]:
        """Of the picture."""
        if not callable(self._progress):
            return self._progress
        report = self._progress

        def progress(done: int, total: int) -> None:
            self._done, self._total = done, total
            report(done, total + self._faces)

        return progress

    def faces(self, count: int) -> bool | Callable[[int, int], None]:
        """Of some more faces; each counts as one evaluation of the picture."""
        if not callable(self._progress):
            return self._progress
        report, before = self._progress, self._done

        def progress(done: int, total: int) -> None:
            self._done = before + count * done // total
            report(self._done, self._total + self._faces)

        return progress
