"""The training loop of residual-shift models."""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import cv2
import torch
from torch import Tensor, nn

from resshift_fast.core import claims
from resshift_fast.diffusion import schedule as columns
from resshift_fast.models.layers import prepack_weights_
from resshift_fast.training import choices, networks, validation
from resshift_fast.training.config import TrainConfig
from resshift_fast.training.data import Patches, prefetch
from resshift_fast.training.distributed import Processes, accumulating, parts_of
from resshift_fast.training.interfaces import (
    Batch,
    BatchDegradation,
    Degradation,
    Draws,
    Loss,
    Objective,
    Parts,
    PatchDegradation,
)
from resshift_fast.training.metrics import Metric
from resshift_fast.training.metrics import from_config as metrics_from_config
from resshift_fast.training.optimization import AveragedWeights, learning_rate
from resshift_fast.training.photos import Photos
from resshift_fast.training.pixels import to_tensor
from resshift_fast.training.progress import Progress
from resshift_fast.training.run_folder import RunFolder
from resshift_fast.training.stopping import StopSignals
from resshift_fast.training.tensorboard import TensorBoard
from resshift_fast.training.validation import Validation, ValidationResult

if TYPE_CHECKING:
    from resshift_fast.models.autoencoder import SpaceToDepth, VQAutoencoder
    from resshift_fast.models.swin_unet import SwinUNet

