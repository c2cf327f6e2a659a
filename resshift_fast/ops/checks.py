"""Argument checks shared by the operators: what was wrong, what was expected, what to do."""

from collections.abc import Callable
from functools import wraps
from inspect import signature
from typing import Any, TypeVar, cast, get_args

import torch
from torch import Tensor

FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
Check = TypeVar("Check", bound=Callable[..., None])
Reference = TypeVar("Reference", bound=Callable[..., Any])
CACHE_SIZE = 4096  # sets of arguments of one function; a network has some dozens at each size

# Determined once, because torch.compile cannot trace is_autocast_available in every version.
AUTOCAST_DEVICES = frozenset(k for k in ("cpu", "cuda", "xpu", "mps") if torch.amp.is_autocast_available(k))


def once(check: Check) -> Check:
    """Decorator of a function that raises for wrong arguments: it runs only for arguments that have not passed before.

    Checks see no more of a tensor than its shape, dtype and device, which therefore stand for it here. Arguments are
    passed by position.
    """
    key_of = _key(check)
    passed: set[tuple[Any, ...]] = set()
    last: tuple[Any, ...] = ()  # compared in less time than it takes to hash a key

    @wraps(check)
    def checked(*args: Any) -> None:
        nonlocal last
        if torch.compiler.is_compiling():  # a lookup by sizes would be traced anew for each size
            check(*args)
            return
        try:
            key = key_of(*args)
            if key == last:
                return
            if key in passed:
                last = key
                return
        except (AttributeError, TypeError):  # no tensor, or something that cannot be hashed, such as a symbolic size
            check(*args)
            return
        check(*args)
        if len(passed) >= CACHE_SIZE:
            passed.clear()
        passed.add(key)
        last = key

    return cast("Check", checked)  # but without keyword arguments


def _key(check: Callable[..., Any]) -> Callable[..., tuple[Any, ...]]:
    """A function of the same arguments that returns what stands for them.

    It is written out argument by argument, because a loop that asks for the type of each takes twice as long.
    """
    parameters = signature(check).parameters
    parts = []
    for name, parameter in parameters.items():
        tensor = f"{name}.shape, {name}.dtype, {name}.device"
        if parameter.annotation is Tensor:
            parts.append(tensor)  # flat, because hashing a tuple for each tensor takes longer
        elif Tensor in get_args(parameter.annotation):
            parts.append(f"None if {name} is None else ({tensor})")
        else:
            parts.append(name)
    key_of: Callable[..., tuple[Any, ...]] = eval(f"lambda {', '.join(parameters)}: ({', '.join(parts)},)", {})
    return key_of


def image(op: str, name: str, x: Tensor) -> None:
    """Check that x is a floating-point [B, C, H, W] tensor with at least one element."""
    floating(op, name, x)
    if x.dim() != 4:
        raise ValueError(f"{op}: {name} must be [B, C, H, W], got shape {tuple(x.shape)}; add or merge dimensions")
    if x.numel() == 0:
        raise ValueError(f"{op}: {name} is empty, shape {tuple(x.shape)}; every dimension must be at least 1")


def tensor(op: str, name: str, x: Tensor | None) -> Tensor:
    """Check that x is a tensor, and return it."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{op}: {name} must be a torch.Tensor, got {type(x).__name__}")
    return x


def floating(op: str, name: str, x: Tensor) -> None:
    """Check that x is a floating-point tensor."""
    tensor(op, name, x)
    if x.dtype not in FLOATING:
        raise TypeError(f"{op}: {name} has dtype {x.dtype}, expected a floating-point dtype; convert it with .float()")


def shape(
    op: str, name: str, x: Tensor | None, expected: tuple[int, ...], why: str = "", *, optional: bool = False
) -> None:
    """Check that x is a tensor of the expected shape; None passes if `optional`."""
    if optional and x is None:
        return
    x = tensor(op, name, x)
    if x.shape != expected:
        raise ValueError(f"{op}: {name} has shape {tuple(x.shape)}, expected {tuple(expected)} {why}".rstrip())


def like(op: str, name: str, x: Tensor, other: Tensor, other_name: str) -> None:
    """Check that x has the shape, dtype and device of `other`."""
    floating(op, name, x)
    shape(op, name, x, other.shape, f"like {other_name}")
    if x.dtype != other.dtype:
        raise TypeError(f"{op}: {name} has dtype {x.dtype}, expected {other_name}'s {other.dtype}")
    devices(op, other, **{name: x})


def devices(op: str, x: Tensor, **tensors: Tensor | None) -> None:
    """Check that every given tensor is on x's device."""
    device = x.device
    for name, other in tensors.items():
        if other is not None and other.device != device:
            raise ValueError(f"{op}: {name} is on {other.device}, expected x's device {device}; move it with .to()")


def parameters(op: str, x: Tensor, **tensors: Tensor | None) -> None:
    """Check that every given tensor is on x's device, in x's dtype or float32."""
    devices(op, x, **tensors)
    dtype = x.dtype
    for name, other in tensors.items():
        if other is not None and other.dtype != dtype and other.dtype != torch.float32:
            raise TypeError(f"{op}: {name} has dtype {other.dtype}, expected x's {dtype} or torch.float32")


def integers(op: str, name: str, x: Tensor, expected: tuple[int, ...]) -> None:
    """Check that x is an int64 tensor of the expected shape."""
    if not isinstance(x, Tensor) or x.dtype != torch.int64:
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"{op}: {name} must be an int64 tensor, got {got}")
    shape(op, name, x, expected)


def accumulation_dtype(x: Tensor) -> torch.dtype:
    """float64 for float64 input, else float32: the dtype in which sums are formed."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def autocast(x: Tensor) -> Tensor:
    """x in the dtype in which PyTorch convolves under autocast; x itself where autocast is off."""
    kind = x.device.type
    if x.dtype is torch.float64 or kind not in AUTOCAST_DEVICES or not torch.is_autocast_enabled(kind):
        return x
    return x.to(torch.get_autocast_dtype(kind))


def without_autocast(reference: Reference) -> Reference:
    """Decorator of a reference whose first argument is a tensor: autocast does not reach what it calls.

    Registered operators run without autocast, so that the same call has the same dtype with every backend.
    """

    @wraps(reference)
    def plain(*args: Any, **named: Any) -> Any:
        kind = (args[0] if args else next(iter(named.values()))).device.type
        if kind not in AUTOCAST_DEVICES or not torch.is_autocast_enabled(kind):
            return reference(*args, **named)
        with torch.autocast(kind, enabled=False):
            return reference(*args, **named)

    return cast("Reference", plain)


def match_memory_format(x: Tensor, other: Tensor) -> Tensor:
    """x with the strides of `torch.empty_like(other)`, as the fakes of operators promise."""
    like = torch.empty_like(other, dtype=x.dtype)
    return x if x.stride() == like.stride() else like.copy_(x)


def image_format(x: Tensor) -> torch.memory_format:
    """The memory format of a result that is an image of another size than x."""
    return torch.contiguous_format if x.is_contiguous() else torch.channels_last


def image_like(y: Tensor, x: Tensor) -> Tensor:
    """y in `image_format(x)`."""
    return y.contiguous(memory_format=image_format(x))
