"""A whole restoration by several providers: seconds, memory and agreement, in one process, in alternating runs.

    python benchmarks/end_to_end.py --device cuda --dtype float32 bfloat16
    python benchmarks/end_to_end.py --model nano-x4 --providers reference ours

Providers: reference (plain PyTorch), compile (torch.compile of the reference), ours (the backends chosen here) and
ours-compiled (`Pipeline.compile`: CUDA graphs on a GPU). A provider whose result is too far from the float32 reference
gets no speed-up.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import common

from resshift_fast import timing

if TYPE_CHECKING:
    import numpy as np

    from resshift_fast.pipeline import Pipeline

PROVIDERS = ("reference", "compile", "ours", "ours-compiled")
LEAST_PSNR = {"float32": 80.0, "bfloat16": 35.0, "float16": 45.0}  # dB against the float32 reference


def options() -> argparse.ArgumentParser:
    """The command line."""
    made = common.parser("Seconds, memory and agreement of a whole restoration by several providers.")
    common.add_model_options(made, several_dtypes=True)
    made.set_defaults(model="realsr-x4-v3", random_weights=True)
    common.option(made, "--providers", nargs="+", choices=PROVIDERS, default=list(PROVIDERS), help="What is timed.")
    common.option(made, "--size", type=common.positive, default=64, help="Side of the square input in pixels.")
    common.option(made, "--batch", type=common.positive, default=1, help="Pictures restored at once.")
    common.option(made, "--runs", type=common.positive, default=7, help="Timed runs of each provider.")
    return made


def runner(provider: str, pipe: Pipeline, pictures: list[np.ndarray], seed: int) -> Callable[[], Any]:
    """What one timed run calls; the pipeline is set up as the provider wants it."""
    from resshift_fast import use_backend

    plain = provider in ("reference", "compile")
    if provider in ("compile", "ours-compiled"):
        pipe.compile("torch" if plain else None)

    def restore() -> Any:
        with use_backend("reference") if plain else nullcontext():
            return pipe(pictures, seed=seed, batch_size=len(pictures), tile=4096, progress=False)

    return restore


def psnr(result: np.ndarray, exact: np.ndarray) -> float:
    """Peak signal-to-noise ratio of images in [0, 1], in dB."""
    import numpy as np

    error = float(np.mean((np.asarray(result, dtype=np.float64) - exact) ** 2))
    return math.inf if error == 0 else -10 * math.log10(error)


def peak_mib(pipe: Pipeline, restore: Callable[[], Any]) -> float | None:
    """The most memory that torch holds on the GPU in one run, in MiB; None on other devices."""
    if pipe.device.type != "cuda":
        return None
    import torch

    torch.cuda.reset_peak_memory_stats(pipe.device)
    restore()
    return torch.cuda.max_memory_allocated(pipe.device) / common.MIB


def measure_dtype(args: argparse.Namespace, dtype: str, pictures: list, exact: Any) -> list[dict[str, Any]]:
    """One row a provider."""
    import numpy as np

    runs: dict[str, Callable[[], Any]] = {}
    rows: dict[str, dict[str, Any]] = {}
    for provider in args.providers:
        pipe = _pipeline(args, dtype)
        restore = runner(provider, pipe, pictures, args.seed)
        result = restore()  # the warm-up compiles, verifies and captures
        agreement = psnr(np.stack(result), exact)
        rows[provider] = {"dtype": dtype, "provider": provider, "PSNR dB": agreement}
        rows[provider]["agrees"] = agreement >= LEAST_PSNR[dtype]
        restore()
        rows[provider]["peak MiB"] = peak_mib(pipe, restore)
        runs[provider] = restore
    taken: dict[str, list[float]] = {provider: [] for provider in runs}
    for _ in range(args.runs):
        for provider, restore in runs.items():
            taken[provider].append(timing.seconds(restore, pipe.device)[0])
    for provider, row in rows.items():
        row["median ms"] = 1e3 * common.median(taken[provider])
        row["spread ms"] = 1e3 * (common.spread(taken[provider]) or 0)
        if row["agrees"] and "reference" in taken:
            row["speed-up"] = common.median(taken["reference"]) / common.median(taken[provider])
    return list(rows.values())


def _pipeline(args: argparse.Namespace, dtype: str) -> Pipeline:
    import torch

    torch.manual_seed(0)  # random weights are the same in every pipeline
    pipe = common.load(args, dtype)
    if args.random_weights:
        for parameter in pipe.denoiser.parameters():
            if parameter.dim() > 1 and not parameter.any():  # layers that start at zero would hide the network
                torch.nn.init.normal_(parameter, std=0.02)
    return pipe


def measure(args: argparse.Namespace) -> common.Report:
    """Time every provider in every dtype."""
    import numpy as np
    import torch

    from resshift_fast import use_backend

    picture = torch.from_numpy(common.photo(args.size, args.size).astype(np.float32) / 255).permute(2, 0, 1)
    pictures = [picture] * args.batch
    with use_backend("reference"):
        first = _pipeline(args, "float32")
        exact = np.stack(runner("reference", first, pictures, args.seed)())
    device, scale = first.device, first.spec.scale
    del first
    rows = [row for dtype in args.dtype for row in measure_dtype(args, dtype, pictures, exact)]
    size = f"{args.size}×{args.size} → {args.size * scale}×{args.size * scale}"
    title = f"{args.model}, {size}, batch {args.batch}, {common.weights_line(args)}, {args.runs} runs"
    columns = {"dtype": "", "provider": "", "median ms": ".2f", "spread ms": ".2f", "speed-up": ".2f"}
    columns |= {"PSNR dB": ".1f", "peak MiB": ".0f"}
    wrong = [f"{row['provider']} in {row['dtype']}" for row in rows if not row["agrees"]]
    problem = f"too far from the float32 reference: {', '.join(wrong)}" if wrong else ""
    return common.Report(title, columns, rows, [], {"device": device}, problem)


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    return common.run(measure, options(), argv)


if __name__ == "__main__":
    sys.exit(main())
