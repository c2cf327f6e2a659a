"""The algorithms of 3×3 convolutions: their results, and which one is chosen for a shape."""

import os
import warnings
from importlib import import_module

import pytest
import torch
from comparison import LIMITS, assert_close, double
from interpreter import SIXTEEN_BITS
from pairwise import pairwise
from torch._subclasses.fake_tensor import FakeTensorMode

from resshift_fast import backends, ops, use_backend
from resshift_fast.kernels import config_cache, conv2d, conv2d_algorithms, residual_block, tuning, upsample_conv2d
from resshift_fast.kernels.conv2d_algorithms import BLOCKS, PYTORCH, SPLIT, SUMMED, SUMMED_TAPS, SUMS, TAPS, UPSAMPLED
from resshift_fast.kernels.launch import record
from resshift_fast.ops import norm_stats
from resshift_fast.restoration.fake_gpu import FusedPath

DTYPE = SIXTEEN_BITS[0]
OPS = ("residual_block", "conv2d_sum", "upsample_conv2d")
block_op, sum_op, upsample_op = (import_module(f"resshift_fast.ops.{name}") for name in OPS)
ALGORITHMS = [SPLIT, SUMS, PYTORCH]
CPU = torch.device("cpu")
interpreted = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="calls launchers with CPU tensors")


@pytest.fixture(autouse=True)
def unmeasured(monkeypatch):
    """No choice of another test, and none of this one for others."""
    for space in (BLOCKS, SUMMED, UPSAMPLED):
        monkeypatch.setattr(space, "_chosen", {})
    tuning.renew()
    yield
    tuning.renew()


def take(monkeypatch, algorithm):
    """Make an algorithm the default of every shape."""
    for space in (BLOCKS, SUMMED, UPSAMPLED):
        monkeypatch.setattr(space, "default", lambda arch, key: algorithm)
    tuning.renew()


# results


def draw(*shape, offset=0.0):
    x = (torch.randn(shape) + offset).to(DTYPE)
    return x.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else x


@pytest.mark.usefixtures("poisoned_empty")
@pytest.mark.parametrize("algorithm", [SUMS, PYTORCH], ids=str)
@pytest.mark.parametrize("case", ["identity", "concatenated", "skip", "given-statistics"])
def test_a_small_block_matches_float64(case, algorithm, device, monkeypatch):
    """By the algorithms that are not its default."""
    torch.manual_seed(0)
    channels = {"concatenated": 24 + 16, "skip": 48}.get(case, 32)
    x = draw(2, 24 if case == "concatenated" else channels, 3, 5, offset=-2.3).to(device)
    other = draw(2, 16, 3, 5, offset=-2.3).to(device) if case == "concatenated" else None
    norm1, norm2 = ((draw(c).to(device), draw(c).to(device)) for c in (channels, 32))
    convolutions = [(draw(32, c, 3, 3).to(device) / 20, draw(32).to(device)) for c in (channels, 32)]
    skip = (draw(32, channels).to(device) / 8, draw(32).to(device)) if channels != 32 else (None, None)
    condition = draw(2, 32).to(device), draw(2, 32).to(device)
    statistics = norm_stats.reference(x, 8, 1e-5) if case == "given-statistics" else None
    first, second = (*norm1, *convolutions[0]), (*norm2, *convolutions[1])
    arguments = x, other, 8, *first, *second, *condition, *skip, 1e-5, statistics
    take(monkeypatch, algorithm)
    y, statistics = residual_block.forward_with_statistics(*arguments, 4, 1e-3)
    assert y.dtype == DTYPE and y.is_contiguous(memory_format=torch.channels_last)
    assert_close("y", y, block_op.reference(*double(arguments)), LIMITS[DTYPE])
    assert_close("statistics", statistics, norm_stats.reference(y.double(), 4, 1e-3), 1e-5)
    assert residual_block.forward(*arguments).equal(y)


