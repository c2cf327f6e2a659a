"""The photos of a training: found in folders and lists, read when they are needed.

Only paths, and the photos used last, are in memory, so that a set may be larger than it.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import Lock

import numpy as np

from resshift_fast.core.files import expand_home
from resshift_fast.images.alpha import bleed_colors
from resshift_fast.images.errors import ImageError
from resshift_fast.images.files import FORMATS, missing_file
from resshift_fast.images.photo import in_8_bits
from resshift_fast.images.reading import read

CACHED_EPOCHS = 2  # batches that are prepared at the same time may lie in two
TRIES = 100  # random photos instead of an unusable one, before all are tried in turn


def list_photos(sources: Sequence[str | Path]) -> list[str]:
    """Paths of the photos in folders and list files, each folder's sorted, each path once.

    A folder is searched with those below it; hidden files and folders are left out. A list file is a text file with one
    path on each line, relative to the folder of the list; its order is kept. A photo stands for itself. No photo is
    opened.

    Raises:
        FileNotFoundError: if a source does not exist, or none has a photo.
        PermissionError, OSError: if a folder cannot be listed or a list cannot be read.
        ValueError: for a file that is neither a list nor a photo.
    """
    found: dict[str, None] = {}
    for source in sources:
        path = expand_home(source)
        if path.is_dir():
            found |= dict.fromkeys(sorted(_files(str(path), set())))
        elif not path.exists():
            raise missing_file(path)
        elif path.suffix.lower() in FORMATS:
            found[str(path)] = None
        else:
            found |= dict.fromkeys(_listed(path))
    if not found:
        named = ", ".join(map(str, sources))
        raise FileNotFoundError(f"no images in {named}; expected files ending in {', '.join(FORMATS)}")
    return list(found)


def _files(folder: str, seen: set[tuple[int, int]]) -> Iterator[str]:
    """Photos below a folder. `images.search` does more for each file, which takes minutes for a million of them."""
    status = os.stat(folder)
    key = (status.st_dev, status.st_ino)
    if key in seen:  # links to folders may form cycles
        return
    if status.st_ino:
        seen.add(key)
    try:
        entries = os.scandir(folder)
    except PermissionError as error:
        raise PermissionError(f"the folder {folder} cannot be listed: permission denied; check its rights") from error
    below: list[str] = []
    with entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                below.append(entry.path)
            elif os.path.splitext(entry.name)[1].lower() in FORMATS:
                yield entry.path
    for path in sorted(below):
        yield from _files(path, seen)


def _listed(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()  # editors on Windows write a mark first
    except UnicodeDecodeError:
        raise ValueError(
            f"{path} is neither a folder, a photo nor a text file with one path on each line; name one of them"
        ) from None
    return [os.path.join(path.parent, line.strip()) for line in lines if line.strip()]


def read_rgb(path: str | Path) -> np.ndarray:
    """Read an image as `restore` does (`images.read`), upright as uint8 RGB [H, W, 3].

    16 bits are rounded to 8. Alpha is dropped; transparent pixels get the colours of the visible ones around them.

    Raises:
        OSError, ImageError: for a file that cannot be read, or whose white level is undefined (float, signed).
    """
    photo = in_8_bits(read(path))
    return photo.pixels if photo.alpha is None else bleed_colors(photo.pixels, photo.alpha)


class Photos:
    """Photos that are read when they are needed.

    Every photo is used once in each epoch, in an order that depends on the seed and the epoch. One that is unreadable
    or too small is replaced by a random other one and reported once. Threads may share an object.

    Args:
        sources: as in `list_photos`.
        min_side: shortest side of a photo that is used, in pixels.
        cache_mb: memory for photos that may be needed again, in MB of 10⁶ bytes.

    Raises:
        FileNotFoundError, OSError: as `list_photos`.
        ValueError: if no photo is usable; some of the reasons are in the message.
    """

    def __init__(self, sources: Sequence[str | Path], *, min_side: int, cache_mb: int = 500):
        self.paths = list_photos(sources)
        self.min_side, self._cache_bytes = min_side, cache_mb * 1_000_000
        self._lock = Lock()
        self._cache: OrderedDict[int, np.ndarray] = OrderedDict()
        self._orders: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()
        self._held = 0
        self._unusable: set[int] = set()
        self._reports: list[str] = []
        if all(self.get(index) is None for index in range(len(self.paths))):
            reasons = "; ".join(self._reports[:3] + ["…"] * (len(self._reports) > 3))
            raise ValueError(
                f"no usable photo in {', '.join(map(str, sources))} ({reasons}); "
                f"every side must be at least {min_side} pixels"
            )

    def __len__(self) -> int:
        return len(self.paths)

    def reports(self) -> list[str]:
        """One line for each photo that was found to be unusable since the last call."""
        with self._lock:
            new, self._reports = self._reports, []
        return new

    def get(self, index: int) -> np.ndarray | None:
        """Photo number `index`, uint8 [H, W, 3]; None if it is unusable."""
        with self._lock:
            if index in self._unusable:
                return None
            if index in self._cache:
                self._cache.move_to_end(index)
                return self._cache[index]
        path, problem = self.paths[index], ""
        pixels = None
        try:
            pixels = read_rgb(path)
            if min(pixels.shape[:2]) < self.min_side:
                problem = f"{path} is {pixels.shape[1]}×{pixels.shape[0]}, below {self.min_side} pixels a side"
        except (OSError, ImageError) as error:
            problem = str(error)
        with self._lock:
            if pixels is None or problem:
                if index not in self._unusable:
                    self._reports.append(problem)
                self._unusable.add(index)
                return None
            pixels.setflags(write=False)
            self._keep(index, pixels)
        return pixels

    def _keep(self, index: int, pixels: np.ndarray) -> None:
        if index in self._cache or pixels.nbytes > self._cache_bytes:
            return
        self._cache[index] = pixels
        self._held += pixels.nbytes
        while self._held > self._cache_bytes:
            self._held -= self._cache.popitem(last=False)[1].nbytes

    def at(self, seed: int, position: int, rng: np.random.Generator) -> np.ndarray:
        """The photo for a place in the sequence of all samples, uint8 [H, W, 3].

        Args:
            seed: of the run.
            position: the number of samples before this one in the run.
            rng: chooses another photo instead of an unusable one.
        """
        epoch, place = divmod(position, len(self.paths))
        index = int(self._order(seed, epoch)[place])
        for _ in range(TRIES):
            if (photo := self.get(index)) is not None:
                return photo
            index = int(rng.integers(len(self.paths)))
        while (photo := self.get(index)) is None:  # there is one: __init__ has found it
            index = (index + 1) % len(self.paths)
        return photo

    def _order(self, seed: int, epoch: int) -> np.ndarray:
        key = (seed, epoch)
        with self._lock:
            if key not in self._orders:
                self._orders[key] = np.random.default_rng([seed, epoch]).permutation(len(self.paths))
                while len(self._orders) > CACHED_EPOCHS:
                    self._orders.popitem(last=False)
            return self._orders[key]
