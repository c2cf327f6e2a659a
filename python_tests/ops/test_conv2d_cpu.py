"""The C++ kernel of the 3×3 convolutions: tiles, instruction sets, threads, packed weights; invalid arguments."""

from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from functools import lru_cache

import pytest
import torch
import torch.nn.functional as F
from comparison import assert_close, layouts, name_of, relative_error
from golden_data import array
from pairwise import ISAS, pairwise
from safetensors.torch import load_file
from torch import nn

from resshift_fast import use_backend
from resshift_fast.backends import chosen, unavailable
from resshift_fast.models.layers import Conv3x3, UpsampleConv, prepack_weights_
from resshift_fast.ops import conv2d, upsample_conv2d
from resshift_fast.ops.conv2d_winograd import DIRECT, algorithm, pack_conv2d
from resshift_fast.weights.checkpoints import save_safetensors

pytestmark = [
    pytest.mark.skipif(bool(unavailable("cpu")), reason=f"the cpu backend {unavailable('cpu')}"),
    pytest.mark.usefixtures("poisoned_empty", "native"),
]

TILES = (4, 6, 8)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# Relative error in float32 for each tile; rounding to 16 bits adds at most a third of eps on average.
LIMITS = {4: 1e-5, 6: 1e-5, 8: 1e-4}
SIZES = [(1, 1), (1, 40), (9, 7), (33, 17), (64, 64)]
CHANNELS = [(1, 1), (3, 130), (17, 64), (64, 3), (130, 17)]
AXES = {
    "channels": {f"C{c}-O{o}": (c, o) for c, o in CHANNELS},
    "size": {f"H{height}-W{width}": (height, width) for height, width in SIZES},
    "padding": {f"padding{p}": p for p in range(3)},
    "dtype": DTYPES,
    "isa": ISAS,
}


def fits(case):
    """Whether the kernel fits into the padded image."""
    return min(case["size"]) + 2 * case["padding"] > 2


@pytest.fixture(scope="module")
def native():
    with use_backend("cpu"):
        yield


def kernel(x, weight, bias=None, padding=1, norm=None, silu=False, residual=None, upsample=False, *, tile):
    """The operator, with the weight packed as it requires."""
    operator = torch.ops.resshift_fast_cpu.conv2d
    return operator(x, pack_conv2d(weight), bias, padding, norm, silu, residual, upsample, tile)


def exact(x, weight, bias=None, padding=1, norm=None, silu=False, residual=None, upsample=False):
    """The formula in float64."""
    x, weight, bias, norm, residual = (t if t is None else t.double() for t in (x, weight, bias, norm, residual))
    if norm is not None:
        mean, multiplier, offset = norm[..., None, None].unbind(1)
        x = (x - mean) * multiplier + offset
        x = F.silu(x) if silu else x
    x = F.interpolate(x, scale_factor=2) if upsample else x
    y = F.conv2d(x, weight, bias, padding=padding)
    return y if residual is None else y + residual


@lru_cache(maxsize=8)
def inputs(channels, out_channels, height, width, dtype=torch.float32, batch=3):
    """(x, weight, bias) in the kernel's memory layout; x has a mean far from 0."""
    x = (array("conv2d.x", batch, channels, height, width) - 2.3).to(dtype)
    weight = array("conv2d.weight", out_channels, channels, 3, 3).to(dtype)
    return x.contiguous(memory_format=torch.channels_last), weight, array("conv2d.bias", out_channels)


def close(y, expected, tile):
    """Fail if the error of y exceeds the limit of that tile size."""
    rounding = 0 if y.dtype == torch.float32 else torch.finfo(y.dtype).eps / 3
    assert_close("output", y, expected, max(LIMITS[tile], rounding))


