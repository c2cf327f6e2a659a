"""The group normalization kernels against float64: paths, group widths, layouts, dtypes, means far from 0."""

import pytest
import torch
import triton
import triton.language as tl
from comparison import LAYOUTS, LIMITS, assert_close, double, layouts, name_of, relative_error
from golden_data import array

from resshift_fast.kernels import group_norm, group_norm_backward, group_norm_tiles
from resshift_fast.kernels.launch import record
from resshift_fast.kernels.tuning import targeting
from resshift_fast.ops.group_norm import _plain, _plain_backward

pytestmark = pytest.mark.usefixtures("poisoned_empty")

EPS = 1e-5
PATHS = ("registers", "shared", "loop", "split")
VARIANTS = [("nhwc", path) for path in PATHS] + [("nchw", "registers"), ("nchw", "shared"), ("nchw", "split")]
FORMATS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
SHAPES = [  # B, C, H, W, groups: every C/G of the models, powers of two or not, rows aligned or not
    (1, 8, 5, 3, 8),
    (1, 8, 7, 5, 4),
    (1, 9, 11, 3, 3),
    (1, 16, 4, 4, 4),
    (1, 20, 8, 8, 4),
    (1, 12, 5, 7, 2),
    (1, 16, 6, 9, 2),
    (1, 20, 3, 5, 2),
    (1, 30, 4, 7, 2),
    (1, 32, 9, 5, 2),
    (2, 40, 5, 5, 2),
    (1, 60, 5, 3, 2),
    (1, 80, 6, 5, 2),
    (2, 15, 2, 5, 5),
    (1, 6, 13, 9, 1),
    (2, 12, 1, 1, 2),
    (2, 3, 1, 1, 3),
    (2, 1, 3, 7, 1),
]


def shape_id(shape):
    return "B{}-C{}-H{}-W{}-G{}".format(*shape)


# Every shape in both layouts; each layout omits one of its paths, a different one for successive shapes.
FORWARD = [
    pytest.param(shape, *variant, id=f"{shape_id(shape)}-{'-'.join(variant)}")
    for i, shape in enumerate(SHAPES)
    for variant in VARIANTS
    if variant not in (VARIANTS[i % 4], VARIANTS[4 + i % 3])
]
BACKWARD = [
    pytest.param(shape, *variant, id=f"{shape_id(shape)}-{'-'.join(variant)}")
    for i, shape in enumerate(SHAPES)
    for variant in (("nhwc", ("registers", "split")[i % 2]), ("nchw", "split"))
]


def force_path(path, monkeypatch):
    """Change the planner's constants so that small images take this path."""
    if path == "split":
        monkeypatch.setattr(group_norm_tiles, "SINGLE_ELEMENTS", 0)
        monkeypatch.setattr(group_norm_tiles, "MAX_PARTS", 2)
    else:
        monkeypatch.setattr(group_norm_tiles, "LAUNCH_CYCLES", 1e9)
    monkeypatch.setattr(group_norm, "MAX_WRITERS", 3 if path == "shared" else 1)
    monkeypatch.setattr(group_norm, "MIN_WRITTEN", 1)
    if path not in ("registers", "shared"):
        monkeypatch.setattr(group_norm_tiles, "RESIDENT_TILE", 0)
        monkeypatch.setattr(group_norm_tiles, "TILE", 128)
        monkeypatch.setattr(group_norm_backward, "TILE", 128)


def image(shape, device, memory_format="nhwc", dtype=torch.float32):
    """Random values with a mean of −2.3, [B, C, H, W]."""
    x = (array("group_norm.x", *shape[:4]) - 2.3).to(device, dtype)
    return x.contiguous(memory_format=FORMATS[memory_format])


def affine(shape, device, dtype=torch.float32):
    """weight, bias, scale, shift."""
    sizes = {"weight": (shape[1],), "bias": (shape[1],), "scale": shape[:2], "shift": shape[:2]}
    return [array(f"group_norm.{name}", *size).to(device, dtype) for name, size in sizes.items()]


def launched(function, *arguments):
    """The launches of a call."""
    with record() as launches:
        function(*arguments)
    return launches


