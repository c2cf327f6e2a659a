"""Finding faces and five points in each with MTCNN (arXiv 1604.02878), coarse to fine.

The first network looks at a pyramid of reduced pictures, the next two at the squares around what is left. After each,
of several boxes on one face the most probable is kept. The last network then looks again at each face, turned upright
by the points that it has found, since it is exact only for upright ones. Coordinates are in pixels from the picture's
top left corner, so the centre of the first pixel is at 0.5.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from os import PathLike

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from resshift_fast.apps.faces.alignment import Picture, Similarity, Window, fit, indices, source_of
from resshift_fast.apps.faces.mtcnn import DEVIATION, MEAN, PLACED, PROPOSED, REFINED, STRIDE, Networks

PYRAMID = 0.709  # of a side from one level to the next: half the area
THRESHOLDS = (0.6, 0.7, 0.9)  # least probabilities after each network
# Of two boxes with more in common than this, the less probable is dropped: within a level, among levels, at the end.
OVERLAPS = (0.5, 0.7, 0.7)
MOST_PROPOSED = 2000  # windows of a level that are looked at more closely
LOOKS = 2  # again at a face that is turned upright
UPRIGHT = Similarity(338 / PLACED, 81 + 116j)  # from the last network's crops to FFHQ's faces, where it finds its boxes
# Least probability of a face in a picture that is turned by a quarter; it is sought where none so probable stands.
SIDEWAYS = 0.99
_AT_ONCE = 128  # crops, which bounds the memory


@dataclass(frozen=True, eq=False)
class Face:
    """A face in a picture.

    Attributes:
        score: its probability.
        box: float64 [4], its left, top, right and bottom side in pixels; they may be outside of the picture.
        points: float64 [5, 2], x and y in pixels of the eyes, the nose and the corners of the mouth; of two that is
            first which is on the left when the face is upright.
    """

    score: float
    box: np.ndarray
    points: np.ndarray

    @property
    def eye_distance(self) -> float:
        """Between the eyes, in pixels."""
        return float(np.linalg.norm(self.points[1] - self.points[0]))

    def moved(self, place: Similarity) -> Face:
        """The face in the picture that a similarity by a multiple of a quarter turn maps this one to."""
        corners = place(self.box.reshape(2, 2))
        return Face(self.score, np.concatenate([corners.min(0), corners.max(0)]), place(self.points))


class Detector:
    """Finds faces, on the CPU: those that are tilted by up to some 40°, else those in a picture that lies on its side.

    Args:
        networks: MTCNN with its weights.
        smallest: side of the smallest face in pixels, at least 12; the time is inversely proportional to its square.
        thresholds: least probabilities after each of the three networks.

    Raises:
        ValueError: for a side below 12.
    """

    def __init__(self, networks: Networks, smallest: float = 20.0, thresholds: tuple[float, float, float] = THRESHOLDS):
        if not smallest >= PROPOSED:
            raise ValueError(f"smallest is {smallest}, expected at least {PROPOSED} pixels")
        self._networks, self._smallest, self._thresholds = networks, smallest, thresholds

    @classmethod
    def from_files(cls, path: str | PathLike[str] | None = None, smallest: float = 20.0) -> Detector:
        """A detector with the weights of facenet-pytorch; the path and errors as of `Networks.from_files`."""
        return cls(Networks.from_files(path), smallest)

    @torch.inference_mode()
    def __call__(self, image: Tensor) -> list[Face]:
        """The faces in a picture, from the largest to the smallest.

        Args:
            image: float [3, H, W] in [0, 1], RGB.

        Raises:
            ValueError: for another shape.
        """
        if image.dim() != 3 or image.shape[0] != 3 or 0 in image.shape:
            raise ValueError(f"Detector: expected an image [3, H, W], got {list(image.shape)}")
        pixels = image.detach().to("cpu", torch.float32) * 255
        faces = self._standing(pixels, self._thresholds[2], self._smallest)
        if all(face.score < SIDEWAYS for face in faces):
            faces = _without_doubles([*faces, *self._lying(pixels)])
        return sorted(faces, key=lambda face: (-face.eye_distance, *face.box))

    def _standing(self, pixels: Tensor, threshold: float, smallest: float) -> list[Face]:
        boxes = self._proposed(pixels, smallest)
        picture = Integral(pixels)
        faces = self._placed(picture, self._refined(picture, boxes), threshold)
        for _ in range(LOOKS):
            looked = [self._turned_upright(pixels, face) for face in faces]
            faces = [face for face in looked if face.score > threshold]
        return faces

    def _lying(self, pixels: Tensor) -> list[Face]:
        """The faces that are upright in a picture turned by one, two or three quarters, and not among the smallest."""
        height, width = pixels.shape[1:]
        back = {1: Similarity(1j, complex(width, 0)), 2: Similarity(-1, complex(width, height))}
        back[3] = Similarity(-1j, complex(0, height))
        threshold = max(SIDEWAYS, self._thresholds[2])
        return [
            face.moved(place)
            for quarters, place in back.items()
            for face in self._standing(pixels.rot90(quarters, (1, 2)), threshold, 2 * self._smallest)
        ]

    def _proposed(self, pixels: Tensor, smallest: float) -> np.ndarray:
        found = [_no_boxes()]
        height, width = pixels.shape[1:]
        for rows, columns in _levels(height, width, smallest):
            level = F.interpolate(pixels[None], size=(rows, columns), mode="area")
            probabilities, offsets = self._networks.pnet((level - MEAN) / DEVIATION)
            scores = probabilities[0].flatten().numpy()
            kept = np.flatnonzero(scores > self._thresholds[0])
            kept = kept[np.argsort(-scores[kept], kind="stable")][:MOST_PROPOSED]
            top, left = np.divmod(kept, probabilities.shape[2])
            windows = np.stack([left, top, left, top], 1) * float(STRIDE) + [0, 0, PROPOSED, PROPOSED]
            windows *= np.array([width / columns, height / rows] * 2)
            best = most_probable(windows, scores[kept], OVERLAPS[0])
            found.append((_moved(windows, offsets[0].flatten(1).T.numpy()[kept])[best], scores[kept][best]))
        boxes, scores = (np.concatenate(parts) for parts in zip(*found, strict=True))
        kept_boxes: np.ndarray = boxes[most_probable(boxes, scores, OVERLAPS[1])]
        return kept_boxes

    def _refined(self, picture: Integral, boxes: np.ndarray) -> np.ndarray:
        found = [_no_boxes()]
        for squares, crops in _crops(picture, boxes, REFINED):
            probabilities, offsets = self._networks.rnet(crops)
            scores = probabilities.numpy()
            kept = scores > self._thresholds[1]
            found.append((_moved(squares, offsets.numpy())[kept], scores[kept]))
        boxes, scores = (np.concatenate(parts) for parts in zip(*found, strict=True))
        kept_boxes: np.ndarray = boxes[most_probable(boxes, scores, OVERLAPS[1])]
        return kept_boxes

    def _placed(self, picture: Integral, boxes: np.ndarray, threshold: float) -> list[Face]:
        found: list[Face] = []
        for squares, crops in _crops(picture, boxes, PLACED):
            probabilities, offsets, points = self._networks.onet(crops)
            scores, moved = probabilities.numpy(), _moved(squares, offsets.numpy())
            sides = (squares[:, 2:] - squares[:, :2])[:, None]
            places = squares[:, None, :2] + points.numpy() * sides
            for index in np.flatnonzero(scores > threshold):
                found.append(Face(float(scores[index]), moved[index], places[index]))
        return _without_doubles(found)

    def _turned_upright(self, pixels: Tensor, face: Face) -> Face:
        """The face with the probability and the points that are found when it is turned upright."""
        to_picture = fit(face.points).inverse.after(UPRIGHT)
        window = Window(0, 0, PLACED, PLACED)
        needed = source_of(window, to_picture)
        rows, columns = indices(needed, *pixels.shape[1:])
        part = pixels[:, torch.from_numpy(rows)[:, None], torch.from_numpy(columns)]
        crop = Picture(part, to_picture, needed.left, needed.top).window(window)
        probabilities, _, points = self._networks.onet((crop[None] - MEAN) / DEVIATION)
        return Face(float(probabilities[0]), face.box, to_picture(points[0].double().numpy() * PLACED))


def _without_doubles(faces: list[Face]) -> list[Face]:
    """Of faces that are mostly in one another the most probable, however much smaller the other is."""
    boxes, scores = np.array([face.box for face in faces]).reshape(-1, 4), np.array([face.score for face in faces])
    return [faces[index] for index in most_probable(boxes, scores, OVERLAPS[2], of_smaller=True)]


def _no_boxes() -> tuple[np.ndarray, np.ndarray]:
    return np.zeros((0, 4)), np.zeros(0, np.float32)


def _levels(height: int, width: int, smallest: float) -> Iterator[tuple[int, int]]:
    """(rows, columns) of the pictures of the pyramid, in each of which a larger face has the side of a window."""
    scale = PROPOSED / smallest
    while min(height, width) * scale >= PROPOSED:
        yield math.ceil(height * scale), math.ceil(width * scale)
        scale *= PYRAMID


def _moved(boxes: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Boxes [N, 4] with their sides moved by offsets [N, 4] in units of their own sides."""
    sides = boxes[:, 2:] - boxes[:, :2]
    moved: np.ndarray = boxes + offsets * np.concatenate([sides, sides], 1)
    return moved


