r"""Changes of brightness, contrast, saturation and hue in random order, as GFPGAN makes them (arXiv 2101.04061).

.. math::
    \text{brightness:}\ f x, \quad \text{contrast:}\ f x + (1 - f)\,\mathrm{mean}(Y), \quad
    \text{saturation:}\ f x + (1 - f)\,Y

Y is the luma; the hue of HSV is shifted by a part of the circle. Every result is clamped to [0, 1].
"""

from __future__ import annotations

import torch
from torch import Tensor

from resshift_fast.training.degradations.noise import LUMA

CHANGES = ("brightness", "contrast", "saturation", "hue")


def luma(image: Tensor) -> Tensor:
    """Y of RGB [B, 3, H, W], [B, 1, H, W]."""
    return torch.einsum("bchw,c->bhw", image, torch.tensor(LUMA, dtype=image.dtype, device=image.device))[:, None]


def change(image: Tensor, kind: str, amount: float) -> Tensor:
    """One change of RGB [B, 3, H, W] in [0, 1].

    Args:
        image: any floating-point dtype.
        kind: one of `CHANGES`.
        amount: the factor f, at least 0; for the hue a part of the circle, −0.5 to 0.5.
    """
    if kind == "hue":
        return shifted_hue(image, amount)
    if kind == "brightness":
        return (image * amount).clamp(0, 1)
    gray = luma(image)
    other = gray.mean((1, 2, 3), keepdim=True) if kind == "contrast" else gray
    return (image * amount + other * (1 - amount)).clamp(0, 1)


def shifted_hue(image: Tensor, amount: float) -> Tensor:
    """RGB [B, 3, H, W] in [0, 1] with another hue and the same saturation and value (A. R. Smith, 1978).

    A channel is value − chroma · max(0, min(k, 4 − k, 1)), where k = (n + 6 · hue) mod 6 and n is 5, 3 and 1 for red,
    green and blue.
    """
    value, brightest = image.max(1, keepdim=True)
    chroma = value - image.amin(1, keepdim=True)
    after, before = ((image.gather(1, (brightest + step) % 3)) for step in (1, 2))
    hue = 2 * brightest + (after - before) / torch.where(chroma > 0, chroma, 1) + 6 * amount  # in sixths
    n = torch.tensor([5.0, 3.0, 1.0], dtype=image.dtype, device=image.device).view(1, 3, 1, 1)
    k = (n + hue) % 6
    return value - chroma * torch.minimum(k, 4 - k).clamp(0, 1)


def jitter(image: Tensor, order: Tensor, amounts: Tensor) -> Tensor:
    """All changes of RGB [B, 3, H, W] in [0, 1], for each sample in an order of its own.

    Args:
        image: the images.
        order: int64 [B, 4], indices of `CHANGES`.
        amounts: [B, 4], in the order of `CHANGES`.
    """
    results = []
    for index, (places, values) in enumerate(zip(order.tolist(), amounts.tolist(), strict=True)):
        one = image[index : index + 1]
        for place in places:
            one = change(one, CHANGES[place], values[place])
        results.append(one)
    return torch.cat(results)
