"""Effects of tiling: differences of the noise, differences inside tiles, and seams at tile borders.

    python benchmarks/tiling.py
    python benchmarks/tiling.py PHOTO --tile 128 --overlap 16 --out maps.png

One image is restored untiled, in feathered tiles with the noise field (two tilings), and as in the official program:
every tile independently with new noise from torch, and overlaps averaged uniformly.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch
from torch import Tensor, nn

from resshift_fast import images
from resshift_fast.images.tiling import Axis, Blender, reflect
from resshift_fast.models.catalog import ModelSpec
from resshift_fast.pipeline import Pipeline

# A border line is compared with the lines this many latent pixels away on both sides: far enough to be outside the
# seam, and at the same phase of the latent's grid, since lines of different phases differ.
NEIGHBOURS = (1, 2)


@dataclass(frozen=True)
class Variant:
    """One way to restore the image.

    Args:
        name: for the table.
        rows, columns: its tiles.
        uniform: restore every tile as a separate image, and average overlaps instead of feathering them.
        noise: "field" or "torch".
    """

    name: str
    rows: Axis
    columns: Axis
    uniform: bool = False
    noise: str = "field"

    @property
    def tiles(self) -> int:
        return len(self.rows.starts) * len(self.columns.starts)


def options() -> argparse.ArgumentParser:
    """The command line."""
    made = common.parser("Differences between an image restored in tiles and untiled: noise, interior, seams.")
    made.add_argument(
        "image",
        nargs="?",
        type=Path,
        default=common.PHOTO,
        metavar="IMAGE",
        help="The picture, to be restored. Default: examples/nuthatch.jpg.",
    )
    common.option(
        made,
        "--size",
        type=common.natural,
        nargs=2,
        metavar=("WIDTH", "HEIGHT"),
        default=[320, 256],
        help="Crop the picture to this size, or continue it by its mirror images; 0 0 takes it as it is.",
    )
    common.add_model_options(made)
    common.option(made, "--tile", type=common.positive, default=96, help="Tile side in input pixels.")
    common.option(made, "--overlap", type=common.natural, default=16, help="Overlap in input pixels.")
    common.option(made, "--other-tile", type=common.positive, default=128, help="Tile side of the second tiling.")
    common.option(made, "--other-overlap", type=common.natural, default=24, help="Overlap of the second tiling.")
    common.option(made, "--out", type=Path, metavar="PNG", help="Write the picture and maps of the differences.")
    common.option(made, "--amplify", type=float, default=20.0, help="Factor on the differences in the maps.")
    return made


def variants(spec: ModelSpec, height: int, width: int, args: argparse.Namespace) -> list[Variant]:
    """The variants to compare; the first is untiled."""
    whole = -(-max(height, width) // spec.pad_multiple) * spec.pad_multiple

    def variant(name: str, tile: int, overlap: int, **settings: Any) -> Variant:
        return Variant(name, *spec.plan_tiles(height, width, tile, overlap), **settings)

    one, other = (args.tile, args.overlap), (args.other_tile, args.other_overlap)
    return [
        variant("one piece", whole, 0),
        variant("feathered, noise field", *one),
        variant("feathered, noise field, other tiling", *other),
        variant("feathered, torch noise", *one, noise="torch"),
        variant("averaged, torch noise (official style)", *one, uniform=True, noise="torch"),
    ]


def restore(pipe: Pipeline, picture: Tensor, variant: Variant, overlap: int, seed: int) -> Tensor:
    """Restore [3, H, W] in [0, 1] as the variant says: float32 [3, H · scale, W · scale]."""
    if variant.uniform:
        return restore_uniform(pipe, picture, variant, seed)
    tile = max(variant.rows.tile, variant.columns.tile)
    return pipe(
        picture, seed=seed, tile=tile, overlap=min(overlap, tile - 1), batch_size=1, noise=variant.noise, progress=False
    )


def restore_uniform(pipe: Pipeline, picture: Tensor, variant: Variant, seed: int) -> Tensor:
    """Restore every tile as a separate image, and average overlaps."""
    rows, columns, scale = variant.rows, variant.columns, pipe.spec.scale
    crops = []
    for top in rows.starts:
        for left in columns.starts:
            lines = torch.from_numpy(reflect(top, rows.tile, rows.length))
            places = torch.from_numpy(reflect(left, columns.tile, columns.length))
            crops.append(picture[:, lines[:, None], places[None, :]])
    tile = max(rows.tile, columns.tile)
    restored = pipe(crops, seed=seed, tile=tile, batch_size=1, noise=variant.noise, progress=False)
    result = torch.empty(3, rows.length * scale, columns.length * scale)

    def keep(top: int, band: np.ndarray) -> None:
        result[:, top : top + band.shape[1]] = torch.from_numpy(band.copy())

    blender = Blender(rows, columns, scale, keep, uniform(rows, scale), uniform(columns, scale))
    for i, pixels in enumerate(restored):
        blender.add(i // len(columns.starts), i % len(columns.starts), pixels.numpy())
    return result


def uniform(axis: Axis, scale: int) -> np.ndarray:
    """Weights of uniform averaging, float32 [tiles, tile · scale]: 1 / number of tiles at every pixel."""
    side = axis.tile * scale
    count = np.zeros(axis.padded * scale, dtype=np.float32)
    for start in axis.starts:
        count[start * scale : start * scale + side] += 1
    return np.stack([1 / count[start * scale : start * scale + side] for start in axis.starts])


class Listener(nn.Module):
    """A denoiser that records its inputs and predicts zeros, so that its inputs consist of noise alone."""

    def __init__(self, denoiser: nn.Module, spec: ModelSpec):
        super().__init__()
        self.denoiser, self._channels, self._out = denoiser, spec.denoiser.in_channels, spec.denoiser.out_channels
        self.heard: list[Tensor] = []

    def modulation(self, timesteps: Tensor) -> Any:
        return self.denoiser.modulation(timesteps)

    def condition(self, lq: Tensor | None, mask: Tensor | None) -> Tensor | None:
        return self.denoiser.condition(lq, mask)

    def denoise(self, x: Tensor, modulation: Any) -> Tensor:
        self.heard.append(x[:, : self._channels].float().cpu())
        return x.new_zeros(x.shape[0], self._out, *x.shape[2:])


class Gray(nn.Module):
    """A first stage that encodes every image to zeros, so that a latent depends on noise alone."""

    def __init__(self, spec: ModelSpec):
        super().__init__()
        self._factor, self._channels = spec.first_stage.factor, spec.first_stage.latent_channels

    def encode(self, image: Tensor) -> Tensor:
        size = (image.shape[2] // self._factor, image.shape[3] // self._factor)
        return image.new_zeros(image.shape[0], self._channels, *size)

    def decode(self, latent: Tensor) -> Tensor:
        return latent.new_zeros(latent.shape[0], 3, latent.shape[2] * self._factor, latent.shape[3] * self._factor)


def noise_of(pipe: Pipeline, picture: Tensor, variant: Variant, overlap: int, seed: int) -> list[Tensor]:
    """The denoiser's inputs for a zero latent and zero predictions: [steps, C, h, w] for every tile, row by row."""
    spec = pipe.spec
    listener = Listener(pipe.denoiser, spec)
    restore(Pipeline(spec, listener, Gray(spec), pipe.device, pipe.dtype), picture, variant, overlap, seed)
    steps = spec.schedule.num_steps
    if len(listener.heard) != variant.tiles * steps:
        raise ValueError(f"the denoiser ran {len(listener.heard)} times, not {variant.tiles} tiles × {steps} steps")
    return [torch.cat(listener.heard[i * steps : (i + 1) * steps]) for i in range(variant.tiles)]


