"""Launch plans: what a launcher decides once for all calls of one shape.

A plan depends on shapes, strides, dtypes and flags, never on values or addresses. Plans are cached by exactly these and
the device, and made again when the autotuner may choose another configuration.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import torch
from torch import Tensor

from resshift_fast.kernels import tuning

# Programs that fill a GPU. Plans count with the same numbers on every GPU, so that they follow from shapes alone, and
# the order of summation is always the same.
PROCESSORS = 132  # multiprocessors of an H100
FULL = 108  # of an A100: with one program for each, no tile is divided further
NEARLY_FULL = 96  # where smaller tiles would read more for the same products, eight of nine are enough

PLANS = 1024  # cached for one function; a network makes some dozens at each size

P = TypeVar("P")
MaybeTensor = TypeVar("MaybeTensor", Tensor, Tensor | None)


def planned(
    space: tuning.Space[Any] | None = None, bucket: Callable[..., tuple] | None = None
) -> Callable[[Callable[..., P]], Callable[..., P]]:
    """Decorator that caches what a planning function returns, by the device and its arguments.

    Args:
        space: its configuration is passed to the function before the arguments; None if it takes none.
        bucket: function from the same arguments to the bucket in `space`.

    Returns:
        The decorator. The decorated function takes the device, then the arguments, which must be hashable, and with a
        `space` also `trial`, a function that runs a plan's kernel, to time configurations with.

    Example:
        >>> @planned(SPACE, lambda shape: (tuning.bucket(shape[0]),))
        ... def _plan(config, shape):
        ...     return Start(kernel, (triton.cdiv(shape[0], config.blocks["BLOCK"]),), shape[0], **config.options)
        >>> _plan(x.device, x.shape, trial=lambda start: start(x, y))(x, y)
    """

    def decorate(function: Callable[..., P]) -> Callable[..., P]:
        plans: dict[tuple, P] = {}
        last: tuple[tuple, P] | None = None  # found in less time than it takes to hash a key; one object, for threads

        def make(device: torch.device, arguments: tuple, trial: Callable[[P], Any] | None) -> P:
            if space is None:
                return function(*arguments)
            assert bucket is not None
            run = None if trial is None else lambda config: trial(function(config, *arguments))
            return function(space.config(bucket(*arguments), device, run), *arguments)

        @wraps(function)
        def plan(device: torch.device, *arguments: Any, trial: Callable[[P], Any] | None = None) -> P:
            nonlocal last
            generation = tuning.generation()
            if generation is None:
                return make(device, arguments, trial)
            key = (generation, device, arguments)
            latest = last
            if latest is not None and latest[0] == key:
                return latest[1]
            found = plans.get(key)
            if found is None:
                if len(plans) >= PLANS:
                    plans.clear()
                found = plans[key] = make(device, arguments, trial)
            last = key, found
            return found

        return plan

    return decorate


def new_image(x: Tensor, batch: int, channels: int, height: int, width: int) -> Tensor:
    """An uninitialized channels-last image in x's dtype, on its device; a memory format would take longer to parse."""
    strides = (height * width * channels, 1, width * channels, channels)
    return x.new_empty_strided((batch, channels, height, width), strides)


def contiguous(x: MaybeTensor) -> MaybeTensor:
    """x as a contiguous tensor, copied only if it is not; None if it is None."""
    return None if x is None else x.contiguous()
