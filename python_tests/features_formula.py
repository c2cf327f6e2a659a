"""The distance of features of EfficientNet-Lite0 in a few lines of float64, and random weights in its format."""

import math

import torch
import torch.nn.functional as F

# Side of the kernel, stride, expansion, channels of each block (arXiv 1905.11946, table 1).
BLOCKS = [
    *((3, 1, 1, 16), (3, 2, 6, 24), (3, 1, 6, 24), (5, 2, 6, 40), (5, 1, 6, 40), (3, 2, 6, 80), (3, 1, 6, 80)),
    *((3, 1, 6, 80), (5, 1, 6, 112), (5, 1, 6, 112), (5, 1, 6, 112)),
]


def random_weights(seed=0):
    """Weights with the keys of the package efficientnet-lite-pytorch."""
    generator = torch.Generator().manual_seed(seed)
    state = {"_fc.bias": torch.zeros(1)}

    def add(convolution, norm, *shape):
        state[f"{convolution}.weight"] = torch.randn(shape, generator=generator) / math.prod(shape[1:]) ** 0.5
        for name in ("weight", "running_var"):
            state[f"{norm}.{name}"] = 0.5 + torch.rand(shape[0], generator=generator)
        for name in ("bias", "running_mean"):
            state[f"{norm}.{name}"] = torch.randn(shape[0], generator=generator) * 0.3

    add("_conv_stem", "_bn0", 32, 3, 3, 3)
    inputs = 32
    for i, (side, _, expansion, outputs) in enumerate(BLOCKS):
        start, inner = f"_blocks.{i}.", inputs * expansion
        if expansion > 1:
            add(f"{start}_expand_conv", f"{start}_bn0", inner, inputs, 1, 1)
        add(f"{start}_depthwise_conv", f"{start}_bn1", inner, 1, side, side)
        add(f"{start}_project_conv", f"{start}_bn2", outputs, inner, 1, 1)
        inputs = outputs
    return state


def formula(a, b, state):
    """The distances of image pairs in [−1, 1], float64 [B]."""
    state = {name: value.double() for name, value in state.items()}

    def layer(x, convolution, norm, stride=1, groups=1):
        weight = state[f"{convolution}.weight"]
        side = weight.shape[-1]
        total = side - stride  # of TensorFlow's "same" for even sides: less at the left
        x = F.pad(x, (total // 2, total - total // 2) * 2)
        values = [state[f"{norm}.{name}"] for name in ("running_mean", "running_var", "weight", "bias")]
        return F.batch_norm(F.conv2d(x, weight, stride=stride, groups=groups), *values, eps=1e-3)

    mean = torch.tensor([0.485, 0.456, 0.406], dtype=torch.float64)[:, None, None]
    deviation = torch.tensor([0.229, 0.224, 0.225], dtype=torch.float64)[:, None, None]
    x = (torch.cat([a, b]).double() / 2 + 0.5 - mean) / deviation
    x = layer(x, "_conv_stem", "_bn0", 2).clamp(0, 6)
    total = _compared(x, len(a))
    for i, (_, stride, expansion, _) in enumerate(BLOCKS):
        start, h = f"_blocks.{i}.", x
        if expansion > 1:
            h = layer(h, f"{start}_expand_conv", f"{start}_bn0").clamp(0, 6)
        h = layer(h, f"{start}_depthwise_conv", f"{start}_bn1", stride, h.shape[1]).clamp(0, 6)
        h = layer(h, f"{start}_project_conv", f"{start}_bn2")
        x = x + h if stride == 1 and h.shape == x.shape else h
        if i in (0, 2, 4, 10):
            total = total + _compared(x, len(a))
    return total


def _compared(x, count):
    unit = x / (x.pow(2).sum(1, keepdim=True).sqrt() + 1e-10)
    return (unit[:count] - unit[count:]).pow(2).sum(1).mean((1, 2))
