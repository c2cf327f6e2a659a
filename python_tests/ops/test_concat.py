"""concat against torch.cat, bit for bit: dtypes, layouts, threads, gradients; arguments that are refused."""

import pytest
import torch
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