__all__ = ["TrainConfig", "Trainer"]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Trainer:
    """Trains one model, in this process or, started by torchrun, in several.

    Everything random in a step is a function of (seed, step), so that a run that was stopped and resumed gives the same
    weights as an uninterrupted one.

    Args:
        config: the settings.
        spec: the model, an entry of the catalogue or an object with its attributes `schedule`, `prediction_type`,
            `scale` and `clamp_x0`; None looks config.model up.
        denoiser, first_stage: modules to use instead of new ones.
        metrics: further ones for the validation, by the names that they have in the log.

    Raises:
        ValueError: for a model or settings that cannot be trained, or weights that do not fit.
        OSError: if a file cannot be read or the run folder cannot be created.
    """

    def __init__(
        self,
        config: TrainConfig,
        spec: Any = None,
        *,
        denoiser: SwinUNet | None = None,
        first_stage: VQAutoencoder | SpaceToDepth | None = None,
        metrics: Mapping[str, Metric] | None = None,
    ):
        self.processes = Processes(config.device)
        self.device = self.processes.device
        torch.manual_seed(config.seed)
        if spec is None or denoiser is None or first_stage is None:
            from resshift_fast.models import catalog

            spec = spec or catalog.get(config.model)
            denoiser = denoiser or catalog.build_denoiser(spec)
            first_stage = first_stage or networks.build_first_stage(config, spec)
        self.config = config = config.for_model(spec)
        self._check_division()
        self.spec, self.schedule = spec, spec.schedule
        self.denoiser = denoiser.to(self.device).train()
        self.first_stage = first_stage.to(self.device).eval().requires_grad_(False)
        if config.channels_last:
            prepack_weights_(self.denoiser)
        if config.recompute:
            networks.recompute_activations(self.denoiser)
        self.table = self.schedule.table(self.device)
        self.timesteps = torch.as_tensor(self.schedule.timesteps, dtype=torch.int64, device=self.device)
        self.run_folder = RunFolder(config.run)
        self.step, self.best_gain, self.elapsed = 0, -math.inf, 0.0
        self._validated = ""  # fingerprint of the validation set that best_gain was reached on
        if config.init_from is not None and not self.run_folder.last.exists():
            networks.load_weights(self.denoiser, config.init_from)
        self.average = AveragedWeights(self.denoiser, config.ema_decay)
        self.optimizer = torch.optim.AdamW(
            self.denoiser.parameters(), lr=config.lr, betas=config.betas, weight_decay=config.weight_decay
        )
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.precision == "float16")
        compiled: Any = torch.compile(self.denoiser) if config.compile else self.denoiser
        self._network = self.processes.wrap(compiled)
        parts = Parts(spec, self.first_stage, self.table, self._predict, self._autocast, self.device)
        self.objective: Objective = choices.chosen(choices.OBJECTIVES, "objective", config.objective)(config, parts)
        self.degradation: Degradation = choices.chosen(choices.DEGRADATIONS, "degradation", config.degradation)(
            config, spec
        )
        self._metrics = metrics or {}
        self._by_t = torch.zeros(2, len(self.timesteps))  # sums of the losses, and their numbers
        self.signals = StopSignals()
        self._stopping = False  # all processes know of the signal
        self._changed: list[str] = []  # settings that differ from those of the checkpoint

    def _check_division(self) -> None:
        config, count = self.config, self.processes.count
        if config.batch_size % (count * config.accumulate):
            raise ValueError(
                f"batch_size must be a multiple of {count} processes × {config.accumulate} accumulated parts, "
                f"got {config.batch_size}"
            )

    # ---- one step

    def _autocast(self):
        if self.config.precision == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=DTYPES[self.config.precision])

    def _predict(self, x_t: Tensor, t: Tensor, low: Tensor, mask: Tensor | None) -> Tensor:
        scaled = x_t * self.table[t, columns.INPUT_SCALE][:, None, None, None]
        if self.config.channels_last:
            scaled = scaled.contiguous(memory_format=torch.channels_last)
        with self._autocast():
            return self._network(scaled, self.timesteps[t], low, mask)

    def loss(self, batch: Batch, step: int, part: slice = slice(None)) -> Loss:
        """Loss of this process's batch on the device, or a part of it, whose noise and timesteps depend on `step`."""
        indices = self.processes.indices(len(batch) * self.processes.count)[part]
        return self.objective(batch[part], Draws(self.config.seed, step, indices, self.device))

    def train_step(self, batch: Batch) -> tuple[float, float]:
        """One optimizer step on this process's batch on the device; returns (loss, gradient norm before clipping).

        Raises:
            FloatingPointError: if the loss is not finite; the weights are then those of the previous step.
        """
        config = self.config
        # For networks that draw values of their own.
        torch.manual_seed((config.seed * 0x9E3779B1 + self.step * 0x85EBCA77 + self.processes.rank) % (1 << 63))
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(config, self.step)
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), dtype=torch.float64)
        parts = list(parts_of(len(batch), config.accumulate))
        for part in parts:
            with accumulating(self._network, last=part is parts[-1]):
                loss = self.loss(batch, self.step, part)
                mean = loss.by_sample.mean() / len(parts)
                self.scaler.scale(mean).backward()
            total += mean.detach().cpu()
            losses = loss.by_sample.detach().float().cpu()
            self._by_t.index_add_(1, loss.t.cpu(), torch.stack([losses, torch.ones_like(losses)]))
        state = torch.stack([total / self.processes.count, total.new_tensor(float(self.signals.received))])
        value, stop = self.processes.sum(state.float()).tolist()
        self._stopping = stop > 0
        self._check_finite("loss", value)
        self.scaler.unscale_(self.optimizer)
        norm = float(nn.utils.clip_grad_norm_(self.denoiser.parameters(), config.grad_clip or math.inf))
        if not self.scaler.is_enabled():
            self._check_finite("gradient", norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.average.update(self.step)
        self.step += 1
        return value, norm

    def _check_finite(self, what: str, value: float) -> None:
        if not math.isfinite(value):
            raise FloatingPointError(
                f"the {what} became {value} at step {self.step}; run the same command again with --override "
                "lr=…, grad_clip=… or precision=float32: it continues from the last checkpoint"
            )

    # ---- validation and files

    def restore(self, low: Tensor, mask: Tensor | None = None) -> Tensor:
        """Run the whole chain with the current weights and seed 0; arguments and result as in `networks.restore`."""
        mask = None if mask is None else mask.to(self.device)
        return networks.restore(self.spec, self.denoiser, self.first_stage, low.to(self.device), mask)

    def validate(self, held_out: Validation) -> ValidationResult:
        """Validate the averaged weights, write the sheet, and save the weights as best.safetensors if they improved."""
        with self.average.applied():
            result = held_out.run(self.restore, self.run_folder.sheet(self.step))
        if result.gain > self.best_gain:
            self.best_gain = result.gain
            self._save_best(result)
        return result

    def _save_best(self, result: ValidationResult | None) -> None:
        from resshift_fast.weights.checkpoints import save_safetensors

        metadata = {"model": getattr(self.spec, "name", self.config.model), "step": str(self.step)}
        if result is not None:
            metadata |= {f"psnr_y_{kind}_gain": f"{gain:.4f}" for kind, gain in result.gains().items()}
        save_safetensors(self.average.state, self.run_folder.best, metadata, dtype=torch.float16)

    def save(self) -> None:
        """Write last.pt."""
        self.run_folder.save_last(
            {
                "step": self.step,
                "model": self.denoiser.state_dict(),
                "ema": self.average.state,
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
                "config": self.config.to_dict(),
                "best_gain": self.best_gain,
                "validated": self._validated,
                "elapsed": self.elapsed,
            }
        )

    def resume(self) -> bool:
        """Continue from last.pt if it exists; returns whether it does.

        Raises:
            ValueError: if it is damaged, or its settings differ in one that changes the training.
        """
        if not self.run_folder.last.exists():
            return False
        state = self.run_folder.load_last()
        self._changed = self.config.check_resumable(state["config"])
        self.denoiser.load_state_dict(state["model"])
        self.average.set(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        for group in self.optimizer.param_groups:  # which the state has replaced
            group |= {"betas": self.config.betas, "weight_decay": self.config.weight_decay}
        if self.scaler.is_enabled() and state.get("scaler"):
            self.scaler.load_state_dict(state["scaler"])
        self.step, self.best_gain, self.elapsed = state["step"], state["best_gain"], state["elapsed"]
        self._validated = state.get("validated", "")
        return True

    # ---- the loop

    def _patches(self) -> Patches:
        config = self.config
        in_workers = self.degradation if isinstance(self.degradation, PatchDegradation) else None
        plan = config.plan(self.spec.scale, in_workers)
        photos = Photos(config.sources, min_side=plan.patch, cache_mb=config.cache_mb)
        return Patches(photos, plan, config.seed, config.batch_size)

    def _batches(self, patches: Patches) -> Generator[Batch, None, None]:
        config = self.config
        steps, indices = range(self.step, config.steps), self.processes.indices(config.batch_size)
        batches = prefetch(patches, steps, indices, config.workers)
        for step, (high, low) in zip(steps, batches, strict=True):
            truth = to_tensor(high).to(self.device)
            if low is not None:
                yield Batch(truth, to_tensor(low).to(self.device))
            elif isinstance(self.degradation, BatchDegradation):
                draws = Draws(config.seed, step, indices, self.device, stream=1)
                yield self.degradation.degrade_batch(truth, self.spec.scale, draws)

    def run(self, *, stop_after: int | None = None) -> bool:
        """Train to config.steps, or until `stop_after` more steps or a signal; always writes last.pt at the end.

        Continues from last.pt if the run folder has one. Returns whether the run is complete.

        Raises:
            BlockingIOError: if another training uses the run folder.
            FileNotFoundError, ValueError: for unusable photos or settings, before anything is written.
            FloatingPointError: as in `train_step`.
        """
        if not self.processes.is_main:
            return self._run(stop_after)
        with claims.claimed(self.run_folder.last) as free:
            if not free:
                raise BlockingIOError(
                    f"another training uses {self.run_folder.folder}; choose another --run folder, or stop that one"
                )
            return self._run(stop_after)

    def _run(self, stop_after: int | None) -> bool:
        # Patches are made in threads already; OpenCV's own would compete with the training for the cores.
        cv2.setNumThreads(1)
        self._stopping = False
        resumed = self.resume()
        config, main = self.config, self.processes.is_main
        held_out = self._validation() if main else None
        patches = self._patches()
        batches = self._batches(patches)
        end = config.steps if stop_after is None else min(config.steps, self.step + stop_after)
        progress = Progress(self.step, config.steps, quiet=not main)
        board = TensorBoard(self.run_folder.folder / "tensorboard", self.step, main and config.tensorboard)
        if main:
            self.run_folder.log.start(self.step, held_out.columns() if held_out else ())
            self.run_folder.timesteps.start(self.step)
        if resumed:
            progress.note("; ".join([f"resumed {self.run_folder.last} at step {self.step}", *self._changed]))
        if held_out is not None and held_out.fingerprint != self._validated:
            if self._validated:
                progress.note("the validation photos have changed: the best weights are chosen anew")
            self._validated, self.best_gain = held_out.fingerprint, -math.inf
        if main and self._changed:
            self.run_folder.log.append(step=self.step, note="; ".join(self._changed))
        try:
            with self.signals:
                self._loop(batches, patches.photos, end, held_out, progress, board)
        finally:
            progress.close()
            board.close()
            batches.close()
        return self.step >= config.steps

    def _validation(self) -> Validation | None:
        config, scale = self.config, self.spec.scale
        if config.val is None:
            return None
        side = config.val_side or None
        if config.val_lq is not None:
            pairs = validation.from_pairs(config.val, config.val_lq, scale, limit=config.val_limit, side=side)
        else:
            pairs = validation.from_photos(config.val, scale, self.degradation, limit=config.val_limit, side=side)
        found = {**metrics_from_config(config, self.device), **self._metrics}
        return Validation(pairs, scale, batch=config.val_batch, metrics=found)

    def _loop(
        self,
        batches: Iterator[Batch],
        photos: Photos,
        end: int,
        held_out: Validation | None,
        progress: Progress,
        board: TensorBoard,
    ) -> None:
        config, main = self.config, self.processes.is_main
        began, saved = time.monotonic() - self.elapsed, time.monotonic()
        loss_sum, loss_count = 0.0, 0
        while self.step < end and not self._stopping:
            loss, norm = self.train_step(next(batches))
            loss_sum, loss_count = loss_sum + loss, loss_count + 1
            self.elapsed = time.monotonic() - began
            progress.advance()
            for report in photos.reports():
                progress.note(f"skipped {report}")
            row: dict[str, object] = {}
            by_timestep: dict[str, object] = {}
            if self.step % config.log_every == 0 or self.step == config.steps:
                lr = learning_rate(config, self.step - 1)
                row = {"loss": f"{loss_sum / loss_count:.6f}", "lr": f"{lr:.3e}", "grad_norm": f"{norm:.4f}"}
                by_timestep = self._log_timesteps()
                progress.show(self.step, f"loss {row['loss']}  lr {row['lr']}")
                loss_sum, loss_count = 0.0, 0
            if held_out is not None and (self.step % config.val_every == 0 or self.step == config.steps):
                result = self.validate(held_out)
                progress.note(f"step {self.step}: {result.text()}")
                row |= result.row()
            if row and main:
                board.add(self.step, row | by_timestep, self.run_folder.sheet(self.step))
                self.run_folder.log.append(step=self.step, seconds=f"{self.elapsed:.1f}", **row)
            if main and (self.step % config.save_every == 0 or time.monotonic() - saved > 60 * config.save_minutes):
                self.save()
                saved = time.monotonic()
        if main:
            self._finish(held_out, progress)

    def _log_timesteps(self) -> dict[str, object]:
        """Write the mean loss of each timestep since the last call; returns them by name for TensorBoard."""
        sums, counts = self.processes.sum(self._by_t).tolist()
        self._by_t.zero_()
        means = {t: sums[t] / counts[t] for t in range(len(counts)) if counts[t]}
        if self.processes.is_main:
            for t, mean in means.items():
                self.run_folder.timesteps.append(step=self.step, t=t, loss=f"{mean:.6f}", samples=int(counts[t]))
        return {f"loss_by_timestep/{t}": mean for t, mean in means.items()}

    def _finish(self, held_out: Validation | None, progress: Progress) -> None:
        self.save()
        if self._stopping:
            progress.note(f"stopped at step {self.step}; the same command continues from {self.run_folder.last}")
        elif held_out is None and self.step >= self.config.steps:
            self._save_best(None)
