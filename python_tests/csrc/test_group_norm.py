"""The group normalization kernels of csrc/cuda against float64: group widths, layouts, dtypes, paths, offsets."""

import pytest
import torch
from comparison import LIMITS, assert_close, double, name_of, relative_error
from emulation import array, filled
from pairwise import pairwise

from resshift_fast.ops.group_norm import _plain, _plain_backward

EPS = 1e-5
FORMATS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
GRADIENTS = ("dx", "dweight", "dbias", "dscale", "dshift")
SHAPES = [  # B, C, H, W, groups: every C/G of the models and some others, rows and planes aligned or not
    (2, 4, 5, 3, 4),
    (1, 32, 4, 4, 32),
    (1, 16, 7, 5, 8),
    (1, 9, 11, 3, 3),
    (1, 24, 6, 4, 8),
    (2, 16, 4, 4, 4),
    (1, 20, 8, 8, 4),
    (1, 12, 5, 7, 2),
    (1, 7, 3, 5, 1),
    (1, 16, 6, 9, 2),
    (2, 40, 4, 5, 4),
    (1, 30, 4, 7, 2),
    (1, 32, 9, 5, 2),
    (2, 40, 5, 5, 2),
    (1, 60, 5, 4, 2),
    (1, 80, 6, 5, 2),
    (2, 15, 2, 5, 5),
    (1, 72, 3, 3, 1),
    (2, 12, 1, 1, 2),
    (2, 3, 1, 1, 3),
    (2, 1, 3, 7, 1),
]


def shape_id(shape):
    return "B{}-C{}-H{}-W{}-G{}".format(*shape)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def image(shape, layout="nhwc", dtype=torch.float32, offset=-2.3, seed=0):
    return (normal(*shape[:4], seed=seed) + offset).to(dtype).contiguous(memory_format=FORMATS[layout])


def affine(shape, dtype=torch.float32, conditioned=True):
    """weight, bias, scale, shift; the last two are halves of one tensor, as a linear layer makes them."""
    weight, bias = (normal(shape[1], seed=seed).to(dtype) for seed in (1, 2))
    halves = normal(shape[0], 2 * shape[1], seed=3).to(dtype).chunk(2, dim=1)
    return [weight, bias, *(halves if conditioned else (None, None))]


def forward(emulated, x, groups, weight, bias, scale, shift, silu, parts=0):
    """y, mean and rstd of the kernels, in memory filled with NaN before."""
    y = torch.full_like(x, torch.nan)
    mean, rstd = (filled(x.shape[0], groups, dtype=torch.float32) for _ in range(2))
    parameters = [array(tensor) for tensor in (weight, bias)], [array(tensor) for tensor in (scale, shift)]
    outputs = [array(tensor) for tensor in (y, mean, rstd)]
    emulated.group_norm(array(x), groups, *parameters[0], EPS, *parameters[1], silu, *outputs, parts)
    return y, mean, rstd


def backward(emulated, dy, x, mean, rstd, groups, weight, bias, scale, shift, silu, parts=0):
    """dx, dweight, dbias, dscale, dshift of the kernels."""
    dx = torch.full_like(x, torch.nan)
    per_channel = [filled(x.shape[1], dtype=torch.float32) for _ in range(2)]
    per_image = [filled(*x.shape[:2], dtype=torch.float32) for _ in range(2)]
    results = (dx, *per_channel, *per_image)
    arguments = [array(tensor) for tensor in (dy, x, mean, rstd)]
    parameters = [array(tensor) for tensor in (weight, bias, scale, shift)]
    emulated.group_norm_backward(*arguments, groups, *parameters, silu, *map(array, results), parts)
    return results


def statistics(x, groups):
    """Mean and 1 / deviation in float64."""
    values = x.double().reshape(x.shape[0], groups, -1)
    variance, mean = torch.var_mean(values, dim=2, correction=0)
    return mean, (variance + EPS).rsqrt()


