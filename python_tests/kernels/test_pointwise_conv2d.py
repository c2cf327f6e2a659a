"""The pointwise_conv2d kernel against float64: sizes, dtypes, layouts, every configuration, launches."""

import pytest
import torch
from comparison import LAYOUTS, LIMITS, assert_close, double, layouts, name_of, relative_error
from golden_data import array
from interpreter import DTYPES, ON_GPU, SIXTEEN_BITS

from resshift_fast.kernels import pointwise_conv2d, tuning
from resshift_fast.kernels.launch import record
from resshift_fast.ops import norm_stats
from resshift_fast.ops.pointwise_conv2d import reference

pytestmark = pytest.mark.usefixtures("poisoned_empty")

CASES = [  # B, C, groups, O, H, W, bias, residual
    (2, 96, 8, 72, 3, 7, True, False),
    (2, 64, 0, 64, 3, 7, True, True),
    (1, 160, 32, 33, 3, 6, False, True),
    (3, 6, 3, 9, 1, 5, True, True),
    (2, 20, 0, 1, 4, 5, False, False),
    (1, 1, 1, 40, 1, 3, True, False),
]
IDS = [
    f"B{b}-C{c}-G{g}-O{o}-H{h}-W{w}{'-bias' * bias}{'-residual' * residual}"
    for b, c, g, o, h, w, bias, residual in CASES
]
X, RESIDUAL, EPS = 0, 3, 7  # indices of arguments
SIZES = [  # rows, output channels, channels and bytes per element, which determine the configurations
    (64, 192, 192, 2),
    (1024, 192, 320, 2),
    (4096, 576, 192, 2),
    (1 << 20, 512, 512, 2),
    (4096, 160, 160, 2),
    (1 << 20, 24, 64, 2),
    (4096, 576, 192, 4),
    (64, 640, 1280, 4),
]


def inputs(case, device, dtype=torch.float32):
    """The launcher's arguments; the image has a mean far from 0."""
    batch, channels, groups, out_channels, height, width, bias, residual = case
    tensors = [
        array("pointwise.x", batch, channels, height, width) - 2.3,
        array("pointwise.weight", out_channels, channels) / channels**0.5,
        array("pointwise.bias", out_channels) if bias else None,
        array("pointwise.residual", batch, out_channels, height, width) if residual else None,
        array("pointwise.norm_weight", channels) if groups else None,
        array("pointwise.norm_bias", channels) if groups else None,
    ]
    tensors = [x if x is None else x.to(dtype).to(device) for x in tensors]
    return [*tensors[:4], groups, *tensors[4:], 1e-5]


def channels_last(arguments):
    """The arguments with both images channels-last."""
    for i in (X, RESIDUAL):
        if arguments[i] is not None:
            arguments[i] = arguments[i].contiguous(memory_format=torch.channels_last)
    return arguments


def assert_matches(arguments, y=None):
    """y is channels-last and within `LIMITS` of float64; in 16 bits also within twice the plain path's error.

    It is that of `forward` if None.
    """
    dtype = arguments[X].dtype
    y = pointwise_conv2d.forward(*arguments) if y is None else y
    exact = reference(*double(arguments))
    assert y.dtype == dtype and y.is_contiguous(memory_format=torch.channels_last)
    allowed = LIMITS[dtype]
    if dtype != torch.float32:
        allowed = min(allowed, 2 * relative_error(reference(*arguments), exact))
    assert_close("y", y, exact, allowed)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_matches_float64(case, dtype, device):
    arguments = channels_last(inputs(case, device, dtype))
    assert pointwise_conv2d.unsupported(*arguments) is None
    assert_matches(arguments)


