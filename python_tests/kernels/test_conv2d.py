"""The conv2d kernel against float64: norms, sums, statistics, every configuration, the split of the sum, launches."""

import pytest
import torch
import torch.nn.functional as F
from comparison import LIMITS, assert_close
from golden_data import array
from interpreter import DTYPES, SIXTEEN_BITS
from pairwise import pairwise

from resshift_fast.kernels import conv2d, split_sums, tuning
from resshift_fast.kernels.group_norm_tiles import affine_rows
from resshift_fast.kernels.launch import record
from resshift_fast.ops import norm_stats

pytestmark = pytest.mark.usefixtures("poisoned_empty")

SIZES = [  # B, C, groups, O, H, W, groups of the result
    (2, 72, 4, 33, 7, 9, 3),
    (1, 40, 8, 64, 3, 5, 64),
    (2, 96, 1, 70, 6, 6, 5),
]
# Batch, channels, output channels and side of the convolutions of realsr-x4-v3 on small planes.
NETWORK = [(1, 640, 640, 8), (1, 1280, 640, 8), (1, 320, 640, 8), (1, 320, 320, 16), (1, 640, 320, 16)]


def inputs(size, device, dtype, norm="modulated", residual=True, skip=True, bias=True):
    """(positional, keyword arguments) of the launcher, and the exact result; the image has a mean far from 0."""
    batch, channels, groups, out_channels, height, width, _ = size
    plane = height, width

    def draw(name, *shape):
        return array(f"conv2d.{name}", *shape).to(dtype).to(device)

    x = (array("conv2d.x", batch, channels, *plane) - 2.3).to(dtype).to(device)
    weight = (array("conv2d.weight", out_channels, channels, 3, 3) / (3 * channels**0.5)).to(dtype).to(device)
    x, weight = (t.contiguous(memory_format=torch.channels_last) for t in (x, weight))
    positional = x, weight, draw("bias", out_channels) if bias else None
    keywords, h = {}, x.double()
    if norm != "none":
        affine = [draw("norm_weight", channels), draw("norm_bias", channels), None, None]
        if norm == "modulated":
            affine[2:] = draw("scale_shift", batch, 2 * channels).chunk(2, dim=1)
        statistics = norm_stats.reference(x, groups, 1e-5)
        tensors, strides = affine_rows(*affine)
        keywords["norm"] = conv2d.Norm(groups, statistics, tensors, strides, norm != "plain")
        affine = [t if t is None else t.double() for t in affine]
        activation = None if norm == "plain" else "silu"
        h = norm_stats.normalized(h, norm_stats.reference(h, groups, 1e-5), *affine, activation)
    exact = F.conv2d(h, weight.double(), positional[2].double() if bias else None, padding=1)
    if residual:
        keywords["residual"] = draw("residual", *exact.shape).contiguous(memory_format=torch.channels_last)
        exact = exact + keywords["residual"].double()
    if skip:
        other = draw("skip", batch, 88, *plane).contiguous(memory_format=torch.channels_last)
        keywords["skip"] = conv2d.Skip(
            other, draw("skip_weight", out_channels, 88) / 9, draw("skip_bias", out_channels)
        )
        matrix = keywords["skip"].weight.double()[:, :, None, None]
        exact = exact + F.conv2d(other.double(), matrix, keywords["skip"].bias.double())
    return positional, keywords, exact


def assert_matches(found, exact, next_groups):
    """y is channels-last and within `LIMITS` of float64, and the statistics are those of y as it is stored."""
    y, statistics = found
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert_close("y", y, exact, LIMITS[y.dtype] / 4)
    assert (statistics is None) == (next_groups == 0)
    if statistics is not None:
        assert_close("statistics", statistics, norm_stats.reference(y.double(), next_groups, 1e-3), 1e-5)


@pairwise(
    size=SIZES,
    dtype=DTYPES,
    norm=["none", "plain", "silu", "modulated"],
    residual={"residual": True, "": False},
    skip={"skip": True, "": False},
    bias={"bias": True, "": False},
    following={"statistics": True, "": False},
)
def test_matches_float64(size, dtype, norm, residual, skip, bias, following, device):
    positional, keywords, exact = inputs(size, device, dtype, norm, residual, skip, bias)
    next_groups = size[-1] if following else 0
    found = conv2d.forward(*positional, **keywords, next_groups=next_groups, next_eps=1e-3)
    assert_matches(found, exact, next_groups)


