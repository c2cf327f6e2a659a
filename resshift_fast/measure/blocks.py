"""Launches with fewer thread blocks than a GPU has multiprocessors, and why they have no more."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from resshift_fast.measure.counting import Launches, Row, by_shape

_LITTLE = "too little work: a launch takes longer than one multiprocessor"
NEARLY = 0.95  # of the blocks that are enough
_TILES = "at least 95 % of them; the next smaller tiles, half as large, would give each block half as much to do"
_PIXELS = "8² or 16² pixels, each with few channels, in the smallest tiles of the matrix instructions"

# Kernel, or PyTorch's operator, to the reason.
REASONS: Mapping[str, str] = {
    "conv2d_kernel": "the sum over channels is divided among them; more parts would write more partial sums",
    "conv2d_sum_kernel": "smaller tiles would read more from the L2 cache, divided sums would be written in parts",
    "aten::convolution": "cuDNN's, of stride 2, or of 64² pixels from or to few channels: few tiles of 128²",
    "pointwise_conv2d_kernel": _PIXELS,
    "swin_mlp_kernel": "the hidden width is divided among them; more parts would write more partial sums",
    "upsample_conv2d_kernel": "limited by reading the weight, which larger tiles do less often",
    "window_attention_proj_kernel": "1 or 4 windows × 12 blocks; dividing heads too would move 27 MB of partial sums",
    "add_concat_group_norm_kernel": "one block merges a group and normalizes it in one pass; more would need two",
    "group_stats_kernel": "one block has a group; more would need a launch that combines their parts",
    "posterior_step_kernel": _LITTLE,
    "prior_sample_kernel": _LITTLE,
    **dict.fromkeys(("aten::_to_copy", "aten::sum", "aten::add", "aten::abs", "aten::lt"), _LITTLE),
}


@dataclass(frozen=True)
class Few:
    """The launches of one kernel that have fewer blocks than asked for.

    Args:
        kernel: the kernel, or PyTorch's operator.
        images: what they read first, without the batch: "640x8x8".
        launches: their number. num_bytes: the bytes that they move.
        blocks: the least and the most blocks of a launch. estimated: whether these are estimates.
        reason: why they have no more; empty for a kernel without one in `REASONS`.
    """

    kernel: str
    images: tuple[str, ...]
    launches: int
    num_bytes: int
    blocks: tuple[int, int]
    estimated: bool
    reason: str


def few_blocks(rows: Mapping[str, Row], least: int) -> list[Few]:
    """The kernels with launches of fewer than `least` blocks, those that move the most bytes first.

    A kernel with launches of nearly as many blocks and others is listed twice.

    Args:
        rows: from `counting.count_sample`. least: blocks that are enough.
    """
    kernels: dict[tuple[str, bool], list[Launches]] = {}
    for launches in by_shape(rows):
        if launches.first.blocks < least:
            nearly = launches.first.blocks >= NEARLY * least
            kernels.setdefault((launches.first.kernel, nearly), []).append(launches)
    found = [_few(members, nearly) for (_, nearly), members in kernels.items()]
    return sorted(found, key=lambda few: -few.num_bytes)


def _few(members: Sequence[Launches], nearly: bool) -> Few:
    kernel = members[0].first.kernel
    blocks = [launches.first.blocks for launches in members]
    images = sorted({launches.first.shape.split(" -> ")[0].partition("x")[2] or "1" for launches in members}, key=_size)
    return Few(
        kernel,
        tuple(images),
        sum(launches.count for launches in members),
        sum(launches.num_bytes for launches in members),
        (min(blocks), max(blocks)),
        any(launches.first.estimated for launches in members),
        _TILES if nearly else REASONS.get(kernel, ""),
    )


def _size(shape: str) -> tuple[int, ...]:
    """Sorts by the plane's side, then the channels."""
    return tuple(map(int, reversed(shape.split("x"))))


def table(found: Sequence[Few]) -> str:
    """As a table in Markdown; ~ marks estimates."""
    lines = ["| kernel | reads | launches | blocks | MB | why not more |", "|---|---|---|---|---|---|"]
    for few in found:
        low, high = few.blocks
        blocks = f"{'~' if few.estimated else ''}{low}" + (f" to {high}" if high > low else "")
        name = re.sub(r"_kernel$", "", few.kernel)
        cells = f"`{name}`", ", ".join(few.images), few.launches, blocks, f"{few.num_bytes / 1e6:,.1f}", few.reason
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)
