"""`pairwise`: few cases that have all combinations of the values of any two or three arguments."""

from itertools import combinations, product

import pytest
import torch
from pairwise import pairwise

AXES = {"a": range(7), "b": "xyz", "c": {"no": False, "yes": True}, "d": [torch.float32, torch.float16]}


def cases_of(mark):
    """(names, cases, ids) of a mark."""
    names, parameters = mark.args
    return names.split(", "), [case.values for case in parameters], [case.id for case in parameters]


@pytest.mark.parametrize("strength, most", [(2, 24), (3, 50)])
def test_every_combination_is_in_some_case(strength, most):
    names, cases, ids = cases_of(pairwise(strength=strength, **AXES))
    values = [list(axis.values() if isinstance(axis, dict) else axis) for axis in AXES.values()]
    assert names == list(AXES) and len(cases) <= most and len(set(ids)) == len(cases)
    for axes in combinations(range(4), strength):
        found = {tuple(case[i] for i in axes) for case in cases}
        assert found == set(product(*(values[i] for i in axes)))


def test_only_combinations_that_are_not_allowed_are_left_out():
    _, cases, _ = cases_of(pairwise(allowed=lambda case: case["a"] != 0 or case["c"], **AXES))
    assert (0, False) not in {(case[0], case[2]) for case in cases}
    assert {(case[0], case[1]) for case in cases} == set(product(range(7), "xyz"))


def test_cases_are_the_same_every_time_and_named_after_their_values():
    assert cases_of(pairwise(**AXES)) == cases_of(pairwise(**AXES))
    assert cases_of(pairwise(d=[torch.float16], c={"no": False}, a=[(1, 2)]))[2] == ["float16-no-1x2"]


def test_two_axes_are_combined_in_full():
    assert len(cases_of(pairwise(a=range(3), b=range(5)))[1]) == 15


@pairwise(isa={"portable": 0}, value=[1])
def test_fixtures_are_given_their_values(isa, value):
    assert (isa, value) == ("fixture 0", 1)


@pytest.fixture
def isa(request):
    return f"fixture {request.param}"
