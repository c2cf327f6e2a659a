"""The window attention kernels against the formula in float64: masks, shifts, gradients, layouts, launches."""

import pytest
import torch
from comparison import LIMITS, assert_close, name_of, relative_error
from golden_data import array
from interpreter import DTYPES, SIXTEEN_BITS
from pairwise import pairwise

from resshift_fast import backends
from resshift_fast.kernels import tuning, window_attention, window_attention_backward, window_attention_tiles
from resshift_fast.kernels.launch import record
from resshift_fast.ops.window_attention import reference

pytestmark = pytest.mark.usefixtures("poisoned_empty")

CASES = [  # batch, height, width, heads, head_dim, window, shift, mask
    (2, 4, 8, 2, 16, 4, 0, "resshift"),
    (2, 8, 12, 1, 32, 4, 1, "resshift"),
    (1, 4, 8, 1, 16, 4, 2, "swin"),
    (1, 8, 8, 1, 64, 4, 3, "swin"),
    (2, 5, 10, 2, 16, 5, 2, "resshift"),
    (1, 15, 10, 1, 32, 5, 4, "swin"),
    (1, 14, 7, 3, 16, 7, 3, "swin"),
    (1, 7, 14, 2, 64, 7, 6, "resshift"),
    (1, 8, 16, 3, 32, 8, 4, "resshift"),
    (1, 16, 16, 1, 32, 8, 4, "swin"),
    (1, 16, 8, 3, 16, 8, 7, "resshift"),
    (1, 8, 16, 1, 64, 8, 1, "swin"),
    (1, 9, 18, 1, 16, 9, 4, "swin"),  # several blocks of keys, the last partly outside the window
    (1, 12, 12, 1, 16, 12, 6, "resshift"),
    (1, 13, 13, 1, 64, 13, 12, "swin"),
    (1, 16, 16, 1, 16, 16, 4, "swin"),
]
HALF_CASES = [  # every head size, one and several blocks of keys
    (2, 8, 12, 1, 32, 4, 1, "resshift"),
    (1, 8, 8, 1, 64, 4, 3, "swin"),
    (1, 7, 14, 1, 64, 7, 6, "resshift"),
    (1, 16, 16, 2, 32, 8, 4, "swin"),
    (1, 16, 8, 1, 16, 8, 7, "resshift"),
    (1, 11, 11, 1, 16, 11, 5, "resshift"),
    (1, 13, 13, 1, 64, 13, 12, "swin"),
    (1, 16, 16, 1, 32, 16, 1, "resshift"),
]


def inputs(batch, height, width, heads, head_dim, window, dtype, device):
    """Random qkv, bias table and gradient of the output; the mean of v is far from 0."""
    qkv = array("window.qkv", batch, height, width, 3 * heads * head_dim)
    qkv[..., 2 * heads * head_dim :] -= 2.3
    table = array("window.bias", (2 * window - 1) ** 2, heads)
    dout = array("window.dout", batch, height, width, heads * head_dim) - 0.7
    return tuple(x.to(dtype).to(device) for x in (qkv, table, dout))


def differentiate(qkv, table, dout, options):
    """Output of the reference and its gradients."""
    qkv, table = (x.detach().clone().requires_grad_() for x in (qkv, table))
    out = reference(qkv, table, *options)
    out.backward(dout)
    return {"out": out.detach(), "dqkv": qkv.grad, "dbias_table": table.grad}


def run(qkv, table, dout, options):
    """Output and gradients of the kernels."""
    out = window_attention.forward(qkv, table, *options)
    dqkv, dtable = window_attention.backward(dout, qkv, table, *options)
    return {"out": out, "dqkv": dqkv, "dbias_table": dtable}


def check(qkv, table, dout, options):
    """Compare with float64; in 16 bits the error may be twice that of the plain path in the same dtype."""
    ours = run(qkv, table, dout, options)
    exact = differentiate(*(x.double() for x in (qkv, table, dout)), options)
    plain = differentiate(qkv, table.to(qkv.dtype), dout, options)
    for name, value in ours.items():
        allowed = LIMITS[qkv.dtype]
        if qkv.dtype != torch.float32:
            allowed = 2 * relative_error(plain[name], exact[name]) + torch.finfo(qkv.dtype).eps / 8
        assert_close(name, value, exact[name], allowed)
    assert ours["out"].dtype == ours["dqkv"].dtype == qkv.dtype and ours["dbias_table"].dtype == torch.float32
    assert ours["out"].is_contiguous() and ours["dqkv"].stride() == torch.empty_like(qkv).stride()


