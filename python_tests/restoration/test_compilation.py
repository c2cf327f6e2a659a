"""torch.compile of a pipeline, and the cache of CUDA graphs with a stand-in for the capture where there is no GPU."""

import pickle
from copy import deepcopy
from threading import Thread, get_ident
from time import sleep

import pytest
import torch
from pipelines import fresh
from torch._dynamo.testing import CompileCounterWithBackend

from resshift_fast import Pipeline, use_backend
from resshift_fast.restoration import compilation
from resshift_fast.restoration.compilation import GraphCache, RepeatedGraphs, compiled


class Recorder:
    """Captures by running the function, and replays into the same results, as a graph does."""

    def __init__(self):
        self.captured, self.tuned = [], []

    def __call__(self, function, arguments, pool, tune):
        results = function(*arguments)
        self.captured.append(arguments)
        self.tuned.append(tune)

        def replay():
            for held, new in zip(results, function(*arguments), strict=True):
                held.copy_(new)

        return replay, results


def double(x, offset=None, extras=None):
    total = 2 * x
    if offset is not None:
        total = total + offset
    for extra in extras or ():
        total = total + extra
    return total, total.sum()


@pytest.fixture
def recorder():
    return Recorder()


def test_one_graph_per_shape(recorder):
    call = GraphCache(double, capture=recorder)
    for shape in ((2, 3), (2, 3), (4,), (2, 3)):
        x = torch.randn(shape)
        assert torch.equal(call(x)[0], 2 * x)
    assert len(call) == len(recorder.captured) == 2


@pytest.mark.parametrize(
    "other",
    [torch.ones(2, 3, dtype=torch.float64), torch.ones(3, 2).T, torch.ones(1, 2, 3)],
    ids=["dtype", "strides", "shape"],
)
def test_a_graph_is_captured_for_one_dtype_layout_and_shape(recorder, other):
    call = GraphCache(double, capture=recorder)
    call(torch.ones(2, 3))
    call(other)
    assert len(call) == 2


def test_absent_and_listed_arguments(recorder):
    call = GraphCache(double, capture=recorder)
    x, noise = torch.randn(3), [torch.randn(3), torch.randn(3)]
    for arguments in ((x, None, noise), (x, x, None), (x, x, noise), (x, None, noise)):
        assert torch.equal(call(*arguments)[0], double(*arguments)[0])
    assert len(call) == 3


def test_arguments_are_copied_in_and_results_out(recorder):
    call = GraphCache(double, capture=recorder)
    x = torch.ones(3)
    first, _ = call(x)
    second, _ = call(x + 1)
    assert torch.equal(first, torch.full((3,), 2.0)) and torch.equal(second, torch.full((3,), 4.0))
    assert recorder.captured[0][0] is not x


def test_the_least_recently_used_graph_is_dropped_first(recorder):
    call = GraphCache(double, max_graphs=2, capture=recorder)
    for size in (1, 2, 1, 3, 1, 2):
        call(torch.ones(size))
    assert [arguments[0].numel() for arguments in recorder.captured] == [1, 2, 3, 2]
    assert len(call) == 2


def test_threads_do_not_mix_their_results(recorder):
    call = GraphCache(double, capture=recorder)
    wrong = []

    def work(value):
        for _ in range(50):
            if not torch.equal(call(torch.full((4,), float(value)))[0], torch.full((4,), 2.0 * value)):
                wrong.append(value)

    threads = [Thread(target=work, args=(value,)) for value in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and len(recorder.captured) == 1


def test_a_capture_that_fails_leaves_nothing_behind():
    def refuse(function, arguments, pool, tune):
        raise RuntimeError("operation not permitted when stream is capturing")

    call = GraphCache(double, capture=refuse)
    with pytest.raises(RuntimeError, match="capturing"):
        call(torch.ones(2))
    assert len(call) == 0


def test_a_cache_without_graphs_is_refused():
    with pytest.raises(ValueError, match="max_graphs is 0, expected at least 1"):
        GraphCache(double, max_graphs=0)


@pytest.mark.parametrize("how", ["graphs", "cudagraphs"])
def test_modes_that_the_device_does_not_support_are_refused(how):
    with pytest.raises(ValueError, match=f"how is {how!r}, expected 'torch' on cpu"):
        compiled(double, torch.device("cpu"), how, tune=True, max_graphs=1, options={})


def test_a_compiled_pipeline_restores_the_same():
    images = [torch.rand(1, 3, 24, 16), torch.rand(1, 3, 17, 12)]
    pipe, progress = fresh("x4", steps=2), []
    plain = [pipe(image, progress=False) for image in images]
    pipe.compile(backend="eager", dynamic=False)
    for image, expected in zip(images, plain, strict=True):
        result = pipe(image, progress=lambda done, total: progress.append(total - done))
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)
    assert progress.count(0) == 2


