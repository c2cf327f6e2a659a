"""Reading photos: every kind of file, and Pillow's images, upright and with their profile, alpha and metadata."""

import io
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import IO, Any, BinaryIO, TypeGuard

import numpy as np
from PIL import Image

from resshift_fast.core.files import NotRegularError, open_regular
from resshift_fast.images import boxes, directories, heif, libtiff, png, png16, tiff
from resshift_fast.images.codecs import bmp_profile, clean_exif, decode_planes, what_it_is
from resshift_fast.images.color import (
    adobe_profile,
    is_adobe_rgb,
    profile_of,
    profile_space,
    srgb_of_cmyk,
    srgb_of_lab,
)
from resshift_fast.images.errors import DamagedError, ImageError, damaged, one_line
from resshift_fast.images.files import missing_file
from resshift_fast.images.headers import header_of, needed_bytes
from resshift_fast.images.limits import check_pixels, lifted, too_large
from resshift_fast.images.notes import Notes, clean_xmp, dpi_of, notes_of
from resshift_fast.images.photo import Photo, rounded

Encoded = bytes | bytearray | memoryview
"""An image file that is in memory."""
File = str | PathLike[str] | Encoded | IO[bytes]
"""An image file: its path, its bytes, or open."""
_READ_FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "AVIF")

# EXIF orientation (tag 274) to the transform that turns the stored pixels upright.
_UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}


def is_file(image: Any) -> TypeGuard[File]:
    """Whether `read` takes it: a path, the bytes of a file, or an open file."""
    return isinstance(image, str | PathLike | Encoded) or hasattr(image, "read")


def read(path: File) -> Photo:
    """Read a PNG, JPEG, WebP, AVIF, HEIC, GIF, TIFF or BMP; the content decides, not the suffix.

    The bytes of such a file are read too, and a binary file that is open, from its beginning if it can seek.

    Supported are gray of 1 to 16 bits, RGB, palettes, every kind of transparency (16-bit ones too) and CMYK. CMYK is
    converted to sRGB through its profile (in 8 bits), or without one by the product of what the inks leave; the profile
    is then dropped, since it does not describe RGB. L*a*b* is converted too. The EXIF orientation is applied. The first
    of several frames or pages is read, with a warning. Float, signed and 32-bit TIFFs are refused, because they do not
    define which value is white, and camera raw files, because what can be read of them is a preview. An AVIF is read
    in 8 bits; a HEIC, of any depth, needs pillow-heif. The limit on pixels is Pillow's (``PIL.Image.MAX_IMAGE_PIXELS``:
    a warning above it, an error above twice that, 179 million by default), and 16 times that by default for files
    with a byte for 32 pixels, which are no decompression bombs.

    Raises:
        TypeError: if it is none of these, such as a file that is open as text.
        FileNotFoundError: with the nearest name in the folder.
        IsADirectoryError, PermissionError, OSError: if the file cannot be opened or read.
        ImageError: if it is empty, not an image, damaged, truncated, too large or of a kind that is refused.
    """
    if isinstance(path, str | PathLike):
        return _decoded(file_bytes(Path(path)), str(Path(path)))
    if isinstance(path, Encoded):
        return read_bytes(path)
    if not hasattr(path, "read"):
        raise TypeError(f"read: expected a path, bytes or an open file, got {type(path).__name__}")
    name = str(getattr(path, "name", "image"))
    if hasattr(path, "seekable") and path.seekable():
        path.seek(0)
    data = path.read()
    if not isinstance(data, bytes):
        raise TypeError(f"{name} is open as text; open it with mode 'rb'")
    return read_bytes(data, name=name)


def read_bytes(data: Encoded, *, name: str = "image") -> Photo:
    """Read the content of an image file as `read` does.

    Args:
        data: of the whole file. name: of the image, for messages.

    Raises:
        ImageError: as `read`.
    """
    return _decoded(_needed(io.BytesIO(data), name), name)