def check_forward(x, groups, weight, bias, scale, shift, activation, limit=1e-5):
    arguments = (x, groups, weight, bias, EPS, scale, shift, activation)
    ours, expected = group_norm.forward(*arguments), _plain(*double(arguments))
    assert ours[0].dtype == x.dtype and ours[0].stride() == torch.empty_like(x).stride()
    for name, y, exact in zip(("y", "mean", "rstd"), ours, expected, strict=True):
        assert_close(name, y, exact, limit)
    for name, y, exact in zip(
        ("mean", "rstd"), group_norm.statistics(x, groups, EPS).unbind(1), expected[1:], strict=True
    ):
        assert y.dtype == torch.float32
        assert_close(f"statistics: {name}", y, exact, limit)


GRADIENTS = ("dx", "dweight", "dbias", "dscale", "dshift")


def gradients(function, dy, x, groups, weight, bias, scale, shift, activation):
    """Gradients by name; the statistics passed to `function` are computed in float64 and rounded."""
    wide = x if x.dtype == torch.float64 else x.float()
    _, mean, rstd = _plain(x.double(), groups, *double((weight, bias)), EPS, None, None, None)
    mean, rstd = mean.to(wide.dtype), rstd.to(wide.dtype)
    results = function(dy, x, mean, rstd, groups, weight, bias, scale, shift, activation)
    return dict(zip(GRADIENTS, results, strict=True))


def check_backward(dy, x, groups, weight, bias, scale, shift, activation, limit=1e-5):
    arguments = (dy, x, groups, weight, bias, scale, shift, activation)
    ours, expected = gradients(group_norm.backward, *arguments), gradients(_plain_backward, *double(arguments))
    assert ours["dx"].dtype == x.dtype and ours["dx"].stride() == torch.empty_like(x).stride()
    for name in GRADIENTS:
        if expected[name].norm() < 1e-9 * expected["dshift"].norm():  # one value a group: exactly 0
            assert ours[name].norm() <= limit * expected["dshift"].norm()
        else:
            assert_close(name, ours[name], expected[name], limit)


