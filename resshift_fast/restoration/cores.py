r"""How long a batch of tiles takes on a processor with many cores: a model of how its threads share the work.

The kernels tell into how many equal pieces each of their loops can be divided. On P cores a loop of n pieces with m
weighted multiplications, which reads and writes b bytes, takes

.. math:: \max\Big(\Big\lceil\frac{n}{P}\Big\rceil \frac{m}{n R},\; \frac{b}{\min(p W_1, W)}\Big) + h (p - 1),
    \qquad p = \min(n, P)

for the rate R of a core, the bandwidth W₁ of one core and W of all, and the time h that it takes to hand work to a
thread. Outside of loops, calling an operator takes time on one thread, and more the larger its result. It is no
simulation of caches, from which data are read faster.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from resshift_fast import backends
from resshift_fast.models import calls, cost
from resshift_fast.models.calls import Call
from resshift_fast.restoration import loops
from resshift_fast.restoration.loops import Tiles

if TYPE_CHECKING:
    import torch

    from resshift_fast.models.catalog import ModelSpec

BATCHES = (1, 2, 4, 8)
GAIN = 1.1  # in throughput, for which more tiles at once are worth their memory
FEW_THREADS = 2  # one tile occupies them
BYTES_PER_THREAD = 128 << 20  # of memory, which a machine with many cores has for each
LIVE_IMAGES = 8  # at once, of the largest size in a network, with what kernels transform them to
# What is not in proportion to the multiplications, in the same unit: to transform the weights between two channels of a
# 3×3 convolution, and the bytes of these; to transform a channel of a pixel, where threads do that first; and to draw
# a value of noise.
WEIGHT_TRANSFORM, TRANSFORMED_BYTES = 300.0, 256.0
TILE_TRANSFORM = 150.0
BLOCK = 32  # output channels that are multiplied at once, with AVX-512
NOISE = 400.0


@dataclass(frozen=True)
class Processor:
    """What the time of work depends on.

    The bandwidth of all cores and the time of a hand-out are assumptions, about eight channels of memory and a system
    call. The others were fitted to `benchmarks/many_cores.py --check` with AVX-512, on a machine with other work.

    Args:
        rate: weighted multiplications of a core in a second.
        core_bandwidth, bandwidth: bytes that a core, and all together, read or write in a second.
        hand_out: seconds for every thread that is handed a part of a loop.
        call: seconds on one thread that calling an operator takes at least.
        growth: bytes of results for which that takes a second longer: they need memory, and leave caches cold.
    """

    rate: float = 4.5e10
    core_bandwidth: float = 8e9
    bandwidth: float = 150e9
    hand_out: float = 1e-6
    call: float = 3e-4
    growth: float = 12e9


SERVER = Processor()


class Spent(NamedTuple):
    """Seconds in an operator's loops, and those outside of them, on one thread."""

    loops: float
    outside: float


