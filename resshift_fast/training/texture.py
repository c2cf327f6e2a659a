r"""The error of texture: how strongly pixels differ from their neighbours, wherever the differences lie.

.. math::
    e(a, b) = \frac{1}{n} \sum_{d, p} \left|r_d(a, p) - r_d(b, p)\right|, \qquad
    r_d(a, p) = \sqrt{\epsilon + \frac{1}{|W_p|} \sum_{q \in W_p} (a_{q + d} - a_q)^2}

for windows W_p of 8 × 8 pixels and eight distances d: one and two pixels across, down and along both diagonals. The
error of pixels punishes a likely texture that is not the true one more than none; this one is small for it. It compares
statistics of windows as a loss of Gram matrices does (arXiv 1508.06576), of differences instead of features.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

WINDOW = 8  # pixels
STRIDE = 4
DISTANCES = ((0, 1), (1, 0), (1, 1), (1, -1), (0, 2), (2, 0), (2, 2), (2, -2))  # rows, columns
EPSILON = 1e-4  # of images in [−1, 1]: the gradient of a root ends at 0, and a difference of a level is 0.008


def strengths(image: Tensor) -> list[Tensor]:
    """r_d of the mean of the channels, for each distance [B, 1, rows, columns] of windows that begin every four pixels.

    Args:
        image: [B, C, H, W] in [−1, 1], with sides of at least ten pixels.
    """
    gray = image.float().mean(1, keepdim=True)
    height, width = gray.shape[2:]
    found = []
    for down, across in DISTANCES:
        first = gray[:, :, : height - down, max(0, -across) : width - max(0, across)]
        second = gray[:, :, down:, max(0, across) : width - max(0, -across)]
        found.append((F.avg_pool2d((second - first) ** 2, WINDOW, STRIDE) + EPSILON).sqrt())
    return found


def texture_error(image: Tensor, truth: Tensor) -> Tensor:
    """The error of each image of a batch, [B]; sizes as in `strengths`."""
    pairs = zip(strengths(image), strengths(truth), strict=True)
    return torch.stack([(one - other).abs().flatten(1).mean(1) for one, other in pairs]).mean(0)
