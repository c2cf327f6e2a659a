"""The window_attention_proj kernel against float64: masks, sizes, layouts, every configuration, launches."""

from itertools import cycle

import pytest
import torch
from comparison import LIMITS, assert_close, double, name_of, relative_error
from golden_data import array
from interpreter import SIXTEEN_BITS

from resshift_fast.kernels import tuning, window_attention_proj
from resshift_fast.kernels.launch import record
from resshift_fast.ops import norm_stats
from resshift_fast.ops.window_attention_proj import reference

pytestmark = pytest.mark.usefixtures("poisoned_empty")

CASES = [  # batch, height, width, heads, head_dim, window, shift, mask, output channels, bias, residual
    (1, 8, 16, 3, 32, 8, 4, "resshift", 96, True, True),
    (2, 8, 16, 2, 32, 8, 0, "resshift", 64, True, True),
    (2, 4, 8, 2, 16, 4, 1, "swin", 33, False, True),
    (1, 10, 5, 1, 32, 5, 2, "resshift", 1, True, False),
    (1, 14, 7, 1, 64, 7, 3, "swin", 40, True, True),
    (1, 9, 18, 1, 16, 9, 4, "swin", 16, False, False),  # several blocks of keys, the last partly outside the window
]
HALF_CASES = [*CASES[:4], (1, 16, 8, 1, 64, 8, 7, "resshift", 320, True, True)]
QKV, TABLE, WEIGHT, BIAS, RESIDUAL = range(5)  # indices of arguments


def case_id(case):
    *shape, bias, residual = case
    return "B{}-H{}-W{}-{}x{}-window{}-shift{}-{}-O{}".format(*shape) + "-bias" * bias + "-residual" * residual


def inputs(case, device, dtype=torch.float32):
    """The launcher's arguments; the means of v and of the residual are far from 0."""
    batch, height, width, heads, head_dim, window, shift, mask, out_channels, bias, residual = case
    channels = heads * head_dim
    qkv = array("window.qkv", batch, height, width, 3 * channels)
    qkv[..., 2 * channels :] -= 2.3
    tensors = [
        qkv,
        array("window.bias", (2 * window - 1) ** 2, heads),
        array("window.weight", out_channels, channels) / channels**0.5,
        array("window.proj_bias", out_channels) if bias else None,
        array("window.residual", batch, height, width, out_channels) - 1.7 if residual else None,
    ]
    tensors = [x if x is None else x.to(dtype).to(device) for x in tensors]
    return [*tensors, heads, window, shift, mask]


def assert_matches(arguments):
    """y is contiguous and within `LIMITS` of float64; in 16 bits also within twice the plain path's error."""
    dtype = arguments[QKV].dtype
    y, exact = window_attention_proj.forward(*arguments), reference(*double(arguments))
    assert y.dtype == dtype and y.is_contiguous()
    allowed = LIMITS[dtype]
    if dtype != torch.float32:
        plain = relative_error(reference(*arguments), exact)
        allowed = min(allowed, 2 * plain + torch.finfo(dtype).eps / 8)
    assert_close("y", y, exact, allowed)


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_matches_float64(case, device):
    arguments = inputs(case, device)
    assert window_attention_proj.unsupported(*arguments) is None
    assert_matches(arguments)


@pytest.mark.parametrize("dtype", SIXTEEN_BITS, ids=name_of)
@pytest.mark.parametrize("case", HALF_CASES, ids=case_id)
def test_16_bits_match_float64(case, dtype, device):
    assert_matches(inputs(case, device, dtype))


@pytest.mark.parametrize("dtype", SIXTEEN_BITS, ids=name_of)
def test_float32_tensors_with_16_bit_images(dtype, device):
    arguments = inputs((1, 8, 8, 2, 16, 4, 2, "resshift", 40, True, True), device)
    arguments[QKV] = arguments[QKV].to(dtype)
    assert_matches(arguments)


