"""Algorithms of the CPU kernel behind `conv2d` and `upsample_conv2d`, and the strides of the weight that it reads.

`resshift-fast bench tune` measures the algorithms on a model's shapes; for other shapes an estimate of their work
decides. PyTorch's own Winograd convolution, `torch._nnpack_spatial_convolution`, is not among them: with torch 2.13 the
same call fails in one process and succeeds in another.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from resshift_fast import backends
from resshift_fast.backends import Algorithms, Kernel

DIRECT = 0  # PyTorch's own convolution instead of tiles
_NAMES = {4: "winograd 4", 6: "winograd 6", 8: "winograd 8", DIRECT: "direct"}  # in files of measurements
_BY_NAME = {name: algorithm for algorithm, name in _NAMES.items()}

# Work for one pair of an input and an output channel, in fused multiply-adds of a vector: for each tile, and once a
# call for the transform of the weight. Measured with AVX-512 on images from 8² to 256² pixels.
_WORK = {4: (2.25, 8.0), 6: (4.0, 18.0), 8: (6.25, 36.0)}
_UPSAMPLED = {6: 49 / 64}  # share of a tile's products where pixels are doubled; the others vanish
# Tiles of 8 have an error of 1e-5, those of 6 of 2e-6: negligible against rounding to 16 bits, but not in float32.
_EXACT_ENOUGH = {torch.float32: (4, 6)}
_DIRECT_WORK = 9 / 16  # for each pixel of the result


def _tiles(dtype: torch.dtype) -> tuple[int, ...]:
    return _EXACT_ENOUGH.get(dtype, tuple(_WORK))


@cache
def _allowed(dtype: torch.dtype) -> tuple[str, ...]:
    return tuple(_NAMES[algorithm] for algorithm in (*_tiles(dtype), DIRECT))


def pack_conv2d(weight: Tensor) -> Tensor:
    """The same weight with the strides that the CPU kernel reads: rows, columns, input channels, output channels.

    Shape and values are unchanged, so that it can replace a module's parameter: what changes that parameter, such as an
    optimizer or a moving average, changes what the kernel reads.

    Args:
        weight: [O, C, 3, 3], any dtype and device.

    Returns:
        [O, C, 3, 3] with the same values; `weight` itself if it has these strides already.

    Raises:
        ValueError: for another shape.

    Example:
        >>> pack_conv2d(torch.randn(6, 8, 3, 3)).stride()
        (1, 6, 144, 48)
    """
    if weight.dim() != 4 or weight.shape[2:] != (3, 3):
        raise ValueError(f"pack_conv2d: weight has shape {tuple(weight.shape)}, expected (O, C, 3, 3)")
    out_channels, channels = weight.shape[:2]
    if weight.stride() == (1, out_channels, 3 * channels * out_channels, channels * out_channels):
        return weight
    if not torch.compiler.is_compiling() and weight.device.type == "cpu" and not weight.untyped_storage().nbytes():
        # A copy of it would end the process.
        raise ValueError("pack_conv2d: weight has no memory, because its storage was resized; restore it first")
    taps_first = torch.empty((3, 3, channels, out_channels), dtype=weight.dtype, device=weight.device)
    return taps_first.permute(3, 2, 0, 1).copy_(weight)


def shape(x: Tensor, weight: Tensor) -> str:
    """The name by which measurements are stored: "64x128@32x48b2" has 64 input and 128 output channels."""
    batch, channels, height, width = x.shape
    return f"{channels}x{weight.shape[0]}@{height}x{width}b{batch}"


def algorithm(x: Tensor, weight: Tensor, padding: int, upsample: bool = False) -> int:
    """The side of the tiles for a call, 4, 6 or 8, or `DIRECT`: as measured for such a shape, else as estimated."""
    operator = "upsample_conv2d" if upsample else "conv2d"
    measured = backends.measured_algorithms(operator, x.device, x.dtype, _allowed(x.dtype))
    name = measured.get(shape(x, weight)) if measured else None
    return estimated(x, weight, padding, upsample) if name is None else _BY_NAME[name]


def estimated(x: Tensor, weight: Tensor, padding: int, upsample: bool = False) -> int:
    """The algorithm with the least work for a call."""
    batch, _, height, width = x.shape
    if upsample:
        height, width = 2 * height, 2 * width
    height, width = height + 2 * padding - 2, width + 2 * padding - 2
    if weight.shape[1] < 8 and x.dtype != torch.float32 and not upsample:
        return DIRECT  # with so few channels the result's transform is most of the work
    work = {DIRECT: _DIRECT_WORK * batch * height * width}
    for tile in _tiles(x.dtype):
        of_tile, of_weight = _WORK[tile]
        if upsample:
            of_tile *= _UPSAMPLED.get(tile, 1.0)
        work[tile] = of_tile * batch * -(-height // tile) * -(-width // tile) + of_weight
    return min(work, key=work.__getitem__)


def cpu_kernel(run: Callable[..., Tensor], upsample: bool = False) -> Kernel:
    """The CPU kernel of an operator.

    Args:
        run: takes an algorithm and the operator's arguments, those of `conv2d` with the padding after the bias.
        upsample: whether the image is upsampled first; the padding is 1 then.
    """

    def sizes(x: Tensor, weight: Tensor, bias: Tensor | None, padding: int = 1, *_: Any) -> tuple[Any, ...]:
        return x, weight, 1 if upsample else padding, upsample

    algorithms = Algorithms(
        functions=lambda dtype: {name: partial(run, _BY_NAME[name]) for name in _allowed(dtype)},
        shape=lambda x, weight, *_: shape(x, weight),
        default=lambda *args: _NAMES[estimated(*sizes(*args))],
    )
    return Kernel(
        lambda *args: run(algorithm(*sizes(*args)), *args),
        lambda x, *_: "x is float64" if x.dtype is torch.float64 else None,
        algorithms,
    )
