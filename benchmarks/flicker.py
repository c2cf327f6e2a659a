"""Flicker of a restored video: the variance over the frames of a clip that stands still.

    python benchmarks/flicker.py
    python benchmarks/flicker.py --size 64 --frames 24 --quality 75

The clip is one picture, repeated and stored losslessly. It is restored as `resshift-fast restore` does, with the same
noise for all frames, and compared with frames that each have a seed of their own. The variance is that of each value
over the frames, averaged over all values, in squared levels of 255. Needs PyAV: pip install 'resshift-fast[video]'.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import common
import numpy as np

from resshift_fast.apps import extras
from resshift_fast.apps.video import clips, colours, restoring
from resshift_fast.images.fitting import Fitting


def options() -> argparse.ArgumentParser:
    """The command line."""
    made = common.parser("Flicker of a restored video: variance over the frames of a still clip.")
    common.add_model_options(made)
    common.option(made, "--size", type=common.positive, default=48, help="Side of the square frames in pixels.")
    common.option(made, "--frames", type=common.positive, default=12, help="Frames of the clip.")
    common.option(made, "--quality", type=common.positive, default=95, help="Quality of the encoder, 1 to 100.")
    return made


def write_still(path: Path, picture: np.ndarray, count: int) -> None:
    """Write a picture, uint8 [H, W, 3], as a lossless video of this many frames."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.height, stream.width, stream.pix_fmt = *picture.shape[:2], "bgr0"
        for i in range(count):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="bgr0")
            frame.pts = i
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def variance(frames: list[np.ndarray]) -> float:
    """The variance of each value over the frames, averaged."""
    return float(np.var(np.stack(frames).astype(np.float64), axis=0).mean())


def measure(args: argparse.Namespace) -> common.Report:
    """Restore the clip in both ways, and read what was written."""
    extras.require("video", clips.MODULES)
    pipe = common.load(args)
    picture = common.photo(args.size, args.size)
    fitting = Fitting(pipe.spec.scale, quality=args.quality)
    with tempfile.TemporaryDirectory() as folder:
        source, output = Path(folder, "still.mkv"), Path(folder, "restored.mp4")
        write_still(source, picture, args.frames)
        frames = [clips.read_clip(source).photo(timed.frame).pixels for timed in _frames_of(source)]
        if variance(frames):
            raise ValueError("the clip does not stand still: its encoder is not lossless")
        same = [pipe(frame, seed=args.seed, progress=False) for frame in frames]
        other = [pipe(frame, seed=args.seed + i, progress=False) for i, frame in enumerate(frames)]
        planned = restoring.plan(source, output, fitting)
        restoring.restore(pipe, planned, fitting, options={"seed": args.seed})
        written = [colours.pixels_of(timed.frame, clips.read_clip(output).coding) for timed in _frames_of(output)]
    found = {
        "frames of one seed, as they are restored": variance(same),
        "frames of one seed, in the video that is written": variance(written),
        "frames of a seed each": variance(other),
    }
    side = args.size * pipe.spec.scale
    title = f"Flicker of {args.frames} equal frames of {args.size}×{args.size} → {side}×{side}, {args.model}"
    rows = [{"frames": name, "variance": value, "root": value**0.5} for name, value in found.items()]
    columns = {"frames": "", "variance": ".4f", "root": ".3f"}
    notes = [f"Squared levels of 255, and their root; {common.weights_line(args)}, quality {args.quality}."]
    return common.Report(title, columns, rows, notes, {**found, "device": pipe.device})


def _frames_of(path: Path) -> list[clips.Timed]:
    return list(clips.frames_of(clips.read_clip(path), clips.Damage()))


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    return common.run(measure, options(), argv)


if __name__ == "__main__":
    sys.exit(main())
