"""The upsample_conv2d kernels against the formula in float64: layouts, both forms of weights, launches, bytes."""

from itertools import product

import pytest
import torch
import torch.nn.functional as F
from comparison import LAYOUTS, LIMITS, assert_close, layouts, name_of, relative_error
from golden_data import array
from interpreter import DTYPES, SIXTEEN_BITS

from resshift_fast.kernels import upsample_conv2d as module
from resshift_fast.kernels.launch import record
from resshift_fast.kernels.tuning import ARCHITECTURES, Config, targeting
from resshift_fast.ops import norm_stats, sum_upsample_taps

pytestmark = pytest.mark.usefixtures("poisoned_empty")

CASES = [  # B, C, O, H, W, bias: odd sizes, several blocks, one pixel, one row, channels that do not fill a block
    (2, 8, 5, 7, 9, True),
    (1, 24, 4, 1, 1, False),
    (3, 16, 48, 1, 1, True),
    (1, 32, 16, 1, 11, True),
    (2, 80, 20, 5, 2, False),
    (1, 16, 33, 9, 8, True),
]
IDS = [f"B{b}-C{c}-O{o}-H{h}-W{w}-{'bias' if bias else 'plain'}" for b, c, o, h, w, bias in CASES]


@pytest.fixture(params=["summed", "direct"])
def form(request, monkeypatch):
    """Force one form for all image sizes: "summed" adds up taps of the kernel before the convolution."""
    pixels = 1 if request.param == "summed" else 10**9
    for name in ("SUMMED_PIXELS", "GIVEN_PIXELS"):
        monkeypatch.setattr(module, name, {2: pixels, 4: pixels})
    return request.param


def inputs(batch, channels, out_channels, height, width, bias, dtype, device):
    """Random tensors; the image has a mean far from 0."""
    x = (array("upsample.x", batch, channels, height, width) - 2.3).to(device, dtype)
    weight = array("upsample.weight", out_channels, channels, 3, 3).to(device, dtype)
    bias = array("upsample.bias", out_channels).to(device, dtype) if bias else None
    channels_last = torch.channels_last
    return x.contiguous(memory_format=channels_last), weight.contiguous(memory_format=channels_last), bias


def plain(x, weight, bias):
    """The formula in the dtype of its arguments; indexing upsamples the image."""
    rows, columns = (torch.arange(2 * n, device=x.device) // 2 for n in x.shape[2:])
    return F.conv2d(x[:, :, rows[:, None], columns[None, :]], weight, bias, padding=1)


def forward(*arguments):
    """y alone."""
    return module.forward(*arguments)[0]


def check(y, x, weight, bias):
    """The error is at most the limit, and in 16 bits at most twice that of the plain path."""
    exact = plain(x.double(), weight.double(), None if bias is None else bias.double())
    allowed = LIMITS[x.dtype]
    if x.dtype != torch.float32:
        rounded = plain(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))
        allowed = min(allowed, 2 * relative_error(rounded, exact))
    assert y.dtype == x.dtype
    assert_close("output", y, exact, allowed)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("batch, channels, out_channels, height, width, bias", CASES, ids=IDS)
def test_matches_float64(batch, channels, out_channels, height, width, bias, dtype, form, device):
    arguments = inputs(batch, channels, out_channels, height, width, bias, dtype, device)
    y = forward(*arguments)
    check(y, *arguments)
    # An image of one pixel is both contiguous and channels-last.
    assert y.is_contiguous(memory_format=torch.contiguous_format if height * width == 1 else torch.channels_last)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_memory_layout(layout, form, device):
    x, weight, bias = inputs(2, 8, 5, 3, 4, True, torch.float32, device)
    arguments = layouts(x)[layout], layouts(weight)[layout], bias.repeat_interleave(2)[::2]
    check(forward(*arguments), *arguments)


def test_a_contiguous_image_gives_a_contiguous_image(device):
    x, weight, bias = inputs(2, 8, 5, 3, 4, True, torch.float32, device)
    arguments = x.contiguous(), weight.contiguous(), bias
    y = forward(*arguments)
    check(y, *arguments)
    assert y.is_contiguous()


@pytest.mark.parametrize("dtype", SIXTEEN_BITS, ids=name_of)
def test_float32_parameters_with_a_16_bit_image(dtype, form, device):
    x, weight, bias = inputs(1, 16, 8, 3, 4, True, torch.float32, device)
    arguments = x.to(dtype), weight, bias
    check(forward(*arguments), *arguments)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("batch, channels, out_channels, height, width, bias", CASES[:3], ids=IDS[:3])
def test_given_sums_change_no_bit(batch, channels, out_channels, height, width, bias, dtype, form, device):
    """Of a weight in any layout: the kernel that sums taps rounds as the public function does."""
    x, weight, bias = inputs(batch, channels, out_channels, height, width, bias, dtype, device)
    given = forward(x, weight, bias, sum_upsample_taps(weight))
    check(given, x, weight, bias)
    assert given.equal(forward(x, weight, bias))


