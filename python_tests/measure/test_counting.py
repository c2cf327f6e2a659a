"""Counts of operators and bytes: graphs counted by hand, and an upper bound for a whole sample."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from resshift_fast import ops, use_backend
from resshift_fast.measure import roofline
from resshift_fast.measure.counting import Counter, Row, count_sample, total
from resshift_fast.models import catalog

pytest.importorskip("triton")


def counts(rows):
    return {name: (row.count, row.num_bytes) for name, row in rows.items()}


def test_counts_equal_those_by_hand():
    with FakeTensorMode():
        x, w = torch.empty(4, 8, device="cuda"), torch.empty(8, 16, device="cuda", dtype=torch.float32)
        with Counter() as counter:
            y = x.t().reshape(32)  # a view, then a clone: 128 bytes read, 128 written
            z = y.view(4, 8) @ w  # 128 + 512 read, 256 written
            z.add_(1)  # 256 read, 256 written
            z.half()  # 256 read, 128 written
    assert counts(counter.rows)["aten::mm"] == (1, 128 + 512 + 256)
    assert counter.rows["aten::mm"].matrix_operations == 2 * 4 * 8 * 16
    assert counts(counter.rows)["aten::clone"] == (1, 256)
    assert counts(counter.rows)["aten::add_"] == (1, 512)
    assert counts(counter.rows)["aten::_to_copy"] == (1, 384)
    assert not {"aten::view", "aten::t", "aten::transpose", "aten::permute"} & counter.rows.keys()
    assert total(counter.rows).num_bytes == sum(row.num_bytes for row in counter.rows.values())


def test_an_operator_counts_its_launches_and_their_bytes():
    from resshift_fast import backends
    from resshift_fast.kernels.launch import record

    name = "resshift_fast::window_attention"
    with FakeTensorMode():
        qkv = torch.empty(1, 64, 64, 3 * 192, device="cuda", dtype=torch.bfloat16)
        table = torch.empty(225, 6, device="cuda", dtype=torch.bfloat16)
        with Counter() as counter, torch.no_grad():
            ops.window_attention(qkv, table, num_heads=6, window_size=8, shift_size=4)
        with record() as launches:
            backends.kernel("window_attention", "triton").function(qkv, table, 6, 8, 4, "resshift")
    assert counts(counter.rows) == {name: (len(launches), sum(launch.num_bytes for launch in launches))}
    # qkv is read once and the result written once; the table is small.
    assert 0 <= counter.rows[name].num_bytes - 4 * 64 * 64 * 192 * 2 <= 64 * 1024
    assert counter.rows[name].matrix_operations == 4 * 64 * 64 * 64 * 192


def test_an_unsupported_call_counts_as_plain_pytorch():
    with FakeTensorMode():
        x, w = torch.empty(1, 8, 4, 4, device="cuda", dtype=torch.float64), torch.empty(8, device="cuda").double()
        with Counter() as counter, torch.no_grad():
            ops.group_norm(x, 4, w, w)
    assert counter.rows["resshift_fast::group_norm"].count > 1


def test_the_reference_counts_its_own_operators():
    with FakeTensorMode(), use_backend("reference"):
        x, w = torch.empty(1, 8, 4, 4, device="cuda"), torch.empty(8, device="cuda")
        with Counter() as counter, torch.no_grad():
            ops.group_norm(x, 4, w, w)
    assert counter.rows["aten::native_group_norm"].count == 1
    assert not any(name.startswith("resshift_fast") for name in counter.rows)


def test_a_sample_stays_within_the_bound():
    rows = count_sample("realsr-x4-v3", "fused")
    assert total(rows).count <= 1400
    assert total(rows).num_bytes <= 5e9


@pytest.mark.slow
@pytest.mark.parametrize("model", ["nano-x4", "inpaint-imagenet", "realsr-x2"])
def test_fused_has_fewer_operators_and_bytes_than_plain(model):
    side = catalog.get(model).pad_multiple
    plain, fused = (total(count_sample(model, path, size=(side, side))) for path in ("plain", "fused"))
    assert fused.count < plain.count / 2 and fused.num_bytes < plain.num_bytes


def test_bytes_grow_with_the_batch_and_operators_do_not():
    one, four = (total(count_sample("nano-x4", "fused", batch=batch)) for batch in (1, 4))
    assert one.count == four.count and 2 < four.num_bytes / one.num_bytes < 4


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("nano-x4", "fast"), "path is 'fast', expected one of plain, fused"),
        (("nano",), "unknown model"),
        (("realsr-x4-v3", "fused", (64, 65)), "size is 64×65, expected multiples of 64"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    options = {"size": arguments[2]} if len(arguments) > 2 else {}
    with pytest.raises(ValueError, match=message):
        count_sample(*arguments[:2], **options)


def test_a_floor_is_the_larger_of_memory_and_compute_time():
    row = Row()
    row.add(3350, 1)  # a nanosecond of an H100's bandwidth
    row.add(1, 2 * 989_000)  # two of its 16-bit matrix rate
    floor = roofline.project({"op": row}, roofline.get("h100"))["op"]
    assert floor.seconds == pytest.approx(3e-9) and floor.memory_bound == 1 and floor.count == 2
    slower = roofline.project({"op": row}, roofline.get("h100"), element_size=4)["op"]
    assert slower.seconds == pytest.approx(1e-9 + 2 * 989_000 / 67e12)


def test_an_unknown_gpu_is_refused():
    with pytest.raises(ValueError, match="unknown GPU 'h1000', expected one of h100, h200, a100, l40s, 4090"):
        roofline.get("h1000")
