"""Training patches.

A patch is a pure function of (seed, step, index), so that a resumed run gets the same patches as an uninterrupted one
without a saved loader state.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from resshift_fast.training.interfaces import Batch, BatchDegradation, Data, Degradation, Draws, PatchDegradation
from resshift_fast.training.opencv import cv2
from resshift_fast.training.photos import Photos
from resshift_fast.training.pixels import to_tensor

Pair = tuple[np.ndarray, np.ndarray | None]


@dataclass(frozen=True)
class PatchPlan:
    """How patches are made from photos."""

    patch: int = 256
    """Side of the high-quality patch in pixels, a multiple of scale."""
    scale: int = 4
    """Side of the high-quality patch / side of the low-quality one."""
    max_downscale: float = 4.0
    """A patch is area-averaged from a region with sides up to this many times larger, so that large photos give dense
    detail and every photo is seen at many scales."""
    candidates: int = 2
    """Number of regions drawn for a patch; the one with the largest gradients is used, since smooth regions such as sky
    contribute little to the training."""
    recolour: float = 0.3
    """Probability of permuted channels and a changed exposure, an augmentation for small sets of photos."""
    degradation: PatchDegradation | None = None
    """Makes the low-quality patch; None where that is done for the whole batch later."""


def _region(photo: np.ndarray, plan: PatchPlan, rng: np.random.Generator) -> np.ndarray:
    """The region with the largest gradients of a few random squares of one random size, not yet resized."""
    height, width = photo.shape[:2]
    largest = max(1.0, min(plan.max_downscale, min(height, width) / plan.patch))
    side = min(round(plan.patch * largest ** rng.random()), height, width)
    best, best_activity = photo, -1.0
    for _ in range(max(1, plan.candidates)):
        top, left = int(rng.integers(0, height - side + 1)), int(rng.integers(0, width - side + 1))
        region = photo[top : top + side, left : left + side]
        step = max(1, side // plan.patch)
        green = region[::step, ::step, 1].astype(np.int16)
        activity = float(np.abs(np.diff(green, axis=0)).mean() + np.abs(np.diff(green, axis=1)).mean())
        if activity > best_activity:
            best, best_activity = region, activity
    return best


def _recoloured(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    gamma, gain = np.exp(rng.uniform(-0.3, 0.3)), rng.uniform(0.8, 1.1)
    table = np.clip(np.rint(255.0 * gain * (np.arange(256) / 255.0) ** gamma), 0, 255).astype(np.uint8)
    return table[image[..., rng.permutation(3)]]


@dataclass(frozen=True)
class Patches:
    """Patches of photos; each is a function of the step and its index in the whole batch.

    Args:
        photos: with sides of at least `plan.patch`.
        plan: how patches are made.
        seed: of the run.
        size: pairs in a whole batch.
    """

    photos: Photos
    plan: PatchPlan
    seed: int
    size: int

    def pair(self, step: int, index: int) -> Pair:
        """Make one training pair; equal arguments give equal arrays, independent of earlier calls.

        Returns:
            uint8 (high [P, P, 3], low [P/scale, P/scale, 3] or None without a degradation).
        """
        plan = self.plan
        rng = np.random.default_rng([self.seed, step, index])
        high = _region(self.photos.at(self.seed, step * self.size + index, rng), plan, rng)
        if high.shape[0] != plan.patch:
            high = cv2.resize(high, (plan.patch, plan.patch), interpolation=cv2.INTER_AREA)
        if rng.random() < 0.5:
            high = high[:, ::-1]
        if rng.random() < 0.5:
            high = high[::-1]
        if rng.random() < 0.5:
            high = high.transpose(1, 0, 2)
        if rng.random() < plan.recolour:
            high = _recoloured(high, rng)
        high = np.ascontiguousarray(high)
        return high, None if plan.degradation is None else plan.degradation.degrade(high, plan.scale, rng)

    def batch(self, step: int, indices: Sequence[int]) -> Pair:
        """Make the pairs of some indices.

        Returns:
            uint8 (high [B, P, P, 3], low [B, P/scale, P/scale, 3] or None without a degradation).
        """
        pairs = [self.pair(step, index) for index in indices]
        lows = [low for _, low in pairs if low is not None]
        return np.stack([high for high, _ in pairs]), np.stack(lows) if lows else None


def paired(
    made: Pair | Batch,
    degradation: Degradation | None,
    scale: int,
    key: tuple[int, int, Sequence[int]],
    device: torch.device | str = "cpu",
) -> Batch:
    """A batch on a device; low-quality patches that are missing are made.

    Args:
        made: patches, or a batch, which only moves.
        degradation: makes the low-quality patches; None takes the high-quality ones.
        scale: of the model.
        key: seed, step and indices of the samples, for the random values of the degradation.
        device: of the training.
    """
    if isinstance(made, Batch):
        return made.to(torch.device(device))
    high, low = made
    truth = to_tensor(high).to(device)
    if low is not None:
        return Batch(truth, to_tensor(low).to(device))
    if isinstance(degradation, BatchDegradation):
        return degradation.degrade_batch(truth, scale, Draws(*key, device, stream=1))
    return Batch(truth, truth)


def prefetch(patches: Patches | Data, steps: range, indices: Sequence[int], workers: int = 1) -> Iterator[Pair | Batch]:
    """The batches of `steps` in order, prepared by `workers` threads. Closing the iterator stops them.

    Args:
        patches: makes the batches.
        steps: batches to make.
        indices: of the pairs to make of each batch.
        workers: threads; at most `workers` + 1 batches are in memory.
    """
    pool = ThreadPoolExecutor(max_workers=max(1, workers), thread_name_prefix="patches")
    pending: deque[Future] = deque()
    upcoming = iter(steps)
    try:
        while True:
            while len(pending) <= workers:
                step = next(upcoming, None)
                if step is None:
                    break
                pending.append(pool.submit(patches.batch, step, indices))
            if not pending:
                return
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
