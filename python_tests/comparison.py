"""Comparisons for tests: relative errors, operators against float64 formulas, and the size of the largest tensor."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from resshift_fast.core.accuracy import errors, limits

# Largest relative error allowed against float64; `check_operator` lowers it where plain PyTorch is more accurate.
LIMITS = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
DTYPES = tuple(LIMITS)


def name_of(dtype: torch.dtype) -> str:
    """ "float32" for torch.float32: for the ids of tests."""
    return str(dtype).removeprefix("torch.")


def double(arguments) -> list:
    """An operator's arguments with floating-point tensors, and dtypes that it is asked for, in float64."""
    wide = (x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for x in arguments)
    return [torch.float64 if isinstance(x, torch.dtype) else x for x in wide]


def relative_error(ours, reference) -> float:
    """‖ours − reference‖ / ‖reference‖ in float64; ‖ours‖ for a reference of zeros. Arrays are accepted."""
    return errors(torch.as_tensor(ours), torch.as_tensor(reference)).relative


def assert_close(name: str, ours, reference, ratio: float) -> None:
    """Fail unless `ours` has the reference's shape and at most `ratio` relative error, and no element far more.

    NaN fails. See `resshift_fast.core.accuracy` for the error of an element.
    """
    ours, reference = torch.as_tensor(ours), torch.as_tensor(reference)
    assert ours.shape == reference.shape, f"{name}: shape {tuple(ours.shape)}, expected {tuple(reference.shape)}"
    if problem := errors(ours, reference).problem(limits(ours.dtype, limit=ratio)):
        difference = (ours.detach().double() - reference.detach().double()).abs().nan_to_num(torch.inf)
        place = tuple(int(i) for i in torch.unravel_index(difference.argmax(), difference.shape))
        raise AssertionError(
            f"{name}: {problem}; worst at {place}: {ours[place].item():.7g}, expected {reference[place].item():.7g}"
        )


def _run(function: Callable, tensors: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Outputs, and the gradients of their sum with fixed random weights, which are rounded to `dtype`.

    The gradient of a tensor that the outputs do not depend on is zero.
    """
    outputs = function(**tensors)
    outputs = [outputs] if isinstance(outputs, Tensor) else [x for x in outputs if x.dtype.is_floating_point]
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(x.shape, generator=generator).to(dtype).to(x.dtype) for x in outputs]
    torch.autograd.backward(outputs, weights)
    results = {f"output {i}": x.detach() for i, x in enumerate(outputs)}
    gradients = {name: torch.zeros_like(x) if x.grad is None else x.grad for name, x in tensors.items()}
    return results | {f"gradient of {name}": gradient for name, gradient in gradients.items()}


def check_operator(
    op: Callable,
    plain: Callable,
    exact: Callable,
    tensors: dict[str, Tensor],
    dtype: torch.dtype,
    limit: float | None = None,
) -> None:
    """Compare outputs and gradients of `op` in `dtype` with those of `exact` in float64.

    In a 16-bit dtype the error may be at most twice that of the plain PyTorch path `plain` in the same dtype: a fixed
    limit would have to be wide, and would hide a less accurate backend. All three functions take `tensors` by keyword;
    strides are kept.
    """
    rounded = {name: x.detach().to(dtype) for name, x in tensors.items()}
    reference = _run(exact, {name: x.double().requires_grad_() for name, x in rounded.items()}, dtype)
    ours = _run(op, {name: x.detach().requires_grad_() for name, x in rounded.items()}, dtype)
    theirs = _run(plain, {name: x.detach().requires_grad_() for name, x in rounded.items()}, dtype)
    assert ours.keys() == reference.keys()
    for name, value in ours.items():
        allowed = limit or LIMITS[dtype]
        if dtype in (torch.float16, torch.bfloat16):
            allowed = min(allowed, 2 * relative_error(theirs[name], reference[name]) + torch.finfo(dtype).eps / 8)
        assert value.dtype == dtype, f"{name} is {value.dtype}, expected {dtype}"
        assert_close(name, value, reference[name], allowed)


def layouts(x: Tensor) -> dict[str, Tensor]:
    """Tensors of x's shape in other memory layouts; all but "expanded", which repeats image 0, hold x's values."""
    strided = x.new_full((*x.shape[:-1], 2 * x.shape[-1]), torch.nan)[..., ::2]
    offset = x.new_full((x.shape[0], x.shape[1] + 2, *x.shape[2:]), torch.nan)[:, 1:-1]
    transposed = x.transpose(2, 3).contiguous().transpose(2, 3)
    return {
        "channels_last": x.contiguous(memory_format=torch.channels_last),
        "strided": strided.copy_(x),
        "offset": offset.copy_(x),
        "transposed": transposed,
        "expanded": x[:1].expand_as(x),
    }


LAYOUTS = ("channels_last", "strided", "offset", "transposed", "expanded")


class LargestTensor(TorchDispatchMode):
    """Records the bytes of the largest storage that any operator returned within the context."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            if isinstance(x, Tensor):
                self.bytes = max(self.bytes, x.untyped_storage().nbytes())
        return result


def tied_pixels(latent, codebook):
    """Bool mask [B, h, w] of pixels whose distances to the two nearest codebook entries differ by at most 1e-5.

    Decoding rounds to codebook entries. Two of the 4,096 pixels of the official sample are such ties, one to 5e-7:
    there the order of summation decides. All other pixels must choose the same entry as the official system.
    """
    vectors = latent.double().permute(0, 2, 3, 1)
    nearest = [torch.cdist(row, codebook.double()).topk(2, largest=False).values for row in vectors.flatten(0, 1)]
    distances = torch.stack(nearest).view(*vectors.shape[:3], 2)
    return distances[..., 1] - distances[..., 0] <= 1e-5
