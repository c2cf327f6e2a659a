"""Tiles cover the image, start on the grid, have weights that sum to one, and are blended band by band."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resshift_fast.images.tiling import Blender, feather, plan_axis, reflect


@st.composite
def axes(draw, longest=400):
    """Any valid plan: (axis, overlap, multiple, align)."""
    align = draw(st.sampled_from([1, 2, 8]))
    multiple = align * draw(st.sampled_from([1, 4, 8]))
    tile = multiple * draw(st.integers(1, 6))
    overlap = draw(st.integers(0, tile - align))
    return plan_axis(draw(st.integers(1, longest)), tile, overlap, multiple, align), overlap, multiple, align


@given(axes())
def test_tiles_cover_the_side_in_order_with_at_least_the_requested_overlap(case):
    axis, overlap, _, _ = case
    assert axis.starts[0] == 0
    assert axis.padded >= axis.length
    steps = np.diff(axis.starts)
    assert (steps > 0).all()
    assert (axis.tile - steps >= overlap).all()


@given(axes())
def test_tiles_start_on_the_grid_and_have_a_size_that_the_network_accepts(case):
    axis, _, multiple, align = case
    assert all(start % align == 0 for start in axis.starts)
    assert axis.tile % multiple == 0
    assert axis.extent == math.ceil(axis.length / multiple) * multiple
    assert axis.extent >= axis.padded


@given(axes())
def test_the_last_tile_ends_at_the_side_and_no_tile_lies_beyond(case):
    axis, _, multiple, align = case
    if len(axis.starts) == 1:
        assert axis.padded - axis.length < multiple
    else:
        assert axis.padded - axis.length < align
        assert axis.starts[-1] < axis.length
        # Without the last tile the side would not be covered.
        assert axis.starts[-2] + axis.tile < axis.padded


@given(axes())
def test_smaller_tiles_would_increase_the_number_of_tiles(case):
    axis, overlap, multiple, align = case
    count, covered = len(axis.starts), -(-axis.length // align) * align
    for side in range(multiple, axis.tile, multiple):
        step = (side - overlap) // align * align
        assert count == 1 or side <= overlap or side + (count - 1) * step < covered


@pytest.mark.parametrize(
    ("length", "tile", "overlap", "multiple", "align", "starts", "side"),
    [
        pytest.param(1, 64, 16, 16, 2, (0,), 16, id="one pixel is padded to one multiple"),
        pytest.param(64, 64, 16, 16, 2, (0,), 64, id="exactly one tile"),
        pytest.param(49, 64, 16, 16, 2, (0,), 64, id="less than one tile"),
        pytest.param(65, 64, 16, 16, 2, (0, 18), 48, id="one pixel more makes two smaller tiles on the grid"),
        pytest.param(256, 192, 16, 16, 2, (0, 112), 144, id="two tiles as small as they can be"),
        pytest.param(96, 64, 16, 32, 2, (0, 32), 64, id="no smaller multiple is enough"),
        pytest.param(160, 64, 16, 16, 2, (0, 48, 96), 64, id="steps that fit"),
        pytest.param(161, 64, 16, 16, 2, (0, 48, 96, 98), 64, id="the last one is moved back"),
        pytest.param(128, 64, 0, 16, 2, (0, 64), 64, id="no overlap"),
        pytest.param(100, 64, 61, 16, 2, (0, *range(2, 36, 2), 36), 64, id="odd overlap steps down to the grid"),
    ],
)
def test_known_plans(length, tile, overlap, multiple, align, starts, side):
    axis = plan_axis(length, tile, overlap, multiple, align)
    assert (axis.starts, axis.tile) == (starts, side)


@pytest.mark.parametrize(
    ("tile", "overlap", "message"),
    [
        pytest.param(8, 0, "tile is 8, expected a multiple of 16", id="tile below the multiple"),
        pytest.param(40, 0, "tile is 40, expected a multiple of 16", id="tile between multiples"),
        pytest.param(32, -1, "overlap is -1, expected 0 to tile − 1 = 31", id="negative overlap"),
        pytest.param(32, 32, "overlap is 32, expected 0 to tile − 1 = 31", id="overlap of a whole tile"),
        pytest.param(32, 31, "overlap is 31, expected at most 30 in a tile of 32", id="step below the grid"),
    ],
)
def test_impossible_plans_are_refused(tile, overlap, message):
    with pytest.raises(ValueError, match=message):
        plan_axis(100, tile, overlap, 16, 2)


@given(st.integers(1, 9), st.integers(0, 40))
def test_reflection_goes_back_and_forth(length, count):
    back_and_forth = list(range(length)) + list(range(length - 2, 0, -1))
    expected = [back_and_forth[i % len(back_and_forth)] for i in range(count)]
    assert reflect(0, count, length).tolist() == expected


def test_reflection_equals_numpy_pad():
    for length, pad in ((2, 1), (5, 4), (5, 23)):
        padded = np.pad(np.arange(length), (0, pad), mode="reflect")
        np.testing.assert_array_equal(reflect(0, length + pad, length), padded)


@given(axes(), st.sampled_from([1, 2, 4]))
def test_weights_are_positive_and_sum_to_one(case, scale):
    axis = case[0]
    weights = feather(axis, scale)
    assert weights.shape == (len(axis.starts), axis.tile * scale) and weights.dtype == np.float32
    assert (weights >= 0).all() and np.isfinite(weights).all()
    total = np.zeros(axis.padded * scale)
    for start, weight in zip(axis.starts, weights, strict=True):
        total[start * scale : start * scale + len(weight)] += weight
    np.testing.assert_allclose(total, 1, atol=1e-6)


@given(axes(), st.sampled_from([1, 4]))
def test_weights_fade_out_where_a_tile_ends_inside_the_image(case, scale):
    axis, overlap, _, _ = case
    width = overlap * scale
    if width < 8:
        return
    weights = feather(axis, scale)
    # The steepest step of sin² over the overlap, doubled for the wider overlap at the last tile and the normalization.
    steepest = 2 * np.pi / width
    assert (np.abs(np.diff(weights, axis=1)) <= steepest).all()
    assert (weights[1:, 0] < steepest).all() and (weights[:-1, -1] < steepest).all()


def test_weights_are_a_raised_cosine_across_the_overlap():
    weights = feather(plan_axis(96, 64, 32, 16, 2), 1)
    ramp = np.sin(np.pi / 2 * (np.arange(32) + 0.5) / 32) ** 2
    np.testing.assert_allclose(weights[1], [*ramp, *np.ones(32)], atol=1e-6)
    np.testing.assert_allclose(weights[0], [*np.ones(32), *ramp[::-1]], atol=1e-6)


def blend(rows, columns, scale, tile_at):
    """Blend tiles; returns the image and the largest band that was emitted."""
    out = np.full((3, rows.length * scale, columns.length * scale), np.nan, np.float32)
    next_row, tallest = 0, 0

    def emit(top, band):
        nonlocal next_row, tallest
        assert top == next_row and band.shape[2] == out.shape[2] and band.dtype == np.float32
        next_row, tallest = top + band.shape[1], max(tallest, band.shape[1])
        out[:, top:next_row] = band

    blender = Blender(rows, columns, scale, emit)
    for i, top in enumerate(rows.starts):
        for j, left in enumerate(columns.starts):
            blender.add(i, j, tile_at(top * scale, left * scale))
    assert next_row == out.shape[1]
    return out, tallest


@given(axes(longest=90), axes(longest=90), st.sampled_from([1, 2]))
def test_tiles_cut_from_an_image_blend_to_that_image(vertical, horizontal, scale):
    rows, columns = vertical[0], horizontal[0]
    whole = np.random.default_rng(0).random((3, rows.padded * scale, columns.padded * scale), np.float32)

    def cut(top, left):
        return whole[:, top : top + rows.tile * scale, left : left + columns.tile * scale]

    out, tallest = blend(rows, columns, scale, cut)
    # A sum of n numbers of one sign has a relative error of at most n half units in the last place.
    rounding = len(rows.starts) * len(columns.starts) * np.finfo(np.float32).eps / 2
    np.testing.assert_allclose(out, whole[:, : out.shape[1], : out.shape[2]], rtol=0, atol=max(1e-6, rounding))
    assert tallest <= rows.tile * scale


def test_missing_tiles_leave_zeros():
    rows, columns = plan_axis(40, 16, 0, 16, 2), plan_axis(32, 16, 0, 16, 2)
    out, _ = blend(rows, columns, 1, lambda top, left: None if left == 0 else np.ones((3, 16, 16), np.float32))
    assert (out[:, :, :16] == 0).all() and (out[:, :, 16:] == 1).all()


def test_a_blender_holds_one_row_of_tiles():
    """All emitted bands share one buffer, which the next row of tiles overwrites."""
    rows, columns = plan_axis(64, 16, 0, 16, 2), plan_axis(16, 16, 0, 16, 2)
    bands = []
    blender = Blender(rows, columns, 1, lambda top, band: bands.append(band))
    for i in range(4):
        blender.add(i, 0, np.ones((3, 16, 16), np.float32))
    assert len(bands) == 4
    assert all(np.shares_memory(bands[0], band) for band in bands)