def test_a_failing_compiler_is_one_warning_and_no_failure():
    def refuse(graph, inputs):
        raise RuntimeError("no compiler found")

    function = compiled(double, torch.device("cpu"), None, tune=True, max_graphs=1, options={"backend": refuse})
    x = torch.ones(3)
    with pytest.warns(RuntimeWarning, match="torch.compile failed, running uncompiled: .*no compiler found"):
        assert torch.equal(function(x)[0], 2 * x)
    assert torch.equal(function(x)[0], 2 * x)


def test_tune_is_passed_to_the_capture(recorder):
    GraphCache(double, capture=recorder)(torch.ones(2))
    GraphCache(double, tune=True, capture=recorder)(torch.ones(2))
    assert recorder.tuned == [False, True]


def test_another_backend_is_another_graph(recorder):
    call = GraphCache(double, capture=recorder)
    call(torch.ones(2))
    with use_backend("reference"):
        call(torch.ones(2))
        call(torch.ones(2))
    call(torch.ones(2))
    assert len(call) == len(recorder.captured) == 2


def test_a_call_waits_for_the_previous_one_on_any_stream(recorder, monkeypatch):
    """The graphs of a cache share memory: inputs may be overwritten only after the previous replay has ended."""
    happened = []

    class Serializer:
        def __init__(self, device):
            happened.append(str(device))

        def begin(self):
            happened.append("begin")

        def end(self):
            happened.append("end")

    def capture(function, arguments, pool, tune):
        replay, results = recorder(function, arguments, pool, tune)
        return lambda: (replay(), happened.append("replay")), results

    monkeypatch.setattr(compilation, "_Serializer", Serializer)
    call = GraphCache(double, capture=capture)
    call(torch.ones(2))
    call(torch.ones(3))
    assert happened == ["cpu", *("begin", "replay", "end") * 2]


