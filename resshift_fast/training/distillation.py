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
uniform. Each picture's is divided by the mean of \|f^* - \hat x_0\|, without gradient, as in SiD (arXiv 2404.04057), so
that all steps and pictures weigh about the same.

In training the student also predicts x̂_0 at earlier steps t_n, from q(x_{t_n} | x_0, y) of the true x_0 (section 3.3),
and f and L_RSD take those results. Two more terms are added: a supervised one of the result at the last step, from y
alone as at inference, LPIPS of the decoded x̂_0 as in the paper or the squared error of x̂_0; and an adversarial one
(equation 12) by a head h on the features F of the middle of f, of latents without noise at its least step,

.. math::
    L_\text{D}(h, f) = \log(1 + e^{-h(F(x_0))}) + \log(1 + e^{h(F(\hat x_0))}), \qquad
    L_\text{G}(G) = \log(1 + e^{-h(F(\hat x_0))})

The first is minimized with L_fake, with the same weight as the second in the student's loss. Equation 12 has −log D of
the student's results in both places, which has no maximum over D; log(1 − D) is the usual one for the discriminator.

Appendix C of the paper has the defaults: the fake model takes 5 steps for each of the student's, LPIPS has weight 2
and the adversarial loss 0.003, and there are 4 steps t_n.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from resshift_fast import ops
from resshift_fast.diffusion import coefficients as columns
from resshift_fast.diffusion.schedule import Schedule
from resshift_fast.ops.residual_shift import x0_from_prediction
from resshift_fast.training import networks, teachers
from resshift_fast.training.degradations.drawing import from_options
from resshift_fast.training.discriminator import FeatureHead, discriminator_loss, logistic_generator_loss
from resshift_fast.training.interfaces import Batch, Draws, Loss, Parts
from resshift_fast.training.means import Means
from resshift_fast.training.objective import decode
from resshift_fast.training.optimization import adamw
from resshift_fast.training.pixels import upsample

if TYPE_CHECKING:
    from resshift_fast.models.catalog import ModelSpec
    from resshift_fast.models.swin_unet import SwinUNet
    from resshift_fast.training.config import TrainConfig


LEAST_DISTANCE = 1e-5  # of the teacher's estimates, by which the distillation loss is divided


@dataclass(frozen=True)
class Options:
    """Settings of the objective."""

    teacher: str | None = None
    """Weights of the teacher; None takes the published ones of the model."""
    num_res_blocks: tuple[int, ...] | None = None
    """Residual blocks of the student at each level, from the largest images on; None takes the teacher's."""
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
    """Peak learning rate of the fake model and the discriminator; None takes the student's."""
    adversarial: float = 0.003
    """Weight of the adversarial loss; 0 trains without a discriminator."""
    student_timesteps: int = 4
    """Timesteps that the student is trained at, evenly spaced; 1 is the last one alone, from y without the true x_0."""
    normalize: bool = True
    """Divide the distillation loss of each picture by the teacher's mean absolute error."""


