"""Real-ESRGAN's generator in float64, from a list of its convolutions."""

import torch
import torch.nn.functional as F


def formula(x, weights, blocks):
    """The network with the numbers of arXiv 2107.10833's program: [B, C, h, w] to [B, 3, 4h, 4w].

    Args:
        weights: (weight, bias) of all convolutions in float64, in the order in which they run.
        blocks: residual-in-residual dense blocks.
    """
    weights = iter(weights)

    def conv(x, active=False):
        x = F.conv2d(x, *next(weights), padding=1)
        return torch.where(x > 0, x, 0.2 * x) if active else x

    first = x = conv(x.double())
    for _ in range(blocks):
        start = x
        for _ in range(3):
            inputs = [x]
            for _ in range(4):
                inputs.append(conv(torch.cat(inputs, 1), True))
            x = x + 0.2 * conv(torch.cat(inputs, 1))
        x = start + 0.2 * x
    x = first + conv(x)
    for _ in range(2):
        x = conv(x.repeat_interleave(2, 2).repeat_interleave(2, 3), True)
    return conv(conv(x, True))
