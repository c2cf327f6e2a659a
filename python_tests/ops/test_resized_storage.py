"""Tensors whose storage was resized, as programs do that free weights for a while, are refused by the CPU kernels."""

import pytest
import torch

from resshift_fast import use_backend
from resshift_fast.backends import unavailable
from resshift_fast.ops import conv2d, group_norm, vector_quantize, window_attention
from resshift_fast.ops.conv2d_winograd import pack_conv2d

pytestmark = pytest.mark.skipif(unavailable("cpu") is not None, reason="needs the CPU library")


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
@pytest.mark.parametrize("which", ["x", "weight", "bias", "residual"])
@pytest.mark.parametrize("left", [0, 40], ids=["nothing", "too-little"])
def test_a_storage_that_was_resized_is_refused(packed, which, left):
    """Programs free weights for a while in this way; reading them would end the process."""
    if left and not packed and which == "weight":
        return  # torch copies it, and reads beyond its end
    tensors = {"x": torch.randn(1, 32, 9, 9), "weight": torch.randn(32, 32, 3, 3), "bias": torch.randn(32)}
    tensors["residual"] = torch.randn(1, 32, 9, 9).contiguous(memory_format=torch.channels_last)
    if packed:
        tensors["weight"] = pack_conv2d(tensors["weight"])
    tensors[which].untyped_storage().resize_(left)
    with torch.inference_mode(), use_backend("cpu"), pytest.raises((RuntimeError, ValueError), match="was resized"):
        conv2d(tensors["x"], tensors["weight"], tensors["bias"], residual=tensors["residual"])


CALLS = {
    "group_norm": (lambda x, w, b: group_norm(x, 8, w, b), (1, 32, 9, 9), (32,), (32,)),
    "window_attention": (
        lambda qkv, table, _: window_attention(qkv, table, num_heads=2, window_size=4),
        (1, 8, 8, 96),
        (49, 2),
        (1,),
    ),
    "vector_quantize": (lambda z, codebook, _: vector_quantize(z, codebook), (1, 3, 5, 5), (16, 3), (1,)),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("which", [0, 1])
def test_other_operators(name, which):
    call, *shapes = CALLS[name]
    tensors = [torch.randn(shape) for shape in shapes]
    tensors[which].untyped_storage().resize_(0)
    with torch.inference_mode(), use_backend("cpu"), pytest.raises(RuntimeError, match="was resized"):
        call(*tensors)