# Size, padding and tile decide where a tile crosses the image's edge, and the channels how it is read there: every
# combination of the four is tested.
@pairwise(strength=4, allowed=fits, **AXES, tile={f"tile{n}": n for n in TILES})
def test_every_instruction_set_and_tile_matches_float64(channels, size, padding, dtype, tile, isa):
    x, weight, bias = inputs(*channels, *size, dtype)
    y = kernel(x, weight, bias, padding, tile=tile)
    assert y.dtype == dtype and y.is_contiguous(memory_format=torch.channels_last)
    close(y, exact(x, weight, bias, padding), tile)


@pairwise(
    strength=3,
    upsample={"same": False, "upsample": True},
    norm=["plain", "norm", "silu"],
    residual={"alone": False, "sum": True},
    dtype=DTYPES,
    tile={f"tile{n}": n for n in TILES},
    isa=ISAS,
)
def test_fused_operations_match_float64(upsample, norm, residual, dtype, tile, isa):
    x, weight, bias = inputs(70, 33, 13, 21, dtype)
    options = {"upsample": upsample, "silu": norm == "silu"}
    if norm != "plain":
        mean, multiplier, offset = array("conv2d.norm", 3, 3, 70).unbind(1)
        options["norm"] = torch.stack([mean - 2.3, multiplier, offset], dim=1)
    if residual:
        side = 1 + upsample
        options["residual"] = (array("conv2d.residual", 3, 33, 13 * side, 21 * side) * 10).to(dtype)
    expected = exact(x, weight, bias, **options)
    close(kernel(x, weight, bias, **options, tile=tile), expected, tile)
    without_bias = expected - bias.double()[:, None, None]
    close(kernel(x, weight, **options, tile=tile), without_bias, tile)


@pytest.mark.parametrize("padding", [0, 2])
def test_padding_stays_zero_after_a_normalization(padding):
    x, weight, bias = inputs(17, 8, 9, 7)
    norm = array("conv2d.norm", 3, 3, 17)
    for tile in TILES:
        close(
            kernel(x, weight, bias, padding, norm, True, tile=tile), exact(x, weight, bias, padding, norm, True), tile
        )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=name_of)
def test_weights_in_float32_are_not_rounded(dtype):
    x, weight, bias = inputs(64, 40, 20, 20, dtype)
    fine = weight.float() * (1 + torch.finfo(dtype).eps / 3)
    close(kernel(x, fine, bias, tile=6), exact(x, fine, bias), 6)


@pytest.mark.parametrize("name", ["channels_last", "strided", "offset", "transposed", "expanded"])
def test_any_memory_layout(name):
    x, weight, bias = inputs(17, 20, 9, 7)
    residual = array("conv2d.residual", 3, 20, 9, 7)
    x, residual = layouts(x)[name], layouts(residual)[name]
    for each in (weight, *layouts(weight).values()):
        for tile in TILES:
            close(kernel(x, each, bias, residual=residual, tile=tile), exact(x, each, bias, residual=residual), tile)
    every_second = torch.stack([bias, bias * 7], dim=1)[:, 0]
    close(kernel(x, weight, every_second, tile=6), exact(x, weight, bias), 6)


@pytest.mark.parametrize("upsample", [False, True], ids=["same", "upsample"])
def test_a_slice_of_a_packed_weight_is_accepted(upsample):
    """It has the order of elements that the kernel requires, with larger strides."""
    x, weight, bias = inputs(20, 24, 9, 7)
    packed = pack_conv2d(weight)
    for rows, columns in ((slice(3, 19), slice(0, 20)), (slice(0, 24), slice(5, 12)), (slice(23, 24), slice(19, 20))):
        part, image = packed[rows, columns], x[:, columns]
        y = torch.ops.resshift_fast_cpu.conv2d(image, part, bias[rows], 1, None, False, None, upsample, 6)
        close(y, exact(image, part, bias[rows], upsample=upsample), 6)


