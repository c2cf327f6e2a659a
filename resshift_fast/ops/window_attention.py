r"""Self-attention within windows, with relative position bias and cyclic shift (Swin, arXiv 2103.14030).

For every w × w window of the image, cyclically shifted by s pixels up and left, and every head

.. math:: \mathrm{softmax}\big(q k^\top / \sqrt{d} + B + M\big)\,v

B has one learned value for every relative position (Swin, section 3.2). M is −100 between tokens
that must not attend to one another after the shift. There are two masks: "swin" is the standard one, which separates
regions that are not neighbours in the image; "resshift" is the one that the ResShift weights were trained with, where
only the windows of the bottom row are masked, between their left and right halves. The softmax is float32.
"""

import math
from collections.abc import Callable
from functools import wraps
from typing import Any, NamedTuple, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._guards import detect_fake_mode

from resshift_fast import backends
from resshift_fast.backends import Kernel
from resshift_fast.ops import checks, drawing
from resshift_fast.ops.registration import Native, register, takes

MASKS = ("resshift", "swin")
MASK_VALUE = -100.0
CACHE_SIZE = 64

Make = TypeVar("Make", bound=Callable[..., Tensor])


class Arguments(NamedTuple):
    """Arguments of the registered operator; `window_attention` describes them."""

    qkv: Tensor
    bias_table: Tensor
    num_heads: int
    window_size: int
    shift_size: int
    mask: str


class BackwardArguments(NamedTuple):
    """Arguments of the registered gradient: dout like the operator's result, and the operator's own."""

    dout: Tensor
    qkv: Tensor
    bias_table: Tensor
    num_heads: int
    window_size: int
    shift_size: int
    mask: str


def _cached(make: Make) -> Make:
    """Decorator that caches the last tensors that `make` returned, one for each set of arguments.

    A tensor made while torch.compile traces belongs to that trace and is not cached; one made in a fake mode is cached
    for that mode. Tensors are made outside inference mode, because autograd refuses inference tensors.
    """
    cache: dict[tuple[Any, ...], Tensor] = {}

    @wraps(make)
    def cached(*args: Any) -> Tensor:
        if torch.compiler.is_compiling():
            return make(*args)
        key = (*args, detect_fake_mode())
        if key not in cache:
            with torch.inference_mode(False):
                tensor = make(*args)
            if len(cache) >= CACHE_SIZE:
                cache.pop(next(iter(cache)))
            cache[key] = tensor
        return cache[key]

    return cast("Make", cached)


@_cached
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


@_cached
def shift_mask(
    height: int, width: int, window_size: int, shift_size: int, kind: str, device: torch.device | str = "cpu"
) -> Tensor:
    """Additive mask of a shifted image, float32 [windows, w², w²]: 0 or −100.

    Windows are in row-major order. The tensor is cached and shared: treat it as read-only.
    """
    row = torch.arange(height, device=device)
    column = torch.arange(width, device=device)
    if kind == "swin":
        # A shifted axis has three regions: all windows but the last, and the two parts of the last one.
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


def _heads(x: Tensor, parts: int, a: Arguments) -> Tensor:
    """[B, H, W, parts · C] to the windows' heads, [parts, B · windows, heads, w², head_dim]."""
    if a.shift_size:
        x = torch.roll(x, (-a.shift_size, -a.shift_size), dims=(1, 2))
    windows = _partition(x, a.window_size)
    heads: Tensor = windows.unflatten(2, (parts, a.num_heads, -1))
    return heads.permute(2, 0, 3, 1, 4)


def _image(heads: Tensor, a: Arguments) -> Tensor:
    """Inverse of `_heads`: [parts, B · windows, heads, w², head_dim] to an image [B, H, W, parts · C]."""
    windows = heads.permute(1, 3, 0, 2, 4).flatten(2)
    x = _reverse(windows, a.window_size, *a.qkv.shape[:3])
    return torch.roll(x, (a.shift_size, a.shift_size), dims=(1, 2)) if a.shift_size else x