def noise_difference(tiles: list[Tensor], variant: Variant, whole: Tensor, latent_per_input: float) -> float:
    """Largest difference of any tile's noise from that of the untiled image, in standard deviations of the step's.

    Args:
        tiles: from `noise_of`.
        variant: where they lie.
        whole: [steps, C, h, w], untiled; the padding of tiles is not compared.
        latent_per_input: latent pixels along a side for one input pixel.
    """
    deviation = whole.flatten(1).std(dim=1).view(-1, 1, 1, 1)
    largest = 0.0
    places = ((top, left) for top in variant.rows.starts for left in variant.columns.starts)
    for tile, (top, left) in zip(tiles, places, strict=True):
        top, left = int(top * latent_per_input), int(left * latent_per_input)
        there = whole[:, :, top : top + tile.shape[2], left : left + tile.shape[3]]
        here = tile[:, :, : there.shape[2], : there.shape[3]]
        largest = max(largest, float(((here - there).abs() / deviation).max()))
    return largest


def borders(axis: Axis) -> list[int]:
    """Input pixels at which a tile begins or ends inside the image."""
    ends = {start + axis.tile for start in axis.starts[:-1]}
    return sorted(place for place in {*axis.starts[1:], *ends} if 0 < place < axis.length)


def interior(axis: Axis, overlap: int, scale: int) -> np.ndarray:
    """Which output pixels are at least `overlap` input pixels from every tile border, bool [length · scale]."""
    inside = np.ones(axis.length * scale, dtype=bool)
    for border in borders(axis):
        inside[max(0, border - overlap) * scale : (border + overlap) * scale] = False
    return inside


