"""The emulation finds the faults of deliberately faulty kernels, and its operations compute what a GPU computes."""

import numpy as np
import pytest
import torch
from comparison import assert_close, name_of
from emulation import array, filled

ALL_LANES = 0xFFFFFFFF
MAX_SHARED_BYTES = 99 * 1024
HALVES = (torch.float16, torch.bfloat16)
# Which of a fault's messages appears depends on the order of the threads.
LEAVES_ITSELF_OUT = "with a lane mask that leaves itself out"
READS_OUTSIDE = "reads from a lane outside of its mask"
DO_NOT_COME = "for lanes of its mask that do not come"
BITS = torch.arange(1 << 16, dtype=torch.int32).to(torch.uint16)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def in_every_order(emulated, run):
    """The results of `run` with the threads in each order."""
    results = {}
    for name, order in emulated.Order.__members__.items():
        emulated.set_order(order)
        results[name] = run()
    return results


# Synchronization of a block


@pytest.mark.parametrize("threads", [33, 64, 1024])
def test_writes_are_visible_to_other_threads_after_a_barrier(threads, emulated, in_all_orders):
    x = normal(threads)

    def run():
        y = filled(threads, dtype=torch.float32)
        emulated.selftest.reverse(array(x), array(y), True)
        return y

    assert torch.equal(in_all_orders(run)[0], x.flip(0))


def test_a_missing_barrier_gives_nan_that_depends_on_the_order(emulated, in_all_orders):
    x = normal(64)

    def run():
        y = filled(64, dtype=torch.float32)
        emulated.selftest.reverse(array(x), array(y), False)
        return y

    results = in_every_order(emulated, run)
    missing = {name: y.isnan() for name, y in results.items()}
    assert missing["ascending"].tolist() == [True] * 32 + [False] * 32
    assert torch.equal(missing["descending"], ~missing["ascending"])
    assert missing["shuffled"].any() and not missing["shuffled"].all()
    with pytest.raises(AssertionError, match="depends on the threads' order"):
        in_all_orders(run)


def test_a_race_shows_as_a_difference(emulated, in_all_orders):
    def run():
        y = filled(2, dtype=torch.float32)
        emulated.selftest.racing_sum(array(y))
        return y

    results = in_every_order(emulated, run)
    assert not torch.equal(results["ascending"], results["descending"])
    assert not torch.equal(results["ascending"], results["shuffled"])
    with pytest.raises(AssertionError, match="depends on the threads' order"):
        in_all_orders(run)


@pytest.mark.parametrize("order", ["ascending", "descending", "shuffled"])
@pytest.mark.parametrize("other, message", [(False, "has exited"), (True, "different barriers")], ids=["exit", "other"])
def test_a_barrier_that_some_threads_do_not_reach(other, message, order, emulated):
    emulated.set_order(getattr(emulated.Order, order))
    with pytest.raises(RuntimeError, match=rf"block \(0, 0, 0\): .*selftest\.cu:\d+.*{message}|{message}.*selftest"):
        emulated.selftest.divergent_barrier(array(filled(64, dtype=torch.float32)), other)


def test_the_emulation_works_after_an_error(emulated):
    x, y = normal(64), filled(64, dtype=torch.float32)
    with pytest.raises(RuntimeError):
        emulated.selftest.divergent_barrier(array(y), True)
    emulated.selftest.reverse(array(x), array(y), True)
    assert torch.equal(y, x.flip(0))


# Operations of a warp


def test_a_sum_over_all_lanes(emulated, in_all_orders):
    x = torch.arange(32.0) - 7

    def run():
        y = filled(32, dtype=torch.float32)
        emulated.selftest.masked_sum(array(x), array(y), ALL_LANES, ALL_LANES)
        return y

    assert torch.equal(in_all_orders(run)[0], x.sum().expand(32))


@pytest.mark.parametrize(
    "mask, active, message",
    [
        (0x0000FFFF, ALL_LANES, f"{LEAVES_ITSELF_OUT}|{READS_OUTSIDE}"),
        (0xFFFFFFFE, ALL_LANES, f"{LEAVES_ITSELF_OUT}|{READS_OUTSIDE}"),
        (ALL_LANES, 0x7FFFFFFF, rf"thread \(31, 0, 0\), which has exited|{DO_NOT_COME}"),
        (ALL_LANES, 0x0000FFFF, f"which has exited|{DO_NOT_COME}"),
        (0x0000FFFF, 0x0000FFFF, READS_OUTSIDE),
    ],
    ids=["half", "all-but-the-first", "last-exits", "half-exits", "half-and-half-exits"],
)
@pytest.mark.parametrize("order", ["ascending", "descending", "shuffled"])
def test_a_wrong_lane_mask(mask, active, message, order, emulated):
    emulated.set_order(getattr(emulated.Order, order))
    with pytest.raises(RuntimeError, match=message):
        emulated.selftest.masked_sum(array(normal(32)), array(filled(32, dtype=torch.float32)), mask, active)


