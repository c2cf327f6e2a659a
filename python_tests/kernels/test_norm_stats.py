"""Statistics written in a kernel's epilogue against float64: tiles and groups of any width, means far from 0."""

import pytest
import torch
import triton
import triton.language as tl
from comparison import assert_close, name_of
from golden_data import array
from interpreter import DTYPES

from resshift_fast.kernels.launch import Start, record
from resshift_fast.kernels.norm_stats import NONE, PASSES, buffers, constants, write_statistics
from resshift_fast.ops import norm_stats

pytestmark = pytest.mark.usefixtures("poisoned_empty")

EPS = 1e-5
CASES = [  # B, C, groups, pixels, BLOCK_M, BLOCK_N
    (2, 32, 8, 40, 16, 32),
    (1, 96, 32, 70, 16, 64),
    (3, 24, 8, 33, 32, 16),
    (2, 40, 2, 19, 16, 16),
    (1, 80, 5, 50, 16, 32),
    (2, 12, 12, 7, 16, 16),
    (1, 33, 3, 600, 16, 16),
    (1, 1, 1, 9, 16, 16),
    (1, 130, 1, 21, 16, 32),
    (1, 1024, 1024, 18, 16, 64),
]
IDS = ["B{}-C{}-G{}-pixels{}-tile{}x{}".format(*case) for case in CASES]


