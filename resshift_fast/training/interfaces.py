"""What the trainer, its objectives, its data and its degradations give one another."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from resshift_fast.models.interfaces import FirstStage, Model


@dataclass(frozen=True)
class Batch:
    """Training pairs.

    Attributes:
        high: float32 [B, channels, P, P] in [−1, 1]; photos have 3 channels.
        low: float32 [B, channels, P/scale, P/scale] in [−1, 1].
        mask: float32 [B, 1, P, P], 1 = unknown and −1 = known, for inpainting; else None.
        taught: like high, what a teacher makes of low; None without a teacher.
    """

    high: Tensor
    low: Tensor
    mask: Tensor | None = None
    taught: Tensor | None = None

    def __len__(self) -> int:
        return len(self.high)

    def __getitem__(self, part: slice) -> Batch:
        return self._each(lambda tensor: tensor[part])

    def to(self, device: torch.device) -> Batch:
        """The same on a device."""
        return self._each(lambda tensor: tensor.to(device))

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        mask, taught = (None if one is None else change(one) for one in (self.mask, self.taught))
        return Batch(change(self.high), change(self.low), mask, taught)


class Draws:
    """Random values of the samples of one step.

    Those of a sample are a function of (seed, step, its index in the whole batch, stream) and of the earlier draws, so
    they do not depend on how the batch is divided among processes and micro-batches, nor on the device.

    Args:
        seed, step: of the run and the batch, at least 0.
        indices: of the samples in the whole batch.
        device: of the results; the values are drawn on the CPU.
        stream: separates independent users of one step's values.

    Attributes:
        step: as given.
    """

    def __init__(
        self, seed: int, step: int, indices: Sequence[int], device: torch.device | str = "cpu", *, stream: int = 0
    ):
        self.step = step
        self._key, self._stream, self._device = (seed, step), stream, torch.device(device)
        self._samples = [self._generator(1 + index) for index in indices]
        self._batch: torch.Generator | None = None

    def _generator(self, index: int) -> torch.Generator:
        state = np.random.SeedSequence([*self._key, index, self._stream]).generate_state(1, np.uint64)
        return torch.Generator().manual_seed(int(state[0] >> np.uint64(1)))

    def __len__(self) -> int:
        return len(self._samples)

    def normal(self, *shape: int) -> Tensor:
        """Standard normal values, float32 [B, *shape]."""
        return torch.stack([torch.randn(shape, generator=one) for one in self._samples]).to(self._device)

    def uniform(self, *shape: int) -> Tensor:
        """Uniform values in [0, 1), float32 [B, *shape]."""
        return torch.stack([torch.rand(shape, generator=one) for one in self._samples]).to(self._device)

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        """Uniform integers from `low` to below `high`, int64 [B, *shape]."""
        drawn = [torch.randint(low, high, shape, generator=one) for one in self._samples]
        return torch.stack(drawn).to(self._device)

    def of_batch(self) -> float:
        """A uniform value in [0, 1) that all samples of the whole batch share."""
        if self._batch is None:
            self._batch = self._generator(0)
        return float(torch.rand((), generator=self._batch))


@dataclass(frozen=True)
class Parts:
    """What an objective works with.

    Attributes:
        spec: the model, as for `Trainer`.
        first_stage: a frozen module; gradients may flow through it, not into it.
        table: the schedule's coefficients, float32 [T, columns] on the device; see `diffusion.schedule`.
        predict: (x_t, t, low, mask or None) to the denoiser's prediction, with x_t [B, C, h, w] not yet scaled and t
            int64 [B] from 0 to T − 1. It scales the input and runs in the configured precision. For a denoiser with
            channels of noise these are a fifth argument, [B, noise_channels, h, w].
        autocast: the context in which other networks run in the configured precision.
        device: of the training.
        denoise: the same as `predict` for timesteps that are not in the table: (x, timesteps, low, mask or None, noise
            where there is such a channel) with x scaled already and timesteps as the denoiser takes them.
    """

    spec: Model
    first_stage: FirstStage
    table: Tensor
    predict: Callable[..., Tensor]
    autocast: Callable[[], AbstractContextManager[Any]]
    device: torch.device
    denoise: Callable[..., Tensor]


@dataclass(frozen=True)
class Loss:
    """Loss of a batch.

    Attributes:
        by_sample: float32 [B]; their mean is minimized.
        t: int64 [B], the timestep of each sample, for the log; None where there are no timesteps.
    """

    by_sample: Tensor
    t: Tensor | None = None


class Objective(Protocol):
    """Computes the loss of a batch; its random values come from the draws alone."""

    def __call__(self, batch: Batch, draws: Draws) -> Loss: ...


@runtime_checkable
class Auxiliary(Protocol):
    """What an objective also has that trains networks of its own, such as a discriminator or a fake model.

    Before each step of the trained network they take `auxiliary_steps` optimizer steps on the same batch. During the
    loss of the trained network their parameters are frozen, so gradients flow through them and not into them. Their
    gradients are averaged over all processes, and they are saved and resumed with the training.

    Attributes:
        networks: all that are trained, in one module on the training's device.
        optimizer: of their parameters, built with its peak learning rate; see `optimization.Optimization`.
    """

    networks: nn.Module
    optimizer: torch.optim.Optimizer

    def auxiliary_steps(self, step: int) -> int:
        """Optimizer steps before step `step` of the trained network; 0 to leave the networks as they are."""
        ...

    def auxiliary_loss(self, batch: Batch, draws: Draws) -> Tensor:
        """Loss of a batch, float32 [B]; its gradient must not reach the trained network."""
        ...


@runtime_checkable
class Reporting(Protocol):
    """What an objective also has that adds values to the log.

    Attributes:
        columns: their names.
    """

    columns: tuple[str, ...]

    def report(self, total: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """The values since the last call, by column.

        Args:
            total: the sum of a tensor over all processes, which all call it equally often.
        """
        ...


@runtime_checkable
class Measuring(Protocol):
    """What an objective also has that adds metrics to the validation.

    Attributes:
        metrics: functions of a restored and a true image, both uint8 RGB [H, W, 3], by name.
        best: the metric that chooses the weights, one of these or psnr_y; those of `validation.LOWER_IS_BETTER` are
            best where they are least.
    """

    metrics: Mapping[str, Callable[[np.ndarray, np.ndarray], float]]
    best: str


class Data(Protocol):
    """Makes training pairs of something else than photos, or has them already."""

    def batch(self, step: int, indices: Sequence[int]) -> Batch:
        """The pairs of a step, on the CPU. They depend on the arguments alone, so that a run can be resumed exactly.

        Several threads call this at the same time.

        Args:
            step: of the run, from 0 on.
            indices: of the pairs in the whole batch; a process makes its part of it.
        """
        ...


@runtime_checkable
class PatchDegradation(Protocol):
    """Makes the low-quality versions one by one, in the threads that prepare patches."""

    def degrade(self, image: np.ndarray, scale: int, rng: np.random.Generator) -> np.ndarray:
        """uint8 RGB [H, W, 3] to uint8 [H/scale, W/scale, 3]."""
        ...


@runtime_checkable
class BatchDegradation(Protocol):
    """Makes a batch from high-quality patches, on the training's device."""

    def degrade_batch(self, high: Tensor, scale: int, draws: Draws) -> Batch:
        """float32 [B, 3, P, P] in [−1, 1] to a batch; its high-quality side may differ: sharpened, or gray."""
        ...


Degradation = PatchDegradation | BatchDegradation