def _probabilities(q: Tensor, k: Tensor, a: Arguments) -> Tensor:
    """softmax(q kᵀ / √d + B + M), [B · windows, heads, w², w²], accumulated in float32 (float64 for float64 input)."""
    batch, height, width = a.qkv.shape[:3]
    num_heads, tokens, head_dim = q.shape[1:]
    accumulate = checks.accumulation_dtype(q)
    index = relative_position_index(a.window_size, q.device)
    bias = a.bias_table.to(accumulate)[index].permute(2, 0, 1)  # [heads, w², w²]
    scores = (q * head_dim**-0.5 @ k.transpose(-2, -1)).to(accumulate) + bias
    if a.shift_size:
        m = shift_mask(height, width, a.window_size, a.shift_size, a.mask, q.device).to(accumulate)
        scores = (scores.view(batch, -1, num_heads, tokens, tokens) + m[:, None]).view(-1, num_heads, tokens, tokens)
    return F.softmax(scores, dim=-1)


@checks.without_autocast
@takes(Arguments)
def reference(a: Arguments) -> Tensor:
    """The formula in plain PyTorch; scores and softmax in float32 (float64 for float64 input)."""
    q, k, v = _heads(a.qkv, 3, a)
    p = _probabilities(q, k, a)
    return _image((p.to(v.dtype) @ v)[None], a)


@takes(Arguments)
def _plain(a: Arguments) -> Tensor:
    return reference(*a).contiguous()