def case_id(case):
    return "B{}-H{}-W{}-{}x{}-window{}-shift{}-{}".format(*case)


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_matches_float64(case, device):
    *shape, window, shift, mask = case
    check(*inputs(*shape, window, torch.float32, device), (shape[3], window, shift, mask))


@pytest.mark.parametrize("dtype", SIXTEEN_BITS, ids=name_of)
@pytest.mark.parametrize("case", HALF_CASES, ids=case_id)
def test_16_bits_match_float64(case, dtype, device):
    *shape, window, shift, mask = case
    check(*inputs(*shape, window, dtype, device), (shape[3], window, shift, mask))


@pytest.mark.parametrize("window", [4, 9])
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_large_logits(dtype, window, device):
    options = (1, window, 1, "swin")
    qkv, table, dout = inputs(1, window, window, 1, 16, window, torch.float32, device)
    qkv, dout = (qkv * 12).to(dtype), dout.to(dtype)  # scores to about ±1,500: their exponentials overflow
    table *= 50
    ours = run(qkv, table, dout, options)
    exact = differentiate(qkv.double(), table.double(), dout.double(), options)
    plain = differentiate(qkv, table.to(dtype), dout, options)
    for name, value in ours.items():
        assert_close(name, value, exact[name], 2 * relative_error(plain[name], exact[name]) + 1e-5)


def test_the_mask_adds_minus_100_and_does_not_exclude(device):
    """As in the official code: a masked token counts if its score is more than 100 above the others."""
    qkv, table, dout = inputs(1, 4, 4, 1, 16, 4, torch.float32, device)
    qkv[..., :32] *= 8  # scores that differ by more than 100
    check(qkv, table, dout, (1, 4, 2, "swin"))


@pytest.mark.parametrize("dtype", SIXTEEN_BITS, ids=name_of)
def test_a_float32_bias_with_16_bit_images(dtype, device):
    qkv, table, dout = inputs(1, 8, 8, 2, 16, 4, torch.float32, device)
    check(qkv.to(dtype), table, dout.to(dtype), (2, 4, 2, "resshift"))


@pytest.mark.parametrize("layout", ["channels_first", "strided", "transposed", "expanded", "offset"])
def test_any_memory_layout(layout, device):
    qkv, table, dout = inputs(2, 4, 8, 2, 16, 4, torch.float32, device)
    change = {
        "channels_first": lambda x: x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1),
        "strided": lambda x: torch.stack([x, torch.full_like(x, torch.nan)], dim=4)[..., 0],
        "transposed": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
        "expanded": lambda x: x[:1].expand_as(x),
        "offset": lambda x: torch.cat([x.new_full((1,), torch.nan), x.flatten()])[1:].view_as(x),
    }[layout]
    check(change(qkv), table.T.contiguous().T, change(dout), (2, 4, 1, "resshift"))


