"""Counters of launches: one set for each stream and each graph."""

import threading

import pytest
import torch

from resshift_fast.core.counters import counters, reserved


@pytest.mark.skipif(not torch.cuda.is_available(), reason="streams and graphs are those of a GPU")
def test_streams_and_graphs_have_counters_of_their_own(device):
    x = torch.empty(1, device="cuda")
    first = counters(x, 5)
    assert counters(x, 7) is first
    with torch.cuda.stream(torch.cuda.Stream()):
        assert counters(x, 5) is not first
    with reserved(x.device) as own:
        assert counters(x, 5) is first
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            assert counters(x, 5) is own
            assert counters(x, own.numel() + 1) is not own
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        assert counters(x, 5) is not first


def test_counters_on_a_cpu_belong_to_one_launch():
    x = torch.empty(1)
    found = []
    thread = threading.Thread(target=lambda: found.append(counters(x, 2)))
    thread.start()
    thread.join()
    assert counters(x, 2) is not found[0] and not found[0].any()
