"""Residual blocks at each level of a `SwinUNet`: read from its weights, and left out of a deeper network's weights."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from itertools import groupby

from torch import Tensor

from resshift_fast.models.sizes import SwinUNetConfig

_STAGE = re.compile(r"(?:^|(?<=\.))(input_blocks|output_blocks)\.(\d+)\.")
_FIRST_LAYER = re.compile(r"(?:^|\.)input_blocks\.(\d+)\.0\.(in_layers|op)\.")


def of_weights(config: SwinUNetConfig, state: Mapping[str, Tensor]) -> SwinUNetConfig:
    """The sizes with as many residual blocks at each level as the weights have.

    Args:
        config: other sizes of the network.
        state: its weights by key.

    Returns:
        `config` itself where the weights are of a network with another number of levels, or of none.
    """
    found = {int(match[1]): match[2] for match in map(_FIRST_LAYER.search, state) if match}
    runs = [(layer, len(list(run))) for layer, run in groupby(found[stage] for stage in sorted(found))]
    blocks = tuple(count for layer, count in runs if layer == "in_layers")
    # Between the levels is one convolution each.
    between = [count for layer, count in runs if layer == "op"]
    if len(blocks) != len(config.num_res_blocks) or between != [1] * (len(blocks) - 1):
        return config
    return replace(config, num_res_blocks=blocks)


def without_further_blocks(config: SwinUNetConfig, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a network from those of one with more residual blocks at some levels.

    A level of the encoder keeps its first blocks. One of the decoder keeps its first blocks too, and its last one,
    which takes what the level began with.

    Args:
        config: sizes of the network.
        state: weights of one that is at least as deep; the sizes differ in `num_res_blocks` only.

    Returns:
        The weights that the network has, with its keys. All weights where a level has fewer blocks than the network.
    """
    deep = of_weights(config, state)
    if any(own > given for own, given in zip(config.num_res_blocks, deep.num_res_blocks, strict=True)):
        return dict(state)
    given, own = _stages(deep.num_res_blocks), _stages(config.num_res_blocks)
    numbers = {
        (side, str(number)): own[side].index(stage) if stage in own[side] else None
        for side, stages in given.items()
        for number, stage in enumerate(stages)
    }
    kept = {}
    for key, tensor in state.items():
        match = _STAGE.search(key)
        number = numbers.get((match[1], match[2])) if match else None
        if match and number is not None:
            kept[key[: match.start()] + f"{match[1]}.{number}." + key[match.end() :]] = tensor
        elif not match:
            kept[key] = tensor
    return kept


def _stages(blocks: tuple[int, ...]) -> dict[str, list[tuple[int, int | str]]]:
    """What every stage of both sides is: its level, and the residual block or convolution of it."""
    levels = range(len(blocks))
    encoder: list[tuple[int, int | str]] = [(0, "first")]
    for level in levels:
        encoder += [(level, block) for block in range(blocks[level])]
        encoder += [(level, "down")] if level < levels[-1] else []
    decoder: list[tuple[int, int | str]] = []
    for level in reversed(levels):
        decoder += [*((level, block) for block in range(blocks[level])), (level, "last")]
    return {"input_blocks": encoder, "output_blocks": decoder}
