r"""The three samplers of residual shifting (arXiv 2403.07319, equations 1, 2 and 7).

.. math::
    \text{q\_sample:} \quad & x_t = x_0 + \eta_t (y - x_0) + \kappa \sqrt{\eta_t}\,\epsilon

    \text{prior\_sample:} \quad & x_T = y + \kappa \sqrt{\eta_T}\,\epsilon

    \text{posterior\_step:} \quad & x_{t-1} = \tfrac{\eta_{t-1}}{\eta_t} x_t + \tfrac{\alpha_t}{\eta_t} \hat x_0
    + \kappa \sqrt{\eta_{t-1} \alpha_t / \eta_t}\,\epsilon

The network's prediction p gives x̂_0 as p ("x0"), y − p ("residual"), (x_t − η y − κ√η p)/(1 − η) ("epsilon")
or (x_t − η y − p)/(1 − η) ("epsilon_scaled"). Both samplers of the chain also return the denoiser's next
input, x/√(κ² η + 1) followed by the low-quality image's channels. Coefficients come as rows of
`Schedule.table`, noise from the noise field unless it is given.
"""

from typing import Any, Literal, NamedTuple, overload

import torch
from torch import Tensor

from resshift_fast import backends
from resshift_fast.backends import Kernel
from resshift_fast.diffusion import coefficients as columns
from resshift_fast.diffusion.coefficients import NUM_COEFFICIENTS, PREDICTION_TYPES, check_prediction_type
from resshift_fast.diffusion.noise import noise_field
from resshift_fast.ops import checks, drawing
from resshift_fast.ops.registration import Native, recomputed, register, takes

LATENT_DTYPES = (torch.float32, torch.float64)


class PosteriorStepArguments(NamedTuple):
    """Arguments of the registered operator; `posterior_step` describes them.

    Without a next_dtype the next input is left out: the operator returns an empty tensor in its place, because the
    results of an operator cannot be None.
    """

    x_t: Tensor
    prediction: Tensor
    y: Tensor
    coefficients: Tensor
    seed: Tensor | None
    step: Tensor | None
    origin: Tensor | None
    prediction_type: str
    clamp_x0: bool
    noise: Tensor | None
    lq: Tensor | None
    next_dtype: torch.dtype | None
    last: bool


class PriorSampleArguments(NamedTuple):
    """Arguments of the registered operator; `prior_sample` describes them, `PosteriorStepArguments` next_dtype."""

    y: Tensor
    coefficients: Tensor
    seed: Tensor | None
    origin: Tensor | None
    noise: Tensor | None
    lq: Tensor | None
    next_dtype: torch.dtype | None


def x0_from_prediction(x_t: Tensor, prediction: Tensor, y: Tensor, row: Tensor, prediction_type: str) -> Tensor:
    """x̂_0 [B, C, H, W] from the network's prediction; `row` is the step's coefficient row."""
    if prediction_type == "x0":
        return prediction
    if prediction_type == "residual":
        return y - prediction
    noise_part = prediction * row[columns.KAPPA_SQRT_ETA] if prediction_type == "epsilon" else prediction
    return (x_t - row[columns.ETA] * y - noise_part) / row[columns.ONE_MINUS_ETA]


def _next_input(x: Tensor, input_scale: Tensor, lq: Tensor | None, dtype: torch.dtype | None) -> Tensor:
    """The denoiser's next input, channels-last like everything in the denoiser; empty without a dtype."""
    if dtype is None:
        return x.new_empty(0)
    scaled = (x * input_scale).to(dtype)
    whole = scaled if lq is None else torch.cat([scaled, lq.to(dtype)], dim=1)
    return whole.contiguous(memory_format=torch.channels_last)


@takes(PosteriorStepArguments)
def posterior_step_reference(a: PosteriorStepArguments) -> tuple[Tensor, Tensor]:
    """The formula in plain PyTorch, in x_t's dtype."""
    x_t, row = a.x_t, a.coefficients
    x0 = x0_from_prediction(x_t, a.prediction.to(x_t.dtype), a.y, row, a.prediction_type)
    if a.clamp_x0:
        x0 = x0.clamp(-1, 1)
    x_prev = row[columns.MEAN_X_T] * x_t + row[columns.MEAN_X0] * x0
    if not a.last:
        noise = a.noise
        if noise is None:
            assert a.seed is not None and a.step is not None  # as checked
            noise = noise_field(a.seed, a.step, *x_t.shape[1:], origin=a.origin).to(x_t.dtype)
        x_prev = x_prev + row[columns.NOISE_STD] * noise
    return x_prev.contiguous(), _next_input(x_prev, row[columns.NEXT_INPUT_SCALE], a.lq, a.next_dtype)


