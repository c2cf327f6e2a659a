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
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("std::bad_alloc"),
        RuntimeError("could not create a memory object"),
        RuntimeError('torch_call_dispatcher( "aten::empty", "memory_format", stack.data()) API call failed at ops.h'),
        RuntimeError("aoti_torch_empty_strided(2, sizes) API call failed at ops.h, line 4"),
        OSError(12, "Cannot allocate memory"),
    ],
    ids=["cuda", "c++", "onednn", "dispatcher", "aoti", "system"],
)
def test_other_allocators(error):
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("illegal memory access"),
        RuntimeError('torch_call_dispatcher( "aten::copy_", stack) API call failed at ops.h'),
        ValueError("x"),
        OSError("No space"),
    ],
    ids=repr,
)
def test_other_errors(error):
    assert not is_out_of_memory(error)