@takes(Arguments)
def _fake(a: Arguments) -> Tensor:
    return a.qkv.new_empty((*a.qkv.shape[:3], a.qkv.shape[3] // 3))


@takes(BackwardArguments)
def _plain_backward(b: BackwardArguments) -> tuple[Tensor, Tensor]:
    """Gradients of qkv and, in float32 (float64 for float64 input), of the bias table; the softmax is recomputed."""
    a = Arguments(*b[1:])
    accumulate = checks.accumulation_dtype(a.qkv)
    q, k, v = _heads(a.qkv, 3, a).to(accumulate)
    (do,) = _heads(b.dout, 1, a).to(accumulate)
    p = _probabilities(q, k, a)
    dp = do @ v.transpose(-2, -1)
    ds = p * (dp - (dp * p).sum(-1, keepdim=True))
    scale = q.shape[-1] ** -0.5
    parts = torch.stack([ds @ k * scale, ds.transpose(-2, -1) @ q * scale, p.transpose(-2, -1) @ do])
    dqkv = _image(parts.to(a.qkv.dtype), a)
    index = relative_position_index(a.window_size, a.qkv.device).flatten()
    dtable = torch.zeros(a.bias_table.shape, dtype=accumulate, device=a.qkv.device)
    # Sorted and summed in order, unlike index_add_, whose sums on a GPU differ from run to run.
    dtable.index_put_((index,), ds.sum(0).flatten(1).T, accumulate=True)
    return dqkv.contiguous(), dtable


@takes(BackwardArguments)
def _fake_backward(b: BackwardArguments) -> tuple[Tensor, Tensor]:
    dtable = b.bias_table.new_empty(b.bias_table.shape, dtype=checks.accumulation_dtype(b.qkv))
    return b.qkv.new_empty(b.qkv.shape), dtable


def _matrix_operations(*args: Any, out_shape: torch.Size, **_: Any) -> int:
    """q kᵀ and P v: 2 · 2 · w² operations for every value of the result."""
    return 4 * Arguments(*args).window_size ** 2 * math.prod(out_shape)


def _matrix_operations_backward(*args: Any, **_: Any) -> int:
    """q kᵀ again, and the four products of the gradients."""
    b = BackwardArguments(*args)
    return 10 * b.window_size**2 * math.prod(b.dout)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs[:2])
    ctx.options = inputs[2:]


def _backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
    qkv, bias_table = ctx.saved_tensors
    dqkv, dtable = _backward_op(dout, qkv, bias_table, *ctx.options)
    return dqkv, dtable.to(bias_table.dtype), *[None] * len(ctx.options)


def _examples(device: torch.device, dtype: torch.dtype) -> list[tuple[Any, ...]]:
    """Both masks, shifted and not, non-square images of several windows."""
    normal = drawing.normal(device, dtype)
    cases = [(2, 16, 24, 8, 32, 4, "resshift"), (1, 8, 8, 4, 32, 0, "resshift"), (1, 16, 8, 8, 32, 4, "swin")]
    return [
        (normal(batch, height, width, 3 * 2 * head), normal((2 * window - 1) ** 2, 2), 2, window, shift, mask)
        for batch, height, width, window, head, shift, mask in cases
    ]


def _backward_examples(device: torch.device, dtype: torch.dtype) -> list[tuple[Any, ...]]:
    return [(_plain(*args).flip(1), *args) for args in _examples(device, dtype)]


def indexed(*args: Any) -> tuple[Any, ...]:
    """Arguments for C++, where the mask, which is the last, is an index."""
    return *args[:-1], MASKS.index(args[-1])


def not_compiled(qkv: Tensor, bias_table: Tensor, num_heads: int, window_size: int, *_: Any) -> str | None:
    """Why the CUDA C++ kernels can't run a call; None if they can."""
    head_dim = qkv.shape[3] // (3 * num_heads)
    if head_dim not in (16, 32, 64):
        return f"head size {head_dim} is not 16, 32 or 64"
    return None if 4 <= window_size <= 16 else f"window {window_size} is not 4 to 16"


def _too_large(qkv: Tensor, bias_table: Tensor, num_heads: int, window_size: int, *_: Any) -> str | None:
    return None if window_size <= 16 else f"window {window_size} is not 16 or less"


def _triton() -> Kernel:
    from resshift_fast.kernels import window_attention as kernels

    return Kernel(kernels.forward, kernels.unsupported)


def _triton_backward() -> Kernel:
    from resshift_fast.kernels import window_attention as kernels

    return Kernel(kernels.backward, kernels.unsupported_backward)


_backward_op = register(
    "window_attention_backward",
    _plain_backward,
    fake=_fake_backward,
    examples=_backward_examples,
    matrix_operations=_matrix_operations_backward,
    loaders={
        "cpu": Native(indexed, lambda dout, *args: _too_large(*args)),
        "cuda": Native(indexed, lambda dout, *args: not_compiled(*args)),
        "triton": _triton_backward,
    },
    training=True,
    public=False,
)
_op = register(
    "window_attention",
    _plain,
    fake=_fake,
    examples=_examples,
    matrix_operations=_matrix_operations,
    loaders={
        "cpu": Native(indexed, _too_large),
        "cuda": Native(indexed, not_compiled),
        "triton": _triton,
    },
    backward=_backward,
    setup_context=_setup_context,
)


@checks.once
def _check(qkv: Tensor, bias_table: Tensor, num_heads: int, window_size: int, shift_size: int, mask: str) -> None:
    check("window_attention", qkv, bias_table, num_heads, window_size, shift_size, mask)


def check(op: str, *arguments: Any) -> None:
    """Check the `Arguments` of an attention within windows, for operator `op`.

    Raises:
        ValueError, TypeError: as in `window_attention`.
    """
    a = Arguments(*arguments)
    qkv, window = a.qkv, a.window_size
    checks.floating(op, "qkv", qkv)
    if qkv.dim() != 4 or qkv.numel() == 0 or a.num_heads < 1 or qkv.shape[3] % (3 * a.num_heads):
        raise ValueError(
            f"{op}: qkv must be [B, H, W, 3C] with C a multiple of num_heads={a.num_heads}, got {tuple(qkv.shape)}"
        )
    if window < 1 or qkv.shape[1] % window or qkv.shape[2] % window:
        image = f"{qkv.shape[1]}×{qkv.shape[2]}"
        raise ValueError(f"{op}: image {image} is not a multiple of window_size={window}; pad it first")
    if not 0 <= a.shift_size < window:
        raise ValueError(f"{op}: shift_size is {a.shift_size}, expected 0 to window_size − 1 = {window - 1}")
    checks.shape(op, "bias_table", a.bias_table, ((2 * window - 1) ** 2, a.num_heads), "[(2w − 1)², heads]")
    checks.parameters(op, qkv, bias_table=a.bias_table)
    if a.mask not in MASKS:
        raise ValueError(f"{op}: mask is {a.mask!r}, expected 'resshift' or 'swin'")


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
    arguments = (qkv, bias_table, num_heads, window_size, shift_size, mask)
    _check(*arguments)
    run = _op if backends.fused("window_attention", qkv.device, opaque=True) else reference
    return run(*arguments)
