"""Learning rate and averaged weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from resshift_fast.training.config import TrainConfig


def learning_rate(config: TrainConfig, step: int) -> float:
    """Learning rate of optimizer step `step`, from 0: linear warm-up, then half a cosine down to min_lr."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    progress = (step - config.warmup) / max(1, config.steps - 1 - config.warmup)
    return config.min_lr + 0.5 * (config.lr - config.min_lr) * (1.0 + math.cos(math.pi * min(1.0, progress)))


class AveragedWeights:
    """Exponential moving average of a module's weights.

    Args:
        module: its tensors must stay the same objects.
        decay: at step n at most (1 + n) / (10 + n) is used.
    """

    def __init__(self, module: nn.Module, decay: float):
        self.module, self.decay = module, decay
        self.set(module.state_dict())

    def set(self, state: Mapping[str, Tensor]) -> None:
        """Replace the averages by copies of these tensors."""
        own = self.module.state_dict()
        self.state = {name: value.detach().clone().to(own[name].device) for name, value in state.items()}
        moving = [name for name, value in own.items() if value.is_floating_point()]
        # Tensors of a state_dict share memory with the weights, so these lists stay valid.
        self._pair = [self.state[name] for name in moving], [own[name] for name in moving]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move towards the weights after optimizer step `step`."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(*self._pair, 1.0 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put the averages into the module, in evaluation mode, within the block."""
        own = {name: value.detach().clone() for name, value in self.module.state_dict().items()}
        self.module.load_state_dict(self.state)
        self.module.eval()
        try:
            yield
        finally:
            self.module.load_state_dict(own)
            self.module.train()
