"""The reverse chain on latents: schedule × denoiser × residual-shift operators (arXiv 2403.07319, section 3.2).

Everything that depends only on the timestep or only on the low-quality image is computed once per chain.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from resshift_fast import ops
from resshift_fast.models.swin_unet import SwinUNet
from resshift_fast.schedule import Schedule


def torch_noise(y: Tensor, num_steps: int, generator: torch.Generator | None = None) -> list[Tensor]:
    """Noise from torch's generator in the official program's order.

    One draw for the prior and one a step, the last of which the chain does not use.

    Args:
        y: [B, C, h, w]; the noise is like it.
        num_steps: number of executed steps.
        generator: on y's device; None means torch's global one.

    Returns:
        num_steps + 1 tensors: the prior's, then one a step.
    """
    return [torch.randn(y.shape, dtype=y.dtype, device=y.device, generator=generator) for _ in range(num_steps + 1)]


@torch.no_grad()
def sample_latents(
    denoiser: SwinUNet,
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
        denoiser: predicts from the scaled x_t; its parameters' dtype is the dtype it runs in.
        schedule: whose kept steps are executed, last to first.
        y: float32 [B, C, h, w], the encoded, upsampled low-quality image.
        lq: [B, 3, H, W] in [−1, 1], the low-quality image itself, or None for a denoiser without it.
        seed: int64 [B], each in [0, 2⁶³).
        mask: [B, 1, H, W], 1 = unknown and −1 = known, for inpainting.
        origin: int64 [B, 2], each tile's (row, column) in the whole latent; None means (0, 0).
        noise: num_steps + 1 tensors like y (the prior's, then one a step) instead of the noise field.
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
            f"sample_latents: noise has {len(noise)} tensors, expected {draws}: the prior's, then one a step"
        )
    parameter = next(denoiser.parameters())
    dtype = parameter.dtype
    table = schedule.table(y.device)
    timesteps = torch.from_numpy(schedule.timesteps).to(y.device)
    modulation = denoiser.modulation(timesteps)
    features = denoiser.condition(None if lq is None else lq.to(dtype), None if mask is None else mask.to(dtype))
    last_step = schedule.num_steps - 1
    prior = None if noise is None else noise[0]
    x_t, network_input = ops.prior_sample(
        y, table[last_step], seed, origin=origin, noise=prior, lq=features, next_dtype=dtype
    )
    for position, t in enumerate(reversed(range(schedule.num_steps)), start=1):
        rows = tuple(m[t : t + 1].expand(y.shape[0], -1) for m in modulation)
        prediction = denoiser.denoise(network_input, rows)
        x_t, network_input = ops.posterior_step(
            x_t,
            prediction,
            y,
            table[t],
            seed,
            torch.tensor(position, device=y.device),
            origin=origin,
            prediction_type=prediction_type,
            clamp_x0=clamp_x0,
            noise=None if noise is None else noise[position],
            lq=features if t else None,
            next_dtype=dtype,
            last=t == 0,
        )
        if callback is not None:
            callback(t, x_t)
    return x_t
