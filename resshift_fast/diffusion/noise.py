r"""The noise field: standard normals as a pure function of (seed, step, channel, row, column).

Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) with

    key     = (seed's low 32 bits, seed's high 32 bits), seed in [0, 2⁶³)
    counter = (column, row, channel // 4, step); step 0 is the prior, 1, 2, … the executed steps

gives four words a counter. With :math:`u_i = ((r_i \gg 9) + 1/2)\,2^{-23}`, exact in float32, Box–Muller gives

.. math::
    (z_0, z_1) = \sqrt{-2 \ln u_0}\,(\cos 2\pi u_1, \sin 2\pi u_1), \quad
    (z_2, z_3) = \sqrt{-2 \ln u_2}\,(\cos 2\pi u_3, \sin 2\pi u_3)

and channel 4g + j takes z_j. A pixel's noise therefore does not depend on batch, tile, device or backend.
"""

import math
import operator
from typing import Any

import torch
from torch import Tensor

MULTIPLIER_0, MULTIPLIER_1 = 0xD2511F53, 0xCD9E8D57
WEYL_0, WEYL_1 = 0x9E3779B9, 0xBB67AE85
ROUNDS = 10
MASK = 0xFFFFFFFF
MAX_SEED = 2**63 - 1


def philox4x32(counter: tuple[Tensor, ...], key: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox4x32-10 on broadcastable int64 tensors that hold 32-bit words.

    Args:
        counter: four int64 tensors, each value in [0, 2³²).
        key: two int64 tensors, each value in [0, 2³²).

    Returns:
        Four int64 tensors of the broadcast shape with values in [0, 2³²).
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        # A product of two 32-bit words wraps in int64, but its low and high halves come out right.
        p0, p1 = c0 * MULTIPLIER_0, c2 * MULTIPLIER_1
        c0, c1, c2, c3 = ((p1 >> 32) & MASK) ^ c1 ^ k0, p1 & MASK, ((p0 >> 32) & MASK) ^ c3 ^ k1, p0 & MASK
        k0, k1 = (k0 + WEYL_0) & MASK, (k1 + WEYL_1) & MASK
    return c0, c1, c2, c3


def noise_words(seed: Tensor, step: Tensor, channels: int, height: int, width: int, origin: Tensor | None) -> Tensor:
    """The field's random words.

    Args:
        seed: int64 [B]. step: int64 []. origin: int64 [B, 2], (row, column) of the top-left pixel, or None for 0.

    Returns:
        int64 [4, B, ⌈channels/4⌉, height, width] with values in [0, 2³²).
    """
    device = seed.device
    row = torch.arange(height, device=device).view(1, 1, height, 1)
    column = torch.arange(width, device=device).view(1, 1, 1, width)
    if origin is not None:
        row = row + origin[:, 0].view(-1, 1, 1, 1)
        column = column + origin[:, 1].view(-1, 1, 1, 1)
    group = torch.arange((channels + 3) // 4, device=device).view(1, -1, 1, 1)
    seed = seed.view(-1, 1, 1, 1)
    words = philox4x32((column, row, group, step.view(1, 1, 1, 1)), (seed & MASK, seed >> 32))
    return torch.stack(torch.broadcast_tensors(*words))


def noise_field(
    seed: Tensor, step: Tensor, channels: int, height: int, width: int, *, origin: Tensor | None = None
) -> Tensor:
    """Standard normal noise for a batch of images or tiles.

    Args:
        seed: int64 [B], each in [0, 2⁶³); on the device that the noise is wanted on.
        step: int64 [], 0 for the prior, then 1, 2, … in execution order.
        channels, height, width: extent of the result.
        origin: int64 [B, 2], the (row, column) of each tile in the whole image's latent; None means (0, 0).

    Returns:
        float32 [B, channels, height, width], within 4e-6 of the exact value.

    Example:
        >>> noise_field(torch.tensor([0]), torch.tensor(0), 3, 2, 3)[0, 0, 0, 0]
        tensor(0.9911)
    """
    words = noise_words(seed, step, channels, height, width, origin)
    uniform = ((words >> 9).to(torch.float32) + 0.5) * 2.0**-23
    radius = torch.sqrt(-2 * torch.log(uniform[0::2]))
    angle = (2 * math.pi) * uniform[1::2]
    normal = torch.stack([radius * torch.cos(angle), radius * torch.sin(angle)], dim=3)  # [2, B, G, 2, H, W]
    normal = normal.permute(1, 2, 0, 3, 4, 5).reshape(seed.shape[0], -1, height, width)
    return normal[:, :channels].contiguous()


def check_seed(where: str, seed: Any) -> int:
    """Return `seed` as an int, or raise ValueError/TypeError naming `where` if it is not in [0, 2⁶³)."""
    try:
        if isinstance(seed, bool):
            raise TypeError
        value = operator.index(seed)
    except TypeError:  # also of arrays, which have __index__ whatever their dtype and shape
        shown = " ".join(repr(seed).split())
        raise TypeError(f"{where}: seed is {shown}, expected an integer from 0 to 2**63 - 1") from None
    if not 0 <= value <= MAX_SEED:
        raise ValueError(f"{where}: seed is {value}, expected 0 to 2**63 - 1")
    return value
