"""The cache of checked arguments: which calls share an entry, and that no invalid call does."""

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from resshift_fast import ops
from resshift_fast.ops import checks


@pytest.fixture
def check():
    """A cached check of a tensor's columns and of a name; `runs` lists the arguments of each execution."""
    runs = []

    @checks.once
    def checked(x: torch.Tensor, columns: int, name: str | None):
        runs.append((x, columns, name))
        checks.shape("op", "x", x, (2, columns))
        if name == "wrong":
            raise ValueError("op: name is wrong")

    checked.runs = runs
    return checked


def test_equal_arguments_are_not_checked_again(check):
    for _ in range(3):
        check(torch.empty(2, 3), 3, None)
    check(torch.empty(3, 2).t(), 3, None)  # strides are not compared
    assert len(check.runs) == 1


@pytest.mark.parametrize(
    "other",
    [
        (torch.empty(2, 3, dtype=torch.float16), 3, None),
        (torch.empty(2, 3, device="meta"), 3, None),
        (torch.empty(2, 4), 4, None),
        (torch.empty(2, 3), 3, "name"),
    ],
    ids=["dtype", "device", "shape", "name"],
)
def test_other_arguments_are_checked(check, other):
    check(torch.empty(2, 3), 3, None)
    check(*other)
    assert len(check.runs) == 2


def test_an_optional_tensor_is_part_of_the_key():
    runs = []

    @checks.once
    def checked(x: torch.Tensor | None):
        runs.append(x)

    for x in (None, None, torch.zeros(3), torch.ones(3), torch.ones(4), torch.ones(4).half(), None):
        checked(x)
    assert len(runs) == 4


def test_invalid_arguments_raise_every_time(check):
    check(torch.empty(2, 3), 3, None)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"x has shape \(2, 4\), expected \(2, 3\)"):
            check(torch.empty(2, 4), 3, None)
        with pytest.raises(ValueError, match="name is wrong"):
            check(torch.empty(2, 3), 3, "wrong")
        with pytest.raises(TypeError, match=r"x must be a torch.Tensor, got Size"):
            check(torch.Size((2, 3)), 3, None)
        with pytest.raises(TypeError, match="got list"):
            check([2, 3], 3, None)


def test_the_cache_is_bounded(check, monkeypatch):
    monkeypatch.setattr(checks, "CACHE_SIZE", 2)
    for columns in (1, 2, 3, 1):
        check(torch.empty(2, columns), columns, None)
    assert len(check.runs) == 4


def test_symbolic_sizes_are_checked_every_time(check):
    def twice(x):
        for _ in range(2):
            check(x, x.shape[1], None)
        return x + 1

    make_fx(twice, tracing_mode="symbolic")(torch.empty(2, 7))
    assert len(check.runs) == 2 and isinstance(check.runs[0][1], torch.SymInt)


def test_one_graph_serves_every_size():
    weight = torch.randn(8)
    torch._dynamo.reset()
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(
        lambda x: ops.group_norm(x, 4, weight, weight), backend=backend, fullgraph=True, dynamic=True
    )
    with torch.no_grad():
        for side in (4, 5, 6):
            x = torch.randn(2, 8, side, side + 1)
            torch.testing.assert_close(compiled(x), ops.group_norm(x, 4, weight, weight))
    assert len(graphs) == 1


def test_an_invalid_call_after_a_similar_valid_one_is_refused():
    x, weight = torch.randn(2, 8, 5, 5), torch.randn(8)
    ops.group_norm(x, 4, weight, weight)
    with pytest.raises(ValueError, match="8 channels do not divide into 3 groups"):
        ops.group_norm(x, 3, weight, weight)
    with pytest.raises(TypeError, match="weight has dtype torch.float64"):
        ops.group_norm(x, 4, weight.double(), weight)
    with pytest.raises(ValueError, match=r"activation is \['silu'\]"):
        ops.group_norm(x, 4, weight, weight, activation=["silu"])
