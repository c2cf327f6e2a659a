r"""JPEG in torch, batched: ISO/IEC 10918-1 with the conversions of libjpeg, which most programs use.

YCbCr (JFIF) is rounded to 8 bits, the chroma planes are averaged over 2×2 pixels, every 8×8 block becomes

.. math::
    F_{uv} = \tfrac{1}{4} C_u C_v \sum_{x,y} (f_{xy} - 128) \cos\tfrac{(2x+1)u\pi}{16} \cos\tfrac{(2y+1)v\pi}{16},
    \quad C_0 = \tfrac{1}{\sqrt 2}, \ C_{u>0} = 1

and F is rounded to a multiple of the table's entry. Decoding reverses this; chroma is interpolated linearly. Coding of
the integers is lossless and therefore left out.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

# Tables K.1 (luma) and K.2 (chroma) of the standard, row by row.
LUMA_TABLE = (
    *(16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29),
    *(51, 87, 80, 62, 18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92, 49, 64, 78, 87, 103, 121),
    *(120, 101, 72, 92, 95, 98, 112, 100, 103, 99),
)
CHROMA_TABLE = (
    *(17, 18, 24, 47, 99, 99, 99, 99, 18, 21, 26, 66, 99, 99, 99, 99, 24, 26, 56, 99, 99, 99, 99, 99, 47, 66, 99, 99),
    *(99, 99, 99, 99, *(99,) * 32),
)
TO_YCC = (
    (0.299, 0.587, 0.114),
    (-0.168735892, -0.331264108, 0.5),
    (0.5, -0.418687589, -0.081312411),
)
TO_RGB = ((1.0, 0.0, 1.402), (1.0, -0.344136286, -0.714136286), (1.0, 1.772, 0.0))


def jpeg(image: Tensor, quality: Tensor) -> Tensor:
    """Encode and decode as JPEG with 4:2:0 chroma subsampling.

    Args:
        image: float32 [B, 3, H, W] in [0, 1], RGB; it is rounded to 8 bits first. Any size.
        quality: [B], 1 to 100 as of libjpeg; fractions are allowed.

    Returns:
        float32 [B, 3, H, W], multiples of 1/255 in [0, 1].
    """
    height, width = image.shape[2:]
    pixels = (image * 255).round().clamp(0, 255)
    ycc = _mix(pixels, TO_YCC)
    offset = ycc.new_tensor([0.0, 128.0, 128.0])[:, None, None]
    ycc = (ycc + offset).round().clamp(0, 255)
    luma = _coded(ycc[:, :1], tables(quality, LUMA_TABLE))[:, :, :height, :width]
    small = _coded(_halved(ycc[:, 1:]), tables(quality, CHROMA_TABLE))
    # The decoder interpolates within the picture: the padding of the last block is cut off before.
    small = small[:, :, : (height + 1) // 2, : (width + 1) // 2]
    chroma = F.interpolate(small, scale_factor=2, mode="bilinear", align_corners=False)
    # Sums of sixteenths, of which libjpeg rounds halves up and down in alternate columns.
    odd = torch.arange(chroma.shape[3], device=chroma.device) % 2
    chroma = (chroma + (8 - odd) / 16).floor()
    decoded = torch.cat([luma, chroma[:, :, :height, :width]], 1) - offset
    return _mix(decoded, TO_RGB).round().clamp(0, 255) / 255


def tables(quality: Tensor, table: tuple[int, ...]) -> Tensor:
    """Quantization tables for each quality, [B, 8, 8], by libjpeg's rule."""
    scale = torch.where(quality < 50, 5000 / quality.float(), 200 - 2 * quality.float())[:, None, None]
    base = torch.tensor(table, dtype=torch.float32, device=quality.device).reshape(8, 8)
    return ((base * scale + 50) / 100).floor().clamp(1, 255)


def _mix(image: Tensor, matrix: tuple[tuple[float, ...], ...]) -> Tensor:
    return torch.einsum("oc,bchw->bohw", image.new_tensor(matrix), image)


def _halved(planes: Tensor) -> Tensor:
    """Means of 2×2 pixels in integers, rounded down and up in alternate columns, as libjpeg does."""
    height, width = planes.shape[2:]
    # libjpeg repeats the last column up to the last block, but rows only to an even number.
    planes = F.pad(planes, (0, -width % 16, 0, height % 2), mode="replicate")
    total = F.avg_pool2d(planes, 2, divisor_override=1)
    bias = 1 + torch.arange(total.shape[3], device=planes.device) % 2
    return ((total + bias) / 4).floor()


def _coded(planes: Tensor, table: Tensor) -> Tensor:
    """Quantize 8×8 blocks of [B, C, H, W] in the frequency domain; sides are continued to multiples of 8."""
    height, width = planes.shape[2:]
    padded = F.pad(planes, (0, -width % 8, 0, -height % 8), mode="replicate") - 128
    blocks = padded.unflatten(3, (-1, 8)).unflatten(2, (-1, 8)).transpose(3, 4)  # [B, C, H/8, W/8, 8, 8]
    basis = _cosines(planes.device)
    step = table[:, None, None, None]
    frequencies = _away_from_zero(basis @ blocks @ basis.T / step) * step
    decoded = (basis.T @ frequencies @ basis + 128).round().clamp(0, 255)
    return decoded.transpose(3, 4).flatten(4, 5).flatten(2, 3)


def _away_from_zero(x: Tensor) -> Tensor:
    """Round, halves away from zero as libjpeg does; they are frequent, so a float32 error must not decide."""
    return x.sign() * (x.abs() + 0.5 + 1e-4).floor()


def _cosines(device: torch.device) -> Tensor:
    """The orthonormal cosine transform, [8, 8]: row u is ½ C_u cos((2x + 1) u π / 16)."""
    position = torch.arange(8, dtype=torch.float64, device=device)
    basis = torch.cos((2 * position + 1) * position[:, None] * math.pi / 16) / 2
    basis[0] /= math.sqrt(2)
    return basis.float()
