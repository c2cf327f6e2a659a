"""From the bytes of a request to a photo, and from its result to those of the answer."""

from __future__ import annotations

import io
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from resshift_fast import images
from resshift_fast.apps.service.refusals import RefusedError
from resshift_fast.apps.service.uploads import Options, Upload
from resshift_fast.images import Photo, results
from resshift_fast.images.fitting import Fitting
from resshift_fast.images.headers import header_of
from resshift_fast.models.catalog import ModelSpec

_SUFFIXES = {"png": ".png", "jpg": ".jpg", "webp": ".webp", "tiff": ".tif"}
_SAME = {"JPEG": ".jpg", "WEBP": ".webp", "TIFF": ".tif", "BMP": ".bmp"}
_TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".webp": "image/webp", ".tif": "image/tiff", ".bmp": "image/bmp"}


@dataclass(frozen=True)
class Decoded:
    """A picture that is ready to be restored.

    Args:
        photo: as it goes into the network. mask: bool [H, W], for inpainting models.
        fitting: how its result is made to fit. suffix: of the format that was asked for.
        notes: what the client is to know.
    """

    photo: Photo
    mask: np.ndarray | None
    fitting: Fitting
    suffix: str
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Encoded:
    """The bytes of an answer, their type, what the client is to know, and the number of pixels."""

    data: bytes
    media_type: str
    notes: tuple[str, ...]
    pixels: int


def decode(upload: Upload, spec: ModelSpec, most_pixels: int) -> Decoded:
    """Read the picture of a request.

    Raises:
        RefusedError, ImageError: if it is none, has too many pixels, or its mask or options do not fit.
    """
    options = upload.options
    fitting = _fitting(options, spec)
    if spec.needs_mask != (upload.mask is not None):
        need = (
            "needs a mask: send it as the file `mask` of a form" if spec.needs_mask else "takes no mask; leave it out"
        )
        raise RefusedError(400, f"{spec.name} {need}")
    form = _checked(upload.image, "the picture", most_pixels)
    with _warnings() as texts:
        photo, notes = fitting.fit(images.read_bytes(upload.image, name="the picture"))
        mask = None if upload.mask is None else _mask(upload.mask, photo, most_pixels)
    suffix = _SUFFIXES.get(options.format) or _SAME.get(form, ".png")
    return Decoded(photo, mask, fitting, suffix, (*texts, *notes))


def encode(decoded: Decoded, result: Photo) -> Encoded:
    """The answer for a result; PNG if the format that was asked for can't hold it."""
    result = decoded.fitting.fit_result(decoded.photo, result)
    suffix = images.suffix_for(result, decoded.suffix)
    notes = () if suffix == decoded.suffix else (f"written as PNG, since {decoded.suffix} can't hold the result",)
    with _warnings() as texts:
        data = images.encoded(f"result{suffix}", result, decoded.fitting.quality)
    return Encoded(data, _TYPES[suffix], (*decoded.notes, *notes, *texts), result.width * result.height)


def _fitting(options: Options, spec: ModelSpec) -> Fitting:
    if options.scale is not None and options.scale > spec.scale:
        text = f"scale is {options.scale:g}, but {spec.name} enlarges {spec.scale} times; give at most that"
        raise RefusedError(400, text)
    try:
        background = None if options.background is None else results.colour(options.background)
    except ValueError as error:
        raise RefusedError(400, f"background: {error}") from None
    return Fitting(spec.scale, options.scale, background, options.eight_bits, options.quality, options.strip_metadata)


def _checked(data: bytes, name: str, most_pixels: int) -> str:
    """The format of an image of which only the header has been read; raises RefusedError if it can't be taken."""
    header = header_of(io.BytesIO(data))
    if header is None:
        # Pillow says what it is; what it can read in spite of its header is held to the limit while it is read.
        try:
            images.read_bytes(data, name=name)
        except images.ImageError as error:
            raise RefusedError(415, str(error)) from None
        return "PNG"
    if header.width * header.height > most_pixels:
        size = f"{header.width}×{header.height} pixels, {header.width * header.height / 1e6:.3g} megapixels"
        raise RefusedError(413, f"{name} has {size}, and at most {most_pixels / 1e6:g} are taken; send a smaller one")
    return header.format


def _mask(data: bytes, photo: Photo, most_pixels: int) -> np.ndarray:
    _checked(data, "the mask", most_pixels)
    mask = images.read_mask(images.read_bytes(data, name="the mask"))
    if mask.shape != (photo.height, photo.width):
        sizes = f"the mask is {mask.shape[1]}×{mask.shape[0]}, but the picture is {photo.width}×{photo.height}"
        raise RefusedError(422, f"{sizes}; make them the same size")
    return mask


_listening = threading.local()


@contextmanager
def noted_warnings() -> Iterator[None]:
    """Keep what is warned of while pictures are read and encoded, each for its own request, within the block."""
    with warnings.catch_warnings():
        show = warnings.showwarning
        warnings.simplefilter("always", UserWarning)  # else only the first of each text is shown

        def note(message: Warning | str, *rest: object, **more: object) -> None:
            texts = getattr(_listening, "texts", None)
            if texts is None:
                show(message, *rest, **more)  # type: ignore[arg-type]
            else:
                texts.append(" ".join(str(message).split()))

        warnings.showwarning = note
        yield


@contextmanager
def _warnings() -> Iterator[list[str]]:
    """What is warned of in this thread within the block."""
    _listening.texts = texts = list[str]()
    try:
        yield texts
    finally:
        _listening.texts = None
