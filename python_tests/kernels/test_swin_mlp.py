"""The swin_mlp kernel against float64: sizes, dtypes, layouts, every configuration, launches."""

import pytest
import torch
from comparison import LAYOUTS, LIMITS, assert_close, double, layouts, name_of, relative_error
from golden_data import array
from interpreter import DTYPES, SIXTEEN_BITS

from resshift_fast.kernels import swin_mlp, tuning
from resshift_fast.kernels.launch import record
from resshift_fast.ops import norm_stats
from resshift_fast.ops.swin_mlp import reference

pytestmark = pytest.mark.usefixtures("poisoned_empty")

CASES = [  # B, C, groups, hidden, H, W
    (2, 96, 8, 72, 3, 7),
    (1, 192, 32, 40, 3, 6),
    (3, 6, 3, 9, 1, 5),
    (2, 36, 4, 20, 4, 5),
    (1, 1, 1, 1, 1, 3),
    (1, 256, 4, 48, 3, 3),
]
IDS = [f"B{b}-C{c}-G{g}-hidden{n}-H{h}-W{w}" for b, c, g, n, h, w in CASES]
SIZES = [  # pixels, channels, hidden width and bytes per element, which determine the configurations
    (64, 192, 768, 2),
    (4096, 192, 768, 2),
    (1 << 16, 192, 768, 2),
    (1 << 16, 512, 2048, 2),
    (64, 192, 768, 4),
    (1 << 16, 192, 768, 4),
    (1 << 16, 96, 384, 4),
]


def inputs(batch, channels, groups, hidden, height, width, device, dtype=torch.float32):
    """The launcher's arguments; the image has a mean far from 0."""
    tensors = [
        array("mlp.x", batch, channels, height, width) - 2.3,
        array("mlp.norm_weight", channels),
        array("mlp.norm_bias", channels),
        array("mlp.w1", hidden, channels) / channels**0.5,
        array("mlp.b1", hidden),
        array("mlp.w2", channels, hidden) / hidden**0.5,
        array("mlp.b2", channels),
    ]
    x, *parameters = (tensor.to(dtype).to(device) for tensor in tensors)
    return [x, groups, *parameters, 1e-5]


def assert_matches(arguments):
    """y has x's layout and is within `LIMITS` of float64; in 16 bits also within twice the plain path's error."""
    x = arguments[0]
    y, exact = swin_mlp.forward(*arguments), reference(*double(arguments))
    assert y.dtype == x.dtype and y.stride() == torch.empty_like(x).stride()
    allowed = LIMITS[x.dtype]
    if x.dtype != torch.float32:
        allowed = min(allowed, 2 * relative_error(reference(*arguments), exact))
    assert_close("y", y, exact, allowed)
    return y


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_matches_float64(case, dtype, device):
    arguments = inputs(*case, device, dtype)
    arguments[0] = arguments[0].contiguous(memory_format=torch.channels_last)
    assert swin_mlp.unsupported(*arguments) is None
    assert_matches(arguments)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("case, groups", [((2, 96, 8, 24, 3, 7), 32), ((1, 192, 32, 20, 3, 6), 6), (CASES[2], 1)])
def test_statistics_are_those_of_the_result(case, groups, dtype, device):
    arguments = [*inputs(*case, device, dtype), None]
    y, statistics = swin_mlp.forward_with_statistics(*arguments, groups, 1e-6)
    assert torch.equal(y, swin_mlp.forward(*arguments))
    exact = norm_stats.reference(y.double(), groups, 1e-6)
    for name, ours, expected in zip(("mean", "rstd"), statistics.unbind(1), exact.unbind(1), strict=True):
        assert_close(name, ours, expected, 1e-5)


