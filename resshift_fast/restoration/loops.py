"""The loops that the CPU kernels of an operator's call share among threads, told by the kernels themselves."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from resshift_fast.backends.native import Loop, recorded_loops
from resshift_fast.diffusion.coefficients import NUM_COEFFICIENTS
from resshift_fast.models.calls import Call

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Tiles(NamedTuple):
    """A batch of tiles of one shape.

    Args:
        height, width: sides of a tile in latent pixels.
        batch: how many tiles.
        dtype: of the networks.
    """

    height: int
    width: int
    batch: int
    dtype: torch.dtype


@lru_cache(maxsize=4096)
def of_call(call: Call, tiles: Tiles, threads: int) -> tuple[Loop, ...]:
    """The loops of a call as divided for so many threads; none for what PyTorch runs, such as too large windows.

    The kernels are called, but run nothing and write to no memory.

    Raises:
        ValueError: if threads is below 1.
        RuntimeError: where there is no library "cpu".
    """
    refused = False
    with recorded_loops(threads, run=False) as loops:
        try:
            getattr(_Kernels(call, tiles), call.operator, lambda: None)()
        except RuntimeError:  # by the kernel
            refused = True
    return () if refused else tuple(loops)


class _Kernels:
    """Kernels of the operators by name, called as resshift_fast/ops does, with tensors that have no values."""

    def __init__(self, call: Call, tiles: Tiles):
        import torch

        self.call, self.tiles = call, tiles
        self.library: Any = torch.ops.resshift_fast_cpu

    def _image(self, channels: int, dtype: torch.dtype | None = None) -> Tensor:
        import torch

        sides = (int(side * self.call.side) for side in (self.tiles.height, self.tiles.width))
        size = (self.tiles.batch, channels, *sides)
        return torch.empty(size, dtype=dtype or self.tiles.dtype, memory_format=torch.channels_last)

    def _parameter(self, *size: int, dtype: torch.dtype | None = None) -> Tensor:
        import torch

        return torch.empty(size, dtype=dtype or self.tiles.dtype)

    def _normalization(self, x: Tensor) -> Tensor | None:
        if not self.call.normalized:
            return None
        weight = self._parameter(x.shape[1])
        table: Tensor = self.library.group_norm_affine(x, 32, weight, weight, 1e-5, None, None)
        return table

    def _residual(self) -> Tensor | None:
        return self._image(self.call.out_channels) if self.call.residual else None

    def conv2d(self, upsample: bool = False) -> None:
        from resshift_fast.ops import conv2d_winograd

        x = self._image(self.call.channels)
        weight = self._parameter(3, 3, self.call.channels, self.call.out_channels).permute(3, 2, 0, 1)
        tile = conv2d_winograd.algorithm(x, weight, 1, upsample)
        if tile != conv2d_winograd.DIRECT:
            arguments = (1, self._normalization(x), False, self._residual(), upsample, tile)
            self.library.conv2d(x, weight, None, *arguments)
        elif self.call.normalized:
            self.group_norm()

    def upsample_conv2d(self) -> None:
        self.conv2d(upsample=True)

    def dense_block(self) -> None:
        from resshift_fast.ops import conv2d_winograd

        x, shapes = self._image(self.call.channels), self.call.convolutions
        weights = [self._parameter(3, 3, *each).permute(3, 2, 0, 1) for each in shapes]
        biases = [self._parameter(out) for _, out in shapes]
        tile = conv2d_winograd.estimated(x, weights[0], 1)
        self.library.dense_block(x, *weights, *biases, 1.0, 1.0, tile)

    def pointwise_conv2d(self) -> None:
        x = self._image(self.call.channels)
        weight = self._parameter(self.call.out_channels, self.call.channels)
        self.library.pointwise_conv2d(x, weight, None, self._residual(), self._normalization(x))

    def swin_mlp(self) -> None:
        x, width, hidden = self._image(self.call.channels), self.call.channels, self.call.hidden
        first = self._parameter(hidden, width), self._parameter(hidden)
        second = self._parameter(width, hidden), self._parameter(width)
        self.library.swin_mlp(x, self._normalization(x), *first, *second)

    def window_attention(self) -> None:
        window, heads = self.call.window, self.call.heads
        qkv = self._image(3 * self.call.channels).permute(0, 2, 3, 1)
        self.library.window_attention(qkv, self._parameter((2 * window - 1) ** 2, heads), heads, window, 0, 0)

    def spatial_attention(self) -> None:
        self.library.spatial_attention(*(self._image(self.call.channels) for _ in range(3)))

    def group_norm(self) -> None:
        x, weight = self._image(self.call.channels), self._parameter(self.call.channels)
        self.library.group_norm(x, 32, weight, weight, 1e-5, None, None, 0)

    def vector_quantize(self) -> None:
        import torch

        codebook = self._parameter(self.call.entries, self.call.channels, dtype=torch.float32)
        self.library.vector_quantize(self._image(self.call.channels), codebook)

    def concat(self) -> None:
        self.library.concat(
            self._image(self.call.channels), self._image(self.call.out_channels - self.call.channels), 1.0
        )

    def prior_sample(self) -> None:
        x, coefficients, seed, lq = self._chain()
        self.library.prior_sample(x, coefficients, seed, None, None, lq, self.tiles.dtype)

    def posterior_step(self) -> None:
        x, coefficients, seed, lq = self._chain()
        options = (None, 0, False, None)  # no origin, the prediction is x0, no clamping, no noise
        self.library.posterior_step(x, x, x, coefficients, seed, seed[0], *options, lq, self.tiles.dtype, False)

    def _chain(self) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """A latent, a row of coefficients, seeds, and what is appended to the latent for the denoiser."""
        import torch

        others = self.call.out_channels - self.call.channels
        lq = self._image(others) if others else None
        coefficients = self._parameter(NUM_COEFFICIENTS, dtype=torch.float32)
        seed = self._parameter(self.tiles.batch, dtype=torch.int64)
        return self._image(self.call.channels, torch.float32), coefficients, seed, lq
