"""Fidelity on pairs of images: PSNR and SSIM of the luma channel, and time, against bicubic interpolation.

    python benchmarks/quality.py FOLDER...

Every FOLDER has lq/ and gt/ with images of equal names; sides in gt/ are those in lq/ times the model's scale.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import common
import numpy as np

from resshift_fast import images
from resshift_fast.images.search import find_images
from resshift_fast.measure import timing
from resshift_fast.training.metrics import psnr_y, ssim_y

if TYPE_CHECKING:
    from resshift_fast.pipeline import Pipeline


def options() -> argparse.ArgumentParser:
    """The command line."""
    made = common.parser("PSNR-Y, SSIM-Y and seconds of a model on pairs of images, against bicubic interpolation.")
    made.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="Has lq/ and gt/ with equal names.")
    common.add_model_options(made)
    common.option(made, "--tile", type=common.positive, help="Tile side in input pixels. Default: the model's.")
    common.option(made, "--limit", type=common.positive, help="Number of images of each folder. Default: all.")
    common.option(made, "--seeds", type=common.positive, default=1, help="Number of seeds, counted up from --seed.")
    common.option(made, "--border", type=common.natural, default=0, help="Pixels left out on every side of a result.")
    common.option(
        made,
        "--bicubic",
        choices=("torch", "pil"),
        default="torch",
        help="The bicubic interpolation to compare with; the models start from torch's.",
    )
    return made


def pairs(folder: Path, limit: int | None) -> list[tuple[Path, Path]]:
    """(lq, gt) paths of equal names, in natural order.

    Raises:
        FileNotFoundError, ValueError: for a folder without lq or gt, or an image without its counterpart.
    """
    low = find_images([folder / "lq"])[:limit]
    found = []
    for path in low:
        high = folder / "gt" / path.name
        if not high.is_file():
            raise FileNotFoundError(f"{path} has no {high}; give both images the same name")
        found.append((path, high))
    return found


def enlarge(pixels: np.ndarray, scale: int, kind: str) -> np.ndarray:
    """Bicubic enlargement, uint8 [H, W, 3] to [H · scale, W · scale, 3].

    Args:
        pixels: the picture.
        scale: output side / input side.
        kind: "torch" (a = −0.75, the one that ×4 models start from) or "pil" (a = −0.5).
    """
    if kind == "pil":
        from PIL import Image

        size = (pixels.shape[1] * scale, pixels.shape[0] * scale)
        return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))
    import torch
    import torch.nn.functional as F

    planes = torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
    large = F.interpolate(planes, scale_factor=scale, mode="bicubic", align_corners=False)
    return large[0].permute(1, 2, 0).round().clamp(0, 255).to(torch.uint8).numpy()


def read_8_bit(path: Path) -> np.ndarray:
    """uint8 [H, W, 3] of a file; 16 bits are rounded."""
    pixels = images.read(path).pixels
    return pixels if pixels.dtype == np.uint8 else images.from_float(images.to_float(pixels))


def measure_pair(pipe: Pipeline, low: Path, high: Path, args: argparse.Namespace, warm: set) -> dict[str, Any]:
    """One image's row, with its figures for every seed in lists.

    Args:
        pipe: the model.
        low, high: the pair.
        args: parsed options.
        warm: shapes that have run before; a new shape runs once untimed.
    """
    lq, gt = read_8_bit(low), read_8_bit(high)
    scale = pipe.spec.scale
    if gt.shape[:2] != (lq.shape[0] * scale, lq.shape[1] * scale):
        raise ValueError(
            f"{high} is {gt.shape[1]}×{gt.shape[0]}, expected {lq.shape[1] * scale}×{lq.shape[0] * scale}: "
            f"{scale} times {low}"
        )

    def restore(seed: int) -> np.ndarray:
        return pipe(lq, seed=seed, tile=args.tile, progress=False)

    if lq.shape not in warm:
        restore(args.seed)
        warm.add(lq.shape)
    timed = [
        timing.seconds(lambda seed=seed: restore(seed), pipe.device)
        for seed in range(args.seed, args.seed + args.seeds)
    ]
    bicubic = enlarge(lq, scale, args.bicubic)
    return {
        "name": low.name,
        "psnr": [psnr_y(result, gt, args.border) for _, result in timed],
        "ssim": [ssim_y(result, gt, args.border) for _, result in timed],
        "seconds": [time for time, _ in timed],
        "bicubic_psnr": psnr_y(bicubic, gt, args.border),
        "bicubic_ssim": ssim_y(bicubic, gt, args.border),
    }


def row(folder: Path, name: str, figures: dict[str, Any]) -> dict[str, Any]:
    """A row of the table from figures as `measure_pair` gives them."""
    psnr, bicubic = float(np.mean(figures["psnr"])), figures["bicubic_psnr"]
    return {
        "folder": folder.resolve().name,
        "image": name,
        "PSNR-Y": psnr,
        "± PSNR": common.spread(figures["psnr"]),
        "SSIM-Y": float(np.mean(figures["ssim"])),
        "± SSIM": common.spread(figures["ssim"]),
        "bicubic PSNR-Y": bicubic,
        "bicubic SSIM-Y": figures["bicubic_ssim"],
        # Two perfect results have a gain of 0; ∞ − ∞ would be NaN.
        "gain dB": 0.0 if psnr == bicubic else psnr - bicubic,
        "seconds": common.median(figures["seconds"]),
    }


def mean_of(figures: list[dict[str, Any]]) -> dict[str, Any]:
    """Figures of a whole folder: for every seed the mean over the images; all times, for their median."""
    return {
        "psnr": list(np.mean([one["psnr"] for one in figures], axis=0)),
        "ssim": list(np.mean([one["ssim"] for one in figures], axis=0)),
        "bicubic_psnr": float(np.mean([one["bicubic_psnr"] for one in figures])),
        "bicubic_ssim": float(np.mean([one["bicubic_ssim"] for one in figures])),
        "seconds": [time for one in figures for time in one["seconds"]],
    }


def measure(args: argparse.Namespace) -> common.Report:
    """Restore and compare every pair."""
    pipe = common.load(args)
    rows, summary, warm = [], {"device": pipe.device}, set()
    for folder in args.folders:
        figures = [measure_pair(pipe, low, high, args, warm) for low, high in pairs(folder, args.limit)]
        rows += [row(folder, one["name"], one) for one in figures]
        rows.append(row(folder, f"mean of {len(figures)}", mean_of(figures)))
        summary[str(folder)] = rows[-1]
    columns = {
        "folder": "",
        "image": "",
        "PSNR-Y": ".2f",
        "± PSNR": ".3f",
        "SSIM-Y": ".4f",
        "± SSIM": ".4f",
        "bicubic PSNR-Y": ".2f",
        "bicubic SSIM-Y": ".4f",
        "gain dB": "+.2f",
        "seconds": ".3f",
    }
    if args.seeds == 1:
        del columns["± PSNR"], columns["± SSIM"]
    notes = [f"Bicubic is {args.bicubic}'s; {args.border} border pixels left out; seconds are medians after a warm-up."]
    if args.seeds > 1:
        notes.append(f"± is the standard deviation over {args.seeds} seeds; in the row of the mean, that of the mean.")
    title = f"Quality of {args.model}, {common.weights_line(args)}, {args.dtype}, seed {args.seed}"
    return common.Report(title, columns, rows, notes, summary)


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    return common.run(measure, options(), argv)


if __name__ == "__main__":
    sys.exit(main())
