"""Times of single calls, and of functions that are called in turn."""

import time

import pytest
import torch

from resshift_fast.measure.timing import WARM_UP, Clock, seconds, times

CPU = torch.device("cpu")


def test_functions_take_turns_after_a_warm_up():
    order = []
    prepared = {name: lambda name=name: lambda: order.append(name) for name in "abc"}
    found = times(prepared, 3, Clock(CPU))
    assert "".join(order) == "a" * WARM_UP + "b" * WARM_UP + "c" * WARM_UP + "abc" + "bca" + "cab"
    assert {name: len(values) for name, values in found.items()} == {"a": 3, "b": 3, "c": 3}


def test_a_call_is_timed_and_its_result_kept():
    taken, result = seconds(lambda: time.sleep(0.02) or 7)
    assert taken >= 0.02 and result == 7
    assert Clock(CPU).timer(lambda: lambda: time.sleep(0.02))() >= 20


def test_on_the_cpu_preparation_is_not_timed():
    prepared = []
    timer = Clock(CPU).timer(lambda: time.sleep(0.02) or prepared.append(1) or (lambda: None))
    assert timer() < 10 and timer() < 10 and len(prepared) == 2


class FakeWatch:
    """A fake of a GPU's stopwatch; its times show which method was called."""

    def replays(self, call):
        call()
        return lambda: 1.0

    def behind_spin(self, prepare):
        return lambda: prepare()() or 2.0


def test_on_a_gpu_a_graph_is_replayed_or_with_once_a_call_is_run_behind_a_spin():
    runs = []
    prepared = {"a": lambda: lambda: runs.append("a"), "b": lambda: lambda: runs.append("b")}
    clock = Clock(CPU, FakeWatch())
    assert times(prepared, 3, clock) == {"a": 3 * [1.0], "b": 3 * [1.0]} and runs == ["a", "b"]
    assert times(prepared, 3, clock, once=True) == {"a": 3 * [2.0], "b": 3 * [2.0]}
    assert len(runs) == 2 + 2 * (3 + WARM_UP)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("once", [False, True], ids=["replayed", "once"])
def test_a_gpus_work_is_timed_until_it_ends(once):
    x = torch.randn(4096, 4096, device="cuda")
    clock = Clock(x.device)
    one, ten = (clock.timer(lambda n=n: lambda: [x @ x for _ in range(n)], once) for n in (1, 10))
    assert min(ten() for _ in range(3)) > 3 * min(one() for _ in range(3)) > 0
