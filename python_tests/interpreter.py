"""Faults of Triton's interpreter that a GPU does not have, for tests that run on either."""

import torch

ON_GPU = torch.cuda.is_available()
# The interpreter's products of bfloat16 matrices are wrong, and its casts to bfloat16 truncate.
SIXTEEN_BITS = (torch.float16, torch.bfloat16) if ON_GPU else (torch.float16,)
DTYPES = (torch.float32, *SIXTEEN_BITS)


def truncates(dtype: torch.dtype) -> bool:
    """Whether casts to a dtype truncate here instead of rounding to nearest."""
    return dtype == torch.bfloat16 and not ON_GPU