NEXT_GROUPS = (32, 16, 3, 1, 40, 2)  # of the next normalization, for each of CASES
WITH_STATISTICS = [*zip(CASES, NEXT_GROUPS, cycle([torch.float32, *SIXTEEN_BITS]))]


@pytest.mark.parametrize("case, groups, dtype", WITH_STATISTICS, ids=[*map(case_id, CASES)])
def test_statistics_are_those_of_the_result(case, groups, dtype, device):
    arguments = inputs(case, device, dtype)
    y, statistics = window_attention_proj.forward_with_statistics(*arguments, groups, 1e-6)
    assert torch.equal(y, window_attention_proj.forward(*arguments))
    exact = norm_stats.reference(y.double().permute(0, 3, 1, 2), groups, 1e-6)
    for name, ours, expected in zip(("mean", "rstd"), statistics.unbind(1), exact.unbind(1), strict=True):
        assert_close(name, ours, expected, 1e-5)


def test_statistics_survive_a_mean_far_above_the_deviation(device):
    arguments = inputs((2, 8, 16, 2, 32, 8, 4, "resshift", 64, True, True), device)
    arguments[RESIDUAL] = 0.01 * arguments[RESIDUAL] + 100
    arguments[WEIGHT], arguments[BIAS] = 0.01 * arguments[WEIGHT], 0.01 * arguments[BIAS]
    y, statistics = window_attention_proj.forward_with_statistics(*arguments, 8, 1e-6)
    exact = norm_stats.reference(y.double().permute(0, 3, 1, 2), 8, 1e-6)
    for name, ours, expected in zip(("mean", "rstd"), statistics.unbind(1), exact.unbind(1), strict=True):
        assert_close(name, ours, expected, 1e-5)


def test_statistics_need_no_launch_of_their_own(device):
    arguments = inputs(CASES[0], "meta")
    with record() as launches:
        window_attention_proj.forward_with_statistics(*arguments, 32, 1e-5)
    assert [launch.name for launch in launches] == ["window_attention_proj_kernel"]


@pytest.mark.parametrize("index", [QKV, RESIDUAL], ids=["qkv", "residual"])
@pytest.mark.parametrize("layout", ["channels_first", "strided", "expanded", "offset"])
def test_any_memory_layout(layout, index, device):
    arguments = inputs((2, 4, 8, 2, 16, 4, 1, "resshift", 24, True, True), device)
    change = {
        "channels_first": lambda x: x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1),
        "strided": lambda x: torch.stack([x, torch.full_like(x, torch.nan)], dim=4)[..., 0],
        "expanded": lambda x: x[:1].expand_as(x),
        "offset": lambda x: torch.cat([x.new_full((1,), torch.nan), x.flatten()])[1:].view_as(x),
    }[layout]
    arguments[index] = change(arguments[index])
    assert_matches(arguments)


def test_strided_parameters(device):
    arguments = inputs((1, 4, 8, 2, 16, 4, 1, "resshift", 24, True, True), device)
    for i in (TABLE, WEIGHT, BIAS):
        arguments[i] = arguments[i].repeat_interleave(2, dim=-1)[..., ::2]
    assert_matches(arguments)


KEYS = [  # window, heads, channels of a head, output channels, bytes per element
    (8, 6, 32, 192, 2),
    (8, 2, 32, 64, 2),
    (4, 2, 16, 320, 2),
    (9, 1, 64, 96, 2),
    (8, 6, 32, 192, 4),
    (8, 1, 64, 256, 4),
]


@pytest.mark.parametrize("size", KEYS, ids=lambda size: "window{}-{}x{}-O{}-{}bytes".format(*size))
def test_every_configuration(size, device, monkeypatch):
    window, heads, head_dim, out_channels, itemsize = size
    key = (window**2 if window != 9 else 128, head_dim, itemsize, 64, out_channels)
    candidates = window_attention_proj.SPACE.candidates(key)
    assert 2 <= len(candidates) <= 8
    for arch in tuning.ARCHITECTURES:
        for n_windows in (1, 4, 16, 64, 1024):
            assert window_attention_proj.SPACE.default(arch, (*key[:3], n_windows, key[4])) in candidates
    dtype = torch.float32 if itemsize == 4 else torch.float16
    case = (1, window, window, heads, head_dim, window, 1, "swin", out_channels, True, True)
    arguments = inputs(case, device, dtype)
    for config in {tuple(config.blocks.items()): config for config in candidates}.values():
        monkeypatch.setattr(window_attention_proj.SPACE, "default", lambda arch, key, config=config: config)
        tuning.renew()
        assert_matches(arguments)


