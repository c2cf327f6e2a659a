"""torch.compile of a pipeline, and the cache of CUDA graphs with a stand-in for the capture where there is no GPU."""

from threading import Thread

import pytest
import torch
from pipelines import fresh

from resshift_fast import Pipeline
from resshift_fast.compilation import GraphCache, compiled


class Recorder:
    """Captures by running the function, and replays into the same results, as a graph does."""

    def __init__(self):
        self.captured = []

    def __call__(self, function, arguments, pool):
        results = function(*arguments)
        self.captured.append(arguments)

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


def test_a_graph_a_shape(recorder):
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
def test_what_a_graph_is_captured_for(recorder, other):
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


def test_the_graph_unused_for_longest_goes_first(recorder):
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
    def refuse(function, arguments, pool):
        raise RuntimeError("operation not permitted when stream is capturing")

    call = GraphCache(double, capture=refuse)
    with pytest.raises(RuntimeError, match="capturing"):
        call(torch.ones(2))
    assert len(call) == 0


def test_refuses_to_keep_no_graph():
    with pytest.raises(ValueError, match="max_graphs is 0, expected at least 1"):
        GraphCache(double, max_graphs=0)


@pytest.mark.parametrize("how", ["graphs", "cudagraphs"])
def test_refuses_what_the_device_cannot_do(how):
    with pytest.raises(ValueError, match=f"how is {how!r}, expected 'torch' on cpu"):
        compiled(double, torch.device("cpu"), how, 1, {})


def test_a_compiled_pipeline_restores_the_same():
    images = [torch.rand(1, 3, 24, 16), torch.rand(1, 3, 17, 12)]
    pipe, progress = fresh("x4"), []
    plain = [pipe(image, progress=False) for image in images]
    pipe.compile(backend="eager", dynamic=False)
    for image, expected in zip(images, plain, strict=True):
        result = pipe(image, progress=lambda done, total: progress.append(total - done))
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)
    assert progress.count(0) == 2


def test_a_failing_compiler_is_one_warning_and_no_failure():
    def refuse(graph, inputs):
        raise RuntimeError("no compiler found")

    function = compiled(double, torch.device("cpu"), None, 1, {"backend": refuse})
    x = torch.ones(3)
    with pytest.warns(RuntimeWarning, match="torch.compile failed, going on without: .*no compiler found"):
        assert torch.equal(function(x)[0], 2 * x)
    assert torch.equal(function(x)[0], 2 * x)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("noise", ["field", "torch"])
def test_a_pipeline_replays_what_it_ran(noise):
    pipe = Pipeline.from_pretrained("nano-x4", device="cuda")
    images = [torch.rand(1, 3, 96, 64), torch.rand(1, 3, 64, 64), torch.rand(1, 3, 96, 64)]
    plain = [pipe(image, noise=noise, seed=3) for image in images]
    pipe.compile()
    for image, expected in zip(images, plain, strict=True):
        assert torch.equal(pipe(image, noise=noise, seed=3), expected)
