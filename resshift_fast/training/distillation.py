r"""Distillation of a chain into one step (RSD, arXiv 2503.13358): teacher, student, and a fake model between them.

The student predicts x̂_0 once, from x_T = y + κ √η_T ε and a channel of noise z. The fake model f is a model like the
teacher f* that is trained on the student's results instead of true images,

.. math::
    L_\text{fake}(f) = E_t \|f(x_t, y, t) - \hat x_0\|^2, \quad x_t \sim q(x_t \mid \hat x_0, y), \quad
    \hat x_0 = G(x_T, y, z)

and the student makes both agree. For the best f, which is E[x̂_0 | x_t, y],

.. math::
    L_\text{RSD}(G) = E_t \|f(x_t, y, t) - f^*(x_t, y, t)\|^2
    = E_t\big[\|f^* - \hat x_0\|^2 - \|f - \hat x_0\|^2\big]

The right side is minimized; its gradient needs no derivative of the best f by the student, which is 0 at the optimum.
It passes through x̂_0 and, by x_t, through both models. All errors are of x_0, mean over the latent's values, and t is
uniform. A supervised part is added: LPIPS of the decoded x̂_0, as in the paper, or the squared error of x̂_0.

As in appendix C of the paper, the fake model takes 5 steps for each of the student's and LPIPS has weight 2. Three
parts of its algorithm 1 are left out: an adversarial loss, of weight 0.003, by a small network on features of the fake
model; training the student at four timesteps, from x_t of the true x_0, where it is used at the last one alone; and
SiD's normalization of the loss.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from resshift_fast import ops
from resshift_fast.diffusion import schedule as columns
from resshift_fast.diffusion.schedule import Schedule
from resshift_fast.ops.residual_shift import x0_from_prediction
from resshift_fast.training import networks, teachers
from resshift_fast.training.degradations.drawing import from_options
from resshift_fast.training.interfaces import Batch, Draws, Loss, Parts
from resshift_fast.training.objective import decode
from resshift_fast.training.pixels import upsample

if TYPE_CHECKING:
    from resshift_fast.models.catalog import ModelSpec
    from resshift_fast.training.config import TrainConfig


@dataclass(frozen=True)
class Options:
    """Settings of the objective."""

    teacher: str | None = None
    """Weights of the teacher; None takes the published ones of the model."""
    rsd: float = 1.0
    """Weight of the distillation loss."""
    mse: float | None = None
    """Weight of the squared error of x̂_0 against the true x_0; None takes 1 where LPIPS has weight 0, else 0."""
    lpips: float | None = None
    """Weight of LPIPS; None takes 2 for models with an autoencoder, else 0."""
    vgg: str | None = None
    """Weights of torchvision's VGG16 for LPIPS; None downloads them (553 MB)."""
    lpips_weights: str | None = None
    """Linear weights of LPIPS, or a wheel of the lpips package; None takes those of the installed package."""
    fake_steps: int = 5
    """Optimizer steps of the fake model before each one of the student."""
    fake_lr: float | None = None
    """Peak learning rate of the fake model; None takes the student's."""


