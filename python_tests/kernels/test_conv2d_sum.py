"""The conv2d_sum kernel against float64: sums, statistics, few channels, every configuration, launches."""

import pytest
import torch
import torch.nn.functional as F
from comparison import LIMITS, assert_close
from golden_data import array
from interpreter import DTYPES, SIXTEEN_BITS
from pairwise import pairwise

from resshift_fast.kernels import conv2d_sum, tuning
from resshift_fast.kernels.launch import record
from resshift_fast.ops import norm_stats

pytestmark = pytest.mark.usefixtures("poisoned_empty")

SIZES = [  # B, C, O, H, W, groups of the result
    (2, 40, 33, 5, 7, 3),
    (1, 9, 64, 3, 5, 64),
    (1, 64, 80, 9, 8, 5),
    (2, 3, 48, 13, 7, 8),
    (1, 7, 20, 1, 9, 1),
]
SKIPS = {"": (), "skip": (88,), "skip-of-two": (24, 17)}  # channels of its images
# Channels, output channels and side of the convolutions of realsr-x4-v3 on large planes.
NETWORK = [(128, 128, 256), (256, 128, 256), (256, 256, 128), (512, 512, 64), (160, 160, 64), (320, 320, 32)]


def channels_last(x):
    return x.contiguous(memory_format=torch.channels_last)


def inputs(size, device, dtype, residual=True, skips=(24, 17), bias=True):
    """The launcher's arguments without those of the statistics, and the exact result; x has a mean far from 0."""
    batch, channels, out_channels, height, width, _ = size
    plane = height, width

    def draw(name, *shape):
        return array(f"conv2d_sum.{name}", *shape).to(dtype).to(device)

    x = channels_last((array("conv2d_sum.x", batch, channels, *plane) - 2.3).to(dtype).to(device))
    weight = (array("conv2d_sum.weight", out_channels, channels, 3, 3) / (3 * channels**0.5)).to(dtype).to(device)
    arguments = [x, channels_last(weight), draw("bias", out_channels) if bias else None, None, None, None, None, None]
    exact = F.conv2d(x.double(), weight.double(), arguments[2].double() if bias else None, padding=1)
    if residual:
        arguments[3] = channels_last(draw("residual", *exact.shape))
        exact = exact + arguments[3].double()
    if skips:
        images = [channels_last(draw(f"skip{i}", batch, width, *plane)) for i, width in enumerate(skips)]
        arguments[4 : 4 + len(images)] = images
        arguments[6] = draw("skip_weight", out_channels, sum(skips)) / 9
        arguments[7] = draw("skip_bias", out_channels) if bias else None
        both = torch.cat(images, dim=1).double()
        matrix = arguments[6].double()[:, :, None, None]
        exact = exact + F.conv2d(both, matrix, arguments[7].double() if bias else None)
    return arguments, exact


def assert_matches(found, exact, next_groups):
    """y is channels-last and within `LIMITS` of float64, and the statistics are those of y as it is stored."""
    y, statistics = found
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert_close("y", y, exact, LIMITS[y.dtype] / 4)
    assert statistics.shape == (y.shape[0], 2, next_groups) and statistics.dtype == torch.float32
    if next_groups:
        assert_close("statistics", statistics, norm_stats.reference(y.double(), next_groups, 1e-3), 1e-5)


@pairwise(
    size=SIZES,
    dtype=DTYPES,
    residual={"residual": True, "": False},
    skips=SKIPS,
    bias={"bias": True, "": False},
    following={"statistics": True, "": False},
)
def test_matches_float64(size, dtype, residual, skips, bias, following, device):
    arguments, exact = inputs(size, device, dtype, residual, skips, bias)
    next_groups = size[-1] if following else 0
    assert_matches(conv2d_sum.forward(*arguments, next_groups, 1e-3), exact, next_groups)


@pytest.mark.parametrize("channels", [40, 64, 6])
def test_every_configuration(channels, device, monkeypatch):
    key = (2, 64, 40, channels)
    candidates = conv2d_sum.SPACE.candidates(key)
    assert 1 <= len(candidates) <= 8
    assert all(conv2d_sum.SPACE.default(arch, key) in candidates for arch in tuning.ARCHITECTURES)
    arguments, exact = inputs((2, channels, 40, 7, 9, 5), device, SIXTEEN_BITS[0])
    for config in candidates:
        monkeypatch.setattr(conv2d_sum.SPACE, "default", lambda arch, key, config=config: config)
        tuning.renew()
        assert_matches(conv2d_sum.forward(*arguments, 5, 1e-3), exact, 5)


