"""Layers whose `forward` replaces that of a model's own: they have no state, and read the model's by these names.

The attention within windows is none of them: models that have it cut the image into windows before the layer, which the
operator makes needless, so that there is no `forward` of theirs with the same arguments.
"""

import torch
from torch import Tensor, nn

from resshift_fast.ops import group_norm


class GroupNorm(nn.Module):
    """`torch.nn.GroupNorm` of images [B, C, H, W]; other inputs take PyTorch's own."""

    can_torch_compile: bool = True

    num_groups: int
    eps: float
    weight: Tensor | None
    bias: Tensor | None

    def forward(self, input: Tensor) -> Tensor:
        """Normalize [B, C, H, W]; the result has the input's memory format and dtype, also under autocast."""
        if input.ndim != 4 or self.weight is None or self.bias is None:
            return torch.nn.functional.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)
        return group_norm(input, self.num_groups, self.weight, self.bias, self.eps)


class GroupNormSiLU(nn.Module):
    """A group norm of images [B, C, H, W] followed by SiLU, in one kernel."""

    can_torch_compile: bool = True

    num_groups: int
    eps: float
    weight: Tensor
    bias: Tensor

    def forward(self, input: Tensor) -> Tensor:
        """Normalize [B, C, H, W] and apply SiLU; the result has the input's memory format and dtype."""
        return group_norm(input, self.num_groups, self.weight, self.bias, self.eps, activation="silu")
