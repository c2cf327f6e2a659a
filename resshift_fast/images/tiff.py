"""TIFF: files that Pillow reads in 8 bits, wrongly or not at all, and writing with metadata.

Pillow has no 16-bit colour, and mixes up some planes that are stored one after the other. Its libtiff decompresses any
single plane, though. So `decode` appends directories to the file that describe the same strips or tiles as gray images:
one for each separate plane, or one for contiguous samples, as wide as all samples of a row together.

A file is written as zlib strips after tags that Pillow writes (TIFF 6.0 with the horizontal predictor of its section
14; Deflate as in the Adobe Photoshop TIFF technical notes of 2002).
"""

import io
import itertools
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageFile
from PIL.ExifTags import IFD
from PIL.TiffImagePlugin import ImageFileDirectory_v2, TiffImageFile

from resshift_fast.images.directories import read_tags, with_directories
from resshift_fast.images.errors import DamagedError, ImageError, damaged, one_line
from resshift_fast.images.limits import check_pixels

# Compressions whose result is the plain samples: none, LZW, Deflate (two numbers), PackBits, LZMA, Zstandard.
_PLAIN_CODECS = (1, 5, 8, 32946, 32773, 34925, 50000)
_PREDICTING_CODECS = (5, 8, 32946, 34925, 50000)
_COLORS = {0: 1, 1: 1, 2: 3, 5: 4, 8: 3}  # samples of white-is-zero, black-is-zero, RGB, CMYK, CIE L*a*b*
# Those that Pillow decodes too: CCITT and JPEG, and palettes and YCbCr.
_KNOWN_CODECS = (*_PLAIN_CODECS, 2, 3, 4, 7)
_KNOWN_COLORS = (*_COLORS, 3, 6)
_CODEC_NAMES = {
    1: "nothing",
    2: "CCITT run lengths",
    3: "CCITT group 3",
    4: "CCITT group 4",
    5: "LZW",
    6: "old-style JPEG",
    7: "JPEG",
    8: "Deflate",
    9: "JBIG",
    10: "JBIG",
    22610: "JPEG XR",
    32766: "NeXT run lengths",
    32773: "PackBits",
    32809: "ThunderScan run lengths",
    32946: "Deflate",
    33003: "JPEG 2000",
    33004: "JPEG 2000",
    33005: "JPEG 2000",
    34661: "JBIG",
    34676: "SGI Log",
    34677: "SGI Log",
    34712: "JPEG 2000",
    34887: "LERC",
    34892: "lossy JPEG",
    34925: "LZMA",
    34926: "Zstandard",
    34927: "WebP",
    34933: "PNG",
    34934: "JPEG XR",
    50000: "Zstandard",
    50001: "WebP",
    50002: "JPEG XL",
    52546: "JPEG XL",
}
_COLOR_NAMES = {
    0: "gray",
    1: "gray",
    2: "RGB",
    3: "a palette",
    4: "a transparency mask",
    5: "CMYK",
    6: "YCbCr",
    8: "L*a*b*",
    9: "ICC L*a*b*",
    10: "ITU L*a*b*",
    32803: "a camera's raw colours",
    32844: "log luminance",
    32845: "log luminance",
    34892: "a camera's raw colours",
}
_REMEDY = "export it as RGB or RGBA with LZW or Deflate"


class Samples(NamedTuple):
    """A decoded TIFF.

    Attributes:
        values: uint8 or uint16 [H, W, C], as stored: gray with black at zero, RGB, CMYK or L*a*b*.
        alpha: [H, W] in the same dtype, or None. Colours are not multiplied by it.
        photometric: tag 262.
        tags: of the first directory, by number.
    """

    values: np.ndarray
    alpha: np.ndarray | None
    photometric: int
    tags: Any


def refuse_strange(tags: Any, name: str) -> None:
    """Raise ImageError for a TIFF without a defined white level (float, signed), and for previews in raw files.

    Args:
        tags: of its first directory. name: for the message.
    """
    bits, sample_formats = max(tags.get(258, (1,))), tags.get(339, (1,))
    kind = next((word for value, word in ((2, "signed"), (3, "float")) if value in sample_formats), "")
    if kind or bits not in (1, 2, 4, 8, 16):
        raise ImageError(f"{name} holds {bits}-bit {kind or 'integer'} pixels; convert it to 8 or 16 bit first")
    if tags.get(262) == 5 and tags.get(332, 1) != 1 and "cyan" not in str(tags.get(333, "")).lower():
        raise ImageError(f"{name} holds other inks than cyan, magenta, yellow and black; export it as RGB")
    if tags.get(254, 0) & 1:
        raise ImageError(
            f"{name} begins with a reduced preview, as camera raw files do; develop it to a TIFF or PNG first"
        )


