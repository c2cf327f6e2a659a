r"""Nearest codebook entry (VQ-VAE, arXiv 1711.00937).

.. math:: k = \arg\min_j \lVert z - e_j \rVert^2 = \arg\min_j \big(\lVert e_j \rVert^2 - 2 z \cdot e_j\big)

Distances are float32 whatever the input, the lowest index wins ties, and a row with NaN gives index 0.
The gradient passes straight through to z and, as that of a gather, to the codebook.
"""

import math
from typing import Any

import torch
from torch import Tensor

from resshift_fast import backends
from resshift_fast.backends import Kernel
from resshift_fast.ops import checks
from resshift_fast.ops.registration import Native, register

CHUNK_ELEMENTS = 1 << 22  # distances held at once: 16 MiB


def nearest(rows: Tensor, codebook: Tensor) -> Tensor:
    """Index of the nearest entry for rows [M, C] in codebook [N, C], int64 [M].

    Memory is bounded, but for an exported program, which can't have another number of chunks for another size.
    """
    norms = codebook.square().sum(1)
    chunk = max(1, CHUNK_ELEMENTS // codebook.shape[0])
    parts = (rows,) if torch.compiler.is_exporting() else rows.split(chunk)
    # argmin treats NaN as the smallest value; a row with NaN has only NaN distances and gives index 0.
    indices = [torch.addmm(norms, part, codebook.T, alpha=-2).argmin(1) for part in parts]
    return torch.cat(indices)


def _plain(z: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    """Quantized z, contiguous, and indices int64 [B, H, W], in plain PyTorch."""
    batch, channels, height, width = z.shape
    rows = z.permute(0, 2, 3, 1).reshape(-1, channels)
    accumulate = checks.accumulation_dtype(z)
    indices = nearest(rows.to(accumulate), codebook.to(accumulate)).view(batch, height, width)
    return codebook[indices].to(z.dtype).permute(0, 3, 1, 2).contiguous(), indices


def _fake(z: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    batch, _, height, width = z.shape
    return z.new_empty(z.shape), z.new_empty((batch, height, width), dtype=torch.int64)


def _matrix_operations(z: torch.Size, codebook: torch.Size, **_: Any) -> int:
    """One product of every pixel with the codebook."""
    return 2 * math.prod(z) * codebook[0]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(output[1])
    ctx.codebook_shape, ctx.codebook_dtype = inputs[1].shape, inputs[1].dtype


def _backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    (indices,) = ctx.saved_tensors
    grad_codebook = None
    if ctx.needs_input_grad[1]:
        rows = grad.permute(0, 2, 3, 1).flatten(0, 2).to(checks.accumulation_dtype(grad))
        # Sorted and summed in order, unlike index_add_, whose sums on a GPU differ from run to run.
        total = rows.new_zeros(ctx.codebook_shape).index_put((indices.flatten(),), rows, accumulate=True)
        grad_codebook = total.to(ctx.codebook_dtype)
    return grad, grad_codebook


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
        output = _plain(z, codebook)
        _setup_context(ctx, (z, codebook), output)
        ctx.mark_non_differentiable(output[1])
        return output

    backward = staticmethod(_backward)


def reference(z: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    """The formula in plain PyTorch, in chunks of pixels, so that the full distance matrix never exists."""
    output: tuple[Tensor, Tensor] = _StraightThrough.apply(z, codebook)  # type: ignore[no-untyped-call]
    return output


def _examples(device: torch.device, dtype: torch.dtype) -> list[tuple[Any, ...]]:
    """Few channels and many; entries too far apart for rounding to matter; repeated entries, which tie."""
    cases = []
    for channels, entries in ((3, 1000), (64, 50)):
        index = torch.arange(entries * channels, device=device).view(entries, channels)
        codebook = (index * 37 % 101 - 50).to(dtype)
        codebook = torch.cat([codebook, codebook[:5]])
        pixels = codebook[torch.arange(2 * 9 * 7, device=device) * 11 % len(codebook)] + 0.125
        cases.append((pixels.view(2, 9, 7, channels).permute(0, 3, 1, 2), codebook))
    return cases


def _triton() -> Kernel:
    from resshift_fast.kernels import vector_quantize as kernels

    return Kernel(kernels.forward, kernels.unsupported)


_op = register(
    "vector_quantize",
    _plain,
    fake=_fake,
    examples=_examples,
    loaders={
        "cpu": Native(),
        "cuda": Native(),
        "triton": _triton,
    },
    matrix_operations=_matrix_operations,
    backward=_backward,
    setup_context=_setup_context,
)


@checks.once
def _check(z: Tensor, codebook: Tensor) -> None:
    checks.image("vector_quantize", "z", z)
    checks.tensor("vector_quantize", "codebook", codebook)
    if codebook.dim() != 2 or codebook.shape[0] == 0 or codebook.shape[1] != z.shape[1]:
        raise ValueError(
            f"vector_quantize: codebook has shape {tuple(codebook.shape)}, expected (N, {z.shape[1]}) to match z"
        )
    checks.parameters("vector_quantize", z, codebook=codebook)


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
    _check(z, codebook)
    run = _op if backends.fused("vector_quantize", z.device, opaque=True) else reference
    return run(z, codebook)
