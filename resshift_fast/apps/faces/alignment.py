r"""Where a face is when it is aligned as those of FFHQ, and pictures that are turned, moved and enlarged accordingly.

A similarity maps the plane of complex numbers by :math:`w = a z + b`: :math:`a` turns and enlarges, :math:`b` moves.
Of those that map points :math:`z_i` near points :math:`w_i` (means :math:`\bar z, \bar w`) the one of least squares is
(Umeyama, IEEE TPAMI 13(4), 1991, in two dimensions and without reflection)

.. math::
    a = \frac{\sum_i \overline{(z_i - \bar z)} (w_i - \bar w)}{\sum_i |z_i - \bar z|^2}, \qquad b = \bar w - a \bar z

Coordinates are in pixels from the top left corner, x the real and y the imaginary part, so the centre of the first
pixel is at 0.5 + 0.5i, and a picture enlarged s times has its points at s z.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

SIDE = 512  # of an aligned face, in pixels
# Eyes, nose and corners of the mouth of FFHQ's faces at 512 × 512 pixels, with the first pixel's centre at 0: widely
# published, as by facexlib for GFPGAN.
FFHQ = np.array(
    [
        [192.98138, 239.94708],
        [318.90277, 240.1936],
        [256.63416, 314.01935],
        [201.26117, 371.41043],
        [313.08905, 371.15118],
    ]
)
TEMPLATE = FFHQ + 0.5
_BORDER = 4  # pixels around a part of a picture that its resampling needs
PLATEAU, EDGE = 0.7, 0.95  # of half a side: where a face's mask begins to fall, and where it has


@dataclass(frozen=True)
class Similarity:
    """Maps z to factor · z + shift.

    Args:
        factor: turns by its argument, and enlarges by its absolute value, which is not 0. shift: moves.
    """

    factor: complex
    shift: complex

    @property
    def scale(self) -> float:
        """How much longer distances become."""
        return abs(self.factor)

    @property
    def inverse(self) -> Similarity:
        """The way back."""
        return Similarity(1 / self.factor, -self.shift / self.factor)

    def after(self, first: Similarity) -> Similarity:
        """This one, of what `first` maps to."""
        return Similarity(self.factor * first.factor, self.factor * first.shift + self.shift)

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """Points [..., 2] of x and y, mapped."""
        places = self.factor * (points[..., 0] + 1j * points[..., 1]) + self.shift
        return np.stack([places.real, places.imag], -1)


def enlargement(factor: float) -> Similarity:
    """The similarity that enlarges a picture."""
    return Similarity(complex(factor), 0j)


def fit(points: np.ndarray, wanted: np.ndarray = TEMPLATE) -> Similarity:
    """The similarity of least squares that maps points near others, by default those of a face to FFHQ's.

    Args:
        points, wanted: [N, 2], x and y.

    Raises:
        ValueError: if all points are one, or one is NaN or infinite.
    """
    z, w = (x[:, 0] + 1j * x[:, 1] for x in (points, wanted))
    middle, target = z.mean(), w.mean()
    spread = (abs(z - middle) ** 2).sum()
    if not spread > 0 or not np.isfinite(spread):
        raise ValueError(f"fit: points must be finite and apart, got {points.tolist()}")
    factor = complex((np.conj(z - middle) * (w - target)).sum() / spread)
    return Similarity(factor, complex(target - factor * middle))


@dataclass(frozen=True)
class Window:
    """A rectangle of whole pixels: rows top to bottom − 1, columns left to right − 1."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def is_empty(self) -> bool:
        """Whether it has no pixel."""
        return self.top >= self.bottom or self.left >= self.right

    def within(self, other: Window) -> Window:
        """The pixels of both."""
        return Window(
            max(self.top, other.top),
            max(self.left, other.left),
            min(self.bottom, other.bottom),
            min(self.right, other.right),
        )