def options(index):
    """(scale and shift given, activation) by an index, so that every path runs with each combination."""
    return ((True, True), (False, True), (True, False), (False, False))[index % 4], (None, "silu")[index // 4 % 2]


@pytest.mark.parametrize("shape, memory_format, path", FORWARD)
def test_forward_matches_float64(shape, memory_format, path, device, monkeypatch):
    force_path(path, monkeypatch)
    weight, bias, scale, shift = affine(shape, device)
    (scaled, shifted), activation = options(SHAPES.index(shape) + PATHS.index(path))
    x = image(shape, device, memory_format)
    check_forward(x, shape[4], weight, bias, scale if scaled else None, shift if shifted else None, activation)


@pytest.mark.parametrize("shape, memory_format, path", BACKWARD)
def test_backward_matches_float64(shape, memory_format, path, device, monkeypatch):
    force_path(path, monkeypatch)
    weight, bias, scale, shift = affine(shape, device)
    (scaled, shifted), activation = options(SHAPES.index(shape) + 3 * PATHS.index(path))
    x, dy = image(shape, device, memory_format), array("group_norm.dy", *shape[:4]).to(device)
    check_backward(dy, x, shape[4], weight, bias, scale if scaled else None, shift if shifted else None, activation)


@pytest.mark.parametrize("path", PATHS)
def test_a_forced_path_is_taken(path, device, monkeypatch):
    force_path(path, monkeypatch)
    shape = (1, 40, 8, 8, 8)
    x = image(shape, device)
    launches = launched(group_norm.forward, x, 8, *affine(shape, device)[:2], EPS, None, None, None)
    assert [x.name for x in launches] == (
        ["group_stats_kernel", "group_norm_apply_kernel"] if path == "split" else ["group_norm_fwd_kernel"]
    )
    if path == "split":
        sizes = launches[0].parameters
        assert sizes["parts"] > 1 and sizes["part_pixels"] > launches[0].constants["BLOCK_P"]
    else:
        assert launches[0].constants["RESIDENT"] == (path != "loop")
        assert launches[0].constants["WRITERS"] == (2 if path == "shared" else 1)
        assert launches[0].passes == ({"p_x": 2} if path == "loop" else {})


@pytest.mark.parametrize("channels, side, blocks", [(320, 32, 128), (160, 32, 128), (320, 16, 128), (640, 8, 64)])
def test_small_planes_have_many_programs(channels, side, blocks):
    x = torch.empty(1, channels, side, side, dtype=torch.bfloat16, device="meta")
    x = x.contiguous(memory_format=torch.channels_last)
    parameters = torch.empty(2, channels, device="meta")
    (launch,) = launched(group_norm.forward, x, 32, *parameters, EPS, None, None, "silu")
    assert launch.grid == (blocks,) and launch.num_bytes == 2 * 2 * x.numel() + 2 * 4 * channels + 2 * 4 * 32


@pytest.mark.parametrize("parameters", ["same", "float32"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=name_of)
@pytest.mark.parametrize("path", ["registers", "split"])
def test_16_bit_results_are_rounded_once(path, dtype, parameters, device, monkeypatch):
    force_path(path, monkeypatch)
    shape = (2, 20, 5, 7, 2)
    x, dy = image(shape, device, dtype=dtype), array("group_norm.dy", *shape[:4]).to(device, dtype)
    conditioned = (2, *affine(shape, device, dtype if parameters == "same" else torch.float32), "silu")

    def allowed(plain, exact):
        return min(LIMITS[dtype], 2 * relative_error(plain, exact) + torch.finfo(dtype).eps / 8)

    call = [x, *conditioned[:3], EPS, *conditioned[3:]]
    ours, plain, exact = group_norm.forward(*call)[0], _plain(*call)[0], _plain(*double(call))[0]
    assert ours.dtype == dtype
    assert_close("y", ours, exact, allowed(plain, exact))
    ours, plain = (gradients(f, dy, x, *conditioned) for f in (group_norm.backward, _plain_backward))
    exact = gradients(_plain_backward, *double((dy, x, *conditioned)))
    for name in GRADIENTS:
        assert ours[name].dtype == (dtype if name == "dx" else torch.float32)
        assert_close(name, ours[name], exact[name], allowed(plain[name], exact[name]))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_memory_layout(layout, device):
    shape = (2, 6, 5, 4, 2)
    x = layouts(image(shape, device, "nchw"))[layout]
    dy = array("group_norm.dy", *shape[:4]).to(device)
    parameters = [torch.stack([p, p * torch.nan], dim=-1)[..., 0] for p in affine(shape, device)]
    check_forward(x, 2, *parameters, "silu")
    check_backward(dy, x, 2, *parameters, "silu")
    check_backward(layouts(dy)[layout], image(shape, device), 2, *parameters, None)


@pytest.mark.parametrize("path", ["registers", "split"])
def test_rows_of_scale_and_shift_are_read_without_a_copy(path, device, monkeypatch):
    force_path(path, monkeypatch)
    shape = (3, 12, 5, 3, 2)
    x, dy = image(shape, device), array("group_norm.dy", *shape[:4]).to(device)
    weight, bias, *conditioning = affine(shape, device)
    rows = {
        "halves": torch.cat(conditioning, dim=1).chunk(2, dim=1),
        "expanded": [p[:1].expand_as(p) for p in conditioning],
        "columns": [p.T.contiguous().T for p in conditioning],
    }
    for name, (scale, shift) in rows.items():
        rest = (weight, bias, scale, shift, "silu")
        check_forward(x, 2, *rest)
        check_backward(dy, x, 2, *rest)
        launches = launched(group_norm.forward, x, 2, weight, bias, EPS, scale, shift, "silu")
        statistics = x.new_empty(3, 2)
        launches += launched(group_norm.backward, dy, x, statistics, statistics, 2, *rest)
        given = {"p_scale": scale, "p_shift": shift}
        read = [launch.parameters[key] is given[key] for launch in launches for key in given.keys() & launch.parameters]
        assert read == [name != "columns"] * 7  # three kernels read both, a fourth only the scale


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("path", PATHS)
def test_a_mean_of_a_thousand_standard_deviations(path, memory_format, device, monkeypatch):
    force_path(path, monkeypatch)
    shape = (2, 20, 9, 11, 4)
    x = image(shape, device, memory_format) + 1000
    weight, bias, scale, shift = affine(shape, device)
    call = (x, 4, weight, bias, EPS, scale, shift, None)
    (y, mean, rstd), exact = group_norm.forward(*call), _plain(*double(call))
    assert_close("mean", mean, exact[1], 6e-8)
    assert_close("rstd", rstd, exact[2], 1e-5)
    # The mean is stored in float32: half a unit in the last place of 1000 is 3e-5 standard deviations.
    assert_close("y", y, exact[0], 1e-6 if path == "registers" else 4e-5)


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("value", [0.0, 1000.1, -31234.567])
def test_a_constant_image_gives_the_bias(value, path, memory_format, device, monkeypatch):
    force_path(path, monkeypatch)
    shape = (2, 12, 9, 7, 4)
    x = torch.full_like(image(shape, device, memory_format), value)
    weight, bias, *_ = affine(shape, device)
    y, mean, rstd = group_norm.forward(x, 4, weight, bias, EPS, None, None, None)
    # The correction of the mean is a quotient, whose error on a GPU is up to two units in the last place.
    assert (y - bias[None, :, None, None]).abs().max() <= 1e-5
    assert torch.equal(mean, torch.full_like(mean, value))
    assert_close("rstd", rstd, torch.full_like(rstd, EPS).double().rsqrt(), 1e-6)


@pytest.mark.parametrize("path", PATHS)
def test_nan_stays_in_its_group(path, device, monkeypatch):
    force_path(path, monkeypatch)
    shape = (2, 40, 5, 4, 8)
    x = image(shape, device)
    x[1, 7, 2, 3] = torch.nan
    y, mean, rstd = group_norm.forward(x, 8, *affine(shape, device)[:2], EPS, None, None, "silu")
    expected = torch.zeros(2, 8, dtype=torch.bool, device=device)
    expected[1, 1] = True
    assert torch.equal(mean.isnan(), expected) and torch.equal(rstd.isnan(), expected)
    assert torch.equal(y.isnan(), expected.repeat_interleave(5, dim=1)[:, :, None, None].expand_as(y))


@pytest.mark.filterwarnings("ignore:overflow encountered")  # in the interpreter, for e^300
@pytest.mark.parametrize("activation", [None, "silu"])
def test_extreme_values_in_the_activation(activation, device):
    shape = (1, 4, 3, 5, 2)
    x, (weight, bias, *_) = image(shape, device), affine(shape, device)
    shift = torch.tensor([[-300.0, -80.0, 80.0, 300.0]], device=device)
    check_forward(x, 2, weight, bias, None, shift, activation)
    check_backward(torch.ones_like(x), x, 2, weight, bias, None, shift, activation)


@pytest.mark.parametrize("path", PATHS)
def test_results_repeat_bitwise(path, device, monkeypatch):
    force_path(path, monkeypatch)
    shape = (2, 20, 5, 5, 2)
    x, parameters = image(shape, device), affine(shape, device)

    def run():
        y, mean, rstd = group_norm.forward(x, 2, *parameters[:2], EPS, *parameters[2:], "silu")
        gradients = group_norm.backward(y, x, mean, rstd, 2, *parameters, "silu")
        return (y, mean, rstd, group_norm.statistics(x, 2, EPS), *gradients)

    assert all(torch.equal(a, b) for a, b in zip(run(), run(), strict=True))


def empty(shape, dtype=torch.bfloat16):
    """Channels-last arguments of both launchers on the meta device."""
    x = torch.empty(shape, device="meta", dtype=dtype).contiguous(memory_format=torch.channels_last)
    weight, scale = x.new_empty(shape[1]), x.new_empty(shape[:2])
    statistics = x.new_empty((shape[0], 32), dtype=torch.float32)
    forward = (x, 32, weight, weight, EPS, scale, scale, "silu")
    return forward, (x, x, statistics, statistics, 32, weight, weight, scale, scale, "silu")


LAUNCHES = [  # B, C, side, launches of the forward pass and of the statistics alone
    (1, 640, 8, 1, 1),
    (1, 1280, 8, 1, 1),
    (1, 640, 16, 1, 1),
    (1, 192, 32, 1, 1),
    (1, 320, 32, 1, 1),
    (1, 960, 32, 1, 1),
    (1, 160, 64, 2, 1),
    (1, 192, 64, 2, 1),
    (1, 320, 64, 2, 1),
    (1, 480, 64, 2, 1),
    (1, 512, 64, 2, 1),
    (64, 160, 64, 1, 1),
    (64, 320, 64, 1, 1),
    (1, 256, 128, 2, 2),
    (1, 512, 128, 2, 2),
    (1, 128, 256, 2, 2),
    (1, 256, 256, 2, 2),
    (64, 640, 8, 1, 1),
]


@pytest.mark.parametrize("batch, channels, side, forward, statistics", LAUNCHES)
def test_launches(batch, channels, side, forward, statistics):
    call, gradient_call = empty((batch, channels, side, side))
    launches = launched(group_norm.forward, *call)
    assert len(launches) == forward
    assert len(launched(group_norm.statistics, call[0], 32, EPS)) == statistics
    assert len(launched(group_norm.backward, *gradient_call)) == 3
    bytes_each, moved = call[0].numel() * 2, sum(launch.num_bytes for launch in launches)
    read_again = forward == 2 or bool(launches[0].passes)
    assert moved == pytest.approx((3 if read_again else 2) * bytes_each, rel=0.1)
    if forward == 2:
        assert launches[0].grid[0] >= 128  # enough programs for a GPU at batch 1


@pytest.mark.parametrize("arch", [80, 86, 89, 90, 100, 120])
@pytest.mark.parametrize("shape", [(1, 128, 8192, 4096), (70000, 640, 8, 8), (1, 33, 1, 1 << 27)], ids=str)
def test_huge_tensors_fit_the_grid(shape, arch):
    x, groups = torch.empty(shape, device="meta", dtype=torch.float16), 33 if shape[1] == 33 else 32
    assert x.numel() > 1 << 31
    weight, statistics = x.new_empty(shape[1]), x.new_empty((shape[0], groups), dtype=torch.float32)
    with targeting(arch):
        launches = launched(group_norm.forward, x, groups, weight, weight, EPS, None, None, None)
        launches += launched(group_norm.statistics, x, groups, EPS)
        gradient_call = (x, x, statistics, statistics, groups, weight, weight, None, None, None)
        launches += launched(group_norm.backward, *gradient_call)
    assert all(len(launch.grid) == 1 and 0 < launch.grid[0] < 1 << 31 for launch in launches)


@triton.jit
def address_kernel(
    p_address,  # [BLOCK_P, BLOCK_C], int64
    image,
    chunk,
    pixel,
    pixels,
    C: tl.constexpr,
    CHUNK: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    start = group_norm_tiles.tile_start(
        (tl.program_id(0) + image).to(tl.int64), chunk, pixel, pixels, C, CHUNK, CHANNELS_LAST
    )
    b_address = start + group_norm_tiles.tile_offsets(pixels, C, CHANNELS_LAST, BLOCK_P, BLOCK_C)
    b_place = tl.arange(0, BLOCK_P)[:, None] * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    tl.store(p_address + b_place, b_address.to(tl.int64))


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("image, chunk, pixel, pixels", [(40000, 3, 64, 80), (1, 2, 100_000_016, 100_000_048)])
def test_addresses_beyond_2_to_the_31(image, chunk, pixel, pixels, memory_format, device):
    channels, width, block_p, block_c = 1280, 40, 8, 64
    addresses = torch.full((block_p, block_c), -1, dtype=torch.int64, device=device)
    sizes = (image, chunk, pixel, pixels)
    blocks = {"C": channels, "CHUNK": width, "BLOCK_P": block_p, "BLOCK_C": block_c}
    address_kernel[(1,)](addresses, *sizes, **blocks, CHANNELS_LAST=memory_format == "nhwc")
    row, channel = pixel + torch.arange(block_p)[:, None], chunk * width + torch.arange(block_c)
    if memory_format == "nhwc":
        expected = (image * pixels + row) * channels + channel
    else:
        expected = (image * channels + channel) * pixels + row
    assert expected.max() > 1 << 31
    assert torch.equal(addresses.cpu(), expected)


def test_unsupported_arguments_have_a_reason():
    forward, backward = empty((1, 64, 8, 8))
    assert group_norm.unsupported(*forward) is None and group_norm.unsupported_backward(*backward) is None
    forward, backward = empty((1, 64, 8, 8), torch.float64)
    assert "float64" in group_norm.unsupported(*forward)
    assert "float64" in group_norm.unsupported_backward(*backward)
    forward, backward = empty((1, 5000, 1, 1))
    assert "5000 channels a group" in group_norm.unsupported(forward[0], 1, *forward[2:])
