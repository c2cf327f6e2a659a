"""The loop of a training: steps, checkpoints, log and validation, for any network and objective."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from resshift_fast.core import claims
from resshift_fast.models.layers import prepack_weights_
from resshift_fast.training import networks, origins
from resshift_fast.training.config import TrainConfig
from resshift_fast.training.data import Patches, paired, prefetch
from resshift_fast.training.distributed import Processes, accumulating, parts_of
from resshift_fast.training.interfaces import (
    Auxiliary,
    Batch,
    Data,
    Degradation,
    Draws,
    Loss,
    Objective,
    PatchDegradation,
    Reporting,
)
from resshift_fast.training.metrics import NetworkMetric
from resshift_fast.training.opencv import cv2
from resshift_fast.training.optimization import AveragedWeights, Optimization, adamw, learning_rate
from resshift_fast.training.photos import Photos
from resshift_fast.training.progress import Progress
from resshift_fast.training.run_folder import RunFolder
from resshift_fast.training.stopping import StopSignals
from resshift_fast.training.tensorboard import TensorBoard
from resshift_fast.training.validation import Validation, ValidationResult

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
AUXILIARY_STREAM = 2  # of draws; 0 is the objective's and 1 the degradation's


class Training(ABC):
    """Trains one network, in this process or, started by torchrun, in several.

    Everything random in a step is a function of (seed, step), so that a run that was stopped and resumed gives the same
    weights as an uninterrupted one. A subclass has the network and what goes with it: it calls `use` at the end of its
    `__init__`.

    Args:
        config: the settings, those that depend on the model included.
        processes: that train together.
        network: to train.
        name: of the model, for the metadata of its weights.
        scale: side of a high-quality patch / side of a low-quality one.
        timesteps: whose losses are logged separately; 0 for a network without.

    Raises:
        ValueError: for settings that cannot be trained, or weights that do not fit.
        OSError: if a file cannot be read or the run folder cannot be created.

    Attributes:
        weights_dtype: of best.safetensors.
    """

    weights_dtype = torch.float16

    def __init__(
        self, config: TrainConfig, processes: Processes, network: nn.Module, *, name: str, scale: int, timesteps: int
    ):
        self.config, self.processes, self.device = config, processes, processes.device
        self.name, self.scale = name, scale
        self._check_division()
        self.network = network.to(self.device).train()
        if config.channels_last:
            prepack_weights_(self.network)
        if config.recompute:
            networks.recompute_activations(self.network)
        self.run_folder = RunFolder(config.run)
        self.step, self.best_gain, self.elapsed = 0, -math.inf, 0.0
        self._validated = ""  # fingerprint of the validation set that best_gain was reached on
        self._origins: dict[str, str] = {}  # fingerprints of what is not in the settings, see `origins`
        if config.init_from is not None and not self.run_folder.last.exists():
            networks.load_weights(self.network, networks.initial_weights(config.init_from))
        self.average = AveragedWeights(self.network, config.ema_decay)
        self.optimizer = adamw(self.network.parameters(), config)
        self.optimization = Optimization(self.network, self.optimizer, config, self.device)
        self._by_t = torch.zeros(2, timesteps, dtype=torch.float32)  # sums of the losses, and their numbers
        self.data: Data | None = None  # instead of photos
        self.metadata: dict[str, str] = {}  # of best.safetensors, besides the model and the step
        self.described: dict[str, Any] = {}  # what a resumed run must have in common besides the settings, by name
        self.frozen: dict[str, nn.Module] = {}  # networks that are used and not trained, by name
        self.signals = StopSignals()
        self._stopping = False  # all processes know of the signal
        self._changed: list[str] = []  # what differs from the checkpoint, a phrase for each

    def use(self, called: nn.Module, objective: Objective, degradation: Degradation | None) -> None:
        """Set what the steps need.

        Args:
            called: the network as the objective calls it, from `called_network`.
            objective: what is minimized; if it has `metadata`, strings by name, the weights get them; if it has
                `frozen`, networks by name, a resumed run says whether their weights are others.
            degradation: makes the low-quality patches; None takes the high-quality ones.
        """
        self._called, self.objective, self.degradation = called, objective, degradation
        self.metadata |= getattr(objective, "metadata", {})
        self.frozen |= getattr(objective, "frozen", {})
        self._auxiliary: Optimization | None = None
        if isinstance(objective, Auxiliary):
            objective.networks.requires_grad_(False)
            self._auxiliary = Optimization(objective.networks, objective.optimizer, self.config, self.device)

    def called_network(self, module: nn.Module) -> nn.Module:
        """The network, or a module around it, compiled if wanted, with gradients averaged over all processes."""
        compiled: Any = torch.compile(module) if self.config.compile else module
        return self.processes.wrap(compiled)

    @abstractmethod
    def restore(self, low: Tensor, mask: Tensor | None = None) -> Tensor:
        """What the validation compares with the true images; from and to [B, 3, H, W], nominally in [−1, 1]."""

    @abstractmethod
    def held_out(self) -> Validation | None:
        """The validation that the settings describe."""

    def _check_division(self) -> None:
        config, count = self.config, self.processes.count
        parts = count * config.accumulate
        if config.batch_size % parts:
            raise ValueError(
                f"batch_size is {config.batch_size}, but {count} processes × {config.accumulate} accumulated parts "
                f"(accumulate, or train.microbatch of a --config file) need a multiple of {parts}; give "
                f"--batch-size {-(-config.batch_size // parts) * parts}, or another --accumulate"
            )

    # ---- one step

    def autocast(self) -> AbstractContextManager[Any]:
        """The context in which networks run in the configured precision."""
        if self.config.precision == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=DTYPES[self.config.precision])

    def loss(self, batch: Batch, step: int, part: slice = slice(None)) -> Loss:
        """Loss of this process's batch on the device, or a part of it, whose noise and timesteps depend on `step`."""
        return self.objective(batch[part], self._draws(batch, step, part))

    def _draws(self, batch: Batch, step: int, part: slice, stream: int = 0) -> Draws:
        indices = self.processes.indices(len(batch) * self.processes.count)[part]
        return Draws(self.config.seed, step, indices, self.device, stream=stream)

    def train_step(self, batch: Batch) -> tuple[float, float]:
        """One optimizer step on this process's batch on the device; returns (loss, gradient norm before clipping).

        An objective's auxiliary networks are trained first.

        Raises:
            FloatingPointError: if the loss is not finite; the weights are then those of the previous step.
        """
        # For networks that draw values of their own.
        torch.manual_seed((self.config.seed * 0x9E3779B1 + self.step * 0x85EBCA77 + self.processes.rank) % (1 << 63))
        self._train_auxiliary(batch)
        self.optimization.begin(self.step)
        total = torch.zeros((), dtype=torch.float64)
        parts = list(parts_of(len(batch), self.config.accumulate))
        for part in parts:
            with accumulating(self._called, last=part is parts[-1]):
                loss = self.loss(batch, self.step, part)
                mean = loss.by_sample.mean() / len(parts)
                self.optimization.backward(mean)
            total += mean.detach().cpu()
            if loss.t is not None:
                losses = loss.by_sample.detach().float().cpu()
                self._by_t.index_add_(1, loss.t.cpu(), torch.stack([losses, torch.ones_like(losses)]))
        state = torch.stack([total / self.processes.count, total.new_tensor(float(self.signals.received))])
        value, stop = self.processes.sum(state.float()).tolist()
        self._stopping = stop > 0
        self._check_finite("loss", value)
        norm = self._finish_step(self.optimization, "gradient")
        self.average.update(self.step)
        self.step += 1
        return value, norm

    def _train_auxiliary(self, batch: Batch) -> None:
        """The steps of the objective's auxiliary networks, which are frozen afterwards."""
        objective, optimization = self.objective, self._auxiliary
        if optimization is None:
            return
        assert isinstance(objective, Auxiliary)
        parts = list(parts_of(len(batch), self.config.accumulate))
        objective.networks.requires_grad_(True)
        for number in range(objective.auxiliary_steps(self.step)):
            optimization.begin(self.step)
            for part in parts:
                draws = self._draws(batch, self.step, part, AUXILIARY_STREAM + number)
                optimization.backward(objective.auxiliary_loss(batch[part], draws).mean() / len(parts))
            self.processes.average_gradients(objective.networks)
            self._finish_step(optimization, "gradient of the auxiliary networks")
        objective.networks.requires_grad_(False)

    def _finish_step(self, optimization: Optimization, what: str) -> float:
        norm = optimization.clip()
        if not optimization.scaler.is_enabled():
            self._check_finite(what, norm)
        optimization.step()
        return norm

    def _check_finite(self, what: str, value: float) -> None:
        if not math.isfinite(value):
            then = "continues from the last checkpoint" if self.run_folder.last.exists() else "begins anew"
            raise FloatingPointError(
                f"the {what} became {value} at step {self.step}; run the same command again with --override "
                f"lr=…, grad_clip=… or precision=float32: it {then}"
            )

    # ---- validation and files

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

        metadata = {"model": self.name, "step": str(self.step), **self.metadata}
        if result is not None:
            metadata |= result.metadata()
        save_safetensors(self.average.state, self.run_folder.best, metadata, dtype=self.weights_dtype)

    def save(self) -> None:
        """Write last.pt."""
        state = {
            "step": self.step,
            "model": self.network.state_dict(),
            "ema": self.average.state,
            **self.optimization.state(),
            "config": self.config.to_dict(),
            "best_gain": self.best_gain,
            "validated": self._validated,
            "origins": self._origins,
            "described": self.described,
            "elapsed": self.elapsed,
        }
        if self._auxiliary is not None:
            state["auxiliary"] = {"networks": self._auxiliary.network.state_dict(), **self._auxiliary.state()}
        self.run_folder.save_last(state)

    def resume(self) -> bool:
        """Continue from last.pt if it exists; returns whether it does.

        Raises:
            ValueError: if it is damaged, or its settings differ in one that changes the training.
        """
        if not self.run_folder.last.exists():
            return False
        state = self.run_folder.load_last()
        self._changed = self.config.check_resumable(state["config"])
        self._check_described(state.get("described", {}))
        self.network.load_state_dict(state["model"])
        self.average.set(state["ema"])
        self.optimization.load(state)
        if self._auxiliary is not None:
            self._auxiliary.network.load_state_dict(state["auxiliary"]["networks"])
            self._auxiliary.load(state["auxiliary"])
        self.step, self.best_gain, self.elapsed = state["step"], state["best_gain"], state["elapsed"]
        self._validated, self._origins = state.get("validated", ""), state.get("origins", {})
        return True

    def _check_described(self, before: Mapping[str, Any]) -> None:
        """Raise ValueError for another model than that of a checkpoint."""
        for name, value in self.described.items():
            if before.get(name, value) != value:
                raise ValueError(
                    f"cannot resume {self.config.run}: {name} of the model was {before[name]} and is now {value}; "
                    "give the model as it was, or start in another run folder"
                )

    def _find_changes(self, source: Patches | Data, held_out: Validation | None) -> None:
        """Add what is not as it was at the checkpoint to `_changed`, and remember it as it is."""
        found = {f"weights of the {name}": origins.of_weights(module) for name, module in self.frozen.items()}
        patches = getattr(source, "patches", source)
        if isinstance(patches, Patches):
            found["training photos"] = origins.of_photos(self.config.sources, patches.photos.paths)
        if held_out is not None:
            found |= {
                f"weights of the metric {name}": origins.of_weights(metric.network)
                for name, metric in held_out.metrics.items()
                if isinstance(metric, NetworkMetric)
            }
            if held_out.fingerprint != self._validated:
                if self._validated:
                    self._changed.append("the validation photos have changed: the best weights are chosen anew")
                self._validated, self.best_gain = held_out.fingerprint, -math.inf
        self._changed += origins.changes(self._origins, found)
        self._origins |= found

    # ---- the loop

    def _source(self) -> Patches | Data:
        config = self.config
        if self.data is not None:
            return self.data
        in_workers = self.degradation if isinstance(self.degradation, PatchDegradation) else None
        plan = config.plan(self.scale, in_workers)
        photos = Photos(config.sources, min_side=plan.patch, cache_mb=config.cache_mb)
        patches = Patches(photos, plan, config.seed, config.batch_size)
        if not config.taught:
            return patches
        from resshift_fast.training import taught

        return taught.from_config(config, patches, self.degradation, self.device)

    def _batches(self, source: Patches | Data) -> Generator[Batch, None, None]:
        config = self.config
        steps, indices = range(self.step, config.steps), self.processes.indices(config.batch_size)
        batches = prefetch(source, steps, indices, config.workers)
        for step, made in zip(steps, batches, strict=True):
            yield paired(made, self.degradation, self.scale, (config.seed, step, indices), self.device)

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
        held_out = self.held_out() if main else None
        source = self._source()
        batches = self._batches(source)
        end = config.steps if stop_after is None else min(config.steps, self.step + stop_after)
        progress = Progress(self.step, config.steps, quiet=not main)
        board = TensorBoard(self.run_folder.folder / "tensorboard", self.step, main and config.tensorboard)
        if main:
            self._find_changes(source, held_out)
            self.run_folder.log.start(self.step, [*self._columns(), *(held_out.columns() if held_out else ())])
            if len(self._by_t[0]):
                self.run_folder.timesteps.start(self.step)
        if resumed and main:
            progress.note("; ".join([f"resumed {self.run_folder.last} at step {self.step}", *self._changed]))
        if main and self._changed:
            self.run_folder.log.append(step=self.step, note="; ".join(self._changed))
        try:
            with self.signals:
                self._loop(batches, source, end, held_out, progress, board)
        finally:
            progress.close()
            board.close()
            batches.close()
        return self.step >= config.steps

    def _loop(
        self,
        batches: Iterator[Batch],
        source: Patches | Data,
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
            for report in self._unusable(source):
                progress.note(f"skipped {report}")
            row: dict[str, object] = {}
            by_timestep: dict[str, object] = {}
            if self.step % config.log_every == 0 or self.step == config.steps:
                lr = learning_rate(config, self.step - 1)
                row = {"loss": f"{loss_sum / loss_count:.6f}", "lr": f"{lr:.3e}", "grad_norm": f"{norm:.4f}"}
                row |= self._reported()
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

    @staticmethod
    def _unusable(source: Patches | Data) -> list[str]:
        """One line for each photo that has been left out since the last call."""
        photos = getattr(source, "photos", None)
        return photos.reports() if isinstance(photos, Photos) else []

    def _columns(self) -> tuple[str, ...]:
        return self.objective.columns if isinstance(self.objective, Reporting) else ()

    def _reported(self) -> dict[str, object]:
        """The objective's own columns of the log."""
        if not isinstance(self.objective, Reporting):
            return {}
        return {name: f"{value:.6g}" for name, value in self.objective.report(self.processes.sum).items()}

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
