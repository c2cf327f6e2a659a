"""How an operator becomes `torch.ops.resshift_fast.X`: schema, fake, gradient and the choice between backends.

The registered operator is opaque: to autograd, torch.compile and torch.export it is one node, and its kernel is chosen
when it runs, when all sizes are known. A plain eager call skips PyTorch's dispatcher, which would only pass it on, in
more time than many a kernel takes; where it is differentiated, it is a function of autograd's own.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial, wraps
from inspect import Parameter, Signature
from typing import Any, ParamSpec, TypedDict, TypeVar, get_type_hints

import torch
from torch import Tensor
from torch._C import (
    _are_functorch_transforms_active,
    _get_tracing_state,
    _len_torch_dispatch_stack,
    _len_torch_function_stack,
)
from torch._C._autograd import _profiler_enabled

from resshift_fast import backends
from resshift_fast.backends import Kernel, Operator
from resshift_fast.backends import native as libraries

NAMESPACE = __name__.partition(".")[0]  # "resshift_fast", or the name under which a copy of the package was loaded
_library = torch.library.Library(NAMESPACE, "DEF")

P = ParamSpec("P")
T = TypeVar("T")
R = TypeVar("R")


def takes(arguments: Callable[P, T]) -> Callable[[Callable[[T], R]], Callable[P, R]]:
    """Decorator that has a function of one structure called with the structure's fields, one by one.

    An operator with many arguments lists them once, in a NamedTuple; functions that need them all take that.

    Args:
        arguments: the NamedTuple.

    Example:
        >>> class Arguments(NamedTuple):
        ...     x: Tensor
        ...     eps: float = 1e-5
        >>> @takes(Arguments)
        ... def reference(a):
        ...     return a.x + a.eps
        >>> reference(torch.ones(1)).shape
        torch.Size([1])
    """
    # Without the fields' defaults: PyTorch would leave out arguments that equal a default of the schema.
    kind = Parameter.POSITIONAL_OR_KEYWORD
    parameters = [Parameter(name, kind, annotation=type_) for name, type_ in get_type_hints(arguments).items()]

    def decorate(function: Callable[[T], R]) -> Callable[P, R]:
        @wraps(function)
        def unpacked(*args: P.args, **kwargs: P.kwargs) -> R:
            return function(arguments(*args, **kwargs))

        returned = get_type_hints(function).get("return")
        vars(unpacked)["__signature__"] = Signature(parameters, return_annotation=returned)
        return unpacked

    return decorate


@dataclass(frozen=True)
class Native:
    """An operator's kernel in C++ or CUDA C++: `torch.ops.resshift_fast_<library>.<the operator's name>`.

    Args:
        adapt: the registered operator's arguments to the kernel's; None where they are the same.
        unsupported: as in `Kernel`, of the registered operator's arguments; float64 is refused anyway.
    """

    adapt: Callable[..., tuple[Any, ...]] | None = None
    unsupported: Callable[..., str | None] = lambda *_: None

    def load(self, library: str, operator: str) -> Kernel:
        """The kernel, from the library "cpu" or "cuda"."""
        kernel, adapt, unsupported = libraries.operator(library, operator), self.adapt, self.unsupported
        function = kernel if adapt is None else lambda *args: kernel(*adapt(*args))
        return Kernel(function, lambda *args: _float64(args) or unsupported(*args))


def _float64(args: tuple[Any, ...]) -> str | None:
    for x in args:
        if x is torch.float64 or (isinstance(x, Tensor) and x.dtype is torch.float64):
            return "an argument is float64"
    return None


def register(
    name: str,
    plain: Callable[..., Any],
    *,
    fake: Callable[..., Any],
    examples: Callable[[torch.device, torch.dtype], list[tuple[Any, ...]]],
    loaders: Mapping[str, Callable[[], Kernel] | Native] | None = None,
    dtypes: tuple[torch.dtype, ...] = (),
    training: bool = False,
    public: bool = True,
    matrix_operations: Callable[..., int] | None = None,
    backward: Callable[..., Any] | None = None,
    setup_context: Callable[..., None] | None = None,
) -> Callable[..., Any]:
    """Register an operator and return the function that calls it, with every argument by position.

    Args:
        name: its name in `torch.ops.resshift_fast`.
        plain: the operator in plain PyTorch. Its annotations are the schema; every output is new memory.
        fake: the same arguments to empty outputs of the right shapes, dtypes and strides.
        examples: small arguments on which a backend is verified.
        loaders: backend to the function that imports and returns its kernel, or to the kernel's description if it is in
            the compiled library of that name.
        dtypes, training, public, matrix_operations: as in `backends.Operator`.
        backward, setup_context: as in `torch.library.register_autograd`; None for an operator without gradient, through
            which nothing can be differentiated then.
    """
    _library.define(name + torch.library.infer_schema(plain, mutates_args=()))

    def implementation(*args: Any) -> Any:
        return backends.run(name, *args)

    _library.impl(name, implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=_library)
    backward = backward or _without_gradient(name)
    torch.library.register_autograd(f"{NAMESPACE}::{name}", backward, setup_context=setup_context, lib=_library)
    functions = {b: partial(x.load, b, name) if isinstance(x, Native) else x for b, x in (loaders or {}).items()}
    backends.add(Operator(name, plain, examples, functions, dtypes, training, matrix_operations, public))
    return _eager(
        name, getattr(getattr(torch.ops, NAMESPACE), name).default, _differentiated(name, backward, setup_context)
    )


def _without_gradient(name: str) -> Callable[..., Any]:
    """A backward that raises an error, where PyTorch would take what a kernel computed for a constant."""

    def backward(ctx: Any, *gradients: Any) -> Any:
        raise NotImplementedError(
            f"{name} has no gradient: it is a gradient itself, and a second derivative was asked for; "
            "plain PyTorch has one: use_backend('reference') around the call that is differentiated"
        )

    return backward


def _differentiated(
    name: str, backward: Callable[..., Any], setup_context: Callable[..., None] | None
) -> Callable[..., Any]:
    """The operator with its gradient, called in a third of the time that the registered one takes."""

    def forward(ctx: Any, *args: Any) -> Any:
        output = backends.run(name, *args)
        if setup_context is not None:
            setup_context(ctx, args, output)
        return output

    methods = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    function: Any = type(name, (torch.autograd.Function,), methods)
    apply: Callable[..., Any] = function.apply
    return apply


def _eager(name: str, registered: Any, differentiated: Callable[..., Any]) -> Callable[..., Any]:
    """The registered operator, called past the dispatcher where that would pass the very same arguments on.

    Autograd, autocast, modes, transforms and profilers all hook into the dispatcher; `run` itself turns autocast off.
    """
    expected = [TYPES.get(str(argument.real_type), ()) for argument in registered._schema.arguments]
    exact: set[tuple[type, ...]] = set()  # types of arguments that the dispatcher does not convert
    last: tuple[type, ...] = ()  # of them, compared in less time than it takes to hash

    def call(*args: Any) -> Any:
        nonlocal last
        if torch.compiler.is_compiling() or _is_watched():
            return registered(*args)
        types = tuple(map(type, args))
        if types == last or types in exact:
            last = types
            if torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in args):
                return differentiated(*args)
            return backends.run(name, *args)
        if len(types) == len(expected) and all(map(tuple.__contains__, expected, types)):
            exact.add(types)
        return registered(*args)

    return call


_NONE = type(None)
# Subclasses of a tensor, such as fakes, may have a dispatch of their own, and are not among these.
_TENSORS: tuple[type, ...] = (Tensor, torch.nn.Parameter)
TYPES: dict[str, tuple[type, ...]] = {
    "Tensor": _TENSORS,
    "Optional[Tensor]": (*_TENSORS, _NONE),
    "int": (int,),
    "float": (float,),
    "bool": (bool,),
    "str": (str,),
    "Optional[str]": (str, _NONE),
    "ScalarType": (torch.dtype,),
    "Optional[ScalarType]": (torch.dtype, _NONE),
}


def _is_watched() -> bool:
    """Whether a mode, a transform, a trace or a profiler is to see this thread's calls of operators."""
    return bool(
        _len_torch_dispatch_stack()
        or _len_torch_function_stack()
        or _are_functorch_transforms_active()
        or _get_tracing_state() is not None
        or _profiler_enabled()
    )


class Gradient(TypedDict):
    """What `register` takes for an operator that has a gradient."""

    backward: Callable[..., Any]
    setup_context: Callable[..., None]


def recomputed(plain: Callable[..., Any]) -> Gradient:
    """Gradient of an operator by running `plain` again: `backward` and `setup_context` for `register`.

    Only the arguments are saved, so that no intermediate result lives from forward to backward. The gradient can be
    differentiated again, as that of `plain`.
    """

    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        again = torch.is_grad_enabled()  # where the gradient is differentiated itself
        args = saved_arguments(ctx)
        wanted = [i for i, needed in enumerate(ctx.needs_input_grad) if needed]
        with torch.enable_grad():
            for i in wanted:
                args[i].requires_grad_()
            outputs = plain(*args)
            outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
            pairs = [(y, dy) for y, dy in zip(outputs, gradients, strict=True) if dy is not None and y.requires_grad]
            found = torch.autograd.grad(
                [y for y, _ in pairs],
                [args[i] for i in wanted],
                [dy for _, dy in pairs],
                create_graph=again,
                allow_unused=True,
            )
        results: list[Tensor | None] = [None] * len(args)
        for i, gradient in zip(wanted, found, strict=True):
            results[i] = gradient
        return tuple(results)

    return {"backward": backward, "setup_context": save_arguments}


def with_gradient(plain: Callable[..., Any], gradient: Callable[..., Any]) -> Gradient:
    """A faster gradient than that of `recomputed`, which takes its place where the gradient is differentiated itself.

    Args:
        plain: as of `recomputed`, with one output.
        gradient: from the output's gradient, the operator's arguments, and for each whether its gradient is wanted, to
            the gradients of the arguments, None where there is none.
    """
    again = recomputed(plain)["backward"]

    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        found = again(ctx, dy) if torch.is_grad_enabled() else gradient(dy, saved_arguments(ctx), ctx.needs_input_grad)
        gradients: tuple[Tensor | None, ...] = found
        return gradients

    return {"backward": backward, "setup_context": save_arguments}


def save_arguments(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    """Save an operator's arguments for its gradient: `setup_context` for `register`."""
    ctx.save_for_backward(*(x for x in inputs if isinstance(x, Tensor)))
    ctx.others = tuple(None if isinstance(x, Tensor) else (x,) for x in inputs)


def saved_arguments(ctx: Any) -> list[Any]:
    """The arguments that `save_arguments` saved; a graph of the gradient starts at them where there is one."""
    again = torch.is_grad_enabled()
    # Aliases, so that no gradient takes the way from one argument to another that was computed from it.
    saved = (x.view_as(x) if again else x.detach() for x in ctx.saved_tensors)
    return [next(saved) if other is None else other[0] for other in ctx.others]
