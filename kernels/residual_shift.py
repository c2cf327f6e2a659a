"""Triton kernels for `posterior_step`, `prior_sample` and `q_sample`, one launch each.

A program takes BLOCK_P consecutive pixels of one image and iterates over their channels in tiles of 4·BLOCK_G, so that
one Philox call makes the noise of four channels. Inputs may have any layout whose rows follow one another (NCHW,
channels-last, expanded), because a pixel's offset is then a multiple of its index in the image; Triton chooses for each
tensor which thread reads what, and converts the tile between layouts on chip. The samplers of the chain write x float32
NCHW and, in the same pass, the denoiser's next input channels-last: x scaled, then the low-quality image.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from resshift_fast.diffusion import coefficients
from resshift_fast.kernels.dependents import wait_for_previous
from resshift_fast.kernels.launch import Start
from resshift_fast.kernels.plans import contiguous, planned
from resshift_fast.kernels.residual_shift_noise import noise_tile
from resshift_fast.kernels.tuning import Config, Space, bucket

ETA = tl.constexpr(coefficients.ETA)
ONE_MINUS_ETA = tl.constexpr(coefficients.ONE_MINUS_ETA)
KAPPA_SQRT_ETA = tl.constexpr(coefficients.KAPPA_SQRT_ETA)
MEAN_X_T = tl.constexpr(coefficients.MEAN_X_T)
MEAN_X0 = tl.constexpr(coefficients.MEAN_X0)
NOISE_STD = tl.constexpr(coefficients.NOISE_STD)
INPUT_SCALE = tl.constexpr(coefficients.INPUT_SCALE)
NEXT_INPUT_SCALE = tl.constexpr(coefficients.NEXT_INPUT_SCALE)
NUM_COEFFICIENTS = tl.constexpr(coefficients.NUM_COEFFICIENTS)

MAX_GROUPS = 4  # groups of four channels in a tile: 16 channels, a 32-byte sector of 16-bit elements
MAX_LQ_BLOCK = 32


def _configs(elements: tuple[int, ...], channels: int) -> list[Config]:
    """Blocks of so many elements in tiles of so many channels, with 8 elements a thread."""
    return [Config({"BLOCK_P": max(n // channels, 16)}, num_warps=max(1, n // 256)) for n in elements]


# Small latents need many small programs, large ones enough loads in flight.
# Bucket: (pixels of the batch, channels of a tile, kernel).
SPACE = Space(
    "residual_shift",
    candidates=lambda key: _configs((256, 512, 1024, 2048), key[1]),
    default=lambda arch, key: _configs((1024 if key[0] >= 1 << 16 else 256,), key[1])[0],
)


@triton.jit
def _load_tile(p_x, i_image, b_channel, b_pixel, stride_b, stride_c, stride_p, m_x):
    """Float32 tile [BLOCK_P, channels] of a tensor in any layout whose rows follow one another."""
    offsets = i_image * stride_b + b_channel.to(tl.int64)[None, :] * stride_c + b_pixel[:, None] * stride_p
    return tl.load(p_x + offsets, mask=m_x, other=0.0).to(tl.float32)


@triton.jit
def _store_sample(p_x, p_next_input, b_x, scale, i_image, b_channel, b_pixel, pixels, m_x, C, C_NEXT):
    """Write a tile of x to [B, C, H, W] and, scaled, to the next input's first channels."""
    offsets = (i_image * C + b_channel.to(tl.int64))[None, :] * pixels + b_pixel[:, None]
    tl.store(p_x + offsets, b_x, mask=m_x)
    if p_next_input is not None:
        offsets = (i_image * pixels + b_pixel)[:, None] * C_NEXT + b_channel[None, :]
        tl.store(p_next_input + offsets, (b_x * scale).to(p_next_input.dtype.element_ty), mask=m_x)


