"""window_attention_proj against loops over windows and heads in float64: outputs, gradients; invalid arguments."""

from functools import partial

import pytest
import torch
from comparison import DTYPES, assert_close, check_operator
from golden_data import array
from pairwise import BACKENDS, once, pairwise
from torch.utils._python_dispatch import TorchDispatchMode

from python_tests.ops import test_window_attention as attention
from resshift_fast import use_backend
from resshift_fast.backends import unavailable
from resshift_fast.ops import norm_stats, window_attention_proj
from resshift_fast.ops.window_attention_proj import reference

pytestmark = pytest.mark.usefixtures("poisoned_empty", "backend")

CASES = [  # batch, height, width, heads, head_dim, window, shift, mask, output channels, bias, residual
    (2, 8, 12, 2, 5, 4, 0, "resshift", 10, True, True),
    (1, 16, 16, 1, 32, 8, 4, "resshift", 32, True, True),
    (1, 4, 8, 3, 4, 4, 2, "swin", 7, True, False),
    (1, 14, 7, 2, 3, 7, 3, "swin", 1, False, True),
    (3, 6, 9, 1, 1, 3, 1, "resshift", 5, False, False),
]
IDS = [
    f"B{b}-H{h}-W{w}-{n}x{d}-window{s}-shift{r}-{mask}-O{o}{'-bias' * bias}{'-residual' * residual}"
    for b, h, w, n, d, s, r, mask, o, bias, residual in CASES
]


def exact(qkv, bias_table, weight, bias=None, residual=None, **options):
    """The formula by loops over windows, then a product over channels."""
    y = attention.exact(qkv, bias_table, **options) @ weight.T
    y = y if bias is None else y + bias
    return y if residual is None else y + residual


def plain(qkv, bias_table, weight, bias=None, residual=None, *, num_heads, window_size, shift_size=0, mask="resshift"):
    """The plain PyTorch path, with keyword arguments."""
    return reference(qkv, bias_table, weight, bias, residual, num_heads, window_size, shift_size, mask)


def inputs(batch, height, width, heads, head_dim, window, out_channels, bias=True, residual=True):
    """Random tensors with means far from 0."""
    channels = heads * head_dim
    tensors = attention.inputs(batch, height, width, heads, head_dim, window)
    tensors["weight"] = array("window.weight", out_channels, channels) / channels**0.5
    if bias:
        tensors["bias"] = array("window.proj_bias", out_channels)
    if residual:
        tensors["residual"] = array("window.residual", batch, height, width, out_channels) - 1.7
    return tensors


@pairwise(case=dict(zip(IDS, CASES, strict=True)), dtype=DTYPES, backend=BACKENDS)
def test_matches_float64(case, dtype):
    batch, height, width, heads, head_dim, window, shift, mask, *given = case
    options = {"num_heads": heads, "window_size": window, "shift_size": shift, "mask": mask}
    functions = (partial(f, **options) for f in (window_attention_proj, plain, exact))
    check_operator(*functions, inputs(batch, height, width, heads, head_dim, window, *given), dtype)


