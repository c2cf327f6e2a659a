"""The log for TensorBoard, where it is installed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


class TensorBoard:
    """Writes scalars and validation sheets into a folder; does nothing if tensorboard is not installed.

    Args:
        folder: of the event files.
        step: that the run is at; what was written for later ones is hidden.
        wanted: False also does nothing.
    """

    def __init__(self, folder: Path, step: int, wanted: bool = True):
        self._writer: Any = None
        if wanted:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                return
            self._writer = SummaryWriter(str(folder), purge_step=step + 1 if step else None)

    def add(self, step: int, row: Mapping[str, object], sheet: Path | None = None) -> None:
        """Write a row of the log, but for its text, and a sheet if its file exists."""
        if self._writer is None:
            return
        for name, value in row.items():
            try:
                number = float(str(value))
            except ValueError:
                continue
            self._writer.add_scalar(name, number, step)
        if sheet is not None and sheet.exists():
            with Image.open(sheet) as image:
                self._writer.add_image("validation", np.asarray(image), step, dataformats="HWC")
        self._writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