# With many tiles and few channels, threads share the weights; with few tiles and many channels, they share the tiles,
# in several chunks and slices of channels.
BIG = [(17, 40, 64, 64), (130, 260, 9, 7), (70, 260, 45, 33), (5, 3, 1, 40)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=name_of)
@pytest.mark.parametrize("channels, out_channels, height, width", BIG, ids=str)
def test_threads_change_nothing(channels, out_channels, height, width, dtype, two_threads):
    x, weight, bias = inputs(channels, out_channels, height, width, dtype)
    for tile in TILES:
        with_two = kernel(x, weight, bias, tile=tile)
        torch.set_num_threads(1)
        assert with_two.equal(kernel(x, weight, bias, tile=tile))
        torch.set_num_threads(2)
        close(with_two, exact(x, weight, bias), tile)


def test_many_threads_call_at_once(two_threads):
    calls = [(*inputs(*BIG[i % 4]), TILES[i % 3]) for i in range(8)]
    expected = [kernel(*call, tile=tile) for *call, tile in calls]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            found = pool.map(lambda call: kernel(*call[:-1], tile=call[-1]), calls)
            assert all(a.equal(b) for a, b in zip(found, expected, strict=True))


@pairwise(size=BIG, tile={f"tile{n}": n for n in TILES}, isa=ISAS)
def test_nothing_is_left_of_an_earlier_call(size, tile, isa):
    """The workspace is reused, so NaN of one call must not reach the next."""
    x, weight, bias = inputs(*size)
    expected = kernel(x, weight, bias, tile=tile)
    poison = [torch.full_like(tensor, torch.nan) for tensor in inputs(130, 260, 45, 33)]
    for each in TILES:
        assert kernel(*poison, tile=each).isnan().all()
        assert kernel(x, weight, bias, tile=tile).equal(expected)


def test_alignment_changes_nothing():
    x, weight, bias = inputs(19, 21, 11, 13)
    for tile in TILES:
        expected = kernel(x, weight, bias, tile=tile)
        for shift in (1, 3, 7):
            moved = [
                torch.empty(t.numel() + shift)[shift:].as_strided(t.shape, t.stride()).copy_(t)
                for t in (x, pack_conv2d(weight), bias)
            ]
            assert kernel(*moved, tile=tile).equal(expected)


def test_images_of_a_batch_are_independent():
    x, weight, bias = inputs(17, 20, 9, 7)
    for tile in TILES:
        whole = kernel(x, weight, bias, tile=tile)
        poisoned = x.clone(memory_format=torch.preserve_format)
        poisoned[1] = torch.nan
        found = kernel(poisoned, weight, bias, tile=tile)
        assert found[::2].equal(whole[::2]) and found[1].isnan().all()


# the gradient of the weight


def gradient(x, dy, padding=1):
    """[O, C, 3, 3], as the kernel computes it."""
    return torch.ops.resshift_fast_cpu.conv2d_weight_gradient(dy, x, padding).permute(3, 2, 0, 1)


def exact_gradient(x, dy, padding=1):
    """The gradient in float64."""
    size = (dy.shape[1], x.shape[1], 3, 3)
    return torch.nn.grad.conv2d_weight(x.double(), size, dy.double(), padding=padding)


@lru_cache(maxsize=8)
def output_gradient(x, out_channels, padding):
    """A gradient with respect to the output for x, with a mean far from 0."""
    size = (x.shape[0], out_channels, *(side + 2 * padding - 2 for side in x.shape[2:]))
    dy = (array("conv2d.dy", *size) + 1.1).to(x.dtype)
    return dy.contiguous(memory_format=torch.channels_last)


@pairwise(strength=3, allowed=fits, **AXES)
def test_gradients_of_the_weight_match_float64(channels, size, padding, dtype, isa):
    x, _, _ = inputs(*channels, *size, dtype)
    dy = output_gradient(x, channels[1], padding)
    found = gradient(x, dy, padding)
    assert found.dtype == torch.float32
    assert_close("gradient", found, exact_gradient(x, dy, padding), 1e-5)


