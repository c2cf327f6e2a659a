"""What tiles cost: multiplications equal those of the networks, and weighted ones the times that were measured."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from pipelines import SPECS
from torch.utils.flop_counter import FlopCounterMode

from resshift_fast import use_backend
from resshift_fast.diffusion.schedule import Schedule
from resshift_fast.models import catalog, cost
from resshift_fast.models.sizes import AutoencoderConfig, SwinUNetConfig

SIZES = SwinUNetConfig(
    image_size=16,
    in_channels=3,
    model_channels=32,
    channel_mult=(1, 2, 2),
    num_res_blocks=(2, 1, 3),
    attention_resolutions=(16, 4),
    swin_depth=3,
    swin_embed_dim=64,
    window_size=4,
    mlp_ratio=2.0,
    lq_size=16,
)
AUTOENCODER = AutoencoderConfig(channels=32, channel_mult=(1, 1, 2), num_res_blocks=(1, 2, 1), codebook_size=64)
TWO_STEPS = Schedule(steps=2)
CASES = {
    "plain": replace(catalog.get("realsr-x4-v3"), denoiser=SIZES, first_stage=AUTOENCODER, schedule=TWO_STEPS),
    "features": replace(
        catalog.get("inpaint-imagenet"),
        denoiser=replace(SIZES, lq_size=64, cond_mask=True),
        first_stage=replace(AUTOENCODER, channel_mult=(2, 1), num_res_blocks=(1, 1)),
        schedule=TWO_STEPS,
    ),
    "pixels": replace(catalog.get("nano-x4-1step"), denoiser=replace(SIZES, in_channels=48, noise_channels=1)),
}


def multiplications(spec, side):
    """Of a restoration with one square tile of this latent side."""
    config, factor = spec.denoiser, spec.first_stage.factor
    denoiser, stage = catalog.build_denoiser(spec), catalog.build_first_stage(spec)
    lq_side = side * config.lq_size // config.image_size
    x, lq = torch.zeros(1, config.in_channels, side, side), torch.zeros(1, 3, lq_side, lq_side)
    mask = torch.zeros(1, 1, lq_side, lq_side) if config.cond_mask else None
    noise = torch.zeros(1, 1, side, side) if config.noise_channels else None
    with FlopCounterMode(display=False) as counter, torch.no_grad(), use_backend("reference"):
        condition = denoiser.condition(lq, mask, noise)
        inputs = torch.cat([x, condition], 1)
        for _ in range(spec.schedule.num_steps):
            denoiser.denoise(inputs, denoiser.modulation(torch.zeros(1)))
        stage.encode(torch.zeros(1, 3, side * factor, side * factor))
        stage.decode(torch.zeros(1, spec.first_stage.latent_channels, side, side))
    return counter.get_total_flops() // 2


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_multiplications_are_those_of_the_networks(name, monkeypatch):
    """Without weights, and of convolutions as the reference has them. What no size changes is left out."""
    monkeypatch.setattr(cost, "CONV3X3", 1.0)
    monkeypatch.setattr(cost, "ATTENTION", 1.0)
    monkeypatch.setattr(cost, "UPSAMPLED", 1.0)
    cost.of_model.cache_clear()
    spec = CASES[name]
    try:
        found = cost.of_model(spec)
    finally:
        cost.of_model.cache_clear()
    counted = [multiplications(spec, side) for side in (16, 32, 48)]
    expected = [found.of_tile(side**2) for side in (16, 32, 48)]
    assert [counted[1] - counted[0], counted[2] - counted[0]] == [expected[1] - expected[0], expected[2] - expected[0]]


# CPU seconds of one tile on one thread by its side: `benchmarks/tile_cost.py --threads 1`, and with
# `--model realsr-x4-v3 --random-weights`, on a Xeon with AVX-512.
MEASURED = {
    "nano-x4": {32: 0.069, 64: 0.220, 96: 0.389, 128: 0.734, 192: 1.608},
    "realsr-x4-v3": {64: 8.187, 128: 41.274, 192: 119.996, 256: 316.559},
}


@pytest.mark.parametrize("name", MEASURED)
def test_ratios_of_measured_times_are_predicted_within_a_quarter(name):
    spec = catalog.get(name)
    measured = MEASURED[name]
    predicted = {side: cost.of_model(spec).of_tile(side**2 * spec.latent_per_input**2) for side in measured}
    for small in measured:
        for large in measured:
            ratio = measured[large] / measured[small]
            assert predicted[large] / predicted[small] == pytest.approx(ratio, rel=0.25), (small, large)


SIZES_OF_PHOTOS = [(1, 1), (64, 300), (200, 200), (512, 768), (1080, 1920)]


@pytest.mark.parametrize("spec", [*catalog.MODELS.values(), *SPECS.values()], ids=lambda spec: spec.name)
def test_the_cheapest_tiles_cost_no_more_and_keep_the_overlap(spec):
    for height, width in SIZES_OF_PHOTOS:
        usual, found = spec.plan_tiles(height, width), spec.plan_tiles(height, width, cheapest=True)
        assert spec.cost_of(*found) <= spec.cost_of(*usual)
        for axis, other, length in zip(found, usual, (height, width), strict=True):
            assert axis.length == length and axis.padded >= length and axis.extent == other.extent
            assert axis.tile <= max(spec.tile, other.tile) and axis.tile % spec.pad_multiple == 0
            overlap = min(spec.overlap, spec.tile // 4)
            assert all(a + axis.tile - b >= overlap for a, b in pairwise(axis.starts))


def test_a_large_photo_has_small_tiles_where_attention_is_expensive():
    spec = catalog.get("realsr-x4-v3")
    usual, found = spec.plan_tiles(3000, 4000), spec.plan_tiles(3000, 4000, cheapest=True)
    assert [axis.tile for axis in usual] == [256, 256] and [axis.tile for axis in found] == [128, 128]
    assert spec.plan_tiles(3000, 4000, 192, cheapest=True) == spec.plan_tiles(3000, 4000, 192)
    # A photo that would be padded to one large tile.
    assert [axis.tile for axis in spec.plan_tiles(200, 200, cheapest=True)] == [128, 128]