def check_forward(emulated, x, groups, parameters, silu, parts=0, limit=1e-5):
    ours = forward(emulated, x, groups, *parameters, silu, parts)
    weight, bias, scale, shift = double(parameters)
    y = _plain(x.double(), groups, weight, bias, EPS, scale, shift, "silu" if silu else None)[0]
    for name, value, exact in zip(("y", "mean", "rstd"), ours, (y, *statistics(x, groups)), strict=True):
        assert_close(name, value, exact, limit)


def check_backward(emulated, x, groups, parameters, silu, parts=0, limit=1e-5):
    dy = image(x.shape, dtype=x.dtype, offset=0.2, seed=4).contiguous(memory_format=layout_of(x))
    mean, rstd = statistics(x, groups)
    ours = backward(emulated, dy, x, mean.float(), rstd.float(), groups, *parameters, silu, parts)
    exact = _plain_backward(*double((dy, x, mean, rstd)), groups, *double(parameters), "silu" if silu else None)
    for name, value, expected in zip(GRADIENTS, ours, exact, strict=True):
        if expected.norm() < 1e-9 * exact[4].norm():  # one value per group: terms as large as rstd · dy cancel
            assert value.norm() <= limit * rstd.max() * exact[4].norm()
        else:
            assert_close(name, value, expected, limit)


def layout_of(x):
    return torch.contiguous_format if x.is_contiguous() else torch.channels_last


def options(index):
    """Whether scale, shift and SiLU are used: each combination in turn."""
    return index % 2 == 0, index // 2 % 2 == 0, index // 4 % 2 == 0


def chosen(shape, layout, dtype=torch.float32):
    """Parameters and activation for a shape."""
    scaled, shifted, silu = options(SHAPES.index(shape) + (layout == "nchw"))
    weight, bias, scale, shift = affine(shape, dtype)
    return [weight, bias, scale if scaled else None, shift if shifted else None], silu


@pairwise(shape={shape_id(shape): shape for shape in SHAPES}, layout=FORMATS.keys(), parts=[1, 3])
def test_forward_matches_float64(shape, layout, parts, emulated):
    parameters, silu = chosen(shape, layout)
    check_forward(emulated, image(shape, layout), shape[4], parameters, silu, parts)


@pytest.mark.parametrize("layout, parts", [("nchw", 3), ("nhwc", 1)])
@pytest.mark.parametrize("shape", SHAPES, ids=shape_id)
def test_backward_matches_float64(shape, layout, parts, emulated):
    parameters, silu = chosen(shape, layout)
    check_backward(emulated, image(shape, layout), shape[4], parameters, silu, parts)


WIDE = [(1, 2080, 1, 3, 1), (1, 601, 2, 2, 1)]  # more units than a block has threads: words and single elements


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("shape", WIDE, ids=shape_id)
def test_a_group_of_more_channels_than_threads(shape, layout, emulated):
    x, parameters = image(shape, layout), affine(shape)
    check_forward(emulated, x, 1, parameters, True)
    check_backward(emulated, x, 1, parameters, True)


@pytest.mark.parametrize("parts", [1, 4])
@pytest.mark.parametrize("offset", [1e3, -3e4])
@pytest.mark.parametrize("layout", FORMATS)
def test_a_mean_far_above_the_deviation(layout, offset, parts, emulated):
    shape = (1, 40, 9, 8, 8)
    check_forward(emulated, image(shape, layout, offset=offset), 8, affine(shape), True, parts)


@pytest.mark.parametrize("parts", [1, 4])
def test_a_first_value_far_from_the_others(parts, emulated):
    shape = (1, 16, 12, 16, 2)
    x = image(shape, "nchw")
    x[:, ::8, 0, 0] = 1e4
    weight, bias, _, _ = affine(shape)
    y, mean, rstd = forward(emulated, x, 2, weight, bias, None, None, False, parts)
    exact_mean, exact_rstd = statistics(x, 2)
    assert_close("y", y, _plain(*double((x, 2, weight, bias)), EPS, None, None, None)[0], 1e-5)
    assert_close("rstd", rstd, exact_rstd, 1e-6)
    assert ((mean - exact_mean) * exact_rstd).abs().max() <= 2e-6


