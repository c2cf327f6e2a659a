"""Animations: the frames of a WebP, GIF, APNG or AVIF one after the other, and writing them as an animated WebP.

One frame is in memory at a time, besides the file itself, so that a long animation needs no more than a photo.
"""

import io
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from resshift_fast.core.files import open_regular, write_atomically
from resshift_fast.images import boxes, png
from resshift_fast.images.errors import ImageError, damaged, one_line
from resshift_fast.images.photo import Photo, in_8_bits
from resshift_fast.images.reading import file_bytes, opened, photo_of

SUFFIX = ".webp"
LONGEST_SIDE = 16383  # of a WebP, in pixels


@dataclass(frozen=True)
class Animation:
    """An animation that has been opened.

    Attributes:
        name: where it came from, for messages.
        durations: how long each frame is shown, in milliseconds.
        loop: how often it is played; 0 for ever.
        photos: yields the frames, upright, with the profile and metadata of the file; may be called again.
    """

    name: str
    durations: list[int]
    loop: int
    photos: Callable[[], Iterator[Photo]]


def is_animated(path: Path) -> bool:
    """Whether a file is an animation of several frames, by as little of it as says so."""
    with suppress(Exception), open_regular(path) as file:  # reading the file says what is wrong with it
        head = file.read(64)
        if head[:4] == b"RIFF" and head[12:16] == b"VP8X":
            return bool(head[20] & 2)
        if head.startswith(b"GIF8"):
            file.seek(0)
            with Image.open(file, formats=("GIF",)) as image:
                return getattr(image, "n_frames", 1) > 1
        if head.startswith(png.SIGNATURE):
            return _is_apng(file)
        return boxes.kind_of(head) == "AVIF" and b"avis" in head[: int.from_bytes(head[:4], "big")]
    return False


def _is_apng(file: Any) -> bool:
    """Whether the chunk of an animation is before the pixels."""
    place = len(png.SIGNATURE)
    while True:
        file.seek(place)
        head = file.read(12)
        if len(head) < 12 or head[4:8] in (b"IDAT", b"IEND"):
            return False
        if head[4:8] == b"acTL":
            return int.from_bytes(head[8:12], "big") > 1
        place += 12 + int.from_bytes(head[:4], "big")


def open_animation(path: Path) -> Animation | None:
    """The animation in a file; None if it has one frame.

    Raises:
        ImageError, OSError: as for `reading.read`, also for a damaged frame.
    """
    data = file_bytes(path)
    name = str(path)
    with opened(data, name) as image:
        first = 1 if image.info.get("default_image") else 0  # an APNG's picture for programs that know no animations
        count = int(getattr(image, "n_frames", 1))
        if count - first < 2:
            return None
        # Before a frame is restored: a damaged one is an error at once.
        durations = [round(float(one.info.get("duration", 0))) for one in _frames(image, first, count, name)]
        plays = image.info.get("loop")
        if image.format == "GIF":  # says how often it is repeated, and nothing for once
            plays = 1 if plays is None else plays + 1 if plays else 0

    def photos() -> Iterator[Photo]:
        with opened(data, name) as image:
            for one in _frames(image, first, count, name):
                # Some frames may be gray by chance: then all have to be written as colour.
                yield in_8_bits(replace(photo_of(one, name), gray=False))

    return Animation(name, durations, int(plays or 0), photos)


def _frames(image: Image.Image, first: int, count: int, name: str) -> Iterator[Image.Image]:
    """The image, at one frame after the other."""
    for index in range(first, count):
        try:
            image.seek(index)
            image.load()
        except Exception as error:  # Pillow's parsers raise whatever a damaged file leads them to
            raise damaged(name, f"frame {index + 1} of {count}: {one_line(error)}") from error
        yield image


def write_animation(path: Path, animation: Animation, photos: Iterable[Photo], quality: int) -> None:
    """Write frames as an animated WebP, atomically, with the first one's profile, EXIF and XMP.

    Args:
        path: ends in .webp.
        animation: what the frames are of. photos: the frames, all of one size, which are taken one by one.
        quality: 1 to 100, which is lossless.

    Raises:
        ImageError: if the frames are too large for a WebP. OSError: if the file cannot be written.
    """
    frames = _Stream(photos, len(animation.durations))
    if max(frames.size) > LONGEST_SIDE:
        raise ImageError(
            f"{path} cannot hold this animation: a WebP has at most {LONGEST_SIDE} pixels a side and this has "
            f"{frames.width}×{frames.height}"
        )
    first = frames.first
    options = {"icc_profile": first.icc_profile, "exif": first.exif, "xmp": first.notes.xmp}
    file = io.BytesIO()
    frames.save(
        file,
        "WEBP",
        save_all=True,
        duration=animation.durations,
        loop=animation.loop,
        lossless=quality == 100,
        quality=quality,
        **{key: value for key, value in options.items() if value},
    )
    write_atomically(path, file.getvalue())


class _Stream(Image.Image):
    """An image whose next frame is made when Pillow asks for it, since Pillow keeps all frames of a list."""

    def __init__(self, photos: Iterable[Photo], count: int):
        super().__init__()
        self._photos = iter(photos)
        self.n_frames, self._at = count, 0
        self.first = self._show_next()
        self.info = {}

    def _show_next(self) -> Photo:
        photo = next(self._photos)
        planes = photo.pixels if photo.alpha is None else np.dstack([photo.pixels, photo.alpha])
        image = Image.fromarray(np.ascontiguousarray(planes))
        self.im, self._mode, self._size = image.im, image.mode, image.size
        return photo

    def tell(self) -> int:
        return self._at

    def seek(self, frame: int) -> None:
        if frame == self._at + 1:  # Pillow also goes back at the end, where nothing is left to show
            self._show_next()
            self._at = frame
