"""Calls of the launchers whose kernels are compiled: the shapes of realsr-x4-v3 on meta tensors.

Every kernel appears in float32, float16 and bfloat16. `SWEEP` has cases that take too long for every run: sizes that
models may choose freely and that registers and shared memory depend on. `LAUNCH_CASES` has those of them that need the
most. `EXEMPTIONS` lists exceptions from limits, with the reasons.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from itertools import product

import torch
from torch import Tensor

from .budgets import Exemption

FLOAT32, FLOAT16, BFLOAT16 = torch.float32, torch.float16, torch.bfloat16
ALL = (FLOAT32, FLOAT16, BFLOAT16)
BF16 = (BFLOAT16,)
FEW = (FLOAT32, BFLOAT16)  # float16 compiles to the same code except for the names of instructions


@dataclass(frozen=True)
class LaunchCase:
    """One call of a launcher.

    Args:
        launcher: "module.function" in `package`.
        case: shape and options in a few words.
        dtype: of the activations.
        arguments: dtype to the launcher's arguments, on the meta device.
        package: prefix of the module's name, with its dot.
    """

    launcher: str
    case: str
    dtype: torch.dtype
    arguments: Callable[[torch.dtype], tuple]
    package: str = "resshift_fast.kernels."

    @property
    def name(self) -> str:
        """Launcher, case and dtype: "group_norm.forward-160x64x64-float16"."""
        return f"{self.launcher}-{self.case}-{str(self.dtype).removeprefix('torch.')}"

    def call(self) -> None:
        """Call the launcher; within `launch.record()`, since a launch needs a GPU."""
        module, function = self.launcher.rsplit(".", 1)
        getattr(import_module(self.package + module), function)(*self.arguments(self.dtype))


def tensor(*shape: int, dtype: torch.dtype = FLOAT32) -> Tensor:
    """A contiguous tensor without memory."""
    return torch.empty(shape, dtype=dtype, device="meta")


def image(*shape: int, dtype: torch.dtype) -> Tensor:
    """A channels-last tensor [B, C, H, W] without memory."""
    return torch.empty(shape, dtype=dtype, device="meta", memory_format=torch.channels_last)


def _group_norm(*shape: int, modulated: bool = False, activation: str | None = "silu", nchw: bool = False):
    channels = shape[1]

    def arguments(dtype: torch.dtype) -> tuple:
        x = tensor(*shape, dtype=dtype) if nchw else image(*shape, dtype=dtype)
        weight, bias = tensor(channels, dtype=dtype), tensor(channels, dtype=dtype)
        # The two halves of one linear layer's output.
        scale, shift = tensor(shape[0], 2 * channels, dtype=dtype).chunk(2, dim=1) if modulated else (None, None)
        return x, 32, weight, bias, 1e-5, scale, shift, activation

    return arguments


def _group_norm_backward(*shape: int, **options):
    def arguments(dtype: torch.dtype) -> tuple:
        x, groups, weight, bias, _, *modulation = _group_norm(*shape, **options)(dtype)
        mean, rstd = tensor(shape[0], groups), tensor(shape[0], groups)
        return torch.empty_like(x), x, mean, rstd, groups, weight, bias, *modulation

    return arguments


def _add_concat_group_norm(*shape: int, skip: int = 0):
    """A concatenation with `skip` channels, or a sum if there are none."""
    batch, channels, height, width = shape

    def arguments(dtype: torch.dtype) -> tuple:
        other = image(batch, skip or channels, height, width, dtype=dtype)
        weight, bias = (tensor(channels + skip, dtype=dtype) for _ in range(2))
        mode = "concat" if skip else "add"
        return image(*shape, dtype=dtype), other, 32, weight, bias, 1e-5, mode, None, None, "silu"

    return arguments


def _window_attention(*shape: int, heads: int, window: int = 8, shift: int = 0, mask: str = "resshift"):
    batch, height, width, channels = shape

    def arguments(dtype: torch.dtype) -> tuple:
        qkv = tensor(batch, height, width, 3 * channels, dtype=dtype)
        table = tensor((2 * window - 1) ** 2, heads, dtype=dtype)
        return qkv, table, heads, window, shift, mask

    return arguments


def _window_backward(*shape: int, **options):
    return lambda dtype: (tensor(*shape, dtype=dtype), *_window_attention(*shape, **options)(dtype))


def _windows(way: str, window: int, head_dim: int, dtypes: tuple, side: int = 4) -> tuple:
    """A row of the table: two heads of an image of side × side shifted windows, "forward" or "backward"."""
    shape, options = (1, side * window, side * window, 2 * head_dim), {"window": window, "shift": window // 2}
    arguments = _window_attention if way == "forward" else _window_backward
    case = f"window{window}-head{head_dim}-swin" + (f"-{side}x{side}" if side > 4 else "")
    return f"window_attention.{way}", case, dtypes, arguments(*shape, heads=2, mask="swin", **options)


def _swin_mlp(*shape: int):
    channels, hidden = shape[1], 4 * shape[1]

    def arguments(dtype: torch.dtype) -> tuple:
        norm = tensor(channels, dtype=dtype), tensor(channels, dtype=dtype)
        fc1 = tensor(hidden, channels, dtype=dtype), tensor(hidden, dtype=dtype)
        fc2 = tensor(channels, hidden, dtype=dtype), tensor(channels, dtype=dtype)
        return image(*shape, dtype=dtype), 32, *norm, *fc1, *fc2, 1e-5

    return arguments


def _pointwise_conv2d(*shape: int, out: int, norm: bool = False, residual: bool = False):
    batch, channels, height, width = shape

    def arguments(dtype: torch.dtype) -> tuple:
        added = image(batch, out, height, width, dtype=dtype) if residual else None
        affine = (tensor(channels, dtype=dtype), tensor(channels, dtype=dtype)) if norm else (None, None)
        weight, bias = tensor(out, channels, dtype=dtype), tensor(out, dtype=dtype)
        return image(*shape, dtype=dtype), weight, bias, added, 32 if norm else 0, *affine, 1e-5

    return arguments


def _vector_quantize(*shape: int, codes: int):
    return lambda dtype: (image(*shape, dtype=dtype), tensor(codes, shape[1], dtype=dtype))


def _spatial_attention(*shape: int):
    return lambda dtype: tuple(image(*shape, dtype=dtype) for _ in range(3))


def _upsample_conv2d(*shape: int, out: int):
    return lambda dtype: (
        image(*shape, dtype=dtype),
        tensor(out, shape[1], 3, 3, dtype=dtype),
        tensor(out, dtype=dtype),
    )


def _latents(dtype: torch.dtype, side: int) -> tuple[Tensor, Tensor]:
    """Latent and low-quality image of a chain; the denoiser's prediction is in `dtype`, these are float32."""
    return tensor(1, 3, side, side), tensor(1, 3, side, side, dtype=dtype)


