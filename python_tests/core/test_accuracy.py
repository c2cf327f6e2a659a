"""How results are compared: the relative error of a tensor, the largest error of an element, and their limits."""

import math

import pytest
import torch
from comparison import assert_close

from resshift_fast.core.accuracy import ELEMENT_FACTOR, Errors, errors, full_float32, limits

EXACT = torch.randn(1 << 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_errors_are_relative():
    exact = torch.tensor([3.0, -4.0])
    found = errors(exact * 1.5, exact)
    assert found.relative == pytest.approx(0.5)
    assert found.largest == pytest.approx(2 / (4 + 5 / math.sqrt(2)))


@pytest.mark.parametrize("shape", [(0,), (3, 0)])
def test_an_empty_tensor_has_no_error(shape):
    assert errors(torch.empty(shape), torch.empty(shape)) == (0.0, 0.0)


def test_errors_against_zeros_are_absolute():
    found = errors(torch.full((4,), 0.5), torch.zeros(4))
    assert found.relative == pytest.approx(1.0) and found.largest == pytest.approx(1.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("place", [0, 12345, -1])
def test_one_wrong_element_of_a_million_is_found(dtype, place):
    """It has its neighbour's value, as after a wrong index."""
    right = EXACT.to(dtype)
    plain, wrong = errors(right, EXACT), right.clone()
    allowed = limits(dtype, plain)
    assert errors(right, EXACT).within(allowed)
    wrong[place] = right[place - 1]
    assert "an element with error" in errors(wrong, EXACT).problem(limits(dtype, plain, limit=1e-2))
    assert errors(wrong, EXACT).problem(allowed)
    with pytest.raises(AssertionError, match="y: an element with error"):
        assert_close("y", wrong, EXACT, 1e-2)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_value_that_is_not_finite_is_an_error(value):
    wrong = EXACT.clone()
    wrong[7] = value
    found = errors(wrong, EXACT)
    assert not found.within(Errors(math.inf, 1e30)) and found.problem(limits(torch.float32))


def test_float32_has_a_fixed_limit_and_16_bit_twice_the_plain_error():
    assert limits(torch.float32) == (1e-5, ELEMENT_FACTOR * 1e-5)
    assert limits(torch.bfloat16).relative == torch.finfo(torch.bfloat16).eps / 8
    plain = Errors(3e-3, 0.5)
    assert limits(torch.bfloat16, plain) == (6e-3, 1.0)
    assert limits(torch.float32, limit=1e-4) == (1e-4, ELEMENT_FACTOR * 1e-4)


def test_random_rounding_is_within_the_limit_of_an_element():
    """Random errors of a million elements, just within the limit of the tensor, keep each element within its own."""
    noise = torch.randn(EXACT.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert errors(EXACT + 0.999e-5 * noise * EXACT.norm() / noise.norm(), EXACT).within(limits(torch.float32))


def settings():
    conv, rnn, matmul = torch.backends.cudnn.conv, torch.backends.cudnn.rnn, torch.backends.cuda.matmul
    return conv.fp32_precision, rnn.fp32_precision, matmul.fp32_precision


@pytest.fixture
def restored_tf32():
    before = torch.backends.cudnn.allow_tf32
    yield
    torch.backends.cudnn.allow_tf32 = before


@pytest.mark.parametrize("allowed", [True, False])
def test_full_float32_restores_the_settings(allowed, restored_tf32):
    torch.backends.cudnn.allow_tf32 = allowed
    before = settings()
    with pytest.raises(KeyError), full_float32():
        assert "tf32" not in settings()
        assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32
        raise KeyError
    assert settings() == before and torch.backends.cudnn.allow_tf32 is allowed


def test_full_float32_where_only_the_newer_setting_was_used(restored_tf32):
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.conv.fp32_precision = "tf32"  # after this the older setting cannot be read
    before = settings()
    with full_float32():
        assert "tf32" not in settings()
    assert settings() == before
