"""The model of many cores: its formula, and how many tiles it has restored at once."""

from dataclasses import replace

import pytest
import torch
from pipelines import SPECS, oracle, photo, pointwise, tiny

from resshift_fast import use_backend
from resshift_fast.backends import native
from resshift_fast.models import calls, catalog
from resshift_fast.models.calls import Call
from resshift_fast.restoration import cores
from resshift_fast.restoration.cores import Processor, Work
from resshift_fast.restoration.loops import Tiles

pytestmark = pytest.mark.skipif(native.missing("cpu") is not None, reason="the C++ library is not built")

NANO = catalog.get("nano-x4")
CPU = torch.device("cpu")
PLAIN = Processor(rate=10.0, core_bandwidth=2.0, bandwidth=6.0, hand_out=0.5, call=3.0, growth=4.0)


def tiles(side, batch, dtype=torch.float32):
    return Tiles(side, side, batch, dtype)


@pytest.mark.parametrize(
    "work, threads, seconds",
    [
        pytest.param(Work(4, 80, 0), 1, 8, id="one thread"),
        pytest.param(Work(4, 80, 0), 3, 2 * 2 + 2 * 0.5, id="a second round for one piece"),
        pytest.param(Work(4, 80, 0), 9, 2 + 3 * 0.5, id="more threads than pieces"),
        pytest.param(Work(4, 80, 24), 2, 6 + 0.5, id="two cores wait for memory"),
        pytest.param(Work(4, 80, 24), 4, 4 + 3 * 0.5, id="all bandwidth"),
    ],
)
def test_the_formula(work, threads, seconds):
    assert work.seconds(threads, PLAIN) == pytest.approx(seconds)


@pytest.mark.parametrize("threads", [1, 16])
@pytest.mark.parametrize("name", ["nano-x4", "photo-x4", "realsr-x4-v3"])
def test_all_work_is_in_one_of_the_loops(name, threads):
    """At least the multiplications of `cost`; beyond them only transforms and noise."""
    from resshift_fast.models import cost

    shape = tiles(64, 2)
    for _, call in set(calls.of_restoration(catalog.get(name))):
        pixels = 2 * 64**2 * (64**2 if call.is_between_pixels else 1)
        found = sum(work.multiplications for work in cores.work_of(call, shape, threads))
        expected = cost.multiplications(call) * pixels
        if call.operator in ("conv2d", "upsample_conv2d", "dense_block"):
            assert found > expected
        elif call.operator not in ("prior_sample", "posterior_step"):
            assert found == pytest.approx(expected), call


def test_bytes_are_those_of_images_and_weights():
    assert cores._bytes(Call("upsample_conv2d", 8, 8, 2.0), tiles(4, 2)) == (8 * 128 * 4, 9 * 64 * 4, 8 * 512 * 4)
    assert cores._bytes(Call("window_attention", 8, 8), tiles(4, 1, torch.bfloat16)) == (24 * 16 * 2, 0, 8 * 16 * 2)


@pytest.mark.parametrize("batch", [1, 8])
def test_more_cores_are_faster_and_never_faster_than_their_number(batch):
    free = replace(cores.SERVER, hand_out=0.0, bandwidth=1e15)
    alone = cores.seconds(NANO, tiles(64, batch), 1, free)
    taken = [cores.seconds(NANO, tiles(64, batch), threads, free) for threads in (2, 8, 32)]
    assert alone > taken[0] > taken[1] > taken[2] and taken[2] > alone / 32


CASES = {
    "one thread": (NANO, 64, 100, 1, {1}),
    "two threads": (NANO, 64, 100, 2, {1}),
    "many threads": (NANO, 64, 100, 64, {8}),
    "large tiles": (NANO, 192, 100, 8, {1, 2}),
    "no more than there are": (NANO, 64, 3, 64, {2}),
    "a single tile": (NANO, 64, 1, 64, {1}),
    "a network with much work": (catalog.get("realsr-x4-v3"), 128, 100, 8, {1}),
}


@pytest.mark.parametrize("case", CASES)
def test_the_fewest_tiles_that_occupy_the_threads(case):
    spec, side, count, threads, expected = CASES[case]
    assert cores.batch_size(spec, tiles(side, count), threads) in expected


def test_memory_bounds_the_batch(monkeypatch):
    shape = tiles(64, 100)
    monkeypatch.setattr(cores, "BYTES_PER_THREAD", 2.5 * cores.bytes_of_tile(NANO, shape) / 64)
    cores.batch_size.cache_clear()
    assert cores.batch_size(NANO, shape, 64) == 2
    monkeypatch.setattr(cores, "BYTES_PER_THREAD", 1)
    cores.batch_size.cache_clear()
    assert cores.batch_size(NANO, shape, 64) == 1
    cores.batch_size.cache_clear()


def test_the_default_is_even_and_of_the_threads_that_torch_has(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    sizes = [cores.default_batch_size(NANO, (64, 64), count, CPU, torch.float32) for count in (1, 2, 9, 16, 100)]
    assert sizes == [1, 2, 5, 8, 8]
    with use_backend("reference"):  # whose division of the work is PyTorch's
        assert cores.default_batch_size(NANO, (64, 64), 9, CPU, torch.float32) == 1
    assert cores.default_batch_size(NANO, (64, 64), 9, torch.device("cuda"), torch.float32) == 4
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert cores.default_batch_size(NANO, (64, 64), 9, CPU, torch.float32) == 1


@pytest.mark.parametrize(
    "options, expected",
    [
        pytest.param({}, [5, 5, 2], id="default"),
        pytest.param({"batch_size": 3}, [3, 3, 3, 1, 2], id="given"),
        pytest.param({"noise": "torch"}, [1] * 12, id="noise of torch"),
    ],
)
def test_a_pipeline_restores_as_many_at_once(options, expected, monkeypatch):
    """Ten tiles of one shape, and two of another, whose batches are of their own."""
    asked = []

    def default(spec, shape, count, device, dtype):
        asked.append((shape, count, device, dtype))
        return {(32, 32): 5, (16, 16): 2}[shape]

    monkeypatch.setattr(cores, "default_batch_size", default)
    pipe = oracle(pointwise)
    wide = [photo(96, 96), photo(32, 32)]
    pipe([*wide, photo(16, 16), photo(16, 16)], tile=32, overlap=0, progress=False, **options)
    steps = pipe.spec.schedule.num_steps
    sizes = [shape[0] for shape in pipe.denoiser.shapes][::steps]
    assert sizes == expected
    if not options:
        assert asked == [((32, 32), 10, CPU, torch.float32), ((16, 16), 2, CPU, torch.float32)]


def test_a_larger_batch_changes_results_by_rounding_only(monkeypatch):
    image = torch.rand(1, 3, 16, 40, generator=torch.Generator().manual_seed(0))
    alone = tiny("x4")(image, tile=16, progress=False)
    monkeypatch.setattr(cores, "default_batch_size", lambda *_: 4)
    assert (tiny("x4")(image, tile=16, progress=False) - alone).abs().max() < 1e-5
    assert SPECS["x4"].tile > 16