def launch(channels, out_channels, side, batch=1, skip=0, groups=32, arch=90):
    """The only launch for images on the meta device, and its results."""

    def empty(*shape):
        return channels_last(torch.empty(shape, device="meta", dtype=torch.bfloat16))

    image = empty(batch, skip, side, side) if skip else None
    matrix = torch.empty(out_channels, skip, device="meta", dtype=torch.bfloat16) if skip else None
    tensors = empty(batch, channels, side, side), empty(out_channels, channels, 3, 3), None, None, image, None, matrix
    with record() as launches, tuning.targeting(arch):
        results = conv2d_sum.forward(*tensors, None, groups, 1e-5)
    (found,) = launches
    return found, results


@pytest.mark.parametrize("arguments", NETWORK, ids="C{0[0]}-O{0[1]}-{0[2]}x{0[2]}".format)
def test_planes_of_the_network_fill_most_of_the_gpu(arguments):
    for arch in tuning.ARCHITECTURES:
        found, _ = launch(*arguments, arch=arch)
        assert found.grid[0] >= 80
        padded = found.constants["BLOCK_N"] * -(-arguments[1] // found.constants["BLOCK_N"])
        assert padded <= 1.25 * arguments[1]


def test_tiles_stay_within_an_image():
    found, _ = launch(320, 320, 9, batch=16)
    assert found.grid == (16 * 2 * 5,) and found.constants["BLOCK_M"] == 64


def test_bytes_are_those_of_all_tensors_and_of_the_parts_twice():
    found, (y, statistics) = launch(64, 96, 32, skip=32)
    named = found.parameters
    assert named["p_y"].data_ptr() == y.data_ptr() and named["p_next"].shape == statistics.shape
    tensors = {name: t.numel() * t.element_size() for name, t in named.items() if isinstance(t, torch.Tensor)}
    assert found.num_bytes == sum(tensors.values()) + tensors["p_parts"]
    assert launch(64, 96, 32, groups=0)[0].parameters["p_parts"] is None


def test_counters_are_zero_afterwards_and_results_bitwise_the_same(device, monkeypatch):
    counts = torch.zeros(8, dtype=torch.int32, device=device)
    monkeypatch.setattr("resshift_fast.kernels.norm_stats.counters", lambda x, count: counts)
    arguments, _ = inputs((2, 12, 40, 9, 9, 5), device, SIXTEEN_BITS[0])
    first, second = (conv2d_sum.forward(*arguments, 5) for _ in range(2))
    assert all(x.equal(y) for x, y in zip(first, second, strict=True)) and not counts.any()


@pytest.mark.parametrize("channels", [40, 5])
def test_nan_stays_in_its_neighbourhood(channels, device):
    arguments, _ = inputs((2, channels, 33, 5, 6, 3), device, SIXTEEN_BITS[0], residual=False, skips=())
    arguments[0][0, 3, 2, 2] = torch.nan
    is_nan = conv2d_sum.forward(*arguments)[0].isnan()
    assert is_nan[0, :, 1:4, 1:4].all() and is_nan.sum() == 33 * 9


def test_strided_and_float32_tensors(device):
    arguments, exact = inputs(SIZES[0], device, SIXTEEN_BITS[0])
    x, weight, bias, residual, skip, *rest = arguments
    wide = x.new_full((*x.shape[:3], 2 * x.shape[3]), torch.nan)[..., ::2].copy_(x)
    packed = weight.permute(2, 3, 1, 0).contiguous().permute(3, 2, 0, 1).float()
    others = (t.float() if i else t for i, t in enumerate(rest))
    found = conv2d_sum.forward(wide, packed, bias.float(), residual.contiguous(), skip.contiguous(), *others, 3, 1e-3)
    assert_matches(found, exact, 3)


def test_what_the_kernel_is_not_for():
    weight = torch.empty(16, 8, 3, 3)
    assert conv2d_sum.unsupported(torch.empty(1, dtype=torch.float16), weight) is None
    assert conv2d_sum.unsupported(torch.empty(1), weight) == "torch.float32 is not float16 or bfloat16"
    few = "3 output channels are less than 16"
    assert conv2d_sum.unsupported(torch.empty(1, dtype=torch.bfloat16), weight[:3]) == few
