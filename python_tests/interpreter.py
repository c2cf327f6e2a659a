"""Faults of Triton's interpreter that a GPU does not have, for tests that run on either; and how to speed it up."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import torch

ON_GPU = torch.cuda.is_available()
# The interpreter's products of bfloat16 matrices are wrong, and its casts to bfloat16 truncate.
SIXTEEN_BITS = (torch.float16, torch.bfloat16) if ON_GPU else (torch.float16,)
DTYPES = (torch.float32, *SIXTEEN_BITS)


def truncates(dtype: torch.dtype) -> bool:
    """Whether casts to a dtype truncate here instead of rounding to nearest."""
    return dtype == torch.bfloat16 and not ON_GPU


def quicken() -> None:
    """Have Triton's interpreter leave out work that changes no result, which is half of its time.

    It replaces the functions of `triton.language` at every call of a function in a kernel, makes a table of dtypes for
    every conversion, and forms sums of integers a second time in 64 bits to look for overflows, which small tensors
    cannot have. What another version of Triton does not have is left alone.
    """
    from triton.runtime import interpreter

    executor, patch = getattr(interpreter, "GridExecutor", None), getattr(interpreter, "_patch_lang", None)
    if executor is not None and patch is not None:
        execute, scopes = executor.__call__, {}

        def run(self, *args, **kwargs):
            try:
                return execute(self, *args, **kwargs)
            finally:
                scopes.clear()

        def patch_once(function):
            if function not in scopes:
                scopes[function] = patch(function)
            return scopes[function]

        executor.__call__, interpreter._patch_lang = run, patch_once
    if hasattr(interpreter, "_get_np_dtype"):
        interpreter._get_np_dtype = _scalar_dtypes(interpreter._get_np_dtype)
    options = getattr(interpreter.interpreter_builder, "options", None)
    if hasattr(options, "sanitize_overflow"):
        interpreter.interpreter_builder.options = replace(options, sanitize_overflow=False)


def _scalar_dtypes(found: Callable) -> Callable:
    """NumPy's dtype for Triton's, looked up once for each."""
    from triton import language as tl

    found = cache(found)

    def of(dtype):
        element = dtype.element_ty if isinstance(dtype, tl.block_type) else dtype
        return found(tl.uint64 if isinstance(element, tl.pointer_type) else element)

    return of
