"""The C++ kernels of window_attention: instruction sets, extreme scores, NaN, threads; invalid arguments."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
from comparison import check_operator, name_of
from golden_data import array
from pairwise import ISAS, pairwise

from resshift_fast import use_backend
from resshift_fast.backends import chosen, unavailable
from resshift_fast.ops import window_attention
from resshift_fast.ops.window_attention import MASKS, reference

pytestmark = [
    pytest.mark.skipif(bool(unavailable("cpu")), reason=f"the cpu backend {unavailable('cpu')}"),
    pytest.mark.usefixtures("poisoned_empty", "native"),
]

CASES = [  # batch, height, width, heads, head_dim, window, shift, mask
    (2, 16, 24, 2, 32, 8, 4, "resshift"),
    (1, 8, 8, 6, 32, 8, 4, "swin"),
    (1, 16, 8, 1, 64, 8, 3, "swin"),
    (1, 32, 16, 1, 16, 16, 8, "swin"),
    (1, 15, 30, 2, 17, 15, 7, "resshift"),
    (1, 14, 7, 2, 33, 7, 3, "swin"),
    (3, 9, 6, 2, 5, 3, 1, "swin"),
    (2, 4, 2, 1, 1, 2, 1, "resshift"),
    (1, 2, 3, 2, 7, 1, 0, "swin"),
]
IDS = [f"B{b}-H{h}-W{w}-{n}x{d}-window{s}-shift{r}-{mask}" for b, h, w, n, d, s, r, mask in CASES]


@pytest.fixture(scope="module")
def native():
    with use_backend("cpu"):
        yield


def inputs(batch, height, width, heads, head_dim, window):
    """Random tensors with means far from 0."""
    qkv = array("window.qkv", batch, height, width, 3 * heads * head_dim)
    qkv[..., 2 * heads * head_dim :] -= 2.3
    return {"qkv": qkv, "bias_table": array("window.bias", (2 * window - 1) ** 2, heads)}


def plain(qkv, bias_table, *, num_heads, window_size, shift_size, mask):
    return reference(qkv, bias_table, num_heads, window_size, shift_size, mask)


def gradients(tensors, **options):
    """Output and gradients of one call."""
    leaves = {name: x.detach().requires_grad_() for name, x in tensors.items()}
    y = window_attention(**leaves, **options)
    y.backward(array("window.dout", *y.shape).to(y.dtype))
    return y.detach(), leaves["qkv"].grad, leaves["bias_table"].grad


@pairwise(case=dict(zip(IDS, CASES, strict=True)), dtype=[torch.float32, torch.float16, torch.bfloat16], isa=ISAS)
def test_every_instruction_set_matches_float64(case, dtype, isa):
    *sizes, shift, mask = case
    options = {"num_heads": sizes[3], "window_size": sizes[5], "shift_size": shift, "mask": mask}
    functions = (partial(f, **options) for f in (window_attention, plain, plain))
    check_operator(*functions, inputs(*sizes), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=name_of)
def test_the_cpu_kernels_are_chosen(dtype):
    for *sizes, shift, mask in CASES:
        qkv, bias_table = (x.to(dtype) for x in inputs(*sizes).values())
        args = qkv, bias_table, sizes[3], sizes[5], shift, mask
        assert chosen("window_attention", *args) == "cpu"
        assert chosen("window_attention_backward", qkv[..., : qkv.shape[3] // 3], *args) == "cpu"
    large = inputs(1, 17, 17, 1, 4, 17)
    args = large["qkv"].to(dtype), large["bias_table"].to(dtype), 1, 17, 0, "swin"
    assert chosen("window_attention", *args) == "reference"


def test_scores_far_apart(isa):
    """Probabilities are 0 or 1, and no e^(score − maximum) overflows."""
    tensors = inputs(1, 8, 8, 1, 32, 8)
    tensors["qkv"][..., :64] *= 10
    options = {"num_heads": 1, "window_size": 8, "shift_size": 0, "mask": "swin"}
    functions = (partial(f, **options) for f in (window_attention, plain, plain))
    check_operator(*functions, tensors, torch.float32, 1e-3)  # rounding of scores of several hundred


def test_nan_stays_within_its_window_and_head(isa):
    tensors = inputs(1, 16, 16, 2, 32, 8)
    options = {"num_heads": 2, "window_size": 8, "shift_size": 0, "mask": "swin"}
    clean = window_attention(**tensors, **options)
    tensors["qkv"][0, 3, 5, 64 + 7] = torch.nan  # a key of the first window and head
    broken = window_attention(**tensors, **options)
    assert broken[:, :8, :8, :32].isnan().all()
    clean[:, :8, :8, :32] = broken[:, :8, :8, :32] = 0
    assert torch.equal(broken, clean)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=name_of)
@pytest.mark.parametrize("batch, side, window", [(2, 48, 8), (1, 64, 16), (1, 8, 8)], ids=str)
def test_results_are_bitwise_equal_with_any_number_of_threads(batch, side, window, dtype):
    tensors = {name: x.to(dtype) for name, x in inputs(batch, side, side, 3, 16, window).items()}
    options = {"num_heads": 3, "window_size": window, "shift_size": window // 2, "mask": "resshift"}
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(gradients(tensors, **options))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


def test_several_threads_may_call_at_once():
    options = {"num_heads": 2, "window_size": 8, "shift_size": 4, "mask": "swin"}
    tensors = inputs(1, 32, 24, 2, 32, 8)
    calls = [{"qkv": tensors["qkv"] * (i + 1) / 8, "bias_table": tensors["bias_table"]} for i in range(8)]
    expected = [gradients(call, **options) for call in calls]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            found = list(pool.map(lambda call: gradients(call, **options), calls))
            assert all(all(map(torch.equal, ours, theirs)) for ours, theirs in zip(found, expected, strict=True))


QKV, TABLE = torch.rand(1, 8, 12, 24), torch.rand(49, 2)
GOOD = {"qkv": QKV, "bias_table": TABLE, "num_heads": 2, "window_size": 4, "shift_size": 2, "mask": 0}


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"qkv": QKV[0]}, r"qkv must be \[B, H, W, 3C\]"),
        ({"qkv": QKV[:0]}, "not empty"),
        ({"qkv": QKV.double()}, "qkv must be float32, float16 or bfloat16"),
        ({"qkv": QKV[:, :6]}, "not a multiple of the window"),
        ({"num_heads": 0}, "not three times a multiple of 0 heads"),
        ({"num_heads": -2}, "not three times a multiple of -2 heads"),
        ({"num_heads": 3}, "not three times a multiple of 3 heads"),
        ({"num_heads": 2**62}, "not three times a multiple"),
        ({"window_size": 0}, "1 to 16 pixels wide, got 0"),
        ({"window_size": 17}, "1 to 16 pixels wide, got 17"),
        ({"window_size": -4}, "1 to 16 pixels wide, got -4"),
        ({"shift_size": 4}, "the shift must be 0 to 3, got 4"),
        ({"shift_size": -1}, "the shift must be 0 to 3, got -1"),
        ({"mask": 2}, "mask must be 0 or 1"),
        ({"bias_table": TABLE[:48]}, "bias_table must be"),
        ({"bias_table": TABLE[:, :1]}, "bias_table must be"),
        ({"bias_table": TABLE.half()}, "bias_table must be float32 or have qkv's dtype"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_refuses_invalid_arguments(changes, message):
    operators = torch.ops.resshift_fast_cpu
    args = GOOD | changes
    for call in (
        partial(operators.window_attention, *args.values()),
        partial(operators.window_attention_backward, QKV[..., :8], *args.values()),
    ):
        with pytest.raises(RuntimeError, match=message):
            call()


@pytest.mark.parametrize(
    "dout",
    [QKV[..., :7], QKV[:, :4, :, :8], QKV[0, ..., :8], QKV[..., :8].half()],
    ids=lambda x: f"{tuple(x.shape)}-{x.dtype}",
)
def test_a_wrong_gradient_is_refused(dout):
    with pytest.raises(RuntimeError, match="dout must"):
        torch.ops.resshift_fast_cpu.window_attention_backward(dout, *GOOD.values())


def test_mask_indices_match_the_kernels():
    for index, mask in enumerate(MASKS):
        options = {"num_heads": 2, "window_size": 4, "shift_size": 2}
        expected = plain(QKV, TABLE, mask=mask, **options)
        torch.testing.assert_close(torch.ops.resshift_fast_cpu.window_attention(QKV, TABLE, 2, 4, 2, index), expected)