STATISTICS = [  # B, C, groups, O, H, W, bias, residual, groups of the next normalization
    (2, 64, 0, 96, 3, 7, True, True, 32),
    (1, 96, 8, 33, 5, 7, True, False, 3),
    (3, 20, 0, 40, 1, 5, False, True, 40),
    (1, 20, 4, 160, 9, 7, False, False, 2),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("case", STATISTICS, ids=lambda case: "B{}-C{}-G{}-O{}-{}x{}-{}-{}-next{}".format(*case))
def test_statistics_are_those_of_the_result(case, dtype, device):
    *case, groups = case
    arguments = [*channels_last(inputs(case, device, dtype)), None]
    y, statistics = pointwise_conv2d.forward_with_statistics(*arguments, groups, 1e-6)
    assert_close("y", y, reference(*double(arguments)), LIMITS[dtype])
    exact = norm_stats.reference(y.double(), groups, 1e-6)
    for name, ours, expected in zip(("mean", "rstd"), statistics.unbind(1), exact.unbind(1), strict=True):
        assert_close(name, ours, expected, 1e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_given_statistics_are_used(dtype, device):
    arguments = channels_last(inputs((2, 96, 8, 72, 3, 7, True, False), device, dtype))
    statistics = torch.stack([array("pointwise.mean", 2, 8), array("pointwise.rstd", 2, 8).exp()], dim=1).to(device)
    assert_matches([*arguments, statistics])
    with record() as launches:
        pointwise_conv2d.forward(*arguments, statistics)
    assert [launch.name for launch in launches] == ["pointwise_conv2d_kernel"]


@pytest.mark.parametrize("index", [X, RESIDUAL], ids=["x", "residual"])
@pytest.mark.parametrize("layout", ["contiguous", *LAYOUTS])
def test_any_memory_layout(layout, index, device):
    arguments = inputs((2, 20, 4, 24, 4, 5, True, True), device)
    arguments[index] = (layouts(arguments[index]) | {"contiguous": arguments[index]})[layout]
    assert_matches(arguments)


def test_strided_parameters(device):
    arguments = inputs((1, 20, 4, 24, 4, 5, True, True), device)
    for i in (1, 2, 5, 6):
        arguments[i] = arguments[i].repeat_interleave(2, dim=-1)[..., ::2]
    assert_matches(arguments)


@pytest.mark.parametrize("dtype", SIXTEEN_BITS, ids=name_of)
def test_float32_tensors_with_16_bit_images(dtype, device):
    arguments = inputs((2, 20, 4, 24, 4, 5, True, True), device)
    arguments[X] = arguments[X].to(dtype)
    assert_matches(arguments)


@pytest.mark.parametrize("size", SIZES, ids=lambda size: "rows{}-O{}-C{}-{}bytes".format(*size))
def test_the_default_is_a_candidate(size):
    rows, *others = size
    candidates = pointwise_conv2d.SPACE.candidates((rows, rows, *others))
    assert len(candidates) <= 8
    for arch in tuning.ARCHITECTURES:
        assert pointwise_conv2d.SPACE.default(arch, (rows, rows, *others)) in candidates


# Of all sizes; without those that differ in warps or stages alone, which the interpreter ignores.
CONFIGURATIONS = {
    (itemsize, str(config if ON_GPU else dict(config.blocks))): config
    for rows, *others, itemsize in SIZES
    for config in pointwise_conv2d.SPACE.candidates((rows, rows, *others, itemsize))
}


@pytest.mark.parametrize(
    "itemsize, config",
    [(itemsize, config) for (itemsize, _), config in CONFIGURATIONS.items()],
    ids=[f"{itemsize}bytes-{config}" for (itemsize, _), config in CONFIGURATIONS.items()],
)
def test_every_configuration(itemsize, config, device, monkeypatch):
    dtype = torch.float32 if itemsize == 4 else torch.float16
    arguments = inputs((2, 80, 4, 40, 3, 6, True, True), device, dtype)
    monkeypatch.setattr(pointwise_conv2d.SPACE, "default", lambda arch, key: config)
    y, statistics = pointwise_conv2d.forward_with_statistics(*arguments, None, 8, 1e-5)
    assert_matches(arguments, y)
    assert_close("statistics", statistics, norm_stats.reference(y.double(), 8, 1e-5), 1e-5)


@pytest.mark.parametrize("rows, out_channels, channels", [(4096, 576, 192), (4096, 192, 160), (256, 192, 640)])
def test_small_images_still_fill_the_gpu(rows, out_channels, channels):
    case = (1, channels, 32, out_channels, 1, rows, True, False)
    with record() as launches:
        pointwise_conv2d.forward(*channels_last(inputs(case, "meta", torch.bfloat16)))
    assert launches[-1].grid[0] >= 96


def test_eps_reaches_the_norm(device):
    arguments = inputs((1, 20, 4, 24, 4, 5, True, False), device)
    arguments[X], arguments[EPS] = arguments[X] * 0.01, 0.3
    assert_matches(arguments)


@pytest.mark.parametrize("groups", [0, 4])
def test_nan_stays_in_its_image(groups, device):
    arguments = inputs((2, 20, groups, 24, 4, 5, True, False), device)
    arguments[X][0, 3, 2, 2] = torch.nan
    is_nan = pointwise_conv2d.forward(*arguments).isnan()
    assert is_nan[0, :, 2, 2].all() and not is_nan[1].any()
    assert groups or is_nan.sum() == 24  # without a norm, the outputs of this pixel alone


def test_results_are_bitwise_the_same(device):
    arguments = inputs((2, 96, 4, 40, 3, 7, True, True), device)
    assert torch.equal(pointwise_conv2d.forward(*arguments), pointwise_conv2d.forward(*arguments))


@pytest.mark.parametrize("groups", [0, 32])
def test_one_launch_after_the_statistics(groups):
    arguments = channels_last(inputs((2, 192, groups, 576, 64, 64, True, True), "meta", torch.bfloat16))
    with record() as launches:
        y = pointwise_conv2d.forward(*arguments)
    assert y.shape == (2, 576, 64, 64)
    assert (len(launches) > 1) == (groups > 0) and launches[-1].name == "pointwise_conv2d_kernel"
    assert [launch.name for launch in launches].count("pointwise_conv2d_kernel") == 1
    elements = sum(a.numel() for a in arguments if isinstance(a, torch.Tensor)) + y.numel()
    assert launches[-1].num_bytes == 2 * elements + 2 * 2 * groups * 4


def test_unsupported_arguments_have_a_reason(device):
    arguments = inputs((1, 6, 0, 9, 3, 3, True, True), device)
    assert pointwise_conv2d.unsupported(*double(arguments)) == "x is float64"
