"""The training loop of residual-shift models."""

from __future__ import annotations

import math
import signal
import sys
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import torch
from torch import Tensor, nn

from resshift_fast import ops
from resshift_fast.core import devices
from resshift_fast.diffusion import schedule as columns
from resshift_fast.models.layers import prepack_weights_
from resshift_fast.training.config import TrainConfig
from resshift_fast.training.data import load_photos, prefetch
from resshift_fast.training.run_folder import RunFolder
from resshift_fast.training.validation import Validation, ValidationResult, to_tensor, upsample

if TYPE_CHECKING:
    from resshift_fast.models.autoencoder import SpaceToDepth, VQAutoencoder
    from resshift_fast.models.swin_unet import SwinUNet

__all__ = ["TrainConfig", "Trainer"]


def learning_rate(config: TrainConfig, step: int) -> float:
    """Learning rate of optimizer step `step`, from 0: linear warm-up, then half a cosine down to min_lr."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    progress = (step - config.warmup) / max(1, config.steps - 1 - config.warmup)
    return config.min_lr + 0.5 * (config.lr - config.min_lr) * (1.0 + math.cos(math.pi * min(1.0, progress)))


def loss_between(prediction: Tensor, target: Tensor, kind: str) -> Tensor:
    """Mean error of two tensors of one shape, as a float32 scalar.

    Args:
        prediction, target: of any floating-point dtype.
        kind: "l1", "mse" or "charbonnier" (√(e² + 10⁻⁶)).
    """
    error = prediction.float() - target.float()
    if kind == "l1":
        return error.abs().mean()
    if kind == "mse":
        return error.square().mean()
    return (error.square() + 1e-6).sqrt().mean()


class Progress:
    """Progress on stderr: a bar on a terminal, else plain lines."""

    def __init__(self, start: int, total: int):
        self._start, self._total, self._began = start, total, time.monotonic()
        self._bar = None
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total, initial=start, unit="step", dynamic_ncols=True, smoothing=0.05)

    def advance(self) -> None:
        if self._bar is not None:
            self._bar.update()

    def show(self, step: int, text: str) -> None:
        """Report the state after `step` steps."""
        if self._bar is not None:
            self._bar.set_postfix_str(text)
            return
        pace = (time.monotonic() - self._began) / max(1, step - self._start)
        left = int(pace * (self._total - step))
        clock = f"{left // 3600}:{left // 60 % 60:02d}:{left % 60:02d}"
        line = f"step {step}/{self._total}  {text}  {pace:.2f} s/step  left {clock}"
        print(line, file=sys.stderr, flush=True)

    def note(self, text: str) -> None:
        """Print a separate line."""
        if self._bar is not None:
            self._bar.write(text, file=sys.stderr)
        else:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


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
        self.config = config
        self.device = devices.usable_device(config.device)
        torch.manual_seed(config.seed)
        if spec is None or denoiser is None or first_stage is None:
            from resshift_fast.models import catalog

            spec = spec or catalog.get(config.model)
            denoiser = denoiser or catalog.build_denoiser(spec)
            first_stage = first_stage or self._build_first_stage(spec)
        if getattr(spec, "needs_mask", False):
            raise ValueError(f"{config.model} is an inpainting model; only models without a mask can be trained here")
        if config.rollout and spec.prediction_type not in ("x0", "residual"):
            raise ValueError(
                f"rollout needs a model that predicts x0 or the residual, not {spec.prediction_type}; set rollout to 0"
            )
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
        self._set_ema(self.denoiser.state_dict())
        self.optimizer = torch.optim.AdamW(
            self.denoiser.parameters(), lr=config.lr, betas=config.betas, weight_decay=config.weight_decay
        )
        self._network = torch.compile(self.denoiser) if config.compile else self.denoiser
        self._stop_signal: int | None = None
        self._adjusted: list[str] = []  # settings that differ from those of the checkpoint

    def _build_first_stage(self, spec: Any) -> VQAutoencoder | SpaceToDepth:
        from resshift_fast.models import catalog
        from resshift_fast.weights.checkpoints import load_into, read_state_dict

        first_stage = catalog.build_first_stage(spec)
        if any(True for _ in first_stage.parameters()):
            if self.config.autoencoder is None:
                raise ValueError(f"{self.config.model} needs the weights of its autoencoder; give --autoencoder FILE")
            load_into(first_stage, read_state_dict(self.config.autoencoder), self.config.autoencoder)
        return first_stage

    # ---- one step

    def _generator(self, step: int) -> torch.Generator:
        # Large odd factors separate neighbouring seeds and steps. On the CPU, so that every device has the same noise.
        return torch.Generator().manual_seed((self.config.seed * 0x9E3779B1 + step * 0x85EBCA77 + 1) % (1 << 63))

    def _autocast(self):
        if self.config.precision == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def _predict(self, x_t: Tensor, t: Tensor, lq: Tensor) -> Tensor:
        scaled = x_t * self.table[t, columns.INPUT_SCALE][:, None, None, None]
        if self.config.channels_last:
            scaled = scaled.contiguous(memory_format=torch.channels_last)
        with self._autocast():
            return self._network(scaled, self.timesteps[t], lq)

    def _draw_t(self, generator: torch.Generator, batch: int) -> Tensor:
        last = self.schedule.num_steps - 1
        if last == 0:
            return torch.zeros(batch, dtype=torch.int64)
        first = torch.rand(batch, generator=generator) < self.config.first_step_weight
        others = torch.randint(0, last, (batch,), generator=generator)
        return torch.where(first, torch.full_like(others, last), others)

    def _x_t(self, x0: Tensor, y: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        # At inference the chain starts at y plus noise, not at q(x_T | x_0), which still depends on x_0.
        start = (t == self.schedule.num_steps - 1)[:, None, None, None]
        return ops.q_sample(torch.where(start, y, x0), y, t, self.table, noise)

    @torch.no_grad()
    def _own_x0(self, y: Tensor, lq: Tensor, noise: Tensor) -> Tensor:
        t = torch.full((len(y),), self.schedule.num_steps - 1, dtype=torch.int64, device=self.device)
        prediction = self._predict(self._x_t(y, y, t, noise), t, lq).float()
        x0 = y - prediction if self.spec.prediction_type == "residual" else prediction
        return x0.clamp(-1, 1) if self.spec.clamp_x0 else x0

    def loss(self, high: Tensor, lq: Tensor, step: int) -> Tensor:
        """Loss of one batch, a float32 scalar.

        Args:
            high: float32 [B, 3, P, P] in [−1, 1], on the device.
            lq: float32 [B, 3, P/scale, P/scale] in [−1, 1], on the device.
            step: on which the noise and the timesteps depend.
        """
        generator = self._generator(step)
        with torch.no_grad():
            x0 = self.first_stage.encode(high)
            y = self.first_stage.encode(upsample(lq, self.spec.scale))
        t = self._draw_t(generator, len(x0)).to(self.device)
        noise = torch.randn(x0.shape, generator=generator).to(self.device)
        source = x0
        if float(torch.rand((), generator=generator)) < self.config.rollout:
            source = self._own_x0(y, lq, torch.randn(x0.shape, generator=generator).to(self.device))
        prediction = self._predict(self._x_t(source, y, t, noise), t, lq)
        target = {
            "x0": lambda: x0,
            "residual": lambda: y - x0,
            "epsilon": lambda: noise,
            "epsilon_scaled": lambda: noise * self.table[t, columns.KAPPA_SQRT_ETA][:, None, None, None],
        }[self.spec.prediction_type]()
        return loss_between(prediction, target, self.config.loss)

    def train_step(self, high: Tensor, lq: Tensor) -> tuple[float, float]:
        """One optimizer step; returns (loss, gradient norm before clipping).

        Args:
            high, lq: as in `loss`.

        Raises:
            FloatingPointError: if the loss is not finite; the weights are then those of the previous step.
        """
        config = self.config
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(config, self.step)
        loss = self.loss(high, lq, self.step)
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
        self._update_ema()
        self.step += 1
        return value, float(norm)

    def _set_ema(self, state: Mapping[str, Tensor]) -> None:
        self.ema = {name: value.detach().clone().to(self.device) for name, value in state.items()}
        own = self.denoiser.state_dict()
        moving = [name for name, value in own.items() if value.is_floating_point()]
        # Tensors of a state_dict share memory with the weights, so these lists stay valid.
        self._ema_pair = [self.ema[name] for name in moving], [own[name] for name in moving]

    @torch.no_grad()
    def _update_ema(self) -> None:
        decay = min(self.config.ema_decay, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(*self._ema_pair, 1.0 - decay)

    # ---- validation and files

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Put the averaged weights into the denoiser within the block."""
        own = {name: value.detach().clone() for name, value in self.denoiser.state_dict().items()}
        self.denoiser.load_state_dict(self.ema)
        self.denoiser.eval()
        try:
            yield
        finally:
            self.denoiser.load_state_dict(own)
            self.denoiser.train()

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
        with self.averaged_weights():
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
        save_safetensors(self.ema, self.run_folder.best, metadata, dtype=torch.float16)

    def save(self) -> None:
        """Write last.pt."""
        self.run_folder.save_last(
            {
                "step": self.step,
                "model": self.denoiser.state_dict(),
                "ema": self.ema,
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
        self._set_ema(state["ema"])
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

    def _batches(self) -> Generator[tuple[Tensor, Tensor], None, None]:
        config = self.config
        plan = config.plan(self.spec.scale)
        photos = load_photos(Path(config.data), min_side=config.patch, max_megapixels=config.max_megapixels)
        steps = range(self.step, config.steps)
        for high, low in prefetch(photos, plan, config.seed, config.batch_size, steps, config.workers):
            yield to_tensor(high).to(self.device), to_tensor(low).to(self.device)

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
                Path(config.val), self.spec.scale, config.mixture, limit=config.val_limit, batch=config.val_batch
            )
        batches = self._batches()
        end = config.steps if stop_after is None else min(config.steps, self.step + stop_after)
        self.run_folder.start_log(self.step)
        progress = Progress(self.step, config.steps)
        if resumed:
            progress.note("; ".join([f"resumed {self.run_folder.last} at step {self.step}", *self._adjusted]))
        try:
            with self._catching_signals():
                self._loop(batches, end, validation, progress)
        finally:
            progress.close()
            batches.close()
        return self.step >= config.steps

    def _loop(
        self, batches: Iterator[tuple[Tensor, Tensor]], end: int, validation: Validation | None, progress: Progress
    ) -> None:
        config = self.config
        began, saved = time.monotonic() - self.elapsed, time.monotonic()
        loss_sum, loss_count = 0.0, 0
        while self.step < end and self._stop_signal is None:
            loss, norm = self.train_step(*next(batches))
            loss_sum, loss_count = loss_sum + loss, loss_count + 1
            self.elapsed = time.monotonic() - began
            progress.advance()
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
