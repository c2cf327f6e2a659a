"""What a file says about a photo besides pixels, colours and EXIF: resolution, XMP, comments, text of PNG."""

import re
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image
from PIL.ExifTags import Base

from resshift_fast.images import png

_OLD_EXIF = (b"Raw profile type exif", b"Raw profile type APP1", b"Raw profile type icc", b"Raw profile type icm")
_JPEG_XMP, _JPEG_COMMENT = 65504, 65533  # the most bytes that one segment holds
# Properties that are not true of the result: it is upright, larger, and has no second part.
_OUTDATED = (
    rb"tiff:ImageWidth|tiff:ImageLength|exif:PixelXDimension|exif:PixelYDimension|xmpNote:HasExtendedXMP|hdrgm:Version"
)


@dataclass(frozen=True)
class Notes:
    """Notes of a file, kept where the format of the result can.

    Attributes:
        dpi: pixels per inch in x and y.
        xmp: the XMP packet, whose orientation is 1 and which has no sizes.
        comment: of a JPEG.
        text: text chunks of a PNG, (type, content), byte for byte.
    """

    dpi: tuple[float, float] | None = None
    xmp: bytes | None = None
    comment: bytes | None = None
    text: tuple[png.Chunk, ...] = ()


def notes_of(image: Image.Image, chunks: Sequence[png.Chunk] = ()) -> Notes:
    """The notes of an image that Pillow has opened, and of the chunks that were taken out of a PNG."""
    texts = [(kind, content) for kind, content in chunks if kind in png.TEXT]
    xmp = image.info.get("xmp")
    comment = image.info.get("comment")
    return Notes(
        dpi=_dpi(image),
        xmp=clean_xmp(xmp) if isinstance(xmp, bytes) else None,
        comment=comment if isinstance(comment, bytes) and comment else None,
        text=tuple(text for text in texts if text[1].partition(b"\0")[0] not in (png.XMP, *_OLD_EXIF)),
    )


def _dpi(image: Image.Image) -> tuple[float, float] | None:
    is_jpeg = image.format in ("JPEG", "MPO")
    if "dpi" not in image.info or (is_jpeg and not image.info.get("jfif_unit")):  # Pillow makes up that of a JPEG
        try:
            return dpi_of(image.getexif())
        except Exception:  # Pillow fails in many ways on damaged EXIF
            return None
    return _plausible(*image.info["dpi"])


def dpi_of(exif: Image.Exif) -> tuple[float, float] | None:
    """Pixels per inch by EXIF; None if it has none."""
    per_inch = {1: 0.0, 2: 1.0, 3: 2.54}.get(exif.get(Base.ResolutionUnit, 2), 0.0)
    found = _plausible(exif.get(Base.XResolution), exif.get(Base.YResolution))
    return _plausible(found[0] * per_inch, found[1] * per_inch) if found else None


def _plausible(x: Any, y: Any) -> tuple[float, float] | None:
    try:
        x, y = float(x), float(y)
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    return (x, y) if 1 < x < 1e5 and 1 < y < 1e5 else None


def clean_xmp(xmp: bytes) -> bytes:
    """XMP that is still true after the pixels were turned upright and enlarged."""
    xmp = re.sub(rb"(tiff:Orientation\s*(?:=\s*[\"']|>\s*))\d+", rb"\g<1>1", xmp)
    xmp = re.sub(rb"\s(?:%s)\s*=\s*(?:\"[^\"]*\"|'[^']*')" % _OUTDATED, b"", xmp)
    return re.sub(rb"<(%s)>[^<]*</\1>\s*" % _OUTDATED, b"", xmp)


def chunks_of(notes: Notes) -> list[png.Chunk]:
    """The notes as chunks of a PNG."""
    chunks = list(notes.text)
    if notes.dpi:
        per_meter = [round(value / 0.0254) for value in notes.dpi]
        chunks.append((b"pHYs", b"".join(value.to_bytes(4, "big") for value in per_meter) + b"\1"))
    if notes.xmp:
        chunks.append((b"iTXt", png.XMP + b"\0\0\0\0\0" + notes.xmp))
    if notes.comment:
        chunks.append((b"zTXt", b"Comment\0\0" + zlib.compress(notes.comment)))
    return chunks


def options_of(notes: Notes, form: str) -> dict[str, Any]:
    """The notes as options of Pillow's ``save``, as far as the format can keep them."""
    options: dict[str, Any] = {}
    if form in ("JPEG", "BMP") and notes.dpi:
        options["dpi"] = notes.dpi
    if notes.xmp and (form == "WEBP" or (form == "JPEG" and len(notes.xmp) <= _JPEG_XMP)):
        options["xmp"] = notes.xmp
    if notes.comment and form == "JPEG" and len(notes.comment) <= _JPEG_COMMENT:
        options["comment"] = notes.comment
    return options


def with_resolution(exif: bytes | None, notes: Notes) -> bytes | None:
    """EXIF with the resolution, for a format that has no other place for it; an own one of the EXIF precedes."""
    if not notes.dpi:
        return exif
    tags = Image.Exif()
    if exif:
        tags.load(exif)
    if Base.XResolution in tags:
        return exif
    tags[Base.XResolution], tags[Base.YResolution], tags[Base.ResolutionUnit] = *notes.dpi, 2  # inches
    return tags.tobytes()


def warn_of_losses(notes: Notes, form: str, name: str) -> None:
    """Warn of notes that are not written in this format."""
    if form == "PNG":
        return
    kept = {"xmp"} if form == "TIFF" else options_of(notes, form).keys()
    words = {"xmp": "XMP metadata", "comment": "comment", "text": "text chunks"}
    lost = [word for key, word in words.items() if getattr(notes, key) and key not in kept]
    if lost:
        warnings.warn(f"{name}: {form} does not keep its {' and '.join(lost)}; PNG does", UserWarning, stacklevel=4)
