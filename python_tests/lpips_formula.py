"""LPIPS on VGG16 in a few lines of float64, and random weights in its published formats."""

import torch
import torch.nn.functional as F

# Convolutions of torchvision's VGG16 by their number, with input and output channels; M is a pooling.
LAYOUT = [64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512]


def random_weights(seed=0):
    """Weights of VGG16 and the linear weights, in the formats of torchvision and of the lpips package."""
    generator = torch.Generator().manual_seed(seed)
    vgg, number, channels = {"classifier.0.weight": torch.zeros(1)}, 0, 3
    for width in LAYOUT:
        if width == "M":
            number += 1
            continue
        deviation = (2 / (9 * channels)) ** 0.5
        vgg[f"features.{number}.weight"] = torch.randn(width, channels, 3, 3, generator=generator) * deviation
        vgg[f"features.{number}.bias"] = torch.randn(width, generator=generator) * 0.1
        number, channels = number + 2, width
    widths = (64, 128, 256, 512, 512)
    linear = {f"lin{i}.model.1.weight": torch.rand(1, c, 1, 1, generator=generator) for i, c in enumerate(widths)}
    return vgg, linear


def formula(a, b, vgg, linear):
    """Equation 1 of arXiv 1801.03924 in float64, with the constants of version 0.1 of the lpips package."""
    shift = torch.tensor([-0.030, -0.088, -0.188], dtype=torch.float64)[:, None, None]
    scale = torch.tensor([0.458, 0.448, 0.450], dtype=torch.float64)[:, None, None]
    x = (torch.cat([a, b]).double() - shift) / scale
    number, level, total = 0, 0, 0
    for width in [*LAYOUT, "M"]:
        if width == "M":
            unit = x / (x.pow(2).sum(1, keepdim=True).sqrt() + 1e-10)
            squares = (unit[: len(a)] - unit[len(a) :]) ** 2
            total = total + (squares * linear[f"lin{level}.model.1.weight"].double()).sum(1).mean(dim=(1, 2))
            level, number = level + 1, number + 1
            x = F.max_pool2d(x, 2) if level < 5 else x
        else:
            weight, bias = (vgg[f"features.{number}.{name}"].double() for name in ("weight", "bias"))
            x, number = torch.relu(F.conv2d(x, weight, bias, padding=1)), number + 2
    return total
