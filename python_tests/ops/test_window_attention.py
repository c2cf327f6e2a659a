"""window_attention against loops over windows and heads in float64; both shift masks; invalid arguments."""

from functools import cache, partial

import pytest
import torch
from comparison import DTYPES, assert_close, check_operator, name_of
from golden_data import array
from pairwise import BACKENDS, once, pairwise

from resshift_fast.ops import window_attention
from resshift_fast.ops.window_attention import MASKS, reference, relative_position_index, shift_mask

pytestmark = pytest.mark.usefixtures("poisoned_empty", "backend")

CASES = [  # batch, height, width, heads, head_dim, window, shift, mask
    (2, 8, 12, 2, 5, 4, 0, "resshift"),
    (2, 8, 12, 2, 5, 4, 2, "resshift"),
    (2, 8, 12, 2, 5, 4, 2, "swin"),
    (1, 16, 16, 1, 32, 8, 4, "resshift"),
    (1, 4, 8, 3, 4, 4, 2, "resshift"),
    (1, 4, 4, 3, 4, 4, 2, "swin"),
    (1, 14, 7, 2, 3, 7, 3, "swin"),
    (3, 6, 9, 1, 1, 3, 1, "swin"),
    (1, 5, 3, 2, 2, 1, 0, "swin"),
]
IDS = [f"B{b}-H{h}-W{w}-{n}x{d}-window{s}-shift{r}-{mask}" for b, h, w, n, d, s, r, mask in CASES]


def blocked(kind, window, shift, height, width, top, left, i, j):
    """Whether the mask separates tokens i and j of the shifted window whose corner is (top, left)."""
    (row_i, column_i), (row_j, column_j) = divmod(i, window), divmod(j, window)
    if kind == "resshift":
        # Only windows of the bottom row, and there only tokens in different halves of the columns.
        return top + window == height and (column_i < window - shift) != (column_j < window - shift)
    # Rolling moved some pixels across the border: they are not neighbours of the others in the image.
    rows_apart = (top + row_i + shift >= height) != (top + row_j + shift >= height)
    return rows_apart or (left + column_i + shift >= width) != (left + column_j + shift >= width)


@cache
def expected_mask(kind, window, shift, height, width):
    """The mask token by token, [windows, w², w²]."""
    corners = [(top, left) for top in range(0, height, window) for left in range(0, width, window)]
    tokens = range(window**2)
    size = window, shift, height, width
    hidden = [[[blocked(kind, *size, *corner, i, j) for j in tokens] for i in tokens] for corner in corners]
    return -100.0 * torch.tensor(hidden).float()


@cache
def expected_index(window):
    """Row of the bias table for each pair of tokens: one for each difference of rows and of columns."""
    differences = range(-window + 1, window)
    row_of = {difference: i for i, difference in enumerate((r, c) for r in differences for c in differences)}
    pixels = [divmod(i, window) for i in range(window**2)]
    return torch.tensor([[row_of[(ri - rj, ci - cj)] for rj, cj in pixels] for ri, ci in pixels])


