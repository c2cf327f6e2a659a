r"""Statistics of a group normalization that an image carries with it.

.. math:: \mu = \operatorname{mean}(x), \quad \rho = \frac{1}{\sqrt{\operatorname{var}(x) + \epsilon}}

over each group of C/G channels and all pixels of an image. An operator that makes an image can write them, and the next
normalization takes them instead of reading the image twice. They are of the values as they are stored, in x's dtype.
"""

from collections.abc import Callable
from functools import wraps
from inspect import Parameter, Signature, signature
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from resshift_fast import backends
from resshift_fast.ops import checks


def reference(x: Tensor, num_groups: int, eps: float) -> Tensor:
    """Mean and 1 / √(variance + eps) of every group of x [B, C, H, W]: [B, 2, G], float32, float64 for float64."""
    groups = x.to(checks.accumulation_dtype(x)).reshape(x.shape[0], num_groups, -1)
    variance, mean = torch.var_mean(groups, dim=2, correction=0)
    return torch.stack([mean, (variance + eps).rsqrt()], dim=1)


def fake(x: Tensor, num_groups: int) -> Tensor:
    """An empty tensor like the result of `reference`."""
    return x.new_empty((x.shape[0], 2, num_groups), dtype=checks.accumulation_dtype(x))


Both = Callable[..., tuple[Tensor, Tensor]]


def with_statistics(function: Callable[..., Tensor], of: Callable[[Tensor, int, float], Tensor] = reference) -> Both:
    """`function`, which makes an image, with two more arguments, next_groups and next_eps: it returns statistics too.

    Args:
        function: whose parameters, without defaults, are the first of the result's.
        of: from the image, next_groups and next_eps to its statistics.
    """

    @wraps(function)
    def both(*arguments: Any) -> tuple[Tensor, Tensor]:
        *first, next_groups, next_eps = arguments
        y = function(*first)
        return y, of(y, next_groups, next_eps)

    # Without defaults: PyTorch would leave out arguments that equal a default of the schema.
    first = [p.replace(default=Parameter.empty) for p in signature(function).parameters.values()]
    more = [Parameter(name, first[0].kind, annotation=t) for name, t in (("next_groups", int), ("next_eps", float))]
    vars(both)["__signature__"] = Signature([*first, *more], return_annotation=tuple[Tensor, Tensor])
    return both


def fake_with_statistics(function: Callable[..., Tensor]) -> Both:
    """`with_statistics` of a function that makes an empty image."""
    return with_statistics(function, lambda y, next_groups, _: fake(y, next_groups))


def normalized(
    x: Tensor,
    statistics: Tensor,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    activation: str | None = None,
) -> Tensor:
    """`group_norm` of x [B, C, H, W] with given statistics [B, 2, G], accumulated in float32 or float64."""
    accumulate = statistics.dtype
    mean, rstd = statistics.repeat_interleave(x.shape[1] // statistics.shape[2], dim=2)[..., None, None].unbind(1)
    y = (x.to(accumulate) - mean) * rstd * weight.to(accumulate)[:, None, None] + bias.to(accumulate)[:, None, None]
    if scale is not None:
        y = y * (1 + scale.to(accumulate)[:, :, None, None])
    if shift is not None:
        y = y + shift.to(accumulate)[:, :, None, None]
    if activation == "silu":
        y = F.silu(y)
    return y.to(x.dtype)


def check(op: str, statistics: Tensor | None, x: Tensor, num_groups: int) -> None:
    """Check statistics of x's normalization, or None."""
    if statistics is None:
        return
    if not num_groups:
        raise ValueError(f"{op}: statistics are given, but num_groups is 0; pass the number of groups")
    checks.shape(op, "statistics", statistics, (x.shape[0], 2, num_groups), "[B, 2, G] to match x and the groups")
    checks.devices(op, x, statistics=statistics)
    if statistics.dtype != checks.accumulation_dtype(x):
        expected = checks.accumulation_dtype(x)
        raise TypeError(
            f"{op}: statistics have dtype {statistics.dtype}, expected {expected}; take an operator's result"
        )


def check_next(op: str, channels: int, next_groups: int) -> None:
    """Check the number of groups of the next normalization, of an image with this many channels."""
    if next_groups < 1 or channels % next_groups:
        raise ValueError(
            f"{op}: next_groups is {next_groups}, but {channels} channels do not divide into as many groups"
        )


def writes_statistics(device_type: str) -> bool:
    """Whether operators write statistics in the kernel of the image itself.

    That needs a backend with such kernels, and that no gradient is wanted. Elsewhere statistics are an operation of
    their own, and a caller does better not to ask for them.
    """
    return backends.has_kernel("pointwise_conv2d_statistics", device_type) and not torch.is_grad_enabled()