@pytest.mark.parametrize("name", ["qkv", "residual"])
@pytest.mark.parametrize("layout", ["channels_first", "strided", "expanded"])
def test_any_memory_layout(layout, name):
    tensors = inputs(2, 8, 8, 2, 4, 4, 6)
    x = tensors[name]
    tensors[name] = {
        "channels_first": x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1),
        "strided": torch.stack([x, torch.full_like(x, torch.nan)], dim=4)[..., 0],
        "expanded": x[:1].expand_as(x),
    }[layout]
    options = {"num_heads": 2, "window_size": 4, "shift_size": 2}
    functions = (partial(f, **options) for f in (window_attention_proj, plain, exact))
    check_operator(*functions, tensors, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_float32_tensors_with_16_bit_images(dtype):
    tensors = inputs(1, 8, 8, 2, 16, 4, 24)
    tensors["qkv"] = tensors["qkv"].to(dtype)
    options = {"num_heads": 2, "window_size": 4, "shift_size": 2}
    y = window_attention_proj(**tensors, **options)
    assert y.dtype == dtype
    expected = exact(**{name: x.double() for name, x in tensors.items()}, **options)
    assert_close("output", y, expected, 2 * torch.finfo(dtype).eps)


class Operators(TorchDispatchMode):
    """Names of this library's operators that are called within the context."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "resshift_fast":
            self.names.append(function.name().removeprefix("resshift_fast::"))
        return function(*args, **(kwargs or {}))


def called(**grad):
    """The library's operators that a call consists of."""
    tensors = inputs(1, 8, 8, 1, 16, 4, 16)
    with Operators() as operators, torch.set_grad_enabled(bool(grad)):
        window_attention_proj(**tensors, num_heads=1, window_size=4)
    return operators.names


@once
@pytest.mark.skipif(bool(unavailable("cpu")), reason=f"the cpu backend {unavailable('cpu')}")
def test_without_a_kernel_for_both_there_are_two_operators():
    with use_backend("cpu"):
        assert called() == called(grad=True) == ["window_attention", "pointwise_conv2d"]


@once
@pytest.mark.skipif(bool(unavailable("triton")), reason=f"the triton backend {unavailable('triton')}")
def test_with_gradients_there_are_two_operators():
    with use_backend("triton"):
        assert called() == ["window_attention_proj"]
        assert called(grad=True) == ["window_attention", "pointwise_conv2d"]


TENSORS = inputs(1, 8, 12, 2, 4, 4, 6)


@once
@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"qkv": TENSORS["qkv"][0]}, ValueError, r"window_attention_proj: qkv must be \[B, H, W, 3C\]"),
        ({"num_heads": 3}, ValueError, "C a multiple of num_heads=3"),
        ({"window_size": 5}, ValueError, "image 8×12 is not a multiple of window_size=5; pad it first"),
        ({"shift_size": 4}, ValueError, "shift_size is 4, expected 0 to window_size − 1 = 3"),
        ({"bias_table": torch.ones(2, 49)}, ValueError, r"bias_table has shape \(2, 49\), expected \(49, 2\)"),
        ({"mask": "standard"}, ValueError, "mask is 'standard', expected 'resshift' or 'swin'"),
        ({"weight": torch.ones(6, 7)}, ValueError, r"weight has shape \(6, 7\), expected \(O, 8\)"),
        ({"weight": torch.ones(0, 8)}, ValueError, r"weight has shape \(0, 8\), expected \(O, 8\) with O ≥ 1"),
        ({"weight": torch.ones(6, 8, 1)}, ValueError, r"weight has shape \(6, 8, 1\)"),
        ({"weight": torch.ones(6, 8).half()}, TypeError, "weight has dtype torch.float16"),
        ({"bias": torch.ones(8)}, ValueError, r"bias has shape \(8,\), expected \(6,\) to match weight"),
        ({"bias": torch.ones(6, device="meta")}, ValueError, "bias is on meta"),
        ({"residual": torch.ones(1, 6, 8, 12)}, ValueError, r"residual has shape .*, expected \(1, 8, 12, 6\)"),
        ({"residual": torch.ones(1, 8, 12, 6).half()}, TypeError, "residual has dtype torch.float16"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_refuses(change, error, message):
    with pytest.raises(error, match=message):
        window_attention_proj(**({**TENSORS, "num_heads": 2, "window_size": 4} | change))


@pytest.mark.parametrize("grad", [False, True], ids=["inference", "gradient"])
def test_the_statistics_of_the_result_are_returned_with_it(grad):
    tensors = {name: x.requires_grad_(grad) for name, x in inputs(2, 8, 12, 2, 5, 4, 10).items()}
    options = {"num_heads": 2, "window_size": 4, "shift_size": 1}
    with torch.set_grad_enabled(grad):
        y, statistics = window_attention_proj(**tensors, **options, next_groups=5, next_eps=1e-6)
        alone = window_attention_proj(**tensors, **options)
    expected = norm_stats.reference(y.detach().double().permute(0, 3, 1, 2), 5, 1e-6)
    assert torch.equal(y, alone) and y.requires_grad == grad == statistics.requires_grad
    assert_close("statistics", statistics.detach(), expected, 1e-5)


def test_groups_that_do_not_divide_the_channels():
    tensors = inputs(1, 4, 4, 1, 4, 4, 10)
    with pytest.raises(ValueError, match="next_groups is 3, but 10 channels do not divide"):
        window_attention_proj(**tensors, num_heads=1, window_size=4, next_groups=3)
