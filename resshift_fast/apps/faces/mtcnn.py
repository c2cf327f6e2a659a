r"""MTCNN (arXiv 1604.02878, figure 2): three small networks that propose, refine and place faces, in plain PyTorch.

The kernels' sides and strides are the paper's. The widths, the PReLU after every layer but the last, and the order in
which features become a vector (column, row, channel) are those of the weights of the package facenet-pytorch (MIT). All
networks take RGB pixels as (value − 127.5) / 128, of which 0 to 255 is the range.
"""

from __future__ import annotations

from os import PathLike

import torch.nn.functional as F
from torch import Tensor, nn

from resshift_fast.weights.checkpoints import CheckpointError, load_into
from resshift_fast.weights.packaged import read_weights

PACKAGE = "facenet_pytorch"
NEEDED = (
    "faces are found with the weights of MTCNN: pip install --no-deps facenet-pytorch, or give its wheel "
    "(--face-detector FILE); its other requirements, such as an old torch, are not needed"
)
MEAN, DEVIATION = 127.5, 128.0  # of the pixels that the networks take
STRIDE, PROPOSED = 2, 12  # pixels between the windows of the first network, and their side
REFINED, PLACED = 24, 48  # sides of what the second and the third network take


class ProposalNetwork(nn.Module):
    """P-Net: looks at every second window of 12 × 12 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.prelu1 = nn.Conv2d(3, 10, 3), nn.PReLU(10)
        self.conv2, self.prelu2 = nn.Conv2d(10, 16, 3), nn.PReLU(16)
        self.conv3, self.prelu3 = nn.Conv2d(16, 32, 3), nn.PReLU(32)
        self.conv4_1, self.conv4_2 = nn.Conv2d(32, 2, 1), nn.Conv2d(32, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Whether there is a face in each window, and where.

        Args:
            x: [B, 3, H, W], sides of at least 12.

        Returns:
            (probabilities [B, h, w]; offsets [B, 4, h, w] of the left, top, right and bottom side, in units of the
            window's), with h = ⌈(H − 2) / 2⌉ − 4 and w likewise.
        """
        x = F.max_pool2d(self.prelu1(self.conv1(x)), 2, ceil_mode=True)
        x = self.prelu3(self.conv3(self.prelu2(self.conv2(x))))
        return self.conv4_1(x).softmax(1)[:, 1], self.conv4_2(x)


class RefinementNetwork(nn.Module):
    """R-Net: looks at crops of 24 × 24 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.prelu1 = nn.Conv2d(3, 28, 3), nn.PReLU(28)
        self.conv2, self.prelu2 = nn.Conv2d(28, 48, 3), nn.PReLU(48)
        self.conv3, self.prelu3 = nn.Conv2d(48, 64, 2), nn.PReLU(64)
        self.dense4, self.prelu4 = nn.Linear(64 * 3 * 3, 128), nn.PReLU(128)
        self.dense5_1, self.dense5_2 = nn.Linear(128, 2), nn.Linear(128, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities [B] and offsets [B, 4], as of `ProposalNetwork`, of crops [B, 3, 24, 24]."""
        x = F.max_pool2d(self.prelu1(self.conv1(x)), 3, 2, ceil_mode=True)
        x = F.max_pool2d(self.prelu2(self.conv2(x)), 3, 2, ceil_mode=True)
        x = self.prelu4(self.dense4(_vector(self.prelu3(self.conv3(x)))))
        return self.dense5_1(x).softmax(1)[:, 1], self.dense5_2(x)


class OutputNetwork(nn.Module):
    """O-Net: looks at crops of 48 × 48 pixels, and places five points."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.prelu1 = nn.Conv2d(3, 32, 3), nn.PReLU(32)
        self.conv2, self.prelu2 = nn.Conv2d(32, 64, 3), nn.PReLU(64)
        self.conv3, self.prelu3 = nn.Conv2d(64, 64, 3), nn.PReLU(64)
        self.conv4, self.prelu4 = nn.Conv2d(64, 128, 2), nn.PReLU(128)
        self.dense5, self.prelu5 = nn.Linear(128 * 3 * 3, 256), nn.PReLU(256)
        self.dense6_1, self.dense6_2, self.dense6_3 = nn.Linear(256, 2), nn.Linear(256, 4), nn.Linear(256, 10)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What crops [B, 3, 48, 48] show.

        Returns:
            (probabilities [B]; offsets [B, 4], as of `ProposalNetwork`; points [B, 5, 2], x and y in units of the
            crop's side: the eyes, the nose and the corners of the mouth, the left one in the picture first).
        """
        x = F.max_pool2d(self.prelu1(self.conv1(x)), 3, 2, ceil_mode=True)
        x = F.max_pool2d(self.prelu2(self.conv2(x)), 3, 2, ceil_mode=True)
        x = F.max_pool2d(self.prelu3(self.conv3(x)), 2, ceil_mode=True)
        x = self.prelu5(self.dense5(_vector(self.prelu4(self.conv4(x)))))
        points = self.dense6_3(x).unflatten(1, (2, 5)).transpose(1, 2)  # five x, then five y
        return self.dense6_1(x).softmax(1)[:, 1], self.dense6_2(x), points


def _vector(x: Tensor) -> Tensor:
    """[B, C, H, W] as vectors in the order of the weights: column, row, channel."""
    return x.permute(0, 3, 2, 1).flatten(1)


class Networks(nn.Module):
    """The three networks. Their weights are random until they are loaded; `from_files` makes them loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.pnet, self.rnet, self.onet = ProposalNetwork(), RefinementNetwork(), OutputNetwork()
        self.requires_grad_(False)

    @classmethod
    def from_files(cls, path: str | PathLike[str] | None = None) -> Networks:
        """The networks with weights of facenet-pytorch.

        Args:
            path: the wheel of that package; None finds it installed, and does not import it.

        Raises:
            FileNotFoundError, OSError: there is no such file, or the package is not installed.
            CheckpointError: the file is of another kind, damaged, or its weights do not fit.
        """
        if path is not None and not str(path).endswith(".whl"):
            raise CheckpointError(f"{path} is no wheel; give the .whl file that `pip download` gets of facenet-pytorch")
        networks = cls()
        for name, network in networks.named_children():
            member = f"data/{name}.pt"
            state = read_weights(path, PACKAGE, member, needed=NEEDED, expected="facenet-pytorch")
            load_into(network, state, f"{member} of {path or 'facenet-pytorch'}")
        return networks.eval()
