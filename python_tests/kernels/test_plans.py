"""Cached plans of launchers: their keys, how many are kept, and when they are discarded."""

import threading

import pytest
import torch

from resshift_fast.kernels import plans, tuning
from resshift_fast.kernels.plans import planned
from resshift_fast.kernels.tuning import Config, Space

CPU, META = torch.device("cpu"), torch.device("meta")


@pytest.fixture
def space():
    """A space whose default names the architecture."""
    return Space("test", candidates=lambda bucket: [], default=lambda arch, bucket: Config({"ARCH": arch}))


def test_a_plan_is_made_once_for_equal_arguments():
    made = []

    @planned()
    def plan(*arguments):
        made.append(arguments)
        return len(made)

    x = torch.empty(2, 3)
    assert plan(CPU, x.shape, x.dtype, None) == plan(CPU, (2, 3), torch.float32, None) == 1
    assert plan(CPU, x.t().shape, x.dtype, None) == 2
    assert plan(CPU, x.shape, torch.float16, None) == 3
    assert plan(META, x.shape, x.dtype, None) == 4
    assert len(made) == 4


def test_the_number_of_cached_plans_is_limited(monkeypatch):
    monkeypatch.setattr(plans, "PLANS", 3)
    made = []

    @planned()
    def plan(n):
        made.append(n)
        return n

    for _ in range(2):
        assert [plan(CPU, n) for n in (0, 1, 2)] == [0, 1, 2]
    assert made == [0, 1, 2]
    assert [plan(CPU, n) for n in (3, 3, 0)] == [3, 3, 0]
    assert made == [0, 1, 2, 3, 0]


def test_a_plan_follows_the_tuners_choice(space):
    @planned(space, lambda shape: shape)
    def plan(config, shape):
        return config.blocks["ARCH"], shape

    first = plan(CPU, (4,))
    assert plan(CPU, (4,)) is first
    with tuning.targeting(90):
        assert plan(CPU, (4,)) == (90, (4,))
        with tuning.targeting(100):
            assert plan(CPU, (4,)) == (100, (4,))
        assert plan(CPU, (4,)) == (90, (4,))
    assert plan(CPU, (4,)) == first


def test_plans_are_not_cached_while_candidates_are_timed(monkeypatch):
    trials, chosen = [], iter((1, 2, 3, 4))

    class FakeSpace:
        def config(self, bucket, device, trial):
            assert bucket == (8,) and device == CPU
            if trial is not None:
                trial(Config({"N": 0}))
            return Config({"N": next(chosen)})

    @planned(FakeSpace(), lambda n: (2 * n,))
    def plan(config, n):
        return config.blocks["N"], n

    assert plan(CPU, 4) == plan(CPU, 4) == (1, 4)
    with tuning.measuring():
        assert [plan(CPU, 4, trial=trials.append) for _ in range(2)] == [(2, 4), (3, 4)]
    assert trials == [(0, 4), (0, 4)]
    assert plan(CPU, 4) == (1, 4)  # the plan cached before
    tuning.renew()
    assert plan(CPU, 4) == plan(CPU, 4) == (4, 4)


def test_threads_get_equal_plans():
    @planned()
    def plan(n):
        return [n]

    wrong = []

    def work():
        wrong.extend(n for n in range(3000) if plan(CPU, n) != [n])

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
