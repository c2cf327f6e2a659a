"""Optimizers with their learning rate and loss scaling, and averaged weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from resshift_fast.training.config import TrainConfig

FUSED = {"cpu", "cuda"}  # types of devices with a kernel for AdamW in every torch that is supported


def learning_rate(config: TrainConfig, step: int) -> float:
    """Learning rate of optimizer step `step`, from 0: linear warm-up, then half a cosine down to min_lr."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    progress = (step - config.warmup) / max(1, config.steps - 1 - config.warmup)
    return config.min_lr + 0.5 * (config.lr - config.min_lr) * (1.0 + math.cos(math.pi * min(1.0, progress)))


def adamw(parameters: Iterable[nn.Parameter], config: TrainConfig, peak: float | None = None) -> torch.optim.Optimizer:
    """AdamW (arXiv 1711.05101) with a training's decay rates, all of a step in one kernel where PyTorch has it.

    Args:
        parameters: to train.
        config: `betas` and `weight_decay` are used, and `lr` if `peak` is None.
        peak: the peak learning rate.
    """
    lr = config.lr if peak is None else peak
    found = list(parameters)
    fused = {one.device.type for one in found} <= FUSED
    return torch.optim.AdamW(found, lr=lr, betas=config.betas, weight_decay=config.weight_decay, fused=fused or None)


class Optimization:
    """The optimizer of a network, with the learning rate, the clipping and the loss scaling of a training.

    Args:
        network: with the parameters to train.
        optimizer: of them, built with its peak learning rate.
        config: `lr`, `min_lr`, `warmup`, `steps`, `grad_clip` and `precision` are used; the optimizer's learning rate
            is always the same share of its peak as the configuration's.
        device: of the training.
    """

    def __init__(self, network: nn.Module, optimizer: torch.optim.Optimizer, config: TrainConfig, device: torch.device):
        self.network, self.optimizer, self.config = network, optimizer, config
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "float16")

    def begin(self, step: int) -> None:
        """Set the learning rate of optimizer step `step`, and clear the gradients."""
        share = learning_rate(self.config, step) / self.config.lr
        for group in self.optimizer.param_groups:
            group["lr"] = share * self.optimizer.defaults["lr"]
        self.optimizer.zero_grad(set_to_none=True)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss."""
        self.scaler.scale(loss).backward()

    def clip(self) -> float:
        """Clip the gradients; returns their norm before."""
        self.scaler.unscale_(self.optimizer)
        return float(nn.utils.clip_grad_norm_(self.network.parameters(), self.config.grad_clip or math.inf))

    def step(self) -> None:
        """Change the weights, unless gradients have overflowed in float16."""
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def state(self) -> dict[str, Any]:
        """What `load` takes."""
        return {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue from a state; settings such as weight decay stay those that the optimizer was built with."""
        self.optimizer.load_state_dict(state["optimizer"])
        for group in self.optimizer.param_groups:  # which the state has replaced
            group |= self.optimizer.defaults
        if self.scaler.is_enabled() and state.get("scaler"):
            self.scaler.load_state_dict(state["scaler"])


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