@pytest.mark.parametrize(
    "columns, parts, dtype",
    [
        ((16, 3), 3, torch.float32),
        ((16, 3), 2, torch.float16),
        ((16, 1), 3, torch.float16),
        ((32, 1), 2, torch.float32),
    ],
    ids=["all-channels-3", "all-channels-2", "a-third-3", "padded-2"],
)
def test_partial_sums(columns, parts, dtype, device, monkeypatch):
    """The hidden width, which is no multiple of a step, and the channels are divided over programs."""
    monkeypatch.setattr(swin_mlp, "split", lambda tiles, steps: (parts, -(-steps // parts)))
    config = tuning.Config(dict(zip(("BLOCK_M", "BLOCK_H", "BLOCK_N", "CHUNKS"), (16, 16, *columns), strict=True)))
    monkeypatch.setattr(swin_mlp.SPACE, "default", lambda arch, key: config)
    arguments = [*inputs(2, 48, 8, 40, 3, 7, device, dtype), None]
    programs = -(-48 // (columns[0] * columns[1])) * parts
    with record() as launches:
        swin_mlp.forward(*arguments)
    assert launches[-1].constants["SPLIT"] == parts and launches[-1].grid == (2 * 2 * programs,)
    y = assert_matches(arguments)
    again, statistics = swin_mlp.forward_with_statistics(*arguments, 6, 1e-6)
    assert torch.equal(again, y)
    exact = norm_stats.reference(y.double(), 6, 1e-6)
    for name, ours, expected in zip(("mean", "rstd"), statistics.unbind(1), exact.unbind(1), strict=True):
        assert_close(name, ours, expected, 1e-5)


@pytest.mark.parametrize("side, blocks", [(8, 120), (16, 128), (32, 128), (64, 128)])
def test_small_planes_have_many_programs(side, blocks):
    arguments = inputs(1, 192, 32, 768, side, side, "meta", torch.bfloat16)
    with tuning.targeting(90), record() as launches:
        swin_mlp.forward_with_statistics(*arguments, None, 32, 1e-5)
    assert launches[-1].grid == (blocks,)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_given_statistics_are_used(dtype, device):
    arguments = inputs(2, 36, 4, 20, 4, 5, device, dtype)
    statistics = torch.stack([array("mlp.mean", 2, 4), array("mlp.rstd", 2, 4).exp()], dim=1).to(device)
    assert_matches([*arguments, statistics])
    with record() as launches:
        swin_mlp.forward(*arguments, statistics)
    assert [launch.name for launch in launches] == ["swin_mlp_kernel"]


@pytest.mark.parametrize("layout", ["contiguous", *LAYOUTS])
def test_any_memory_layout(layout, device):
    arguments = inputs(2, 20, 4, 24, 4, 5, device)
    arguments[0] = (layouts(arguments[0]) | {"contiguous": arguments[0]})[layout]
    assert_matches(arguments)


def test_strided_parameters(device):
    arguments = inputs(1, 20, 4, 24, 4, 5, device)
    for i in range(2, 8):
        arguments[i] = arguments[i].repeat_interleave(2, dim=-1)[..., ::2]
    assert_matches(arguments)


@pytest.mark.parametrize("dtype", SIXTEEN_BITS, ids=name_of)
def test_float32_parameters_with_16_bit_images(dtype, device):
    arguments = inputs(2, 20, 4, 24, 4, 5, device)
    arguments[0] = arguments[0].to(dtype)
    assert_matches(arguments)


@pytest.mark.parametrize("size", SIZES, ids=lambda size: "rows{}-C{}-hidden{}-{}bytes".format(*size))
def test_every_configuration(size, device, monkeypatch):
    rows, channels, hidden, itemsize = size
    dtype = torch.float32 if itemsize == 4 else torch.float16
    arguments = inputs(2, channels, 4, 24, 3, 6, device, dtype)
    key = rows, rows, channels, hidden, itemsize
    candidates = swin_mlp.SPACE.candidates(key)
    assert len(candidates) <= 8
    for arch in tuning.ARCHITECTURES:
        assert swin_mlp.SPACE.default(arch, key) in candidates
    for config in candidates:
        if config.num_stages == 2 or device.type == "cuda":  # the interpreter ignores num_stages
            monkeypatch.setattr(swin_mlp.SPACE, "default", lambda arch, key, config=config: config)
            assert_matches(arguments)


def test_eps_reaches_the_norm(device):
    arguments = inputs(1, 20, 4, 24, 4, 5, device)
    arguments[0], arguments[-1] = arguments[0] * 0.01, 0.3
    assert_matches(arguments)


def test_a_nan_stays_in_its_image(device):
    arguments = inputs(2, 20, 4, 24, 4, 5, device)
    arguments[0][0, 3, 2, 2] = torch.nan
    y = swin_mlp.forward(*arguments)
    assert y[0, :, 2, 2].isnan().all() and not y[1].isnan().any()


def test_results_repeat_bitwise(device):
    arguments = inputs(1, 36, 4, 20, 4, 5, device)
    assert torch.equal(swin_mlp.forward(*arguments), swin_mlp.forward(*arguments))


def test_one_launch_after_the_statistics_moves_no_hidden_activation():
    arguments = inputs(2, 192, 32, 768, 64, 64, "meta", torch.bfloat16)
    arguments[0] = arguments[0].contiguous(memory_format=torch.channels_last)
    with record() as launches:
        y = swin_mlp.forward(*arguments)
    assert y.shape == arguments[0].shape
    assert [launch.name for launch in launches].count("swin_mlp_kernel") == 1
    assert launches[-1].name == "swin_mlp_kernel"
    weights = sum(p.numel() for p in arguments[2:8])
    statistics = 2 * 2 * 32 * 4
    assert launches[-1].num_bytes == 2 * (2 * arguments[0].numel() + weights) + statistics


def test_unsupported_arguments_have_a_reason(device):
    arguments = inputs(1, 6, 3, 9, 3, 3, device)
    assert swin_mlp.unsupported(*double(arguments)) == "x is float64"
    arguments[0] = torch.ones(1, 544, 3, 3, device=device)
    assert swin_mlp.unsupported(*arguments) == "544 channels are more than 512"
