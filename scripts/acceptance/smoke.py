"""Restore a photo by the embedded model with each backend: checks that its kernels run and match the plain path.

    python scripts/acceptance/smoke.py --device cuda --dtype bfloat16 --backend cuda triton --csv smoke.csv

Each backend runs in its own process, so that a broken CUDA context does not affect the others. The exit status is 1 if
a backend is missing, failed its verification, or gives a different result than plain float32.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from resshift_fast.backends import names, status, unavailable, use_backend
from resshift_fast.measure.end_to_end import LEAST_PSNR, psnr
from resshift_fast.measure.workers import Worker, WorkerError
from resshift_fast.pipeline import Pipeline

PHOTO = Path(__file__).resolve().parents[2] / "examples" / "nuthatch.jpg"
COLUMNS = ("backend", "kernels", "first s", "again s", "psnr dB", "problem")
MODEL = "nano-x4"


class Restorer:
    """The restoration of a photo with a backend.

    Args:
        backend: its name. device, dtype: as in `Pipeline.from_pretrained`. size: side of the central crop in pixels.
    """

    def __init__(self, backend: str, device: str, dtype: str, size: int):
        self.backend, self.device, self.dtype = backend, device, dtype
        photo = Image.open(PHOTO).convert("RGB")
        left, top = (photo.width - size) // 2, (photo.height - size) // 2
        self.photo = np.asarray(photo.crop((left, top, left + size, top + size)))

    def restore(self) -> dict[str, Any]:
        """Restore three times, since the second call may capture a CUDA graph for the third; returns the result."""
        if reason := unavailable(self.backend):
            raise ValueError(reason)
        with use_backend(self.backend), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            start = time.perf_counter()
            pipe = Pipeline.from_pretrained(MODEL, device=self.device, dtype=self.dtype)
            pictures = [pipe(self.photo, progress=False)]
            first = time.perf_counter() - start
            pipe(self.photo, progress=False)
            start = time.perf_counter()
            pictures.append(pipe(self.photo, progress=False))
            again = time.perf_counter() - start
            decisions = status(self.device)
        used = {decision.operator for decision in decisions if decision.backend == self.backend}
        wrong = [str(warning.message) for warning in caught if " is off for " in str(warning.message)]
        return {"pictures": pictures, "first": first, "again": again, "kernels": len(used), "wrong": "; ".join(wrong)}


def row(backend: str, args: argparse.Namespace, expected: np.ndarray) -> dict[str, Any]:
    """The row of a backend, with its problem if there is one."""
    try:
        with Worker(Restorer, backend, args.device, args.dtype, args.size) as worker:
            found = worker.call("restore")
    except WorkerError as error:
        return {"backend": backend, "problem": str(error)}
    agreement = min(psnr(picture / 255.0, expected) for picture in found["pictures"])
    problem = found["wrong"]
    if not problem and backend != "reference" and not found["kernels"]:
        problem = "none of its kernels ran"
    if not problem and not agreement >= LEAST_PSNR[args.dtype]:
        problem = f"{agreement:.1f} dB against plain float32, expected at least {LEAST_PSNR[args.dtype]:g}"
    figures = {"first s": f"{found['first']:.2f}", "again s": f"{found['again']:.3f}", "psnr dB": f"{agreement:.1f}"}
    return {"backend": backend, "kernels": found["kernels"], **figures, "problem": problem}


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", help="Default: cuda.")
    parser.add_argument("--dtype", choices=list(LEAST_PSNR), default="bfloat16", help="Default: bfloat16.")
    parser.add_argument("--size", type=int, default=64, metavar="N", help="Side of the photo. Default: 64.")
    parser.add_argument("--backend", nargs="+", choices=names(), default=["cuda", "triton"], help="Default: both.")
    parser.add_argument("--csv", type=Path, required=True, metavar="FILE", help="A row for each backend.")
    args = parser.parse_args(argv)
    with Worker(Restorer, "reference", args.device, "float32", args.size) as worker:
        expected = worker.call("restore")["pictures"][0] / 255.0
    problems = 0
    with open(args.csv, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for backend in ("reference", *args.backend):
            found = row(backend, args, expected)
            writer.writerow(found)
            file.flush()
            print(", ".join(f"{name} {value}" for name, value in found.items() if value != ""), flush=True)
            problems += bool(found["problem"])
    return int(problems > 0)


if __name__ == "__main__":
    sys.exit(main())