def _decoded(data: bytes, name: str) -> Photo:
    if data.startswith(directories.MAGIC):
        return _read_tiff(data, name)
    chunks: list[png.Chunk] = []
    if data.startswith(png.SIGNATURE):
        data, chunks = png.split(data)
    image = opened(data, name)
    image.info.update(png.info(chunks))
    if image.format == "BMP":
        image.info["icc_profile"] = bmp_profile(data)
    elif image.format == "AVIF":
        _add_avif_properties(image, data, name)
    _leave_out_large_exif(image, name)
    _warn_of_frames(image, chunks, name)
    photo = photo_of(image, name, data, chunks)
    # Pillow reduces 16-bit colour, and gray with alpha, to 8 bits; it reads other gray in full.
    if image.format == "HEIF" and image.info.get("bit_depth", 8) > 8:
        return _with_heif_bits(photo, data)
    is_deep = image.format == "PNG" and png.header(data)[0] == 16 and png.header(data)[1] != 0
    return _with_16_bits(photo, image, data) if is_deep else photo


def _read_tiff(data: bytes, name: str) -> Photo:
    with libtiff.errors() as lines:
        try:
            samples = tiff.decode(data, name)
            photo = photo_of(opened(data, name), name, data) if samples is None else _tiff_photo(samples, name, data)
        except DamagedError as error:
            raise tiff.explained(error, data, name, lines) from error
    if lines:
        text = f"{name} is damaged, and parts of the picture may be wrong ({lines[0]}); fetch or export it again"
        warnings.warn(text, UserWarning, stacklevel=4)
    return photo


def opened(data: bytes, name: str) -> Image.Image:
    """The image in a file, of which only the header has been read."""
    header = header_of(io.BytesIO(data))
    pixels = 0
    if header is not None:
        pixels = header.width * header.height
        check_pixels(name, header.width, header.height, len(data))
    try:
        with lifted(pixels):
            if boxes.kind_of(data[:1024]) == "HEIF":
                image = heif.opened(data, name)
            else:
                image = Image.open(io.BytesIO(data), formats=_READ_FORMATS)
    except Image.DecompressionBombError as error:
        raise too_large(name) from error
    except ImageError:
        raise
    except Exception as error:  # Pillow's parsers raise whatever a damaged file leads them to.
        raise DamagedError(what_it_is(name, data[:1024])) from error
    if image.width * image.height > pixels:  # the header says less than there is
        check_pixels(name, image.width, image.height, len(data))
    return image


def _add_avif_properties(image: Image.Image, data: bytes, name: str) -> None:
    """Note the colour space of an AVIF that has no profile, which Pillow ignores, and warn of lost bits."""
    properties = boxes.read_properties(io.BytesIO(data))
    if properties is None:
        return
    if properties.cicp and not image.info.get("icc_profile"):
        image.info["cicp"] = properties.cicp
    if properties.bits > 8:
        warnings.warn(f"{name}: its {properties.bits} bits per channel are read as 8", UserWarning, stacklevel=4)


def _leave_out_large_exif(image: Image.Image, name: str) -> None:
    """Leave out EXIF whose tags claim much more than there is, since Pillow copies it for each."""
    exif = image.info.get("exif")
    if isinstance(exif, bytes):
        plain = exif.removeprefix(b"Exif\0\0")
        if directories.tags_exceed(io.BytesIO(plain), 2 * len(plain) + (1 << 16)):
            del image.info["exif"]
            warnings.warn(f"{name}: its EXIF is damaged and was left out", UserWarning, stacklevel=4)


