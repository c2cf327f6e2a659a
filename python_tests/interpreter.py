"""What Triton's interpreter gets wrong and a GPU does not, for tests that run in the one or on the other."""

import torch

ON_GPU = torch.cuda.is_available()
# The interpreter's products of bfloat16 matrices are wrong, and it cuts off where it should round.
SIXTEEN_BITS = (torch.float16, torch.bfloat16) if ON_GPU else (torch.float16,)
DTYPES = (torch.float32, *SIXTEEN_BITS)


def truncates(dtype: torch.dtype) -> bool:
    """Whether casts to a dtype cut off here instead of rounding to nearest."""
    return dtype == torch.bfloat16 and not ON_GPU