@pytest.mark.parametrize("pixels", [64, 15], ids=["8x8", "3x5"])
def test_every_configuration(pixels, device, monkeypatch):
    dtype = SIXTEEN_BITS[0]
    key = (2, pixels, 70, 96, True)
    candidates = conv2d.SPACE.candidates(key)
    assert 1 <= len(candidates) <= 8
    assert all(conv2d.SPACE.default(arch, key) in candidates for arch in tuning.ARCHITECTURES)
    size = (1, 96, 1, 70, 8, 8, 5) if pixels == 64 else (2, 96, 1, 70, 3, 5, 5)
    positional, keywords, exact = inputs(size, device, dtype)
    for config in candidates:
        monkeypatch.setattr(conv2d.SPACE, "default", lambda arch, key, config=config: config)
        tuning.renew()
        assert_matches(conv2d.forward(*positional, **keywords, next_groups=5, next_eps=1e-3), exact, 5)


def meta(batch, channels, out_channels, side, groups=32):
    """Arguments on the meta device, with a norm, as in the network."""
    x = torch.empty(batch, channels, side, side, device="meta", dtype=torch.bfloat16)
    weight = torch.empty(out_channels, channels, 3, 3, device="meta", dtype=torch.bfloat16)
    x, weight = (t.contiguous(memory_format=torch.channels_last) for t in (x, weight))
    vector = torch.empty(channels, device="meta", dtype=torch.bfloat16)
    statistics = torch.empty(batch, 2, groups, device="meta")
    norm = conv2d.Norm(groups, statistics, (vector, vector, None, None), (0, 0), True)
    return (x, weight, torch.empty(out_channels, device="meta", dtype=torch.bfloat16)), norm


@pytest.mark.parametrize("arguments", NETWORK, ids="B{0[0]}-C{0[1]}-O{0[2]}-{0[3]}x{0[3]}".format)
def test_small_planes_fill_the_gpu(arguments):
    positional, norm = meta(*arguments)
    with record() as launches:
        conv2d.forward(*positional, norm=norm)
    (launch,) = launches
    assert 96 <= launch.grid[0] <= 132


def test_bytes_are_those_of_all_tensors_and_of_the_workspace_twice():
    positional, norm = meta(1, 320, 320, 16)
    with record() as launches:
        y, statistics = conv2d.forward(*positional, norm=norm, next_groups=32)
    (launch,) = launches
    named = launch.parameters
    assert named["p_y"].data_ptr() == y.data_ptr() and named["p_next"].shape == statistics.shape
    tensors = {name: t.numel() * t.element_size() for name, t in named.items() if isinstance(t, torch.Tensor)}
    assert launch.num_bytes == sum(tensors.values()) + tensors["p_workspace"] + tensors["p_parts"]


def test_counters_are_zero_afterwards_and_results_bitwise_the_same(device, monkeypatch):
    dtype = SIXTEEN_BITS[0]
    counts = torch.zeros(512, dtype=torch.int32, device=device)
    monkeypatch.setattr(split_sums, "counters", lambda x, count: counts)
    positional, keywords, _ = inputs((2, 136, 4, 40, 4, 5, 5), device, dtype)
    first, second = (conv2d.forward(*positional, **keywords, next_groups=5) for _ in range(2))
    assert all(x.equal(y) for x, y in zip(first, second, strict=True)) and not counts.any()


@pytest.mark.parametrize("norm", ["none", "silu"])
def test_nan_stays_in_its_neighbourhood(norm, device):
    positional, keywords, _ = inputs((2, 40, 8, 33, 5, 6, 3), device, SIXTEEN_BITS[0], norm, residual=False, skip=False)
    positional[0][0, 3, 2, 2] = torch.nan
    if norm != "none":
        statistics = norm_stats.reference(positional[0], 8, 1e-5)
        keywords["norm"] = keywords["norm"]._replace(statistics=statistics)
    is_nan = conv2d.forward(*positional, **keywords)[0].isnan()
    assert is_nan[0, :, 1:4, 1:4].all() and not is_nan[1].any()
    assert norm != "none" or is_nan.sum() == 33 * 9


def test_strided_and_float32_tensors(device):
    (x, weight, bias), keywords, exact = inputs(SIZES[0], device, SIXTEEN_BITS[0])
    wide = x.new_full((*x.shape[:3], 2 * x.shape[3]), torch.nan)[..., ::2].copy_(x)
    packed = weight.permute(2, 3, 1, 0).contiguous().permute(3, 2, 0, 1).float()
    keywords["residual"] = keywords["residual"].contiguous().float()
    found = conv2d.forward(wide, packed, bias.float(), **keywords, next_groups=3, next_eps=1e-3)
    assert_matches(found, exact, 3)


def test_what_the_kernel_is_not_for():
    assert conv2d.unsupported(torch.float16, 32, 640) is None
    assert conv2d.unsupported(torch.float32, 64, 64) == "torch.float32 is not float16 or bfloat16"
    assert conv2d.unsupported(torch.bfloat16, 64, 3) == "3 channels are less than 32"