def _posterior_step(side: int, *, origin: bool = False, given_noise: bool = False, last: bool = False):
    def arguments(dtype: torch.dtype) -> tuple:
        x_t, lq = _latents(dtype, side)
        prediction, row = image(1, 3, side, side, dtype=dtype), tensor(_num_coefficients())
        seed, step, corner = (tensor(*shape, dtype=torch.int64) for shape in ((1,), (), (1, 2)))
        noise = torch.empty_like(x_t) if given_noise else None
        chosen = corner if origin else None
        return x_t, prediction, torch.empty_like(x_t), row, seed, step, chosen, "x0", False, noise, lq, dtype, last

    return arguments


def _prior_sample(side: int, *, origin: bool = False, given_noise: bool = False):
    def arguments(dtype: torch.dtype) -> tuple:
        y, lq = _latents(dtype, side)
        seed, corner = tensor(1, dtype=torch.int64), tensor(1, 2, dtype=torch.int64)
        noise = torch.empty_like(y) if given_noise else None
        return y, tensor(_num_coefficients()), seed, corner if origin else None, noise, lq, dtype

    return arguments


def _q_sample(side: int):
    def arguments(dtype: torch.dtype) -> tuple:
        x0, y, noise = (tensor(8, 3, side, side, dtype=dtype) for _ in range(3))
        return x0, y, tensor(8, dtype=torch.int64), tensor(4, _num_coefficients()), noise

    return arguments


def _num_coefficients() -> int:
    from resshift_fast.diffusion.schedule import NUM_COEFFICIENTS

    return NUM_COEFFICIENTS


# Direction, window, head size, dtypes, windows along a side: the most demanding case for each number of tokens.
_WORST_WINDOWS = (
    *(("forward", window, head_dim, FEW) for window in (11, 16) for head_dim in (16, 64)),
    ("forward", 11, 32, FEW),
    ("forward", 8, 16, FEW),
    ("forward", 8, 64, (FLOAT32,)),
    ("forward", 5, 64, (FLOAT32,)),
    ("forward", 4, 16, BF16, 64),
    *(("backward", window, head_dim, FEW) for window in (11, 16) for head_dim in (16, 64)),
    ("backward", 11, 32, FEW),
    *(("backward", 8, head_dim, FEW) for head_dim in (16, 64)),
    ("backward", 7, 32, BF16),
    *(("backward", window, head_dim, (FLOAT32,)) for window in (4, 5) for head_dim in (16, 64)),
)

