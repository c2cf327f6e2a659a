"""Layers shared by the denoiser and the autoencoders. State-dict keys follow the official checkpoints."""

import math
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resshift_fast import ops
from resshift_fast.models.derived import Derived, Preparable

NUM_GROUPS = 32
SLOPE = 0.2  # of `leaky_relu`

Module = TypeVar("Module", bound=nn.Module)


class PendingMerge:
    """A pending sum x + other ("add") or concatenation of channels ("concat") of two tensors [B, C, H, W].

    The next `GroupNorm` merges the two in its own pass; if none follows, `merged` does. Both take the tensors out of
    this object, so that no caller's reference keeps them in memory.
    """

    def __init__(self, x: Tensor, other: Tensor, mode: str):
        self._tensors: list[Tensor] = [x, other]
        self.mode = mode

    def take(self) -> tuple[Tensor, Tensor]:
        """Return the two tensors and drop the references to them; can be called once."""
        x, other = self._tensors
        self._tensors = []
        return x, other


class Measured(NamedTuple):
    """An image [B, C, H, W] with its statistics for the norm that follows, [B, 2, 32]."""

    image: Tensor
    statistics: Tensor


Image = Tensor | PendingMerge | Measured


def merged(x: Image) -> Tensor:
    """The image alone: a pending merge is carried out, a tensor is returned as it is."""
    if isinstance(x, Tensor):
        return x
    if isinstance(x, Measured):
        return x.image
    first, second = x.take()
    return first + second if x.mode == "add" else ops.concat(first, second)


class GroupNorm(nn.Module):
    """Group normalization with 32 groups through `ops.group_norm`; keys `weight` and `bias`."""

    def __init__(self, channels: int, eps: float = 1e-5):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(
        self,
        x: Tensor,
        *,
        scale: Tensor | None = None,
        shift: Tensor | None = None,
        activation: str | None = None,
        statistics: Tensor | None = None,
    ) -> Tensor:
        """Normalize x [B, C, H, W]; `scale`, `shift` [B, C] and the others as in `ops.group_norm`."""
        return ops.group_norm(
            x,
            NUM_GROUPS,
            self.weight,
            self.bias,
            self.eps,
            scale=scale,
            shift=shift,
            activation=activation,
            statistics=statistics,
        )

    def merge(
        self,
        x: Image,
        *,
        scale: Tensor | None = None,
        shift: Tensor | None = None,
        activation: str | None = None,
    ) -> tuple[Tensor, Tensor]:
        """(the merged x [B, C, H, W], its normalization); arguments as in `forward`."""
        if isinstance(x, Measured):
            image, statistics = x
            return image, self(image, scale=scale, shift=shift, activation=activation, statistics=statistics)
        if isinstance(x, Tensor):
            return x, self(x, scale=scale, shift=shift, activation=activation)
        return ops.add_concat_group_norm(
            *x.take(),
            NUM_GROUPS,
            self.weight,
            self.bias,
            self.eps,
            mode=x.mode,
            scale=scale,
            shift=shift,
            activation=activation,
        )


class Conv3x3(nn.Conv2d):
    """3×3 convolution with stride 1 and padding 1 through `ops.conv2d`."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, H, W] to [B, out_channels, H, W]."""
        return ops.conv2d(x, self.weight, self.bias)

    def after(
        self,
        norm: GroupNorm,
        x: Image,
        *,
        scale: Tensor | None = None,
        shift: Tensor | None = None,
        residual: Tensor | None = None,
        following: GroupNorm | None = None,
    ) -> tuple[Tensor, Image]:
        """The merged x, and conv(silu(norm(x))) plus `residual` if that is given.

        If the convolution's kernel can normalize as it reads and add as it writes, there is no intermediate tensor.
        Otherwise the norm merges x. If the kernel can only add, its result has statistics for `following`; if not even
        that, the sum is returned as a `PendingMerge`.

        Args:
            norm: of x.
            x: [B, in_channels, H, W], also with its statistics, or a pending merge with that result.
            scale, shift: [B, in_channels], as in `ops.group_norm`.
            residual: [B, out_channels, H, W].
            following: the norm of the result, or None.
        """
        if ops.conv2d_takes_norm(self.weight.device.type):
            x = merged(x)
            y = ops.conv2d(
                x,
                self.weight,
                self.bias,
                residual=residual,
                num_groups=NUM_GROUPS,
                norm_weight=norm.weight,
                norm_bias=norm.bias,
                eps=norm.eps,
                scale=scale,
                shift=shift,
                activation="silu",
            )
            return x, y
        x, h = norm.merge(x, scale=scale, shift=shift, activation="silu")
        if residual is not None and ops.conv2d_sums(h):
            return x, self.summed(h, residual=residual, following=following)
        if residual is None:
            return x, self.measured(h, following=following)
        return x, PendingMerge(residual, self(h), "add")

    def measured(self, x: Tensor, *, following: GroupNorm | None) -> Tensor | Measured:
        """The result of `forward`, with its statistics for `following` if the convolution's kernel can make them."""
        if following is None or not ops.conv2d_sums(x):
            return self(x)
        return self.summed(x, following=following)

    def summed(
        self,
        x: Tensor,
        *,
        residual: Tensor | None = None,
        skip: "tuple[Conv1x1, Tensor] | None" = None,
        following: GroupNorm | None = None,
    ) -> Tensor | Measured:
        """conv(x) plus all sums that are given, with statistics for `following`; only where `ops.conv2d_sums`.

        Args:
            x: [B, in_channels, H, W]. residual: [B, out_channels, H, W].
            skip: a 1×1 convolution, and the image of which it is added.
            following: the norm of the result, or None.
        """
        options: dict[str, Any] = {"residual": residual}
        if skip is not None:
            layer, image = skip
            options |= {"skip": image, "skip_weight": layer.weight.flatten(1), "skip_bias": layer.bias}
        if following is None:
            return ops.conv2d_sum(x, self.weight, self.bias, **options)[0]
        options |= {"next_groups": NUM_GROUPS, "next_eps": following.eps}
        return Measured(*ops.conv2d_sum(x, self.weight, self.bias, **options))