def squares_around(boxes: np.ndarray) -> np.ndarray:
    """Squares [N, 4] with the centres of boxes [N, 4] and their longer sides."""
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    halves = (boxes[:, 2:] - boxes[:, :2]).max(1, keepdims=True) / 2
    return np.concatenate([centres - halves, centres + halves], 1)


def most_probable(boxes: np.ndarray, scores: np.ndarray, most: float, of_smaller: bool = False) -> np.ndarray:
    """Of boxes with much in common the most probable: non-maximum suppression.

    Args:
        boxes: [N, 4]. scores: [N].
        most: the largest common area of two boxes that both stay, as a part of their union.
        of_smaller: as a part of the smaller one instead.

    Returns:
        Their indices, from the most probable on; of equally probable ones the first comes first.
    """
    left, top, right, bottom = boxes.T
    areas = (right - left).clip(0) * (bottom - top).clip(0)
    order, kept = np.argsort(-scores, kind="stable"), []
    while len(order):
        first, rest = order[0], order[1:]
        kept.append(first)
        width = np.minimum(right[first], right[rest]) - np.maximum(left[first], left[rest])
        height = np.minimum(bottom[first], bottom[rest]) - np.maximum(top[first], top[rest])
        common = width.clip(0) * height.clip(0)
        whole = np.minimum(areas[first], areas[rest]) if of_smaller else areas[first] + areas[rest] - common
        order = rest[common <= most * whole]
    return np.array(kept, np.int64)


