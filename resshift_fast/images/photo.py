"""Photos in memory, with their colour profile, alpha channel and metadata, and writing them.

``reading`` makes a ``Photo`` of a file (upright RGB pixels of 8 or 16 bits, alpha beside them, profile and EXIF as
bytes), and here a ``Photo`` becomes a file. Between them the pipeline changes only pixels and alpha.
"""

import io
import struct
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from resshift_fast.core.files import write_atomically
from resshift_fast.images import png, png16, tiff
from resshift_fast.images.color import profile_space, to_srgb
from resshift_fast.images.errors import ImageError, one_line
from resshift_fast.images.files import FORMATS
from resshift_fast.images.notes import Notes, chunks_of, options_of, warn_of_losses, with_resolution

_LONGEST_SIDE = {"JPEG": 65500, "WEBP": 16383}
_JPEG_SEGMENT = 65533  # the most bytes that one EXIF segment holds


@dataclass(eq=False)
class Photo:
    """An upright photo with its alpha channel and metadata.

    Attributes:
        pixels: uint8 or uint16 [H, W, 3], RGB in the profile's colour space (sRGB without one), not premultiplied by
            alpha. Three equal channels for a gray source.
        alpha: [H, W] in the pixels' dtype, 0 (transparent) to 255 or 65535 (opaque); None without transparency.
        gray: the source was gray; written as gray again (ITU-R BT.601 luma of the pixels).
        icc_profile: the colour profile, byte for byte.
        exif: EXIF that begins with ``Exif\\0\\0``, orientation 1, without thumbnail and pixel sizes.
        name: where it came from, for messages.
        notes: resolution, XMP, comment and text.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None
    gray: bool = False
    icc_profile: bytes | None = None
    exif: bytes | None = None
    name: str = "image"
    notes: Notes = Notes()  # noqa: RUF009  it is frozen

    def __post_init__(self) -> None:
        pixels, alpha = self.pixels, self.alpha
        if not isinstance(pixels, np.ndarray) or pixels.dtype not in (np.uint8, np.uint16):
            kind = getattr(pixels, "dtype", type(pixels).__name__)
            raise TypeError(f"Photo: pixels must be a numpy array of uint8 or uint16, got {kind}; see from_float")
        if pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
            raise ValueError(f"Photo: pixels must be [H, W, 3] with H, W of at least 1, got {list(pixels.shape)}")
        if alpha is not None and (alpha.shape != pixels.shape[:2] or alpha.dtype != pixels.dtype):
            raise ValueError(
                f"Photo: alpha must be {pixels.dtype} {list(pixels.shape[:2])} like the pixels, got {alpha.dtype} "
                f"{list(alpha.shape)}; see resize_alpha"
            )

    @property
    def height(self) -> int:
        """In pixels."""
        return int(self.pixels.shape[0])

    @property
    def width(self) -> int:
        """In pixels."""
        return int(self.pixels.shape[1])

    @property
    def bits(self) -> int:
        """Bits per channel, 8 or 16."""
        return self.pixels.itemsize * 8


def suffix_for(photo: Photo, wanted_suffix: str) -> str:
    """The suffix to write a photo with: the wanted one if that format can hold it, else ".png".

    PNG holds everything. JPEG and BMP have no alpha, JPEG, WebP and BMP no 16 bits, and JPEG and WebP hold at most
    65500 and 16383 pixels a side. An unsupported suffix gives ".png" too.
    """
    form = FORMATS.get(wanted_suffix.lower())
    return ".png" if form is None or _obstacle(photo, form) else wanted_suffix


def _obstacle(photo: Photo, form: str) -> str | None:
    # An alpha channel that is opaque everywhere carries no information and may be dropped.
    if form in ("JPEG", "BMP") and photo.alpha is not None and photo.alpha.min() < np.iinfo(photo.alpha.dtype).max:
        return f"{form} has no transparency"
    if form not in ("PNG", "TIFF") and photo.bits == 16:
        return f"{form} has no 16-bit pixels"
    longest = _LONGEST_SIDE.get(form)
    if longest and max(photo.width, photo.height) > longest:
        return f"{form} holds at most {longest} pixels a side and this is {photo.width}×{photo.height}"
    return None


def check_format(path: str | Path, photo: Photo) -> str:
    """The format of a path's suffix; raises ImageError if it is unknown or cannot hold the photo."""
    path = Path(path)
    form = FORMATS.get(path.suffix.lower())
    if form is None:
        raise ImageError(
            f"{path}: {path.suffix or 'no suffix'} is not a supported format; use one of {', '.join(FORMATS)}"
        )
    obstacle = _obstacle(photo, form)
    if obstacle:
        raise ImageError(f"{path} cannot hold this photo: {obstacle}; write it as {path.with_suffix('.png').name}")
    return form