def test_given_sums_are_read_instead_of_the_weight(form, device):
    x, weight, bias = inputs(1, 16, 8, 5, 7, True, torch.float32, device)
    y = forward(x, torch.full_like(weight, torch.nan), bias, sum_upsample_taps(weight))
    assert y.isnan().all() if form == "direct" else y.isfinite().all()


def test_groups_of_blocks_cover_the_image(form, device, monkeypatch):
    blocks = Config({"B_M": 16, "B_N": 16, "B_K": 16})  # nine blocks of pixels: a full group and a partial one
    monkeypatch.setattr(module.SPACE, "default", lambda arch, key: blocks)
    arguments = inputs(1, 16, 12, 10, 13, True, torch.float32, device)
    check(forward(*arguments), *arguments)


@pytest.mark.parametrize(
    "size, groups, dtype",
    [((2, 8, 6, 7, 9), 3, DTYPES[0]), ((3, 16, 48, 1, 1), 48, DTYPES[-1]), ((1, 16, 40, 5, 8), 8, DTYPES[1])],
)
def test_statistics_are_those_of_the_result(size, groups, dtype, form, device, monkeypatch):
    """With a tile within each image, whose groups have channels of several blocks, and whose images have several."""
    blocks = Config({"B_M": 32, "B_N": 16, "B_K": 16})
    monkeypatch.setattr(module.SPACE, "default", lambda arch, key: blocks)
    arguments = inputs(*size, True, dtype, device)
    y, statistics = module.forward(*arguments, None, groups, 1e-3)
    check(y, *arguments)
    assert_close("statistics", statistics, norm_stats.reference(y.double(), groups, 1e-3), 1e-5)


def test_results_repeat_bitwise(form, device):
    arguments = [*inputs(1, 16, 8, 5, 7, True, torch.float32, device), None, 4, 1e-3]
    first, second = (module.forward(*arguments) for _ in range(2))
    assert all(x.equal(y) for x, y in zip(first, second, strict=True))


def recorded(batch, channels, height, width, arch=90, dtype=torch.bfloat16, given=False):
    """Launches on a channels-last image on the meta device; the sums are `given` or not."""
    options = {"dtype": dtype, "device": "meta"}
    x = torch.empty(batch, channels, height, width, memory_format=torch.channels_last, **options)
    weight = torch.empty(channels, channels, 3, 3, memory_format=torch.channels_last, **options)
    with targeting(arch), record() as launches:
        summed = torch.empty(4, channels, 4, channels, **options) if given else None
        y = forward(x, weight, torch.empty(channels, **options), summed)
    assert y.shape == (batch, channels, 2 * height, 2 * width)
    assert y.is_contiguous(memory_format=torch.channels_last)
    return launches


@pytest.mark.parametrize("channels, size", [(512, 64), (256, 128), (320, 32)])
def test_bytes_of_large_images(channels, size):
    summing, convolution = recorded(1, channels, size, size)
    assert summing.num_bytes == (9 + 16) * channels**2 * 2
    assert convolution.num_bytes == (5 * channels * size**2 + 16 * channels**2 + channels) * 2


@pytest.mark.parametrize("channels, size", [(512, 64), (256, 128), (320, 32), (320, 16)])
def test_bytes_with_given_sums(channels, size):
    (convolution,) = recorded(1, channels, size, size, given=True)
    assert convolution.num_bytes == (5 * channels * size**2 + 16 * channels**2 + channels) * 2


@pytest.mark.parametrize("channels, size, given", [(640, 8, False), (640, 8, True), (320, 16, False)])
def test_bytes_of_small_images(channels, size, given):
    (convolution,) = recorded(1, channels, size, size, given=given)
    assert convolution.num_bytes == (5 * channels * size**2 + 9 * channels**2 + channels) * 2


def test_huge_grids_are_on_the_first_axis():
    _, convolution = recorded(3, 64, 2**13, 2**13)
    assert convolution.grid == (3 * 2**26 // convolution.constants["B_M"] * 4,)
    assert convolution.grid[0] > 65535


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_default_is_a_candidate(arch):
    for pixels, channels, itemsize in product((64, 256, 1024, 4096), (8, 64, 512), (2, 4)):
        key = pixels, channels, channels, itemsize, 2
        candidates = module.SPACE.candidates(key)
        assert module.SPACE.default(arch, key) in candidates and len(candidates) <= 8, key


@pytest.mark.parametrize(
    "channels, dtype, reason",
    [
        (8, torch.float32, None),
        (24, torch.bfloat16, None),
        (3, torch.float16, "3 channels are not a multiple of 8"),
        (8, torch.float64, "torch.float64 is not float32, float16 or bfloat16"),
    ],
    ids=str,
)
def test_unsupported_arguments_have_a_reason(channels, dtype, reason):
    x, weight = (torch.empty(4, channels, 3, 3, dtype=dtype, device="meta") for _ in range(2))
    assert module.unsupported(x, weight, None) == reason