@triton.jit
def _copy_lq(
    p_lq,  # [B, C_LQ, H, W], or None
    p_next_input,  # [B, H, W, C + C_LQ] in memory
    i_image,
    b_pixel,
    pixels,
    stride_b,
    stride_c,
    stride_p,
    C: tl.constexpr,
    C_LQ: tl.constexpr,
    BLOCK_L: tl.constexpr,
):
    """Write the low-quality image to the next input, after its first C channels."""
    if p_lq is not None:
        for i_channel in range(0, C_LQ, BLOCK_L):
            b_channel = i_channel + tl.arange(0, BLOCK_L)
            m_lq = (b_pixel < pixels)[:, None] & (b_channel < C_LQ)[None, :]
            b_lq = _load_tile(p_lq, i_image, b_channel, b_pixel, stride_b, stride_c, stride_p, m_lq)
            offsets = (i_image * pixels + b_pixel)[:, None] * (C + C_LQ) + (C + b_channel)[None, :]
            tl.store(p_next_input + offsets, b_lq.to(p_next_input.dtype.element_ty), mask=m_lq)


@triton.jit
def posterior_step_kernel(
    p_x_t,  # [B, C, H, W], float32
    p_prediction,  # [B, C, H, W]
    p_y,  # [B, C, H, W], float32, or None where x̂_0 does not need it
    p_noise,  # [B, C, H, W], float32, or None
    p_lq,  # [B, C_LQ, H, W], or None
    p_coefficients,  # [8], float32
    p_seed,  # [B], int64, or None: no noise is drawn
    p_step,  # [], int64, or None like p_seed
    p_origin,  # [B, 2], int64, or None
    p_x_prev,  # [B, C, H, W] in memory, float32
    p_next_input,  # [B, H, W, C + C_LQ] in memory, or None
    pixels,
    width,
    stride_xb,
    stride_xc,
    stride_xp,
    stride_pb,
    stride_pc,
    stride_pp,
    stride_yb,
    stride_yc,
    stride_yp,
    stride_nb,
    stride_nc,
    stride_np,
    stride_lb,
    stride_lc,
    stride_lp,
    PREDICTION_TYPE: tl.constexpr,
    CLAMP_X0: tl.constexpr,
    C: tl.constexpr,
    C_LQ: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    wait_for_previous()
    num_blocks = tl.cdiv(pixels, BLOCK_P)
    i_image = (tl.program_id(0) // num_blocks).to(tl.int64)
    i_first_pixel = (tl.program_id(0) % num_blocks).to(tl.int64) * BLOCK_P
    b_pixel = i_first_pixel + tl.arange(0, BLOCK_P)
    mean_x_t = tl.load(p_coefficients + MEAN_X_T)
    mean_x0 = tl.load(p_coefficients + MEAN_X0)
    noise_std = tl.load(p_coefficients + NOISE_STD)
    for i_group in range(0, (C + 3) // 4, BLOCK_G):
        b_channel = 4 * i_group + tl.arange(0, 4 * BLOCK_G)
        m_x = (b_pixel < pixels)[:, None] & (b_channel < C)[None, :]
        b_x_t = _load_tile(p_x_t, i_image, b_channel, b_pixel, stride_xb, stride_xc, stride_xp, m_x)
        b_x0 = _load_tile(p_prediction, i_image, b_channel, b_pixel, stride_pb, stride_pc, stride_pp, m_x)
        if p_y is not None:
            b_y = _load_tile(p_y, i_image, b_channel, b_pixel, stride_yb, stride_yc, stride_yp, m_x)
            if PREDICTION_TYPE == "residual":
                b_x0 = b_y - b_x0
            else:
                if PREDICTION_TYPE == "epsilon":
                    b_x0 *= tl.load(p_coefficients + KAPPA_SQRT_ETA)
                b_x0 = b_x_t - tl.load(p_coefficients + ETA) * b_y - b_x0
                b_x0 *= tl.div_rn(1.0, tl.load(p_coefficients + ONE_MINUS_ETA))
        if CLAMP_X0:  # NaN passes through
            b_x0 = tl.where(b_x0 < -1.0, -1.0, tl.where(b_x0 > 1.0, 1.0, b_x0))
        b_x_prev = mean_x_t * b_x_t + mean_x0 * b_x0
        if p_noise is not None:
            b_noise = _load_tile(p_noise, i_image, b_channel, b_pixel, stride_nb, stride_nc, stride_np, m_x)
            b_x_prev += noise_std * b_noise
        elif p_seed is not None:
            step = tl.load(p_step).to(tl.uint32)
            b_x_prev += noise_std * noise_tile(
                p_seed, p_origin, step, i_image, i_first_pixel, i_group, width, BLOCK_P, BLOCK_G
            )
        scale = tl.load(p_coefficients + NEXT_INPUT_SCALE)
        _store_sample(p_x_prev, p_next_input, b_x_prev, scale, i_image, b_channel, b_pixel, pixels, m_x, C, C + C_LQ)
    _copy_lq(p_lq, p_next_input, i_image, b_pixel, pixels, stride_lb, stride_lc, stride_lp, C, C_LQ, BLOCK_L)


@triton.jit
def prior_sample_kernel(
    p_y,  # [B, C, H, W], float32
    p_noise,  # [B, C, H, W], float32, or None
    p_lq,  # [B, C_LQ, H, W], or None
    p_coefficients,  # [8], float32
    p_seed,  # [B], int64, or None where noise is given
    p_origin,  # [B, 2], int64, or None
    p_x,  # [B, C, H, W] in memory, float32
    p_next_input,  # [B, H, W, C + C_LQ] in memory, or None
    pixels,
    width,
    stride_yb,
    stride_yc,
    stride_yp,
    stride_nb,
    stride_nc,
    stride_np,
    stride_lb,
    stride_lc,
    stride_lp,
    C: tl.constexpr,
    C_LQ: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    wait_for_previous()
    num_blocks = tl.cdiv(pixels, BLOCK_P)
    i_image = (tl.program_id(0) // num_blocks).to(tl.int64)
    i_first_pixel = (tl.program_id(0) % num_blocks).to(tl.int64) * BLOCK_P
    b_pixel = i_first_pixel + tl.arange(0, BLOCK_P)
    noise_std = tl.load(p_coefficients + KAPPA_SQRT_ETA)
    for i_group in range(0, (C + 3) // 4, BLOCK_G):
        b_channel = 4 * i_group + tl.arange(0, 4 * BLOCK_G)
        m_x = (b_pixel < pixels)[:, None] & (b_channel < C)[None, :]
        b_x = _load_tile(p_y, i_image, b_channel, b_pixel, stride_yb, stride_yc, stride_yp, m_x)
        if p_noise is not None:
            b_noise = _load_tile(p_noise, i_image, b_channel, b_pixel, stride_nb, stride_nc, stride_np, m_x)
        else:
            step = tl.full((), 0, tl.uint32)
            b_noise = noise_tile(p_seed, p_origin, step, i_image, i_first_pixel, i_group, width, BLOCK_P, BLOCK_G)
        b_x += noise_std * b_noise
        scale = tl.load(p_coefficients + INPUT_SCALE)
        _store_sample(p_x, p_next_input, b_x, scale, i_image, b_channel, b_pixel, pixels, m_x, C, C + C_LQ)
    _copy_lq(p_lq, p_next_input, i_image, b_pixel, pixels, stride_lb, stride_lc, stride_lp, C, C_LQ, BLOCK_L)


@triton.jit
def q_sample_kernel(
    p_x0,  # [B, C, H, W]
    p_y,  # [B, C, H, W]
    p_noise,  # [B, C, H, W]
    p_t,  # [B], int64
    p_table,  # [T, 8]
    p_x_t,  # [B, C, H, W]
    pixels,
    num_steps,
    stride_xb,
    stride_xc,
    stride_xp,
    stride_yb,
    stride_yc,
    stride_yp,
    stride_nb,
    stride_nc,
    stride_np,
    stride_ob,
    stride_oc,
    stride_op,
    C: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    wait_for_previous()
    num_blocks = tl.cdiv(pixels, BLOCK_P)
    i_image = (tl.program_id(0) // num_blocks).to(tl.int64)
    b_pixel = (tl.program_id(0) % num_blocks).to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
    t = tl.load(p_t + i_image)
    # A step outside the table gives NaN instead of a read out of bounds.
    in_table = (t >= 0) & (t < num_steps)
    p_row = p_table + t * NUM_COEFFICIENTS
    eta = tl.load(p_row + ETA, mask=in_table, other=float("nan")).to(tl.float32)
    noise_std = tl.load(p_row + KAPPA_SQRT_ETA, mask=in_table, other=float("nan")).to(tl.float32)
    for i_channel in range(0, C, BLOCK_C):
        b_channel = i_channel + tl.arange(0, BLOCK_C)
        m_x = (b_pixel < pixels)[:, None] & (b_channel < C)[None, :]
        b_x0 = _load_tile(p_x0, i_image, b_channel, b_pixel, stride_xb, stride_xc, stride_xp, m_x)
        b_y = _load_tile(p_y, i_image, b_channel, b_pixel, stride_yb, stride_yc, stride_yp, m_x)
        b_noise = _load_tile(p_noise, i_image, b_channel, b_pixel, stride_nb, stride_nc, stride_np, m_x)
        b_x_t = b_x0 + eta * (b_y - b_x0) + noise_std * b_noise
        offsets = i_image * stride_ob + b_channel.to(tl.int64)[None, :] * stride_oc + b_pixel[:, None] * stride_op
        tl.store(p_x_t + offsets, b_x_t.to(p_x_t.dtype.element_ty), mask=m_x)


def unsupported_posterior_step(x_t: Tensor, prediction: Tensor, *others: Any) -> str | None:
    """Why the kernel can't run this call, or None."""
    lq, next_dtype = others[-3], others[-2]
    dtypes = x_t.dtype, prediction.dtype, next_dtype, None if lq is None else lq.dtype
    return _float64(dtypes, ("x_t", "prediction", "next_dtype", "lq"))


def unsupported_prior_sample(y: Tensor, *others: Any) -> str | None:
    """Why the kernel can't run this call, or None."""
    lq, next_dtype = others[-2:]
    return _float64((y.dtype, next_dtype, None if lq is None else lq.dtype), ("y", "next_dtype", "lq"))


def unsupported_q_sample(x0: Tensor, *_: object) -> str | None:
    """Why the kernel can't run this call, or None."""
    return _float64((x0.dtype,), ("x0",))


def _float64(dtypes: tuple[torch.dtype | None, ...], names: tuple[str, ...]) -> str | None:
    """That the first which is float64 is, or None; this is asked at every call."""
    return f"{names[dtypes.index(torch.float64)]} is float64" if torch.float64 in dtypes else None


class _Plan(NamedTuple):
    """A start, and the indices of the images whose rows do not follow one another, which are copied for it."""

    start: Start
    copied: tuple[int, ...]

    def images(self, given: tuple[Tensor | None, ...]) -> Sequence[Tensor | None]:
        """The images as the kernel takes them."""
        return [contiguous(x) if i in self.copied else x for i, x in enumerate(given)] if self.copied else given


def _layouts(images: tuple[Tensor | None, ...]) -> tuple[tuple[int, ...] | None, ...]:
    """The strides of each image, by which a plan is found."""
    return tuple([None if x is None else x.stride() for x in images])  # quicker than from a generator


def _by_pixel(
    layouts: tuple[tuple[int, ...] | None, ...], channels: tuple[int, ...], height: int, width: int
) -> tuple[list[int], tuple[int, ...]]:
    """(image, channel and pixel strides of all images, 0 for None; indices of the images that have to be copied)."""
    strides: list[int] = []
    copied: tuple[int, ...] = ()
    for i, layout in enumerate(layouts):
        if layout is None:
            strides += 0, 0, 0
            continue
        image, channel, row, column = layout
        if row != width * column and height > 1 and width > 1:
            copied += (i,)
            image, channel, column = channels[i] * height * width, height * width, 1
        strides += image, channel, column if width > 1 else row
    return strides, copied


def _new_latent(x: Tensor) -> Tensor:
    """A new contiguous float32 tensor like x."""
    if x.dtype is torch.float32 and x.is_contiguous():
        return torch.empty_like(x)  # options would take longer to parse
    return torch.empty_like(x, dtype=torch.float32, memory_format=torch.contiguous_format)


def _next_input(shape: tuple[int, ...], lq_channels: int, dtype: torch.dtype | None, *images: Tensor) -> Tensor | None:
    """A new tensor for the denoiser's next input, channels-last, for latents of this shape, on the images' device."""
    if dtype is None:
        return None
    batch, channels, height, width = shape
    channels += lq_channels
    size = batch, channels, height, width
    strides = (height * width * channels, 1, width * channels, channels)  # a memory format would take longer to parse
    for x in images:
        if x.dtype is dtype:
            return x.new_empty_strided(size, strides)  # like the memory format, options would take longer to parse
    return x.new_empty_strided(size, strides, dtype=dtype)


def _groups(channels: int) -> int:
    """Groups of four channels in a tile."""
    return min(bucket((channels + 3) // 4), MAX_GROUPS)


def _bucket_of(kernel: Any) -> Callable[..., tuple]:
    """The bucket function of one of the kernels that share the space."""

    def of(shape: tuple[int, ...], *_: object) -> tuple[int, int, str]:
        batch, channels, height, width = shape
        return bucket(batch * height * width), 4 * _groups(channels), kernel.fn.__name__

    return of


def _plan(
    kernel: Any,
    config: Config,
    shape: tuple[int, ...],
    layouts: tuple[tuple[int, ...] | None, ...],
    channels: tuple[int, ...],
    value: int,
    **constants: Any,
) -> _Plan:
    """A plan whose programs take blocks of the pixels of latents of this shape; `value` is the kernel's second scalar.

    Args:
        layouts, channels: the strides of each image, None where it is, and its number of channels.
    """
    batch, latent_channels, height, width = shape
    strides, copied = _by_pixel(layouts, channels, height, width)
    grid = (batch * triton.cdiv(height * width, config.blocks["BLOCK_P"]),)
    scalars = (height * width, value, *strides)
    return _Plan(Start(kernel, grid, *scalars, C=latent_channels, **constants, **config.options), copied)


def _sampler(
    kernel: Any,
    config: Config,
    shape: tuple[int, ...],
    lq_channels: int,
    layouts: tuple[tuple[int, ...] | None, ...],
    **constants: Any,
) -> _Plan:
    """A plan of one of the chain's samplers, whose last image is the low-quality one."""
    blocks = {"BLOCK_G": _groups(shape[1]), "BLOCK_L": min(bucket(max(lq_channels, 1)), MAX_LQ_BLOCK)}
    channels = (*(len(layouts) - 1) * (shape[1],), lq_channels)
    return _plan(kernel, config, shape, layouts, channels, shape[3], C_LQ=lq_channels, **blocks, **constants)


@planned(SPACE, _bucket_of(posterior_step_kernel))
def _posterior_step(
    config: Config,
    shape: tuple[int, ...],
    lq_channels: int,
    layouts: tuple[tuple[int, ...] | None, ...],
    prediction_type: str,
    clamp_x0: bool,
) -> _Plan:
    constants = {"PREDICTION_TYPE": prediction_type, "CLAMP_X0": clamp_x0}
    return _sampler(posterior_step_kernel, config, shape, lq_channels, layouts, **constants)


@planned(SPACE, _bucket_of(prior_sample_kernel))
def _prior_sample(
    config: Config, shape: tuple[int, ...], lq_channels: int, layouts: tuple[tuple[int, ...] | None, ...]
) -> _Plan:
    return _sampler(prior_sample_kernel, config, shape, lq_channels, layouts)


@planned(SPACE, _bucket_of(q_sample_kernel))
def _q_sample(
    config: Config, shape: tuple[int, ...], num_steps: int, layouts: tuple[tuple[int, ...] | None, ...]
) -> _Plan:
    channels = len(layouts) * (shape[1],)
    return _plan(q_sample_kernel, config, shape, layouts, channels, num_steps, BLOCK_C=4 * _groups(shape[1]))


def posterior_step(
    x_t: Tensor,
    prediction: Tensor,
    y: Tensor,
    coefficients: Tensor,
    seed: Tensor | None,
    step: Tensor | None,
    origin: Tensor | None,
    prediction_type: str,
    clamp_x0: bool,
    noise: Tensor | None,
    lq: Tensor | None,
    next_dtype: torch.dtype | None,
    last: bool,
) -> tuple[Tensor, Tensor]:
    """Launch one reverse step; returns (x_prev float32 [B, C, H, W] contiguous, next_input channels-last).

    Without a next_dtype the next input is not written, and an empty tensor is returned in its place.
    """
    draws = noise is None and not last
    shape = x_t.shape
    given = (x_t, prediction, None if prediction_type == "x0" else y, None if last else noise, lq)
    lq_channels = 0 if lq is None else lq.size(1)  # quicker than shape
    x_prev = _new_latent(x_t)
    next_input = _next_input(shape, lq_channels, next_dtype, x_t, prediction)
    coefficients = coefficients.contiguous()
    field = (seed.contiguous(), step, contiguous(origin)) if draws and seed is not None else (None, None, None)

    def run(plan: _Plan) -> tuple[Tensor, ...]:
        plan.start(*plan.images(given), coefficients, *field, x_prev, next_input)
        return (x_prev,) if next_input is None else (x_prev, next_input)

    run(_posterior_step(x_t.device, shape, lq_channels, _layouts(given), prediction_type, clamp_x0, trial=run))
    return x_prev, x_t.new_empty(0) if next_input is None else next_input


def prior_sample(
    y: Tensor,
    coefficients: Tensor,
    seed: Tensor | None,
    origin: Tensor | None,
    noise: Tensor | None,
    lq: Tensor | None,
    next_dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor]:
    """Launch the chain's start; returns (x_T float32 [B, C, H, W] contiguous, next_input channels-last).

    next_dtype is as in `posterior_step`.
    """
    field = (contiguous(seed), contiguous(origin)) if noise is None else (None, None)
    given, shape = (y, noise, lq), y.shape
    lq_channels = 0 if lq is None else lq.size(1)  # quicker than shape
    x = _new_latent(y)
    next_input = _next_input(shape, lq_channels, next_dtype, y)
    coefficients = coefficients.contiguous()

    def run(plan: _Plan) -> tuple[Tensor, ...]:
        plan.start(*plan.images(given), coefficients, *field, x, next_input)
        return (x,) if next_input is None else (x, next_input)

    run(_prior_sample(y.device, shape, lq_channels, _layouts(given), trial=run))
    return x, y.new_empty(0) if next_input is None else next_input


def q_sample(x0: Tensor, y: Tensor, t: Tensor, table: Tensor, noise: Tensor) -> Tensor:
    """Launch the forward process; returns x_t like x0."""
    x_t = torch.empty_like(x0)
    given = (x0, y, noise, x_t)
    t, table = t.contiguous(), table.contiguous()

    def run(plan: _Plan) -> tuple[Tensor]:
        *images, out = plan.images(given)
        assert out is not None
        plan.start(*images, t, table, out)
        return (out if out is x_t else x_t.copy_(out),)

    return run(_q_sample(x0.device, x0.shape, table.shape[0], _layouts(given), trial=run))[0]
