"""The stopwatch for GPU work: its arithmetic on a simulated device, its accuracy on a real one."""

import pytest
import torch

from resshift_fast.core.stopwatch import MOST_CALLS, SPINS_MS, Stopwatch

FLUSH_MS = 0.04
GRAPH_MS = 0.01  # added to every graph


class Simulated:
    """A device whose work has known durations; the host takes `host` ms for a call outside a graph."""

    def __init__(self, host=0.08, capturable=True):
        self.host, self.capturable = host, capturable
        self.queue, self.flushed, self.cold = None, 0, True
        self.captures = []  # pieces of work in each

    def work(self, ms):
        """A call that takes `ms` after a flush, with a cold cache, and half as long with a warm one."""

        def call():
            self.add(ms if self.cold else ms / 2)
            self.cold = False

        return call

    def add(self, ms):
        if self.queue is not None:
            self.queue.append(ms)

    def flush(self):
        self.flushed += 1
        self.cold = True
        self.add(FLUSH_MS)

    def capture(self, call):
        if not self.capturable:
            raise RuntimeError("operation not permitted when stream is capturing")
        self.queue, captured = [], self.queue
        try:
            call()
            work = sum(self.queue)
            self.captures.append(len(self.queue))
        finally:
            self.queue = captured
        return lambda: self.add(GRAPH_MS + work)

    def elapsed(self, call, spin):
        self.queue = []
        call()
        taken, self.queue = sum(self.queue), None
        queued = self.capturable or spin > self.host
        return (taken if queued else taken + self.host), queued


@pytest.mark.parametrize("ms", [0.003, 0.05, 0.3, 7.0])
def test_calls_are_timed_cold_and_without_flush_graph_or_host(ms):
    device = Simulated()
    replay = Stopwatch(device).replays(device.work(ms))
    assert replay() == pytest.approx(ms, abs=1e-9) == replay()


def test_short_calls_share_a_graph_and_long_ones_do_not():
    for ms, calls in ((0.003, MOST_CALLS), (0.1, 4), (7.0, 1)):
        device = Simulated()
        Stopwatch(device).replays(device.work(ms))
        assert max(device.captures) == 2 * calls


def test_graphs_of_flushes_are_captured_once():
    device = Simulated()
    watch = Stopwatch(device)
    for _ in range(3):
        watch.replays(device.work(0.003))
    assert sorted(device.captures) == [1] + 3 * [2] + [MOST_CALLS] + 3 * [2 * MOST_CALLS]


def test_a_call_that_cannot_be_captured_is_queued_behind_a_spin_that_is_long_enough():
    device = Simulated(host=2.0, capturable=False)
    spins, elapsed = [], device.elapsed
    device.elapsed = lambda call, spin: spins.append(spin) or elapsed(call, spin)
    timer = Stopwatch(device).replays(device.work(0.05))
    assert timer() == timer() == pytest.approx(0.05)
    assert spins == [*SPINS_MS[:3], SPINS_MS[2]]


def test_a_call_that_waits_for_the_device_is_timed_with_the_host():
    device = Simulated(host=1e9, capturable=False)
    assert Stopwatch(device).replays(device.work(0.05))() == pytest.approx(1e9)


def test_every_run_behind_a_spin_is_prepared():
    device, prepared = Simulated(host=2.0, capturable=False), []
    timer = Stopwatch(device).behind_spin(lambda: prepared.append(1) or device.work(0.05))
    timer()
    assert len(prepared) == 3 == device.flushed


def test_out_of_memory_errors_are_passed_on():
    device = Simulated()

    def full(call):
        raise torch.OutOfMemoryError

    device.capture = full
    with pytest.raises(torch.OutOfMemoryError):
        Stopwatch(device).replays(device.work(1.0))


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture
def cuda():
    return torch.device("cuda", torch.cuda.current_device())


def middle(timer, runs=9):
    return sorted(timer() for _ in range(runs))[runs // 2]


@needs_gpu
@pytest.mark.parametrize("way", ["graph", "spin"])
@pytest.mark.parametrize("cycles", [40_000, 2_000_000])
def test_a_spin_of_known_length_is_timed_accurately(cycles, way, cuda):
    def call():
        torch.cuda._sleep(cycles)

    watch = Stopwatch(cuda)
    found = middle(watch.replays(call) if way == "graph" else watch.behind_spin(lambda: call))
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(2_000_000)  # lets the host run ahead of the device
    start.record()
    for _ in range(50):
        call()
    end.record()
    end.synchronize()
    assert found == pytest.approx(start.elapsed_time(end) / 50, rel=0.1, abs=0.003)


@needs_gpu
def test_empty_and_tiny_calls_take_less_than_5_microseconds(cuda):
    x = torch.zeros(1, device=cuda)
    watch = Stopwatch(cuda)
    assert middle(watch.replays(lambda: None)) < 0.005
    assert middle(watch.replays(lambda: x.add_(1))) < 0.005


@needs_gpu
def test_a_stopwatch_made_in_inference_mode_works_outside(cuda):
    with torch.inference_mode():
        watch = Stopwatch(cuda)
        assert middle(watch.behind_spin(lambda: lambda: None)) < 0.01
    assert middle(watch.behind_spin(lambda: lambda: None)) < 0.01


@needs_gpu
def test_time_of_the_host_is_not_counted(cuda):
    x = torch.zeros(1, device=cuda)
    assert middle(Stopwatch(cuda).behind_spin(lambda: lambda: [x.add_(1) for _ in range(20)])) < 0.1


@needs_gpu
def test_tensors_are_read_from_memory_not_from_the_cache(cuda):
    x = torch.zeros(1 << 21, device=cuda)  # 8 MiB, which fit into the level-2 cache of any supported GPU
    y = torch.empty_like(x)
    watch = Stopwatch(cuda)
    cold = middle(watch.replays(lambda: torch.neg(x, out=y)))
    twice = middle(watch.replays(lambda: (torch.neg(x, out=y), torch.neg(x, out=y))))
    assert twice - cold < cold


@needs_gpu
def test_a_call_that_synchronizes_is_timed(cuda):
    x = torch.ones(1 << 20, device=cuda)
    watch = Stopwatch(cuda)
    assert 0 < middle(watch.replays(lambda: x.sum().item())) < 5
    assert torch.cuda.is_current_stream_capturing() is False and x.sum().item() == 1 << 20


@needs_gpu
def test_graphs_are_captured_while_another_thread_allocates(cuda):
    from threading import Event, Thread

    done = Event()

    def allocate():
        size = 1 << 22
        while not done.is_set():
            torch.empty(size, device=cuda)
            size = size + (1 << 21) if size < 1 << 28 else 1 << 22  # larger than freed blocks: the driver allocates

    thread = Thread(target=allocate)
    thread.start()
    try:
        x = torch.zeros(1 << 16, device=cuda)
        assert 0 <= middle(Stopwatch(cuda).replays(lambda: x.add_(1))) < 1
    finally:
        done.set()
        thread.join()
