"""Calls of the launchers whose kernels are compiled: the shapes of realsr-x4-v3 on meta tensors.

The arguments come from the operator benchmark. Every kernel appears in float32, float16 and bfloat16. `SWEEP` has cases
that take too long for every run: sizes that models may choose freely and that registers and shared memory depend on.
`LAUNCH_CASES` has those of them that need the most. `EXEMPTIONS` lists exceptions from limits, with the reasons.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from itertools import product
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))

from operator_arguments import EMBED, HEADS, OPERATORS, Draw

from .budgets import Exemption

META = torch.device("meta")
FLOAT32, FLOAT16, BFLOAT16 = torch.float32, torch.float16, torch.bfloat16
ALL = (FLOAT32, FLOAT16, BFLOAT16)
BF16 = (BFLOAT16,)
SIXTEEN = (FLOAT16, BFLOAT16)
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


def call(op: str, side: int, *, batch: int = 1, contiguous: str = "", channels_last: str = "", **sizes):
    """Arguments of an operator, by dtype.

    Args:
        op, side, sizes: as in `operator_cases.Case`. batch: images.
        contiguous, channels_last: the tensor that has this memory format instead of the benchmark's.
    """

    def arguments(dtype: torch.dtype) -> tuple:
        made = OPERATORS[op].make(Draw(META, dtype, batch), side, **sizes)
        for name, memory_format in ((contiguous, torch.contiguous_format), (channels_last, torch.channels_last)):
            if name:
                made[name] = made[name].contiguous(memory_format=memory_format)
        return tuple(made.values())

    return arguments


_norm = partial(call, "group_norm", silu=True)
_merge = partial(call, "add_concat_group_norm", silu=True)
_attention = partial(call, "window_attention", channels=EMBED, heads=HEADS, shift=0)
_projected = partial(call, "window_attention_proj", channels=EMBED, heads=HEADS, shift=4)
_WIDE = {"channels": 192, "hidden": 768}
_mlp = partial(call, "swin_mlp", **_WIDE)
_pointwise = partial(call, "pointwise_conv2d")
_quantize = partial(call, "vector_quantize", channels_last="z")
_block = partial(call, "residual_block")
_spatial = partial(call, "spatial_attention")
_posterior_step = partial(call, "posterior_step", channels=3, contiguous="lq")
_prior_sample = partial(call, "prior_sample", channels=3, contiguous="lq")


def _with_statistics(op: str, side: int, *, groups: int = 32, given: bool = False, **sizes):
    """Arguments with which an operator also returns statistics, and with `given` takes some."""

    def arguments(dtype: torch.dtype) -> tuple:
        made = call(op, side, **sizes)(dtype)
        statistics = torch.empty(made[0].shape[0], 2, 32, device=META) if given else None
        return *made, statistics, groups, 1e-5

    return arguments


def _block_with_statistics(side: int, **sizes):
    def arguments(dtype: torch.dtype) -> tuple:
        return *_block(side, **sizes)(dtype), 32, 1e-5

    return arguments


def _projected_with_statistics(side: int, **sizes):
    def arguments(dtype: torch.dtype) -> tuple:
        return *_projected(side, **sizes)(dtype), 32, 1e-5

    return arguments


def _summed(side: int, channels: int, out: int, *, residual: bool = False, skip: int = 0, groups: int = 32):
    """Arguments of `conv2d_sum`."""

    def arguments(dtype: torch.dtype) -> tuple:
        draw = Draw(META, dtype, batch=1)
        x, weight, bias, *_ = call("conv2d", side, channels=channels, out=out)(dtype)
        added = draw.image(out, side) if residual else None
        connection = (draw.image(skip, side), None, draw.matrix(out, skip), bias) if skip else (None,) * 4
        return x, weight, bias, added, *connection, groups, 1e-5

    return arguments


def _norm_given(side: int, **sizes):
    def arguments(dtype: torch.dtype) -> tuple:
        x, groups, weight, bias, _, *options = _norm(side, **sizes)(dtype)
        return x, torch.empty(x.shape[0], 2, groups, device=META), weight, bias, *options

    return arguments


def _norm_backward(side: int, **sizes):
    def arguments(dtype: torch.dtype) -> tuple:
        x, groups, weight, bias, _, *options = _norm(side, **sizes)(dtype)
        mean, rstd = torch.empty((2, len(x), groups), device=META)
        return torch.empty_like(x), x, mean, rstd, groups, weight, bias, *options

    return arguments


def _attention_backward(side: int, **sizes):
    def arguments(dtype: torch.dtype) -> tuple:
        qkv, *others = _attention(side, **sizes)(dtype)
        return qkv.new_empty((*qkv.shape[:3], qkv.shape[3] // 3)), qkv, *others

    return arguments


def _windows(way: str, window: int, head_dim: int, dtypes: tuple, side: int = 4) -> tuple:
    """A row of the table: two heads of an image of side × side shifted windows, "forward" or "backward"."""
    make = _attention if way == "forward" else _attention_backward
    sizes = {"channels": 2 * head_dim, "heads": 2, "window": window, "shift": window // 2, "mask": "swin"}
    case = f"window{window}-head{head_dim}-swin" + (f"-{side}x{side}" if side > 4 else "")
    return f"window_attention.{way}", case, dtypes, make(side * window, **sizes)


def _upsample(channels: int, side: int, **sizes):
    return call("upsample_conv2d", side, channels=channels, out=channels, contiguous="weight", **sizes)


def _upsampled_with_statistics(channels: int, side: int):
    def arguments(dtype: torch.dtype) -> tuple:
        return *_upsample(channels, side, summed=True)(dtype), 32, 1e-5

    return arguments


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

_PRODUCERS = (  # 1×1 convolutions whose results are normalized next: side, channels, output channels, dtypes
    (64, 192, 192, ALL, True),
    (64, 160, 192, BF16, False),
    (16, 320, 192, BF16, False),
    (8, 192, 640, BF16, False),
    (64, 512, 512, FEW, True),
    (256, 256, 128, FEW, True),
)

_SUMS = (  # 3×3 convolutions: side, channels, output channels, dtypes, residual, channels of the skip connection
    (256, 128, 128, SIXTEEN, True, 0),
    (64, 320, 160, BF16, False, 480),
    (64, 160, 160, BF16, True, 0),
    (32, 320, 320, BF16, True, 0),
    (256, 3, 128, BF16, False, 0),
    (64, 6, 160, BF16, False, 0),
)

# (launcher, case, dtypes, arguments)
_TABLE = (
    ("group_norm.forward", "160x64x64-modulated", ALL, _norm(64, channels=160, scale_shift=True)),
    ("group_norm.forward", "960x16x16", ALL, _norm(16, channels=960)),
    ("group_norm.forward", "320x32x32-modulated", BF16, _norm(32, channels=320, scale_shift=True)),
    ("group_norm.forward", "160x32x32", BF16, _norm(32, channels=160)),
    ("group_norm.forward", "640x8x8-batch4", BF16, _norm(8, channels=640, batch=4)),
    ("group_norm.forward", "512x64x64-plain", BF16, _norm(64, channels=512, silu=False)),
    ("group_norm.forward", "128x256x256", ALL, _norm(256, channels=128)),
    ("group_norm.forward", "160x64x64-nchw", ALL, _norm(64, channels=160, contiguous="x")),
    ("group_norm.forward", "128x256x256-nchw", ALL, _norm(256, channels=128, contiguous="x")),
    ("group_norm_given.forward", "160x64x64-modulated", ALL, _norm_given(64, channels=160, scale_shift=True)),
    ("group_norm_given.forward", "128x256x256", ALL, _norm_given(256, channels=128)),
    ("group_norm_given.forward", "160x64x64-nchw", BF16, _norm_given(64, channels=160, contiguous="x")),
    ("group_norm.backward", "160x64x64-modulated", ALL, _norm_backward(64, channels=160, scale_shift=True)),
    ("group_norm.backward", "640x8x8-batch4", BF16, _norm_backward(8, channels=640, batch=4)),
    ("group_norm.backward", "128x256x256", ALL, _norm_backward(256, channels=128)),
    ("group_norm.backward", "160x64x64-nchw", ALL, _norm_backward(64, channels=160, contiguous="x")),
    ("add_concat_group_norm.forward", "128x256x256-add", ALL, _merge(256, channels=128, other=128, mode="add")),
    (
        "add_concat_group_norm.forward",
        "512x16x16-add-batch64",
        BF16,
        _merge(16, channels=512, other=512, mode="add", batch=64),
    ),
    (
        "add_concat_group_norm.forward",
        "320x64x64-concat-160",
        ALL,
        _merge(64, channels=320, other=160, mode="concat"),
    ),
    (
        "add_concat_group_norm.forward",
        "320x32x32-concat-160",
        BF16,
        _merge(32, channels=320, other=160, mode="concat"),
    ),
    ("add_concat_group_norm.forward", "640x8x8-concat-640", ALL, _merge(8, channels=640, other=640, mode="concat")),
    ("window_attention.forward", "192x64x64-shift4", ALL, _attention(64, shift=4)),
    ("window_attention.forward", "192x256x256", BF16, _attention(256)),
    ("window_attention.forward", "192x64x64-window16", ALL, _attention(64, window=16)),
    ("window_attention.forward", "256x64x64-head64", BF16, _attention(64, channels=256, heads=4, shift=4)),
    ("window_attention.forward", "64x32x32-window4", BF16, _attention(32, channels=64, heads=4, window=4)),
    ("window_attention_proj.forward", "192x64x64", ALL, _projected(64)),
    ("window_attention_proj.forward", "192x8x8", FEW, _projected(8, shift=0)),
    ("window_attention_proj.forward_with_statistics", "192x64x64", ALL, _projected_with_statistics(64)),
    ("window_attention_proj.forward_with_statistics", "192x8x8", BF16, _projected_with_statistics(8, shift=0)),
    ("window_attention_proj.forward", "192x64x64-batch16", BF16, _projected(64, batch=16)),
    ("window_attention_proj.forward", "64x64x64", BF16, _projected(64, channels=64, heads=2)),
    ("window_attention_proj.forward", "256x64x64-head64", FEW, _projected(64, channels=256, heads=4)),
    ("window_attention_proj.forward", "192x64x64-window16", BF16, _projected(64, window=16)),
    ("window_attention.backward", "192x64x64-shift4", ALL, _attention_backward(64, shift=4)),
    ("window_attention.backward", "192x64x64-window16", ALL, _attention_backward(64, window=16)),
    *(_windows(*way) for way in _WORST_WINDOWS),
    ("swin_mlp.forward", "192x64x64", ALL, _mlp(64)),
    ("swin_mlp.forward", "192x8x8", BF16, _mlp(8)),
    ("swin_mlp.forward", "192x32x32", BF16, _mlp(32)),
    ("swin_mlp.forward_with_statistics", "192x64x64", ALL, _with_statistics("swin_mlp", 64, **_WIDE, given=True)),
    ("swin_mlp.forward_with_statistics", "192x16x16", FEW, _with_statistics("swin_mlp", 16, **_WIDE, given=True)),
    ("swin_mlp.forward_with_statistics", "192x8x8", SIXTEEN, _with_statistics("swin_mlp", 8, **_WIDE, given=True)),
    ("pointwise_conv2d.forward", "192x64x64-to-576-norm", ALL, _pointwise(64, channels=192, out=576, norm=True)),
    ("pointwise_conv2d.forward", "192x64x64-to-192-add", ALL, _pointwise(64, channels=192, out=192, residual=True)),
    ("pointwise_conv2d.forward", "960x16x16-to-320", BF16, _pointwise(16, channels=960, out=320)),
    ("pointwise_conv2d.forward", "192x8x8-to-640", BF16, _pointwise(8, channels=192, out=640)),
    ("pointwise_conv2d.forward", "512x128x128-to-512", ALL, _pointwise(128, channels=512, out=512, norm=True)),
    *(
        (
            "pointwise_conv2d.forward_with_statistics",
            f"{channels}x{side}x{side}-to-{out}{'-add' * residual}",
            dtypes,
            _with_statistics("pointwise_conv2d", side, channels=channels, out=out, residual=residual),
        )
        for side, channels, out, dtypes, residual in _PRODUCERS
    ),
    ("vector_quantize.forward", "3x64x64", ALL, _quantize(64, channels=3, entries=8192)),
    ("vector_quantize.forward", "3x256x256", BF16, _quantize(256, channels=3, entries=8192)),
    ("vector_quantize.forward", "256x16x16", ALL, _quantize(16, channels=256, entries=1024)),
    ("spatial_attention.forward", "512x64x64", ALL, _spatial(64, channels=512)),
    ("spatial_attention.forward", "512x24x24", ALL, _spatial(24, channels=512)),
    ("spatial_attention.forward", "256x64x64", BF16, _spatial(64, channels=256)),
    ("upsample_conv2d.forward", "512x64x64", ALL, _upsample(512, 64)),
    ("upsample_conv2d.forward", "256x128x128", BF16, _upsample(256, 128)),
    ("upsample_conv2d.forward", "64x64x64", BF16, _upsample(64, 64)),
    ("upsample_conv2d.forward", "320x32x32", BF16, _upsample(320, 32)),
    ("upsample_conv2d.forward", "320x16x16-summed", BF16, _upsample(320, 16, summed=True)),
    ("upsample_conv2d.forward", "640x8x8", BF16, _upsample(640, 8)),
    *(
        (
            "conv2d_sum.forward",
            f"{channels}x{side}x{side}-to-{out}{'-add' * residual}{f'-skip-{skip}' if skip else ''}",
            dtypes,
            _summed(side, channels, out, residual=residual, skip=skip),
        )
        for side, channels, out, dtypes, residual, skip in _SUMS
    ),
    ("upsample_conv2d.forward", "256x128x128-statistics", FEW, _upsampled_with_statistics(256, 128)),
    ("residual_block.forward", "320x32x32-concat-160", SIXTEEN, _block(32, channels=320, other=160, out=320)),
    ("residual_block.forward", "640x8x8", SIXTEEN, _block(8, channels=640, out=640)),
    ("residual_block.forward", "640x8x8-concat-640", BF16, _block(8, channels=640, other=640, out=640)),
    ("residual_block.forward_with_statistics", "640x8x8", BF16, _block_with_statistics(8, channels=640, out=640)),
    ("residual_shift.posterior_step", "3x64x64", ALL, _posterior_step(64)),
    ("residual_shift.posterior_step", "3x64x64-origin", BF16, _posterior_step(64, origin=True)),
    ("residual_shift.posterior_step", "3x64x64-given-noise", BF16, _posterior_step(64, given_noise=True)),
    ("residual_shift.posterior_step", "3x64x64-last", BF16, call("posterior_step", 64, channels=3, last=True)),
    ("residual_shift.posterior_step", "3x512x512", BF16, _posterior_step(512)),
    ("residual_shift.prior_sample", "3x64x64", ALL, _prior_sample(64)),
    ("residual_shift.prior_sample", "3x64x64-origin", BF16, _prior_sample(64, origin=True)),
    ("residual_shift.prior_sample", "3x64x64-given-noise", BF16, _prior_sample(64, given_noise=True)),
    ("residual_shift.q_sample", "3x64x64-batch8", ALL, call("q_sample", 64, channels=3, batch=8)),
)

_WINDOWS = range(4, 17)
_HEAD_DIMS = (16, 32, 64)
_WIDTHS = (16, 32, 64, 128, 160, 192, 256, 320, 512)
_SWEEP_TABLE = (
    *(_windows("forward", *size, ALL) for size in product(_WINDOWS, _HEAD_DIMS)),
    *(_windows("backward", *size, ALL) for size in product(_WINDOWS, _HEAD_DIMS)),
    # Many small windows: a program processes several.
    *(_windows("forward", *size, ALL, side=side) for *size, side in product(_WINDOWS[:5], _HEAD_DIMS, (32, 64))),
    *(("spatial_attention.forward", f"{c}x64x64", ALL, _spatial(64, channels=c)) for c in _WIDTHS),
    *(("upsample_conv2d.forward", f"{c}x64x64", ALL, _upsample(c, 64)) for c in _WIDTHS),
    *(("upsample_conv2d.forward", f"{c}x16x16", ALL, _upsample(c, 16)) for c in _WIDTHS),
)


def _launch_cases(table: tuple) -> tuple[LaunchCase, ...]:
    return tuple(LaunchCase(*line, dtype, arguments) for *line, dtypes, arguments in table for dtype in dtypes)


LAUNCH_CASES = _launch_cases(_TABLE)
SWEEP = _launch_cases(_SWEEP_TABLE)

_FEW_GROUPS = "few groups per program: on small images more programs gain more than wide loads"

EXEMPTIONS = (
    Exemption("group_stats_combine_kernel *", "narrow", "reads and writes a few statistics per group"),
    Exemption("group_norm_bwd_weight_kernel *", "narrow", "adds up one value per channel and image"),
    Exemption("group_norm_fwd_kernel *", "narrow", _FEW_GROUPS),
    Exemption("group_stats_kernel *", "narrow", _FEW_GROUPS),
    Exemption("bias_table_bwd_kernel *", "narrow", "rows of an odd window start at no multiple of 16 bytes"),
    Exemption("sum_taps_kernel *", "narrow", "a warp has less than 128 bits a thread of few channels"),
    Exemption("vector_quantize_small_kernel *", "narrow", "codes of three values are 12 bytes apart, and in L2"),
    Exemption(
        "window_attention_bwd_*kernel *",
        "address",
        "every part has a window, so that its first index is less than n_windows, which is an argument",
        "`i_first = i_part * windows_each`",
    ),
    Exemption(
        "window_attention_fwd_kernel *",
        "address",
        "every program has a window, so that its first index is less than n_windows, which is an argument",
        "`i_first = tl.program_id(0) // (HEADS * Q_BLOCKS) * WINDOWS`",
    ),
    Exemption(
        "spatial_attention_kernel *",
        "address",
        "every part has a key, so that its first index is less than n_tokens, which is an argument",
        "`i_first = i_part * tokens_each`",
    ),
)