@pytest.mark.parametrize("window, dtype", [(4, torch.float16), (9, torch.float32)])
def test_results_repeat_bitwise(window, dtype, device):
    tensors = inputs(1, window, window, 1, 16, window, dtype, device)
    first, second = (run(*tensors, (1, window, 1, "swin")) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_several_windows_per_program(device, monkeypatch):
    """The bias gradient is summed over a program's windows, then over programs; the last program has fewer windows."""
    monkeypatch.setitem(window_attention_backward.PROGRAMS, 16, 6)
    monkeypatch.setattr(window_attention_backward, "SUM_ELEMENTS", 128)  # two programs' sums at a time
    default = window_attention.FORWARD.default
    monkeypatch.setattr(window_attention.FORWARD, "default", lambda *key: several_windows(default(*key)))
    tensors = inputs(1, 8, 28, 2, 16, 4, torch.float32, device)  # 14 windows: 3 programs per head, with 5, 5 and 4
    check(*tensors, (2, 4, 1, "swin"))


def several_windows(config):
    """The same configuration with four windows per program."""
    return tuning.Config({**config.blocks, "WINDOWS": 4}, config.num_warps, config.num_stages)


def recorded(shape, heads, window, shift, dtype=torch.bfloat16, arch=90):
    """Forward and backward launches for an image of a shape, on the meta device."""
    qkv = torch.empty(shape, dtype=dtype, device="meta")
    table = torch.empty((2 * window - 1) ** 2, heads, device="meta")
    arguments = (qkv, table, heads, window, shift, "resshift")
    assert window_attention.unsupported(*arguments) is None
    with tuning.targeting(arch), record() as launches:
        out = window_attention.forward(*arguments)
        dqkv, dtable = window_attention.backward(out, *arguments)
    assert out.shape == (*shape[:3], shape[3] // 3) and out.dtype == dtype
    assert dqkv.shape == shape and dtable.shape == table.shape and dtable.dtype == torch.float32
    return launches


@pytest.mark.parametrize("arch", tuning.ARCHITECTURES)
@pytest.mark.parametrize(
    "batch, side, heads", [(1, 64, 6), (1, 32, 6), (1, 16, 6), (1, 8, 6), (16, 64, 6), (16, 8, 12)]
)
def test_launches_of_realistic_shapes(batch, side, heads, arch):
    forward, backward, bias = recorded((batch, side, side, 96 * heads), heads, 8, 4, arch=arch)
    windows = batch * (side // 8) ** 2
    assert forward.grid == (-(-windows // forward.constants["WINDOWS"]) * heads,)
    assert backward.grid[0] <= 384 and backward.grid[0] % heads == 0
    assert bias.grid == (15 * heads,)
    pixels = 2 * batch * side**2 * 32 * heads  # bytes of q, of k and of v
    table = 4 * 225 * heads
    assert forward.num_bytes == 4 * pixels + table
    sums = backward.grid[0] * 4 * 64**2
    assert backward.num_bytes == 7 * pixels + table + sums and bias.num_bytes == sums + table


def test_bytes_of_large_windows_include_repeated_reads():
    forward, rows, columns, _ = recorded((1, 32, 32, 96), 1, 16, 8)
    pixels, q_blocks, k_blocks = 2 * 32**2 * 32, 256 // rows.constants["B_Q"], 256 // columns.constants["B_K"]
    small = 4 * 31**2, 4 * 3 * 32**2, 4 * 4 * 256**2  # table; maximum, sum and delta per row; sums of dS
    assert forward.num_bytes == (1 + 1 + 2 * 256 // forward.constants["B_Q"]) * pixels + small[0]
    # Every block of queries reads all keys and values twice.
    assert rows.num_bytes == (3 + 4 * q_blocks) * pixels + sum(small)
    assert columns.num_bytes == (4 + 2 * k_blocks) * pixels + small[0] + k_blocks * small[1]


@pytest.mark.parametrize("shape, heads, window", [((1, 2**16, 2**15, 96), 2, 4), ((1, 2**15, 2**15, 288), 3, 16)])
def test_grids_of_huge_images(shape, heads, window):
    for launch in recorded(shape, heads, window, window // 2):
        assert len(launch.grid) == 1 and launch.grid[0] < 2**31


def test_another_shift_needs_no_other_kernel():
    first, second = (recorded((1, 16, 16, 96), 1, 8, shift) for shift in (1, 4))
    assert [x.constants for x in first] == [x.constants for x in second]


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"dtype": torch.float64}, "torch.float64 is not float32, float16 or bfloat16"),
        ({"head_dim": 24}, "head size 24 is not 16, 32 or 64"),
        ({"head_dim": 128}, "head size 128 is not"),
        ({"window": 3}, "window 3 is not 4 to 16"),
        ({"window": 17}, "window 17 is not 4 to 16"),
        ({"window": 16, "head_dim": 64}, None),
        ({"window": 16, "head_dim": 64, "dtype": torch.float16}, None),
        ({"window": 16}, None),
    ],
)
def test_unsupported_arguments_have_a_reason(change, reason):
    case = {"window": 8, "head_dim": 32, "dtype": torch.float32} | change
    qkv = torch.empty(1, case["window"], case["window"], 3 * case["head_dim"], dtype=case["dtype"], device="meta")
    arguments = (qkv, torch.empty(1, 1, device="meta"), 1, case["window"], 0, "swin")
    for name in ("window_attention", "window_attention_backward"):
        kernel = backends.kernel(name, "triton")
        found = kernel.unsupported(*([qkv] if "backward" in name else []), *arguments)
        assert found is None if reason is None else reason in found


@pairwise(
    window=window_attention_tiles.WINDOW_SIZES,
    head_dim=window_attention_tiles.HEAD_DIMS,
    dtype=window_attention_tiles.DTYPES,
)
def test_every_window_launches_on_every_architecture(window, head_dim, dtype):
    """Every supported call has a configuration, and its blocks cover the window."""
    for arch in tuning.ARCHITECTURES:
        forward, *backward, bias = recorded((1, window, 3 * window, 6 * head_dim), 2, window, 1, dtype, arch)
        for launch in (forward, *backward):
            assert all(launch.constants.get(block, 16) >= 16 for block in ("B_Q", "B_K", "B_T"))
            assert launch.constants["B_T"] >= window**2
        assert bias.grid == ((2 * window - 1) * 2,)
