"""What runs in each worker: photos are fetched, restored, and their results stored."""

from __future__ import annotations

import json
import os
import socket
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from resshift_fast.apps.cluster import places
from resshift_fast.apps.cluster.listing import Item
from resshift_fast.apps.cluster.places import Place

EXISTS = "its result exists"


@dataclass(frozen=True)
class Errand:
    """One photo with files on this machine.

    Args:
        source, mask: what is read. output, compare: what is written; the suffix may change to one that can hold the
            result.
    """

    source: Path
    output: Path
    compare: Path | None = None
    mask: Path | None = None


class Restorer(Protocol):
    """Restores photos between files on one machine; reports failures instead of raising them."""

    def restore(self, errand: Errand) -> dict[str, Any]:
        """Restore a photo.

        Returns:
            "status": "restored", "failed" or "skipped"; "text": its line; "output": the file that was written; "error"
            or "reason"; "stopped": why no further photo can be restored, and other facts.
        """
        ...

    def is_done(self, errand: Errand) -> bool:
        """Whether everything that it would write is there and whole."""
        ...

    def output_of(self, errand: Errand) -> Path:
        """The output by the name that it will have; raises what reading the photo does."""
        ...

    def failed(self, source: Path, error: Exception) -> dict[str, Any]:
        """What `restore` returns of an error."""
        ...


class Worker:
    """Restores blocks of photos; Ray Data makes one for each worker's process.

    Args:
        ledger: the handle of the run's `Ledger`.
        make: loads the model.
        out: where the results go. skip_existing: leave out those that exist.
    """

    def __init__(self, ledger: Any, make: Callable[[], Restorer], out: Place, skip_existing: bool):
        import ray

        self._ledger, self._skip_existing = ledger, skip_existing
        machine = f"{socket.gethostname()} ({ray.util.get_node_ip_address()})"
        try:
            if out.is_local and not os.path.isdir(out.path):
                raise FileNotFoundError(
                    f"there is no folder {out.path}, where the results go; name one that all machines share, or a URI"
                )
            self._restorer = make()
        except Exception as error:
            ray.get(ledger.unusable.remote(machine, " ".join(str(error).split()) or type(error).__name__))
            raise
        ray.get(ledger.started.remote())

    def __call__(self, block: dict[str, Any]) -> dict[str, Any]:
        """Restore the photos of a block, and note in the ledger what has become of each."""
        import numpy as np
        import ray

        photos = [photo for row in block["photos"] for photo in json.loads(row)]
        for index, text in photos:
            if ray.get(self._ledger.begin.remote(index)):
                outcome = restored(Item.from_json(text), self._restorer, self._skip_existing)
                ray.get(self._ledger.end.remote(index, outcome))
        return {"done": np.array([len(photos)])}


def restored(item: Item, restorer: Restorer, skip_existing: bool) -> dict[str, Any]:
    """Restore one photo; returns what `Restorer.restore` does, with the names that the user knows."""
    if skip_existing and _is_present(item, item.name):
        return {"status": "skipped", "input": str(item.source), "text": EXISTS, "reason": EXISTS}
    with tempfile.TemporaryDirectory(prefix="resshift-") as folder:
        staged = _Staged(item, Path(folder))
        try:
            errand = staged.fetch()
        except OSError as error:
            outcome = restorer.failed(staged.source, error)
        else:
            outcome = _outcome(item, errand, restorer, skip_existing)
            outcome = staged.store(outcome, restorer)
        return staged.named(outcome) | {"input": str(item.source)}


def _outcome(item: Item, errand: Errand, restorer: Restorer, skip_existing: bool) -> dict[str, Any]:
    skipped = {"status": "skipped", "text": EXISTS, "reason": EXISTS}
    try:
        if skip_existing and item.folder.is_local and restorer.is_done(errand):
            return skipped
        if skip_existing and item.present and _is_present(item, restorer.output_of(errand).name):
            return skipped
    except Exception as error:
        return restorer.failed(errand.source, error)
    return restorer.restore(errand)


def _is_present(item: Item, name: str) -> bool:
    """Whether a result of this name, and the before/after picture, are in a folder of another store."""
    return name in item.present and item.compare in (None, *item.present)


class _Staged:
    """The files of a photo on this machine: those of other stores are copied to a temporary folder, and back.

    Args:
        item: the photo. folder: the temporary one.
    """

    def __init__(self, item: Item, folder: Path):
        self._item, self._folder = item, folder
        self.source = self._path(item.source, "source")
        self._output = Path(item.folder.path) if item.folder.is_local else folder / "output"

    def _path(self, place: Place, part: str) -> Path:
        return Path(place.path) if place.is_local else self._folder / part / (place.name or "photo")

    def fetch(self) -> Errand:
        """Copy what is read, and make the folder for what is written; raises OSError."""
        item = self._item
        self._output.mkdir(parents=True, exist_ok=True)
        mask = None if item.mask is None else self._path(item.mask, "mask")
        for place, path in ((item.source, self.source), (item.mask, mask)):
            if place is not None and path is not None and not place.is_local:
                path.parent.mkdir()
                places.fetch(place, path)
        compare = None if item.compare is None else self._output / item.compare
        return Errand(self.source, self._output / item.name, compare, mask)

    def store(self, outcome: dict[str, Any], restorer: Restorer) -> dict[str, Any]:
        """Copy what was written to another store: the result last, so that it says that all is there."""
        item = self._item
        if item.folder.is_local or outcome["status"] != "restored":
            return outcome
        output = Path(outcome["output"])
        try:
            if item.compare is not None:
                places.store(self._output / item.compare, item.folder / item.compare)
            places.store(output, item.folder / output.name)
        except OSError as error:
            return restorer.failed(self.source, error)
        return outcome

    def named(self, outcome: dict[str, Any]) -> dict[str, Any]:
        """An outcome with the names of the stores instead of those of temporary files."""
        item = self._item
        names = {str(self.source): str(item.source), str(self._output): str(item.folder)}
        if item.mask is not None:
            names[str(self._path(item.mask, "mask"))] = str(item.mask)

        def renamed(value: Any) -> Any:
            if isinstance(value, str):
                for path, name in names.items():
                    value = value.replace(path, name)
            return value

        return {key: renamed(value) for key, value in outcome.items()}