@pytest.mark.parametrize("layout", FORMATS)
def test_the_gradient_of_a_mean_above_the_deviation(layout, emulated):
    # The mean that the forward pass saves is float32: at 1e3 it is off by up to 3e-5 deviations.
    shape = (1, 40, 9, 8, 8)
    check_backward(emulated, image(shape, layout, offset=30.0), 8, affine(shape), True)
    check_backward(emulated, image(shape, layout, offset=1e3), 8, affine(shape), True, limit=6e-5)


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("value", [0.1, 3e4])
def test_a_constant_image_becomes_the_bias(value, parts, emulated):
    shape = (2, 12, 5, 8, 3)
    weight, bias, _, _ = affine(shape)
    x = torch.full(shape[:4], value)
    y, mean, rstd = forward(emulated, x, 3, weight, bias, None, None, False, parts)
    assert torch.equal(y, bias[None, :, None, None].expand_as(y))
    assert torch.equal(mean, torch.full_like(mean, value))
    assert_close("rstd", rstd, torch.full_like(rstd, EPS**-0.5), 1e-6)


@pairwise(strength=3, layout=FORMATS.keys(), dtype=DTYPES[1:], parameter_dtype=["float32", "like x"], parts=[1, 2])
def test_16_bit_is_as_exact_as_plain_pytorch(layout, dtype, parameter_dtype, parts, emulated):
    shape = (2, 40, 6, 8, 8)
    x = image(shape, layout, dtype)
    parameters = affine(shape, dtype if parameter_dtype == "like x" else torch.float32)
    weight, bias, scale, shift = parameters
    exact = _plain(x.double(), 8, *double((weight, bias)), EPS, *double((scale, shift)), "silu")
    plain = _plain(x, 8, weight, bias, EPS, scale, shift, "silu")
    ours = forward(emulated, x, 8, *parameters, True, parts)
    assert_close("y", ours[0], exact[0], allowed(plain[0], exact[0], dtype))
    assert_close("mean", ours[1], exact[1], 1e-5)
    assert_close("rstd", ours[2], exact[2], 1e-5)

    dy = image(shape, layout, dtype, offset=0.2, seed=4)
    exact = _plain_backward(*double((dy, x, *exact[1:])), 8, *double(parameters), "silu")
    plain = _plain_backward(dy, x, *plain[1:], 8, *parameters, "silu")
    gradients = backward(emulated, dy, x, *ours[1:], 8, *parameters, True, parts)
    assert_close("dx", gradients[0], exact[0], allowed(plain[0], exact[0], dtype))
    for name, value, expected in zip(GRADIENTS[1:], gradients[1:], exact[1:], strict=True):
        assert_close(name, value, expected, 1e-5)


def allowed(plain, exact, dtype):
    return min(LIMITS[dtype], 2 * relative_error(plain, exact) + torch.finfo(dtype).eps / 8)


def misaligned(x):
    """The same values and strides, not 16-byte aligned."""
    memory = x.new_empty(x.numel() + 1)[1:]
    moved = memory.as_strided(x.shape, x.stride())
    return moved.copy_(x)


# The last shape has eight groups of an odd number of channels, and more channels than a block has threads.
@pytest.mark.parametrize("shape, groups", [((1, 32, 4, 4, 4), 4), ((1, 296, 8, 4, 4), 8)], ids=["C32-G4", "C296-G8"])
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("layout", FORMATS)
def test_a_view_that_is_not_aligned(layout, dtype, shape, groups, emulated):
    x, dy = (misaligned(image(shape, layout, dtype, seed=seed)) for seed in (0, 4))
    parameters = affine(shape)
    ours = forward(emulated, x, groups, *parameters, True)
    aligned = forward(emulated, x.clone(), groups, *parameters, True)
    gradients = backward(emulated, dy, x, *ours[1:], groups, *parameters, True)
    expected = backward(emulated, dy.clone(), x.clone(), *ours[1:], groups, *parameters, True)
    for value, same in zip((*ours, *gradients), (*aligned, *expected), strict=True):
        assert_close("misaligned", value, same, torch.finfo(dtype).eps)


