"""Times of single calls, and of functions that take turns."""

import time

import pytest
import torch

from resshift_fast.timing import WARM_UP, Clock, seconds, times

CPU = torch.device("cpu")


def test_all_take_turns_after_a_warm_up():
    order = []
    prepared = {name: lambda name=name: lambda: order.append(name) for name in "abc"}
    found = times(prepared, 3, Clock(CPU))
    assert "".join(order) == "a" * WARM_UP + "b" * WARM_UP + "c" * WARM_UP + "abc" + "bca" + "cab"
    assert {name: len(values) for name, values in found.items()} == {"a": 3, "b": 3, "c": 3}


def test_a_call_is_timed_and_its_result_kept():
    taken, result = seconds(lambda: time.sleep(0.02) or 7)
    assert taken >= 0.02 and result == 7
    assert Clock(CPU).milliseconds(lambda: time.sleep(0.02)) >= 20


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpus_work_is_timed_to_its_end():
    x = torch.randn(4096, 4096, device="cuda")
    clock = Clock(x.device)
    clock.milliseconds(lambda: x @ x)
    one, ten = (clock.milliseconds(lambda n=n: [x @ x for _ in range(n)]) for n in (1, 10))
    assert ten > 3 * one > 0
