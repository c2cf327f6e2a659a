"""dense_block's kernel for CPUs against the formula in float64: tiles, instruction sets, threads; invalid arguments."""

import pytest
import torch
from comparison import assert_close
from dense_blocks import arguments, formula
from pairwise import ISAS, pairwise

from resshift_fast.backends import unavailable
from resshift_fast.ops.conv2d_winograd import pack_conv2d

pytestmark = [
    pytest.mark.skipif(bool(unavailable("cpu")), reason=f"the cpu backend {unavailable('cpu')}"),
    pytest.mark.usefixtures("poisoned_empty"),
]

SIZES = {"one slice": (64, 32, 9, 7), "slices": (128, 32, 4, 21), "narrow": (16, 16, 33, 17), "wide": (96, 96, 5, 5)}
# As in test_conv2d_cpu.py: tiles of 8 are only used where results are rounded to 16 bits.
LIMITS = {4: 1e-5, 6: 1e-5, 8: 1e-4}


def kernel(x, weights, biases, slope=0.2, scale=0.2, tile=6):
    """The operator, with packed weights and float32 biases, as it requires."""
    biases = [bias.float() for bias in biases]
    operator = torch.ops.resshift_fast_cpu.dense_block
    return operator(x, *map(pack_conv2d, weights), *biases, slope, scale, tile)


@pairwise(
    strength=3,
    size=SIZES,
    tile={f"tile{n}": n for n in LIMITS},
    dtype=(torch.float32, torch.float16, torch.bfloat16),
    isa=ISAS,
)
def test_every_instruction_set_and_tile_matches_float64(size, tile, dtype, isa):
    x, weights, biases = arguments(*size, dtype=dtype)
    wide = x.double(), [w.double() for w in weights], [b.double() for b in biases]
    y = kernel(x, weights, biases, tile=tile)
    assert y.dtype == dtype and y.is_contiguous(memory_format=torch.channels_last)
    rounding = 0 if dtype == torch.float32 else torch.finfo(dtype).eps
    assert_close("output", y, formula(*wide), max(LIMITS[tile], rounding))


def test_neither_threads_nor_earlier_calls_change_results(two_threads):
    given = arguments(64, 32, 45, 70)
    found = kernel(*given)
    for threads in (1, 3, 8):
        torch.set_num_threads(threads)
        assert kernel(*given).equal(found)
    poison = [torch.full_like(given[0], torch.nan), *given[1:]]
    assert kernel(*poison).isnan().all()
    assert kernel(*given).equal(found)


def test_nan_stays_in_its_image():
    x, weights, biases = arguments(32, 16, 13, 9)
    whole = kernel(x, weights, biases)
    x[1] = torch.nan
    found = kernel(x, weights, biases)
    assert found[0].equal(whole[0]) and found[1].isnan().all()


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"x": (2, 32, 4)}, "x must be"),
        ({"x": (2, 32, 0, 4)}, "x must be"),
        ({"x": (2, 40, 4, 4)}, "growth must be"),
        ({"w1": (8, 32, 3, 3)}, "growth must be"),
        ({"w3": (16, 48, 3, 3)}, "weight must be"),
        ({"w5": (16, 96, 3, 3)}, "weight must be"),
        ({"b2": (3,)}, "bias has 3 elements"),
        ({"tile": 5}, "tile must be 4, 6 or 8"),
    ],
    ids=str,
)
def test_invalid_arguments(changed, message):
    x, weights, biases = arguments(32, 16, 4, 4)
    given = {"x": x, **{f"w{i + 1}": pack_conv2d(w) for i, w in enumerate(weights)}}
    given |= {f"b{i + 1}": bias for i, bias in enumerate(biases)} | {"slope": 0.2, "scale": 0.2, "tile": 4}
    torch.ops.resshift_fast_cpu.dense_block(*given.values())
    for name, value in changed.items():
        given[name] = value if isinstance(value, int) else torch.ones(value)
        if isinstance(value, tuple) and len(value) == 4 and name != "x":
            given[name] = pack_conv2d(given[name])
    with pytest.raises(RuntimeError, match=message):
        torch.ops.resshift_fast_cpu.dense_block(*given.values())


def test_weights_that_are_not_packed_are_refused():
    x, weights, biases = arguments(32, 16, 4, 4)
    with pytest.raises(RuntimeError, match="output channels last and taps first"):
        torch.ops.resshift_fast_cpu.dense_block(x, *weights, *biases, 0.2, 0.2, 4)