class Integral:
    """Means over rectangles of a picture with fractional sides, from the sums of all pixels above and to the left.

    Args:
        pixels: float [3, H, W]; outside of it pixels are 0.
    """

    def __init__(self, pixels: Tensor):
        self._sums = F.pad(pixels.double(), (1, 0, 1, 0)).cumsum(1).cumsum(2)

    def crops(self, boxes: np.ndarray, side: int) -> Tensor:
        """Boxes [N, 4], each reduced or enlarged to float32 [N, 3, side, side] of the means over its equal parts."""
        places = torch.from_numpy(boxes)
        steps = torch.linspace(0, 1, side + 1, dtype=torch.float64)
        x, y = (places[:, i, None] + (places[:, i + 2] - places[:, i])[:, None] * steps for i in (0, 1))
        sums = self._sums_until(x, y)
        parts = sums[:, :, 1:, 1:] - sums[:, :, :-1, 1:] - sums[:, :, 1:, :-1] + sums[:, :, :-1, :-1]
        area = (x[:, 1] - x[:, 0]) * (y[:, 1] - y[:, 0])
        return (parts / area.clamp_min(1e-6)[:, None, None, None]).float()

    def _sums_until(self, x: Tensor, y: Tensor) -> Tensor:
        """Sums [N, 3, rows, columns] over what is left of x [N, columns] and above y [N, rows]."""
        height, width = (side - 1 for side in self._sums.shape[1:])
        (top, bottom, down), (left, right, across) = _between(y, height), _between(x, width)
        down, across = down[:, None, :, None], across[:, None, None, :]

        def at(rows: Tensor, columns: Tensor) -> Tensor:
            return self._sums[:, rows[:, :, None], columns[:, None, :]].transpose(0, 1)

        above = at(top, left) * (1 - across) + at(top, right) * across
        below = at(bottom, left) * (1 - across) + at(bottom, right) * across
        return above * (1 - down) + below * down


def _between(places: Tensor, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """The whole numbers beside places within 0 to side, and the part of the way from the lower to the upper."""
    places = places.clamp(0, side)
    lower = places.floor().clamp_max(max(0, side - 1))
    return lower.long(), lower.long() + 1, places - lower


def _crops(picture: Integral, boxes: np.ndarray, side: int) -> Iterator[tuple[np.ndarray, Tensor]]:
    """The squares around boxes, and what a network takes of them."""
    squares = squares_around(boxes)
    squares = squares[squares[:, 2] - squares[:, 0] >= 1]
    for start in range(0, len(squares), _AT_ONCE):
        some = squares[start : start + _AT_ONCE]
        yield some, (picture.crops(some, side) - MEAN) / DEVIATION
