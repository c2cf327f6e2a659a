"""The files of a run: last.pt, best.safetensors, log.csv, timesteps.csv.

The first two are replaced atomically, so that a crash leaves either the old or the new file.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch

from resshift_fast.core.files import make_folder, replacing, write_atomically

FORMAT = 1
LOG_FIELDS = ("step", "loss", "lr", "grad_norm", "seconds", "note")
TIMESTEP_FIELDS = ("step", "t", "loss", "samples")


class Table:
    """A CSV file whose rows belong to steps.

    Args:
        path: the file.
        fields: its columns; the first is "step".
    """

    def __init__(self, path: Path, fields: Sequence[str]):
        self.path, self.fields = path, list(fields)

    def start(self, step: int, more: Sequence[str] = ()) -> None:
        """Start the file with the old rows up to `step` (0: none), so that a resumed run doesn't log a step twice.

        Args:
            step: that the run is at.
            more: further columns; those of the old rows are kept too.
        """
        rows: list[dict] = []
        fields = [*self.fields, *more]
        if step and self.path.exists():
            with open(self.path, newline="", encoding="utf-8") as file:
                reader = csv.DictReader(file)
                rows = [row for row in reader if row["step"].isdigit() and int(row["step"]) <= step]
                fields += reader.fieldnames or ()
        self.fields = list(dict.fromkeys(fields))
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self.fields, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(self.path, text.getvalue().encode())

    def append(self, **values: object) -> None:
        """Add a row; fields that are not given are empty."""
        with open(self.path, "a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self.fields).writerow(values)


class _Sink:
    """A file to write to that keeps its error."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self._file.flush()


class RunFolder:
    """Paths and formats of one run's files. Raises OSError if the folder can't be created."""

    def __init__(self, folder: str | Path):
        self.folder = make_folder(folder)
        self.last = self.folder / "last.pt"
        self.best = self.folder / "best.safetensors"
        self.log = Table(self.folder / "log.csv", LOG_FIELDS)
        self.timesteps = Table(self.folder / "timesteps.csv", TIMESTEP_FIELDS)

    def sheet(self, step: int) -> Path:
        """Path of the validation sheet of a step."""
        return self.folder / "val" / f"{step:07d}.png"

    def save_last(self, state: dict) -> None:
        """Write the resumable state, replacing the previous one atomically.

        Raises:
            OSError: if there is no space left or writing fails otherwise; the previous state is then kept.
        """
        with replacing(self.last) as file:
            sink = _Sink(file)
            try:
                torch.save({"format": FORMAT, **state}, cast(BinaryIO, sink))
            except RuntimeError:  # torch's, which hides what the file said
                if sink.error is not None:
                    raise sink.error from None
                raise

    def load_last(self) -> dict:
        """Read the resumable state. Raises ValueError for a damaged file or another format."""
        try:
            state = torch.load(self.last, map_location="cpu", weights_only=True)
        except Exception as error:
            raise ValueError(
                f"{self.last} cannot be read ({type(error).__name__}); move it away to start a new run"
            ) from error
        if not isinstance(state, dict) or state.get("format") != FORMAT:
            raise ValueError(f"{self.last} is not a training state of this version; start in another run folder")
        return state
