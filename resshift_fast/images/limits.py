"""The limit on the pixels of a photo, against decompression bombs: small files that fill the memory.

It is Pillow's, ``PIL.Image.MAX_IMAGE_PIXELS``: a warning above it, an error above twice that. A file is no bomb if it
has the bytes for its pixels. While the limit has Pillow's default, such a file may have as many pixels as the result of
any photo that is read, so that what was restored from a camera's photo is read again.
"""

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image

from resshift_fast.images.errors import ImageError

DEFAULT = 89_478_485  # Pillow's, in pixels
LARGEST_GAIN = 16  # pixels of a result for one of its photo
PIXELS_PER_BYTE = 32  # of photos that compress well; a bomb has hundreds

_lock = threading.Lock()
_lifting = 0  # blocks of `lifted` that run
_before: int | None = None


def limit() -> int:
    """Pixels above which there is a warning, and an error above twice that; 0 if there is no limit."""
    with _lock:
        return (_before if _lifting else Image.MAX_IMAGE_PIXELS) or 0


def check_pixels(name: str, width: int, height: int, size: int) -> None:
    """Refuse, or warn of, an image with too many pixels.

    Args:
        name: for messages. width, height: in pixels. size: of its file, in bytes.

    Raises:
        ImageError: if it has too many. Warns: DecompressionBombWarning if it has many.
    """
    most, pixels = limit(), width * height
    if not most or pixels <= most:
        return
    if most == DEFAULT and pixels <= min(size * PIXELS_PER_BYTE, 2 * most * LARGEST_GAIN):
        return
    if pixels > 2 * most:
        raise too_large(name)
    warnings.warn(f"{name} has {pixels:,} pixels", Image.DecompressionBombWarning, stacklevel=4)


def too_large(name: str) -> ImageError:
    """The error for an image with more pixels than the limit."""
    return ImageError(
        f"{name} has more than {2 * limit():,} pixels, the limit against decompression bombs; crop it, or raise the "
        f"limit if you trust it: --max-megapixels N, or PIL.Image.MAX_IMAGE_PIXELS in Python"
    )


@contextmanager
def limited(pixels: int) -> Iterator[None]:
    """Refuse images with more than this many pixels within the block, whatever their files hold; 0: no limit."""
    before = Image.MAX_IMAGE_PIXELS
    # Pillow refuses twice this number, and warns of more than it, which is not wanted of a limit that was chosen.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        Image.MAX_IMAGE_PIXELS = pixels // 2 or None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


@contextmanager
def lifted(pixels: int) -> Iterator[None]:
    """Let Pillow open and load an image of this many pixels, which `check_pixels` has accepted, within the block."""
    global _lifting, _before
    if pixels <= limit():
        yield
        return
    with _lock:
        if not _lifting:
            _before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        _lifting += 1
    try:
        yield
    finally:
        with _lock:
            _lifting -= 1
            if not _lifting:
                Image.MAX_IMAGE_PIXELS = _before
