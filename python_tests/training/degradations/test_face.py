"""The degradation of faces: stages for given draws, distributions, settings."""

import colorsys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from resshift_fast.training import choices
from resshift_fast.training.degradations.colour import CHANGES, change
from resshift_fast.training.degradations.compression import jpeg
from resshift_fast.training.degradations.face import Face
from resshift_fast.training.degradations.kernels import filter2d, kernels
from resshift_fast.training.interfaces import Draws


def picture(side=48, batch=2):
    coarse = torch.rand(batch, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return F.interpolate(coarse, size=(side, side), mode="bilinear")


def test_stages_follow_in_order():
    settings, image = Face(noise_range=(0.0, 0.0)), picture()
    shift = torch.tensor([[0.05, -0.05, 0.0], [0.0, 0.0, 0.0]])
    draw = settings.draw(Draws(0, 0, range(2)))
    draw = replace(draw, factor=torch.tensor([4.0, 2.5]), shift=shift, gray=torch.tensor([False, True]))
    draw = replace(draw, jitter=torch.zeros(2, dtype=torch.bool))
    ours = settings.apply(image, draw)
    for sample, side in enumerate((12, 19)):
        x = filter2d(image, kernels(draw.blur))[sample : sample + 1]
        x = jpeg(F.interpolate(x, size=(side, side), mode="bilinear"), draw.quality[sample : sample + 1])
        x = F.interpolate(x, size=(48, 48), mode="bilinear")[0] + shift[sample][:, None, None]
        if sample == 1:
            x = (x * torch.tensor([0.2989, 0.587, 0.114])[:, None, None]).sum(0).expand(3, -1, -1)
        assert (ours[sample] - x.clamp(0, 1)).abs().max() <= 0.5 / 255 + 1e-5


def jittered(image, order, amounts):
    """The changes of one image [3, H, W], pixel by pixel and with the hue of colorsys."""

    def gray(pixel):
        return 0.2989 * pixel[0] + 0.587 * pixel[1] + 0.114 * pixel[2]

    pixels = [tuple(map(float, pixel)) for pixel in image.double().flatten(1).T]
    for place in order:
        amount, mean = amounts[place], sum(map(gray, pixels)) / len(pixels)
        if place == 3:
            hsv = (colorsys.rgb_to_hsv(*pixel) for pixel in pixels)
            pixels = [colorsys.hsv_to_rgb((h + amount) % 1, s, v) for h, s, v in hsv]
            continue
        other = (lambda _: 0.0, lambda _, mean=mean: mean, gray)[place]
        pixels = [[c * amount + other(pixel) * (1 - amount) for c in pixel] for pixel in pixels]
        pixels = [[min(max(c, 0.0), 1.0) for c in pixel] for pixel in pixels]
    return torch.tensor(pixels, dtype=torch.float64).T.view(image.shape)


@pytest.mark.parametrize("places", [(0,), (1,), (2,), (3,), (3, 2, 1, 0), (1, 3, 0, 2)], ids=str)
@pytest.mark.parametrize("amounts", [(0.5, 0.6, 0.0, -0.1), (1.5, 1.4, 1.5, 0.1), (1.1, 0.9, 0.7, 0.5)], ids=str)
def test_colours_change_as_pixel_by_pixel(places, amounts):
    image = picture(9, 1)
    image[0, :, 0, :4] = torch.tensor([[0.0, 1.0, 0.3, 0.7], [0.0, 1.0, 0.3, 0.7], [0.0, 1.0, 0.3, 0.2]])  # gray ones
    ours = image
    for place in places:
        ours = change(ours, CHANGES[place], amounts[place])
    assert (ours[0] - jittered(image[0], places, amounts)).abs().max() <= 1e-5


def test_colours_of_some_samples_change():
    settings, image = Face(), picture(24, 4)
    draw = settings.draw(Draws(0, 0, range(4)))
    draw = replace(draw, jitter=torch.tensor([False, True, False, True]))
    ours, before = (settings.apply(image, replace(draw, jitter=on)) for on in (draw.jitter, torch.zeros(4).bool()))
    assert torch.equal(ours[::2], before[::2])
    for i in (1, 3):
        expected = jittered(before[i], draw.order[i].tolist(), draw.amounts[i].tolist())
        assert (ours[i] - expected).abs().max() <= 3 / 255  # the input of `before` is rounded first


def test_drawn_changes_of_colour():
    draw = Face().draw(Draws(0, 0, range(1500)))
    assert abs(draw.jitter.float().mean() - 0.3) < 0.06
    assert torch.equal(draw.order.sort(1).values, torch.arange(4).expand(1500, 4))
    assert (draw.order[:, 0].bincount() / 1500 - 0.25).abs().max() < 0.06
    for amounts, (low, high) in zip(draw.amounts.T, [(0.5, 1.5), (0.5, 1.5), (0, 1.5), (-0.1, 0.1)], strict=True):
        span = high - low
        assert low <= amounts.min() < low + 0.01 * span and high - 0.01 * span < amounts.max() <= high
        assert abs(amounts.mean() - (low + high) / 2) < 0.03 * span


def test_drawn_parameters_have_their_distributions():
    draw = Face().draw(Draws(0, 0, range(1500)))
    assert 0.8 <= draw.factor.min() < 1 and 7.8 < draw.factor.max() <= 8 and abs(draw.factor.mean() - 4.4) < 0.25
    assert 60 <= draw.quality.min() < 62 and draw.quality.max() <= 100 and abs(draw.quality.mean() - 80) < 1.5
    assert draw.noise.amount.max() <= 20 / 255 and not draw.noise.gray.any() and not draw.noise.poisson
    shifted = draw.shift.abs().sum(1) > 0
    assert abs(shifted.float().mean() - 0.3) < 0.06 and draw.shift.abs().max() <= 20 / 255
    assert 0 < draw.gray.float().mean() < 0.025
    assert set(draw.blur.kind.tolist()) == {0, 1} and set(draw.blur.size.tolist()) == {41}
    assert draw.blur.sigma.min() >= 0.1 and abs(draw.blur.sigma[:, 0].mean() - 5.05) < 0.4


def test_a_batch_keeps_its_size_and_is_repeatable():
    high = picture() * 2 - 1
    first, again = (Face().degrade_batch(high, 1, Draws(1, 2, range(2))) for _ in range(2))
    assert first.high is high and first.low.shape == high.shape and torch.equal(first.low, again.low)
    assert np.abs(first.low.numpy()).max() <= 1
    with pytest.raises(ValueError, match="scale is 4"):
        Face().degrade_batch(high, 4, Draws(0, 0, range(2)))


def test_a_configuration_gives_the_settings():
    make = choices.chosen(choices.DEGRADATIONS, "degradation", "face")
    made = make(SimpleNamespace(degradation_options={"downsample_range": [1, 32]}), None)
    assert made == Face(downsample_range=(1, 32))
    with pytest.raises(ValueError, match="no setting sf"):
        make(SimpleNamespace(degradation_options={"sf": 1}), None)
    with pytest.raises(ValueError, match="gray_prob is a probability"):
        Face(gray_prob=-0.1)