def test_two_caches_never_capture_at_once():
    capturing, most = set(), []

    def capture(function, arguments, pool, tune):
        capturing.add(get_ident())
        most.append(len(capturing))
        sleep(0.02)
        capturing.discard(get_ident())
        return lambda: None, function(*arguments)

    def work():
        call = GraphCache(double, capture=capture)
        for size in range(1, 6):
            call(torch.ones(size))

    threads = [Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(most) == 20 and max(most) == 1


def with_steps(x, callback=None):
    for t in (1, 0):
        if callback is not None:
            callback(t, x)
    return double(x)


def test_graphs_are_used_from_the_second_call_of_a_shape(recorder):
    call, steps = RepeatedGraphs(with_steps, capture=recorder), []
    given = []
    for shape in ((2,), (3,), (2,), (2,), (3,)):
        x = torch.randn(shape)
        (result, _), callback_given = call(x, callback=lambda t, x: steps.append(t))
        assert torch.equal(result, 2 * x)
        given.append(callback_given)
    assert given == [True, True, False, False, False] and steps == [1, 0] * 2
    assert len(recorder.captured) == 2 and not any(recorder.tuned)


def test_a_capture_that_fails_turns_graphs_off_with_one_warning():
    def refuse(function, arguments, pool, tune):
        raise torch.OutOfMemoryError("CUDA out of memory")

    call = RepeatedGraphs(with_steps, capture=refuse)
    x = torch.ones(2)
    assert call(x)[1]
    with pytest.warns(RuntimeWarning, match="CUDA graphs failed, running without them: CUDA out of memory") as caught:
        for _ in range(3):
            (result, _), callback_given = call(x)
            assert torch.equal(result, 2 * x) and callback_given
    assert len(caught) == 1


def test_the_number_of_remembered_shapes_is_limited(recorder):
    call = GraphCache(double, capture=recorder)
    for size in range(compilation.MAX_REMEMBERED + 10):
        assert not call.seen(torch.empty(size))
    assert len(call._seen) == compilation.MAX_REMEMBERED
    assert not call.seen(torch.empty(0)) and call.seen(torch.empty(compilation.MAX_REMEMBERED))


def test_a_pipeline_uses_graphs_by_default(recorder, monkeypatch):
    """As on a CUDA device, with a stand-in for the capture."""
    pipe, images = fresh("x4"), [torch.rand(1, 3, 24, 16) for _ in range(3)]
    plain, counts = [pipe(image, progress=False) for image in images], []
    pipe._graphs = RepeatedGraphs(pipe.restoration, capture=recorder)
    for image, expected in zip(images, plain, strict=True):
        assert torch.equal(pipe(image, progress=lambda done, total: counts.append((done, total))), expected)
    steps = pipe.spec.schedule.num_steps
    assert counts == [(done, steps) for done in range(1, steps + 1)] * 3
    assert len(recorder.captured) == 1


def test_a_copied_pipeline_has_graphs_of_its_own(recorder):
    pipe, image = fresh("x4"), torch.rand(1, 3, 24, 16)
    pipe._graphs = RepeatedGraphs(pipe.restoration, capture=recorder)
    expected = pipe(image, progress=False)
    for copy in (deepcopy(pipe), pickle.loads(pickle.dumps(pipe))):
        assert copy._graphs is not pipe._graphs and copy._graphs._function is copy.restoration
        copy._graphs._cache._capture = recorder
        for _ in range(2):
            assert torch.equal(copy(image, progress=False), expected)
    assert len(recorder.captured) == 2


def test_a_pipeline_on_the_cpu_has_no_graphs():
    assert fresh("x4")._graphs is None


on_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DEVICES = [f"cuda:{i}" for i in range(torch.cuda.device_count())] or ["cuda:0"]
PHOTOS = [torch.rand(1, 3, 96, 64), torch.rand(1, 3, 64, 64), torch.rand(1, 3, 96, 64), torch.rand(1, 3, 96, 64)]


@on_cuda
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("noise", ["field", "torch"])
def test_a_compiled_pipeline_replays_the_same_results(noise, device):
    pipe = Pipeline.from_pretrained("nano-x4", device=device, graphs=False)
    plain = [pipe(image, noise=noise, seed=3) for image in PHOTOS]
    pipe.compile(tune=False)
    for image, expected in zip(PHOTOS, plain, strict=True):
        assert torch.equal(pipe(image, noise=noise, seed=3), expected)


@on_cuda
@pytest.mark.parametrize("device", DEVICES)
def test_a_pipeline_with_graphs_restores_what_one_without_does(device):
    with_graphs, without = (Pipeline.from_pretrained("nano-x4", device=device, graphs=g) for g in (True, False))
    for image in PHOTOS:
        assert torch.equal(with_graphs(image, seed=3), without(image, seed=3))
    assert len(with_graphs._graphs._cache) == 1


@on_cuda
def test_replays_on_several_streams_do_not_overwrite_one_another():
    def slow(x):
        torch.cuda._sleep(20_000_000)
        return (x * 2 + 1,)

    call, found = GraphCache(slow), []
    given = [torch.full((1 << 20,), float(value), device="cuda") for value in range(6)]
    streams = [torch.cuda.Stream() for _ in given]
    call(given[0])
    torch.cuda.synchronize()
    for x, stream in zip(given, streams, strict=True):
        with torch.cuda.stream(stream):
            found.append(call(x)[0])
    torch.cuda.synchronize()
    for x, y in zip(given, found, strict=True):
        assert torch.equal(y, x * 2 + 1)


@on_cuda
def test_pipelines_in_several_threads_capture_and_replay(recwarn):
    """Each thread has its own stream, and uses its own pipeline and a shared one."""
    shared = Pipeline.from_pretrained("nano-x4", device="cuda")
    expected = [shared(image, seed=3) for image in PHOTOS]
    wrong = []

    def work():
        own = Pipeline.from_pretrained("nano-x4", device="cuda")
        with torch.cuda.stream(torch.cuda.Stream()):
            for pipe in (own, shared):
                for image, x in zip(PHOTOS, expected, strict=True):
                    if not torch.equal(pipe(image, seed=3), x):
                        wrong.append(image.shape)

    threads = [Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and not recwarn.list


@pytest.mark.filterwarnings("ignore:.*script_method.* is deprecated:DeprecationWarning")  # torch's own import
@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_one_graph_serves_square_wide_and_tall_images_after_a_square_one(backend):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend(backend)
    call = compiled(double, torch.device("cpu"), None, tune=False, max_graphs=1, options={"backend": counter})
    for size in ((6, 6), (6, 9), (9, 6), (5, 5), (7, 20)):
        x = torch.randn(1, 3, *size)
        assert torch.equal(call(x)[0], 2 * x)
        assert counter.frame_count == 1, f"compiled again for {size}"
    torch._dynamo.reset()
