"""Faces are aligned and pasted back at their places, with seams that are not seen."""

import cmath
import math

import numpy as np
import pytest
import torch
from pipelines import integers

from resshift_fast.apps.faces import alignment, pasting
from resshift_fast.apps.faces.alignment import SIDE, TEMPLATE, Similarity, Window, enlargement, fit
from resshift_fast.images.sources import sources_of

CENTRE = TEMPLATE.mean(0)


def smooth(x, y):
    """A picture of waves [3, ...] in [0.1, 0.9], at points in pixels; none is shorter than 40 pixels."""
    waves = [np.sin(x / 9 + 1) * np.cos(y / 11), np.sin(x / 12 - y / 10), np.cos(y / 8 - 2) * np.sin(x / 10)]
    return 0.5 + 0.4 * np.stack(waves)


def sampled(height, width, factor=1):
    """The picture of waves, of `factor` pixels for each of its units, as a tensor [3, H, W]."""
    y, x = ((np.arange(side) + 0.5) / factor for side in (height, width))
    return torch.from_numpy(smooth(*np.meshgrid(x, y))).float()


def source_of(pixels):
    (source,), _ = sources_of(pixels)
    source.begin(1)
    return source


def face_at(x, y, eyes, degrees):
    """Maps a picture, in which a face has its middle and its eyes' distance, to the aligned face."""
    scale = np.linalg.norm(TEMPLATE[1] - TEMPLATE[0]) / eyes
    factor = scale * cmath.exp(-1j * math.radians(degrees))
    return Similarity(factor, complex(*CENTRE) - factor * complex(x, y))


def shift(found, expected):
    """By how many pixels (x, y) a smooth picture [3, H, W] is moved against another, by least squares."""
    down, across = np.gradient(expected, axis=(1, 2))
    slopes = np.stack([across.ravel(), down.ravel()], 1)
    return -np.linalg.lstsq(slopes, (found - expected).ravel(), rcond=None)[0]


def test_the_shift_of_a_picture_is_measured():
    x, y = np.meshgrid(np.arange(60) + 0.5, np.arange(50) + 0.5)
    assert np.allclose(shift(smooth(x - 0.4, y + 0.3), smooth(x, y)), [0.4, -0.3], atol=0.02)


@pytest.mark.parametrize("degrees, eyes, scale", [(0, 30, 1), (17, 60, 2), (-40, 22, 4), (90, 150, 1), (171, 45, 3)])
def test_round_trip(degrees, eyes, scale):
    """A face that is aligned and pasted back as it is stays where it is, in each quarter of what is seen of it."""
    side = round(6 * eyes)
    place = face_at(0.5 * side + 0.3, 0.5 * side - 0.2, eyes, degrees)
    crop = pasting.aligned(source_of(sampled(side, side)), place)
    result = source_of(torch.zeros(3, side * scale, side * scale))
    patch = pasting.Patch(crop, place.after(enlargement(1 / scale)))
    pasting.paste(result, [patch])
    pasted, expected = result.result().numpy(), sampled(side * scale, side * scale, scale).numpy()
    opacity, _ = alignment.mask(Window(0, 0, side * scale, side * scale), patch.place)
    rows, columns = np.nonzero(opacity.numpy() == 1)
    middle = round(rows.mean()), round(columns.mean())
    reach = int(0.6 * min(np.ptp(rows), np.ptp(columns)) / 2 / math.sqrt(2))
    for top in (middle[0] - reach, middle[0]):
        for left in (middle[1] - reach, middle[1]):
            part = np.s_[:, top : top + reach, left : left + reach]
            assert (opacity.numpy()[part[1:]] == 1).all()
            moved = shift(pasted[part], expected[part])
            # torch's bicubic kernel alone moves slopes by up to 0.05 pixels where all pixels are sampled at one phase.
            assert np.abs(moved).max() < 0.1, moved
            assert np.abs(pasted[part] - expected[part]).max() < 0.02


def test_a_shift_of_half_a_pixel_would_be_found():
    place = face_at(90, 90, 30, 10)
    crop = pasting.aligned(source_of(sampled(180, 180)), place)
    result = source_of(torch.zeros(3, 180, 180))
    pasting.paste(result, [pasting.Patch(crop, place.after(Similarity(1, 0.5 + 0j)))])
    part = np.s_[:, 70:110, 70:110]
    assert np.allclose(shift(result.result().numpy()[part], sampled(180, 180).numpy()[part]), [-0.5, 0], atol=0.05)


@pytest.mark.parametrize("degrees, eyes", [(0, 126), (-25, 40), (130, 70)])
def test_the_points_of_a_face_are_where_ffhq_has_them(degrees, eyes):
    place = face_at(260, 240, eyes, degrees)
    points = place.inverse(TEMPLATE)
    found = fit(points)
    assert np.allclose([found.factor, found.shift], [place.factor, place.shift])
    assert np.linalg.norm(points[1] - points[0]) == pytest.approx(eyes)
    crop = pasting.aligned(source_of(sampled(480, 520)), found)
    assert crop.shape == (3, SIDE, SIDE)
    for x, y in TEMPLATE.round().astype(int):
        expected = smooth(*place.inverse(np.array([x + 0.5, y + 0.5])))
        assert np.allclose(crop[:, y, x].numpy(), expected, atol=0.01)


