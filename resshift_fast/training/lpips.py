r"""LPIPS, the learned perceptual distance of two images (arXiv 1801.03924, equation 1), on the features of VGG16.

.. math::
    d(a, b) = \sum_l \frac{1}{H_l W_l} \sum_{h, w} \sum_c w_{l,c}\,(\hat a^l_{chw} - \hat b^l_{chw})^2

:math:`\hat a^l` are the activations of the last layer of VGG16's block l, divided by their norm over the channels. The
distance is differentiable with respect to both images; its own weights are frozen.
"""

from collections.abc import Mapping
from os import PathLike

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resshift_fast.weights.checkpoints import load_into, read_state_dict
from resshift_fast.weights.packaged import read_weights
from resshift_fast.weights.published import WeightFile

VGG16 = WeightFile(
    "vgg16-397923af.pth",
    "https://download.pytorch.org/models/vgg16-397923af.pth",
    size=553_433_881,
    sha256="397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
    licence="BSD-3-Clause (torchvision)",
)
# The linear weights of version 0.1 for VGG16, under this name in the wheel of the `lpips` package (BSD-2-Clause).
LINEAR_IN_PACKAGE = "weights/v0.1/vgg.pth"

BLOCKS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
MEAN = (-0.030, -0.088, -0.188)  # of the images in [−1, 1] that VGG16 was trained with
DEVIATION = (0.458, 0.448, 0.450)
EPS = 1e-10
SMALLEST = 16  # pixels: the four poolings between the blocks halve a side


class LPIPS(nn.Module):
    """LPIPS on VGG16. Its weights are random until they are loaded; `from_files` makes one that is loaded.

    `features` has the keys of torchvision's VGG16 and `linear` those of the `lpips` package.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self) -> None:
        super().__init__()
        # Numbered as in torchvision, where a ReLU follows every convolution and a pooling every block.
        self.features = nn.ModuleDict()
        self._blocks: list[list[str]] = []
        number, channels = 0, 3
        for widths in BLOCKS:
            self._blocks.append([])
            for width in widths:
                self.features[str(number)] = nn.Conv2d(channels, width, 3, padding=1)
                self._blocks[-1].append(str(number))
                number, channels = number + 2, width
            number += 1
        self.linear = nn.ParameterList(torch.rand(1, widths[-1], 1, 1) for widths in BLOCKS)
        self.register_buffer("mean", torch.tensor(MEAN).reshape(1, 3, 1, 1))
        self.register_buffer("deviation", torch.tensor(DEVIATION).reshape(1, 3, 1, 1))
        self.requires_grad_(False)

    def load(self, vgg: Mapping[str, Tensor], linear: Mapping[str, Tensor], source: str = "LPIPS") -> None:
        """Load both kinds of weights.

        Args:
            vgg: torchvision's VGG16 with the keys features.N.weight and features.N.bias; others are ignored.
            linear: the `lpips` package's keys lin0.model.1.weight … lin4.model.1.weight, each [1, C, 1, 1].
            source: name of the weights in messages.

        Raises:
            CheckpointError: a key is missing or a shape differs.
        """
        own = self.state_dict()
        state = {name: own[name] for name in ("mean", "deviation")}
        state |= {name: value for name, value in vgg.items() if name in own}
        for index in range(len(BLOCKS)):
            for name in (f"lin{index}.model.1.weight", f"lin.{index}.model.1.weight"):
                if name in linear:
                    state[f"linear.{index}"] = linear[name]
        load_into(self, state, source)

    @classmethod
    def from_files(
        cls,
        vgg: str | PathLike[str] | None = None,
        linear: str | PathLike[str] | None = None,
        *,
        progress: bool = True,
    ) -> "LPIPS":
        """LPIPS with weights of files.

        Args:
            vgg: VGG16 in torchvision's format; None downloads torchvision's (553 MB) once.
            linear: the linear weights, or a wheel of the `lpips` package; None takes those of the installed package.
            progress: show the download.

        Raises:
            OSError: a file is missing or can't be downloaded.
            CheckpointError: a file is of another kind.
        """
        if vgg is None:
            from resshift_fast.weights.download import fetch

            vgg = fetch(VGG16, progress, option="vgg")
        module = cls()
        module.load(read_state_dict(vgg), read_linear(linear), f"{vgg}")
        return module

    def activations(self, image: Tensor) -> list[Tensor]:
        """The activations after the last ReLU of each of the five blocks.

        Args:
            image: [B, 3, H, W] in [−1, 1], sides of at least 16 pixels.

        Returns:
            Five tensors [B, C, H/2ⁱ, W/2ⁱ], the sides rounded down.
        """
        x = (image - self.mean) / self.deviation
        found = []
        for index, names in enumerate(self._blocks):
            if index:
                x = F.max_pool2d(x, 2)
            for name in names:
                x = F.relu(self.features[name](x))
            found.append(x)
        return found

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Distances of pairs of images, [B], at least in float32.

        Args:
            a, b: [B, 3, H, W] in [−1, 1], sides of at least 16 pixels.

        Raises:
            ValueError: for another shape.
        """
        if a.shape != b.shape or a.dim() != 4 or a.shape[1] != 3 or min(a.shape[2:]) < SMALLEST:
            raise ValueError(
                f"LPIPS: expected two images [B, 3, H, W] of one shape with sides of at least {SMALLEST} pixels, got "
                f"{tuple(a.shape)} and {tuple(b.shape)}"
            )
        distances = []
        for x, y, weight in zip(self.activations(a), self.activations(b), self.linear, strict=True):
            difference = unit(x) - unit(y)
            distances.append((difference.square() * weight).sum(1).mean((1, 2)))
        return torch.stack(distances).sum(0)


def unit(x: Tensor) -> Tensor:
    """Divide by the norm over the channels, in float32 for 16-bit activations."""
    x = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    squares = x.square().sum(1, keepdim=True)
    # A pixel without any activation would have an infinite gradient through the square root.
    norm = torch.where(squares > 0, squares, 1.0).sqrt() * (squares > 0)
    return x / (norm + EPS)


def read_linear(path: str | PathLike[str] | None = None) -> dict[str, Tensor]:
    """Read the linear weights of LPIPS for VGG16.

    Args:
        path: the weights, or a wheel (.whl) of the `lpips` package that holds them; None finds the installed package,
            which is not imported.

    Raises:
        FileNotFoundError: there is no such file, or the package is not installed.
        CheckpointError: the file is of another kind.
    """
    return read_weights(
        path,
        "lpips",
        LINEAR_IN_PACKAGE,
        needed="LPIPS needs linear weights: pip install lpips, or give its wheel or their file (--lpips-weights FILE)",
        expected="version 0.1 of the lpips package",
    )
