"""Errors of a result and their limits, shared by verification, benchmarks and tests.

Two errors are compared. The relative error, ‖x − exact‖ / ‖exact‖, is that of the whole tensor. The largest error, the
maximum over elements of |x − exact| / (|exact| + rms(exact)), detects a single wrong element among millions, which the
norm does not. In float32 the limit is fixed. In 16-bit dtypes it is twice the error of plain PyTorch in the same dtype:
a fixed limit that holds for every operator would be too wide to detect a faulty kernel.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

LIMITS = {torch.float64: 1e-10, torch.float32: 1e-5}
# Limit of the largest error in units of that of the relative error: the largest of 10⁶ normally distributed rounding
# errors is about five standard deviations.
ELEMENT_FACTOR = 8.0
PLAIN_FACTOR = 2.0  # limit in units of the errors of plain PyTorch


class Errors(NamedTuple):
    """Errors of a tensor, or limits on them, as the module's docstring defines them.

    Attributes:
        relative: of the whole tensor. largest: of one element.
    """

    relative: float
    largest: float

    def within(self, allowed: "Errors") -> bool:
        """Whether both are within their limits; NaN is not."""
        return self.relative <= allowed.relative and self.largest <= allowed.largest

    def problem(self, allowed: "Errors") -> str:
        """Which limit is exceeded, in words; empty if none is."""
        if not self.relative <= allowed.relative:
            return f"relative error {self.relative:.1e}, allowed {allowed.relative:.1e}"
        if not self.largest <= allowed.largest:
            return f"an element with error {self.largest:.1e}, allowed {allowed.largest:.1e}"
        return ""


EXACT = Errors(0.0, 0.0)


def errors(x: Tensor, exact: Tensor) -> Errors:
    """Errors of floating-point `x` against `exact` of the same shape; absolute errors if `exact` is all zeros."""
    if not exact.numel():
        return EXACT
    exact = exact.detach().double()
    difference = (x.detach().double() - exact).abs()
    norm = exact.norm().item()
    scale = norm or 1.0
    largest = (difference / (exact.abs() + scale / math.sqrt(exact.numel()))).max()
    return Errors(difference.norm().item() / scale, largest.item())


def limits(dtype: torch.dtype, plain: Errors = EXACT, limit: float | None = None) -> Errors:
    """Errors that a correct result may have.

    Args:
        dtype: the lowest precision among the result and its inputs.
        plain: errors of plain PyTorch in the same dtype.
        limit: relative error that is allowed in any case; None takes the default of `dtype`.
    """
    if limit is None:
        limit = LIMITS.get(dtype, torch.finfo(dtype).eps / 8)
    relative = max(limit, PLAIN_FACTOR * plain.relative)
    return Errors(relative, max(ELEMENT_FACTOR * relative, PLAIN_FACTOR * plain.largest))


@contextmanager
def full_float32() -> Iterator[None]:
    """Disable TF32 in cuDNN and cuBLAS within the block: its rounding error is about a thousand times float32's.

    PyTorch has an older and a newer setting, and raises when the older one is read while the two disagree. So both
    are saved and restored.
    """
    matmul: Any = torch.backends.cuda.matmul  # Any: type checkers do not see its attributes, nor cuDNN's
    cudnn: Any = torch.backends.cudnn
    older, newer = (matmul, cudnn), (matmul, cudnn.conv, cudnn.rnn)
    allowed, precisions = [_allows_tf32(place) for place in older], [place.fp32_precision for place in newer]
    try:
        for place in older:
            place.allow_tf32 = False
        yield
    finally:
        for place, value in zip(older, allowed, strict=True):
            if value is not None:
                place.allow_tf32 = value
        for place, value in zip(newer, precisions, strict=True):
            place.fp32_precision = value


def _allows_tf32(place: Any) -> bool | None:
    """The older setting, or None if PyTorch refuses to read it."""
    try:
        allowed: bool = place.allow_tf32
        return allowed
    except RuntimeError:
        return None