def _warn_of_frames(image: Image.Image, chunks: Sequence[png.Chunk], name: str) -> None:
    # Not of a JPEG: the further pictures of a camera's are previews and gain maps.
    # Nor of a TIFF, whose pages have been counted: Pillow raises what it likes on damaged ones.
    is_animation = image.format in ("WEBP", "GIF", "AVIF", "HEIF")
    frames = int(getattr(image, "n_frames", 1)) if is_animation else png.frames(chunks)
    if frames > 1:
        what, which = (
            ("an animation", "frames, of which only the first")
            if image.format != "HEIF"
            else ("a file", "pictures, of which only the main one")
        )
        text = f"{name} is {what} of {frames} {which} is read"
        warnings.warn(text, UserWarning, stacklevel=4)


def file_bytes(path: Path) -> bytes:
    """A file, or of a large one as much as its picture needs; raises as `read` does."""
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder, not an image; name the files in it")
    try:
        with open_regular(path) as file:
            return _needed(file, str(path))
    except NotRegularError as error:
        raise ImageError(str(error)) from error
    except FileNotFoundError as error:
        raise missing_file(path) from error
    except PermissionError as error:
        raise PermissionError(f"{path} cannot be read: permission denied; check its rights") from error
    except OSError as error:
        raise OSError(f"{path} cannot be read: {error.strerror or error}") from error


def _needed(file: BinaryIO, name: str) -> bytes:
    """As much of an open file as its picture needs; raises ImageError as `read` does."""
    start = file.read(4)
    if not start:
        raise ImageError(f"{name} is empty (0 bytes); fetch or export it again")
    if start in directories.MAGIC:
        directories.check_pages(file, name)
    file.seek(0)
    return needed_bytes(file, name)


def from_pil(image: Image.Image, *, name: str = "image") -> Photo:
    """Convert a Pillow image of any mode but float to a ``Photo``; orientation, profile and EXIF as for ``read``.

    Mode I;16 gives uint16, and so does mode I if its values are within 0 to 65535. All others give uint8.

    Args:
        image: the image; loaded if it is not yet.
        name: where it came from, for messages.

    Raises:
        TypeError: if it is not a Pillow image.
        ImageError: if it is damaged, has no pixels, or holds float or signed values.
    """
    if not isinstance(image, Image.Image):
        raise TypeError(f"from_pil: expected a PIL.Image.Image, got {type(image).__name__}; see read for paths")
    return photo_of(image, name)


def photo_of(image: Image.Image, name: str, data: bytes | None = None, chunks: Sequence[png.Chunk] = ()) -> Photo:
    """The photo of an image that has been opened, and the file and chunks of a PNG that it is from, if any."""
    if 0 in image.size:
        raise ImageError(f"{name} has no pixels ({image.width}×{image.height})")
    if image.format == "TIFF" and hasattr(image, "tag_v2"):
        tiff.refuse_strange(image.tag_v2, name)
    try:
        with lifted(0 if data is None else image.width * image.height):
            image.load()
    except Image.DecompressionBombError as error:
        raise too_large(name) from error
    except Exception as error:  # as in read
        raise damaged(name, one_line(error)) from error
    # Not before loading: a PNG may have its EXIF after the pixels, and Pillow turns a TIFF upright while it loads.
    exif, orientation = _exif(image)
    pixels, alpha, gray = decode_planes(image, image.info.get("icc_profile"), name, data)
    if image.format == "PNG" and data is not None:
        gray = png.header(data)[1] in (0, 4)  # Pillow gives 16-bit gray with alpha as RGBA
    icc_profile = profile_of(image, gray, name)
    if icc_profile and (image.mode in ("CMYK", "LAB") or profile_space(icc_profile) not in (b"RGB ", b"GRAY")):
        icc_profile = None
    photo = _upright(pixels, alpha, gray, icc_profile, exif, orientation, name)
    return replace(photo, notes=notes_of(image, chunks))


def _upright(
    pixels: np.ndarray,
    alpha: np.ndarray | None,
    gray: bool,
    icc_profile: bytes | None,
    exif: bytes | None,
    orientation: int,
    name: str,
) -> Photo:
    turn = _UPRIGHT.get(orientation, _UPRIGHT[1])
    turned_alpha = None if alpha is None else np.ascontiguousarray(turn(alpha))
    return Photo(np.ascontiguousarray(turn(pixels)), turned_alpha, gray, icc_profile, exif, name)


