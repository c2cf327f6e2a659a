"""concat against torch.cat, bit for bit: dtypes, layouts, threads, gradients; arguments that are refused."""

import pytest
import torch
import torch.nn.functional as F
from comparison import DTYPES, LAYOUTS, layouts
from pairwise import BACKENDS, once, pairwise

from resshift_fast.ops import concat

pytestmark = pytest.mark.usefixtures("poisoned_empty", "backend")


def images(channels, other, height=9, width=7, batch=2, dtype=torch.float32):
    return tuple(torch.randn(batch, c, height, width).to(dtype) - 2.3 for c in (channels, other))


@pairwise(size=[(7, 3), (1, 1), (64, 96)], layout=LAYOUTS, dtype=DTYPES, backend=BACKENDS)
def test_equals_cat(size, layout, dtype):
    x, other = (layouts(image)[layout] for image in images(*size, dtype=dtype))
    with torch.no_grad():
        y = concat(x, other)
    assert y.dtype == dtype and y.equal(torch.cat([x, other], dim=1))


@pairwise(slope=[0.01, 0.2, 1.0], layout=LAYOUTS, dtype=DTYPES, backend=BACKENDS)
def test_leaky_relu_of_the_second_image(slope, layout, dtype):
    x, other = (layouts(image)[layout] for image in images(7, 33, dtype=dtype))
    other[0, :, 0, 0] = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan] * 7)[:33]
    with torch.no_grad():
        y = concat(x, other, slope)
    expected = torch.cat([x, F.leaky_relu(other, slope)], dim=1)
    torch.testing.assert_close(y, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("backend", ["cpu"], indirect=True)
def test_threads_change_nothing(two_threads):
    x, other = images(33, 65, 96, 80)
    with torch.no_grad():
        for threads in (1, 2, 3, 8):
            torch.set_num_threads(threads)
            y = concat(x, other)
            assert y.equal(torch.cat([x, other], dim=1)) and y.is_contiguous(memory_format=torch.channels_last)


@pairwise(backend=BACKENDS)
def test_gradients():
    x, other = (image.requires_grad_() for image in images(3, 5))
    dy = torch.randn(2, 8, 9, 7)
    found = torch.autograd.grad(concat(x, other), (x, other), dy)
    assert found[0].equal(dy[:, :3]) and found[1].equal(dy[:, 3:])
    found = torch.autograd.grad(concat(x, other, 0.5), (x, other), dy)
    assert found[0].equal(dy[:, :3]) and found[1].equal(torch.where(other > 0, dy[:, 3:], dy[:, 3:] / 2))


@once
@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        (lambda x: x[:1], ValueError, r"other has shape .* expected .* \[B, C2, H, W\] to match x"),
        (lambda x: x[..., :3], ValueError, r"other has shape .* expected .* \[B, C2, H, W\] to match x"),
        (lambda x: x.half(), TypeError, "other has dtype torch.float16, expected x's torch.float32"),
        (lambda x: x[0], ValueError, r"other must be \[B, C, H, W\]"),
    ],
)
def test_arguments_that_do_not_fit(changed, error, message):
    x, other = images(3, 5)
    with pytest.raises(error, match=message):
        concat(x, changed(other))


@once
@pytest.mark.parametrize("slope", [0.0, 1.5, float("nan")])
def test_slopes_that_are_refused(slope):
    x, other = images(3, 5)
    with pytest.raises(ValueError, match=rf"concat: slope is {slope}, expected above 0, at most 1"):
        concat(x, other, slope)
