"""Work divided for more threads than any machine here has gives the same bits."""

from functools import partial

import pytest
import torch

from resshift_fast import ops
from resshift_fast.backends import native
from resshift_fast.backends.native import recorded_loops

pytestmark = pytest.mark.skipif(native.missing("cpu") is not None, reason="the C++ library is not built")

THREADS = (2, 7, 16, 64)
normal = partial(torch.randn, generator=torch.Generator().manual_seed(0))


def image(*size):
    return normal(*size).contiguous(memory_format=torch.channels_last)


def convolution(channels, out_channels, height, width, tile, dtype=torch.float32):
    """The kernel of conv2d with tiles of one size."""
    x = image(2, channels, height, width).to(dtype)
    weight = ops.pack_conv2d(normal(out_channels, channels, 3, 3) / channels**0.5).to(dtype)
    bias = normal(out_channels)
    return partial(native.operator("cpu", "conv2d"), x, weight, bias, 1, None, False, None, False, tile)


def pointwise(channels, out_channels, height, width, dtype=torch.float32):
    x, weight = image(1, channels, height, width).to(dtype), normal(out_channels, channels).to(dtype) / channels**0.5
    return partial(native.operator("cpu", "pointwise_conv2d"), x, weight, None, None, None)


def mlp(channels, hidden, height, width):
    x, table = image(1, channels, height, width), normal(1, 3, channels)
    weights = normal(hidden, channels) / 8, normal(hidden), normal(channels, hidden) / 8, normal(channels)
    return partial(native.operator("cpu", "swin_mlp"), x, table, *weights)


def noise(channels, side):
    y, seed = normal(2, channels, side, side), torch.tensor([3, 2**40])
    return lambda: native.operator("cpu", "prior_sample")(y, torch.rand(8) * 0 + 0.5, seed, None, None, None, None)[0]


# With small weights, threads share them and have chunks of tiles; with large ones, they share tiles and have blocks of
# output channels. Few pixels are divided by output channels.
CASES = {
    "conv2d: chunks of tiles": convolution(40, 36, 40, 41, 6),
    "conv2d: bfloat16, chunks of tiles": convolution(40, 36, 40, 41, 8, torch.bfloat16),
    "conv2d: blocks and chunks": convolution(130, 96, 20, 23, 4),
    "conv2d: one block": convolution(260, 20, 18, 9, 6),
    "pointwise_conv2d: few pixels": pointwise(320, 176, 6, 8),
    "pointwise_conv2d: bfloat16, few pixels": pointwise(320, 176, 6, 8, torch.bfloat16),
    "swin_mlp: few pixels": mlp(96, 384, 8, 8),
    "prior_sample: many channels": noise(48, 24),
}


@pytest.mark.parametrize("name", CASES)
def test_results_are_bitwise_equal(name):
    results, divided = [], set()
    for threads in (1, *THREADS):
        with recorded_loops(threads) as loops:
            results.append(CASES[name]())
        divided.add(tuple(loop.pieces for loop in loops))
    assert all(torch.equal(results[0], result) for result in results[1:])
    assert torch.equal(results[0], CASES[name]())  # by the thread pool
    assert len(divided) > 1 or name.startswith("prior_sample")
