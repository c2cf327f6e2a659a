"""The dense block's formula in any dtype, and arguments for it."""

import torch
import torch.nn.functional as F
from golden_data import array

CONVS = 5


def formula(x, weights, biases, slope=0.2, scale=0.2):
    """Each convolution by its definition, over the images so far."""
    images = [x]
    for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        y = F.conv2d(torch.cat(images, 1), weight, bias, padding=1)
        images.append(torch.where(y > 0, y, slope * y) if i + 1 < CONVS else x + scale * y)
    return images[-1]


def arguments(channels, growth, height, width, dtype=torch.float32, batch=2):
    """(x, weights, biases); x has a mean far from 0."""
    outs = [growth] * (CONVS - 1) + [channels]
    ins = [channels + i * growth for i in range(CONVS)]
    shapes = list(zip(outs, ins, strict=True))
    weights = [array(f"dense.w{i}", o, c, 3, 3) / (3 * c**0.5) for i, (o, c) in enumerate(shapes)]
    x = (array("dense.x", batch, channels, height, width) - 1.1).to(dtype)
    weights = [weight.to(dtype) for weight in weights]
    return x, weights, [array(f"dense.b{i}", out).to(dtype) for i, out in enumerate(outs)]
