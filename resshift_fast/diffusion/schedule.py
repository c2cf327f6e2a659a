r"""The residual-shifting schedule and the coefficients of every step (arXiv 2403.07319, section 3).

.. math::
    \sqrt{\eta_i} = s\,(e/s)^{(i/(T-1))^p}, \quad s = \min(m/\kappa,\ m), \quad i = 0 \dots T-1

    q(x_t \mid x_0, y) = N\big(x_0 + \eta_t (y - x_0),\ \kappa^2 \eta_t I\big)

    q(x_{t-1} \mid x_t, x_0, y) = N\big(\tfrac{\eta_{t-1}}{\eta_t} x_t + \tfrac{\alpha_t}{\eta_t} x_0,\
    \kappa^2 \tfrac{\eta_{t-1} \alpha_t}{\eta_t} I\big), \quad \alpha_t = \eta_t - \eta_{t-1}

with :math:`\eta_{-1} = 0`. Everything is computed once in float64; operators receive float32 rows.
"""

import json
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from resshift_fast.diffusion.coefficients import check_prediction_type

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Schedule:
    """η schedule, timestep respacing and per-step coefficients.

    Args:
        steps: number of training steps T, ≥ 2.
        kappa: κ > 0, the noise level relative to the residual shift.
        power: p > 0, the exponent of the schedule.
        min_noise_level: m > 0, bounds √η of the first step by min(m/κ, m).
        etas_end: √η of the last step, in (0, 1]; 1 only without "epsilon" predictions.
        respacing: number of steps that the chain executes, 1 … `steps`; None executes all.
        one_step: execute only the last of these steps, whose x̂_0 is the result, as a student of the chain does
            (arXiv 2503.13358).
        unit_prior: the chain begins at x_T = y + κ ε, as if η of its last step were 1 there, instead of y + κ √η_T ε.

    Raises:
        ValueError: for a value outside its range, or a unit prior of more than one step.
    """

    steps: int = 4
    kappa: float = 2.0
    power: float = 0.3
    min_noise_level: float = 0.2
    etas_end: float = 0.99
    respacing: int | None = None
    one_step: bool = False
    unit_prior: bool = False

    def __post_init__(self) -> None:
        if self.steps < 2:
            raise ValueError(f"Schedule: steps is {self.steps}, expected at least 2")
        for name in ("kappa", "power", "min_noise_level"):
            if not 0 < getattr(self, name) < np.inf:
                raise ValueError(f"Schedule: {name} is {getattr(self, name)}, expected a positive number")
        first = min(self.min_noise_level / self.kappa, self.min_noise_level)
        if not first < self.etas_end <= 1:
            raise ValueError(
                f"Schedule: etas_end is {self.etas_end}, expected a value in ({first:g}, 1], above the first step's √η"
            )
        if self.respacing is not None and not 1 <= self.respacing <= self.steps:
            raise ValueError(f"Schedule: respacing is {self.respacing}, expected 1 to steps={self.steps}")
        if self.unit_prior and not self.one_step:
            raise ValueError("Schedule: unit_prior needs one_step; more steps shift the residual from y + κ √η_T ε on")

    @cached_property
    def sqrt_etas_all(self) -> NDArray[np.float64]:
        """√η of all training steps, float64 [steps], increasing."""
        first = min(self.min_noise_level / self.kappa, self.min_noise_level)
        exponent = np.linspace(0, 1, self.steps, dtype=np.float64) ** self.power
        return first * (self.etas_end / first) ** exponent

    @cached_property
    def timesteps(self) -> NDArray[np.int64]:
        """Training indices that the chain keeps, int64 [num_steps], increasing; the denoiser is given these."""
        kept = np.arange(self.steps)
        if self.respacing is not None:
            kept = np.array([int(self.steps / self.respacing * i) for i in range(self.respacing)])
        return kept[-1:] if self.one_step else kept

    @property
    def num_steps(self) -> int:
        """Number of denoiser evaluations in one chain."""
        return len(self.timesteps)

    @cached_property
    def etas(self) -> NDArray[np.float64]:
        """η of the kept steps, float64 [num_steps]."""
        return self.sqrt_etas_all[self.timesteps] ** 2

    @cached_property
    def etas_previous(self) -> NDArray[np.float64]:
        """η_{t−1} of the kept steps, float64 [num_steps], starting with 0."""
        return np.concatenate([[0.0], self.etas[:-1]])

    @cached_property
    def alphas(self) -> NDArray[np.float64]:
        """α_t = η_t − η_{t−1}, float64 [num_steps]."""
        return self.etas - self.etas_previous

    @cached_property
    def posterior_variance(self) -> NDArray[np.float64]:
        """Variance of q(x_{t−1} | x_t, x_0, y), float64 [num_steps]; 0 at the last executed step."""
        return self.kappa**2 * self.etas_previous * self.alphas / self.etas

    @cached_property
    def posterior_log_variance_clipped(self) -> NDArray[np.float64]:
        """Logarithm of the posterior variance with index 0, whose variance is 0, replaced by index 1.

        A chain of one step has no other variance: there it is −∞.
        """
        variance = self.posterior_variance
        return np.log(np.append(variance[1], variance[1:])) if len(variance) > 1 else np.full(1, -np.inf)

    def loss_weights(self, prediction_type: str = "x0") -> NDArray[np.float64]:
        """Weight of the squared error at each step in the variational bound, float64 [num_steps].

        Args:
            prediction_type: one of `PREDICTION_TYPES`; the error meant is that of the network's own output.

        Raises:
            ValueError: for another prediction type, or a chain of one step, whose posterior has no variance.
        """
        check_prediction_type("Schedule.loss_weights", prediction_type)
        if self.num_steps < 2:
            raise ValueError("Schedule.loss_weights: the chain has one step and so no posterior; keep at least 2 steps")
        weight: NDArray[np.float64] = (self.alphas / self.etas) ** 2 / (2 * np.exp(self.posterior_log_variance_clipped))
        if prediction_type == "epsilon":
            weight = weight * self.kappa**2 * self.etas / (1 - self.etas) ** 2
        elif prediction_type == "epsilon_scaled":
            weight = weight / (1 - self.etas) ** 2
        return weight

    @cached_property
    def coefficients(self) -> NDArray[np.float64]:
        """One row of operator coefficients a step, float64 [num_steps, 8].

        Columns: η_t, 1 − η_t, κ√η_t (κ with `unit_prior`), η_{t−1}/η_t, α_t/η_t, posterior deviation, input scale
        1/√(κ²η_t + 1) of this step, and that of the next executed one.
        """
        input_scale = 1 / np.sqrt(self.kappa**2 * self.etas + 1)
        std = np.ones(1) if self.unit_prior else np.sqrt(self.etas)
        return np.stack(
            [
                self.etas,
                1 - self.etas,
                self.kappa * std,
                self.etas_previous / self.etas,
                self.alphas / self.etas,
                np.sqrt(self.posterior_variance),
                input_scale,
                np.concatenate([[1.0], input_scale[:-1]]),
            ],
            axis=1,
        )

    def table(self, device: "torch.device | str" = "cpu") -> "torch.Tensor":
        """The coefficients as a float32 tensor [num_steps, 8] on `device`; row t belongs to step t."""
        import torch

        return torch.tensor(self.coefficients, dtype=torch.float32, device=device)


def schedule_text(schedule: Schedule) -> str:
    """The schedule's settings as JSON, for the metadata of weights; `schedule_from_text` reads it."""
    return json.dumps(asdict(schedule))


def schedule_from_text(text: str) -> Schedule:
    """The schedule of a `schedule_text`.

    Raises:
        ValueError: for another text.
    """
    try:
        return Schedule(**json.loads(text))
    except TypeError:
        raise ValueError(f"{text[:200]!r} is not a schedule") from None
