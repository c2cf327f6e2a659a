"""Colour spaces: marks other than profiles (EXIF, PNG) become ICC profiles, which every format but BMP keeps.

A profile is a matrix and a tone curve (ICC.1:2001-04, 6.3.1), its primaries adapted from their white to D50 by the
linear Bradford transform.
"""

import io
import struct
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageCms
from PIL.ExifTags import IFD

_D65 = (0.3127, 0.3290)
_D50 = np.array([0.9642, 1.0, 0.8249])
_SRGB = (0.64, 0.33, 0.30, 0.60, 0.15, 0.06)
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])

# White, then red, green and blue, as x and y: ITU-T H.273, table 2.
_PRIMARIES = {
    1: (*_D65, *_SRGB),
    4: (0.310, 0.316, 0.67, 0.33, 0.21, 0.71, 0.14, 0.08),
    5: (*_D65, 0.64, 0.33, 0.29, 0.60, 0.15, 0.06),
    6: (*_D65, 0.630, 0.340, 0.310, 0.595, 0.155, 0.070),
    7: (*_D65, 0.630, 0.340, 0.310, 0.595, 0.155, 0.070),
    9: (*_D65, 0.708, 0.292, 0.170, 0.797, 0.131, 0.046),
    11: (0.314, 0.351, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
    12: (*_D65, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
    22: (*_D65, 0.630, 0.340, 0.295, 0.605, 0.155, 0.077),
}
_ADOBE_RGB = (*_D65, 0.64, 0.33, 0.21, 0.71, 0.15, 0.06)  # Adobe RGB (1998), 4.3.1
_ADOBE_GAMMA = 563 / 256
_LAB_ROWS = 64  # converted at once, to bound the memory of float64
_HDR = {16: "PQ", 18: "HLG"}
Curve = float | Callable[[np.ndarray], np.ndarray]


def _srgb_curve(v: np.ndarray) -> np.ndarray:
    return np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)


def _bt709_curve(v: np.ndarray) -> np.ndarray:
    return np.where(v < 0.081, v / 4.5, ((v + 0.099) / 1.099) ** (1 / 0.45))


# Decoding of a value to light: ITU-T H.273, table 3.
_TRANSFERS: dict[int, Curve] = {
    1: _bt709_curve,
    4: 2.2,
    5: 2.8,
    6: _bt709_curve,
    8: 1.0,
    13: _srgb_curve,
    14: _bt709_curve,
    15: _bt709_curve,
    17: 2.6,
}


def profile_of(image: Image.Image, gray: bool, name: str) -> bytes | None:
    """The ICC profile of an image, embedded or made from other marks; None for sRGB.

    By precedence: cICP of a PNG, the profile, sRGB, gAMA and cHRM of a PNG, Adobe RGB by EXIF (DCF 2.0, "R03").

    Args:
        image: loaded; ``info["cicp"]`` holds the content of that chunk. gray: whether its pixels are gray.
        name: for messages.

    Warns:
        UserWarning: if the colours cannot be expressed by a profile (PQ, HLG).
    """
    info = image.info
    icc_profile: bytes | None = info.get("icc_profile") or None
    if "cicp" in info:
        known, profile = _cicp_profile(info["cicp"], gray, name)
        if known:
            return profile
    if icc_profile or "srgb" in info:
        return icc_profile
    if "gamma" in info or "chromaticity" in info:
        return _png_profile(info.get("gamma"), info.get("chromaticity"), gray)
    return make_profile("Adobe RGB (1998) compatible", _ADOBE_RGB, _ADOBE_GAMMA, gray) if _is_adobe(image) else None


def _cicp_profile(content: bytes, gray: bool, name: str) -> tuple[bool, bytes | None]:
    """Whether a profile can express a cICP chunk, and the profile; None for sRGB."""
    primaries, transfer, matrix, full_range = (*content, 0, 0, 0, 0)[:4]
    if primaries == 2 or transfer == 2:  # unspecified
        return False, None
    if primaries in _PRIMARIES and transfer in _TRANSFERS and (matrix, full_range) == (0, 1):
        if (primaries, transfer) == (1, 13):
            return True, None
        title = f"H.273 colours {primaries}/{transfer}"
        return True, make_profile(title, _PRIMARIES[primaries], _TRANSFERS[transfer], gray)
    what = f"HDR ({_HDR[transfer]})" if transfer in _HDR else f"{primaries}/{transfer}/{matrix}/{full_range}"
    text = f"{name}: its colour space by cICP, {what}, has no ICC profile and is not kept; convert it to sRGB first"
    warnings.warn(text, UserWarning, stacklevel=4)
    return False, None


def _png_profile(gamma: float | None, chromaticity: Sequence[float] | None, gray: bool) -> bytes | None:
    exponent = 1 / gamma if gamma else None
    if exponent is not None and not 0.1 <= exponent <= 10:
        exponent = None
    points = None if chromaticity is None or gray else tuple(chromaticity)
    near_srgb = points is None or np.allclose(points, _PRIMARIES[1], atol=0.005)
    # 1 / 2.2 is what encoders write for sRGB.
    if near_srgb and (exponent is None or abs(exponent - 2.2) < 0.11):
        return None
    curve: Curve = _srgb_curve if exponent is None or abs(exponent - 2.2) < 0.002 else exponent
    return make_profile("PNG gAMA and cHRM", points or _PRIMARIES[1], curve, gray)


def _is_adobe(image: Image.Image) -> bool:
    if image.mode in ("CMYK", "LAB"):
        return False
    try:
        return is_adobe_rgb(image.getexif())
    except Exception:  # Pillow fails in many ways on damaged EXIF
        return False


def is_adobe_rgb(exif: Image.Exif) -> bool:
    """Whether EXIF says Adobe RGB: interoperability index R03, or the value 2 that some cameras write instead."""
    details = exif.get_ifd(IFD.Exif)
    index: Any = exif.get_ifd(IFD.Interop).get(1, "")
    text = index.decode("latin-1") if isinstance(index, bytes) else str(index)
    return text.rstrip("\0 ") == "R03" or details.get(0xA001) == 2


def adobe_profile(gray: bool) -> bytes | None:
    """The profile of Adobe RGB (1998)."""
    return make_profile("Adobe RGB (1998) compatible", _ADOBE_RGB, _ADOBE_GAMMA, gray)


def make_profile(title: str, points: Sequence[float], curve: Curve, gray: bool) -> bytes | None:
    """A version 2 display profile.

    Args:
        title: its description.
        points: x and y of white, red, green and blue.
        curve: exponent, or function, that decodes values in [0, 1] to light.
        gray: make a profile of gray, which has the curve alone.

    Returns:
        The profile; None if the points are not those of a colour space.
    """
    text = title.encode("ascii")
    desc = b"desc" + bytes(4) + struct.pack(">I", len(text) + 1) + text + bytes(1 + 4 + 4 + 2 + 1 + 67)
    tags = {b"desc": desc, b"cprt": b"text" + bytes(4) + b"no copyright\0", b"wtpt": _xyz(_D50)}
    if gray:
        tags[b"kTRC"] = _curve(curve)
    else:
        columns = _matrix(points)
        if columns is None:
            return None
        for i, letter in enumerate((b"r", b"g", b"b")):
            tags |= {letter + b"XYZ": _xyz(columns[:, i]), letter + b"TRC": _curve(curve)}
    table, body, offset = b"", b"", 128 + 4 + 12 * len(tags)
    places: dict[bytes, int] = {}
    for tag, content in tags.items():
        if content not in places:  # the three curves are one
            places[content] = offset + len(body)
            body += content + bytes(-len(content) % 4)
        table += tag + struct.pack(">II", places[content], len(content))
    space, size = b"GRAY" if gray else b"RGB ", offset + len(body)
    header = struct.pack(">I4sI4s4s4s", size, bytes(4), 0x02400000, b"mntr", space, b"XYZ ")
    header += struct.pack(">6H4s", 2000, 1, 1, 0, 0, 0, b"acsp") + bytes(24) + struct.pack(">I3i", 0, *_fixed(_D50))
    return header.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def _fixed(values: np.ndarray) -> list[int]:
    return [round(float(value) * 65536) for value in values]


def _xyz(values: np.ndarray) -> bytes:
    return b"XYZ " + bytes(4) + struct.pack(">3i", *_fixed(values))


def _curve(curve: Curve) -> bytes:
    if callable(curve):
        table = np.rint(curve(np.linspace(0, 1, 1024)) * 65535).astype(">u2")
        return b"curv" + bytes(4) + struct.pack(">I", len(table)) + table.tobytes()
    return b"curv" + bytes(4) + struct.pack(">IH", 1, round(curve * 256))


def _matrix(points: Sequence[float]) -> np.ndarray | None:
    """RGB to XYZ under D50, [3, 3]."""
    xy = np.array(points, np.float64).reshape(4, 2)
    if (xy[:, 1] <= 0).any():
        return None
    xyz = np.stack([xy[:, 0], xy[:, 1], 1 - xy.sum(axis=1)]) / xy[:, 1]
    white, columns = xyz[:, 0], xyz[:, 1:]
    if abs(np.linalg.det(columns)) < 1e-6:
        return None
    cones = _BRADFORD @ white
    if (cones <= 0).any():
        return None
    adaptation = np.linalg.inv(_BRADFORD) @ np.diag(_BRADFORD @ _D50 / cones) @ _BRADFORD
    adapted: np.ndarray = adaptation @ (columns * np.linalg.solve(columns, white))
    return adapted if np.abs(adapted).max() < 100 else None


def srgb_of_cmyk(values: np.ndarray) -> np.ndarray:
    """uint16 [H, W, 4] CMYK as uint16 [H, W, 3]: what an ink leaves times what black leaves, as Pillow in 8 bits."""
    left: np.ndarray = 65535 - values.astype(np.uint32)
    return ((left[..., :3] * left[..., 3:] + 32767) // 65535).astype(np.uint16)


def srgb_of_lab(values: np.ndarray) -> np.ndarray:
    """CIE L*a*b* of a TIFF as sRGB; colours that sRGB does not have are clipped.

    Args:
        values: uint16 [H, W, 3]; L* from 0 to 65535 for 0 to 100, a* and b* signed, in steps of 1/256 (Adobe Photoshop
            TIFF technical notes, 2002), under D50.

    Returns:
        uint16 [H, W, 3].
    """
    matrix = _matrix(_PRIMARIES[1])
    assert matrix is not None
    from_xyz, srgb = np.linalg.inv(matrix), np.empty(values.shape, np.uint16)
    for top in range(0, len(values), _LAB_ROWS):
        part = values[top : top + _LAB_ROWS]
        y = (part[..., 0] * (100 / 65535) + 16) / 116
        a, b = (part[..., i].astype(np.int16) / 256 for i in (1, 2))
        roots = np.stack([y + a / 500, y, y - b / 200], axis=-1)
        # ISO/CIE 11664-4: the cube, and a line below (24/116)³.
        xyz = _D50 * np.where(roots > 24 / 116, roots**3, (roots - 16 / 116) * 108 / 841)
        light = np.clip(xyz @ from_xyz.T, 0, 1)
        encoded = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
        srgb[top : top + _LAB_ROWS] = np.rint(encoded * 65535)
    return srgb


def profile_space(icc_profile: bytes) -> bytes:
    """Colour space of a profile, ``b"RGB "``, ``b"GRAY"`` or ``b"CMYK"``: header bytes 16 to 19 (ICC.1:2022)."""
    return icc_profile[16:20]


def to_srgb(image: Image.Image, icc_profile: bytes | None) -> Image.Image | None:
    """Convert to RGB with the sRGB profile (relative colorimetric, black point compensation).

    Returns:
        An RGB image, or RGBA of one with alpha; None if there is no profile, or it is damaged or for another space.
    """
    if not icc_profile:
        return None
    alpha = image.getchannel("A") if image.mode in ("LA", "RGBA") else None
    colors = image if alpha is None else image.convert(image.mode[:-1])
    if colors.mode == "L" and profile_space(icc_profile) == b"RGB ":
        colors = colors.convert("RGB")
    try:
        converted: Image.Image | None = ImageCms.profileToProfile(
            colors,
            ImageCms.ImageCmsProfile(io.BytesIO(icc_profile)),
            ImageCms.createProfile("sRGB"),
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            outputMode="RGB",
            # Its optimized 8-bit conversion of gray is off by up to ten levels in the shadows.
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION
            | (ImageCms.Flags.NOOPTIMIZE if colors.mode == "L" else ImageCms.Flags.NONE),
        )
    except (ImageCms.PyCMSError, OSError, ValueError, ImportError):
        return None
    if converted is not None and alpha is not None:
        converted.putalpha(alpha)
    return converted