@pytest.mark.parametrize(
    "divergence, message",
    [
        (0, f"waits in __shfl_xor_sync {DO_NOT_COME}"),
        (1, f"with another lane mask|which has exited|waits in __shfl_xor_sync {DO_NOT_COME}"),
        (2, r"calls (__ballot_sync|__syncwarp) while thread \(\d+, 0, 0\) is in (__syncwarp|__ballot_sync)"),
    ],
    ids=["barrier-and-shuffle", "two-masks", "two-operations"],
)
@pytest.mark.parametrize("order", ["ascending", "descending", "shuffled"])
def test_divergent_lanes(divergence, message, order, emulated):
    emulated.set_order(getattr(emulated.Order, order))
    with pytest.raises(RuntimeError, match=message):
        emulated.selftest.divergent_warp(array(filled(32, dtype=torch.float32)), divergence)


def test_warp_operations(emulated):
    x, y = torch.arange(32.0) - 20, filled(5, 32, dtype=torch.float32)
    emulated.selftest.warp_operations(array(x), array(y))
    lane = torch.arange(32)
    assert torch.equal(y[0], x[lane // 8 * 8 + lane * 3 % 8])
    # By the CUDA C++ Programming Guide, a lane of another part of the warp can be read if that part comes before.
    assert torch.equal(y[1], x[torch.where((lane ^ 12) // 8 <= lane // 8, lane ^ 12, lane)])
    assert torch.equal(y[2], x[torch.where(lane % 16 + 3 < 16, lane + 3, lane)])
    assert (y[3] == 0b1111111111100000).all()
    assert y[4, -1] == x.sum()


# Asynchronous copies


def test_an_asynchronous_copy_is_complete_after_a_wait(emulated, in_all_orders):
    x = normal(128)

    def run(wait=True):
        y = filled(128, dtype=torch.float32)
        emulated.selftest.async_copy(array(x), array(y), wait)
        return y

    assert torch.equal(in_all_orders(run)[0], x.flip(0))
    assert run(wait=False).isnan().all()


def test_a_copy_over_memory_that_is_still_read(emulated, in_all_orders):
    x = normal(256)

    def run(barrier=True):
        y = filled(256, dtype=torch.float32)
        emulated.selftest.overwriting_copy(array(x), array(y), barrier)
        return y

    assert torch.equal(in_all_orders(run)[0], x.view(2, 32, 4).flip(1).flatten())
    with pytest.raises(AssertionError, match="depends on the threads' order"):
        in_all_orders(lambda: run(barrier=False))


def test_a_misaligned_asynchronous_copy(emulated):
    with pytest.raises(RuntimeError, match="not aligned"):
        emulated.selftest.async_copy(array(normal(132))[1:], array(filled(128, dtype=torch.float32)), True)


# Matrix instructions


def as_array(x, dtype):
    return array(x.to(dtype).contiguous())


@pytest.mark.parametrize("dtype", HALVES, ids=name_of)
def test_small_integers_are_multiplied_exactly(dtype, emulated):
    # Neighbouring elements and their products differ, so that an exchange of elements shows.
    a = torch.arange(256.0).view(16, 16) % 61 - 30
    b = (torch.arange(128.0).view(16, 8) * 7) % 53 - 26
    d = torch.arange(128.0).view(16, 8) * 1000
    ours = d.clone()
    emulated.selftest.product(as_array(a, dtype), as_array(b, dtype), array(ours))
    assert torch.equal(ours, d + a @ b)


@pytest.mark.parametrize("dtype", HALVES, ids=name_of)
def test_each_element_has_its_place(dtype, emulated):
    for row in range(16):
        for k in range(16):
            a, ours = torch.zeros(16, 16), torch.zeros(16, 8)
            a[row, k] = 1
            b = torch.arange(128.0).view(16, 8)
            emulated.selftest.product(as_array(a, dtype), as_array(b, dtype), array(ours))
            assert torch.equal(ours, a @ b)


@pytest.mark.parametrize("dtype", HALVES, ids=name_of)
def test_random_matrices(dtype, emulated):
    a, b, d = normal(16, 16).to(dtype), normal(16, 8, seed=1).to(dtype), normal(16, 8, seed=2)
    ours = d.clone()
    emulated.selftest.product(array(a), array(b), array(ours))
    assert_close("product", ours, d.double() + a.double() @ b.double(), 1e-6)


# Floating-point formats


@pytest.mark.parametrize("dtype", HALVES, ids=name_of)
def test_every_16_bit_value_is_converted_to_float32(dtype, emulated):
    wide = filled(1 << 16, dtype=torch.float32)
    emulated.selftest.widen(array(BITS.view(dtype)), array(wide))
    if dtype == torch.float16:
        expected = torch.from_numpy(BITS.numpy().view(np.float16).astype(np.float32))
    else:
        expected = torch.from_numpy((BITS.numpy().astype(np.uint32) << 16).view(np.float32))
    assert torch.equal(wide.isnan(), expected.isnan())
    valid = ~expected.isnan()
    assert torch.equal(wide[valid].view(torch.int32), expected[valid].view(torch.int32))


def rounded(emulated, x, dtype):
    narrow = filled(*x.shape, dtype=dtype)
    emulated.selftest.round_trip(array(x), array(narrow))
    return narrow


@pytest.mark.parametrize("dtype", HALVES, ids=name_of)
def test_every_16_bit_value_survives_float32(dtype, emulated):
    values = BITS.view(dtype)
    back = rounded(emulated, values.float(), dtype)
    assert torch.equal(back.isnan(), values.isnan())
    valid = ~values.isnan()
    assert torch.equal(back[valid].view(torch.int16), values[valid].view(torch.int16))


@pytest.mark.parametrize("dtype", HALVES, ids=name_of)
def test_float32_rounds_to_nearest_even(dtype, emulated):
    # All ties between neighbours, also subnormal ones and the last before infinity, and the values on both sides.
    last = int(torch.tensor(torch.inf, dtype=dtype).view(torch.int16))
    values = torch.arange(last, dtype=torch.int32).to(torch.int16).view(dtype).double()
    step = values[1:] - values[:-1]
    ties = torch.cat([values[:-1] + step / 2, values[-1:] + step[-1:] / 2]).float()
    assert torch.equal(ties.double()[:-1], values[:-1] + step / 2), "float32 cannot represent a tie"
    below, above = (torch.nextafter(ties, torch.tensor(x)) for x in (-torch.inf, torch.inf))
    even = torch.arange(last) % 2 == 0
    index = torch.arange(last, dtype=torch.int16)
    for sign in (1, -1):
        zero = torch.tensor(0 if sign == 1 else -32768, dtype=torch.int16)
        for x, expected in ((below, index), (ties, torch.where(even, index, index + 1)), (above, index + 1)):
            assert torch.equal(rounded(emulated, sign * x, dtype).view(torch.int16), expected | zero)


@pytest.mark.parametrize("dtype", HALVES, ids=name_of)
def test_any_float32_rounds_as_in_torch(dtype, emulated):
    bits = torch.randint(-(1 << 31), 1 << 31, (1 << 17,), generator=torch.Generator().manual_seed(0))
    bits[:4] = torch.tensor([0x7F800000, 0x7FC00000, 0x7F800001, 0x7FFFFFFF])
    bits[4:8] = bits[:4] - (1 << 31)
    x = torch.cat([bits.to(torch.int32).view(torch.float32), normal(1 << 16) * 10, normal(1 << 15) * 1e-6])
    ours, expected = rounded(emulated, x, dtype), x.to(dtype)
    assert torch.equal(ours.isnan(), x.isnan()) and ours.isnan().sum() > 4
    valid = ~x.isnan()
    assert torch.equal(ours[valid].view(torch.int16), expected[valid].view(torch.int16))


# Launches


@pytest.mark.parametrize(
    "grid, block, shared_bytes, message",
    [
        ((0, 1, 1), (1, 1, 1), 0, "grid is empty or beyond the limits"),
        ((1, 65536, 1), (1, 1, 1), 0, "grid is empty or beyond the limits"),
        ((1, 1, 65536), (1, 1, 1), 0, "grid is empty or beyond the limits"),
        ((1 << 31, 1, 1), (1, 1, 1), 0, "grid is empty or beyond the limits"),
        ((1, 1, 1), (0, 1, 1), 0, "1 to 1024 threads"),
        ((1, 1, 1), (1025, 1, 1), 0, "1 to 1024 threads"),
        ((1, 1, 1), (32, 33, 1), 0, "1 to 1024 threads"),
        ((1, 1, 1), (1, 1, 1), MAX_SHARED_BYTES + 1, "more shared memory than a block of sm_86"),
    ],
)
def test_a_launch_beyond_the_limits(grid, block, shared_bytes, message, emulated):
    with pytest.raises(RuntimeError, match=message):
        emulated.selftest.count(array(torch.zeros(1)), grid, block, shared_bytes)


@pytest.mark.parametrize(
    "grid, block", [((1, 1, 1), (1, 1, 1)), ((3, 4, 5), (7, 2, 3)), ((1, 65535, 1), (1, 1, 1)), ((2, 1, 1), (1, 8, 64))]
)
def test_every_thread_of_every_block_runs_once(grid, block, emulated):
    count = torch.zeros(1)
    emulated.selftest.count(array(count), grid, block, 16)
    assert count.item() == np.prod(grid) * np.prod(block)


def test_arrays_of_other_dtypes_are_refused(emulated):
    with pytest.raises(RuntimeError, match="float32, float16, or uint16"):
        emulated.selftest.widen(np.zeros(1, np.float64), np.zeros(1, np.float32))


def test_activations_and_their_derivatives_match_float64(emulated):
    z = torch.cat([torch.linspace(-20, 20, 4001), torch.tensor([0.0, 1e-6, -100.0, 100.0])])
    ours = torch.full((5, len(z)), float("nan"))
    emulated.selftest.activations(z.numpy(), ours.numpy())
    exact = z.double().requires_grad_()
    expected = []
    for function in (torch.nn.functional.silu, torch.nn.functional.gelu):
        y = function(exact)
        expected += [y.detach(), *torch.autograd.grad(y.sum(), exact)]
    expected.append(exact.detach().sigmoid())
    torch.testing.assert_close(ours.double(), torch.stack(expected), rtol=1e-5, atol=2e-7)
