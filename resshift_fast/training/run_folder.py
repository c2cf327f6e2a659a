"""The files of a run: last.pt, best.safetensors, log.csv.

The first two are replaced atomically, so that a crash leaves either the old or the new file.
"""

from __future__ import annotations

import csv
import io
from pathlib import Path

import torch

from resshift_fast.core.files import make_folder, replacing, write_atomically

FORMAT = 1
LOG_FIELDS = (
    "step",
    "loss",
    "lr",
    "grad_norm",
    "val_psnr_y_clean",
    "val_psnr_y_degraded",
    "bicubic_psnr_y_clean",
    "bicubic_psnr_y_degraded",
    "seconds",
    "note",
)


class RunFolder:
    """Paths and formats of one run's files. Raises OSError if the folder can't be created."""

    def __init__(self, folder: str | Path):
        self.folder = make_folder(folder)
        self.last = self.folder / "last.pt"
        self.best = self.folder / "best.safetensors"
        self.log = self.folder / "log.csv"

    def sheet(self, step: int) -> Path:
        """Path of the validation sheet of a step."""
        return self.folder / "val" / f"{step:07d}.png"

    def save_last(self, state: dict) -> None:
        """Write the resumable state, replacing the previous one atomically."""
        with replacing(self.last) as file:
            torch.save({"format": FORMAT, **state}, file)

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

    def start_log(self, step: int) -> None:
        """Start the log with the old rows up to `step` (0: none), so that a resumed run doesn't log a step twice."""
        rows: list[dict] = []
        if step and self.log.exists():
            with open(self.log, newline="", encoding="utf-8") as file:
                rows = [row for row in csv.DictReader(file) if row["step"].isdigit() and int(row["step"]) <= step]
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, LOG_FIELDS, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(self.log, text.getvalue().encode())

    def append_log(self, **values: object) -> None:
        """Add a row; fields that are not given are empty."""
        with open(self.log, "a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, LOG_FIELDS).writerow(values)
