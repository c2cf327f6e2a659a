"""Dust, hairs and scratches, as on scanned prints and films. Images are uint8 RGB arrays [H, W, 3]."""

from __future__ import annotations

import numpy as np

from resshift_fast.training.opencv import cv2

FRACTION = 4  # bits of the fractions of coordinates that OpenCV draws with


def marked(image: np.ndarray, rng: np.random.Generator, count: int) -> np.ndarray:
    """The image with marks, each light or dark, and from nearly opaque to faint.

    A third each are specks with radii of 0.5 to 2.5 pixels, scratches, which are straight and up to the whole image
    long, and hairs, which are curved and up to 40 pixels long. Lines are one or two pixels wide.

    Args:
        image: the image, which stays as it is.
        rng: draws the marks.
        count: their number.
    """
    height, width = image.shape[:2]
    found = image.astype(np.float32)
    for _ in range(count):
        cover = np.zeros((height, width), np.uint8)
        centre = rng.uniform((0, 0), (width, height))
        kind, angle, thickness = rng.integers(3), rng.uniform(0, 2 * np.pi), int(rng.integers(1, 3))
        if kind == 0:
            radius = rng.uniform(0.5, 2.5)
            x, y, size = (round(value * 2**FRACTION) for value in (*centre, radius))
            cv2.circle(cover, (x, y), size, 255, -1, cv2.LINE_AA, FRACTION)
        else:
            length, bend = (rng.uniform(10, max(height, width)), 0.0) if kind == 1 else (rng.uniform(8, 40), 2.0)
            turns = angle + bend * rng.uniform(-1, 1) * np.linspace(-1, 1, 9)
            steps = np.stack([np.cos(turns), np.sin(turns)], 1) * (length / 9)
            points = np.asarray(centre + steps.cumsum(0) - steps.sum(0) / 2)
            line = np.rint(points * 2**FRACTION).astype(np.int32)
            cv2.polylines(cover, [line], False, 255, thickness, cv2.LINE_AA, FRACTION)
        opacity = rng.uniform(0.3, 1.0) * (cover[..., None] / np.float32(255))
        tone = np.float32(rng.uniform(190, 255) if rng.random() < 0.5 else rng.uniform(0, 60))
        found += opacity.astype(np.float32) * (tone - found)
    return np.rint(found).astype(np.uint8)