def test_scale_and_shift_of_any_strides(emulated):
    shape = (2, 8, 3, 3, 2)
    weight, bias, scale, shift = affine(shape)
    expected = forward(emulated, image(shape), 2, weight, bias, scale, shift, True)
    spread = [x.T.contiguous().T for x in (scale, shift)] + [x.repeat_interleave(2)[::2] for x in (weight, bias)]
    ours = forward(emulated, image(shape), 2, *spread[2:], *spread[:2], True)
    assert all(torch.equal(*pair) for pair in zip(ours, expected, strict=True))


# A block can keep 24,576 float32 elements in shared memory, less what else it stores there.
PATHS = {
    "one launch, kept": ((1, 4, 40, 40, 2), 0, 1),
    "two launches": ((1, 4, 208, 200, 2), 0, 2),
    "two launches by request": ((1, 4, 40, 40, 2), 5, 2),
    "one launch by request, read twice": ((1, 4, 208, 200, 2), 1, 1),
}


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("path", PATHS)
def test_every_path_that_the_launcher_takes(path, layout, emulated):
    shape, parts, launches = PATHS[path]
    x, parameters = image(shape, layout), affine(shape)
    check_forward(emulated, x, shape[4], parameters, True, parts)
    outputs = torch.empty_like(x), *(filled(1, 2, dtype=torch.float32) for _ in range(2))
    inputs = [array(tensor) for tensor in parameters]
    scratch = emulated.group_norm(array(x), 2, *inputs[:2], EPS, *inputs[2:], True, *map(array, outputs), parts)
    assert (scratch > 0) == (launches == 2)


def test_a_large_plane_backward(emulated):
    shape = (1, 8, 96, 64, 2)
    for layout in FORMATS:
        check_backward(emulated, image(shape, layout), 2, affine(shape), True)


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("layout", FORMATS)
def test_results_do_not_depend_on_the_order_of_threads(layout, parts, emulated, in_all_orders):
    shape = (2, 40, 5, 8, 4)
    x, dy, parameters = image(shape, layout), image(shape, layout, offset=0.2, seed=4), affine(shape)

    def run():
        y, mean, rstd = forward(emulated, x, 4, *parameters, True, parts)
        return y, mean, rstd, *backward(emulated, dy, x, mean, rstd, 4, *parameters, True, parts)

    in_all_orders(run)


def test_nan_stays_in_its_group(emulated):
    shape = (2, 6, 5, 4, 3)
    x = image(shape)
    x[1, 3, 2, 1] = torch.nan
    y, mean, rstd = forward(emulated, x, 3, *affine(shape), True)
    expected = torch.zeros(2, 3, dtype=torch.bool)
    expected[1, 1] = True
    for value in (y.reshape(2, 3, -1).isnan().all(2), y.reshape(2, 3, -1).isnan().any(2), mean.isnan(), rstd.isnan()):
        assert torch.equal(value, expected)


@pytest.mark.parametrize(
    "shape, message", [((1, 6, 3, 3, 4), "do not divide into 4 groups"), ((1, 8, 0, 3, 4), "the launch failed")]
)
def test_a_shape_without_groups_is_an_error(emulated, shape, message):
    x = image(shape)
    with pytest.raises(RuntimeError, match=message):
        forward(emulated, x, 4, *affine(shape), False)
    with pytest.raises(RuntimeError, match=message):
        backward(emulated, x, x, *(torch.ones(1, 4) for _ in range(2)), 4, *affine(shape), False)


def test_triton_kernels_plan_with_the_same_constants(emulated):
    pytest.importorskip("triton")
    from resshift_fast.kernels import group_norm_tiles as tiles

    constants = emulated.group_norm_plan_constants()
    assert constants == {name: getattr(tiles, name) for name in constants}