# (launcher, case, dtypes, arguments)
_TABLE = (
    ("group_norm.forward", "160x64x64-modulated", ALL, _group_norm(1, 160, 64, 64, modulated=True)),
    ("group_norm.forward", "960x16x16", ALL, _group_norm(1, 960, 16, 16)),
    ("group_norm.forward", "640x8x8-batch4", BF16, _group_norm(4, 640, 8, 8)),
    ("group_norm.forward", "512x64x64-plain", BF16, _group_norm(1, 512, 64, 64, activation=None)),
    ("group_norm.forward", "128x256x256", ALL, _group_norm(1, 128, 256, 256)),
    ("group_norm.forward", "160x64x64-nchw", ALL, _group_norm(1, 160, 64, 64, nchw=True)),
    ("group_norm.forward", "128x256x256-nchw", ALL, _group_norm(1, 128, 256, 256, nchw=True)),
    ("group_norm.backward", "160x64x64-modulated", ALL, _group_norm_backward(1, 160, 64, 64, modulated=True)),
    ("group_norm.backward", "640x8x8-batch4", BF16, _group_norm_backward(4, 640, 8, 8)),
    ("group_norm.backward", "128x256x256", ALL, _group_norm_backward(1, 128, 256, 256)),
    ("group_norm.backward", "160x64x64-nchw", ALL, _group_norm_backward(1, 160, 64, 64, nchw=True)),
    ("add_concat_group_norm.forward", "128x256x256-add", ALL, _add_concat_group_norm(1, 128, 256, 256)),
    ("add_concat_group_norm.forward", "512x16x16-add-batch64", BF16, _add_concat_group_norm(64, 512, 16, 16)),
    ("add_concat_group_norm.forward", "320x64x64-concat-160", ALL, _add_concat_group_norm(1, 320, 64, 64, skip=160)),
    ("add_concat_group_norm.forward", "320x32x32-concat-160", BF16, _add_concat_group_norm(1, 320, 32, 32, skip=160)),
    ("add_concat_group_norm.forward", "640x8x8-concat-640", ALL, _add_concat_group_norm(1, 640, 8, 8, skip=640)),
    ("window_attention.forward", "192x64x64-shift4", ALL, _window_attention(1, 64, 64, 192, heads=6, shift=4)),
    ("window_attention.forward", "192x256x256", BF16, _window_attention(1, 256, 256, 192, heads=6)),
    ("window_attention.forward", "192x64x64-window16", ALL, _window_attention(1, 64, 64, 192, heads=6, window=16)),
    ("window_attention.forward", "256x64x64-head64", BF16, _window_attention(1, 64, 64, 256, heads=4, shift=4)),
    ("window_attention.forward", "64x32x32-window4", BF16, _window_attention(1, 32, 32, 64, heads=4, window=4)),
    ("window_attention.backward", "192x64x64-shift4", ALL, _window_backward(1, 64, 64, 192, heads=6, shift=4)),
    ("window_attention.backward", "192x64x64-window16", ALL, _window_backward(1, 64, 64, 192, heads=6, window=16)),
    *(_windows(*way) for way in _WORST_WINDOWS),
    ("swin_mlp.forward", "192x64x64", ALL, _swin_mlp(1, 192, 64, 64)),
    ("swin_mlp.forward", "192x8x8", BF16, _swin_mlp(1, 192, 8, 8)),
    ("pointwise_conv2d.forward", "192x64x64-to-576-norm", ALL, _pointwise_conv2d(1, 192, 64, 64, out=576, norm=True)),
    (
        "pointwise_conv2d.forward",
        "192x64x64-to-192-add",
        ALL,
        _pointwise_conv2d(1, 192, 64, 64, out=192, residual=True),
    ),
    ("pointwise_conv2d.forward", "960x16x16-to-320", BF16, _pointwise_conv2d(1, 960, 16, 16, out=320)),
    ("pointwise_conv2d.forward", "192x8x8-to-640", BF16, _pointwise_conv2d(1, 192, 8, 8, out=640)),
    ("pointwise_conv2d.forward", "512x128x128-to-512", ALL, _pointwise_conv2d(1, 512, 128, 128, out=512, norm=True)),
    ("vector_quantize.forward", "3x64x64", ALL, _vector_quantize(1, 3, 64, 64, codes=8192)),
    ("vector_quantize.forward", "3x256x256", BF16, _vector_quantize(1, 3, 256, 256, codes=8192)),
    ("vector_quantize.forward", "256x16x16", ALL, _vector_quantize(1, 256, 16, 16, codes=1024)),
    ("spatial_attention.forward", "512x64x64", ALL, _spatial_attention(1, 512, 64, 64)),
    ("spatial_attention.forward", "512x24x24", ALL, _spatial_attention(1, 512, 24, 24)),
    ("spatial_attention.forward", "256x64x64", BF16, _spatial_attention(1, 256, 64, 64)),
    ("upsample_conv2d.forward", "512x64x64", ALL, _upsample_conv2d(1, 512, 64, 64, out=512)),
    ("upsample_conv2d.forward", "256x128x128", BF16, _upsample_conv2d(1, 256, 128, 128, out=256)),
    ("upsample_conv2d.forward", "64x64x64", BF16, _upsample_conv2d(1, 64, 64, 64, out=64)),
    ("upsample_conv2d.forward", "320x32x32", BF16, _upsample_conv2d(1, 320, 32, 32, out=320)),
    ("upsample_conv2d.forward", "640x8x8", BF16, _upsample_conv2d(1, 640, 8, 8, out=640)),
    ("residual_shift.posterior_step", "3x64x64", ALL, _posterior_step(64)),
    ("residual_shift.posterior_step", "3x64x64-origin", BF16, _posterior_step(64, origin=True)),
    ("residual_shift.posterior_step", "3x64x64-given-noise", BF16, _posterior_step(64, given_noise=True)),
    ("residual_shift.posterior_step", "3x64x64-last", BF16, _posterior_step(64, last=True)),
    ("residual_shift.posterior_step", "3x512x512", BF16, _posterior_step(512)),
    ("residual_shift.prior_sample", "3x64x64", ALL, _prior_sample(64)),
    ("residual_shift.prior_sample", "3x64x64-origin", BF16, _prior_sample(64, origin=True)),
    ("residual_shift.prior_sample", "3x64x64-given-noise", BF16, _prior_sample(64, given_noise=True)),
    ("residual_shift.q_sample", "3x64x64-batch8", ALL, _q_sample(64)),
)