def test_nan_stays_in_its_window(device):
    arguments = inputs((1, 8, 8, 2, 16, 4, 0, "resshift", 24, True, True), device)
    arguments[QKV][0, 1, 2, 70] = torch.nan
    is_nan = window_attention_proj.forward(*arguments).isnan()
    assert is_nan[0, :4, :4].all() and not is_nan[0, 4:].any() and not is_nan[0, :4, 4:].any()


def test_results_are_bitwise_the_same(device):
    arguments = inputs((1, 8, 16, 1, 32, 8, 4, "resshift", 40, True, True), device, torch.float16)
    assert torch.equal(window_attention_proj.forward(*arguments), window_attention_proj.forward(*arguments))


def recorded(batch, side, heads=6, head_dim=32, out_channels=192, shift=4, dtype=torch.bfloat16, arch=90):
    """The arguments, the launch and the result for windows of 8 × 8, on the meta device."""
    case = (batch, side, side, heads, head_dim, 8, shift, "resshift", out_channels, True, True)
    with torch.device("meta"):
        arguments = inputs(case, "meta", dtype)
    with tuning.targeting(arch), record() as launches:
        y = window_attention_proj.forward(*arguments)
    assert len(launches) == 1
    return arguments, launches[0], y


@pytest.mark.parametrize("arch", tuning.ARCHITECTURES)
@pytest.mark.parametrize("batch, side", [(1, 64), (1, 32), (1, 16), (1, 8), (16, 64)])
def test_one_launch_that_moves_each_tensor_once(batch, side, arch):
    arguments, launch, y = recorded(batch, side, arch=arch)
    assert y.shape == (batch, side, side, 192) and y.dtype == torch.bfloat16
    assert launch.name == "window_attention_proj_kernel" and len(launch.grid) == 1
    tensors = [*(a for a in arguments if isinstance(a, torch.Tensor)), y]
    assert launch.num_bytes == sum(2 * x.numel() for x in tensors)
    blocks = launch.constants
    programs = 64 // blocks["B_Q"] * (192 // (blocks["B_N"] * blocks["CHUNKS"]))
    assert launch.grid[0] == batch * (side // 8) ** 2 * programs


@pytest.mark.parametrize("side, programs", [(64, 128), (32, 128), (16, 48), (8, 12)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=name_of)
def test_small_images_are_divided_among_programs(side, programs, dtype):
    """A window of 8 × 8 has at most 12 programs: 16 rows of a matrix instruction, 64 output channels."""
    assert recorded(1, side, dtype=dtype)[1].grid[0] >= programs


def test_another_shift_needs_no_other_kernel():
    (_, first, _), (_, second, _) = (recorded(1, 16, shift=shift) for shift in (1, 4))
    assert first.constants == second.constants


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"dtype": torch.float64}, "torch.float64 is not float32, float16 or bfloat16"),
        ({"head_dim": 24}, "head size 24 is not 16, 32 or 64"),
        ({"window": 3}, "window 3 is not 4 to 16"),
        ({"window": 16}, None),
    ],
)
def test_unsupported_arguments_have_a_reason(change, reason):
    case = {"window": 8, "head_dim": 32, "dtype": torch.float32} | change
    window, head_dim = case["window"], case["head_dim"]
    arguments = inputs((1, window, window, 1, head_dim, window, 0, "swin", 8, True, True), "meta", case["dtype"])
    found = window_attention_proj.unsupported(*arguments)
    assert found is None if reason is None else reason in found