def what_is_unsupported(tags: Any, lines: Sequence[str] = ()) -> str:
    """Why a TIFF that could not be decoded was not, as part of a sentence; empty if its kind is known.

    Args:
        tags: of its first directory. lines: what libtiff said.
    """
    codec, photometric = tags.get(259, 1), tags.get(262, 1)
    if codec not in _KNOWN_CODECS or any("not configured" in line for line in lines):
        return f"compressed with {_CODEC_NAMES.get(codec, f'method {codec}')}"
    if photometric not in _KNOWN_COLORS:
        return f"with {_COLOR_NAMES.get(photometric, f'colours of kind {photometric}')}"
    return ""


def explained(error: DamagedError, data: bytes, name: str, lines: Sequence[str]) -> ImageError:
    """The error of a TIFF that could not be decoded, with its reason: its kind, or what libtiff said."""
    what = what_is_unsupported(read_tags(io.BytesIO(data)) or {}, lines)
    if what:
        return ImageError(f"{name} is a TIFF {what}, which is not read here; {_REMEDY}")
    return damaged(name, lines[0]) if lines else error


def decode(data: bytes, name: str) -> Samples | None:
    """Decode a TIFF of 16-bit colour, of separate planes or of a kind unknown to Pillow; None for those it reads.

    Args:
        data: the file. name: for messages.

    Raises:
        ImageError: if it is damaged, too large, or of a kind that is not supported.
    """
    tags = read_tags(io.BytesIO(data))
    if tags is None:
        return None
    try:
        return _decode(data, tags, name)
    except (ImageError, Warning, MemoryError):
        raise
    except Exception as error:  # tags of a damaged file may have any type, and Pillow's parsers raise anything
        raise damaged(name, one_line(error)) from error


def _decode(data: bytes, tags: dict[int, Any], name: str) -> Samples | None:
    if not {256, 257} <= tags.keys():
        return None
    bits, samples, codec = set(tags.get(258, (1,))), tags.get(277, 1), tags.get(259, 1)
    photometric, separate = tags.get(262, -1), tags.get(284, 1) == 2 and samples > 1
    unknown_to_pillow = samples > _COLORS.get(photometric, 9) + 1
    deep = bits == {16} and (samples > 1 or photometric == 0)
    if not (deep or unknown_to_pillow or (bits == {8} and separate and codec in _PLAIN_CODECS)):
        return None
    refuse_strange(tags, name)
    if photometric not in _COLORS or codec not in _PLAIN_CODECS or bits not in ({8}, {16}) or samples > 16:
        what = what_is_unsupported(tags) or f"of {samples} samples of {max(bits)} bits in {_COLOR_NAMES[photometric]}"
        raise ImageError(f"{name} is a TIFF {what}, which is not read here; {_REMEDY}")
    check_pixels(name, tags[256], tags[257], len(data))
    values = _pages(data, tags, samples, max(bits), samples if separate else 1)
    return _separate_alpha(values, photometric, tags)


class _GrayPages(TiffImageFile):
    """Without Pillow's limit on pixels, which would count every sample as one."""

    def load_prepare(self) -> None:
        ImageFile.ImageFile.load_prepare(self)


def _pages(data: bytes, tags: Any, samples: int, bits: int, pages: int) -> np.ndarray:
    """All samples [H, W, samples], decoded as gray pages: one for each sample, or one with all."""
    width, height = tags[256], tags[257]
    tiled = 324 in tags
    places, counts = (324, 325) if tiled else (273, 279)
    offsets, sizes = tags[places], tags[counts]
    if len(offsets) != len(sizes) or len(offsets) % pages:
        raise ValueError("strips or tiles are missing")
    each, across = len(offsets) // pages, samples // pages
    predictor = tags.get(317, 1) if tags.get(259, 1) in _PREDICTING_CODECS else 1
    common = {
        256: (width * across,),
        257: (height,),
        258: (bits,),
        259: (tags.get(259, 1),),
        262: (1,),
        266: (tags.get(266, 1),),
        277: (1,),
        284: (1,),
        317: (predictor if pages == samples else 1,),
        339: (1,),
    }
    common |= {322: (tags[322] * across,), 323: (tags[323],)} if tiled else {278: (tags.get(278, height),)}
    page_tags = [
        common | {places: offsets[i * each : (i + 1) * each], counts: sizes[i * each : (i + 1) * each]}
        for i in range(pages)
    ]
    planes = []
    with _GrayPages(io.BytesIO(with_directories(data, page_tags))) as image:
        for page in range(pages):
            image.seek(page)
            planes.append(np.array(image))
    values = np.stack(planes, axis=2) if pages == samples else planes[0].reshape(height, width, samples)
    values = values.astype(np.uint8 if bits == 8 else np.uint16, copy=False)
    if predictor == 2 and pages != samples:
        tile = tags[322] if tiled else width
        for left in range(0, width, tile):
            part = values[:, left : left + tile]
            np.cumsum(part, axis=1, dtype=values.dtype, out=part)
    elif predictor not in (1, 2):
        raise ValueError(f"predictor {predictor} is not for integers")
    return values