@pytest.mark.parametrize("name", ["channels_last", "strided", "offset", "transposed", "expanded"])
def test_gradients_in_any_memory_layout(name):
    x, _, _ = inputs(17, 20, 9, 7)
    dy = layouts(output_gradient(x, 20, 1))[name]
    x = layouts(x)[name]
    assert_close("gradient", gradient(x, dy), exact_gradient(x, dy), 1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("pack", [pack_conv2d, torch.Tensor.contiguous], ids=["packed", "contiguous"])
def test_a_gradient_has_the_strides_of_its_weight(pack, dtype):
    x, weight, _ = inputs(17, 20, 9, 7, dtype)
    parameter = pack(weight.to(dtype)).requires_grad_()
    dy = output_gradient(x, 20, 1)
    conv2d(x, parameter, padding=1).backward(dy)
    assert (parameter.grad.stride(), parameter.grad.dtype) == (parameter.stride(), dtype)
    assert_close("gradient", parameter.grad.float(), exact_gradient(x, dy), 1e-5 if dtype == torch.float32 else 4e-3)


@pytest.mark.parametrize("channels, out_channels, height, width", [*BIG, (9, 7, 130, 131)], ids=str)
def test_neither_threads_nor_earlier_calls_change_gradients(channels, out_channels, height, width, two_threads):
    x, _, _ = inputs(channels, out_channels, height, width)
    dy = output_gradient(x, out_channels, 1)
    with_two = gradient(x, dy)
    torch.set_num_threads(1)
    assert with_two.equal(gradient(x, dy))
    poison = torch.full_like(inputs(130, 260, 45, 33)[0], torch.nan)
    assert gradient(poison, poison).isnan().all()
    assert with_two.equal(gradient(x, dy))
    assert_close("gradient", with_two, exact_gradient(x, dy), 1e-5)


@pytest.mark.parametrize(
    "index, bad",
    [
        (0, (2, 4, 5, 4)),
        (0, (1, 4, 5, 5)),
        (0, (4, 5, 5)),
        (0, (2, 0, 5, 5)),
        (1, (2, 6, 5)),
        (1, (0, 6, 5, 5)),
        (2, -1),
    ],
    ids=str,
)
def test_gradients_refuse_invalid_arguments(index, bad):
    operator = torch.ops.resshift_fast_cpu.conv2d_weight_gradient
    args = [torch.ones(2, 4, 5, 5), torch.ones(2, 6, 5, 5), 1]
    operator(*args)
    args[index] = torch.ones(bad) if isinstance(bad, tuple) else bad
    with pytest.raises(RuntimeError, match="must"):
        operator(*args)


def test_gradients_refuse_other_dtypes():
    operator = torch.ops.resshift_fast_cpu.conv2d_weight_gradient
    dy, x = torch.ones(2, 4, 5, 5), torch.ones(2, 6, 5, 5)
    for args in ((dy.half(), x), (dy, x.half()), (dy.double(), x.double())):
        with pytest.raises(RuntimeError, match="must be|of x's dtype"):
            operator(*args, 1)


# the choice of an algorithm


@pytest.mark.parametrize(
    "shape, out_channels, dtype, upsample, expected",
    [
        ((1, 160, 64, 64), 160, torch.float32, False, 6),
        ((1, 160, 64, 64), 160, torch.bfloat16, False, 8),
        ((1, 320, 8, 8), 320, torch.float32, False, 4),
        ((1, 3, 64, 64), 512, torch.bfloat16, False, DIRECT),
        ((1, 3, 64, 64), 512, torch.float32, False, 6),
        ((1, 64, 64, 64), 64, torch.bfloat16, True, 6),
        ((20, 64, 4, 4), 64, torch.bfloat16, True, 8),
        ((20, 64, 4, 4), 64, torch.float32, True, 4),
        ((1, 64, 1, 1), 64, torch.float32, False, DIRECT),
        ((1, 64, 1, 1), 64, torch.float32, True, DIRECT),
    ],
    ids=str,
)
def test_the_algorithm_with_least_work_is_chosen(shape, out_channels, dtype, upsample, expected):
    x, weight = torch.empty(shape, dtype=dtype), torch.empty(out_channels, shape[1], 3, 3, dtype=dtype)
    assert algorithm(x, weight, 1, upsample) == expected


@pytest.mark.parametrize("side", [1, 2, 3, 5, 8, 13, 40, 100])
def test_float32_takes_no_tile_that_loses_accuracy(side):
    x, weight = torch.empty(1, 16, side, side), torch.empty(16, 16, 3, 3)
    for padding in (1, 2):
        assert algorithm(x, weight, padding) in (DIRECT, 4, 6)
    assert algorithm(x, weight, 1, True) in (DIRECT, 4, 6)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("padding", [0, 1, 2])
def test_the_public_function_runs_the_kernel_of_that_algorithm(padding, dtype):
    for side in (3, 9, 33, 64):
        x, weight, bias = inputs(32, 24, side, side, dtype)
        tile = algorithm(x, weight, padding)
        assert chosen("conv2d", x, weight, bias, padding, None, 0, None, None, 1e-5, None, None, None) == "cpu"
        y = conv2d(x, weight, bias, padding=padding)
        if tile:
            assert y.equal(kernel(x, weight, bias, padding, tile=tile))
        else:
            close(y, exact(x, weight, bias, padding), 4)
        up = algorithm(x, weight, 1, True)
        assert up and upsample_conv2d(x, weight, bias).equal(kernel(x, weight, bias, upsample=True, tile=up))


# packed weights


def test_packing_keeps_values_and_changes_strides():
    weight = array("conv2d.weight", 5, 7, 3, 3)
    for each in (weight, *layouts(weight).values()):
        packed = pack_conv2d(each)
        assert packed.equal(each) and packed.shape == each.shape and packed.dtype == each.dtype
        assert packed.permute(2, 3, 1, 0).is_contiguous()
        assert pack_conv2d(packed) is packed


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3), (5, 7, 4, 4), (5, 7, 3, 3, 1)], ids=str)
def test_packing_refuses_other_shapes(shape):
    with pytest.raises(ValueError, match=r"pack_conv2d: weight has shape .*, expected \(O, C, 3, 3\)"):
        pack_conv2d(torch.ones(shape))