@takes(PriorSampleArguments)
def prior_sample_reference(a: PriorSampleArguments) -> tuple[Tensor, Tensor]:
    """The formula in plain PyTorch, in y's dtype."""
    y, row, noise = a.y, a.coefficients, a.noise
    if noise is None:
        assert a.seed is not None  # as checked
        step = torch.zeros((), dtype=torch.int64, device=y.device)
        noise = noise_field(a.seed, step, *y.shape[1:], origin=a.origin).to(y.dtype)
    x_t = y + row[columns.KAPPA_SQRT_ETA] * noise
    return x_t.contiguous(), _next_input(x_t, row[columns.INPUT_SCALE], a.lq, a.next_dtype)


def q_sample_reference(x0: Tensor, y: Tensor, t: Tensor, table: Tensor, noise: Tensor) -> Tensor:
    """The formula in plain PyTorch, in the wider of x0's and the table's dtypes."""
    row = table[t][:, :, None, None, None]
    return (x0 + row[:, columns.ETA] * (y - x0) + row[:, columns.KAPPA_SQRT_ETA] * noise).to(x0.dtype)


def _plain_q_sample(x0: Tensor, y: Tensor, t: Tensor, table: Tensor, noise: Tensor) -> Tensor:
    return checks.match_memory_format(q_sample_reference(x0, y, t, table, noise), x0)


def _fake_chain(x: Tensor, lq: Tensor | None, next_dtype: torch.dtype | None) -> tuple[Tensor, Tensor]:
    if next_dtype is None:
        return x.new_empty(x.shape), x.new_empty(0)
    batch, channels, height, width = x.shape
    size = (batch, channels + (0 if lq is None else lq.shape[1]), height, width)
    next_input = torch.empty(size, dtype=next_dtype, device=x.device, memory_format=torch.channels_last)
    return x.new_empty(x.shape), next_input


@takes(PosteriorStepArguments)
def _fake_posterior_step(a: PosteriorStepArguments) -> tuple[Tensor, Tensor]:
    return _fake_chain(a.x_t, a.lq, a.next_dtype)


@takes(PriorSampleArguments)
def _fake_prior_sample(a: PriorSampleArguments) -> tuple[Tensor, Tensor]:
    return _fake_chain(a.y, a.lq, a.next_dtype)


def _fake_q_sample(x0: Tensor, y: Tensor, t: Tensor, table: Tensor, noise: Tensor) -> Tensor:
    return torch.empty_like(x0)


def _latents(device: torch.device, dtype: torch.dtype) -> tuple[list[Tensor], Tensor, Tensor, Tensor, Tensor]:
    """Four latents [2, 5, 9, 7], a row of coefficients, seeds beyond 32 bits, a step and origins."""
    normal = drawing.normal(device, dtype)
    latents = [normal(2, 5, 9, 7) for _ in range(4)]
    row = torch.tensor([0.4, 0.6, 1.26, 0.5, 0.5, 0.7, 0.62, 0.83], dtype=torch.float32, device=device)
    seed = torch.tensor([12345, 2**40 + 7], device=device)
    origin = torch.tensor([[0, 64], [3, 2**20]], device=device)
    return latents, row, seed, torch.tensor(2, device=device), origin


def _posterior_step_examples(device: torch.device, dtype: torch.dtype) -> list[tuple[Any, ...]]:
    (x_t, prediction, y, lq), row, seed, step, origin = _latents(device, dtype)
    half = drawing.channels_last(prediction.bfloat16())
    return [
        (x_t, half, y, row, seed, step, origin, "x0", True, None, lq[:, :3], torch.bfloat16, False),
        (x_t, prediction, y, row, seed, step, None, "residual", False, y, None, torch.float32, False),
        (x_t, prediction, y, row, seed, step, None, "epsilon", False, None, None, torch.float32, True),
        (x_t, prediction, y, row, seed, step, None, "epsilon_scaled", False, None, None, torch.float32, False),
        (x_t, half, y, row, None, None, None, "residual", False, lq, None, None, False),
    ]


