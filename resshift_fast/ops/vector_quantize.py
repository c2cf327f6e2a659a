r"""Nearest codebook entry (VQ-VAE, arXiv 1711.00937).

.. math:: k = \arg\min_j \lVert z - e_j \rVert^2 = \arg\min_j \big(\lVert e_j \rVert^2 - 2 z \cdot e_j\big)

Distances are float32 whatever the input, the lowest index wins ties, and a row with NaN gives index 0.
The gradient passes straight through to z and, as that of a gather, to the codebook.
"""

import torch
from torch import Tensor

from resshift_fast.ops import checks

CHUNK_ELEMENTS = 1 << 22  # distances held at once: 16 MiB


def nearest(rows: Tensor, codebook: Tensor) -> Tensor:
    """Index of the nearest entry for rows [M, C] in codebook [N, C], int64 [M], in bounded memory."""
    norms = codebook.square().sum(1)
    chunk = max(1, CHUNK_ELEMENTS // codebook.shape[0])
    # argmin takes a NaN for the smallest value, so a row that holds one gives index 0.
    indices = [torch.addmm(norms, part, codebook.T, alpha=-2).argmin(1) for part in rows.split(chunk)]
    return torch.cat(indices)


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
        batch, channels, height, width = z.shape
        rows = z.permute(0, 2, 3, 1).reshape(-1, channels)
        accumulate = checks.accumulation_dtype(z)
        indices = nearest(rows.to(accumulate), codebook.to(accumulate))
        quantized = codebook[indices].to(z.dtype).view(batch, height, width, channels).permute(0, 3, 1, 2)
        indices = indices.view(batch, height, width)
        ctx.save_for_backward(indices)
        ctx.codebook_like = (codebook.shape, codebook.dtype)
        ctx.mark_non_differentiable(indices)
        return quantized.contiguous(), indices

    @staticmethod
    def backward(ctx, grad: Tensor, _):
        (indices,) = ctx.saved_tensors
        shape, dtype = ctx.codebook_like
        grad_codebook = None
        if ctx.needs_input_grad[1]:
            rows = grad.permute(0, 2, 3, 1).reshape(-1, shape[1]).to(dtype)
            grad_codebook = grad.new_zeros(shape, dtype=dtype).index_add_(0, indices.flatten(), rows)
        return grad, grad_codebook


def reference(z: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    """The formula in plain PyTorch, in chunks of tokens: the full distance matrix never exists."""
    return _StraightThrough.apply(z, codebook)


def vector_quantize(z: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    """Replace every pixel's vector by the nearest codebook entry.

    Args:
        z: [B, C, H, W], floating point.
        codebook: [N, C], z's dtype or float32, N ≥ 1.

    Returns:
        (quantized [B, C, H, W] in z's dtype, indices int64 [B, H, W]).

    Raises:
        ValueError: for a shape or device that does not fit.
        TypeError: for a dtype other than those named.

    Example:
        >>> vector_quantize(torch.tensor([[[[0.9]]]]), torch.tensor([[0.0], [1.0]]))[1]
        tensor([[[1]]])
    """
    checks.image("vector_quantize", "z", z)
    if codebook.dim() != 2 or codebook.shape[0] == 0 or codebook.shape[1] != z.shape[1]:
        raise ValueError(
            f"vector_quantize: codebook has shape {tuple(codebook.shape)}, expected (N, {z.shape[1]}) to match z"
        )
    checks.parameters("vector_quantize", z, codebook=codebook)
    return reference(z, codebook)