@pytest.mark.parametrize("shape", [(1, 7, 3, 3), (5, 1, 3, 3), (1, 1, 3, 3)], ids=str)
def test_packing_with_one_channel(shape):
    weight = array("conv2d.weight", *shape)
    packed = pack_conv2d(weight)
    assert packed.equal(weight) and pack_conv2d(packed) is packed
    x = array("conv2d.x", 2, shape[1], 9, 7)
    close(kernel(x, packed, tile=4), exact(x, weight), 4)


def network():
    """Two layers with packed weights."""
    torch.manual_seed(0)
    return prepack_weights_(nn.Sequential(Conv3x3(8, 12), UpsampleConv(12)))


def plain(module, x):
    first, second = module
    x = exact(x, first.weight, first.bias)
    return exact(x, second.conv.weight, second.conv.bias, upsample=True)


def is_packed(module):
    return all(pack_conv2d(p) is p for p in module.parameters() if p.dim() == 4)


IMAGE = array("conv2d.x", 2, 8, 30, 29)


def test_updates_of_a_packed_weight_take_effect():
    module = network()
    module(IMAGE)
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1)
    before = module(IMAGE)
    module(IMAGE).square().sum().backward()
    optimizer.step()
    assert is_packed(module) and relative_error(module(IMAGE), before) > 1e-2
    assert_close("after a step", module(IMAGE), plain(module, IMAGE), 1e-5)
    with torch.no_grad():
        module[0].weight.mul_(-3)
        assert_close("after a change in place", module(IMAGE), plain(module, IMAGE), 1e-5)


