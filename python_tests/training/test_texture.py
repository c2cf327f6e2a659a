"""The error of texture against its formula; what it is least for."""

import numpy as np
import torch

from resshift_fast.training.texture import DISTANCES, EPSILON, texture_error


def noise(sigma, seed, size=(1, 3, 32, 40)):
    return sigma * torch.randn(1, 1, *size[2:], generator=torch.Generator().manual_seed(seed)).expand(size)


def formula(a, b):
    """In NumPy and float64, window by window."""

    def strengths(image, down, across):
        gray = image.mean(0)
        height, width = gray.shape
        rows, columns = range(height - down), range(max(0, -across), width - max(0, across))
        squares = np.array([[(gray[y + down, x + across] - gray[y, x]) ** 2 for x in columns] for y in rows])
        tops, lefts = (range(0, side - 7, 4) for side in squares.shape)
        return np.array([[np.sqrt(squares[y : y + 8, x : x + 8].mean() + EPSILON) for x in lefts] for y in tops])

    return np.mean([np.abs(strengths(a, *d) - strengths(b, *d)).mean() for d in DISTANCES])


def test_is_the_formula():
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.rand(2, 3, 19, 22, generator=generator) * 2 - 1 for _ in range(2))
    expected = [formula(*(image[i].double().numpy() for image in (first, second))) for i in range(2)]
    torch.testing.assert_close(texture_error(first, second).double(), torch.tensor(expected), rtol=1e-4, atol=1e-6)
    assert texture_error(first, first).eq(0).all()


def test_other_texture_of_equal_strength_is_better_than_none():
    truth, other, none, strong = noise(0.2, 0), noise(0.2, 1), noise(0.0, 2), noise(0.5, 3)
    errors = [float(texture_error(image, truth)) for image in (other, none, strong)]
    assert errors[0] < 0.2 * min(errors[1:])
    # The absolute error prefers none.
    assert (none - truth).abs().mean() < (other - truth).abs().mean()


def test_its_place_and_direction_matter():
    truth = torch.zeros(1, 3, 32, 32)
    truth[..., :16] = noise(0.3, 0, (1, 3, 32, 16))
    stripes = torch.zeros(1, 3, 32, 32)
    stripes[..., ::2] = 0.3
    assert texture_error(truth.flip(3), truth) > 5 * texture_error(truth.flip(2), truth)
    assert texture_error(stripes.transpose(2, 3), stripes) > 0.05


def test_a_gradient_is_finite_where_both_are_flat():
    image = torch.zeros(1, 3, 12, 12, requires_grad=True)
    texture_error(image, noise(0.1, 0, (1, 3, 12, 12))).sum().backward()
    assert torch.isfinite(image.grad).all()
    image.grad = None
    texture_error(image + torch.linspace(0, 0.01, 12), noise(0.1, 0, (1, 3, 12, 12))).sum().backward()
    assert image.grad.abs().max() > 0