def write(path: str | Path, photo: Photo, quality: int = 95) -> None:
    """Write a photo in the format of the path's suffix, atomically (see ``files.write_atomically``).

    PNG and TIFF are lossless, at 8 or 16 bits. JPEG is 4:4:4. WebP is lossless at quality 100. All but BMP keep the
    profile and EXIF (JPEG only up to 64 KB of EXIF); for BMP the colours are converted to sRGB. A gray photo is
    written as gray (WebP: as three equal channels, converted to sRGB if it has a gray profile).

    Args:
        path: ends in .png, .jpg, .jpeg, .jfif, .webp, .tif, .tiff or .bmp; its folder exists.
        photo: the photo.
        quality: 1 to 100, for JPEG and WebP.

    Raises:
        ImageError: if the format is unknown or cannot hold the photo (``suffix_for`` avoids that).
        ValueError, TypeError: if the quality is out of range, or ``photo`` is not a Photo.
        OSError: if it cannot be written; an existing file is then untouched.
    """
    write_atomically(Path(path), encoded(path, photo, quality))


def encoded(path: str | Path, photo: Photo, quality: int = 95) -> bytes:
    """The bytes that ``write`` writes, from which nothing is written here.

    Args:
        path: its suffix says which format; the rest is for messages.
        photo, quality: as for ``write``.

    Raises:
        ImageError, ValueError, TypeError: as ``write``.
    """
    if not isinstance(photo, Photo):
        raise TypeError(f"write: expected a Photo, got {type(photo).__name__}; see from_pil and Photo(pixels)")
    path = Path(path)
    if not 1 <= quality <= 100:
        raise ValueError(f"write: quality must be 1 to 100, got {quality}")
    form = check_format(path, photo)
    try:
        return _encode(photo, form, quality)
    except (OSError, ValueError, struct.error) as error:
        raise ImageError(f"{path} cannot be encoded as {form} ({one_line(error)}); write it as .png") from error


def _encode(photo: Photo, form: str, quality: int) -> bytes:
    planes = _stored_planes(photo, form)
    icc_profile, exif = photo.icc_profile or None, photo.exif or None
    is_rgb = planes.ndim == 3 and planes.shape[2] > 2
    if icc_profile and profile_space(icc_profile) == b"GRAY" and is_rgb and not photo.gray:
        icc_profile = None  # it describes no colours
    if exif and not exif.startswith(b"Exif\0\0"):
        exif = b"Exif\0\0" + exif
    warn_of_losses(photo.notes, form, photo.name)
    if form == "TIFF":
        return tiff.encode_tiff(planes, icc_profile, exif, photo.notes.xmp, photo.notes.dpi)
    if planes.dtype == np.uint16:
        chunks = [png.profile_chunk(icc_profile)] if icc_profile else []
        chunks += [png.exif_chunk(exif)] if exif else []
        return png.with_chunks(png16.encode_16_bit(planes), chunks + chunks_of(photo.notes))
    image = Image.fromarray(planes)
    if form == "BMP" or (is_rgb and icc_profile and profile_space(icc_profile) == b"GRAY"):
        image, icc_profile = _in_srgb(image, photo, icc_profile), None
    options: dict[str, Any] = {"icc_profile": icc_profile, "exif": exif}
    if form == "JPEG":
        options |= {"quality": quality, "subsampling": 0}
        if exif and len(exif) > _JPEG_SEGMENT:
            del options["exif"]
    elif form == "WEBP":
        options |= {"quality": quality, "lossless": quality == 100, "exact": True}
        options["exif"] = with_resolution(exif, photo.notes)
    elif form == "BMP":
        options = {}
    options |= options_of(photo.notes, form)
    file = io.BytesIO()
    image.save(file, form, **{key: value for key, value in options.items() if value is not None})
    return png.with_chunks(file.getvalue(), chunks_of(photo.notes)) if form == "PNG" else file.getvalue()


def _in_srgb(image: Image.Image, photo: Photo, icc_profile: bytes | None) -> Image.Image:
    """The colours of an image in sRGB, for a format that cannot keep their profile; a gray image stays gray."""
    source = image
    if photo.gray and image.mode.startswith("RGB"):
        source = image.convert("LA" if image.mode == "RGBA" else "L")
    converted = to_srgb(source, icc_profile)
    if converted is None:
        if icc_profile:
            warnings.warn(f"{photo.name}: its colour profile is damaged and was left out", UserWarning, stacklevel=4)
        return image
    return converted.convert(image.mode) if photo.gray else converted