class Distillation:
    """The student's loss, and the fake model with its own.

    Args:
        parts: of the student's training; its `denoise` takes the noise z.
        teacher: the trained denoiser on the device; it is frozen here. The fake model starts as its copy.
        schedule: the teacher's.
        optimizer: makes that of the fake model and the discriminator from their parameters.
        rsd, mse, lpips, adversarial: weights of the four terms.
        perceptual: the LPIPS module, on the device; needed if `lpips` is not 0.
        fake_steps, student_timesteps, normalize: as in `Options`.
        channels_last: whether the inputs of teacher and fake model are in this memory format.
        called: makes what is called of the teacher and of the fake model: compiled ones, for instance.

    Attributes:
        networks: the fake model, "fake", and the discriminator of its features, "head", unless its weight is 0.
        optimizer: of their parameters.
        columns: of the log: means of the terms without their weights, and of the fake model's and discriminator's loss.
        metadata: of the student's weights.
        frozen: networks that are not trained, by name.

    Raises:
        ValueError: for weights or a number of steps that are not possible, or a missing `perceptual`.
    """

    columns = ("rsd_loss", "mse_loss", "lpips_loss", "generator_loss", "fake_loss", "discriminator_loss")

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
        adversarial: float = 0.003,
        perceptual: nn.Module | None = None,
        fake_steps: int = 5,
        student_timesteps: int = 4,
        normalize: bool = True,
        channels_last: bool = False,
        called: Callable[[nn.Module], nn.Module] = lambda network: network,
    ):
        _check(rsd, mse, lpips, adversarial, fake_steps, student_timesteps)
        if lpips and perceptual is None:
            raise ValueError(f"lpips has weight {lpips}, but no LPIPS module was given; pass one or set lpips to 0")
        self.parts, self.perceptual = parts, perceptual
        self.rsd, self.mse, self.lpips, self.adversarial = rsd, mse, lpips, adversarial
        self.fake_steps, self.normalize, self.channels_last = fake_steps, normalize, channels_last
        self.table = schedule.table(parts.device)
        self.timesteps = torch.as_tensor(schedule.timesteps, dtype=torch.int64, device=parts.device)
        self.places = torch.tensor(evenly_spaced(schedule.num_steps, student_timesteps), device=parts.device)
        cast(nn.Module, parts.first_stage).requires_grad_(False)
        self.networks = nn.ModuleDict({"fake": copy.deepcopy(teacher).requires_grad_(True)})
        self._teacher, self._fake = called(teacher.requires_grad_(False)), called(self.networks["fake"])
        if adversarial:
            self._features = called(_Bottleneck(self.networks["fake"]))
            channels = _channels(cast("SwinUNet", teacher))
            self.networks["head"] = FeatureHead(channels).to(parts.device)
        self.optimizer = optimizer(self.networks.parameters())
        self.metadata: dict[str, str] = {}
        self.frozen = {"teacher": teacher} | ({"LPIPS": perceptual} if perceptual is not None else {})
        self._means = Means(self.columns, parts.device)

    def __call__(self, batch: Batch, draws: Draws) -> Loss:
        """The student's loss of a batch for random steps and noise."""
        truth, y = self._encoded(batch)
        inputs = self._inputs(truth, y, draws)
        if len(self.places) > 1 and (self.mse or self.lpips):
            # One call for both, since a network of several processes is called once for each backward pass.
            last = self._last(y, draws)
            x_t, t, z = (torch.cat(both) for both in zip(inputs, last, strict=True))
            x0, result = self.student(_twice(batch), torch.cat([y, y]), x_t, t, z).chunk(2)
        else:
            x0 = result = self.student(batch, y, *inputs)
        t = draws.integers(0, len(self.table))
        loss = self.by_sample(batch, truth, y, x0, result, t, draws.normal(*x0.shape[1:]))
        return Loss(loss, torch.zeros_like(t))

    def _inputs(self, truth: Tensor, y: Tensor, draws: Draws) -> tuple[Tensor, Tensor, Tensor]:
        """Of the student at a random one of its timesteps: x_t, t and z."""
        if len(self.places) == 1:
            return self._last(y, draws)
        t = self.places[draws.integers(0, len(self.places))]
        return self._noisy(truth, y, t, draws)

    def _last(self, y: Tensor, draws: Draws) -> tuple[Tensor, Tensor, Tensor]:
        """Of the student at inference: x_T, which knows nothing of the true x_0, t and z."""
        t = torch.full((len(y),), len(self.table) - 1, dtype=torch.int64, device=y.device)
        return self._noisy(y, y, t, draws)

    def _noisy(self, x0: Tensor, y: Tensor, t: Tensor, draws: Draws) -> tuple[Tensor, Tensor, Tensor]:
        x_t = ops.q_sample(x0, y, t, self.table, draws.normal(*y.shape[1:]))
        channels = cast("ModelSpec", self.parts.spec).denoiser.noise_channels
        return x_t, t, draws.normal(channels, *y.shape[2:])

    def student(self, batch: Batch, y: Tensor, x_t: Tensor, t: Tensor, z: Tensor) -> Tensor:
        """x̂_0 of the student, not clamped, [B, C, h, w] like y.

        Args:
            batch, y, t: as in `by_sample`.
            x_t: [B, C, h, w], not scaled.
            z: [B, noise_channels, h, w].
        """
        row = _rows(self.table, t)
        prediction = self.parts.denoise(x_t * row[columns.INPUT_SCALE], self.timesteps[t], batch.low, batch.mask, z).to(
            y.dtype
        )
        return x0_from_prediction(x_t, prediction, y, row, self.parts.spec.prediction_type)

    def by_sample(
        self, batch: Batch, truth: Tensor, y: Tensor, x0: Tensor, result: Tensor, t: Tensor, noise: Tensor
    ) -> Tensor:
        """The student's loss for its results and given steps and noise, [B], at least float32.

        Args:
            batch: the pictures.
            truth, y: latents of the high- and of the enlarged low-quality pictures, [B, C, h, w].
            x0: x̂_0, the student's result at one of its timesteps, like y.
            result: that at the last timestep, for the supervised terms.
            t: int64 [B], rows of the teacher's table.
            noise: ε of x_t, like y.
        """
        terms: dict[str, tuple[float, Tensor]] = {}
        if self.rsd:
            terms["rsd_loss"] = self.rsd, self._rsd(batch, y, x0, t, noise)
        if self.mse:
            terms["mse_loss"] = self.mse, _error(result, truth)
        if self.lpips:
            assert self.perceptual is not None
            with self.parts.autocast():
                pixels = decode(self.parts.first_stage, result)
                terms["lpips_loss"] = self.lpips, self.perceptual(pixels, batch.high)
        if self.adversarial:
            terms["generator_loss"] = self.adversarial, logistic_generator_loss(self._logits(x0, batch))
        for name, (_, term) in terms.items():
            self._means.count(name, term)
        return sum((weight * term for weight, term in terms.values()), torch.zeros(len(y), device=y.device))

    def _rsd(self, batch: Batch, y: Tensor, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        x_t = ops.q_sample(x0, y, t, self.table, noise)
        by_teacher, by_fake = (self._estimate(model, x_t, y, t, batch) for model in (self._teacher, self._fake))
        loss = _error(by_teacher, x0) - _error(by_fake, x0)
        if not self.normalize:
            return loss
        distance = (by_teacher - x0).detach().abs().mean((1, 2, 3))
        return loss / distance.clamp(min=LEAST_DISTANCE)

    def auxiliary_steps(self, step: int) -> int:
        """Optimizer steps of the fake model before a step of the student."""
        return self.fake_steps

    def auxiliary_loss(self, batch: Batch, draws: Draws) -> Tensor:
        """The loss of the fake model and the discriminator of a batch for random steps and noise, [B]."""
        truth, y = self._encoded(batch)
        with torch.no_grad():
            x0 = self.student(batch, y, *self._inputs(truth, y, draws))
        t = draws.integers(0, len(self.table))
        return self.auxiliary_by_sample(batch, truth, y, x0, t, draws.normal(*x0.shape[1:]))

    def auxiliary_by_sample(
        self, batch: Batch, truth: Tensor, y: Tensor, x0: Tensor, t: Tensor, noise: Tensor
    ) -> Tensor:
        """That loss for given results of the student, steps and noise, [B]; arguments as in `by_sample`."""
        x_t = ops.q_sample(x0, y, t, self.table, noise)
        loss = _error(self._estimate(self._fake, x_t, y, t, batch), x0)
        self._means.count("fake_loss", loss)
        if not self.adversarial:
            return loss
        real, fake = self._logits(torch.cat([truth, x0]), _twice(batch)).chunk(2)
        of_head = 2 * discriminator_loss(real, fake, "vanilla")
        self._means.count("discriminator_loss", of_head)
        return loss + self.adversarial * of_head

    def report(self, total: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Means since the last call, by column."""
        return self._means.report(total)

    @torch.no_grad()
    def _encoded(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Latents of the high- and of the enlarged low-quality pictures."""
        encode = self.parts.first_stage.encode
        return encode(batch.high), encode(upsample(batch.low, self.parts.spec.scale))

    def _logits(self, latent: Tensor, batch: Batch) -> Tensor:
        """The discriminator's values of latents without noise, [B, 1, h, w]."""
        t = torch.zeros(len(latent), dtype=torch.int64, device=latent.device)
        scaled = self._scaled(latent, _rows(self.table, t))
        with self.parts.autocast():
            features = self._features(scaled, self.timesteps[t], batch.low, batch.mask)
            logits: Tensor = self.networks["head"](features)
        return logits

    def _scaled(self, x_t: Tensor, row: Tensor) -> Tensor:
        scaled = x_t * row[columns.INPUT_SCALE]
        return scaled.contiguous(memory_format=torch.channels_last) if self.channels_last else scaled

    def _estimate(self, model: nn.Module, x_t: Tensor, y: Tensor, t: Tensor, batch: Batch) -> Tensor:
        """x̂_0 of the teacher or the fake model from x_t."""
        row = _rows(self.table, t)
        with self.parts.autocast():
            prediction = model(self._scaled(x_t, row), self.timesteps[t], batch.low, batch.mask)
        return x0_from_prediction(x_t, prediction.to(x_t.dtype), y, row, self.parts.spec.prediction_type)


class _Bottleneck(nn.Module):
    """The features of a denoiser that the discriminator sees."""

    def __init__(self, denoiser: nn.Module):
        super().__init__()
        self.denoiser = denoiser

    def forward(self, x: Tensor, timesteps: Tensor, lq: Tensor | None, mask: Tensor | None) -> Tensor:
        found: Tensor = self.denoiser.bottleneck(x, timesteps, lq, mask)  # type: ignore[operator]
        return found


def _channels(denoiser: SwinUNet) -> int:
    """Of `_Bottleneck`."""
    return int(denoiser.config.channel_mult[-1] * denoiser.config.model_channels)


def evenly_spaced(steps: int, count: int) -> list[int]:
    """Rows of ⌈n · steps / count⌉ for n = 1 … count, the last row among them; all rows where `count` is larger."""
    return sorted({-(-number * steps // count) - 1 for number in range(1, count + 1)})


def _check(rsd: float, mse: float, lpips: float, adversarial: float, fake_steps: int, student_timesteps: int) -> None:
    if min(rsd, mse, lpips, adversarial) < 0 or rsd + mse + lpips == 0:
        raise ValueError(
            f"expected weights ≥ 0, and rsd, mse and lpips not all 0, got rsd {rsd}, mse {mse}, lpips {lpips} and "
            f"adversarial {adversarial}"
        )
    for name, value in (("fake_steps", fake_steps), ("student_timesteps", student_timesteps)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")


def _twice(batch: Batch) -> Batch:
    mask = None if batch.mask is None else torch.cat([batch.mask, batch.mask])
    return Batch(torch.cat([batch.high, batch.high]), torch.cat([batch.low, batch.low]), mask)


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
    from resshift_fast.weights import checkpoints

    options = from_options(Options, config.objective_options)
    student = cast("ModelSpec", parts.spec)
    path = teachers.file_of(options.teacher, student)
    state = checkpoints.read_state_dict(path)
    spec = teachers.of_student(student, state)
    teacher = catalog.build_denoiser(spec)
    checkpoints.load_into(teacher, state, path)
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
        return torch.compile(network) if config.compile else network

    def optimizer(parameters: Any) -> torch.optim.Optimizer:
        return adamw(parameters, config, options.fake_lr or None)

    objective = Distillation(
        parts,
        teacher,
        spec.schedule,
        optimizer=optimizer,
        rsd=options.rsd,
        mse=options.mse if options.mse is not None else float(lpips == 0),
        lpips=lpips,
        perceptual=perceptual,
        adversarial=options.adversarial,
        fake_steps=options.fake_steps,
        student_timesteps=options.student_timesteps,
        normalize=options.normalize,
        channels_last=config.channels_last,
        called=called,
    )
    if config.recompute:
        for network in (teacher, objective.networks["fake"]):
            networks.recompute_activations(network)
    objective.metadata = {"teacher": spec.name, "teacher_weights": path.name}
    return objective
