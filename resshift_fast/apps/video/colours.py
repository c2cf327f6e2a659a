"""Frames of a video as photos, and back: Y'CbCr to R'G'B' by the matrix and range that the video names.

The matrices are those of ITU-T H.273, table 4, computed here in float32, since swscale is off by up to 3 of 1023 levels
at 10 bits. It only brings chroma to full resolution.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from resshift_fast.images.photo import Photo

if TYPE_CHECKING:
    from av import VideoFrame

BT709, UNSPECIFIED, BT601 = 1, 2, 6  # ITU-T H.273: matrix, and primaries and transfer too
LIMITED, FULL = 1, 2  # as FFmpeg numbers the ranges
HDR = (16, 18)  # transfer: PQ and HLG
# Matrix to the weights of red and blue in luma.
_WEIGHTS = {1: (0.2126, 0.0722), 4: (0.30, 0.11), 5: (0.299, 0.114), 6: (0.299, 0.114), 7: (0.212, 0.087)}
_WEIGHTS |= dict.fromkeys((9, 10), (0.2627, 0.0593))
_ROWS = 256  # that are converted at once, so that float copies stay small; even


@dataclass(frozen=True)
class Coding:
    """How the colours of a video are coded.

    Attributes:
        matrix: of R'G'B' to Y'CbCr, and primaries, transfer: numbers of ITU-T H.273; 2 for those that are not known.
        is_full: Y' goes from 0 to the highest value, not from 16 to 235 (of 8 bits).
        bits: per channel: 8, or 10 for a video that has more.
    """

    matrix: int
    primaries: int
    transfer: int
    is_full: bool
    bits: int


def coding_of(frame: VideoFrame) -> Coding:
    """The coding of a frame; where it does not say its matrix, that which players take: BT.709 from 720 rows on."""
    matrix, name = int(frame.colorspace), frame.format.name
    if matrix not in _WEIGHTS:
        matrix = BT709 if frame.height >= 720 or frame.width >= 1280 else BT601
    # swscale takes gray for full range whatever it says; what was RGB is written as most videos are.
    is_full = name.startswith(("yuvj", "gray")) or (int(frame.color_range) == FULL and not frame.format.is_rgb)
    bits = 10 if _depth(frame) > 8 else 8
    return Coding(matrix, int(frame.color_primaries), int(frame.color_trc), is_full, bits)


def has_alpha(frame: VideoFrame) -> bool:
    """Whether a frame has an alpha channel."""
    return len(frame.format.components) in (2, 4) and frame.format.name != "pal8"


def _depth(frame: VideoFrame) -> int:
    return max(component.bits for component in frame.format.components)


def pixels_of(frame: VideoFrame, coding: Coding) -> np.ndarray:
    """The pixels of a frame, R'G'B' [H, W, 3]: uint8, or uint16 of the full range with more than 8 bits.

    Args:
        frame: in any format that swscale reads; its alpha is left out.
        coding: of its video.
    """
    depth = _depth(frame)
    if frame.format.is_rgb or frame.format.name == "pal8":
        deep = depth > 8
        values = _reformatted(frame, "rgb48le" if deep else "rgb24", FULL, FULL).to_ndarray()
        return np.ascontiguousarray(values, np.uint16 if deep else np.uint8)
    wanted = "yuv444p" if depth <= 8 else f"yuv444p{next(bits for bits in (10, 12, 14, 16) if bits >= depth)}le"
    value_range = FULL if coding.is_full else LIMITED
    full = _reformatted(frame, wanted, value_range, value_range)
    return _to_rgb(_planes(full), coding, _depth(full))


def _reformatted(frame: VideoFrame, wanted: str, source: int, target: int) -> VideoFrame:
    """A frame in another pixel format; chroma is interpolated, no colour is changed."""
    from av.video.reformatter import Interpolation

    flags = int(Interpolation.BICUBIC)
    for name in ("ACCURATE_RND", "FULL_CHR_H_INT", "FULL_CHR_H_INP", "BITEXACT"):
        flags |= int(getattr(Interpolation, name, 0))  # which PyAV 17 does not have
    return frame.reformat(
        format=wanted,
        src_colorspace=BT709,  # of both, so that none is converted
        dst_colorspace=BT709,
        src_color_range=source,
        dst_color_range=target,
        interpolation=flags,
    )


def _planes(frame: VideoFrame) -> list[np.ndarray]:
    """The planes of a frame, [H, W] each."""
    dtype = np.dtype(np.uint8 if _depth(frame) == 8 else "<u2")
    planes = []
    for plane in frame.planes:
        data: Any = plane
        values = np.frombuffer(data, dtype).reshape(plane.height, plane.line_size // dtype.itemsize)
        planes.append(values[:, : plane.width])
    return planes


def _to_rgb(planes: list[np.ndarray], coding: Coding, depth: int) -> np.ndarray:
    red, blue = _WEIGHTS[coding.matrix]
    lowest, luma, chroma = _scales(coding, depth)
    middle, dtype = np.float32(1 << (depth - 1)), np.uint8 if depth == 8 else np.uint16
    most = np.float32(np.iinfo(dtype).max)
    height, width = planes[0].shape
    pixels = np.empty((height, width, 3), dtype)
    for top in range(0, height, _ROWS):
        rows = slice(top, top + _ROWS)
        y = (planes[0][rows].astype(np.float32) - lowest) / luma
        cb, cr = ((plane[rows].astype(np.float32) - middle) / chroma for plane in planes[1:])
        r = y + np.float32(2 * (1 - red)) * cr
        b = y + np.float32(2 * (1 - blue)) * cb
        g = (y - np.float32(red) * r - np.float32(blue) * b) / np.float32(1 - red - blue)
        values = np.stack([r, g, b], axis=2)
        values *= most
        pixels[rows] = np.rint(np.clip(values, 0, most, out=values), out=values).astype(dtype)
    return pixels


def _scales(coding: Coding, depth: int) -> tuple[np.float32, np.float32, np.float32]:
    """The lowest Y', and what Y' and chroma of 1 are multiplied by."""
    unit = 1 << (depth - 8)
    if coding.is_full:
        most = (1 << depth) - 1
        return np.float32(0), np.float32(most), np.float32(most)
    return np.float32(16 * unit), np.float32(219 * unit), np.float32(224 * unit)


def planes_of(pixels: np.ndarray, coding: Coding) -> np.ndarray:
    """Pixels as they are encoded: 4:2:0 with chroma sited left, as in most videos.

    Args:
        pixels: uint8 or uint16 [H, W, 3], of even sides. coding: of the result.

    Returns:
        [H · 3/2, W] with the rows of Y', and then those of Cb and of Cr, which have half as many of half the width:
        uint8, or uint16 of 10 bits.
    """
    red, blue = _WEIGHTS[coding.matrix]
    lowest, luma, chroma = _scales(coding, coding.bits)
    middle, most = np.float32(1 << (coding.bits - 1)), (1 << coding.bits) - 1
    dtype = np.uint8 if coding.bits == 8 else np.uint16
    height, width = pixels.shape[:2]
    found = np.empty((height * 3 // 2, width), dtype)
    both = found[height:].reshape(2, height // 2, width // 2)
    weights = np.array([red, 1 - red - blue, blue], np.float32) / np.float32(np.iinfo(pixels.dtype).max)
    for top in range(0, height, _ROWS):
        end = min(height, top + _ROWS)
        values = pixels[top:end].astype(np.float32)
        y = values @ weights
        values /= np.float32(np.iinfo(pixels.dtype).max)
        stored = (values[..., 2] - y) / np.float32(2 * (1 - blue)), (values[..., 0] - y) / np.float32(2 * (1 - red))
        found[top:end] = _rounded(y * luma + lowest, most, dtype)
        for plane, part in zip(both, stored, strict=True):
            smaller = _halved(part) * chroma + middle
            plane[top // 2 : end // 2] = _rounded(smaller, most, dtype)
    return found


def _rounded(values: np.ndarray, most: int, dtype: type) -> np.ndarray:
    return np.rint(np.clip(values, 0, most, out=values), out=values).astype(dtype)


def _halved(plane: np.ndarray) -> np.ndarray:
    """A plane [H, W] at half its size: between two rows, and at the left of two columns."""
    rows = plane[0::2] + plane[1::2]
    left = np.concatenate([rows[:, :1], rows[:, 1:-1:2]], axis=1)
    return (left + 2 * rows[:, 0::2] + rows[:, 1::2]) / 8


def frame_of(planes: np.ndarray, coding: Coding) -> VideoFrame:
    """A frame to encode, of what `planes_of` gives."""
    import av

    height, width = planes.shape[0] * 2 // 3, planes.shape[1]
    frame = av.VideoFrame(width, height, "yuv420p" if coding.bits == 8 else "yuv420p10le")
    chroma = planes[height:].reshape(2, height // 2, width // 2)
    for plane, values in zip(frame.planes, (planes[:height], *chroma), strict=True):
        rows = np.zeros((plane.height, plane.line_size // planes.itemsize), planes.dtype)
        rows[:, : plane.width] = values
        plane.update(rows.tobytes())
    frame.colorspace, frame.color_primaries, frame.color_trc = coding.matrix, coding.primaries, coding.transfer
    frame.color_range = FULL if coding.is_full else LIMITED
    return frame


def photo_of(frame: VideoFrame, coding: Coding, turn: Turn, name: str) -> Photo:
    """A frame as an upright photo."""
    return Photo(turn.upright(pixels_of(frame, coding)), name=name)


@dataclass(frozen=True)
class Turn:
    """How stored frames are turned to be upright: transposed first, and then mirrored.

    Attributes:
        is_transposed: rows become columns. flips_rows: top becomes bottom. flips_columns: left becomes right.
    """

    is_transposed: bool = False
    flips_rows: bool = False
    flips_columns: bool = False

    def upright(self, pixels: np.ndarray) -> np.ndarray:
        """Pixels [H, W, 3] of a stored frame as they are shown."""
        if self.is_transposed:
            pixels = pixels.transpose(1, 0, 2)
        pixels = pixels[:: -1 if self.flips_rows else 1, :: -1 if self.flips_columns else 1]
        return np.ascontiguousarray(pixels)


def turn_of(frame: VideoFrame) -> Turn | None:
    """The turn that a frame's display matrix (ISO/IEC 14496-12, 8.3.2) asks for; None for one that is no quarter turn.

    The point at (column, row) is shown at (a · column + c · row, b · column + d · row), up to a shift.
    """
    sides: Any = frame.side_data
    try:
        found = sides["DISPLAYMATRIX"]
    except KeyError:
        return Turn()
    a, b, _, c, d = np.frombuffer(bytes(found), np.int32)[:5]
    if a and d and not (b or c):
        return Turn(False, bool(d < 0), bool(a < 0))
    if b and c and not (a or d):
        return Turn(True, bool(b < 0), bool(c < 0))
    return None
