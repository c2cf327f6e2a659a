"""From Pillow's images to arrays, what files are, EXIF cleaning."""

from typing import Any, cast

import numpy as np
from PIL import Image
from PIL.ExifTags import IFD, Base
from PIL.TiffImagePlugin import TiffImageFile

from resshift_fast.images import boxes, directories, png
from resshift_fast.images.color import to_srgb
from resshift_fast.images.errors import ImageError

# First bytes of files, from which the message about an unreadable one says what it is.
_MAGIC = {
    b"\x89PNG": "PNG",
    b"\xff\xd8": "JPEG",
    b"RIFF": "WebP",
    b"BM": "BMP",
    b"GIF8": "GIF",
} | dict.fromkeys(directories.MAGIC, "TIFF")
_FOREIGN_MAGIC = {b"%PDF": "a PDF", b"8BPS": "a Photoshop document", b"PK\x03\x04": "a ZIP archive"}


# Tags that describe a photo and stay true when its pixels are replaced. All others in the first directory (strips,
# bits, sizes, compression, thumbnail, profile) describe the old file.
_DESCRIPTIVE = {
    Base.DocumentName,
    Base.ImageDescription,
    Base.Make,
    Base.Model,
    Base.XResolution,
    Base.YResolution,
    Base.ResolutionUnit,
    Base.Software,
    Base.DateTime,
    Base.Artist,
    Base.HostComputer,
    Base.Rating,
    Base.RatingPercent,
    Base.Copyright,
    Base.XPTitle,
    Base.XPComment,
    Base.XPAuthor,
    Base.XPKeywords,
    Base.XPSubject,
}
_WRONG_AFTER_RESIZE = {Base.ExifImageWidth, Base.ExifImageHeight, Base.ExifInteroperabilityOffset}


def what_it_is(name: str, data: bytes) -> str:
    """One line on a file that Pillow does not recognize, from its first bytes."""
    known = {"HEIF": "HEIC"}.get(boxes.kind_of(data) or "", boxes.kind_of(data))
    for magic, kind in [*_MAGIC.items(), *([(data[:8], known)] if known else [])]:
        if data.startswith(magic):
            return f"{name} is a damaged {kind}, or of a kind that is not supported; export it again as 8 or 16 bit RGB"
    foreign = next((kind for magic, kind in _FOREIGN_MAGIC.items() if data.startswith(magic)), None)
    if data[4:8] == b"ftyp":
        foreign = "a film or a camera raw file"
    if foreign is None:
        head = data[:512]
        is_text = not any(byte < 9 or 13 < byte < 27 for byte in head)
        foreign = "a text file" if is_text and data[:16].isascii() else "not an image that is known here"
    return f"{name} is {foreign}; give a PNG, JPEG, WebP, AVIF, HEIC, GIF, TIFF or BMP"


def decode_planes(
    image: Image.Image, icc_profile: bytes | None, name: str, data: bytes | None
) -> tuple[np.ndarray, np.ndarray | None, bool]:
    """The arrays of an image that Pillow has loaded.

    Args:
        image: the image, of any mode.
        icc_profile: its profile, by which CMYK and LAB become sRGB.
        name: for messages.
        data: the file it came from, if any.

    Returns:
        Pixels uint8 or uint16 [H, W, 3], alpha [H, W] in the same dtype or None, and whether the image is gray.

    Raises:
        ImageError: if it holds float values, or integers beyond 16 bits.
    """
    if image.mode == "F":
        raise ImageError(f"{name} holds float pixels; convert it to 8 or 16 bit first")
    if image.mode.startswith("I"):
        return _planes_16_bit_gray(image, name)
    gray = image.mode in ("1", "L", "LA", "La")
    if image.has_transparency_data:
        if gray and isinstance(image.info.get("transparency"), int):
            _scale_clear_gray(image, data)
        image = image.convert("LA" if gray else "RGBA")
    elif image.mode in ("CMYK", "LAB"):
        image = to_srgb(image, icc_profile) or image.convert("RGB")
    else:
        image = image.convert("L" if gray else "RGB")
    planes = np.array(image)
    alpha = planes[..., -1] if image.mode in ("LA", "RGBA") else None
    if gray:
        planes = planes[..., None] if alpha is None else planes[..., :1]
        return np.repeat(planes, 3, axis=2), alpha, True
    return planes[..., :3], alpha, False


def bmp_profile(data: bytes) -> bytes | None:
    """The profile embedded in a BMP (version 5 of its header), which Pillow ignores; None without one."""
    if len(data) < 138 or int.from_bytes(data[14:18], "little") < 124 or data[70:74] != b"DEBM":
        return None
    start, size = (int.from_bytes(data[place : place + 4], "little") for place in (126, 130))
    return data[14 + start : 14 + start + size] or None


def _scale_clear_gray(image: Image.Image, data: bytes | None) -> None:
    # Pillow scales 1- to 4-bit gray to 8 bits, but not always the value that a PNG declares transparent.
    if image.format == "PNG" and data is not None:
        depth = png.header(data)[0]
        clear = image.info["transparency"]
        if depth < 8 and clear < 2**depth:
            image.info["transparency"] = clear * 255 // (2**depth - 1)


def _planes_16_bit_gray(image: Image.Image, name: str) -> tuple[np.ndarray, np.ndarray | None, bool]:
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 65535:
        raise ImageError(
            f"{name} holds 32-bit pixels (mode {image.mode}) beyond 0 to 65535; convert it to 8 or 16 bit first"
        )
    plane = values.astype(np.uint16)
    clear = image.info.get("transparency")
    alpha = np.where(plane == clear, 0, 65535).astype(np.uint16) if isinstance(clear, int) else None
    if image.format == "TIFF" and _tags(image).get(262) == 0:  # white is zero
        plane = 65535 - plane
    return np.repeat(plane[..., None], 3, axis=2), alpha, True


def clean_exif(exif: Image.Exif) -> bytes | None:
    """EXIF that is still true after the pixels were rotated upright and enlarged.

    It keeps the descriptive tags of the first directory, the Exif directory without the pixel sizes (maker notes are
    unchanged) and GPS. The orientation becomes 1. The thumbnail and the tags of the old file's layout are dropped.

    Returns:
        Bytes that begin with ``Exif\\0\\0``, the form that Pillow reads and writes; None if there was no EXIF or it is
        too damaged to be written again.
    """
    if not len(exif):
        return None
    try:
        new = Image.Exif()
        for tag in exif:
            if tag in _DESCRIPTIVE:
                new[tag] = exif[tag]
        details = {tag: value for tag, value in exif.get_ifd(IFD.Exif).items() if tag not in _WRONG_AFTER_RESIZE}
        new.get_ifd(IFD.Exif).update(details)
        new.get_ifd(IFD.GPSInfo).update(exif.get_ifd(IFD.GPSInfo))
        new[Base.Orientation] = 1
        return new.tobytes()
    except Exception:  # Pillow fails in many ways on EXIF that cameras write; the photo is kept without it
        return None


def _tags(image: Image.Image) -> Any:
    """The tags of a TIFF, by number."""
    return cast(TiffImageFile, image).tag_v2