class Conv1x1(nn.Conv2d):
    """1×1 convolution through `ops.pointwise_conv2d`, with an optional norm of its input and an optional residual."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, 1)

    def forward(self, x: Tensor, *, norm: GroupNorm | None = None, residual: Tensor | None = None) -> Tensor:
        """[B, in_channels, H, W] to [B, out_channels, H, W]; `residual` has the result's shape."""
        return self.before(None, x, norm=norm, residual=residual)[0]

    def before(
        self, following: GroupNorm | None, x: Tensor, *, norm: GroupNorm | None = None, residual: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """The result of `forward`, and its statistics for the norm that follows it, as in `pointwise`."""
        return pointwise(x, self.weight.flatten(1), self.bias, norm=norm, residual=residual, following=following)

    def measured(self, x: Tensor, *, following: GroupNorm | None, residual: Tensor | None = None) -> Tensor | Measured:
        """The result of `before` as one value."""
        y, statistics = self.before(following, x, residual=residual)
        return y if statistics is None else Measured(y, statistics)


def pointwise(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    norm: GroupNorm | None = None,
    statistics: Tensor | None = None,
    residual: Tensor | None = None,
    following: GroupNorm | None = None,
) -> tuple[Tensor, Tensor | None]:
    """`ops.pointwise_conv2d` with normalizations given as layers.

    Args:
        x: [B, C, H, W]. weight, bias: [O, C] and [O]. norm: of x. statistics: of x for `norm`, or None.
        residual: [B, O, H, W], added to the result.
        following: the norm of the result, or None.

    Returns:
        (the result, its statistics for `following`). They are None if an operation of their own would have to compute
        them, which that norm can do as well.
    """
    options = norm_options(norm, statistics) | following_options(following, x)
    if "next_groups" not in options:
        return ops.pointwise_conv2d(x, weight, bias, residual=residual, **options), None
    return ops.pointwise_conv2d(x, weight, bias, residual=residual, **options)


def norm_options(norm: GroupNorm | None, statistics: Tensor | None) -> dict[str, Any]:
    """Arguments of an operator that normalizes its input; none without a norm."""
    if norm is None:
        return {}
    options = {"num_groups": NUM_GROUPS, "norm_weight": norm.weight, "norm_bias": norm.bias, "eps": norm.eps}
    return options if statistics is None else options | {"statistics": statistics}


def following_options(following: GroupNorm | None, x: Tensor) -> dict[str, Any]:
    """Arguments with which an operator also returns the statistics of its result; none where its kernel can't."""
    if following is None or not ops.writes_statistics(x.device.type):
        return {}
    return {"next_groups": NUM_GROUPS, "next_eps": following.eps}


class UpsampleConv(Preparable):
    """Nearest ×2, then a 3×3 convolution; key `conv`."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = Conv3x3(channels, channels)
        self.summed = Derived()

    def prepare(self, changed: bool = False) -> None:
        """Sum the weight's taps."""
        self.summed.refresh([self.conv.weight], lambda: ops.sum_upsample_taps(self.conv.weight), changed)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, C, 2H, 2W]."""
        return merged(self.measured(x, following=None))

    def measured(self, x: Tensor, *, following: GroupNorm | None) -> Tensor | Measured:
        """The result of `forward`, with its statistics for `following` if the convolution's kernel can make them."""
        parameters = x, self.conv.weight, self.conv.bias
        summed = self.summed.current(lambda: [self.conv.weight])
        options = following_options(following, x)
        if not options:
            return ops.upsample_conv2d(*parameters, summed=summed)
        return Measured(*ops.upsample_conv2d(*parameters, summed=summed, **options))


def prepack_weights_(module: Module) -> Module:
    """Prepack the weights of convolutions in place for the kernels of their device, and return the module.

    Only the strides change, not values, names or shapes: weights become channels-last, and those of 3×3 convolutions
    are packed by `ops.pack_conv2d` if a kernel on this device reads them packed.
    """
    if not ops.conv2d_reads_packed(next((p.device.type for p in module.parameters()), "cpu")):
        return module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for layer in module.modules():
        if isinstance(layer, Conv3x3):
            layer.weight.data = ops.pack_conv2d(layer.weight.data)
        elif isinstance(layer, nn.Conv2d):
            layer.weight.data = layer.weight.data.contiguous(memory_format=torch.channels_last)
    return module


def leaky_relu(x: Tensor) -> Tensor:
    """x, of any shape and floating-point dtype, times 0.2 where it is negative; in place where x needs no gradient."""
    return F.leaky_relu(x, SLOPE, inplace=not x.requires_grad)


def zero_(module: Module) -> Module:
    """Set every parameter of `module` to zero and return it, so that a residual branch starts as zero."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def timestep_embedding(timesteps: Tensor, channels: int) -> Tensor:
    """Sinusoidal embedding, cosines first (arXiv 2006.11239, appendix B, with the halves exchanged).

    Args:
        timesteps: [N], any dtype.
        channels: even width of the embedding.

    Returns:
        float32 [N, channels]: cos(t ω_i) then sin(t ω_i), ω_i = 10000^(−i / (channels/2)).
    """
    half = channels // 2
    exponent = torch.arange(half, dtype=torch.float32, device=timesteps.device) / half
    angle = timesteps[:, None].float() * torch.exp(-math.log(10000) * exponent)
    return torch.cat([angle.cos(), angle.sin()], dim=1)
