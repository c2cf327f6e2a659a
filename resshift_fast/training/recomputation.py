"""Activation checkpointing: the backward pass computes the activations of a layer again instead of keeping them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from resshift_fast.models import autoencoder
from resshift_fast.models.layers import PendingMerge
from resshift_fast.models.swin_unet import ResBlock, SwinLayer


def recompute_activations(network: nn.Module) -> None:
    """Keep only the inputs of a denoiser's or an autoencoder's blocks for the backward pass.

    Raises:
        ValueError: if the module has none.
    """
    layers = [layer for layer in network.modules() if isinstance(layer, (ResBlock, SwinLayer, *autoencoder.BLOCKS))]
    if not layers:
        raise ValueError("recompute needs a network with residual blocks or Swin layers; leave it out")
    for layer in layers:
        layer.forward = partial(_recomputed, layer.forward)  # type: ignore[method-assign]


def _recomputed(forward: Callable[..., Any], x: Any, *others: Any) -> Any:
    if not isinstance(x, PendingMerge):
        return checkpoint(forward, x, *others, use_reentrant=False)
    mode = x.mode

    def merging(first: Any, second: Any, *others: Any) -> Any:
        return forward(PendingMerge(first, second, mode), *others)  # whose tensors can be taken once

    return checkpoint(merging, *x.take(), *others, use_reentrant=False)