def test_copies_and_files_of_packed_weights(tmp_path):
    module = network().requires_grad_(False)
    expected = module(IMAGE)
    copy = deepcopy(module)
    assert is_packed(copy) and copy(IMAGE).equal(expected)
    state = module.state_dict()
    for other in (
        nn.Sequential(Conv3x3(8, 12), UpsampleConv(12)),
        prepack_weights_(nn.Sequential(Conv3x3(8, 12), UpsampleConv(12))),
    ):
        packed = is_packed(other)
        other.requires_grad_(False).load_state_dict(state)
        assert is_packed(other) == packed and other(IMAGE).equal(expected)
    save_safetensors(state, tmp_path / "weights.safetensors", {})
    loaded = load_file(tmp_path / "weights.safetensors")
    assert all(loaded[name].equal(tensor) and loaded[name].is_contiguous() for name, tensor in state.items())
    torch.save(state, tmp_path / "weights.pt")
    loaded = torch.load(tmp_path / "weights.pt")
    assert all(loaded[name].equal(tensor) for name, tensor in state.items())


@pytest.mark.filterwarnings("ignore:No complete tensor found")  # torch warns of a stride of 1 in the first dimension
def test_an_exported_program_runs_on_packed_weights(tmp_path):
    module = network().requires_grad_(False)
    sizes = {0: torch.export.Dim("batch"), 2: torch.export.Dim("height"), 3: torch.export.Dim("width")}
    program = torch.export.export(module, (IMAGE,), dynamic_shapes=(sizes,))
    torch.export.save(program, tmp_path / "program.pt2")
    for each in (program, torch.export.load(tmp_path / "program.pt2")):
        for image in (IMAGE, IMAGE[:1, :, :9, :11]):
            assert each.module()(image).equal(module(image))


# invalid arguments

W, X = torch.ones(3, 3, 6, 4).permute(3, 2, 0, 1), torch.ones(2, 6, 5, 5)
GOOD = [X, W, torch.ones(4), 1, torch.ones(2, 3, 6), True, torch.ones(2, 4, 5, 5), False, 4]


@pytest.mark.parametrize(
    "index, bad, message",
    [
        (0, X[0], r"x must be \[B, C, H, W\] on the CPU and not empty"),
        (0, X[:0], "not empty"),
        (0, X[:, :5], r"weight must be \[O, C, 3, 3\]"),
        (0, X.double(), "must"),
        (0, X.half(), "residual must have x's dtype"),
        (1, W.contiguous(), "weight must lie in memory with output channels last and taps in order"),
        (1, W[:, :5], r"weight must be \[O, C, 3, 3\]"),
        (1, W[:0], r"weight must be \[O, C, 3, 3\]"),
        (1, W[..., :2], r"weight must be \[O, C, 3, 3\]"),
        (1, W[0], r"weight must be \[O, C, 3, 3\]"),
        (1, W.transpose(2, 3), "taps in order"),
        (1, W.double(), "weight must be float32, float16 or bfloat16"),
        (2, torch.ones(3), "bias has 3 elements, expected 4"),
        (2, torch.ones(4).half(), "bias has another dtype"),
        (3, -1, "padding must be 0 to 1048576"),
        (3, 2**63 - 1, "padding must be 0 to 1048576"),
        (4, torch.ones(1, 3, 6), "normalization has 18 elements, expected 36"),
        (4, torch.ones(2, 3, 6).half(), "normalization has another dtype"),
        (6, torch.ones(2, 4, 5), "residual has 3 dimensions, expected 4"),
        (6, torch.ones(2, 4, 5, 4), "residual has size 4 in dimension 3, expected 5"),
        (6, torch.ones(2, 4, 5, 5).half(), "residual must have x's dtype"),
        (7, True, "residual has size 5 in dimension 2, expected 10"),
        (8, 0, "tile must be 4, 6 or 8"),
        (8, 5, "tile must be 4, 6 or 8"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_refuses_invalid_arguments(index, bad, message):
    operator = torch.ops.resshift_fast_cpu.conv2d
    operator(*GOOD)
    args = list(GOOD)
    args[index] = bad
    with pytest.raises(RuntimeError, match=message):
        operator(*args)


def test_refuses_an_image_smaller_than_the_kernel():
    for image in (X[:, :, :2], X[..., :1]):
        with pytest.raises(RuntimeError, match="the image is smaller than the kernel"):
            torch.ops.resshift_fast_cpu.conv2d(image, W, None, 0, None, False, None, False, 4)
