"""Tiling: noise and picture are the same in every tiling, memory does not grow with the picture, seams are weak."""

import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pipelines import SPECS, WHOLE, oracle, photo, pointwise, tensor_of, tile_statistics, tiny, zero

from resshift_fast import Pipeline, use_backend
from resshift_fast.images.sources import PhotoSource
from resshift_fast.images.tiling import Axis, Blender, plan_axis
from resshift_fast.ops import residual_shift
from resshift_fast.restoration.sampler import LatentChain

POINTWISE = {scale: oracle(pointwise, scale) for scale in (4, 2, 1)}


@given(
    scale=st.sampled_from([4, 4, 2, 1]),
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    tiles=st.integers(1, 3),
    overlap=st.sampled_from([0, 0.1, 0.25, 0.5, 0.7]),
    batch_size=st.sampled_from([1, 2, 5]),
)
@settings(max_examples=30)
def test_no_tiling_changes_a_model_that_works_on_single_pixels(scale, height, width, tiles, overlap, batch_size):
    """Holds only if a pixel has the same noise and the same enlarged picture in every tiling and batch."""
    pipe = POINTWISE[scale]
    tile = tiles * pipe.spec.pad_multiple
    image = tensor_of(photo(height, width))
    whole = pipe(image, tile=WHOLE, progress=False)
    tiled = pipe(image, tile=tile, overlap=int(overlap * tile), batch_size=batch_size, progress=False)
    assert tiled.shape == (1, 3, height * scale, width * scale)
    torch.testing.assert_close(tiled, whole, rtol=0, atol=1e-6)


def test_other_noise_changes_a_model_that_works_on_single_pixels():
    pipe, image = POINTWISE[4], tensor_of(photo(40, 40))
    ours, other = (pipe(image, seed=seed, tile=16, progress=False) for seed in (0, 1))
    assert (ours - other).abs().mean() > 0.05


class Canvas:
    """The whole image's tensor, assembled from tiles, which must agree where they overlap."""

    def __init__(self, tolerance=0.0):
        self._tolerance = tolerance
        self.values, self.known = torch.zeros(48, 200, 200), torch.zeros(200, 200, dtype=torch.bool)

    def add(self, tiles, origin):
        for tile, (top, left) in zip(tiles, origin.tolist(), strict=True):
            place = (slice(top, top + tile.shape[1]), slice(left, left + tile.shape[2]))
            values, known = self.values[(slice(None), *place)], self.known[place]
            assert ((values - tile).abs() <= self._tolerance)[:, known].all()
            values.copy_(tile)
            known[:] = True

    def assert_agrees(self, whole):
        """Compare where both are known; the untiled image has more padding."""
        assert not (self.known & ~whole.known).any()
        assert (self.values - whole.values).abs()[:, self.known].max() <= self._tolerance