@pytest.mark.usefixtures("poisoned_empty")
@pytest.mark.parametrize("algorithm", [SUMS, PYTORCH], ids=str)
@pytest.mark.parametrize("case", ["residual-bias-statistics", "skip-of-two-bias-statistics", "skip", ""])
def test_a_sum_matches_float64(case, algorithm, device, monkeypatch):
    torch.manual_seed(0)
    x, weight = draw(2, 8, 5, 3, offset=-2.3).to(device), draw(20, 8, 3, 3).to(device) / 8
    bias = draw(20).to(device) if "bias" in case else None
    residual = draw(2, 20, 5, 3).to(device) if "residual" in case else None
    images = [draw(2, c, 5, 3).to(device) for c in ((8, 16) if "two" in case else (8,) if "skip" in case else ())]
    matrix = draw(20, sum(image.shape[1] for image in images)).to(device) / 4 if images else None
    skip = [*images, None, None][:2]
    arguments = x, weight, bias, residual, *skip, matrix, bias if images else None, 5 * ("statistics" in case), 1e-3
    take(monkeypatch, algorithm)
    y, statistics = conv2d_algorithms.sum_forward(*arguments)
    assert y.dtype == DTYPE and y.is_contiguous(memory_format=torch.channels_last)
    assert_close("y", y, sum_op.reference(*double(arguments))[0], LIMITS[DTYPE])
    assert statistics.shape == (2, 2, arguments[-2]) and statistics.dtype == torch.float32
    if arguments[-2]:
        assert_close("statistics", statistics, norm_stats.reference(y.double(), 5, 1e-3), 1e-5)


@pytest.mark.parametrize("layout", ["contiguous", "one channel", "one pixel"])
def test_the_convolution_of_pytorch_takes_any_layout(layout, device, monkeypatch):
    size = {"contiguous": (2, 6, 5, 7), "one channel": (2, 1, 5, 7), "one pixel": (2, 6, 1, 1)}[layout]
    x, weight = torch.randn(size, device=device).to(DTYPE), torch.randn(16, size[1], 3, 3, device=device)
    residual = torch.randn(2, 16, *size[2:], device=device).to(DTYPE)
    take(monkeypatch, PYTORCH)
    y, _ = conv2d_algorithms.sum_forward(x, weight, None, residual)
    assert y.is_contiguous(memory_format=torch.channels_last)
    expected = sum_op.reference(x.double(), weight.to(DTYPE).double(), None, residual.double(), *(None,) * 4, 0, 0.0)[0]
    assert_close("y", y, expected, LIMITS[DTYPE])


@pytest.mark.usefixtures("poisoned_empty")
@pairwise(
    algorithm={str(algorithm): algorithm for algorithm in (SUMMED_TAPS, TAPS, PYTORCH)},
    layout=["channels-last", "contiguous"],
    given={"given": True, "": False},
)
def test_an_upsampled_image_matches_float64(algorithm, layout, given, device, monkeypatch):
    torch.manual_seed(0)
    x, weight = draw(2, 16, 3, 5, offset=-2.3).to(device), draw(24, 16, 3, 3).to(device) / 12
    bias = draw(24).to(device)
    x = x.contiguous() if layout == "contiguous" else x
    summed = ops.sum_upsample_taps(weight) if given else None
    take(monkeypatch, algorithm)
    y, statistics = conv2d_algorithms.upsample_forward_with_statistics(x, weight, bias, summed, 4, 1e-3)
    assert y.dtype == DTYPE
    wanted = torch.contiguous_format if layout == "contiguous" else torch.channels_last
    assert y.is_contiguous(memory_format=wanted)
    assert_close("y", y, upsample_op.reference(*double((x, weight, bias))), LIMITS[DTYPE])
    assert_close("statistics", statistics, norm_stats.reference(y.double(), 4, 1e-3), 1e-5)
    assert conv2d_algorithms.upsample_forward(x, weight, bias, summed).equal(y)


# the default


def launched(side, channels, batch=1, dtype=torch.bfloat16):
    """Names of the launches of a block on the meta device."""

    def empty(*shape):
        return torch.empty(shape, dtype=dtype, device="meta")

    x = empty(batch, channels, side, side).contiguous(memory_format=torch.channels_last)
    norm, convolution = (empty(channels),) * 2, (empty(channels, channels, 3, 3), empty(channels))
    with record() as launches:
        residual_block.forward(x, None, 8, *norm, *convolution, *norm, *convolution, None, None, None, None, 1e-5, None)
    return {launch.name for launch in launches}


@pytest.mark.parametrize(
    "arguments, algorithm",
    [
        ((8, 640), SPLIT),
        ((16, 320), SPLIT),
        ((32, 320), SUMS),
        ((64, 160), SUMS),
        ((8, 640, 8), SPLIT),
        ((8, 640, 9), SUMS),
        ((8, 24), SUMS),  # the other kernel is not for so few channels
        ((8, 8), PYTORCH),
        ((16, 320, 1, torch.float32), PYTORCH),
    ],
    ids=str,
)
def test_the_default_of_a_shape(arguments, algorithm):
    kernel = {SPLIT: "conv2d_kernel", SUMS: "conv2d_sum_kernel"}
    expected = {kernel[algorithm]} if algorithm in kernel else set()
    assert launched(*arguments) & set(kernel.values()) == expected


