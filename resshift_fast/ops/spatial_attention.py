r"""Single-head attention over all pixels of an image, as in the middle of the VQGAN autoencoders.

.. math:: \mathrm{softmax}\big(q k^\top / \sqrt{C}\big)\,v

The score matrix has (HW)² entries, 256 GiB in float32 for a 512² latent. The reference takes queries in blocks, so that
at most SCORE_ELEMENTS scores exist at once, whichever kernel `scaled_dot_product_attention` picks.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from resshift_fast import backends
from resshift_fast.backends import Kernel
from resshift_fast.ops import checks, drawing
from resshift_fast.ops.registration import Native, recomputed, register

SCORE_ELEMENTS = 1 << 26  # 256 MiB in float32


@checks.without_autocast
def reference(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The formula through scaled_dot_product_attention, in blocks of queries.

    An exported program has one block, as it can't have another number of blocks for another size.
    """
    batch, channels, height, width = q.shape
    q, k, v = (x.flatten(2).transpose(1, 2)[:, None] for x in (q, k, v))  # [B, 1, HW, C]
    block = max(1, SCORE_ELEMENTS // (batch * height * width))
    blocks = (q,) if torch.compiler.is_exporting() else q.split(block, dim=2)
    parts = [F.scaled_dot_product_attention(part, k, v) for part in blocks]
    out = parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)
    return out[:, 0].transpose(1, 2).reshape(batch, channels, height, width)


def _plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return checks.match_memory_format(reference(q, k, v), q)


def _fake(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.empty_like(q)


def _matrix_operations(q: torch.Size, k: torch.Size, v: torch.Size, **_: Any) -> int:
    """q kᵀ and P v, over all pairs of pixels."""
    return 4 * math.prod(q) * q[2] * q[3]


def _examples(device: torch.device, dtype: torch.dtype) -> list[tuple[Any, ...]]:
    """The widest and a narrow head, numbers of pixels that are no multiple of a block."""
    normal = drawing.normal(device, dtype)
    shapes = ((2, 512, 5, 7), (1, 64, 9, 8))
    return [tuple(drawing.channels_last(normal(*shape)) for _ in range(3)) for shape in shapes]


def _triton() -> Kernel:
    from resshift_fast.kernels import spatial_attention as kernels

    return Kernel(kernels.forward, kernels.unsupported)


_op = register(
    "spatial_attention",
    _plain,
    fake=_fake,
    examples=_examples,
    loaders={"cpu": Native(), "triton": _triton},
    matrix_operations=_matrix_operations,
    **recomputed(reference),
)


@checks.once
def _check(q: Tensor, k: Tensor, v: Tensor) -> None:
    checks.image("spatial_attention", "q", q)
    for name, x in (("k", k), ("v", v)):
        checks.shape("spatial_attention", name, x, q.shape, "like q")
        if x.dtype != q.dtype:
            raise TypeError(f"spatial_attention: {name} has dtype {x.dtype}, expected q's {q.dtype}")
        if x.device != q.device:
            raise ValueError(f"spatial_attention: {name} is on {x.device}, expected q's device {q.device}")


def spatial_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of every pixel to every pixel of the same image.

    Args:
        q, k, v: [B, C, H, W], floating point, of one shape, dtype and device.

    Returns:
        [B, C, H, W] in q's dtype. Differentiable in every tensor.

    Raises:
        ValueError: for shapes or devices that differ.
        TypeError: for a dtype that is not floating point, or differs.
    """
    _check(q, k, v)
    run = _op if backends.fused("spatial_attention", q.device, opaque=True) else reference
    return run(q, k, v)