def _separate_alpha(values: np.ndarray, photometric: int, tags: Any) -> Samples:
    colors = _COLORS[photometric]
    if values.shape[2] < colors:
        raise ImageError(f"the TIFF has {values.shape[2]} samples a pixel, too few for its kind of colours")
    meanings = tags.get(338, (2,))[: values.shape[2] - colors]
    alpha = None
    for i, meaning in enumerate(meanings):
        if meaning in (1, 2):  # premultiplied or not; others are not alpha
            alpha = values[..., colors + i]
            break
    values = values[..., :colors]
    if photometric == 0:
        values = np.iinfo(values.dtype).max - values
    if alpha is not None and meaning == 1:
        top = np.iinfo(values.dtype).max
        straight = values.astype(np.float64) * top / np.maximum(alpha, 1)[..., None]
        values = np.rint(straight).clip(0, top).astype(values.dtype)
    return Samples(values, alpha, photometric, tags)


def encode_tiff(
    planes: np.ndarray,
    icc_profile: bytes | None,
    exif: bytes | None,
    xmp: bytes | None = None,
    dpi: tuple[float, float] | None = None,
) -> bytes:
    """A TIFF (Deflate, horizontal predictor) with its profile and EXIF.

    Args:
        planes: uint8 or uint16; [H, W] gray, [H, W, 2] gray and alpha, [H, W, 3] RGB or [H, W, 4] RGBA.
        icc_profile: the profile's bytes, if any.
        exif: EXIF as ``clean_exif`` gives it, if any.
        xmp: the XMP packet, if any. dpi: pixels per inch in x and y, which EXIF precedes.

    Raises:
        ValueError: if the result would pass the 4 GB that TIFF can address.
    """
    height, width = planes.shape[:2]
    planes = planes.reshape(height, width, -1)
    channels, depth = planes.shape[2], planes.itemsize * 8
    rows = max(1, min(height, 2**18 // planes[0].nbytes))
    strips = [_predict_and_deflate(planes[top : top + rows]) for top in range(0, height, rows)]
    sizes = [len(strip) for strip in strips]
    if sum(sizes) > 2**32 - 2**24:
        raise ValueError("the picture is too large for TIFF's 4 GB; write a .png instead")

    tags = ImageFileDirectory_v2(prefix=b"II")
    if exif:
        old = Image.Exif()
        old.load(exif)
        for tag in old:
            tags[tag] = old.get_ifd(tag) if tag in (IFD.Exif, IFD.GPSInfo) else old[tag]
    if dpi and 282 not in tags:
        tags[282], tags[283], tags[296] = *dpi, 2  # inches
    if xmp:
        tags[700] = xmp
    tags[256], tags[257] = width, height
    tags[258] = (depth,) * channels
    tags[259] = 8  # Deflate
    tags[262] = 1 if channels < 3 else 2  # black is zero, RGB
    tags[277], tags[278] = channels, rows
    # Offsets are relative to the end of the tags; Pillow adds its position when it writes them.
    tags[273] = tuple(itertools.accumulate(sizes[:-1], initial=0))
    tags[279] = tuple(sizes)
    tags[284] = 1  # samples of a pixel are contiguous
    tags[317] = 2  # horizontal differencing
    tags[339] = (1,) * channels  # unsigned integers
    if channels in (2, 4):
        tags[338] = (2,)  # alpha, not premultiplied
    if icc_profile:
        tags[34675] = icc_profile
    file = io.BytesIO()
    tags.save(file)
    file.writelines(strips)
    return file.getvalue()


def _predict_and_deflate(strip: np.ndarray) -> bytes:
    differences = strip.copy()
    differences[:, 1:] -= strip[:, :-1]
    return zlib.compress(differences.astype(differences.dtype.newbyteorder("<"), copy=False).tobytes(), 6)
