"""Memory that tensors take between their first use and their end, without a device: fake tensors have sizes too."""

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary


class LiveBytes:
    """Bytes of the storages that were made and not freed since.

    Attributes:
        now: at this moment. peak: the most so far.
    """

    def __init__(self) -> None:
        self.now = self.peak = 0
        self._known: Any = WeakIdKeyDictionary(ref_type=weakref.ref)  # storages, whether or not they count

    def add(self, before: Any, made: Any) -> None:
        """Count the storages of the tensors in `made`, except those known or in `before`, which others made."""
        for storage in _storages(before):
            self._known[storage] = True
        for storage in _storages(made):
            if storage not in self._known:
                self._known[storage] = True
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._free, storage.nbytes()).atexit = False

    def _free(self, num_bytes: int) -> None:
        self.now -= num_bytes


def _storages(values: Any) -> list[torch.UntypedStorage]:
    return [x.untyped_storage() for x in tree_leaves(values) if isinstance(x, Tensor)]
