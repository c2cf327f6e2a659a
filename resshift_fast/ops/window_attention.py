r"""Self-attention within windows, with relative position bias and cyclic shift (Swin, arXiv 2103.14030).

For every w × w window of the image, cyclically shifted by s pixels up and left, and every head

.. math:: \mathrm{softmax}\big(q k^\top / \sqrt{d} + B + M\big)\,v

B holds one learned number for every relative position (Swin, section 3.2). M is −100 between tokens that
must not see one another after the shift. Two masks exist: "swin" is the standard one, which
separates regions that are not neighbours in the image; "resshift" is the one that the ResShift weights were
trained with, where only the windows of the bottom row are masked, between their left and right halves.
The softmax is float32.
"""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from resshift_fast.ops import checks

MASKS = ("resshift", "swin")
MASK_VALUE = -100.0

# Cached tensors are made outside inference mode, because autograd refuses those made within.


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def relative_position_index(window_size: int, device: torch.device | str = "cpu") -> Tensor:
    """Row of the bias table for each pair of tokens, int64 [w², w²].

    Entry (i, j) is (row_i − row_j + w − 1)(2w − 1) + column_i − column_j + w − 1 (Swin, section 3.2).
    The tensor is cached and shared: treat it as read-only.
    """
    token = torch.arange(window_size**2, device=device)
    row, column = token // window_size, token % window_size
    rows = row[:, None] - row[None, :] + window_size - 1
    columns = column[:, None] - column[None, :] + window_size - 1
    return rows * (2 * window_size - 1) + columns


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def shift_mask(
    height: int, width: int, window_size: int, shift_size: int, kind: str, device: torch.device | str = "cpu"
) -> Tensor:
    """Additive mask of a shifted image, float32 [windows, w², w²]: 0 or −100.

    Windows are in row-major order. The tensor is cached and shared: treat it as read-only.
    """
    row = torch.arange(height, device=device)
    column = torch.arange(width, device=device)
    if kind == "swin":
        # A shifted axis holds three regions: untouched windows, and the two parts that meet in the last one.
        row_region = (row >= height - window_size).int() + (row >= height - shift_size).int()
        column_region = (column >= width - window_size).int() + (column >= width - shift_size).int()
        region = row_region[:, None] * 3 + column_region[None, :]
    else:
        half = (column % window_size >= window_size - shift_size).int()
        region = (row >= height - window_size).int()[:, None] * half[None, :]
    tokens = _partition(region[None, :, :, None], window_size)[:, :, 0]  # [windows, w²]
    return torch.where(tokens[:, :, None] == tokens[:, None, :], 0.0, MASK_VALUE)


def _partition(x: Tensor, window_size: int) -> Tensor:
    """[B, H, W, C] to [B · windows, w², C], windows in row-major order."""
    batch, height, width, channels = x.shape
    w = window_size
    x = x.reshape(batch, height // w, w, width // w, w, channels).transpose(2, 3)
    return x.reshape(-1, w * w, channels)


def _reverse(windows: Tensor, window_size: int, batch: int, height: int, width: int) -> Tensor:
    """Inverse of `_partition`."""
    w = window_size
    x = windows.reshape(batch, height // w, width // w, w, w, -1).transpose(2, 3)
    return x.reshape(batch, height, width, -1)


def reference(qkv: Tensor, bias_table: Tensor, num_heads: int, window_size: int, shift_size: int, mask: str) -> Tensor:
    """The formula in plain PyTorch; scores and softmax in float32 (float64 for float64 input)."""
    batch, height, width, channels3 = qkv.shape
    head_dim = channels3 // 3 // num_heads
    tokens = window_size**2
    accumulate = checks.accumulation_dtype(qkv)

    if shift_size:
        qkv = torch.roll(qkv, (-shift_size, -shift_size), dims=(1, 2))
    windows = _partition(qkv, window_size).reshape(-1, tokens, 3, num_heads, head_dim)
    q, k, v = windows.permute(2, 0, 3, 1, 4)  # each [B · windows, heads, w², head_dim]

    index = relative_position_index(window_size, qkv.device)
    bias = bias_table.to(accumulate)[index].permute(2, 0, 1)  # [heads, w², w²]
    scores = (q * head_dim**-0.5 @ k.transpose(-2, -1)).to(accumulate) + bias
    if shift_size:
        m = shift_mask(height, width, window_size, shift_size, mask, qkv.device).to(accumulate)
        scores = (scores.view(batch, -1, num_heads, tokens, tokens) + m[:, None]).view(-1, num_heads, tokens, tokens)
    out = F.softmax(scores, dim=-1).to(v.dtype) @ v

    out = _reverse(out.transpose(1, 2), window_size, batch, height, width)
    return torch.roll(out, (shift_size, shift_size), dims=(1, 2)) if shift_size else out


def window_attention(
    qkv: Tensor,
    bias_table: Tensor,
    *,
    num_heads: int,
    window_size: int,
    shift_size: int = 0,
    mask: str = "resshift",
) -> Tensor:
    """Multi-head attention inside windows of a channels-last image.

    Args:
        qkv: [B, H, W, 3C], floating point, last dimension ordered (q | k | v, head, head_dim); H and W are
            multiples of the window.
        bias_table: [(2 · window_size − 1)², num_heads], qkv's dtype or float32.
        num_heads: a divisor of C.
        window_size: side of a window in pixels.
        shift_size: cyclic shift in pixels, 0 ≤ shift_size < window_size; 0 means no shift and no mask.
        mask: "resshift" (what the ResShift weights expect) or "swin" (the standard mask).

    Returns:
        [B, H, W, C] in qkv's dtype. Differentiable in qkv and bias_table.

    Raises:
        ValueError: for a shape, size, device or mask that does not fit.
        TypeError: for a dtype other than those named.

    Example:
        >>> window_attention(torch.randn(1, 16, 24, 3 * 64), torch.zeros(225, 2), num_heads=2, window_size=8).shape
        torch.Size([1, 16, 24, 64])
    """
    op = "window_attention"
    checks.floating(op, "qkv", qkv)
    if qkv.dim() != 4 or qkv.numel() == 0 or num_heads < 1 or qkv.shape[3] % (3 * num_heads):
        raise ValueError(
            f"{op}: qkv must be [B, H, W, 3C] with C a multiple of num_heads={num_heads}, got {tuple(qkv.shape)}"
        )
    if window_size < 1 or qkv.shape[1] % window_size or qkv.shape[2] % window_size:
        raise ValueError(
            f"{op}: image {qkv.shape[1]}×{qkv.shape[2]} is not a multiple of window_size={window_size}; pad it first"
        )
    if not 0 <= shift_size < window_size:
        raise ValueError(f"{op}: shift_size is {shift_size}, expected 0 to window_size − 1 = {window_size - 1}")
    checks.shape(op, "bias_table", bias_table, ((2 * window_size - 1) ** 2, num_heads), "[(2w − 1)², heads]")
    checks.parameters(op, qkv, bias_table=bias_table)
    if mask not in MASKS:
        raise ValueError(f"{op}: mask is {mask!r}, expected 'resshift' or 'swin'")
    return reference(qkv, bias_table, num_heads, window_size, shift_size, mask)