_WINDOWS = range(4, 17)
_HEAD_DIMS = (16, 32, 64)
_WIDTHS = (16, 32, 64, 128, 160, 192, 256, 320, 512)
_SWEEP_TABLE = (
    *(_windows("forward", *size, ALL) for size in product(_WINDOWS, _HEAD_DIMS)),
    *(_windows("backward", *size, ALL) for size in product(_WINDOWS, _HEAD_DIMS)),
    # Many small windows: a program processes several.
    *(_windows("forward", *size, ALL, side=side) for *size, side in product(_WINDOWS[:5], _HEAD_DIMS, (32, 64))),
    *(("spatial_attention.forward", f"{c}x64x64", ALL, _spatial_attention(1, c, 64, 64)) for c in _WIDTHS),
    *(("upsample_conv2d.forward", f"{c}x64x64", ALL, _upsample_conv2d(1, c, 64, 64, out=c)) for c in _WIDTHS),
    *(("upsample_conv2d.forward", f"{c}x16x16", ALL, _upsample_conv2d(1, c, 16, 16, out=c)) for c in _WIDTHS),
)


def _launch_cases(table: tuple) -> tuple[LaunchCase, ...]:
    return tuple(LaunchCase(*line, dtype, arguments) for *line, dtypes, arguments in table for dtype in dtypes)


LAUNCH_CASES = _launch_cases(_TABLE)
SWEEP = _launch_cases(_SWEEP_TABLE)

_FEW_GROUPS = "few groups per program: on small images more programs matter more than wide loads"

EXEMPTIONS = (
    Exemption("group_stats_combine_kernel *", "narrow", "moves a few statistics per group"),
    Exemption("group_norm_bwd_weight_kernel *", "narrow", "adds up one value per channel and image"),
    Exemption("group_norm_fwd_kernel *", "narrow", _FEW_GROUPS),
    Exemption("group_stats_kernel *", "narrow", _FEW_GROUPS),
    Exemption("bias_table_bwd_kernel *", "narrow", "rows of an odd window do not start at multiples of 16 bytes"),
    Exemption("sum_taps_kernel *", "narrow", "with few channels a thread has less than 128 bits"),
    Exemption("vector_quantize_small_kernel *", "narrow", "codes of three values are 12 bytes apart, and in L2"),
    Exemption(
        "window_attention_bwd_*kernel *",
        "address",
        "every part has a window, so that the first one's number is less than n_windows, which is an argument",
        "`i_first = i_part * windows_each`",
    ),
    Exemption(
        "window_attention_fwd_kernel *",
        "address",
        "every program has a window, so that the first one's number is less than n_windows, which is an argument",
        "`i_first = tl.program_id(0) // (HEADS * Q_BLOCKS) * WINDOWS`",
    ),
    Exemption(
        "spatial_attention_kernel *",
        "address",
        "every part has a key, so that the first one's number is less than n_tokens, which is an argument",
        "`i_first = i_part * tokens_each`",
    ),
)
