"""Which errors say that memory is full."""

import pytest
import torch

from resshift_fast.core.memory import is_out_of_memory


def test_errors_of_real_allocations_are_recognized():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60)
    assert is_out_of_memory(caught.value)
    with pytest.raises(MemoryError) as caught:
        bytearray(1 << 60)
    assert is_out_of_memory(caught.value)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("std::bad_alloc")], ids=repr
)
def test_other_allocators(error):
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error", [RuntimeError("illegal memory access"), ValueError("x"), OSError("No space")], ids=repr
)
def test_other_errors(error):
    assert not is_out_of_memory(error)