def _exif(image: Image.Image) -> tuple[bytes | None, int]:
    try:
        return _clean(image.getexif())
    except Exception:  # Pillow fails in many ways on damaged EXIF; the photo is read without it
        return None, 1


def _clean(exif: Image.Exif) -> tuple[bytes | None, int]:
    orientation = exif.get(0x0112, 1)
    return clean_exif(exif), orientation if orientation in _UPRIGHT else 1


def _with_16_bits(photo: Photo, image: Image.Image, data: bytes) -> Photo:
    pixels, alpha = png16.decode_16_bit(data, photo.name)
    gray, orientation = png.header(data)[1] == 4, _exif(image)[1]
    deep = _upright(pixels, alpha, gray, photo.icc_profile, photo.exif, orientation, photo.name)
    return replace(deep, notes=photo.notes)


def _with_heif_bits(photo: Photo, data: bytes) -> Photo:
    """The photo with all bits of a HEIC of which Pillow reads 8."""
    planes = heif.deep_planes(data)
    if planes is None:
        return photo
    planes = planes[..., None] if planes.ndim == 2 else planes
    colours = 3 if planes.shape[2] > 2 else 1
    pixels = np.ascontiguousarray(np.broadcast_to(planes[..., :colours], (*planes.shape[:2], 3)))
    alpha = np.ascontiguousarray(planes[..., colours]) if planes.shape[2] > colours else None
    return replace(photo, pixels=pixels, alpha=alpha)


def _in_rgb(samples: tiff.Samples, icc_profile: bytes | None, name: str) -> tuple[np.ndarray, np.ndarray | None]:
    """CMYK or L*a*b* as sRGB, and the alpha in the same number of bits."""
    values, alpha = samples.values, samples.alpha
    is_cmyk = samples.photometric == 5
    if values.dtype == np.uint16:
        if not is_cmyk:
            return srgb_of_lab(values), alpha
        if not icc_profile:
            return srgb_of_cmyk(values), alpha
        text = f"{name}: its 16-bit CMYK is converted through its profile in 8 bits; convert it to RGB first for 16"
        warnings.warn(text, UserWarning, stacklevel=6)
        values, alpha = rounded(values), None if alpha is None else rounded(alpha)
    return decode_planes(Image.fromarray(values, "CMYK" if is_cmyk else "LAB"), icc_profile, name, None)[0], alpha


def _tiff_photo(samples: tiff.Samples, name: str, data: bytes) -> Photo:
    icc_profile = samples.tags.get(34675)
    if not isinstance(icc_profile, bytes):
        icc_profile = None
    exif, orientation, dpi = None, samples.tags.get(274, 1), None
    try:
        its_exif = Image.Exif()
        its_exif.load(data)
        exif, orientation = _clean(its_exif)
        dpi = dpi_of(its_exif)
        if not icc_profile and samples.photometric not in (5, 8) and is_adobe_rgb(its_exif):
            icc_profile = adobe_profile(samples.values.shape[2] == 1)
    except Exception:  # as in _exif
        pass
    values, alpha, gray = samples.values, samples.alpha, samples.values.shape[2] == 1
    if samples.photometric in (5, 8):
        values, alpha = _in_rgb(samples, icc_profile, name)
        icc_profile = None
    pixels = np.repeat(values, 3, axis=2) if gray else values
    if icc_profile and profile_space(icc_profile) not in (b"RGB ", b"GRAY"):
        icc_profile = None
    photo = _upright(pixels, alpha, gray, icc_profile, exif, orientation, name)
    xmp = samples.tags.get(700)
    return replace(photo, notes=Notes(dpi, clean_xmp(xmp) if isinstance(xmp, bytes) else None))
