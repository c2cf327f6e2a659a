"""The reverse chain on latents: schedule × denoiser × residual-shift operators (arXiv 2403.07319, section 3.2).

Everything that depends only on the low-quality image is computed once per chain, and what depends only on the timestep
too, unless `LatentChain.prepare` has derived it from the weights before.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from resshift_fast import ops
from resshift_fast.core import nvtx
from resshift_fast.diffusion.coefficients import NOISE_STD, NUM_COEFFICIENTS
from resshift_fast.diffusion.schedule import Schedule
from resshift_fast.models.derived import Derived, Preparable
from resshift_fast.models.swin_unet import Modulation, SwinUNet


def torch_noise(
    y: Tensor,
    num_steps: int,
    generator: torch.Generator | None = None,
    *,
    noise_channels: int = 0,
    prior_first: bool = False,
) -> list[Tensor]:
    """Noise from torch's generator in the official program's order.

    There is one draw for the prior and one per step. The chain does not use the last, but the official program draws
    it.

    Args:
        y: [B, C, h, w]; the noise has its shape, dtype and device.
        num_steps: number of executed steps.
        generator: on y's device; None means torch's global one.
        noise_channels: of a denoiser of one step.
        prior_first: draw the prior before these channels, instead of after them, as the program of arXiv 2503.13358
            does.

    Returns:
        num_steps + 1 tensors: the prior's, then one per step. With noise channels: the prior's, then these.
    """
    if noise_channels:
        shapes = [y.shape, (y.shape[0], noise_channels, *y.shape[2:])]
        drawn = [
            torch.randn(shape, dtype=y.dtype, device=y.device, generator=generator)
            for shape in (shapes if prior_first else reversed(shapes))
        ]
        return drawn if prior_first else drawn[::-1]
    return [torch.randn(y.shape, dtype=y.dtype, device=y.device, generator=generator) for _ in range(num_steps + 1)]


class LatentChain(Preparable):
    """All reverse steps as one module of tensor operations, which can be compiled, exported and captured in a graph.

    It never synchronizes and does not depend on values: seeds, steps and coefficients are tensors.

    Args:
        denoiser: a `SwinUNet`, or a module that is called as `models.interfaces.Denoiser` says; it runs in the dtype of
            its parameters.
        schedule: its kept steps are executed, last to first.
        prediction_type, clamp_x0: as in `ops.posterior_step`.

    Raises:
        ValueError: for a denoiser with noise channels and a schedule of more than one step.
    """

    denoiser: Any  # for type checkers, to which the attributes of a module are tensors or modules
    table: Tensor
    timesteps: Tensor
    steps: Tensor
    noise_row: Tensor

    def __init__(self, denoiser: nn.Module, schedule: Schedule, *, prediction_type: str = "x0", clamp_x0: bool = False):
        super().__init__()
        self.denoiser = denoiser
        self.num_steps = schedule.num_steps
        self.prediction_type, self.clamp_x0 = prediction_type, clamp_x0
        device = next(denoiser.parameters()).device
        self.register_buffer("table", schedule.table(device), persistent=False)
        self.register_buffer("timesteps", torch.from_numpy(schedule.timesteps).to(device), persistent=False)
        self.register_buffer("steps", torch.arange(self.num_steps + 1, device=device), persistent=False)
        self.noise_channels: int = getattr(denoiser, "noise_channels", 0)
        if self.noise_channels:
            if self.num_steps != 1:
                raise ValueError(
                    f"a denoiser with noise channels needs a schedule of one step, got {self.num_steps} steps; "
                    "set Schedule's one_step"
                )
            row = [float(column == NOISE_STD) for column in range(NUM_COEFFICIENTS)]
            self.register_buffer("noise_row", torch.tensor(row, device=device), persistent=False)
        self.modulations = Derived()  # of all steps and residual blocks, [steps, their widths in sum]

    def prepare(self, changed: bool = False) -> None:
        """Derive the modulations of all steps from the weights of a `SwinUNet`, unless they are current.

        Without it every call computes them. Call it again before compiled or captured calls whose weights may have
        changed; eager calls notice that themselves.

        Args:
            changed: as in `Derived.refresh`, for weights that were changed through `.data`.
        """
        if isinstance(self.denoiser, SwinUNet):
            self.modulations.refresh(
                self._modulation_sources(), lambda: torch.cat(self.denoiser.modulation(self.timesteps), dim=1), changed
            )

    def _modulation_sources(self) -> Iterator[Tensor]:
        """All tensors that the modulations depend on."""
        yield self.timesteps
        yield from self.denoiser.modulation_parameters()

    def _predictor(self, lq: Tensor | None, mask: Tensor | None, batch: int) -> Callable[[Tensor, int], Tensor]:
        """The prediction from an input, to which `_features` have been appended, at step t."""
        denoiser = self.denoiser
        if not hasattr(denoiser, "denoise"):
            return lambda x, t: denoiser(x, self.timesteps[t].expand(batch), lq, mask)
        modulation = self._modulation()
        return lambda x, t: denoiser.denoise(x, tuple(m[t : t + 1].expand(batch, -1) for m in modulation))

    def _modulation(self) -> Modulation:
        """The modulations of all steps, as in `SwinUNet.modulation`."""
        prepared = self.modulations.current(self._modulation_sources)
        if prepared is None:
            return self.denoiser.modulation(self.timesteps)
        return prepared.split([layer.out_features for layer in self.denoiser.modulation_layers()], dim=1)

    def forward(
        self,
        y: Tensor,
        lq: Tensor | None,
        seed: Tensor,
        mask: Tensor | None = None,
        origin: Tensor | None = None,
        noise: Sequence[Tensor] | None = None,
        callback: Callable[[int, Tensor], None] | None = None,
    ) -> Tensor:
        """Sample x_0; see `sample_latents` for the arguments and the result."""
        dtype = next(self.denoiser.parameters()).dtype
        with nvtx.stage("prepare"):
            lq, mask = (None if x is None else x.to(dtype) for x in (lq, mask))
            features = self._features(y, lq, mask, seed, origin, noise)
            predict = self._predictor(lq, mask, y.shape[0])
            prior = None if noise is None else noise[0]
            x_t, network_input = ops.prior_sample(
                y, self.table[self.num_steps - 1], seed, origin=origin, noise=prior, lq=features, next_dtype=dtype
            )
        if self.noise_channels:
            noise = None  # the only step adds none
        for position, t in enumerate(reversed(range(self.num_steps)), start=1):
            with nvtx.stage("denoise", position):
                x_t, following = ops.posterior_step(
                    x_t,
                    predict(network_input, t),
                    y,
                    self.table[t],
                    seed,
                    self.steps[position],
                    origin=origin,
                    prediction_type=self.prediction_type,
                    clamp_x0=self.clamp_x0,
                    noise=None if noise is None else noise[position],
                    lq=features,
                    next_dtype=dtype,
                    last=t == 0,
                    next_input=t > 0,
                )
                if following is not None:
                    network_input = following
            if callback is not None:
                callback(t, x_t)
        return x_t

    def _features(
        self,
        y: Tensor,
        lq: Tensor | None,
        mask: Tensor | None,
        seed: Tensor,
        origin: Tensor | None,
        noise: Sequence[Tensor] | None,
    ) -> Tensor | None:
        """What is appended to every x_t; None for a denoiser that is given the low-quality image apart from x_t."""
        if not hasattr(self.denoiser, "denoise"):
            return None
        if not self.noise_channels:
            return self.denoiser.condition(lq, mask)
        dtype = next(self.denoiser.parameters()).dtype
        if noise is not None:
            return self.denoiser.condition(lq, mask, noise[1].to(dtype))
        # The noise field of step 1, from which a chain of one step draws nothing, by the operator that makes it.
        zero = y.new_zeros(y.shape[0], self.noise_channels, *y.shape[2:])
        extra, _ = ops.posterior_step(
            zero, zero, zero, self.noise_row, seed, self.steps[1], origin=origin, next_input=False
        )
        return self.denoiser.condition(lq, mask, extra.to(dtype))


@torch.no_grad()
def sample_latents(
    denoiser: nn.Module,
    schedule: Schedule,
    y: Tensor,
    lq: Tensor | None,
    *,
    seed: Tensor,
    mask: Tensor | None = None,
    origin: Tensor | None = None,
    noise: Sequence[Tensor] | None = None,
    prediction_type: str = "x0",
    clamp_x0: bool = False,
    callback: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Sample x_0 given the encoded low-quality image.

    Args:
        denoiser: as in `LatentChain`.
        schedule: its kept steps are executed, last to first.
        y: float32 [B, C, h, w], the encoded, upsampled low-quality image.
        lq: [B, 3, H, W] in [−1, 1], the low-quality image itself, or None for a denoiser without it.
        seed: int64 [B], each in [0, 2⁶³).
        mask: [B, 1, H, W], 1 = unknown and −1 = known, for inpainting.
        origin: int64 [B, 2], each tile's (row, column) in the whole latent; None means (0, 0).
        noise: num_steps + 1 tensors like y (the prior's, then one per step) instead of the noise field; for a
            denoiser with noise channels the second one has these.
        prediction_type, clamp_x0: as in `ops.posterior_step`.
        callback: called with (t, x_{t−1}) after every step.

    Returns:
        x_0, float32 [B, C, h, w].

    Raises:
        ValueError, TypeError: from the operators, for shapes and dtypes that do not fit.
    """
    draws = schedule.num_steps + 1
    if noise is not None and len(noise) != draws:
        raise ValueError(
            f"sample_latents: noise has {len(noise)} tensors, expected {draws}: the prior's, then one per step"
        )
    chain = LatentChain(denoiser, schedule, prediction_type=prediction_type, clamp_x0=clamp_x0)
    return chain(y, lq, seed, mask, origin, noise, callback)
