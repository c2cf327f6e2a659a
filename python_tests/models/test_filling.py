"""Unknown pixels filled in smoothly, against pull and push written pixel by pixel in float64."""

import numpy as np
import pytest
import torch

from resshift_fast.models.filling import fill, fill_photo


def _formula(image, unknown):
    """The same for one channel, by recursion: image and unknown [H, W]."""

    def pushed(x, w):
        height, width = x.shape
        if height == width == 1:
            return x * (w > 0)
        half = np.zeros((-(-height // 2), -(-width // 2)))
        total, weight = half.copy(), half.copy()
        for i, j in np.ndindex(height, width):
            total[i // 2, j // 2] += w[i, j] * x[i, j]
            weight[i // 2, j // 2] += w[i, j]
        coarse = pushed(total / np.maximum(weight, 1e-6), np.minimum(weight, 1))
        found = np.empty_like(x)
        for i, j in np.ndindex(height, width):
            value = 0.0
            for row, across in _taps(i, len(coarse)):
                value += across * sum(along * coarse[row, column] for column, along in _taps(j, coarse.shape[1]))
            found[i, j] = w[i, j] * x[i, j] + (1 - w[i, j]) * value
        for _ in range(8):
            padded = np.pad(found, 1, mode="edge")
            around = [
                padded[1 + i : 1 + i + height, 1 + j : 1 + j + width] for i, j in ((-1, 0), (1, 0), (0, -1), (0, 1))
            ]
            found = w * x + (1 - w) * sum(around) / 4
        return found

    return np.where(unknown, pushed(np.where(unknown, 0.0, image), (~unknown).astype(float)), image)


def _taps(index, count):
    """Places and weights of bilinear interpolation to twice the size."""
    place = min(max((index + 0.5) / 2 - 0.5, 0.0), count - 1)
    low = int(place)
    return [(low, 1 - place + low), (min(low + 1, count - 1), place - low)]


@pytest.mark.parametrize("height, width, share", [(16, 16, 0.5), (13, 21, 0.9), (1, 5, 0.4)])
def test_pull_and_push_is_its_formula(height, width, share):
    rng = np.random.default_rng(height)
    image, unknown = rng.uniform(-1, 1, (2, height, width)), rng.random((2, height, width)) < share
    unknown[1, height // 2 :] = True
    found = fill(torch.from_numpy(image)[:, None], torch.from_numpy(unknown)[:, None])
    for index in range(2):
        np.testing.assert_allclose(found[index, 0].numpy(), _formula(image[index], unknown[index]), atol=1e-12)


def test_known_pixels_stay_and_the_others_are_within_their_range():
    generator = torch.Generator().manual_seed(0)
    image, unknown = torch.rand(2, 3, 40, 56, generator=generator), torch.zeros(2, 1, 40, 56, dtype=torch.bool)
    unknown[0, :, 10:38, 5:50] = unknown[1, :, :, 20:] = True
    given = torch.where(unknown, 1e4, image)
    found, hidden = fill(given, unknown), unknown.expand_as(image)
    assert torch.equal(found[~hidden], image[~hidden])
    assert image.min() <= found[hidden].min() and found[hidden].max() <= image.max()
    assert torch.equal(fill(given, torch.ones_like(unknown)), torch.zeros_like(image))
    assert torch.equal(fill(image, torch.zeros_like(unknown)), image)
    constant = fill(torch.where(unknown, 7.0, torch.full_like(image, 0.25)), unknown)
    torch.testing.assert_close(constant, torch.full_like(image, 0.25))


@pytest.mark.parametrize("hole", [np.s_[90:130, 70:], np.s_[:, :], np.s_[0:0, 0:0]], ids=["corner", "all", "none"])
def test_of_a_photo_only_the_surroundings_of_its_hole_are_looked_at(hole):
    photo = torch.rand(3, 200, 160, generator=torch.Generator().manual_seed(1))
    unknown = torch.zeros(200, 160, dtype=torch.bool)
    unknown[hole] = True
    given, expected = torch.where(unknown, 1e4, photo), photo.clone()
    if unknown.any():
        looked_at = np.s_[:, 26:194, 6:] if hole != np.s_[:, :] else np.s_[:, :, :]
        expected[looked_at] = fill(given[looked_at][None], unknown[None][looked_at][None])[0]
    assert torch.equal(fill_photo(given, unknown), expected)