def seam_energy(difference: np.ndarray, axis: Axis, direction: int, scale: int, block: int) -> tuple[list, list]:
    """Mean squared jumps of the difference to the untiled result: (across tile borders, across lines nearby).

    Args:
        difference: [3, H, W] in levels.
        axis: the tiles along `direction`, 1 (rows) or 2 (columns).
        scale: output side / input side. block: output pixels of a latent pixel.
    """
    jumps = np.square(np.diff(difference, axis=direction)).mean(axis=tuple({0, 1, 2} - {direction}))
    lines = [border * scale for border in borders(axis)]
    nearby = {line + sign * k * block for line in lines for k in NEIGHBOURS for sign in (-1, 1)} - set(lines)
    # jumps[i] lies between pixels i and i + 1, so a border before pixel p is jumps[p − 1].
    return [jumps[line - 1] for line in lines], [jumps[line - 1] for line in sorted(nearby) if 0 < line <= len(jumps)]


def compare(result: Tensor, whole: Tensor, variant: Variant, overlap: int, spec: ModelSpec) -> dict[str, Any]:
    """The variant's figures for the table; differences in units of 1/255 of full brightness."""
    difference = (result - whole).numpy().astype(np.float64) * 255
    inside = interior(variant.rows, overlap, spec.scale)[:, None] & interior(variant.columns, overlap, spec.scale)
    at_borders, nearby = [], []
    for direction, axis in enumerate((variant.rows, variant.columns), start=1):
        ours, theirs = seam_energy(difference, axis, direction, spec.scale, spec.first_stage.factor)
        at_borders += ours
        nearby += theirs
    border, near = (float(np.mean(lines)) if lines else None for lines in (at_borders, nearby))
    return {
        "RMS": rms(difference),
        "PSNR dB": psnr(difference),
        "inside RMS": rms(difference[:, inside]) if inside.any() else None,
        "inside PSNR dB": psnr(difference[:, inside]) if inside.any() else None,
        "border jump²": border,
        "nearby jump²": near,
        "seam energy": border - near if border is not None and near is not None else None,
    }


def rms(difference: np.ndarray) -> float:
    """Root mean square."""
    return float(np.sqrt(np.mean(np.square(difference))))


def psnr(difference: np.ndarray) -> float:
    """PSNR in dB of a difference in units of 1/255, over all channels; infinite for none."""
    error = rms(difference)
    return float("inf") if error == 0 else float(20 * np.log10(255 / error))