def test_pytorchs_convolution_is_a_candidate_of_every_shape():
    for pixels in (1, 64, 128, 256, 512, 1024, 4096, 1 << 20):
        for channels in (16, 64, 640):
            found = BLOCKS.candidates((pixels, channels, channels, False, False, False))
            assert PYTORCH in found[1:] and BLOCKS.default(90, (pixels, channels, channels)) == found[0]
            assert SPLIT not in found or conv2d.unsupported(torch.bfloat16, channels) is None
    assert PYTORCH in SUMMED.candidates(())[1:]


@pytest.mark.parametrize("given", [True, False], ids=["given", ""])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_the_algorithms_of_upsampling(given, dtype):
    """Summed taps from as many pixels on as in the table of upsample_conv2d.py; in 16 bit PyTorch's may be faster."""
    bounds = upsample_conv2d.GIVEN_PIXELS if given else upsample_conv2d.SUMMED_PIXELS
    least = bounds[dtype.itemsize]
    for pixels in (1, least // 2, least, 2 * least, 1 << 20):
        key = (pixels, 64, 64, dtype.itemsize, given, 0)
        first, second = (SUMMED_TAPS, TAPS) if pixels >= least else (TAPS, SUMMED_TAPS)
        assert list(UPSAMPLED.candidates(key)) == [first, second] + [PYTORCH] * (dtype is torch.bfloat16)
        assert UPSAMPLED.default(90, key) == first
    x, weight = torch.empty(1, 64, 2, least // 2, dtype=dtype, device="meta"), torch.empty(64, 64, 3, 3, device="meta")
    summed = torch.empty(4, 64, 4, 64, dtype=dtype, device="meta") if given else None
    taps = []
    for image in (x, x[..., : least // 4].contiguous()):
        with record() as launches:
            conv2d_algorithms.upsample_forward(image, weight, None, summed)
        taps.append(launches[-1].constants["TAPS"])
    assert taps == [2, 3]


@pytest.mark.slow
def test_the_fastest_is_chosen_for_each_upsampled_shape(monkeypatch):
    """By times that are given; kernels are measured before."""
    monkeypatch.setattr(upsample_conv2d.SPACE, "_chosen", {})
    timed = []

    def timer(call):
        call()
        timed.append(call.args[0])
        return 1.0 if call.args[0] == PYTORCH else 2.0

    x, weight = draw(1, 16, 4, 4), draw(16, 16, 3, 3) / 12
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        with tuning.measuring(timer):
            conv2d_algorithms.upsample_forward(x, weight, None)
    assert [choice for choice in timed if isinstance(choice, tuning.Algorithm)] == [TAPS, SUMMED_TAPS, PYTORCH]
    assert all(isinstance(choice, tuning.Config) for choice in timed[:-3]) and len(timed) > 6
    (chosen,) = UPSAMPLED._chosen.values()
    assert chosen == PYTORCH
    assert {bucket[-1] for _, bucket in upsample_conv2d.SPACE._chosen} == {2, 3}


def test_all_algorithms_run_on_fake_tensors_of_a_gpu():
    """As where the kernels of all candidates are compiled ahead of time, without a GPU."""
    launched = {}

    class Recorded(FusedPath):
        def launched(self, name, function, args, result, launches):
            launched[name.removeprefix("resshift_fast::")] = {launch.name for launch in launches}

    def empty(*shape):
        return torch.empty(shape, dtype=torch.bfloat16, device="cuda")

    with (
        FakeTensorMode(),
        torch.no_grad(),
        tuning.targeting(90),
        Recorded(lambda *_: ("triton",)),
        tuning.enumerating(),
    ):
        x = torch.empty(1, 64, 32, 16, dtype=torch.bfloat16, device="cuda", memory_format=torch.channels_last)
        vector, weight = empty(64), empty(64, 64, 3, 3)
        norm = vector, vector, weight, vector
        ops.residual_block(x, None, 32, *norm, *norm, next_groups=32)
        ops.conv2d_sum(x, weight, next_groups=32)
        ops.upsample_conv2d(x, weight, next_groups=32)
    statistics = {"group_stats_kernel"}
    assert {"conv2d_kernel", "conv2d_sum_kernel", "group_norm_given_kernel"} <= launched["residual_block_statistics"]
    assert launched["conv2d_sum"] == {"conv2d_sum_kernel"} | statistics
    assert launched["upsample_conv2d_statistics"] == {"upsample_conv2d_kernel", "sum_taps_kernel"} | statistics


# measurements


class Blocks:
    """Blocks whose algorithms compute the same, except as told, and take the times that are given."""

    def __init__(self, monkeypatch):
        self.times, self.timed, self.run = {}, [], []  # the first two by the candidate's text
        self.faults = {}
        stand_ins = {
            algorithm: lambda a, _, algorithm=algorithm: self._result(a, algorithm) for algorithm in ALGORITHMS
        }
        monkeypatch.setattr(residual_block, "_BY_ALGORITHM", stand_ins)

    def _result(self, a, algorithm):
        self.run.append(algorithm)
        y = block_op._plain(*a)
        return self.faults.get(algorithm, lambda y: y)(y), None

    def timer(self, call):
        call()
        self.timed.append(str(call.args[0]))
        return self.times[self.timed[-1]]

    def __call__(self, side=4, channels=32):
        """One block; returns its result and the algorithm of its last run."""
        torch.manual_seed(0)
        x = draw(1, channels, side, side)
        weights = [draw(channels), draw(channels), draw(channels, channels, 3, 3) / 16, draw(channels)]
        y = residual_block.forward(x, None, 4, *weights, *weights, None, None, None, None, 1e-5, None)
        return y, self.run[-1]

    def measured(self, times, **sizes):
        self.times = dict(zip(map(str, ALGORITHMS), times, strict=True))
        self.timed.clear()
        with tuning.measuring(self.timer):
            return self(**sizes)[1]


@pytest.fixture
def blocks(monkeypatch):
    return Blocks(monkeypatch)


def test_the_fastest_is_chosen_for_each_shape(blocks):
    assert blocks.measured((3.0, 9.0, 2.0), side=4) == PYTORCH and blocks.timed == ["split", "pytorch"]
    assert blocks.measured((1.0, 9.0, 2.0), side=8) == SPLIT
    assert blocks.measured((4.0, 3.0, 5.0), side=16) == SUMS and blocks.timed == ["split", "sums", "pytorch"]
    assert blocks.measured((1.0, 3.0, 5.0), side=32) == SPLIT and blocks.timed == ["sums", "split", "pytorch"]
    assert blocks.measured((9.0, 3.0, 1.0), side=4, channels=64) == PYTORCH
    kept = {(4, 32): PYTORCH, (8, 32): SPLIT, (16, 32): SUMS, (32, 32): SPLIT, (4, 64): PYTORCH, (8, 64): SPLIT}
    assert {sizes: blocks(*sizes)[1] for sizes in kept} == kept  # the last was not measured
    assert blocks.measured((0.0, 0.0, 0.0), side=4) == PYTORCH and not blocks.timed


def test_a_choice_is_read_again_by_another_process(blocks, monkeypatch, tmp_path):
    monkeypatch.setenv("RESSHIFT_FAST_AUTOTUNE_CACHE", "1")
    monkeypatch.setenv("RESSHIFT_FAST_CACHE", str(tmp_path))
    config_cache.forget()
    try:
        assert blocks.measured((3.0, 9.0, 2.0)) == PYTORCH
        (path,) = (tmp_path / "configurations").glob("*.json")
        assert '"algorithm": "pytorch"' in path.read_text()
        monkeypatch.setattr(BLOCKS, "_chosen", {})
        config_cache.forget()
        tuning.renew()
        assert blocks()[1] == PYTORCH and blocks(side=8)[1] == SPLIT
        path.write_text(path.read_text().replace('"pytorch"', '"sums"'))  # which is not for so few pixels
        monkeypatch.setattr(BLOCKS, "_chosen", {})
        config_cache.forget()
        tuning.renew()
        assert blocks()[1] == SPLIT
    finally:
        config_cache.forget()


def failing(y):
    raise RuntimeError("CUDNN_STATUS_NOT_SUPPORTED")


def test_an_algorithm_that_fails_is_not_used(blocks):
    blocks.faults = {PYTORCH: failing}
    assert blocks.measured((3.0, 9.0, 2.0)) == SPLIT and blocks.timed == ["split"]
    expected, algorithm = blocks()
    assert algorithm == SPLIT and expected.isfinite().all()


def test_a_wrong_algorithm_is_not_used(blocks):
    blocks.faults = {PYTORCH: lambda y: y + 1}
    with pytest.warns(
        RuntimeWarning, match=r"residual_block \(16, 32, .*\): pytorch is not used: its output 0 differs"
    ):
        assert blocks.measured((3.0, 9.0, 2.0)) == SPLIT


def test_an_algorithm_whose_results_change_from_run_to_run_is_not_used(blocks):
    signs = iter([1, -1] * 4)
    blocks.faults = {PYTORCH: lambda y: y * (1 + next(signs) * 2**-9)}
    with pytest.warns(RuntimeWarning, match="pytorch is not used: its output 0 differs from run to run"):
        assert blocks.measured((3.0, 9.0, 2.0)) == SPLIT


def test_unwritten_elements_are_found(blocks):
    """Where an algorithm leaves memory as it was, which may hold the result of the one before."""
    memory = torch.empty(1, 32, 4, 4, dtype=DTYPE).contiguous(memory_format=torch.channels_last)

    def partly(y):
        memory[..., 1:] = y[..., 1:]
        return memory

    blocks.faults = {SPLIT: memory.copy_, PYTORCH: partly}
    with pytest.warns(RuntimeWarning, match="pytorch is not used"):
        assert blocks.measured((3.0, 9.0, 2.0)) == SPLIT


def test_kernels_are_measured_before_the_algorithms_that_run_them(blocks):
    """Each kernel with both of its configurations, and then each algorithm with the kernel's fastest."""
    slow, fast = (tuning.Config({"BLOCK": n}) for n in (1, 2))
    kernel = tuning.Space("kernel", lambda key: (slow, fast), lambda arch, key: slow)
    used = []

    def split(y):
        used.append(kernel.config((), CPU, lambda config: (y,)))
        return y

    blocks.faults = {SPLIT: split}
    blocks.times = {str(slow): 2.0, str(fast): 1.0, "split": 1.0, "pytorch": 2.0}
    with tuning.measuring(blocks.timer), tuning.watching() as choices:
        assert blocks()[1] == SPLIT
    assert blocks.timed == [str(slow), str(fast), "split", "pytorch"]
    assert used[-2:] == [fast, fast]
    assert [choice.space.name for choice in choices] == ["kernel", "residual_block"]


def test_nothing_is_measured_while_a_graph_is_captured(blocks, monkeypatch):
    """On a fake GPU; what was measured before the capture is used in it."""
    gpu = torch.device("cuda", 0)
    monkeypatch.setattr(config_cache, "known", lambda device: {})
    monkeypatch.setattr(tuning, "architecture", lambda device: 90)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    monkeypatch.setattr(tuning, "Stopwatch", lambda device: pytest.fail("a stopwatch was started"))
    bucket = (16, 32, 32, False, False, False)
    with tuning.measuring():
        assert BLOCKS.config(bucket, gpu, lambda algorithm: pytest.fail(f"{algorithm} was run")) == SPLIT
    BLOCKS._chosen[gpu, bucket] = PYTORCH
    with tuning.measuring():
        assert BLOCKS.config(bucket, gpu, lambda algorithm: pytest.fail(f"{algorithm} was run")) == PYTORCH


def test_nothing_is_stored_for_a_gpu_that_is_targeted(blocks):
    blocks.times = dict.fromkeys(map(str, ALGORITHMS), 1.0)
    with tuning.targeting(80), tuning.measuring(blocks.timer):
        assert blocks()[1] == SPLIT
    assert not blocks.timed and not BLOCKS._chosen


@interpreted
def test_the_operator_takes_the_measured_algorithm_and_a_compiled_call_too(monkeypatch):
    """The choice is within the operator: a compiled call is not traced again after another was measured."""
    monkeypatch.setenv("RESSHIFT_FAST_VERIFY", "0")
    chosen = []

    def passes(*arguments):
        chosen.append("pytorch")
        return in_passes(*arguments)

    in_passes = conv2d_algorithms._in_passes
    monkeypatch.setattr(conv2d_algorithms, "_in_passes", passes)
    monkeypatch.setattr(conv2d_algorithms.conv2d_sum.SPACE, "candidates", lambda key: [])
    x = torch.randn(1, 16, 4, 4, dtype=DTYPE).contiguous(memory_format=torch.channels_last)
    weight, residual = torch.randn(16, 16, 3, 3, dtype=DTYPE) / 12, torch.randn(1, 16, 4, 4, dtype=DTYPE)
    traced = []

    def backend(graph, _):
        traced.append(graph)
        return graph

    call = torch.compile(lambda x: ops.conv2d_sum(x, weight, residual=residual)[0], backend=backend, fullgraph=True)
    with use_backend("triton"), torch.no_grad():
        before = call(x)
        assert not chosen
        with backends.measuring(lambda call: call() and float(call.args[0] != PYTORCH)), warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            ops.conv2d_sum(x, weight, residual=residual)
        chosen.clear()
        after = call(x)
    assert chosen == ["pytorch"] and len(traced) == 1
    assert_close("y", after, before.double(), LIMITS[DTYPE])