def _prior_sample_examples(device: torch.device, dtype: torch.dtype) -> list[tuple[Any, ...]]:
    (y, noise, lq, _), row, seed, _, origin = _latents(device, dtype)
    return [
        (y, row, seed, origin, None, lq, torch.float16),
        (y, row, seed, None, noise, None, torch.float32),
        (y, row, None, None, noise, None, None),
    ]


def _q_sample_examples(device: torch.device, dtype: torch.dtype) -> list[tuple[Any, ...]]:
    (x0, y, noise, _), row, *_ = _latents(device, dtype)
    return [(x0, y, torch.tensor([2, 0], device=device), torch.stack([row, 1 - row, row / 2]), noise)]


_TYPE = PosteriorStepArguments._fields.index("prediction_type")


def _indexed(*args: Any) -> tuple[Any, ...]:
    """Arguments for C++, where the prediction type is an index."""
    return *args[:_TYPE], PREDICTION_TYPES.index(args[_TYPE]), *args[_TYPE + 1 :]


def _not_float32(x: Tensor, *_: Any) -> str | None:
    return None if x.dtype == torch.float32 else f"the latent is {x.dtype}"


def _triton_posterior_step() -> Kernel:
    from resshift_fast.kernels import residual_shift as kernels

    return Kernel(kernels.posterior_step, kernels.unsupported_posterior_step)


def _triton_prior_sample() -> Kernel:
    from resshift_fast.kernels import residual_shift as kernels

    return Kernel(kernels.prior_sample, kernels.unsupported_prior_sample)


def _triton_q_sample() -> Kernel:
    from resshift_fast.kernels import residual_shift as kernels

    return Kernel(kernels.q_sample, kernels.unsupported_q_sample)


_posterior_step = register(
    "posterior_step",
    posterior_step_reference,
    fake=_fake_posterior_step,
    examples=_posterior_step_examples,
    loaders={
        "cpu": Native(_indexed, _not_float32),
        "cuda": Native(_indexed, _not_float32),
        "triton": _triton_posterior_step,
    },
    dtypes=LATENT_DTYPES,
    **recomputed(posterior_step_reference),
)
_prior_sample = register(
    "prior_sample",
    prior_sample_reference,
    fake=_fake_prior_sample,
    examples=_prior_sample_examples,
    loaders={
        "cpu": Native(unsupported=_not_float32),
        "cuda": Native(unsupported=_not_float32),
        "triton": _triton_prior_sample,
    },
    dtypes=LATENT_DTYPES,
    **recomputed(prior_sample_reference),
)
_q_sample = register(
    "q_sample",
    _plain_q_sample,
    fake=_fake_q_sample,
    examples=_q_sample_examples,
    loaders={
        "cpu": Native(),
        "cuda": Native(),
        "triton": _triton_q_sample,
    },
    training=True,
    **recomputed(_plain_q_sample),
)


@checks.once
@takes(PosteriorStepArguments)
def _check_posterior_step(a: PosteriorStepArguments) -> None:
    op = "posterior_step"
    _check_latent(op, "x_t", a.x_t)
    check_prediction_type(op, a.prediction_type)
    checks.floating(op, "prediction", a.prediction)
    checks.shape(op, "prediction", a.prediction, a.x_t.shape, "like x_t")
    checks.like(op, "y", a.y, a.x_t, "x_t")
    if a.step is not None:
        checks.integers(op, "step", a.step, ())
    elif a.noise is None and not a.last:
        raise ValueError(
            f"{op}: step is None, but the noise field needs it; pass seed and step, or noise, or last=True"
        )
    checks.devices(op, a.x_t, prediction=a.prediction, step=a.step)
    _check_common(op, a.x_t, a, draws=a.noise is None and not a.last)