class Distillation:
    """The student's loss, and the fake model with its own.

    Args:
        parts: of the student's training: its table has one row, and its `predict` takes the noise z.
        teacher: the trained denoiser on the device; it is frozen here. The fake model starts as its copy.
        schedule: the teacher's.
        optimizer: makes the fake model's from its parameters.
        rsd, mse, lpips: weights of the three terms.
        perceptual: the LPIPS module, on the device; needed if `lpips` is not 0.
        fake_steps: as in `Options`.
        channels_last: whether the inputs of teacher and fake model are in this memory format.
        called: makes what is called of the teacher and of the fake model: compiled ones, for instance.

    Attributes:
        networks: the fake model.
        optimizer: of its parameters.
        columns: of the log: means of the terms without their weights, and of the fake model's loss.
        metadata: of the student's weights.
        frozen: networks that are not trained, by name.

    Raises:
        ValueError: for weights or a number of steps that are not possible, or a missing `perceptual`.
    """

    columns = ("rsd_loss", "mse_loss", "lpips_loss", "fake_loss")

    def __init__(
        self,
        parts: Parts,
        teacher: nn.Module,
        schedule: Schedule,
        *,
        optimizer: Callable[..., torch.optim.Optimizer],
        rsd: float = 1.0,
        mse: float = 1.0,
        lpips: float = 0.0,
        perceptual: nn.Module | None = None,
        fake_steps: int = 5,
        channels_last: bool = False,
        called: Callable[[nn.Module], nn.Module] = lambda network: network,
    ):
        if min(rsd, mse, lpips) < 0 or rsd + mse + lpips == 0:
            raise ValueError(f"expected weights ≥ 0, not all 0, got rsd {rsd}, mse {mse} and lpips {lpips}")
        if fake_steps < 1:
            raise ValueError(f"fake_steps must be at least 1, got {fake_steps}")
        if lpips and perceptual is None:
            raise ValueError(f"lpips has weight {lpips}, but no LPIPS module was given; pass one or set lpips to 0")
        self.parts, self.perceptual = parts, perceptual
        self.rsd, self.mse, self.lpips = rsd, mse, lpips
        self.fake_steps, self.channels_last = fake_steps, channels_last
        self.table = schedule.table(parts.device)
        self.timesteps = torch.as_tensor(schedule.timesteps, dtype=torch.int64, device=parts.device)
        cast(nn.Module, parts.first_stage).requires_grad_(False)
        self.networks = copy.deepcopy(teacher).requires_grad_(True)
        self.optimizer = optimizer(self.networks.parameters())
        self._teacher, self._fake = called(teacher.requires_grad_(False)), called(self.networks)
        self.metadata: dict[str, str] = {}
        self.frozen = {"teacher": teacher} | ({"LPIPS": perceptual} if perceptual is not None else {})
        self._sums = torch.zeros(2, len(self.columns), dtype=torch.float64)  # of the terms, and their numbers

    def __call__(self, batch: Batch, draws: Draws) -> Loss:
        """The student's loss of a batch for random steps and noise."""
        y = self._encoded(batch)
        with torch.no_grad():
            truth = self.parts.first_stage.encode(batch.high)
        x0 = self.student(batch, y, draws)
        t = draws.integers(0, len(self.table))
        loss = self.by_sample(batch, truth, y, x0, t, draws.normal(*x0.shape[1:]))
        return Loss(loss, torch.zeros_like(t))

    def student(self, batch: Batch, y: Tensor, draws: Draws) -> Tensor:
        """x̂_0 of the student, not clamped, [B, C, h, w] like y."""
        parts = self.parts
        t = torch.zeros(len(y), dtype=torch.int64, device=y.device)
        # q(x_T | x_0 = y): as at inference, x_T knows nothing of the true x_0.
        x_t = ops.q_sample(y, y, t, parts.table, draws.normal(*y.shape[1:]))
        z = draws.normal(cast("ModelSpec", parts.spec).denoiser.noise_channels, *y.shape[2:])
        prediction = parts.predict(x_t, t, batch.low, batch.mask, z).to(y.dtype)
        return x0_from_prediction(x_t, prediction, y, _rows(parts.table, t), parts.spec.prediction_type)

    def by_sample(self, batch: Batch, truth: Tensor, y: Tensor, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """The student's loss for its results and given steps and noise, [B], at least float32.

        Args:
            batch: the pictures.
            truth, y: latents of the high- and of the enlarged low-quality pictures, [B, C, h, w].
            x0: x̂_0, the student's result, like y.
            t: int64 [B], rows of the teacher's table.
            noise: ε of x_t, like y.
        """
        terms: dict[str, tuple[float, Tensor]] = {}
        if self.rsd:
            x_t = ops.q_sample(x0, y, t, self.table, noise)
            errors = [_error(self._estimate(model, x_t, y, t, batch), x0) for model in (self._teacher, self._fake)]
            terms["rsd_loss"] = self.rsd, errors[0] - errors[1]
        if self.mse:
            terms["mse_loss"] = self.mse, _error(x0, truth)
        if self.lpips:
            assert self.perceptual is not None
            with self.parts.autocast():
                terms["lpips_loss"] = self.lpips, self.perceptual(decode(self.parts.first_stage, x0), batch.high)
        for name, (_, term) in terms.items():
            self._count(name, term)
        return sum((weight * term for weight, term in terms.values()), torch.zeros(len(y), device=y.device))

    def auxiliary_steps(self, step: int) -> int:
        """Optimizer steps of the fake model before a step of the student."""
        return self.fake_steps

    def auxiliary_loss(self, batch: Batch, draws: Draws) -> Tensor:
        """The fake model's loss of a batch for random steps and noise, [B]."""
        y = self._encoded(batch)
        with torch.no_grad():
            x0 = self.student(batch, y, draws)
        t = draws.integers(0, len(self.table))
        loss = self.fake_by_sample(batch, y, x0, t, draws.normal(*x0.shape[1:]))
        self._count("fake_loss", loss)
        return loss

    def fake_by_sample(self, batch: Batch, y: Tensor, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """The fake model's loss, [B]; arguments as in `by_sample`."""
        x_t = ops.q_sample(x0, y, t, self.table, noise)
        return _error(self._estimate(self._fake, x_t, y, t, batch), x0)

    def report(self, total: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Means since the last call, by column."""
        sums, counts = total(self._sums.float()).tolist()
        self._sums.zero_()
        return {name: sums[i] / counts[i] for i, name in enumerate(self.columns) if counts[i]}

    @torch.no_grad()
    def _encoded(self, batch: Batch) -> Tensor:
        return self.parts.first_stage.encode(upsample(batch.low, self.parts.spec.scale))

    def _estimate(self, model: nn.Module, x_t: Tensor, y: Tensor, t: Tensor, batch: Batch) -> Tensor:
        """x̂_0 of the teacher or the fake model from x_t."""
        row = _rows(self.table, t)
        scaled = x_t * row[columns.INPUT_SCALE]
        if self.channels_last:
            scaled = scaled.contiguous(memory_format=torch.channels_last)
        with self.parts.autocast():
            prediction = model(scaled, self.timesteps[t], batch.low, batch.mask)
        return x0_from_prediction(x_t, prediction.to(x_t.dtype), y, row, self.parts.spec.prediction_type)

    def _count(self, name: str, term: Tensor) -> None:
        place = self.columns.index(name)
        self._sums[:, place] += torch.stack([term.detach().double().sum().cpu(), torch.tensor(float(len(term)))])


def _rows(table: Tensor, t: Tensor) -> Tensor:
    """Coefficients of each picture's step, [8, B, 1, 1, 1]."""
    return table[t].T[..., None, None, None]


def _error(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).square().mean((1, 2, 3))


def from_config(config: TrainConfig, parts: Parts) -> Distillation:
    """The objective "distill" of a configuration that `prepare` returned.

    Raises:
        ValueError: for an unknown setting, weights of the loss that are not possible, or bad weights of the teacher or
            of LPIPS.
        OSError: if weights are missing.
    """
    from resshift_fast.models import catalog
    from resshift_fast.models.autoencoder import VQAutoencoder
    from resshift_fast.models.layers import prepack_weights_

    options = from_options(Options, config.objective_options)
    student = cast("ModelSpec", parts.spec)
    path, spec = teachers.file_of(options.teacher, student), catalog.teacher_of(student)
    teacher = catalog.build_denoiser(spec)
    networks.load_weights(teacher, path)
    teacher = teacher.to(parts.device).train()
    if config.channels_last:
        prepack_weights_(teacher)
    lpips = options.lpips
    if lpips is None:
        lpips = 2.0 if isinstance(parts.first_stage, VQAutoencoder) else 0.0
    perceptual = None
    if lpips > 0:
        from resshift_fast.training.lpips import LPIPS

        perceptual = LPIPS.from_files(options.vgg, options.lpips_weights).to(parts.device)

    def called(network: nn.Module) -> Any:
        if config.recompute:
            networks.recompute_activations(network)
        return torch.compile(network) if config.compile else network

    def optimizer(parameters: Any) -> torch.optim.Optimizer:
        lr = options.fake_lr or config.lr
        return torch.optim.AdamW(parameters, lr=lr, betas=config.betas, weight_decay=config.weight_decay)

    objective = Distillation(
        parts,
        teacher,
        spec.schedule,
        optimizer=optimizer,
        rsd=options.rsd,
        mse=options.mse if options.mse is not None else float(lpips == 0),
        lpips=lpips,
        perceptual=perceptual,
        fake_steps=options.fake_steps,
        channels_last=config.channels_last,
        called=called,
    )
    objective.metadata = {"teacher": spec.name, "teacher_weights": path.name}
    return objective
