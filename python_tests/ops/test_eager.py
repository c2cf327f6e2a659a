"""Eager calls that skip PyTorch's dispatcher; modes, profilers and tracers that hook into it see the operator."""

import contextlib

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from resshift_fast import backends, ops
from resshift_fast.ops import registration

OVERLOAD = torch.ops.resshift_fast.group_norm.default
X, ONES, ZEROS = torch.randn(2, 8, 5, 7), torch.ones(8), torch.zeros(8)


def call(x=X, weight=ONES, bias=ZEROS, eps=1e-5):
    return ops.group_norm(x, 4, weight, bias, eps, activation="silu")


@pytest.fixture
def skipped(monkeypatch):
    """Records the arguments of calls that reach `backends.run` without the dispatcher."""
    calls = []
    run = backends.run
    inside = []

    def watched(name, *args):
        if not inside:
            calls.append(args)
        inside.append(name)
        try:
            return run(name, *args)
        finally:
            inside.pop()

    original = type(OVERLOAD).__call__

    def dispatched(self, *args, **kwargs):
        inside.append("dispatcher")
        try:
            return original(self, *args, **kwargs)
        finally:
            inside.pop()

    monkeypatch.setattr(backends, "run", watched)
    monkeypatch.setattr(type(OVERLOAD), "__call__", dispatched)
    with torch.inference_mode():
        call()  # the first call of these types goes through the dispatcher
    calls.clear()
    return calls


def test_a_plain_call_in_inference_mode_skips_the_dispatcher(skipped):
    with torch.inference_mode():
        y = call()
        expected = OVERLOAD(X, 4, ONES, ZEROS, 1e-5, None, None, "silu")[0]
    assert len(skipped) == 1
    assert y.equal(expected) and y.is_inference()


@pytest.mark.parametrize("context", [contextlib.nullcontext, torch.no_grad], ids=["grad", "no_grad"])
def test_so_does_one_that_is_not_differentiated(skipped, context):
    with context():
        y = call()
    assert len(skipped) == 1 and not y.requires_grad and not y.is_inference()


def test_a_differentiated_call_skips_it_and_has_the_registered_gradients(skipped):
    ours, theirs = ([x.clone().requires_grad_() for x in (X, ONES, ZEROS)] for _ in range(2))
    y = call(*ours)
    assert len(skipped) == 1
    expected = OVERLOAD(theirs[0], 4, *theirs[1:], 1e-5, None, None, "silu")[0]
    assert y.equal(expected)
    for found, one in zip(torch.autograd.grad(y.sum(), ours), torch.autograd.grad(expected.sum(), theirs), strict=True):
        assert found.equal(one)


def test_only_what_needs_a_gradient_gets_one(skipped):
    weight = ONES.clone().requires_grad_()
    call(weight=weight).sum().backward()
    assert len(skipped) >= 1 and weight.grad is not None and X.grad is None


def test_a_change_of_what_is_saved_is_an_error(skipped):
    x = X.clone().requires_grad_()
    copy = x.clone()
    y = call(copy)
    copy.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


class SeesOperators(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.seen.append(function)
        return function(*args, **(kwargs or {}))


class SeesFunctions(TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.seen.append(function)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("mode", [SeesOperators, SeesFunctions])
def test_modes_see_the_operator(skipped, mode):
    with torch.inference_mode(), mode() as watcher:
        call()
    assert OVERLOAD in watcher.seen and not skipped


def test_the_profiler_sees_the_operator(skipped):
    with torch.inference_mode(), torch.profiler.profile() as profile:
        call()
    assert "resshift_fast::group_norm" in {event.name for event in profile.events()} and not skipped


class Tagged(torch.Tensor):
    """A tensor subclass with its own dispatch."""

    seen: list = []  # noqa: RUF012

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        cls.seen.append(function)
        with torch._C._DisableTorchDispatch():
            return function(*args, **(kwargs or {}))


def test_a_subclass_uses_its_own_dispatch(skipped):
    Tagged.seen.clear()
    with torch.inference_mode():
        call(X.clone().as_subclass(Tagged))
    assert OVERLOAD in Tagged.seen


def test_fake_tensors_stay_fake_outside_their_mode(skipped):
    with torch.inference_mode():
        mode = FakeTensorMode()
        y = call(*(mode.from_tensor(x) for x in (X, ONES, ZEROS)))
    assert isinstance(y, FakeTensor) and not skipped


@pytest.mark.parametrize("pre_dispatch", [False, True])
def test_make_fx_records_the_operator(skipped, pre_dispatch):
    with torch.inference_mode():
        graph = make_fx(lambda x: call(x), pre_dispatch=pre_dispatch)(X.clone())
    assert OVERLOAD in {node.target for node in graph.graph.nodes} and not skipped


# torch.jit.trace is deprecated, and warns that argument checks turn sizes into constants.
@pytest.mark.filterwarnings("ignore:.*torch.jit.trace.*deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_trace_records_the_operator(skipped):
    with torch.inference_mode():
        traced = torch.jit.trace(call, X.clone(), check_trace=False)
    assert any(node.kind() == "resshift_fast::group_norm" for node in traced.graph.nodes())
    assert not skipped


def test_transforms_go_through_the_dispatcher(skipped):
    with torch.inference_mode(), contextlib.suppress(RuntimeError):  # the operator has no rule for vmap
        torch.func.vmap(lambda x: call(x))(torch.stack([X, X]))
    assert not skipped


def test_arguments_that_need_conversion_go_through_the_dispatcher(skipped):
    with torch.inference_mode():
        y = call(eps=1)
        exact = call(eps=1.0)
    assert [args[4] for args in skipped] == [1.0] and isinstance(skipped[0][4], float)
    assert y.equal(exact)


def test_parameters_are_plain_tensors(skipped):
    with torch.inference_mode():
        weight, bias = torch.nn.Parameter(ONES.clone()), torch.nn.Parameter(ZEROS.clone())
        call(weight=weight, bias=bias)
        skipped.clear()
        call(weight=weight, bias=bias)
    assert len(skipped) == 1


def test_autocast_changes_nothing(skipped):
    with torch.inference_mode():
        expected = call()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = call()
    assert y.dtype == torch.float32 and y.equal(expected)


@pytest.mark.parametrize("name", sorted(backends.OPERATORS))
def test_every_operators_arguments_have_known_types(name):
    """A call with an argument of an unknown type always goes through the dispatcher, which is slower."""
    overload = getattr(torch.ops.resshift_fast, name).default
    assert {str(a.real_type) for a in overload._schema.arguments} <= registration.TYPES.keys()