def image_of(window: Window, place: Similarity, border: int = 0) -> Window:
    """The smallest window that a similarity maps all of a window into, with a border around it."""
    y, x = (window.top, window.bottom), (window.left, window.right)
    corners = place(np.array([[column, row] for row in y for column in x], float))
    left, top = (math.floor(side) - border for side in corners.min(0))
    right, bottom = (math.ceil(side) + border for side in corners.max(0))
    return Window(top, left, bottom, right)


def source_of(window: Window, to_picture: Similarity) -> Window:
    """The part of a picture, which may reach beyond it, that `Picture` needs for a window."""
    return image_of(window, to_picture, math.ceil(_BORDER * max(1.0, to_picture.scale)))


def indices(window: Window, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """The indices of a window's rows and columns in a picture, beyond which its border is repeated.

    It is not mirrored as FFHQ's pictures are, since a face that is cut off would have a third eye.
    """
    return np.arange(window.top, window.bottom).clip(0, height - 1), np.arange(window.left, window.right).clip(
        0, width - 1
    )


class Picture:
    """A part of a picture, to be resampled: bicubically, and without aliasing where it becomes smaller.

    Args:
        pixels: float [C, h, w].
        to_picture: maps points of the result to those of the picture.
        left, top: of the part in the picture.
    """

    def __init__(self, pixels: Tensor, to_picture: Similarity, left: int = 0, top: int = 0):
        to_part = Similarity(1, -complex(left, top)).after(to_picture)
        height, width = pixels.shape[1:]
        reduction = max(1.0, to_picture.scale)
        size = (max(1, round(height / reduction)), max(1, round(width / reduction)))
        if size != (height, width):
            pixels = F.interpolate(pixels[None], size=size, mode="bicubic", antialias=True)[0]
        self._pixels, self._to_part = pixels, to_part
        self._height, self._width = height, width

    def window(self, window: Window) -> Tensor:
        """The result's pixels in a window, [C, rows, columns]; beyond the part its border is repeated."""
        x = torch.arange(window.left, window.right, dtype=torch.float64) + 0.5
        y = torch.arange(window.top, window.bottom, dtype=torch.float64) + 0.5
        a, b = self._to_part.factor, self._to_part.shift
        across = a.real * x - a.imag * y[:, None] + b.real
        down = a.imag * x + a.real * y[:, None] + b.imag
        # From −1 to 1 over the whole width and height, also of the reduced part.
        grid = torch.stack([2 * across / self._width - 1, 2 * down / self._height - 1], -1).to(self._pixels.dtype)
        return F.grid_sample(
            self._pixels[None], grid[None], mode="bicubic", padding_mode="border", align_corners=False
        )[0]


def mask(window: Window, to_face: Similarity) -> tuple[Tensor, Tensor]:
    """How much of an aligned face is to be seen at the pixels of a window, and how near they are to its middle.

    Args:
        window: of a picture. to_face: maps its points to those of the aligned face.

    Returns:
        (opacity, nearness), float32 [rows, columns] in [0, 1]. Both fall with :math:`r = (x^4 + y^4)^{1/4}`, in which x
        and y are −1 to 1 over the aligned face: the opacity from 1 at `PLATEAU` to 0 at `EDGE` with cos², the nearness
        from 1 in the middle to 0 at the edge.
    """
    x = torch.arange(window.left, window.right, dtype=torch.float64) + 0.5
    y = (torch.arange(window.top, window.bottom, dtype=torch.float64) + 0.5)[:, None]
    a, b = to_face.factor / (SIDE / 2), to_face.shift / (SIDE / 2)
    across, down = a.real * x - a.imag * y + b.real - 1, a.imag * x + a.real * y + b.imag - 1
    radius = (across**4 + down**4) ** 0.25
    fallen = ((radius - PLATEAU) / (EDGE - PLATEAU)).clamp(0, 1)
    opacity = torch.cos(math.pi / 2 * fallen) ** 2
    opacity[fallen >= 1] = 0
    return opacity.float(), (1 - radius / EDGE).clamp(0, 1).float()
