"""The loops of a network's calls, as planned, are those that the kernels share when the network runs."""

from collections import Counter

import pytest
import torch
from pipelines import SPECS, tiny

from resshift_fast.backends import native
from resshift_fast.backends.native import Loop, recorded_loops
from resshift_fast.models import calls
from resshift_fast.models.calls import Call
from resshift_fast.restoration import loops
from resshift_fast.restoration.loops import Tiles

pytestmark = pytest.mark.skipif(native.missing("cpu") is not None, reason="the C++ library is not built")

CONV = Call("conv2d", 64, 48, 2.0)
TILES = Tiles(16, 24, 2, torch.float32)


@pytest.mark.parametrize(
    "name, threads",
    [("x4", 1), ("x4", 16), ("x4-rrdb", 3), ("x4-vq", 3), ("inpaint-vq", 64), ("inpaint-unet", 2)],
)
def test_planned_loops_are_those_of_the_network(name, threads):
    spec, pipe, side, batch = SPECS[name], tiny(name), SPECS[name].pad_multiple, 2
    pictures = torch.rand(batch, 3, side, side, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(batch, 1, side, side - 1).float() if spec.needs_mask else None
    mask = None if mask is None else torch.nn.functional.pad(mask, (0, 1))
    with recorded_loops(threads) as ran:
        pipe(pictures, mask, tile=side, batch_size=batch, progress=False)
    latent = int(side * spec.latent_per_input)
    planned: Counter = Counter()
    for times, call in calls.of_restoration(spec):
        for loop in loops.of_call(call, Tiles(latent, latent, batch, torch.float32), threads):
            planned[loop] += times
    assert Counter(loop._replace(seconds=0.0) for loop in ran) == planned
    assert sum(loop.seconds for loop in ran) > 0


def test_more_threads_get_more_pieces():
    """Where one chunk of tiles for each thread is less than there are threads."""
    pieces = [loops.of_call(CONV, TILES, threads)[-1].pieces for threads in (1, 4, 16, 64)]
    assert pieces == sorted(pieces) and pieces[-1] >= 2 * pieces[0]


def test_what_pytorch_runs_has_no_loops():
    assert loops.of_call(Call("strided_conv2d", 8, 8, taps=9), TILES, 4) == ()
    small, large = (Call("window_attention", 32, 32, window=window, heads=1) for window in (8, 32))
    shape = TILES._replace(height=32, width=32)
    assert loops.of_call(small, shape, 4) and loops.of_call(large, shape, 4) == ()


def test_pieces_are_rounded_up():
    assert [Loop(n, 3).pieces for n in (1, 3, 4)] == [1, 1, 2]


def test_nothing_runs_while_it_is_planned_and_everything_afterwards():
    x, other = torch.rand(2, 4, 5, 6), torch.rand(2, 3, 5, 6)
    concat = native.operator("cpu", "concat")
    with recorded_loops(3, run=False) as planned:
        shape = concat(x, other, 1.0).shape
    assert shape == (2, 7, 5, 6) and [loop.iterations for loop in planned] == [60] and planned[0].seconds == 0
    assert torch.equal(concat(x, other, 1.0), torch.cat([x, other], 1))


def test_an_error_ends_the_recording():
    x = torch.rand(1, 4, 5, 6)
    with pytest.raises(KeyError), recorded_loops(3, run=False):
        raise KeyError
    assert torch.equal(native.operator("cpu", "concat")(x, x, 1.0), torch.cat([x, x], 1))


def test_what_cannot_be_recorded_is_told(monkeypatch):
    with pytest.raises(ValueError, match="threads is 0, expected at least 1"), recorded_loops(0):
        pass
    monkeypatch.setattr(native, "missing", lambda name: "was not built: no compiler")
    with pytest.raises(RuntimeError, match="the library was not built: no compiler"), recorded_loops(2):
        pass
