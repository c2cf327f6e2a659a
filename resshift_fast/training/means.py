"""Means of an objective's terms between two rows of the log."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class Means:
    """Sums the values of samples by name.

    Args:
        columns: the names.
        device: of the values.
    """

    def __init__(self, columns: Sequence[str], device: torch.device | str):
        self.columns = tuple(columns)
        self._sums = torch.zeros(2, len(self.columns), device=device)  # of the values, and their numbers

    def count(self, name: str, values: Tensor) -> None:
        """Add the values of a batch's samples, [B]."""
        place = self.columns.index(name)
        self._sums[0, place] += values.detach().float().sum()
        self._sums[1, place] += len(values)

    def report(self, total: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """The means since the last call, of the names that have values; `total` as of `interfaces.Reporting.report`."""
        sums, counts = total(self._sums).tolist()
        self._sums = torch.zeros_like(self._sums)
        return {name: sums[i] / counts[i] for i, name in enumerate(self.columns) if counts[i]}
