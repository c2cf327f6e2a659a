"""How far a result is from the exact one, and how far it may be: the one rule of verification, benchmarks and tests.

Two numbers are compared. The relative error, ‖x − exact‖ / ‖exact‖, is that of the whole; the largest error, the
maximum over elements of |x − exact| / (|exact| + rms(exact)), shows a single wrong element among millions, which the
norm hides. In float32 the limit is fixed; in 16 bit it is twice the error of plain PyTorch in the same dtype, so that
a fast kernel can't hide behind a wide limit.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

LIMITS = {torch.float64: 1e-10, torch.float32: 1e-5}
# An element may be off by so many times the relative error that the whole may have: rounding errors of 10⁶ normally
# distributed elements reach five times their deviation.
ELEMENT_FACTOR = 8.0
PLAIN_FACTOR = 2.0  # of the plain path's errors


class Errors(NamedTuple):
    """Errors of a tensor, or limits of them; see the module.

    Attributes:
        relative: of the whole. largest: of one element.
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
    """Errors of floating-point `x` against `exact`, of the same shape; absolute ones where `exact` is all zeros."""
    if not exact.numel():
        return EXACT
    exact = exact.detach().double()
    difference = (x.detach().double() - exact).abs()
    norm = exact.norm().item()
    scale = norm or 1.0
    largest = (difference / (exact.abs() + scale / math.sqrt(exact.numel()))).max()
    return Errors(difference.norm().item() / scale, largest.item())


def limits(dtype: torch.dtype, plain: Errors = EXACT, limit: float | None = None) -> Errors:
    """Errors that a right result may have.

    Args:
        dtype: of the result, or of the coarsest of what it was computed from.
        plain: errors of plain PyTorch in the same dtype.
        limit: relative error allowed whatever plain PyTorch does; None takes that of `dtype`.
    """
    if limit is None:
        limit = LIMITS.get(dtype, torch.finfo(dtype).eps / 8)
    relative = max(limit, PLAIN_FACTOR * plain.relative)
    return Errors(relative, max(ELEMENT_FACTOR * relative, PLAIN_FACTOR * plain.largest))


@contextmanager
def full_float32() -> Iterator[None]:
    """No TF32 in the block, in cuDNN and cuBLAS: it would pass for float32 with a thousand times its error.

    torch keeps an older and a newer setting of it and refuses to read the older one where the two differ, so that both
    are set, and both are set back.
    """
    matmul: Any = torch.backends.cuda.matmul  # whose attributes, as cuDNN's, are made at run time
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
    """The older setting; None where it cannot be read."""
    try:
        allowed: bool = place.allow_tf32
        return allowed
    except RuntimeError:
        return None
