"""Masks of given shapes, pixel by pixel, and the distribution of drawn ones."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from resshift_fast.models.filling import fill
from resshift_fast.training import choices
from resshift_fast.training.degradations.masks import HARMONICS, MaskDraw, Masks, rasterized
from resshift_fast.training.interfaces import Draws

CPU = torch.device("cpu")


def expected(draw, height, width):
    """The union of the shapes, one pixel centre after the other."""
    mask = np.zeros((height, width), bool)
    for i in range(height):
        for j in range(width):
            y, x = i + 0.5, j + 0.5
            for r0, c0, r1, c1, thickness in [] if draw.segments is None else draw.segments.tolist():
                length = math.hypot(r1 - r0, c1 - c0)
                t = 0.0 if length == 0 else ((y - r0) * (r1 - r0) + (x - c0) * (c1 - c0)) / length**2
                t = min(max(t, 0), 1)
                mask[i, j] |= math.hypot(y - r0 - t * (r1 - r0), x - c0 - t * (c1 - c0)) <= thickness / 2
            for top, left, bottom, right in [] if draw.boxes is None else draw.boxes.tolist():
                mask[i, j] |= top <= i < bottom and left <= j < right
            for r0, c0, radius, *waves in [] if draw.blobs is None else draw.blobs.tolist():
                theta = math.atan2(y - r0, x - c0)
                terms = zip(waves[::2], waves[1::2], strict=True)
                outline = 1 + sum(a * math.cos(n * theta + p) for n, (a, p) in enumerate(terms, 1))
                mask[i, j] |= math.hypot(y - r0, x - c0) <= radius * outline
            if draw.lines is not None:
                for place, (period, thickness, offset) in zip((i, j), draw.lines, strict=True):
                    mask[i, j] |= (place - offset) % period < thickness
    return mask


SHAPES = {
    "strokes": MaskDraw(segments=torch.tensor([[3.0, 2.0, 15.2, 20.1, 4.0], [9.0, 9.0, 9.0, 9.0, 5.5]])),
    "boxes": MaskDraw(boxes=torch.tensor([[1, 2, 5, 9], [10, 20, 17, 23]])),
    "blobs": MaskDraw(blobs=torch.tensor([[8.0, 9.0, 5.0, 0.3, 1.0, 0.2, 2.0], [2.0, 20.0, 3.0, 0.1, 0.0, 0.3, 0.4]])),
    "grid": MaskDraw(lines=((3, 1, 2), (4, 2, 1))),
}


@pytest.mark.parametrize("draw", SHAPES.values(), ids=SHAPES)
def test_masks_are_the_union_of_their_shapes(draw):
    ours = rasterized(draw, 17, 23, CPU).numpy()
    assert (ours != expected(draw, 17, 23)).sum() == 0


def test_a_mask_never_hides_all():
    whole = MaskDraw(boxes=torch.tensor([[0, 0, 10, 16], [10, 0, 20, 16]]))
    assert rasterized(whole, 20, 16, CPU).all()
    assert rasterized(whole, 20, 16, CPU, largest=0.9).float().mean() == 0.5


def test_kinds_counts_and_sizes_have_their_distributions():
    settings = Masks()
    drawn = settings.draw(Draws(0, 0, range(800)), 256, 256)
    kinds = [sum(one is not None for one in (d.segments, d.boxes, d.blobs, d.lines)) for d in drawn]
    assert set(kinds) == {1}
    shares = [np.mean([getattr(d, n) is not None for d in drawn]) for n in ("segments", "boxes", "blobs", "lines")]
    np.testing.assert_allclose(shares, settings.weights, atol=0.07)
    widths = torch.cat([d.segments[:, 4] for d in drawn if d.segments is not None])
    assert widths.min() >= 5 and widths.max() <= 100 and abs(widths.mean() - 52.5) < 5
    boxes = [d.boxes for d in drawn if d.boxes is not None]
    counts = np.bincount([len(b) for b in boxes], minlength=5)[1:] / len(boxes)
    np.testing.assert_allclose(counts, 0.25, atol=0.13)
    sides = torch.cat(boxes)
    assert (sides[:, :2] >= 10).all() and (sides[:, 2:] <= 246).all()
    lengths = (sides[:, 2:] - sides[:, :2]).float()
    assert lengths.min() >= 30 and lengths.max() <= 150 and abs(lengths.mean() - 90) < 8
    blobs = torch.cat([d.blobs for d in drawn if d.blobs is not None])
    assert blobs.shape[1] == 3 + 2 * HARMONICS and (blobs[:, 3::2].sum(1) < 1).all()
    for period, thickness, offset in (axis for d in drawn if d.lines is not None for axis in d.lines):
        assert 2 <= period <= 4 and 1 <= thickness < period and 0 <= offset < period


def test_masks_hide_a_fitting_share():
    shares = [rasterized(d, 64, 64, CPU, 0.95).float().mean() for d in Masks().draw(Draws(0, 1, range(60)), 64, 64)]
    assert min(shares) > 0 and max(shares) <= 0.95 and 0.15 < float(np.mean(shares)) < 0.6


def test_a_batch_has_holes_of_minus_one():
    high = torch.rand(5, 3, 40, 32, generator=torch.Generator().manual_seed(0))
    batch = Masks().degrade_batch(high, 1, Draws(0, 0, range(5)))
    assert batch.high is high and batch.mask.shape == (5, 1, 40, 32)
    assert set(batch.mask.unique().tolist()) == {-1.0, 1.0}
    hidden = (batch.mask == 1).expand_as(high)
    assert (batch.low[hidden] == -1).all() and torch.equal(batch.low[~hidden], high[~hidden])
    again = Masks().degrade_batch(high[3:], 1, Draws(0, 0, [3, 4]))
    assert torch.equal(again.mask, batch.mask[3:])


def test_a_model_may_be_given_holes_that_are_filled_in_smoothly():
    high = torch.rand(3, 3, 40, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    make = choices.chosen(choices.DEGRADATIONS, "degradation", "masks")
    masks = make(SimpleNamespace(degradation_options={"largest": 0.5}), SimpleNamespace(filled=True))
    assert masks == Masks(largest=0.5, filled=True)
    batch, plain = (each.degrade_batch(high, 1, Draws(0, 0, range(3))) for each in (masks, Masks(largest=0.5)))
    assert torch.equal(batch.mask, plain.mask) and torch.equal(batch.low, fill(plain.low, plain.mask > 0))
    assert not torch.equal(batch.low, plain.low)


@pytest.mark.parametrize("height, width", [(1, 1), (8, 300)])
def test_every_size_has_masks(height, width):
    for draw in Masks().draw(Draws(0, 0, range(30)), height, width):
        assert rasterized(draw, height, width, CPU).shape == (height, width)


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(weights=(1, 0, 0)), "4 weights"),
        (dict(strokes=(0, 3)), "strokes"),
        (dict(grid_period=(1, 3)), "grid_period"),
        (dict(largest=0.0), "largest"),
    ],
)
def test_bad_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Masks(**options)


def test_only_models_of_scale_1_have_masks():
    with pytest.raises(ValueError, match="scale is 4"):
        Masks().degrade_batch(torch.zeros(1, 3, 8, 8), 4, Draws(0, 0, range(1)))
    make = choices.chosen(choices.DEGRADATIONS, "degradation", "masks")
    assert make(SimpleNamespace(degradation_options={"boxes": [1, 2]}), None) == Masks(boxes=(1, 2))