@overload
def posterior_step(
    x_t: Tensor,
    prediction: Tensor,
    y: Tensor,
    coefficients: Tensor,
    seed: Tensor | None = ...,
    step: Tensor | None = ...,
    *,
    origin: Tensor | None = ...,
    prediction_type: str = ...,
    clamp_x0: bool = ...,
    noise: Tensor | None = ...,
    lq: Tensor | None = ...,
    next_dtype: torch.dtype | None = ...,
    last: bool = ...,
    next_input: Literal[True] = ...,
) -> tuple[Tensor, Tensor]: ...
@overload
def posterior_step(
    x_t: Tensor,
    prediction: Tensor,
    y: Tensor,
    coefficients: Tensor,
    seed: Tensor | None = ...,
    step: Tensor | None = ...,
    *,
    origin: Tensor | None = ...,
    prediction_type: str = ...,
    clamp_x0: bool = ...,
    noise: Tensor | None = ...,
    lq: Tensor | None = ...,
    next_dtype: torch.dtype | None = ...,
    last: bool = ...,
    next_input: bool,
) -> tuple[Tensor, Tensor | None]: ...
def posterior_step(
    x_t: Tensor,
    prediction: Tensor,
    y: Tensor,
    coefficients: Tensor,
    seed: Tensor | None = None,
    step: Tensor | None = None,
    *,
    origin: Tensor | None = None,
    prediction_type: str = "x0",
    clamp_x0: bool = False,
    noise: Tensor | None = None,
    lq: Tensor | None = None,
    next_dtype: torch.dtype | None = None,
    last: bool = False,
    next_input: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """One reverse step: sample x_{t−1} and prepare the denoiser's next input.

    Args:
        x_t: float32 [B, C, H, W] (float64 in equivalence tests).
        prediction: [B, C, H, W], the denoiser's output in any floating dtype.
        y: [B, C, H, W] like x_t, the encoded low-quality image.
        coefficients: float32 (or x_t's dtype) [8], this step's row of `Schedule.table` on x_t's device.
        seed: int64 [B], each in [0, 2⁶³); not needed with `noise` or `last`.
        step: int64 [], the noise field's step: 1, 2, … in execution order; not needed with `noise` or `last`.
        origin: int64 [B, 2], (row, column) of each tile in the whole latent; None means (0, 0).
        prediction_type: "x0", "residual", "epsilon" or "epsilon_scaled".
        clamp_x0: clamp x̂_0 to [−1, 1].
        noise: [B, C, H, W] like x_t, used instead of the noise field.
        lq: [B, C', H, W], appended to the next input, or None.
        next_dtype: dtype of the next input; None means x_t's.
        last: whether it is the last step, which adds no noise.
        next_input: whether the next input is written; without it, None takes its place.

    Returns:
        (x_{t−1} like x_t and contiguous, next input [B, C + C', H, W] in next_dtype and channels-last). Differentiable
        in x_t, prediction and y.

    Raises:
        ValueError: for a shape, device or prediction type that does not fit, or a seed or step that is missing.
        TypeError: for a dtype other than those named.

    Example:
        >>> row = Schedule().table()[3]
        >>> x_t, x0, y, noise = torch.randn(4, 1, 3, 8, 8)
        >>> x_prev, _ = posterior_step(x_t, x0, y, row, noise=noise, next_input=False)
    """
    if next_input:
        next_dtype = next_dtype or x_t.dtype
    else:
        lq = next_dtype = None
    options = (origin, prediction_type, clamp_x0, noise, lq, next_dtype, last)
    arguments = (x_t, prediction, y, coefficients, seed, step, *options)
    _check_posterior_step(*arguments)
    fused = backends.fused("posterior_step", x_t.device, opaque=True)
    both = (_posterior_step if fused else posterior_step_reference)(*arguments)
    if next_input:
        return both
    return both[0], None


@checks.once
@takes(PriorSampleArguments)
def _check_prior_sample(a: PriorSampleArguments) -> None:
    _check_latent("prior_sample", "y", a.y)
    _check_common("prior_sample", a.y, a, draws=a.noise is None)


@overload
def prior_sample(
    y: Tensor,
    coefficients: Tensor,
    seed: Tensor | None = ...,
    *,
    origin: Tensor | None = ...,
    noise: Tensor | None = ...,
    lq: Tensor | None = ...,
    next_dtype: torch.dtype | None = ...,
    next_input: Literal[True] = ...,
) -> tuple[Tensor, Tensor]: ...
@overload
def prior_sample(
    y: Tensor,
    coefficients: Tensor,
    seed: Tensor | None = ...,
    *,
    origin: Tensor | None = ...,
    noise: Tensor | None = ...,
    lq: Tensor | None = ...,
    next_dtype: torch.dtype | None = ...,
    next_input: bool,
) -> tuple[Tensor, Tensor | None]: ...
def prior_sample(
    y: Tensor,
    coefficients: Tensor,
    seed: Tensor | None = None,
    *,
    origin: Tensor | None = None,
    noise: Tensor | None = None,
    lq: Tensor | None = None,
    next_dtype: torch.dtype | None = None,
    next_input: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """Start the chain: sample x_T and prepare the denoiser's first input.

    Args:
        y: float32 [B, C, H, W], the encoded low-quality image.
        coefficients: float32 [8], the first executed step's row of `Schedule.table`.
        seed, origin, noise, lq, next_dtype, next_input: as in `posterior_step`; the noise field's step is 0.

    Returns:
        (x_T like y and contiguous, first input [B, C + C', H, W] in next_dtype and channels-last). Differentiable in y.

    Raises:
        ValueError, TypeError: as in `posterior_step`.
    """
    if next_input:
        next_dtype = next_dtype or y.dtype
    else:
        lq = next_dtype = None
    arguments = (y, coefficients, seed, origin, noise, lq, next_dtype)
    _check_prior_sample(*arguments)
    run = _prior_sample if backends.fused("prior_sample", y.device, opaque=True) else prior_sample_reference
    both = run(*arguments)
    return both if next_input else (both[0], None)


@checks.once
def _check_q_sample(x0: Tensor, y: Tensor, t: Tensor, table: Tensor, noise: Tensor) -> None:
    checks.image("q_sample", "x0", x0)
    for name, tensor in (("y", y), ("noise", noise)):
        checks.like("q_sample", name, tensor, x0, "x0")
    checks.integers("q_sample", "t", t, (x0.shape[0],))
    checks.tensor("q_sample", "table", table)
    if table.dim() != 2 or table.shape[1] != NUM_COEFFICIENTS or table.shape[0] < 1:
        shape = tuple(table.shape)
        raise ValueError(f"q_sample: table has shape {shape}, expected (T, {NUM_COEFFICIENTS}) with T ≥ 1")
    checks.parameters("q_sample", x0, table=table)
    checks.devices("q_sample", x0, t=t)


def q_sample(x0: Tensor, y: Tensor, t: Tensor, table: Tensor, noise: Tensor) -> Tensor:
    """Forward process: sample x_t given x_0 and y, each image at its own step.

    Args:
        x0, y, noise: [B, C, H, W], floating point, of one shape and dtype.
        t: int64 [B], each in 0 … T − 1.
        table: [T, 8] from `Schedule.table`, float32 or x0's dtype.

    Returns:
        x_t, [B, C, H, W] like x0. Differentiable in x0, y and noise.

    Raises:
        ValueError: for a shape or device that does not fit.
        TypeError: for a dtype other than those named.
    """
    _check_q_sample(x0, y, t, table, noise)
    run = _q_sample if backends.fused("q_sample", x0.device) else q_sample_reference
    return run(x0, y, t, table, noise)


def _check_latent(op: str, name: str, x: Tensor) -> None:
    checks.image(op, name, x)
    if x.dtype not in LATENT_DTYPES:
        raise TypeError(f"{op}: {name} has dtype {x.dtype}, expected torch.float32; convert it with .float()")


def _check_common(op: str, x: Tensor, a: PosteriorStepArguments | PriorSampleArguments, *, draws: bool) -> None:
    """Check the arguments that both samplers of the chain take, for a latent x; `draws`: from the noise field."""
    batch = x.shape[0]
    checks.shape(op, "coefficients", a.coefficients, (NUM_COEFFICIENTS,), "one row of Schedule.table")
    if a.seed is not None:
        checks.integers(op, "seed", a.seed, (batch,))
    elif draws:
        raise ValueError(f"{op}: seed is None, but the noise field needs it; pass a seed or the noise")
    if a.origin is not None:
        checks.integers(op, "origin", a.origin, (batch, 2))
    if a.noise is not None:
        checks.like(op, "noise", a.noise, x, "the latent")
    if a.lq is not None:
        checks.floating(op, "lq", a.lq)
    if a.lq is not None and (a.lq.dim() != 4 or a.lq.shape[0] != batch or a.lq.shape[2:] != x.shape[2:]):
        expected = f"({batch}, C', {x.shape[2]}, {x.shape[3]})"
        raise ValueError(f"{op}: lq has shape {tuple(a.lq.shape)}, expected {expected} to match the latent")
    checks.parameters(op, x, coefficients=a.coefficients)
    checks.devices(op, x, seed=a.seed, origin=a.origin, lq=a.lq)