@pytest.mark.parametrize("scale", POINTWISE)
def test_noise_is_the_same_bit_for_bit_in_every_tiling(monkeypatch, scale):
    field, tilings = residual_shift.noise_field, []

    def recorded(seed, step, *shape, origin=None):
        noise = field(seed, step, *shape, origin=origin)
        tilings[-1].setdefault(int(step), Canvas()).add(noise, origin)
        return noise

    monkeypatch.setattr(residual_shift, "noise_field", recorded)
    pipe, image = POINTWISE[scale], photo(77, 90)
    multiple = pipe.spec.pad_multiple
    for tile, overlap in ((WHOLE, 0), (multiple, multiple // 4), (2 * multiple, multiple)):
        tilings.append({})
        with use_backend("reference"):  # its noise comes from the Python function that is recorded
            pipe(image, seed=7, tile=tile, overlap=overlap, batch_size=3, progress=False)
    whole, *others = tilings
    for canvases in others:
        assert sorted(canvases) == sorted(whole) == list(range(pipe.spec.schedule.num_steps))
        for step, canvas in canvases.items():
            assert canvas.known.sum() >= 77 * 90 * pipe.spec.latent_per_input**2
            canvas.assert_agrees(whole[step])


def test_the_enlarged_picture_is_the_same_in_every_tiling(monkeypatch):
    canvases, forward = [], LatentChain.forward

    def recorded(chain, y, lq, seed, mask, origin, *others):
        canvases[-1].add(y, origin)
        return forward(chain, y, lq, seed, mask, origin, *others)

    monkeypatch.setattr(LatentChain, "forward", recorded)
    for tile in (WHOLE, 16, 48):
        canvases.append(Canvas(tolerance=1e-6))
        POINTWISE[4](photo(51, 66), tile=tile, progress=False)
    whole, *others = canvases
    for canvas in others:
        assert canvas.known.sum() >= 51 * 66
        canvas.assert_agrees(whole)


@settings(max_examples=8)
@given(
    name=st.sampled_from(["x4", "x4", "x2-vq", "x4-vq"]),
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    overlap=st.integers(0, 8),
)
def test_networks_take_every_size_in_tiles(name, height, width, overlap):
    pipe = tiny(name)
    result = pipe(
        tensor_of(photo(height, width)), tile=pipe.spec.pad_multiple, overlap=overlap, batch_size=4, progress=False
    )
    assert result.shape == (1, 3, height * pipe.spec.scale, width * pipe.spec.scale)
    assert torch.isfinite(result).all() and result.min() >= 0 and result.max() <= 1
    assert result.std() > 0.01 or height * width < 4


def test_a_tile_is_rounded_down_to_a_multiple_that_the_network_takes():
    pipe, image = tiny("x4"), photo(40, 40)
    assert pipe.spec.pad_multiple == 16
    np.testing.assert_array_equal(pipe(image, tile=47, progress=False), pipe(image, tile=32, progress=False))


def test_defaults_are_the_models_own_tile_and_overlap():
    pipe, image = oracle(tile_statistics, tile=32, overlap=6), photo(90, 20)
    ours = pipe(image, progress=False)
    np.testing.assert_array_equal(ours, pipe(image, tile=32, overlap=6, progress=False))
    assert (ours != pipe(image, tile=32, overlap=4, progress=False)).any()
    # A small tile overlaps by a quarter of its side if the model's own overlap is larger.
    np.testing.assert_array_equal(pipe(image, tile=16, progress=False), pipe(image, tile=16, overlap=4, progress=False))


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_a_batch_has_at_most_batch_size_tiles(batch_size):
    pipe = oracle(pointwise)
    pipe([photo(40, 40), photo(40, 40), photo(20, 40)], tile=16, overlap=0, batch_size=batch_size, progress=False)
    sizes = [shape[0] for shape in pipe.denoiser.shapes]
    assert max(sizes) == batch_size
    assert sum(sizes) == pipe.spec.schedule.num_steps * (9 + 9 + 6)
    # Tiles of several images share a batch where their shape is the same.
    assert len(sizes) == pipe.spec.schedule.num_steps * -(-24 // batch_size)
    assert {tuple(shape[2:]) for shape in pipe.denoiser.shapes} == {(16, 16)}


def test_memory_grows_with_the_tile_row_and_not_with_the_picture(monkeypatch):
    tallest, write = [], PhotoSource.write

    def recorded(self, top, band, mask):
        tallest.append(band.shape[1])
        write(self, top, band, mask)

    monkeypatch.setattr(PhotoSource, "write", recorded)
    pipe, sizes, peaks = oracle(zero), [], []
    for height in (100, 100, 500):  # the first run fills caches
        image = photo(height, 64)
        tracemalloc.start()
        result = pipe(image, tile=32, overlap=8, progress=False)
        sizes.append(result.nbytes)
        peaks.append(tracemalloc.get_traced_memory()[1] - result.nbytes)
        tracemalloc.stop()
    assert max(tallest) <= 32 * 4
    assert {tuple(shape[2:]) for shape in pipe.denoiser.shapes} == {(32, 32)}
    # The rest is the plan and its blending weights. One float32 copy of the picture would be four times its bytes.
    assert peaks[2] - peaks[1] < 0.2 * (sizes[2] - sizes[1])


def seam_energy(difference, rows: Axis, columns: Axis, scale: int):
    """Mean squared jump of a difference [3, H, W] across the borders of tiles, and elsewhere."""
    at_borders, elsewhere = [], []
    for values, axis in ((difference, rows), (difference.swapaxes(1, 2), columns)):
        jumps = np.diff(values, axis=1)
        borders = {start * scale - 1 for start in axis.starts[1:]}
        borders |= {(start + axis.tile) * scale - 1 for start in axis.starts[:-1]}
        is_border = np.isin(np.arange(jumps.shape[1]), list(borders))
        at_borders.append(jumps[:, is_border])
        elsewhere.append(jumps[:, ~is_border])
    return tuple(np.mean([np.square(part).mean() for part in parts]) for parts in (at_borders, elsewhere))


def uniformly_averaged(pipe, image, rows: Axis, columns: Axis):
    """Tiling as in the official program: each tile is a picture with its own noise, and overlaps are averaged."""
    scale = pipe.spec.scale
    bands = []

    def weights(axis):
        count = np.zeros(axis.padded * scale)
        spans = [slice(start * scale, (start + axis.tile) * scale) for start in axis.starts]
        for span in spans:
            count[span] += 1
        return np.array([1 / count[span] for span in spans], np.float32)

    blender = Blender(
        rows, columns, scale, lambda top, band: bands.append(band.copy()), weights(rows), weights(columns)
    )
    for i, top in enumerate(rows.starts):
        for j, left in enumerate(columns.starts):
            crop = image[:, :, top : top + rows.tile, left : left + columns.tile]
            tile = pipe(crop, tile=WHOLE, noise="torch", seed=100 * i + j, progress=False)
            blender.add(i, j, tile[0].numpy() * 2 - 1)
    return (np.concatenate(bands, axis=1) + 1) / 2


SEAMS = {
    "tile-statistics": lambda: oracle(tile_statistics, kappa=0.05),
    "nano-x4": lambda: Pipeline.from_pretrained("nano-x4", device="cpu"),
}


@pytest.mark.parametrize("model", SEAMS)
def test_seams_are_weaker_than_with_uniform_averaging_and_noise_per_tile(model):
    pipe, size, tile, overlap = SEAMS[model](), 64, 32, 8
    image = tensor_of(photo(size, size))
    axis = plan_axis(size, tile, overlap, pipe.spec.pad_multiple, 2)
    whole = pipe(image, tile=WHOLE, progress=False)[0].numpy()
    ours = pipe(image, tile=tile, overlap=overlap, progress=False)[0].numpy()
    theirs = uniformly_averaged(pipe, image, axis, axis)
    our_borders, our_elsewhere = seam_energy(ours - whole, axis, axis, pipe.spec.scale)
    their_borders, their_elsewhere = seam_energy(theirs - whole, axis, axis, pipe.spec.scale)
    assert our_borders < 0.1 * their_borders
    # At a border the difference changes little more than elsewhere.
    assert our_borders / our_elsewhere < 0.6 * their_borders / their_elsewhere
    assert our_borders / our_elsewhere < 3


def test_tiles_of_the_x1_model_start_where_its_latent_has_a_pixel():
    """At scale 1 with a first stage of factor 8, one latent pixel, with one noise value, is 8 input pixels wide."""
    pipe, image = tiny("x1-vq-f8"), photo(130, 200)
    assert SPECS["x1-vq-f8"].latent_per_input == 1 / 8
    result = pipe(image, tile=128, overlap=32, batch_size=4, progress=False)
    assert result.shape == image.shape