class Work(NamedTuple):
    """A loop: its pieces, and the weighted multiplications and bytes of all."""

    pieces: int
    multiplications: float
    num_bytes: float

    def seconds(self, threads: int, processor: Processor) -> float:
        """On so many threads, each with a core."""
        busy = min(self.pieces, threads)
        piece = self.multiplications / self.pieces / processor.rate
        bandwidth = min(busy * processor.core_bandwidth, processor.bandwidth)
        return max(-(-self.pieces // threads) * piece, self.num_bytes / bandwidth) + processor.hand_out * (busy - 1)


def work_of(call: Call, tiles: Tiles, threads: int) -> list[Work]:
    """The work of every loop of a call, as divided for so many threads.

    An operator of PyTorch is one loop with a piece for every thread.
    """
    area = tiles.height * tiles.width
    multiplications = cost.multiplications(call) * tiles.batch * area * (area if call.is_between_pixels else 1)
    read, weights, result = _bytes(call, tiles)
    written = result * (1 + call.residual)  # with the image that is added to it
    found = loops.of_call(call, tiles, threads)
    if not found:
        return [Work(threads, multiplications, read + weights + written)]
    pieces = [loop.pieces for loop in found]
    norm = [Work(n, 0, read if i == 1 else 0) for i, n in enumerate(pieces[: 3 * call.normalized])]
    rest = pieces[len(norm) :]
    if call.operator in ("conv2d", "upsample_conv2d"):
        return norm + _convolution(call, rest, multiplications, read, weights, written, tiles)
    if call.operator == "dense_block":
        return _dense_block(call, rest, multiplications, read + written, weights)
    if call.operator == "swin_mlp" and len(rest) == 2:  # one loop for each convolution
        return norm + [Work(n, multiplications / 2, (read + weights + written) / 2) for n in rest]
    if call.operator in ("prior_sample", "posterior_step"):
        multiplications = NOISE * call.channels * tiles.batch * area
    preparing = [Work(n, 0, 0) for n in rest[:-1]]
    return [*norm, *preparing, Work(rest[-1], multiplications, read + weights + written)]


def _convolution(
    call: Call, pieces: list[int], multiplications: float, read: float, weights: float, written: float, tiles: Tiles
) -> list[Work]:
    """Of a 3×3 convolution: threads transform the weights, or tiles some at a time, and then multiply."""
    if not pieces:
        return []
    pairs = call.channels * call.out_channels
    if len(pieces) == 2:
        transform = Work(pieces[0], WEIGHT_TRANSFORM * pairs, weights + TRANSFORMED_BYTES * pairs)
        return [transform, Work(pieces[1], multiplications, read + written)]
    first, *others = pieces
    times = len(others) / 2
    values = tiles.batch * tiles.height * tiles.width * call.side**2 * call.channels
    works = [Work(first, 0, weights)]
    for transforms, products in zip(others[::2], others[1::2], strict=True):
        works.append(Work(transforms, TILE_TRANSFORM * values / times, read / times))
        again = WEIGHT_TRANSFORM * pairs * products / -(-call.out_channels // BLOCK)  # by every piece, for its block
        works.append(Work(products, multiplications / times + again, written / times))
    return works


def _dense_block(call: Call, pieces: list[int], multiplications: float, images: float, weights: float) -> list[Work]:
    """Of five 3×3 convolutions: for each, threads transform the weights, and then multiply."""
    pairs = [channels * out for channels, out in call.convolutions]
    works = []
    for transforms, products, each in zip(pieces[::2], pieces[1::2], pairs, strict=True):
        share = each / sum(pairs)
        works.append(Work(transforms, WEIGHT_TRANSFORM * each, weights * share + TRANSFORMED_BYTES * each))
        works.append(Work(products, multiplications * share, images * share))
    return works


def _bytes(call: Call, tiles: Tiles) -> tuple[float, float, float]:
    """Of the image that is read, of weights, and of the result."""
    pixels = tiles.batch * tiles.height * tiles.width * call.side**2 * tiles.dtype.itemsize
    growth = {"upsample_conv2d": 4.0, "strided_conv2d": 0.25}.get(call.operator, 1.0)
    matrix = call.channels * call.out_channels * tiles.dtype.itemsize
    weights = {
        "conv2d": 9.0 * matrix,
        "upsample_conv2d": 9.0 * matrix,
        "strided_conv2d": 9.0 * matrix,
        "dense_block": 9.0 * sum(math.prod(each) for each in call.convolutions) * tiles.dtype.itemsize,
        "pointwise_conv2d": matrix,
        "swin_mlp": 2.0 * call.channels * call.hidden * tiles.dtype.itemsize,
    }
    images = {"window_attention": 3, "spatial_attention": 3, "posterior_step": 3, "dense_block": 2}.get(
        call.operator, 1
    )
    return images * call.channels * pixels, weights.get(call.operator, 0.0), call.out_channels * growth * pixels


def spent_by_operator(spec: ModelSpec, tiles: Tiles, threads: int, processor: Processor = SERVER) -> dict[str, Spent]:
    """Operator to the time that restoring a batch spends in it, on so many cores.

    Raises:
        RuntimeError: where there is no library "cpu".
    """
    found: dict[str, Spent] = {}
    for times, call in calls.of_restoration(spec):
        within = sum(work.seconds(threads, processor) for work in work_of(call, tiles, threads))
        before = found.get(call.operator, Spent(0.0, 0.0))
        *_, result = _bytes(call, tiles)
        outside = processor.call + result / processor.growth
        found[call.operator] = Spent(before.loops + times * within, before.outside + times * outside)
    return found


def seconds(spec: ModelSpec, tiles: Tiles, threads: int, processor: Processor = SERVER) -> float:
    """Of restoring a batch on so many cores."""
    return sum(map(sum, spent_by_operator(spec, tiles, threads, processor).values()))


def bytes_of_tile(spec: ModelSpec, tiles: Tiles) -> float:
    """About how much memory the restoration of one of the tiles takes, without the weights."""
    largest = max(max(call.channels, call.out_channels) * call.side**2 for _, call in calls.of_restoration(spec))
    return LIVE_IMAGES * largest * tiles.height * tiles.width * tiles.dtype.itemsize


def default_batch_size(
    spec: ModelSpec, shape: tuple[int, int], count: int, device: torch.device, dtype: torch.dtype
) -> int:
    """How many tiles are restored at once where no number is asked for.

    Args:
        spec: the model.
        shape: (height, width) of a tile in input pixels.
        count: how many tiles there are of it.
        device, dtype: of the networks.

    Returns:
        4 on accelerators; on a CPU what `batch_size` finds for torch's number of threads, divided evenly among the
        batches.
    """
    import torch

    if device.type != "cpu":
        return 4
    if not backends.has_kernel("conv2d", "cpu"):
        return 1
    height, width = (int(side * spec.latent_per_input) for side in shape)
    tiles = Tiles(height, width, min(count, BATCHES[-1]), dtype)
    largest = batch_size(spec, tiles, torch.get_num_threads())
    return -(-count // -(-count // largest))


@lru_cache(maxsize=256)
def batch_size(spec: ModelSpec, tiles: Tiles, threads: int) -> int:
    """How many tiles occupy a CPU's threads together: the fewest of `BATCHES` compared with which more gain little.

    Args:
        spec: the model.
        tiles: their shape, and as `batch` how many there are, which the result does not exceed.
        threads: for each, the batch may take `BYTES_PER_THREAD` of memory.

    Returns:
        1 for up to `FEW_THREADS` threads.

    Raises:
        RuntimeError: where there is no library "cpu".
    """
    if threads <= FEW_THREADS:
        return 1
    most = max(1, min(tiles.batch, threads * BYTES_PER_THREAD / bytes_of_tile(spec, tiles)))
    throughput = {n: n / seconds(spec, tiles._replace(batch=n), threads) for n in BATCHES if n <= most}
    best = max(throughput.values())
    return next(n for n, reached in throughput.items() if GAIN * reached >= best)