@triton.jit
def copy_kernel(
    p_x,  # [B, pixels, C]
    p_y,  # [B, pixels, C]
    p_parts,  # [B, parts, SLOTS, 3, NEXT_GROUPS]
    p_counters,  # [B]
    p_next,  # [B, 2, NEXT_GROUPS]
    pixels,
    parts,
    next_eps,
    C: tl.constexpr,
    NEXT_GROUPS: tl.constexpr,
    SLOTS: tl.constexpr,
    TILE_GROUPS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    N_BLOCKS: tl.constexpr = (C + BLOCK_N - 1) // BLOCK_N
    i_n = tl.program_id(0) % N_BLOCKS
    i_part = tl.program_id(0) // N_BLOCKS % parts
    i_image = (tl.program_id(0) // N_BLOCKS // parts).to(tl.int64)
    o_m = i_part * BLOCK_M + tl.arange(0, BLOCK_M)
    o_n = i_n * BLOCK_N + tl.arange(0, BLOCK_N)
    o_y = (i_image * pixels + o_m)[:, None] * C + o_n[None, :]
    m_m = o_m < pixels
    m_y = m_m[:, None] & (o_n < C)[None, :]
    b_y = tl.load(p_x + o_y, mask=m_y, other=6e4).to(p_y.dtype.element_ty)
    tl.store(p_y + o_y, b_y, mask=m_y)
    b_y = b_y.to(tl.float32)
    write_statistics(
        b_y, m_m, p_parts, p_counters, p_next, i_image, i_part, parts, i_n, next_eps,
        C, NEXT_GROUPS, SLOTS, TILE_GROUPS, ROWS, BLOCK_N,
    )  # fmt: skip


def copied(x, groups, block_m, block_n, eps=EPS):
    """Statistics [B, 2, G] of x [B, C, H, W] from a kernel that copies it, and the counters that it used."""
    batch, channels, height, width = x.shape
    rows = x.permute(0, 2, 3, 1).contiguous()
    y, parts = torch.empty_like(rows), triton.cdiv(height * width, block_m)
    sizes = constants(channels, groups, block_n, num_warps=4)
    start = Start(
        copy_kernel,
        (batch * parts * triton.cdiv(channels, block_n),),
        *(height * width, parts, eps),
        C=channels,
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        passes=PASSES,
        **sizes,
    )
    own = buffers(x, parts, sizes["SLOTS"], groups)
    start(rows, y, *own)
    assert torch.equal(y.nan_to_num(), rows.nan_to_num())
    return own.statistics, own.counters


def image(batch, channels, pixels, device, dtype=torch.float32, mean=-2.3):
    return (array("norm_stats.x", batch, channels, pixels, 1) + mean).to(dtype).to(device)


def check(x, groups, *tile, eps=EPS, limit=1e-5):
    """Means and reciprocal deviations are within `limit` of float64, each measured by itself."""
    statistics, _ = copied(x, groups, *tile, eps)
    exact = norm_stats.reference(x.double(), groups, eps)
    assert statistics.dtype == torch.float32
    for name, ours, expected in zip(("mean", "rstd"), statistics.unbind(1), exact.unbind(1), strict=True):
        assert_close(name, ours, expected, limit)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_matches_float64(case, dtype, device):
    batch, channels, groups, pixels, *tile = case
    check(image(batch, channels, pixels, device, dtype), groups, *tile)


@pytest.mark.parametrize("groups, block_n", [(1, 16), (8, 16), (24, 64)])
@pytest.mark.parametrize("mean", [1e4, -3e5])
def test_mean_far_above_the_deviation(mean, groups, block_n, device):
    # The deviation is about 1, and a float32 mean is rounded to this part of it.
    rounding = abs(mean) * torch.finfo(torch.float32).eps
    check(image(2, 24, 90, device, mean=mean), groups, 16, block_n, limit=rounding / 8)


@pytest.mark.parametrize("value", [0.0, 1e4 / 3])
def test_constant_image(value, device):
    x = torch.full((1, 24, 50, 1), value, device=device)
    statistics, _ = copied(x, 8, 16, 16)
    assert (statistics[:, 0] == x[0, 0, 0, 0]).all()
    assert_close("rstd", statistics[:, 1], torch.full((1, 8), EPS**-0.5), 1e-5)


def test_channels_of_different_means_in_a_group(device):
    x = image(1, 40, 37, device)
    check(x + 100 * torch.arange(40, device=device)[None, :, None, None], 2, 16, 16)


def test_statistics_are_those_of_the_rounded_values(device):
    x = (array("norm_stats.x", 1, 32, 40, 1) + 500).half().to(device)  # where half's values are 0.5 apart
    check(x, 8, 16, 16)


def test_eps_is_added_to_the_variance(device):
    check(image(1, 24, 20, device) * 0.01, 8, 16, 16, eps=0.3)


def test_nan_stays_in_its_image_and_group(device):
    x = image(2, 96, 40, device)
    x[1, 6, 3, 0] = torch.nan  # of group 2, whose channels 6, 7 and 8 are in one tile
    is_nan = copied(x, 32, 16, 64)[0].isnan()
    assert is_nan[1, :, 2].all() and is_nan.sum() == 2


def test_results_are_bitwise_the_same(device):
    x = image(2, 96, 70, device)
    assert torch.equal(copied(x, 32, 16, 64)[0], copied(x, 32, 16, 64)[0])


def test_counters_are_zero_again(device):
    x = image(3, 24, 40, device)
    for _ in range(2):
        _, own = copied(x, 8, 16, 16)
        assert own.numel() >= 3 and not own.any()


@pytest.mark.parametrize("channels", [1, 6, 24, 30, 64, 96, 160, 192, 640])
def test_every_channel_has_a_slot(channels):
    divisors = [g for g in range(1, channels + 1) if channels % g == 0]
    for groups in divisors:
        for block_n in (16, 32, 64, 128):
            sizes = constants(channels, groups, block_n, num_warps=4)
            size = channels // groups
            for channel in range(channels):
                group, tile = channel // size, channel // block_n
                assert 0 <= tile - group * size // block_n < sizes["SLOTS"]
                assert 0 <= group - tile * block_n // size < sizes["TILE_GROUPS"]


def test_no_groups_need_no_tensors():
    assert constants(96, 0, 64, 4)["NEXT_GROUPS"] == 0
    assert buffers(torch.empty(2, 3, 4, 5), 4, 1, 0) == NONE


def test_recorded_launches_count_parts_twice():
    x = torch.empty(2, 96, 40, 1, device="meta")
    with record() as launches:
        own = buffers(x, 3, 2, 32)
        Start(copy_kernel, (1,), passes=PASSES)(None, None, *own)
    assert launches[0].num_bytes == (2 * 3 * 2 * 3 * 32) * 2 * 4 + 2 * 4 + 2 * 2 * 32 * 4
