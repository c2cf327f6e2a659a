"""The second-order degradation: stages in order for given draws, probabilities, pairs of pictures and settings."""

import math
from dataclasses import fields, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from resshift_fast.training import choices
from resshift_fast.training.degradations import kernels as k
from resshift_fast.training.degradations.compression import jpeg
from resshift_fast.training.degradations.noise import NoiseDraw
from resshift_fast.training.degradations.resizing import ResizeDraw
from resshift_fast.training.degradations.second_order import RoundDraw, SecondOrder, SecondOrderDraw, sharpened
from resshift_fast.training.interfaces import Draws


def picture(side=48, batch=2):
    coarse = torch.rand(batch, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return F.interpolate(coarse, size=(side, side), mode="bilinear")


def no_blur(batch=2):
    ones = torch.ones(batch)
    kind, size = torch.full((batch,), k.NONE), torch.full((batch,), 7)
    return k.KernelDraw(kind, size, torch.ones(batch, 2), ones, ones, ones)


def gaussian(sigma, batch=2):
    kind = torch.full((batch,), k.KINDS.index("iso"))
    return replace(no_blur(batch), kind=kind, sigma=torch.full((batch, 2), sigma))


def no_noise(batch=2):
    return NoiseDraw(False, torch.zeros(batch), torch.zeros(batch, dtype=torch.bool), torch.zeros(batch).long())


BEST = torch.full((2,), 100.0)
WORST = torch.full((2,), 10.0)


def draw_of(**changes):
    plain = RoundDraw(no_blur(), ResizeDraw(1.0, "area"), no_noise())
    draw = SecondOrderDraw(plain, BEST, None, BEST, no_blur(), True, "area")
    return replace(draw, **changes)


def test_without_degradations_only_the_size_and_two_best_jpegs_remain():
    image = picture()[:, :1].expand(-1, 3, -1, -1)  # gray: JPEG halves the chroma
    low = SecondOrder().apply(image, draw_of())
    assert low.shape == (2, 3, 12, 12)
    assert (low - F.avg_pool2d(image, 4)).abs().mean() < 2 / 255


def test_stages_follow_in_order():
    """Every stage of a full draw by itself, in the order of the paper."""
    image, blur = picture(), gaussian(1.5)
    second = RoundDraw(gaussian(0.8), ResizeDraw(1.5, "bilinear"), no_noise())
    first = RoundDraw(blur, ResizeDraw(0.5, "bicubic"), no_noise())
    for sinc_first in (True, False):
        draw = draw_of(first=first, quality=WORST, second=second, last_quality=WORST, sinc=blur, sinc_first=sinc_first)
        low = SecondOrder().apply(image, draw)
        x = k.filter2d(image, k.kernels(blur))
        x = jpeg(F.interpolate(x, size=(24, 24), mode="bicubic"), WORST)
        x = k.filter2d(x, k.kernels(gaussian(0.8)))
        x = F.interpolate(x, size=(18, 18), mode="bilinear")
        if sinc_first:
            x = jpeg(k.filter2d(F.interpolate(x, size=(12, 12), mode="area"), k.kernels(blur)), WORST)
        else:
            x = k.filter2d(F.interpolate(jpeg(x, WORST), size=(12, 12), mode="area"), k.kernels(blur))
        assert (low - x).abs().max() <= 0.5 / 255 + 1e-6


def test_everything_is_repeatable_and_independent_of_the_division():
    high, settings = picture(64, 4) * 2 - 1, SecondOrder(gt_size=32)
    whole = settings.degrade_batch(high, 4, Draws(3, 7, range(4)))
    again = settings.degrade_batch(high, 4, Draws(3, 7, range(4)))
    part = settings.degrade_batch(high[2:], 4, Draws(3, 7, [2, 3]))
    assert torch.equal(whole.low, again.low)
    assert torch.equal(whole.high[2:], part.high) and (whole.low[2:] - part.low).abs().max() < 1e-5
    other = settings.degrade_batch(high, 4, Draws(3, 8, range(4)))
    assert not torch.equal(whole.low, other.low)


def test_squares_of_both_pictures_show_the_same():
    ramp = torch.linspace(-0.9, 0.9, 64)
    high = torch.stack([ramp.expand(64, 64), ramp[:, None].expand(64, 64), torch.zeros(64, 64)]).expand(8, 3, 64, 64)
    gentle = SecondOrder(
        gt_size=32, noise_range=(0, 0), noise_range2=(0, 0), poisson_scale_range=(0, 0), poisson_scale_range2=(0, 0),
        jpeg_range=(100, 100), jpeg_range2=(100, 100), resize_prob=(0, 0, 1), resize_prob2=(0, 0, 1), sinc_prob=0,
        sinc_prob2=0, final_sinc_prob=0, blur_sigma=(0.2, 0.3), blur_sigma2=(0.2, 0.3),
    )  # fmt: skip
    batch = gentle.degrade_batch(high, 4, Draws(0, 0, range(8)))
    assert batch.high.shape == (8, 3, 32, 32) and batch.low.shape == (8, 3, 8, 8)
    # The second ramp is small beside the blocks of chroma, so the brightness is compared.
    assert (F.avg_pool2d(batch.high, 4).mean(1) - batch.low.mean(1)).abs().max() < 0.06
    assert len({float(one[0, 0, 0]) for one in batch.high}) > 2


def test_the_other_output_sizes():
    high = picture(48) * 2 - 1
    batch = SecondOrder(resize_back=True, gt_size=32).degrade_batch(high, 1, Draws(0, 0, range(2)))
    assert batch.high.shape == batch.low.shape == (2, 3, 32, 32)
    assert batch.low.abs().max() <= 1


def test_stages_have_their_probabilities():
    settings = SecondOrder(second_order_prob=0.5, second_blur_prob=0.6)
    drawn = [settings.draw(Draws(0, step, range(4))) for step in range(120)]
    tolerance = 4 * 0.5 / 120**0.5
    assert abs(np.mean([draw.second is not None for draw in drawn]) - 0.5) < tolerance
    assert abs(np.mean([draw.sinc_first for draw in drawn]) - 0.5) < tolerance
    blurs = torch.cat([draw.second.blur.kind for draw in drawn if draw.second is not None])
    assert abs(float((blurs != k.NONE).float().mean()) - 0.6) < tolerance
    qualities = torch.cat([torch.cat([draw.quality, draw.last_quality]) for draw in drawn])
    assert 30 <= qualities.min() < 33 and 92 < qualities.max() <= 95 and abs(qualities.mean() - 62.5) < 3
    assert {draw.last_kind for draw in drawn} == {"area", "bilinear", "bicubic"}


def test_sharpening_is_an_unsharp_mask():
    image = picture(24, 1)
    position = np.arange(51) - 25
    line = np.exp(-(position**2) / (2 * (0.3 * 24 + 0.8) ** 2))
    line /= line.sum()

    def blurred(plane):
        # Reflection as often as the radius needs it: 46 is the period of 24 pixels.
        index = np.abs((np.arange(-25, 49) + 23 + 46) % 46 - 23)
        rows = np.stack([(plane[index[r : r + 51]] * line[:, None]).sum(0) for r in range(24)])
        return np.stack([(rows[:, index[c : c + 51]] * line).sum(1) for c in range(24)], 1)

    ours = sharpened(image)[0].numpy()
    for channel in range(3):
        plane = image[0, channel].double().numpy()
        difference = plane - blurred(plane)
        soft = blurred((np.abs(difference) * 255 > 10).astype(float))
        expected = soft * np.clip(plane + 0.5 * difference, 0, 1) + (1 - soft) * plane
        assert np.abs(ours[channel] - expected).max() < 1 / 255


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(second_blur_prob=1.2), "second_blur_prob is a probability"),
        (dict(jpeg_range2=(0, 50)), "jpeg_range2"),
        (dict(kernel_prob2=(1.0,)), "6 weights"),
        (dict(resize_range2=(1.1, 1.2)), "limits"),
        (dict(gt_size=30), "multiple of sf"),
        (dict(noise_range2=(5, 1)), "sigma"),
    ],
)
def test_bad_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SecondOrder(**options)


@pytest.mark.parametrize("side, scale, message", [(48, 2, "scale 4"), (50, 4, "divisible by 4"), (24, 4, "least 32")])
def test_bad_batches_are_refused(side, scale, message):
    with pytest.raises(ValueError, match=message):
        SecondOrder(gt_size=32).degrade_batch(torch.zeros(1, 3, side, side), scale, Draws(0, 0, range(1)))


def test_a_configuration_gives_the_settings():
    options = {"jpeg_range": [20, 60], "kernel_list": ["iso"], "kernel_prob": [1.0]}
    make = choices.chosen(choices.DEGRADATIONS, "degradation", "second_order")
    made = make(SimpleNamespace(degradation_options=options), SimpleNamespace(scale=2))
    assert made == SecondOrder(sf=2, jpeg_range=(20, 60), kernel_list=("iso",), kernel_prob=(1.0,))
    assert len(fields(SecondOrder)) > 30 and math.isclose(sum(SecondOrder().kernel_prob), 1)
    with pytest.raises(ValueError, match="no setting jpeg_rage; it has betag_range"):
        make(SimpleNamespace(degradation_options={"jpeg_rage": 1}), SimpleNamespace(scale=4))