def test_the_best_similarity_is_that_of_least_squares():
    generator = np.random.default_rng(0)
    points, wanted = generator.normal(size=(2, 5, 2)) * 40
    # x' = p x − q y + u and y' = q x + p y + v, as a linear system for p, q, u and v.
    x, y = points.T
    ones, zeros = np.ones(5), np.zeros(5)
    system = np.concatenate([np.stack([x, -y, ones, zeros], 1), np.stack([y, x, zeros, ones], 1)])
    p, q, u, v = np.linalg.lstsq(system, np.concatenate([wanted[:, 0], wanted[:, 1]]), rcond=None)[0]
    found = fit(points, wanted)
    assert np.allclose([found.factor, found.shift], [complex(p, q), complex(u, v)])
    assert np.allclose(found.inverse(found(points)), points)
    assert np.allclose(found.after(enlargement(3))(points), found(3 * points))
    with pytest.raises(ValueError, match="points must be finite and apart"):
        fit(np.ones((5, 2)))


def test_a_large_face_does_not_alias():
    """Stripes of one pixel become gray where two and a half pixels become one."""
    stripes = torch.zeros(3, 600, 600)
    stripes[:, :, ::2] = 1
    crop = pasting.aligned(source_of(stripes), face_at(300, 300, 2.5 * 126, 0))
    assert (crop[:, 220:390, 170:340] - 0.5).abs().max() < 0.02


def test_beyond_the_border_it_is_repeated():
    picture = sampled(80, 90)
    place = face_at(2, 40, 20, 0)
    crop = pasting.aligned(source_of(picture), place)
    left, border = (place(np.array([[x, 40.5]]))[0].round().astype(int) for x in (-6.0, 0.5))
    assert left[0] > 0
    assert np.allclose(crop[:, left[1], left[0]], picture[:, 40, 0], atol=0.02)
    assert np.allclose(crop[:, border[1], border[0]], picture[:, 40, 0], atol=0.02)


def test_a_mask_falls_smoothly_to_nothing():
    opacity, nearness = alignment.mask(Window(0, 0, SIDE, SIDE), enlargement(1))
    edges = [opacity[0], opacity[-1], opacity[:, 0], opacity[:, -1]]
    assert all(edge.abs().max() == 0 for edge in edges)
    for x, y in TEMPLATE.round().astype(int):
        assert opacity[y, x] == 1
    assert opacity.diff(dim=0).abs().max() < 0.03 and opacity.diff(dim=1).abs().max() < 0.03
    assert 0.55 < opacity.mean() < 0.7 and nearness[256, 256] > 0.99 and nearness[0, 0] == 0


def test_what_no_mask_covers_is_kept_bit_for_bit(monkeypatch):
    monkeypatch.setattr(pasting, "STRIP", 50)
    pixels = integers(170, 200, 3, bits=16)
    result = source_of(pixels)
    place = face_at(70, 80, 14, 30)
    pasting.paste(result, [pasting.Patch(torch.full((3, SIDE, SIDE), 0.25), place)])
    found = result.result()[0].transpose(1, 2, 0)
    opacity, _ = alignment.mask(Window(0, 0, 170, 200), place)
    seen = opacity.numpy()[..., None]
    assert (found[seen[..., 0] == 0] == pixels[seen[..., 0] == 0]).all() and 0 < (seen == 1).mean() < 0.5
    assert np.allclose(found, pixels + seen * (0.25 * 65535 - pixels), atol=1)


def test_faces_that_overlap():
    """Each is seen at its own middle, whatever their order, and what both cover is no darker."""
    places = [face_at(70, 80, 14, 0), face_at(105, 80, 14, 20)]
    results = []
    for order in ([0, 1], [1, 0]):
        result = source_of(torch.ones(3, 160, 180))
        pasting.paste(result, [pasting.Patch(torch.full((3, SIDE, SIDE), 0.2 + 0.6 * i), places[i]) for i in order])
        results.append(result.result()[0])
    assert torch.allclose(*results, atol=1e-6)
    row = results[0][80]
    assert row[70] == pytest.approx(0.2, abs=0.05) and row[105] == pytest.approx(0.8, abs=0.05)
    between = row[70:106]
    assert (between.diff() >= -1e-6).all() and between.diff().max() < 0.15


def test_a_face_outside_of_the_picture_changes_nothing():
    pixels = integers(40, 50, 3)
    result = source_of(pixels)
    pasting.paste(result, [pasting.Patch(torch.zeros(3, SIDE, SIDE), face_at(-200, -200, 10, 0))])
    assert (result.result()[0].transpose(1, 2, 0) == pixels).all()
