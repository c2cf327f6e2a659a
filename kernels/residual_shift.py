"""Triton kernels for `posterior_step`, `prior_sample` and `q_sample`, one launch each.

A program takes BLOCK_P consecutive pixels of one image and walks over their channels in tiles of 4·BLOCK_G, so that
one Philox call serves four channels. What it reads may lie in any layout whose rows follow one another (NCHW,
channels-last, expanded), as a pixel's address is then a multiple of its number in the image; Triton chooses per
tensor which threads read what, and moves the tile between layouts on chip. The samplers of the chain write x float32
NCHW and, in the same pass, the denoiser's next input channels-last: x scaled, then the low-quality image.

Noise follows `resshift_fast.noise`, word for word. A uniform number's 24 bits (2k + 1)·2⁻²⁴ also reduce its angle
exactly: the nearest quarter turn comes off in integers, and polynomials on the remaining ±1/8 turn take the place of
`tl.cos`, whose path for huge arguments needs local memory.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from resshift_fast import schedule
from resshift_fast.kernels.launch import launch
from resshift_fast.kernels.tuning import Config, Space, bucket

ETA = tl.constexpr(schedule.ETA)
ONE_MINUS_ETA = tl.constexpr(schedule.ONE_MINUS_ETA)
KAPPA_SQRT_ETA = tl.constexpr(schedule.KAPPA_SQRT_ETA)
MEAN_X_T = tl.constexpr(schedule.MEAN_X_T)
MEAN_X0 = tl.constexpr(schedule.MEAN_X0)
NOISE_STD = tl.constexpr(schedule.NOISE_STD)
INPUT_SCALE = tl.constexpr(schedule.INPUT_SCALE)
NEXT_INPUT_SCALE = tl.constexpr(schedule.NEXT_INPUT_SCALE)
NUM_COEFFICIENTS = tl.constexpr(schedule.NUM_COEFFICIENTS)

# sin(π f/2)/f and (cos(π f/2) − 1)/f² in powers of f², minimax over |f| ≤ 1/2: within 5e-9 and 6e-11 before rounding.
SIN_0, SIN_1, SIN_2, SIN_3 = map(tl.constexpr, (1.5707964, -0.6459635, 0.07968023, -0.004602177))
COS_1, COS_2, COS_3, COS_4 = map(tl.constexpr, (-1.2337005, 0.25366923, -0.020860288, 0.00090402167))

MAX_GROUPS = 4  # groups of four channels in a tile: 16 channels, a 32-byte sector of 16-bit elements
MAX_LQ_BLOCK = 32


def _configs(elements: tuple[int, ...], channels: int) -> list[Config]:
    """Blocks of so many elements in tiles of so many channels, 8 elements a thread."""
    return [Config({"BLOCK_P": max(n // channels, 16)}, num_warps=max(1, n // 256)) for n in elements]


# Small latents need many small programs, large ones enough bytes in flight.
# Bucket: (pixels of the batch, channels of a tile, kernel).
SPACE = Space(
    "residual_shift",
    candidates=lambda key: _configs((256, 512, 1024, 2048), key[1]),
    default=lambda arch, key: _configs((1024 if key[0] >= 1 << 16 else 256,), key[1])[0],
)


@triton.jit
def noise_words(
    p_seed,  # [B], int64
    p_origin,  # [B, 2], int64 (row, column), or None
    step,
    i_image,
    i_first_pixel,
    i_first_group,
    width,
    BLOCK_P: tl.constexpr,
    BLOCK_G: tl.constexpr,
):
    """The four Philox words of BLOCK_P pixels × BLOCK_G groups of channels, uint32."""
    # One 64-bit division a program; within the block, columns count on from the first pixel's.
    row = i_first_pixel // width
    b_column = (i_first_pixel - row * width).to(tl.int32) + tl.arange(0, BLOCK_P)
    b_row_in_block = b_column // width
    b_column = (b_column - b_row_in_block * width).to(tl.uint32)
    b_row = row.to(tl.uint32) + b_row_in_block.to(tl.uint32)
    if p_origin is not None:
        b_row += tl.load(p_origin + 2 * i_image).to(tl.uint32)
        b_column += tl.load(p_origin + 2 * i_image + 1).to(tl.uint32)
    b_group = (i_first_group + tl.arange(0, BLOCK_G)).to(tl.uint32)
    return tl.philox(tl.load(p_seed + i_image), b_column[:, None], b_row[:, None], b_group[None, :], step)


@triton.jit
def box_muller(b_radius_word, b_angle_word):
    """Two standard normals from two words, within 1e-6 of exact."""
    # ((r >> 9) + 1/2) 2⁻²³ = ((r >> 8) | 1) 2⁻²⁴
    b_uniform = ((b_radius_word >> 8) | 1).to(tl.float32) * 5.9604644775390625e-08
    b_radius = tl.sqrt_rn(-2.0 * tl.log(b_uniform))
    b_turn = ((b_angle_word >> 8) | 1).to(tl.int32)  # in units of 2⁻²⁴ turns
    b_quarter = (b_turn + (1 << 21)) >> 22
    b_f = (b_turn - (b_quarter << 22)).to(tl.float32) * 2.384185791015625e-07  # quarter turns, in ±1/2
    b_f2 = b_f * b_f
    b_sin = b_f * (SIN_0 + b_f2 * (SIN_1 + b_f2 * (SIN_2 + b_f2 * SIN_3)))
    b_cos = 1.0 + b_f2 * (COS_1 + b_f2 * (COS_2 + b_f2 * (COS_3 + b_f2 * COS_4)))
    b_odd = (b_quarter & 1) == 1
    b_cosine = tl.where(b_odd, b_sin, b_cos)
    b_sine = tl.where(b_odd, b_cos, b_sin)
    b_cosine = tl.where(((b_quarter + 1) & 2) == 2, -b_cosine, b_cosine)
    b_sine = tl.where((b_quarter & 2) == 2, -b_sine, b_sine)
    return b_radius * b_cosine, b_radius * b_sine


@triton.jit
def _noise_tile(
    p_seed,  # [B], int64
    p_origin,  # [B, 2], int64, or None
    step,
    i_image,
    i_first_pixel,
    i_first_group,
    width,
    BLOCK_P: tl.constexpr,
    BLOCK_G: tl.constexpr,
):
    """The noise field of BLOCK_P pixels × 4·BLOCK_G channels, float32."""
    b_r0, b_r1, b_r2, b_r3 = noise_words(
        p_seed, p_origin, step, i_image, i_first_pixel, i_first_group, width, BLOCK_P, BLOCK_G
    )
    b_z0, b_z1 = box_muller(b_r0, b_r1)
    b_z2, b_z3 = box_muller(b_r2, b_r3)
    # The last two axes count 2k + l for z_{2k+l}: flattened, the channels are in order.
    return tl.reshape(tl.join(tl.join(b_z0, b_z2), tl.join(b_z1, b_z3)), (BLOCK_P, 4 * BLOCK_G))


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
    """Write the low-quality image behind the next input's first C channels."""
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
    p_next_input,  # [B, H, W, C + C_LQ] in memory
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
            b_x_prev += noise_std * _noise_tile(
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
    p_next_input,  # [B, H, W, C + C_LQ] in memory
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
            b_noise = _noise_tile(p_seed, p_origin, step, i_image, i_first_pixel, i_group, width, BLOCK_P, BLOCK_G)
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
    num_blocks = tl.cdiv(pixels, BLOCK_P)
    i_image = (tl.program_id(0) // num_blocks).to(tl.int64)
    b_pixel = (tl.program_id(0) % num_blocks).to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
    t = tl.load(p_t + i_image)
    # A step outside the table gives NaN instead of reading what lies beside it.
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


def _float64(**tensors: Tensor | None) -> str | None:
    for name, x in tensors.items():
        if x is not None and x.dtype == torch.float64:
            return f"{name} is float64"
    return None


def unsupported_posterior_step(
    x_t: Tensor,
    prediction: Tensor,
    y: Tensor,
    coefficients: Tensor,
    seed: Tensor,
    step: Tensor,
    origin: Tensor | None,
    prediction_type: str,
    clamp_x0: bool,
    noise: Tensor | None,
    lq: Tensor | None,
    next_dtype: torch.dtype,
    last: bool,
) -> str | None:
    """Why the kernel can't run this call, or None."""
    if next_dtype == torch.float64:
        return "next_dtype is float64"
    return _float64(x_t=x_t, prediction=prediction, lq=lq)


def unsupported_prior_sample(
    y: Tensor,
    coefficients: Tensor,
    seed: Tensor,
    origin: Tensor | None,
    noise: Tensor | None,
    lq: Tensor | None,
    next_dtype: torch.dtype,
) -> str | None:
    """Why the kernel can't run this call, or None."""
    if next_dtype == torch.float64:
        return "next_dtype is float64"
    return _float64(y=y, lq=lq)


def unsupported_q_sample(x0: Tensor, y: Tensor, t: Tensor, table: Tensor, noise: Tensor) -> str | None:
    """Why the kernel can't run this call, or None."""
    return _float64(x0=x0)


def _by_pixel(x: Tensor | None) -> tuple[Tensor | None, tuple[int, int, int]]:
    """x with rows that follow one another, copied only if they do not, and its image, channel and pixel strides."""
    if x is None:
        return None, (0, 0, 0)
    height, width = x.shape[2:]
    if height > 1 and width > 1 and x.stride(2) != width * x.stride(3):
        x = x.contiguous()
    return x, (x.stride(0), x.stride(1), x.stride(3) if width > 1 else x.stride(2))


def _next_input(x: Tensor, lq: Tensor | None, dtype: torch.dtype) -> Tensor:
    channels = x.shape[1] + (lq.shape[1] if lq is not None else 0)
    shape = (x.shape[0], channels, *x.shape[2:])
    return torch.empty(shape, dtype=dtype, device=x.device, memory_format=torch.channels_last)


def _contiguous(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


def _start(kernel, x: Tensor, arguments: tuple, outputs: tuple[Tensor, ...], groups: int, **constants) -> None:
    """Launch `kernel` over blocks of x's pixels, for tiles of 4 · `groups` channels; it writes `outputs`."""
    batch, _, height, width = x.shape

    def start(config: Config) -> tuple[Tensor, ...]:
        grid = (batch * triton.cdiv(height * width, config.blocks["BLOCK_P"]),)
        launch(kernel, grid, *arguments, **constants, **config.options)
        return outputs

    key = (bucket(batch * height * width), 4 * groups, kernel.fn.__name__)
    start(SPACE.config(key, x.device, start))


def _tile_blocks(x: Tensor, lq: Tensor | None) -> dict[str, int]:
    """Constants of the chain's samplers that follow from the numbers of channels."""
    channels, lq_channels = x.shape[1], lq.shape[1] if lq is not None else 0
    return {
        "C": channels,
        "C_LQ": lq_channels,
        "BLOCK_G": min(bucket((channels + 3) // 4), MAX_GROUPS),
        "BLOCK_L": min(bucket(max(lq_channels, 1)), MAX_LQ_BLOCK),
    }


def posterior_step(
    x_t: Tensor,
    prediction: Tensor,
    y: Tensor,
    coefficients: Tensor,
    seed: Tensor,
    step: Tensor,
    origin: Tensor | None,
    prediction_type: str,
    clamp_x0: bool,
    noise: Tensor | None,
    lq: Tensor | None,
    next_dtype: torch.dtype,
    last: bool,
) -> tuple[Tensor, Tensor]:
    """Launch one reverse step; returns (x_prev float32 [B, C, H, W] contiguous, next_input channels-last)."""
    draws = noise is None and not last
    x_t, x_strides = _by_pixel(x_t)
    prediction, prediction_strides = _by_pixel(prediction)
    y, y_strides = _by_pixel(None if prediction_type == "x0" else y)
    noise, noise_strides = _by_pixel(None if last else noise)
    lq, lq_strides = _by_pixel(lq)
    x_prev = torch.empty(x_t.shape, dtype=torch.float32, device=x_t.device)
    next_input = _next_input(x_t, lq, next_dtype)
    tensors = (x_t, prediction, y, noise, lq, coefficients.contiguous())
    field = (seed.contiguous(), step, _contiguous(origin)) if draws else (None, None, None)
    sizes = (x_t.shape[2] * x_t.shape[3], x_t.shape[3])
    strides = (*x_strides, *prediction_strides, *y_strides, *noise_strides, *lq_strides)
    blocks = _tile_blocks(x_t, lq)
    constants = {"PREDICTION_TYPE": prediction_type, "CLAMP_X0": clamp_x0, **blocks}
    arguments = (*tensors, *field, x_prev, next_input, *sizes, *strides)
    _start(posterior_step_kernel, x_t, arguments, (x_prev, next_input), blocks["BLOCK_G"], **constants)
    return x_prev, next_input


def prior_sample(
    y: Tensor,
    coefficients: Tensor,
    seed: Tensor,
    origin: Tensor | None,
    noise: Tensor | None,
    lq: Tensor | None,
    next_dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Launch the chain's start; returns (x_T float32 [B, C, H, W] contiguous, next_input channels-last)."""
    y, y_strides = _by_pixel(y)
    field = (seed.contiguous(), _contiguous(origin)) if noise is None else (None, None)
    noise, noise_strides = _by_pixel(noise)
    lq, lq_strides = _by_pixel(lq)
    x = torch.empty(y.shape, dtype=torch.float32, device=y.device)
    next_input = _next_input(y, lq, next_dtype)
    tensors = (y, noise, lq, coefficients.contiguous(), *field, x, next_input)
    sizes = (y.shape[2] * y.shape[3], y.shape[3])
    blocks = _tile_blocks(y, lq)
    arguments = (*tensors, *sizes, *y_strides, *noise_strides, *lq_strides)
    _start(prior_sample_kernel, y, arguments, (x, next_input), blocks["BLOCK_G"], **blocks)
    return x, next_input


def q_sample(x0: Tensor, y: Tensor, t: Tensor, table: Tensor, noise: Tensor) -> Tensor:
    """Launch the forward process; returns x_t like x0."""
    x_t = torch.empty_like(x0)
    out, out_strides = _by_pixel(x_t)
    x0, x_strides = _by_pixel(x0)
    y, y_strides = _by_pixel(y)
    noise, noise_strides = _by_pixel(noise)
    groups = min(bucket((x0.shape[1] + 3) // 4), MAX_GROUPS)
    tensors = (x0, y, noise, t.contiguous(), table.contiguous(), out)
    sizes = (x0.shape[2] * x0.shape[3], table.shape[0])
    arguments = (*tensors, *sizes, *x_strides, *y_strides, *noise_strides, *out_strides)
    _start(q_sample_kernel, x0, arguments, (out,), groups, C=x0.shape[1], BLOCK_C=4 * groups)
    return out if out is x_t else x_t.copy_(out)
