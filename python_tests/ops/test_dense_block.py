"""dense_block against its formula in float64: results, gradients, memory layouts; arguments that are refused."""

import pytest
import torch
from comparison import DTYPES, LAYOUTS, LIMITS, assert_close, check_operator, layouts, relative_error
from dense_blocks import CONVS, arguments, formula
from pairwise import BACKENDS, once, pairwise

from resshift_fast.ops import dense_block
from resshift_fast.ops.dense_block import reference

pytestmark = pytest.mark.usefixtures("poisoned_empty", "backend")

CASES = {"kernel": (32, 16, 9, 13), "odd growth": (12, 5, 4, 3), "one pixel": (32, 32, 1, 1)}


def by_name(function):
    """A function of x, the weights and biases as one of tensors by keyword."""

    def called(x, **others):
        return function(x, *([others[f"{kind}{i}"] for i in range(CONVS)] for kind in "wb"))

    return called


def plain(x, weights, biases):
    return reference(x, *weights, *biases, 0.2, 0.2)


@pairwise(case=CASES, dtype=DTYPES, backend=BACKENDS)
def test_matches_float64_with_gradients(case, dtype):
    x, weights, biases = arguments(*case)
    tensors = {f"{kind}{i}": t for kind, ts in (("w", weights), ("b", biases)) for i, t in enumerate(ts)}
    check_operator(*map(by_name, (dense_block, plain, formula)), {"x": x} | tensors, dtype)


@pairwise(case=CASES, dtype=DTYPES, layout=LAYOUTS, backend=BACKENDS)
def test_matches_float64_without_gradients(case, dtype, layout):
    x, weights, biases = arguments(*case, dtype=dtype)
    x = layouts(x)[layout]
    with torch.no_grad():
        found = dense_block(x, weights, biases, slope=0.1, scale=0.7)
        wide = [x.double(), [w.double() for w in weights], [b.double() for b in biases]]
        expected = formula(*wide, slope=0.1, scale=0.7)
        allowed = LIMITS[dtype]
        if dtype in (torch.float16, torch.bfloat16):
            theirs = reference(x, *weights, *biases, 0.1, 0.7)
            allowed = 2 * relative_error(theirs, expected) + torch.finfo(dtype).eps / 8
    assert found.dtype == dtype
    assert_close("output", found, expected, allowed)


@once
def test_arguments_that_do_not_fit():
    x, weights, biases = arguments(12, 5, 4, 3)
    with pytest.raises(ValueError, match="got 4 weights and 5 biases, expected 5 of each"):
        dense_block(x, weights[:-1], biases)
    with pytest.raises(ValueError, match=r"weights\[2\] has shape \(5, 17, 3, 3\), expected \(5, 22, 3, 3\)"):
        dense_block(x, [*weights[:2], weights[1], *weights[3:]], biases)
    with pytest.raises(ValueError, match=r"biases\[4\] has shape \(5,\), expected \(12,\)"):
        dense_block(x, weights, [*biases[:4], biases[0]])
    with pytest.raises(TypeError, match=r"weights\[0\] has dtype torch.float16, expected x's torch.float32"):
        dense_block(x, [weights[0].half(), *weights[1:]], biases)
    with pytest.raises(ValueError, match=r"x must be \[B, C, H, W\]"):
        dense_block(x[0], weights, biases)
    for slope in (0.0, 1.5):
        with pytest.raises(ValueError, match=f"slope is {slope}, expected above 0, at most 1"):
            dense_block(x, weights, biases, slope=slope)