def exact(qkv, bias_table, *, num_heads, window_size, shift_size=0, mask="resshift"):
    """The formula, window by window, reading pixels at their coordinates in the unshifted image."""
    batch, height, width, channels3 = qkv.shape
    head_dim = channels3 // 3 // num_heads
    parts = qkv.reshape(batch, height, width, 3, num_heads, head_dim)
    bias = bias_table[expected_index(window_size)]
    masks = expected_mask(mask, window_size, shift_size, height, width) if shift_size else None
    pieces, places = [], []
    for index in range(height * width // window_size**2):
        top, left = (window_size * i for i in divmod(index, width // window_size))
        rows = (torch.arange(top, top + window_size) + shift_size) % height
        columns = (torch.arange(left, left + window_size) + shift_size) % width
        rows, columns = rows.repeat_interleave(window_size), columns.repeat(window_size)
        places.append(rows * width + columns)
        heads = []
        for head in range(num_heads):
            q, k, v = (parts[:, rows, columns, part, head] for part in range(3))
            scores = torch.einsum("bid,bjd->bij", q, k) / head_dim**0.5 + bias[..., head]
            if masks is not None:
                scores = scores + masks[index]
            weights = (scores - scores.detach().amax(2, keepdim=True)).exp()
            heads.append(torch.einsum("bij,bjd->bid", weights / weights.sum(2, keepdim=True), v))
        pieces.append(torch.cat(heads, dim=2))
    order = torch.cat(places).argsort()
    return torch.cat(pieces, dim=1)[:, order].reshape(batch, height, width, -1)


def plain(qkv, bias_table, *, num_heads, window_size, shift_size=0, mask="resshift"):
    """The plain PyTorch path, with keyword arguments."""
    return reference(qkv, bias_table, num_heads, window_size, shift_size, mask)


def inputs(batch, height, width, heads, head_dim, window):
    """Random tensors with means far from 0."""
    qkv = array("window.qkv", batch, height, width, 3 * heads * head_dim)
    qkv[..., 2 * heads * head_dim :] -= 2.3
    return {"qkv": qkv, "bias_table": array("window.bias", (2 * window - 1) ** 2, heads)}


@pairwise(case=dict(zip(IDS, CASES, strict=True)), dtype=DTYPES, backend=BACKENDS)
def test_matches_float64(case, dtype):
    batch, height, width, heads, head_dim, window, shift, mask = case
    options = {"num_heads": heads, "window_size": window, "shift_size": shift, "mask": mask}
    functions = (partial(f, **options) for f in (window_attention, plain, exact))
    check_operator(*functions, inputs(batch, height, width, heads, head_dim, window), dtype)


@pytest.mark.parametrize("layout", ["channels_first", "strided", "transposed", "expanded"])
def test_any_memory_layout(layout):
    tensors = inputs(2, 8, 8, 2, 4, 4)
    qkv = tensors["qkv"]
    tensors["qkv"] = {
        "channels_first": qkv.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1),
        "strided": torch.stack([qkv, torch.full_like(qkv, torch.nan)], dim=4)[..., 0],
        "transposed": qkv.transpose(1, 2).contiguous().transpose(1, 2),
        "expanded": qkv[:1].expand_as(qkv),
    }[layout]
    options = {"num_heads": 2, "window_size": 4, "shift_size": 2}
    functions = (partial(f, **options) for f in (window_attention, plain, exact))
    check_operator(*functions, tensors, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=name_of)
def test_a_float32_bias_with_16_bit_images(dtype):
    tensors = inputs(1, 8, 8, 2, 16, 4)
    qkv, bias_table = tensors["qkv"].to(dtype), tensors["bias_table"].requires_grad_()
    options = {"num_heads": 2, "window_size": 4, "shift_size": 2}
    y = window_attention(qkv, bias_table, **options)
    assert y.dtype == dtype
    assert_close("output", y, exact(qkv.double(), bias_table.detach().double(), **options), 2 * torch.finfo(dtype).eps)
    y.float().square().sum().backward()
    assert bias_table.grad.dtype == torch.float32


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("height, width", [(16, 16), (32, 48), (8, 24), (8, 8)], ids=lambda side: str(side))
def test_mask(kind, height, width):
    assert torch.equal(shift_mask(height, width, 8, 4, kind), expected_mask(kind, 8, 4, height, width))


@pytest.mark.parametrize("height, width", [(16, 16), (32, 48), (64, 64)], ids=lambda side: str(side))
def test_resshift_mask_splits_the_columns_of_the_bottom_windows(height, width):
    mask = shift_mask(height, width, 8, 4, "resshift")
    assert mask.shape == (height * width // 64, 64, 64) and mask.dtype == torch.float32
    bottom = mask[-width // 8 :]
    assert (mask[: -width // 8] == 0).all()
    left = torch.tensor([token % 8 < 4 for token in range(64)])
    assert (bottom[:, left][:, :, ~left] == -100).all() and (bottom[:, ~left][:, :, left] == -100).all()
    assert (bottom[:, left][:, :, left] == 0).all() and (bottom[:, ~left][:, :, ~left] == 0).all()


def test_swin_mask_differs_from_resshift_mask():
    assert not torch.equal(shift_mask(16, 16, 8, 4, "swin"), shift_mask(16, 16, 8, 4, "resshift"))


@pytest.mark.parametrize("window", [1, 2, 7, 8])
def test_relative_position_index(window):
    index = relative_position_index(window)
    assert index.dtype == torch.int64 and torch.equal(index, expected_index(window))


def test_masks_and_indices_are_cached_per_size():
    assert shift_mask(24, 16, 8, 4, "swin") is shift_mask(24, 16, 8, 4, "swin")
    assert relative_position_index(5) is relative_position_index(5)


def test_masks_made_in_inference_mode_can_be_used_in_training():
    options = {"num_heads": 1, "window_size": 3, "shift_size": 1}
    tensors = inputs(1, 27, 3, 1, 2, 3)  # a size that no other test uses
    with torch.inference_mode():
        window_attention(**tensors, **options)
    tensors["qkv"].requires_grad_()
    window_attention(**tensors, **options).sum().backward()
    assert tensors["qkv"].grad.isfinite().all()


def test_attention_stays_within_a_window():
    tensors = inputs(1, 8, 8, 1, 4, 4)
    options = {"num_heads": 1, "window_size": 4}
    before = window_attention(**tensors, **options)
    tensors["qkv"] = tensors["qkv"].clone()
    tensors["qkv"][0, 5, 6] += 10
    changed = (window_attention(**tensors, **options) != before).any(3)[0]
    assert changed[4:, 4:].all() and not changed[:4].any() and not changed[:, :4].any()


QKV, TABLE = torch.ones(1, 8, 12, 24), torch.ones(49, 2)


@once
@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"qkv": QKV[0]}, ValueError, r"window_attention: qkv must be \[B, H, W, 3C\]"),
        ({"qkv": QKV[:0]}, ValueError, r"qkv must be \[B, H, W, 3C\].*got \(0, 8, 12, 24\)"),
        ({"qkv": QKV[..., :23]}, ValueError, r"C a multiple of num_heads=2, got \(1, 8, 12, 23\)"),
        ({"qkv": QKV.long()}, TypeError, "qkv has dtype torch.int64"),
        ({"num_heads": 3}, ValueError, "C a multiple of num_heads=3"),
        ({"num_heads": 0}, ValueError, "C a multiple of num_heads=0"),
        ({"qkv": QKV[:, :7]}, ValueError, "image 7×12 is not a multiple of window_size=4; pad it first"),
        ({"qkv": QKV[:, :, :10]}, ValueError, "image 8×10 is not a multiple of window_size=4"),
        ({"window_size": 0}, ValueError, "not a multiple of window_size=0"),
        ({"shift_size": 4}, ValueError, "shift_size is 4, expected 0 to window_size − 1 = 3"),
        ({"shift_size": -1}, ValueError, "shift_size is -1, expected 0 to"),
        ({"bias_table": TABLE.T}, ValueError, r"bias_table has shape \(2, 49\), expected \(49, 2\)"),
        ({"bias_table": TABLE.half()}, TypeError, "bias_table has dtype torch.float16"),
        ({"bias_table": TABLE.to("meta")}, ValueError, "bias_table is on meta"),
        ({"mask": "standard"}, ValueError, "mask is 'standard', expected 'resshift' or 'swin'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_refuses(change, error, message):
    with pytest.raises(error, match=message):
        window_attention(**({"qkv": QKV, "bias_table": TABLE, "num_heads": 2, "window_size": 4} | change))