def _stored_planes(photo: Photo, form: str) -> np.ndarray:
    """[H, W] gray, [H, W, 2] gray and alpha, [H, W, 3] or [H, W, 4], as the format stores it."""
    alpha = None if form in ("JPEG", "BMP") else photo.alpha
    if not photo.gray:
        return np.ascontiguousarray(photo.pixels) if alpha is None else np.dstack([photo.pixels, alpha])
    plane = luma(photo.pixels)
    if form == "WEBP":  # has no gray
        return np.dstack([plane] * 3 if alpha is None else [plane] * 3 + [alpha])
    return plane if alpha is None else np.dstack([plane, alpha])


def luma(pixels: np.ndarray) -> np.ndarray:
    """ITU-R BT.601 luma [H, W] of RGB [H, W, 3], in the dtype of integer pixels; gray pixels keep their value."""
    luma: np.ndarray = pixels[..., 0] * np.float32(0.299)
    luma += pixels[..., 1] * np.float32(0.587)
    luma += pixels[..., 2] * np.float32(0.114)
    return np.rint(luma, out=luma).astype(pixels.dtype) if pixels.dtype.kind == "u" else luma


def to_float(pixels: np.ndarray) -> np.ndarray:
    """Convert uint8 or uint16 pixels of any shape to float32 in [0, 1].

    Raises:
        TypeError: if the array has another dtype.
    """
    if pixels.dtype not in (np.uint8, np.uint16):
        raise TypeError(f"to_float: pixels must be uint8 or uint16, got {pixels.dtype}")
    values: np.ndarray = pixels.astype(np.float32) / np.float32(np.iinfo(pixels.dtype).max)
    return values


def from_float(values: np.ndarray, dtype: type | np.dtype = np.uint8, *, check: bool = True) -> np.ndarray:
    """Convert floats to uint8 or uint16: clamped to [0, 1], scaled, rounded to nearest (ties to even).

    The exact inverse of ``to_float`` on its results.

    Args:
        values: floating point, any shape, nominally in [0, 1].
        dtype: np.uint8 or np.uint16.
        check: refuse NaN and infinities; without it NaN becomes 0 and infinities are clamped.

    Raises:
        TypeError: if the values are not floats, or the dtype is another.
        ValueError: if a value is NaN or infinite and ``check`` is set.
    """
    dtype = np.dtype(dtype)
    if dtype not in (np.uint8, np.uint16):
        raise TypeError(f"from_float: dtype must be uint8 or uint16, got {dtype}")
    if not np.issubdtype(values.dtype, np.floating):
        raise TypeError(f"from_float: values must be floating point in [0, 1], got {values.dtype}")
    if check and not np.isfinite(values).all():
        bad = int(np.size(values) - np.isfinite(values).sum())
        raise ValueError(
            f"from_float: {bad} of {np.size(values)} values are NaN or infinite; pass check=False to clamp them"
        )
    # float16 and bfloat16 cannot represent 65535 steps.
    scaled = values.astype(np.float32 if values.itemsize < 8 else np.float64)
    if not check:
        np.nan_to_num(scaled, copy=False, nan=0.0, posinf=1.0, neginf=0.0)
    np.clip(scaled, 0, 1, out=scaled)
    scaled *= np.iinfo(dtype).max
    return np.rint(scaled, out=scaled).astype(dtype)


def to_pil(photo: Photo) -> Image.Image:
    """Convert to a Pillow image: L, LA, RGB or RGBA, and I;16 for 16-bit gray without alpha.

    Pillow has no other 16-bit modes, so all others are rounded to 8 bits. The profile and EXIF are in ``info``:
    Pillow's ``save`` writes that profile by default, and the EXIF with ``exif=image.info["exif"]``.
    """
    if photo.bits == 16 and not (photo.gray and photo.alpha is None):
        photo = in_8_bits(photo)
    image = Image.fromarray(_stored_planes(photo, "PNG"))
    image.info |= {key: value for key in ("icc_profile", "exif") if (value := getattr(photo, key))}
    return image


def in_8_bits(photo: Photo) -> Photo:
    """The photo rounded to 8 bits; itself if it has 8."""
    if photo.bits == 8:
        return photo
    return replace(photo, pixels=rounded(photo.pixels), alpha=None if photo.alpha is None else rounded(photo.alpha))


def rounded(values: np.ndarray) -> np.ndarray:
    """uint8 or uint16 values to the nearest uint8."""
    if values.dtype == np.uint8:
        return values
    nearest = ((np.arange(65536, dtype=np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
    result: np.ndarray = nearest[values]
    return result
