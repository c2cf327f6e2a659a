"""Choosing a backend: by block, by environment, and refused with the reason."""

import pytest
import torch

from resshift_fast import Pipeline, backends, ops, use_backend
from resshift_fast.backends import BACKENDS, VARIABLE, check, preferred, status


@pytest.fixture(autouse=True)
def no_choice_in_the_environment(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)


def test_auto_is_the_default():
    assert preferred() == "auto"


@pytest.mark.parametrize("name", ["auto", "reference"])
def test_a_block_prefers_a_backend_and_gives_it_back(name):
    with use_backend(name):
        assert preferred() == name
        with use_backend("reference"):
            assert preferred() == "reference"
        assert preferred() == name
    assert preferred() == "auto"


def test_a_block_that_fails_gives_the_choice_back():
    with pytest.raises(KeyError), use_backend("reference"):
        raise KeyError
    assert preferred() == "auto"


def test_the_environment_chooses_where_no_block_does(monkeypatch):
    monkeypatch.setenv(VARIABLE, "reference")
    assert preferred() == "reference"
    monkeypatch.setenv(VARIABLE, "")
    assert preferred() == "auto"


@pytest.mark.parametrize("name", sorted(set(BACKENDS) - set(backends.AVAILABLE)))
def test_a_backend_without_kernels_is_refused_with_the_reason(name):
    with pytest.raises(ValueError, match=f"{name!r} has no kernels in this build; use 'auto' or 'reference'"):
        check(name)
    with pytest.raises(ValueError, match="no kernels"), use_backend(name):
        pytest.fail("the block must not run")
    assert preferred() == "auto"


def test_an_unknown_backend_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="unknown backend 'tpu', expected one of auto, reference, cpu, triton, cuda"):
        use_backend("tpu").__enter__()


def test_a_bad_choice_in_the_environment_stops_the_building_of_a_pipeline(monkeypatch):
    monkeypatch.setenv(VARIABLE, "triton")
    with pytest.raises(ValueError, match="triton"):
        Pipeline.from_pretrained("nano-x4", random_weights=True)


def test_status_lists_every_operator_with_a_reason():
    rows = status()
    assert [name for name, _, _ in rows] == sorted(ops.__all__)
    assert all(chosen in BACKENDS and why for _, chosen, why in rows)


def test_operators_run_the_same_under_either_choice():
    x, weight, bias = torch.randn(1, 32, 4, 4), torch.rand(32), torch.rand(32)
    results = []
    for name in ("auto", "reference"):
        with use_backend(name):
            results.append(ops.group_norm(x, 32, weight, bias))
    torch.testing.assert_close(*results)