def write_maps(path: Path, whole: Tensor, results: dict[str, Tensor], amplify: float) -> None:
    """The untiled result, and below it every variant's difference to it, amplified around gray."""
    from PIL import Image, ImageDraw

    panels = {"one piece": whole}
    panels |= {f"{name}: difference ×{amplify:g}": 0.5 + amplify * (one - whole) for name, one in results.items()}
    shown = []
    for name, panel in panels.items():
        image = Image.fromarray(images.from_float(panel.clamp(0, 1).permute(1, 2, 0).numpy()))
        draw = ImageDraw.Draw(image)
        draw.rectangle((0, 0, draw.textlength(name) + 8, 16), fill="black")
        draw.text((4, 2), name.replace("×", "x"), fill="white")
        shown.append(np.asarray(image))
    images.write(path, images.Photo(np.concatenate(shown)))


def measure(args: argparse.Namespace) -> common.Report:
    """Restore the image by every variant and compare."""
    pipe = common.load(args)
    spec = pipe.spec
    if spec.needs_mask:
        raise ValueError(f"{spec.name} is an inpainting model and needs a mask; choose a model without one")
    width, height = args.size
    pixels = common.photo(height, width, args.image) if width and height else images.read(args.image).pixels
    picture = torch.from_numpy(images.to_float(pixels)).permute(2, 0, 1)
    first, *others = variants(spec, *picture.shape[1:], args)
    whole = restore(pipe, picture, first, 0, args.seed)
    whole_noise = noise_of(pipe, picture, first, 0, args.seed)[0]
    rows, results = [], {}
    for variant in others:
        overlap = args.other_overlap if "other" in variant.name else args.overlap
        results[variant.name] = restore(pipe, picture, variant, overlap, args.seed)
        noise = noise_of(pipe, picture, variant, overlap, args.seed)
        figures = compare(results[variant.name], whole, variant, overlap, spec)
        difference = noise_difference(noise, variant, whole_noise, spec.latent_per_input)
        tiling = f"{variant.rows.tile}/{overlap}"
        rows.append({"variant": variant.name, "tile": tiling, "tiles": variant.tiles, "noise σ": difference, **figures})
    if args.out:
        write_maps(args.out, whole, results, args.amplify)
    title = (
        f"Tiles of {args.model}, {common.weights_line(args)}, {args.dtype}, seed {args.seed}: {args.image.name}, "
        f"{picture.shape[2]}×{picture.shape[1]} → {whole.shape[2]}×{whole.shape[1]}, against one piece"
    )
    summary, notes = conclude(rows)
    return common.Report(title, COLUMNS, rows, notes, summary | {"device": pipe.device})


COLUMNS = {
    "variant": "",
    "tile": "",
    "tiles": "d",
    "noise σ": ".3g",
    "RMS": ".3f",
    "PSNR dB": ".2f",
    "inside RMS": ".3f",
    "inside PSNR dB": ".2f",
    "border jump²": ".4f",
    "nearby jump²": ".4f",
    "seam energy": ".4f",
}


def conclude(rows: list[dict[str, Any]]) -> tuple[dict[str, Any], list[str]]:
    """(summary, notes) of the table's rows; the first is this library's way, the last the official program's."""
    ours, official = rows[0], rows[-1]
    fields = [row["noise σ"] for row in rows[:2]]
    summary = {
        "noise difference of two tilings": max(fields),
        "interior PSNR dB": ours["inside PSNR dB"],
        "seam energy": ours["seam energy"],
        "seam energy, official style": official["seam energy"],
    }
    notes = [
        "noise: largest difference from the noise in one piece, over all tiles and steps, in standard deviations.",
        "RMS in levels of 255; inside: at least an overlap away from every tile border. jump²: mean squared first",
        "difference of (tiled − one piece) across tile borders, and across lines 1 and 2 latent pixels beside them;",
        "seam energy: the former less the latter, 0 without a seam.",
    ]
    if ours["border jump²"] and official["border jump²"]:
        summary["border jump² ratio"] = official["border jump²"] / ours["border jump²"]
        notes.append(
            f"Across tile borders the official way jumps {summary['border jump² ratio']:.1f} times as much (squared); "
            f"seam energy {official['seam energy']:.4f} against {ours['seam energy']:.4f}."
        )
    return summary, notes


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    return common.run(measure, options(), argv)


if __name__ == "__main__":
    sys.exit(main())
