"""The training loop of residual-shift models."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import torch
from torch import Tensor, nn

from resshift_fast.core import devices
from resshift_fast.diffusion import schedule as columns
from resshift_fast.models.layers import prepack_weights_
from resshift_fast.training import choices
from resshift_fast.training.config import TrainConfig
from resshift_fast.training.data import Patches, prefetch
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
from resshift_fast.training.optimization import AveragedWeights, learning_rate
from resshift_fast.training.photos import Photos
from resshift_fast.training.pixels import to_tensor, upsample
from resshift_fast.training.progress import Progress
from resshift_fast.training.run_folder import RunFolder
from resshift_fast.training.validation import Validation, ValidationResult

if TYPE_CHECKING:
    from resshift_fast.models.autoencoder import SpaceToDepth, VQAutoencoder
    from resshift_fast.models.swin_unet import SwinUNet

__all__ = ["TrainConfig", "Trainer"]


class Trainer:
    """Trains one model.

    Everything random in a step is a function of (seed, step), so that a run that was stopped and resumed gives the same
    weights as an uninterrupted one.

    Args:
        config: the settings.
        spec: the model, an entry of the catalogue or an object with its attributes `schedule`, `prediction_type`,
            `scale` and `clamp_x0`; None looks config.model up.
        denoiser, first_stage: modules to use instead of new ones.

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
    ):
        self.device = devices.usable_device(config.device)
        torch.manual_seed(config.seed)
        if spec is None or denoiser is None or first_stage is None:
            from resshift_fast.models import catalog

            spec = spec or catalog.get(config.model)
            denoiser = denoiser or catalog.build_denoiser(spec)
            first_stage = first_stage or _build_first_stage(config, spec)
        self.config = config = config.for_model(spec)
        self.spec, self.schedule = spec, spec.schedule
        self.denoiser = denoiser.to(self.device).train()
        self.first_stage = first_stage.to(self.device).eval().requires_grad_(False)
        if config.channels_last:
            prepack_weights_(self.denoiser)
        self.table = self.schedule.table(self.device)
        self.timesteps = torch.as_tensor(self.schedule.timesteps, dtype=torch.int64, device=self.device)
        self.run_folder = RunFolder(config.run)
        self.step, self.best_gain, self.elapsed = 0, -math.inf, 0.0
        if config.init_from is not None and not self.run_folder.last.exists():
            self._load_initial(Path(config.init_from))
        self.average = AveragedWeights(self.denoiser, config.ema_decay)
        self.optimizer = torch.optim.AdamW(
            self.denoiser.parameters(), lr=config.lr, betas=config.betas, weight_decay=config.weight_decay
        )
        self._network = torch.compile(self.denoiser) if config.compile else self.denoiser
        parts = Parts(spec, self.first_stage, self.table, self._predict, self._autocast, self.device)
        self.objective: Objective = choices.chosen(choices.OBJECTIVES, "objective", config.objective)(config, parts)
        self.degradation: Degradation = choices.chosen(choices.DEGRADATIONS, "degradation", config.degradation)(
            config, spec
        )
        self._stop_signal: int | None = None
        self._adjusted: list[str] = []  # settings that differ from those of the checkpoint

    # ---- one step

    def _autocast(self):
        if self.config.precision == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def _predict(self, x_t: Tensor, t: Tensor, low: Tensor, mask: Tensor | None) -> Tensor:
        scaled = x_t * self.table[t, columns.INPUT_SCALE][:, None, None, None]
        if self.config.channels_last:
            scaled = scaled.contiguous(memory_format=torch.channels_last)
        with self._autocast():
            return self._network(scaled, self.timesteps[t], low, mask)

    def loss(self, batch: Batch, step: int) -> Loss:
        """Loss of one batch on the device, whose noise and timesteps depend on `step`."""
        return self.objective(batch, Draws(self.config.seed, step, range(len(batch)), self.device))

    def train_step(self, batch: Batch) -> tuple[float, float]:
        """One optimizer step on a batch on the device; returns (loss, gradient norm before clipping).

        Raises:
            FloatingPointError: if the loss is not finite; the weights are then those of the previous step.
        """
        config = self.config
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(config, self.step)
        loss = self.loss(batch, self.step).by_sample.mean()
        value = float(loss.detach())
        if not math.isfinite(value):
            raise FloatingPointError(
                f"the loss became {value} at step {self.step}; run the same command again with a lower --lr or "
                "--grad-clip, or with --precision float32: it continues from the last checkpoint"
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.denoiser.parameters(), config.grad_clip or math.inf)
        self.optimizer.step()
        self.average.update(self.step)
        self.step += 1
        return value, float(norm)

    # ---- validation and files

    @torch.no_grad()
    def restore(self, lq: Tensor) -> Tensor:
        """Run the whole chain with the current weights and seed 0.

        Args:
            lq: [B, 3, h, w] in [−1, 1].

        Returns:
            [B, 3, scale·h, scale·w], nominally in [−1, 1], not clamped.
        """
        from resshift_fast.restoration.sampler import sample_latents

        lq = lq.to(self.device)
        y = self.first_stage.encode(upsample(lq, self.spec.scale))
        x0 = sample_latents(
            self.denoiser,
            self.schedule,
            y,
            lq,
            seed=torch.zeros(len(lq), dtype=torch.int64, device=self.device),
            prediction_type=self.spec.prediction_type,
            clamp_x0=self.spec.clamp_x0,
        )
        return self.first_stage.decode(x0)

    def validate(self, validation: Validation) -> ValidationResult:
        """Validate the averaged weights, write the sheet, and save the weights as best.safetensors if they improved."""
        with self.average.applied():
            result = validation.run(self.restore, self.run_folder.sheet(self.step))
        if result.gain > self.best_gain:
            self.best_gain = result.gain
            self._save_best(result)
        return result

    def _save_best(self, result: ValidationResult | None) -> None:
        from resshift_fast.weights.checkpoints import save_safetensors

        metadata = {"model": self.config.model, "step": str(self.step)}
        if result is not None:
            metadata |= {
                "psnr_y_clean_gain": f"{result.clean - result.bicubic_clean:.4f}",
                "psnr_y_degraded_gain": f"{result.degraded - result.bicubic_degraded:.4f}",
            }
        save_safetensors(self.average.state, self.run_folder.best, metadata, dtype=torch.float16)

    def save(self) -> None:
        """Write last.pt."""
        self.run_folder.save_last(
            {
                "step": self.step,
                "model": self.denoiser.state_dict(),
                "ema": self.average.state,
                "optimizer": self.optimizer.state_dict(),
                "config": self.config.to_dict(),
                "best_gain": self.best_gain,
                "elapsed": self.elapsed,
                "rng": torch.get_rng_state(),
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
        self._adjusted = self.config.check_resumable(state["config"])
        self.denoiser.load_state_dict(state["model"])
        self.average.set(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.best_gain, self.elapsed = state["step"], state["best_gain"], state["elapsed"]
        torch.set_rng_state(state["rng"])
        return True

    def _load_initial(self, path: Path) -> None:
        from resshift_fast.weights.checkpoints import load_into, read_state_dict

        if path.suffix == ".pt":
            weights = torch.load(path, map_location="cpu", weights_only=True)
            weights = weights["ema"] if isinstance(weights, dict) and "ema" in weights else weights
        else:
            weights = read_state_dict(path)
        load_into(self.denoiser, weights, path)

    # ---- the loop

    @contextmanager
    def _catching_signals(self) -> Iterator[None]:
        """The first SIGINT or SIGTERM ends the loop after the current step; a second SIGINT ends it at once."""

        def handler(number: int, _frame: object) -> None:
            if self._stop_signal is not None and number == signal.SIGINT:
                raise KeyboardInterrupt
            self._stop_signal = number

        try:
            previous = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not the main thread, which alone can handle signals
            yield
            return
        try:
            yield
        finally:
            for number, old in previous.items():
                signal.signal(number, old)

    def _patches(self) -> Patches:
        config = self.config
        in_workers = self.degradation if isinstance(self.degradation, PatchDegradation) else None
        plan = config.plan(self.spec.scale, in_workers)
        photos = Photos(config.sources, min_side=plan.patch, cache_mb=config.cache_mb)
        return Patches(photos, plan, config.seed, config.batch_size)

    def _batches(self, patches: Patches) -> Generator[Batch, None, None]:
        config = self.config
        steps = range(self.step, config.steps)
        batches = prefetch(patches, steps, range(config.batch_size), config.workers)
        for step, (high, low) in zip(steps, batches, strict=True):
            truth = to_tensor(high).to(self.device)
            if low is not None:
                yield Batch(truth, to_tensor(low).to(self.device))
            elif isinstance(self.degradation, BatchDegradation):
                draws = Draws(config.seed, step, range(len(truth)), self.device, stream=1)
                yield self.degradation.degrade_batch(truth, self.spec.scale, draws)

    def run(self, *, stop_after: int | None = None) -> bool:
        """Train to config.steps, or until `stop_after` more steps or a signal; always writes last.pt at the end.

        Continues from last.pt if the run folder has one. Returns whether the run is complete.

        Raises:
            FileNotFoundError, ValueError: for unusable photos or settings, before anything is written.
            FloatingPointError: as in `train_step`.
        """
        # Patches are made in threads already; OpenCV's own would compete with the training for the cores.
        cv2.setNumThreads(1)
        resumed = self.resume()
        config = self.config
        validation = None
        if config.val is not None:
            validation = Validation(
                config.val, self.spec.scale, self.degradation, limit=config.val_limit, batch=config.val_batch
            )
        patches = self._patches()
        batches = self._batches(patches)
        end = config.steps if stop_after is None else min(config.steps, self.step + stop_after)
        self.run_folder.start_log(self.step)
        progress = Progress(self.step, config.steps)
        if resumed:
            progress.note("; ".join([f"resumed {self.run_folder.last} at step {self.step}", *self._adjusted]))
        try:
            with self._catching_signals():
                self._loop(batches, patches.photos, end, validation, progress)
        finally:
            progress.close()
            batches.close()
        return self.step >= config.steps

    def _loop(
        self,
        batches: Iterator[Batch],
        photos: Photos,
        end: int,
        validation: Validation | None,
        progress: Progress,
    ) -> None:
        config = self.config
        began, saved = time.monotonic() - self.elapsed, time.monotonic()
        loss_sum, loss_count = 0.0, 0
        while self.step < end and self._stop_signal is None:
            loss, norm = self.train_step(next(batches))
            loss_sum, loss_count = loss_sum + loss, loss_count + 1
            self.elapsed = time.monotonic() - began
            progress.advance()
            for report in photos.reports():
                progress.note(f"skipped {report}")
            row: dict[str, object] = {}
            if self.step % config.log_every == 0 or self.step == config.steps:
                lr = learning_rate(config, self.step - 1)
                row = {"loss": f"{loss_sum / loss_count:.6f}", "lr": f"{lr:.3e}", "grad_norm": f"{norm:.4f}"}
                progress.show(self.step, f"loss {row['loss']}  lr {row['lr']}")
                loss_sum, loss_count = 0.0, 0
            if validation is not None and (self.step % config.val_every == 0 or self.step == config.steps):
                row |= self._validation_row(self.validate(validation), progress)
            if row:
                self.run_folder.append_log(step=self.step, seconds=f"{self.elapsed:.1f}", **row)
            if self.step % config.save_every == 0 or time.monotonic() - saved > 60 * config.save_minutes:
                self.save()
                saved = time.monotonic()
        self.save()
        if self._stop_signal is not None:
            progress.note(f"stopped at step {self.step}; the same command continues from {self.run_folder.last}")
        elif validation is None and self.step >= config.steps:
            self._save_best(None)

    def _validation_row(self, result: ValidationResult, progress: Progress) -> dict[str, object]:
        clean, degraded = result.clean - result.bicubic_clean, result.degraded - result.bicubic_degraded
        progress.note(
            f"step {self.step}: PSNR-Y clean {result.clean:.3f} ({clean:+.3f} over bicubic), "
            f"degraded {result.degraded:.3f} ({degraded:+.3f})"
        )
        return {
            "val_psnr_y_clean": f"{result.clean:.4f}",
            "val_psnr_y_degraded": f"{result.degraded:.4f}",
            "bicubic_psnr_y_clean": f"{result.bicubic_clean:.4f}",
            "bicubic_psnr_y_degraded": f"{result.bicubic_degraded:.4f}",
        }


def _build_first_stage(config: TrainConfig, spec: Any) -> VQAutoencoder | SpaceToDepth:
    from resshift_fast.models import catalog
    from resshift_fast.weights.checkpoints import load_into, read_state_dict

    first_stage = catalog.build_first_stage(spec)
    if any(True for _ in first_stage.parameters()):
        if config.autoencoder is None:
            raise ValueError(f"{config.model} needs the weights of its autoencoder; give --autoencoder FILE")
        load_into(first_stage, read_state_dict(config.autoencoder), config.autoencoder)
    return first_stage
